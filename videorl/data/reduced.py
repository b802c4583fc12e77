"""Prompts that show few of their frames: what a model makes of them says whether it needs the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videorl.data.prompts import Renderer
    from videorl.types import Prompt

Places = Callable[[int, int], Sequence[int]]
"""(frames of a clip, frames to keep) -> the places of those that are kept, in order."""

RULES: dict[str, Places] = {
    "first": lambda frames, keep: range(keep),
    "last": lambda frames, keep: range(frames - keep, frames),
    "middle": lambda frames, keep: range((frames - keep) // 2, (frames - keep) // 2 + keep),
    "uniform": lambda frames, keep: [(2 * place + 1) * frames // (2 * keep) for place in range(keep)],
}


def reduce_frames(prompt: Prompt, renderer: Renderer, rule: str, keep: int, hold: bool = False) -> Prompt:
    """The prompt with `keep` frames of each clip that has more; with `hold` each stays on until the next, so that there
    are as many as before. Reads headers; raises DataError for a bad clip."""
    counts = [len(renderer.source.plan(clip)[0].pts) for clip in prompt.clips]
    clips = (
        replace(clip, **{"hold" if hold else "pick": tuple(RULES[rule](count, keep))}) if count > keep else clip
        for clip, count in zip(prompt.clips, counts, strict=True)
    )
    return replace(prompt, clips=tuple(clips))
