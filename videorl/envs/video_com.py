"""Video-CoM (arXiv 2511.23477): find a segment, find a frame in it, zoom into the frame, answer. Plain text, one
manipulation a turn.

The published files have "Segment-k / Frame-n" painted on every frame; here the labels stand as text before the video.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from videorl.envs.env import (
    Outcome,
    Refused,
    VideoEnv,
    in_spans,
    nearest,
    right,
    spread,
)
from videorl.envs.records import Action, Box, Budget, Episode, FrameRef, Message, Score, Text, VideoHandle
from videorl.rewards.terms.boxes import iou

BUDGET = Budget(initial=32, per_turn=16, max_turns=5, total=None, max_pixels=151_200)
FRAME_PIXELS = 100_352
HIT = 0.35  # IoU of a box
CONTINUE = "Continue: find a segment, find a frame, zoom, or give the final answer."
_NAMES = {"FIND_SEGMENT": "segment", "FIND_FRAME": "frame", "SPATIAL_ZOOM": "zoom"}
_CALL = re.compile(r"(FIND_SEGMENT|FIND_FRAME|SPATIAL_ZOOM)\(([^()\n]{1,300})\) = (\[?[\d., ]{1,100}\]?)")
_FINAL = re.compile(r"FINAL_ANSWER: ([A-Z])(?:\.[^\n]{0,500})?", re.DOTALL)
_NUMBERS = re.compile(r"\d{1,6}(?:\.\d{1,6})?")


class VideoCoM(VideoEnv):
    """A manipulation is read as it is executed: `= 3` and `= [3]` are the same segment, for the episode and the reward.
    Boxes run from 0 to 1. `gated`: the share of hits counts where the answer is right alone, which the paper does not
    ask.
    """

    on_bad = "nudge"

    def __init__(self, budget: Budget = BUDGET, gated: bool = False):
        super().__init__(budget)
        self.gated = gated

    # -- grammar -----------------------------------------------------------------------------------------------------

    def parse(self, response: str) -> Action:
        if len(response) > 1 << 16:
            return Action(error=f"the response has {len(response)} characters")
        calls = _CALL.findall(response)
        final = _FINAL.findall(response)
        if len(calls) + len(final) != 1:
            return Action(error=f"{len(calls)} manipulations and {len(final)} final answers; write one of them")
        if final:
            return Action(name="answer", args={"text": final[0]}, think=_FINAL.split(response)[0].strip())
        name, phrase, numbers = _NAMES[calls[0][0]], calls[0][1].strip(), _NUMBERS.findall(calls[0][2])
        think = _CALL.split(response)[0].strip()
        if name == "zoom":
            box = [float(number) for number in numbers]
            if len(box) != 4 or max(box) > 1 or box[0] >= box[2] or box[1] >= box[3]:
                return Action(
                    think=think, error=f"{calls[0][2]} is no box [left, top, right, bottom] of numbers 0 to 1"
                )
            return Action(name=name, args={"phrase": phrase, "box": box}, think=think)
        if not numbers or not all(number.isdigit() for number in numbers):
            return Action(think=think, error=f"{calls[0][2]} holds no whole numbers")
        whole = [int(number) for number in numbers]
        if name == "frame":
            if len(whole) > 1:
                return Action(think=think, error=f"{calls[0][2]}: find one frame at a time")
            return Action(name=name, args={"phrase": phrase, "number": whole[0]}, think=think)
        return Action(name=name, args={"phrase": phrase, "numbers": whole}, think=think)

    @staticmethod
    def render(action: Action) -> str:
        args = action.args
        think = f"{action.think}\n" if action.think else ""
        if action.name == "answer":
            return f"{think}FINAL_ANSWER: {args['text']}"
        if action.name == "segment":
            return f"{think}FIND_SEGMENT({args['phrase']}) = [{', '.join(map(str, args['numbers']))}]"
        if action.name == "frame":
            return f"{think}FIND_FRAME({args['phrase']}) = {args['number']}"
        return f"{think}SPATIAL_ZOOM({args['phrase']}) = [{', '.join(map(_decimal, args['box']))}]"

    # -- episode -----------------------------------------------------------------------------------------------------

    def opening(self) -> tuple[Message, ...]:
        video = self.task.videos[0]
        self.first = spread(self.budget.initial, 0, video.num_frames - 1)
        self.segments = segment_bounds(video)
        self.found: FrameRef | None = None
        labels = ", ".join(
            f"Frame-{place} in Segment-{self._segment_of(index)}" for place, index in enumerate(self.first, start=1)
        )
        ways = (
            "Think, then write one of: FIND_SEGMENT(what) = [i] | FIND_FRAME(what) = n | "
            "SPATIAL_ZOOM(what) = [left, top, right, bottom] | FINAL_ANSWER: X"
        )
        parts = (
            Text(text=labels),
            self.grant(self.refs(self.first), as_video=True),
            Text(text=f"{self.question}\n{ways}"),
        )
        return (Message(role="user", parts=parts),)

    def _segment_of(self, index: int) -> int:
        """From 1."""
        seconds = self.task.videos[0].times[index]
        return next(k for k, (_, end) in enumerate(self.segments, start=1) if seconds <= end or k == len(self.segments))

    def do_segment(self, phrase: str, numbers: list[int]) -> Outcome:
        wanted = sorted(set(numbers))
        if not all(1 <= number <= len(self.segments) for number in wanted):
            raise Refused(f"segments are 1 to {len(self.segments)}")
        if len(wanted) == len(self.segments) and len(wanted) > 1:
            return Outcome(parts=(Text(text="These are all segments."), Text(text=CONTINUE)), info={"segments": wanted})
        video = self.task.videos[0]
        pool = sorted(in_spans(video, [self.segments[number - 1] for number in wanted]))
        shown = [pool[place] for place in spread(self.budget.per_turn, 0, len(pool) - 1)]
        frames = self.grant(self.refs(shown), as_video=True)
        return Outcome(parts=(frames, Text(text=CONTINUE)), info={"segments": wanted})

    def do_frame(self, phrase: str, number: int) -> Outcome:
        if not 1 <= number <= len(self.first):
            raise Refused(f"frames are 1 to {len(self.first)}")
        (ref,) = self.refs([self.first[number - 1]])
        ref = ref.model_copy(update={"max_pixels": FRAME_PIXELS})
        frames = self.grant([ref])
        self.found = ref
        return Outcome(parts=(frames, Text(text=CONTINUE)), info={"frame": ref.index})

    def do_zoom(self, phrase: str, box: list[float]) -> Outcome:
        if self.found is None:
            raise Refused("there is no frame to zoom into; find one first")
        crop = self.found.model_copy(update={"box": as_box(box)})
        frames = self.grant([crop])
        return Outcome(parts=(frames, Text(text=CONTINUE)), info={"box": box, "of": self.found.index})

    # -- rewards -----------------------------------------------------------------------------------------------------

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        """Accuracy, and the share of hits among the distinct segments, frames and boxes that were executed.

        Of those kinds that are annotated.
        """
        accuracy, evidence, video = right(episode), episode.task.evidence, episode.task.videos[0]
        segments = {number for turn in episode.turns for number in turn.info.get("segments", ())}
        frames = {turn.info["frame"] for turn in episode.turns if "frame" in turn.info}
        boxes = {(turn.info["of"], as_box(turn.info["box"])) for turn in episode.turns if "box" in turn.info}
        hits: list[bool] = []
        if evidence.spans:
            bounds = segment_bounds(video)
            gold = {
                number
                for number, (start, end) in enumerate(bounds, start=1)
                if any(start < later and earlier < end for earlier, later in evidence.spans)
            }
            inside = in_spans(video, evidence.spans)
            hits += [number in gold for number in segments] + [frame in inside for frame in frames]
        annotated = {nearest(video, seconds): box for seconds, box in evidence.boxes.items()}
        hits += [iou(box, annotated[frame]) >= HIT for frame, box in boxes if frame in annotated]
        precision = sum(hits) / len(hits) if hits else 0.0
        counted = precision * (accuracy if self.gated else 1.0)
        return Score(
            turn=(0.0,) * len(episode.turns),
            rollout=accuracy + counted,
            parts={"accuracy": accuracy, "precision": precision},
        )

    def random_look(self, rng: Random) -> str:
        args = {"phrase": "it", "numbers": [rng.randint(1, len(self.segments))]}
        return self.render(Action(name="segment", args=args))

    def oracle(self) -> str:
        task, video = self.task, self.task.videos[0]
        done = {turn.action.name for turn in self.turns}
        if task.evidence.spans and "segment" not in done:
            middle = sum(task.evidence.spans[0]) / 2
            number = self._segment_of(nearest(video, middle))
            return self.render(Action(name="segment", args={"phrase": "it", "numbers": [number]}))
        if task.evidence.boxes and "frame" not in done:
            gold = {nearest(video, seconds) for seconds in task.evidence.boxes}
            places = [place for place, index in enumerate(self.first, start=1) if index in gold]
            if places:
                return self.render(Action(name="frame", args={"phrase": "it", "number": places[0]}))
        if self.found is not None and "zoom" not in done:
            boxes = {nearest(video, seconds): box for seconds, box in task.evidence.boxes.items()}
            return self.render(Action(name="zoom", args={"phrase": "it", "box": [*boxes[self.found.index]]}))
        return self.render(Action(name="answer", args={"text": task.answer}))


def segment_bounds(video: VideoHandle) -> list[tuple[float, float]]:
    """Equal segments: ten, then fewer until each lasts 10 s, then more until none lasts over 30 s."""
    count = 10
    while count > 1 and video.duration / count < 10:
        count -= 1
    while video.duration / count > 30:
        count += 1
    start, each = video.times[0], video.duration / count
    return [(start + each * k, start + each * (k + 1)) for k in range(count)]


def as_box(sides: Sequence[float]) -> Box:
    left, top, right, bottom = sides
    return left, top, right, bottom


def _decimal(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")
