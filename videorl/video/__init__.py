"""Clips to frames: `reader.load_frames` is the only decoder call of the project; `store` keeps what was computed."""
