"""The right response to a row of `videorl.data.synth.examples`, in the form that the row's recipe asks for."""

from __future__ import annotations

import json
from string import ascii_uppercase
from typing import Any

from responses import say as say_with

Row = dict[str, Any]

THINK = "Look. A square appears."  # what follows the first full stop describes the video, as VideoRFT reads it


def say(answer: str) -> str:
    return say_with(answer, THINK)


def gold_response(recipe: str, row: Row) -> str:
    forms = {
        "temporal_rlt": _grounded,
        "stvg_o1": _tube,
        "vision_r1": _detections,
        "unifiedreward_think": _verdict,
        "videoscore2": _scores,
        "veason_r1": _keyframe,
    }
    return forms.get(recipe, _plain)(row)


def _plain(row: Row) -> str:
    return say(_span(row) if row["task"] == "grounding" else str(row["answer"]))


def _span(row: Row) -> str:
    ((start, end),) = row["spans"]
    return f"{start:g} to {end:g}"


def _grounded(row: Row) -> str:
    return say(f"{row['answer']}. <time>{_span(row)}</time>") if row["task"] == "custom" else _plain(row)


def _tube(row: Row) -> str:
    """Both ends of an interval belong to it, so its last frame is one on which the square is just gone."""
    ((start, end),) = row["spans"]
    tube = row["meta"]["tube"]
    box = next(iter(tube["boxes"].values()))
    frames = range(round(start * tube["fps"]), round(end * tube["fps"]) + 1)
    boxes = " ".join(f"{frame}. {json.dumps(box)}" for frame in frames)
    return f"<time> {start} - {end} </time><think_bbox> {boxes} </think_bbox><pred_bbox> {boxes} </pred_bbox>"


def _detections(row: Row) -> str:
    found = zip(row["meta"]["boxes"], row["meta"]["labels"], strict=True)
    return json.dumps([{"bbox_2d": box, "label": label} for box, label in found])


def _verdict(row: Row) -> str:
    return say(row["choices"][ascii_uppercase.index(row["answer"])])


def _scores(row: Row) -> str:
    names = ("visual quality", "text-to-video alignment", "physical/common-sense consistency")
    return say(", ".join(f"{name}: {score}" for name, score in zip(names, row["answer"].split(", "), strict=True)))


def _keyframe(row: Row) -> str:
    number, frame = max(row["meta"]["keyframes"].items(), key=lambda item: item[1]["area"])
    return say(json.dumps({"keyframe_timestamp": int(number), "bbox_2d_list": frame["boxes"]}))
