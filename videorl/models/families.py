"""The model families, and what is known of each without a checkpoint. No torch: a dry run needs nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Size:
    """What memory depends on."""

    parameters: float
    hidden: int
    layers: int


@dataclass(frozen=True)
class Family:
    """`target` is the class that implements it; the rest is the geometry of all its checkpoints, in pixels, frames."""

    target: str
    patch: int
    merge: int
    temporal: int
    published: dict[str, Size]

    @property
    def spatial_factor(self) -> int:
        return self.patch * self.merge


FAMILIES = {
    "qwen2_5_vl": Family(
        target="videorl.models.qwen2_5_vl:Qwen25VL",
        patch=14,
        merge=2,
        temporal=2,
        published={  # from the model cards and their config.json
            "Qwen/Qwen2.5-VL-3B-Instruct": Size(3.75e9, 2048, 36),
            "Qwen/Qwen2.5-VL-7B-Instruct": Size(8.29e9, 3584, 28),
            "Video-R1/Qwen2.5-VL-7B-COT-SFT": Size(8.29e9, 3584, 28),
            "QiWang98/VideoRFT-SFT": Size(8.29e9, 3584, 28),
            "Qwen/Qwen2.5-VL-32B-Instruct": Size(33.5e9, 5120, 64),
            "Qwen/Qwen2.5-VL-72B-Instruct": Size(73.4e9, 8192, 80),
        },
    ),
}


def checkpoint_size(family: str, path: str) -> Size | None:
    """Size of a checkpoint folder (bytes of its weights tell the parameters) or of a published name; else None."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        return FAMILIES[family].published.get(path)
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    width = 4 if text.get("dtype", text.get("torch_dtype", config.get("dtype"))) == "float32" else 2
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Size(weights / width, text["hidden_size"], text["num_hidden_layers"])
