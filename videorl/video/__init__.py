"""Clips to frames: `reader.load_frames(clip)` is the only decoder call of the project, `store` keeps what was computed."""
