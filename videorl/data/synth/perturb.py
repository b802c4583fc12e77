"""Perturbations of consecutive frames, and the words a question asks for them with.

The families and their ranges are those of VideoSSR's public code (lcqysl/VideoSSR, pretext_tasks/grounding.py), with
two differences: a shuffle is never the identity, and frames turned by a quarter keep their size (scaled to fit, black
around), so that a clip can be one video file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from videorl.data.synth.footage import resize

Parameters = dict[str, Any]

LUMA = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601, as Pillow's


@dataclass(frozen=True)
class Perturbation:
    """`phrase` completes "Between which seconds ...?". `apply` takes the frames to change, uint8 [T, H, W, 3], frames
    of another video of the same shape, and a generator; it returns the changed frames and what it drew."""

    phrase: str
    apply: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, Parameters]]


def _each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., tuple[np.ndarray, Parameters]]:
    """A perturbation without anything to draw."""
    return lambda frames, other, rng: (change(frames), {})


def _grayscale(frames: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(frames @ LUMA).astype(np.uint8)[..., None], 3, axis=-1)


def _saturate(frames: np.ndarray) -> np.ndarray:
    """Twice as far from grey."""
    grey = (frames @ LUMA)[..., None]
    return _to_uint8(grey + 2.0 * (frames - grey))


def _rotate(quarters: int) -> Callable[[np.ndarray], np.ndarray]:
    """Clockwise quarter turns."""

    def change(frames: np.ndarray) -> np.ndarray:
        turned = np.rot90(frames, -quarters, axes=(1, 2))
        return turned if turned.shape == frames.shape else fit(turned, *frames.shape[1:3])

    return change


def _noise(frames: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Parameters]:
    sigma = float(rng.uniform(35, 70))
    return _to_uint8(frames + rng.normal(0, sigma, frames.shape)), {"sigma": sigma}


def _shuffle(frames: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Parameters]:
    order = permute(len(frames), rng)
    return frames[order], {"order": order}


def _swap(frames: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Parameters]:
    return other, {}


def _zoom_in(frames: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Parameters]:
    factor = float(rng.uniform(1.3, 1.5))
    height, width = frames.shape[1:3]
    h, w = round(height / factor), round(width / factor)
    top, left = (height - h) // 2, (width - w) // 2
    return resize(frames[:, top : top + h, left : left + w], width, height), {"factor": factor}


def _zoom_out(frames: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Parameters]:
    factor = float(rng.uniform(1.2, 1.4))
    height, width = frames.shape[1:3]
    return _centre(resize(frames, round(width / factor), round(height / factor)), height, width), {"factor": factor}


def _blur(frames: np.ndarray) -> np.ndarray:
    """Gaussian of 2 pixels."""
    kernel = ImageFilter.GaussianBlur(2)
    return np.stack([np.asarray(Image.fromarray(frame).filter(kernel)) for frame in frames])


def _stutter(frames: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Parameters]:
    """2 to 5 frames, spread evenly, are each held for an equal share; fewer than frames, or nothing would freeze."""
    holds = min(int(rng.integers(2, 6)), len(frames) - 1)
    kept = np.rint(np.linspace(0, len(frames) - 1, holds)).astype(int)
    return frames[np.sort(np.resize(kept, len(frames)))], {"holds": holds}


PERTURBATIONS = {
    "grayscale": Perturbation("is the video without colour", _each(_grayscale)),
    "invert": Perturbation("are the colours inverted", _each(lambda frames: 255 - frames)),
    "channel_swap": Perturbation("are red and blue swapped", _each(lambda frames: frames[..., ::-1])),
    "rotate90": Perturbation("is the picture turned clockwise by 90 degrees", _each(_rotate(1))),
    "rotate180": Perturbation("is the picture upside down", _each(_rotate(2))),
    "rotate270": Perturbation("is the picture turned clockwise by 270 degrees", _each(_rotate(3))),
    "noise": Perturbation("is the picture noisy", _noise),
    "shuffle": Perturbation("are the frames out of order", _shuffle),
    "swap": Perturbation("is another video shown", _swap),
    "zoom_in": Perturbation("is the picture enlarged", _zoom_in),
    "zoom_out": Perturbation("is the picture smaller than its frame", _zoom_out),
    "mirror": Perturbation("are left and right mirrored", _each(lambda frames: frames[:, :, ::-1])),
    "blur": Perturbation("is the picture blurred", _each(_blur)),
    "saturation": Perturbation("are the colours too strong", _each(_saturate)),
    "stutter": Perturbation("does the video stutter", _stutter),
}


def permute(count: int, rng: np.random.Generator) -> list[int]:
    """A random order of 0..count-1 other than the sorted one, all equally likely. `count` is at least 2."""
    while True:
        order = rng.permutation(count).tolist()
        if order != sorted(order):
            return order


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scaled to fit inside height x width, black around."""
    scale = min(height / frames.shape[1], width / frames.shape[2])
    return _centre(resize(frames, round(frames.shape[2] * scale), round(frames.shape[1] * scale)), height, width)


def _centre(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.zeros((len(frames), height, width, 3), np.uint8)
    top, left = (height - frames.shape[1]) // 2, (width - frames.shape[2]) // 2
    out[:, top : top + frames.shape[1], left : left + frames.shape[2]] = frames
    return out
