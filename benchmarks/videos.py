"""Long clips, rows that ask about them, and a model with a deep vision tower: what the whole stack is timed on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from videorl.config import Config, load_config
from videorl.models.tiny import TinySize, build_tiny_model

FPS = 4
SIDE = 112
TOKENS_A_FRAME = 8  # 112 x 112 pixels are 16 tokens to a temporal step of two frames
# A tower of 7 million parameters under a language model of 3 million
SIZE = TinySize(hidden=256, layers=4, vision_hidden=256, vision_depth=8, vision_heads=8)
QUESTION = "Which colour appears first?"
CHOICES = ["red", "green", "blue", "yellow"]


@dataclass(frozen=True)
class Workspace:
    folder: Path

    def config(self, num_frames: int, *more: str) -> Config:
        prompt = num_frames * TOKENS_A_FRAME + 192
        return load_config("train", [
            "recipe=real_clips", f"data.path={self.folder}/rows-{num_frames}.jsonl", f"data.media_root={self.folder}",
            f"model.path={self.folder}/model", "model.build=null", f"store.dir={self.folder}/store",
            "data.sampling.fps=null", f"data.sampling.num_frames={num_frames}",
            f"data.sampling.max_frames={num_frames}", f"data.sampling.max_pixels={SIDE * SIDE}",
            f"data.sampling.total_pixels={SIDE * SIDE * num_frames}", f"data.max_prompt_tokens={prompt}",
            "rollout.group_size=8", "rollout.max_response_tokens=64", f"rollout.max_model_len={prompt + 64}",
            "policy.micro_batch_tokens=32768", "policy.mini_batches=1",
            "cluster.placement=spread", "run.trackers=[]", "run.live=plain", "run.export=false",
            "run.save_every=0", *more,
        ])  # fmt: skip


def make_workspace(folder: Path, frames: Sequence[int], clips: int) -> Workspace:
    """`clips` clips of each number of frames, a JSONL of rows for each, and the model."""
    for num_frames in frames:
        rows = []
        for number in range(clips):
            name = f"{num_frames}-{number}.mp4"
            write_clip(folder / name, num_frames, seed=number)
            rows.append({
                "id": name, "task": "mc", "prompt": QUESTION, "videos": [{"path": name}], "choices": CHOICES,
                "answer": "ABCD"[number % 4], "spans": None, "data_source": "benchmark", "meta": {},
            })  # fmt: skip
        (folder / f"rows-{num_frames}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_tiny_model(folder / "model", [QUESTION, *CHOICES], seed=0, size=SIZE)
    return Workspace(folder)


def write_clip(path: Path, num_frames: int, seed: int) -> None:
    """A texture that drifts, 4 frames a second: it decodes like footage, not like flat colours."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    texture = (texture[::2, ::2].repeat(2, 0).repeat(2, 1) // 2 + 64).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast", "g": "32"})
        stream.height = stream.width = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            top, left = (index * 3) % SIDE, (index * 2) % SIDE
            frame: Any = np.ascontiguousarray(texture[top : top + SIDE, left : left + SIDE])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
