"""Layouts whose records are questions: EasyR1, the family of Video-R1, V1-33K, and temporal grounding."""

from __future__ import annotations

import re
from typing import Any

from videorl.answers.answer import Failure
from videorl.answers.times import parse_interval
from videorl.data.adapters.golds import Kind, as_question
from videorl.data.adapters.record import Record, number_of, refuse_other_tags, text_of
from videorl.data.records import LINE, RecordError

KINDS: dict[str, Kind] = {  # `problem_type` of Video-R1 (2503.21776) -> task
    "multiple choice": "mc",
    "numerical": "numeric",
    "regression": "numeric",
    "ocr": "open",
    "free form": "open",
}
NEXT_EVENT = "What will happen next?"


def from_easyr1(record: Record) -> dict[str, Any]:
    """`problem`, `answer`, `videos`: EasyR1 and Long-RL. Options stand in the question."""
    question = as_question(refuse_other_tags(record.text("problem")), record.need("answer"))
    return question | {"videos": record.videos("videos", "video")}


def from_video_r1(record: Record) -> dict[str, Any]:
    """`problem`, `problem_type`, `options`, `solution`, `path`; `process` is the reasoning of the text to fit.

    `problem_type` also stays in `meta`: numerical and regression are both `numeric` and scored in different ways.
    """
    problem_type = record.text("problem_type")
    kind = KINDS.get(re.sub(r"[\s_-]+", " ", problem_type.strip().lower()))
    if kind is None:
        raise RecordError("unknown_type", f"problem_type={problem_type!r:.80} must be one of {', '.join(KINDS)}")
    record.keep("problem_type", problem_type)
    if (data_type := record.take("data_type")) not in (None, "video"):
        raise RecordError("not_video", f"data_type={data_type!r:.80}; only videos are supported: take the record out")
    solution = record.need("solution")
    problem = refuse_other_tags(record.text("problem"))
    row = as_question(problem, solution, options=record.take("options"), kind=kind)
    row["videos"] = record.videos("path")
    if process := record.take("process"):
        row["response"] = f"{text_of(process, 'process').strip()}\n{text_of(solution, 'solution').strip()}"
    return row


def from_v1(record: Record) -> dict[str, Any]:
    """A record of V1-33K (2505.22457): the question on what comes next; without one, the caption of what does.

    The whole video is named and `end` is where its first part ends, so that the future cannot leak.
    """
    path, end = record.text("video_path"), _first_part_end(record.take("video_split"), record)
    qa = record.take("qa")
    if isinstance(qa, dict):
        question = refuse_other_tags(text_of(qa.get("Question"), "qa.Question"))
        row = as_question(question, qa.get("Answer"), options=qa.get("Options"), kind="mc") | {"task": "next_event"}
    else:
        caption = record.text("caption_part2")
        row = {"task": "open", "prompt": NEXT_EVENT, "answer": caption, "response": caption}
    record.refuse_other_media()
    return row | {"videos": [{"path": path, "end": end}]}


def from_temporal_r1(record: Record) -> dict[str, Any]:
    """`problem`, `video`, `solution` as shares of `video_length`, which makes them seconds (2506.01908)."""
    solution = record.need("solution")
    if not isinstance(solution, list) or len(solution) != 2:
        raise RecordError("bad_gold", f"solution={solution!r:.80} must be [start, end]")
    shares = [number_of(share, "solution") for share in solution]
    if not 0 <= shares[0] < shares[1] <= 1:
        raise RecordError("bad_gold", f"solution={solution!r} must be shares of the length, 0 <= start < end <= 1")
    length = record.need("video_length")
    seconds = number_of(length, "video_length")
    record.keep("video_length", length)
    return {
        "task": "grounding",
        "prompt": refuse_other_tags(record.text("problem")),
        "videos": record.videos("video", "videos"),
        "spans": [[round(share * seconds, 6) for share in shares]],
    }


def from_charades(record: Record) -> dict[str, Any]:
    """A line `VIDEO START END##QUERY` of Charades-STA, in seconds; the video is the file VIDEO.mp4."""
    head, _, query = record.text(LINE).partition("##")
    parts = head.split()
    if len(parts) != 3:
        raise RecordError("wrong_type", f"{head!r:.80} before ## must be 'VIDEO START END'")
    query = text_of(query, "the query after ##").strip()
    return {
        "task": "grounding",
        "prompt": f'When does this happen in the video: "{query}"?',
        "videos": [{"path": f"{parts[0]}.mp4"}],
        "spans": [[number_of(parts[1], "start"), number_of(parts[2], "end")]],
        "meta": {"query": query},
    }


def _first_part_end(split: Any, record: Record) -> float:
    """Where the first part of a video ends, in seconds: the end of the scene that the record says is shown last.

    `scenes_timestep` begins with that scene, as {"Scene 2": "0:04 - 0:09"} or {"Scene 2": {"start": ..., "end": ...}}.
    """
    if not isinstance(split, dict):
        raise RecordError("missing", "video_split is absent; it says where the first part of the video ends")
    split = dict(split)
    scenes = split.pop("scenes_timestep", None)
    captions = split.pop("split_caption", None)
    for source in (captions, split):
        for name, value in (source if isinstance(source, dict) else {}).items():
            record.keep(name, value)
    scene = scenes[0] if isinstance(scenes, list) and scenes else None
    span = next(iter(scene.values()), None) if isinstance(scene, dict) else None
    if isinstance(span, dict):
        span = f"{span.get('start')} - {span.get('end')}"
    interval = parse_interval(span) if isinstance(span, str) else None
    if interval is None or isinstance(interval, Failure):
        raise RecordError(
            "missing", f"scenes_timestep={scenes!r:.120} does not say when the last scene shown starts and ends"
        )
    record.keep("scenes_timestep", scenes)
    return interval[1]
