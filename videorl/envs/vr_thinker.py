"""VR-Thinker (arXiv 2510.10518): which of two generated videos is better, in three dimensions and overall.

Frame numbers 1..N run over both videos. Every response describes what was shown, reasons, and either recommends an
answer and selects further frames, or answers. Read from the paper alone; the most rounds and the frames of a call are
not in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random

from videorl.envs.earl import read_selection, write_selection
from videorl.envs.env import Outcome, Refused, VideoEnv, spread
from videorl.envs.records import Action, Budget, Episode, FrameRef, Message, Score, Text, VideoHandle
from videorl.envs.tags import read_blocks, write_blocks

BUDGET = Budget(initial=8, per_turn=8, max_turns=5, total=None, max_pixels=500 * 28 * 28)
DIMENSIONS = ("TA", "VQ", "MQ")  # text alignment, visual quality, motion quality
OVERALL = "OA"
_LABEL = re.compile(r"\s*([A-Z]{2})\s*=\s*([0-3])\s*", re.IGNORECASE)


class VRThinker(VideoEnv):
    """`k`: weight of the gain in accuracy from one recommended answer to the next; from 0.5 on it is hacked by starting
    neutral. `eta`, `omega`: of the bonus for using the tool in a group in which fewer than `omega` do.
    """

    on_bad = "end"

    def __init__(
        self,
        budget: Budget = BUDGET,
        k: float = 0.2,
        overall: float = 0.5,
        eta: float = 0.5,
        omega: float = 0.2,
    ):
        super().__init__(budget)
        self.k, self.overall, self.eta, self.omega = k, overall, eta, omega

    # -- grammar -----------------------------------------------------------------------------------------------------

    def parse(self, response: str) -> Action:
        blocks = read_blocks(response, ("Snapshot", "Think", "Recommend Answer", "tool_call", "Answer"))
        if isinstance(blocks, str):
            return Action(error=blocks)
        names = [name for name, _ in blocks]
        if names not in (["Snapshot", "Think", "Recommend Answer", "tool_call"], ["Snapshot", "Think", "Answer"]):
            return Action(
                error="write <Snapshot>, <Think>, then <Answer>, or <Recommend Answer> and <tool_call>, each once"
            )
        content = dict(blocks)
        think = content["Think"]
        final = "Answer" in content
        labels = read_labels(content["Answer" if final else "Recommend Answer"], confidence=not final)
        if isinstance(labels, str):
            return Action(think=think, error=labels)
        args = {"snapshot": content["Snapshot"], "labels": labels}
        if final:
            return Action(name="answer", args=args, think=think)
        frames = read_selection(content["tool_call"])
        if isinstance(frames, str):
            return Action(think=think, error=frames)
        return Action(name="select", args=args | {"frames": frames}, think=think)

    @staticmethod
    def render(action: Action) -> str:
        labels = ", ".join(f"{name}={value}" for name, value in action.args["labels"].items())
        blocks = [("Snapshot", action.args["snapshot"]), ("Think", action.think)]
        if action.name == "answer":
            return write_blocks(*blocks, ("Answer", labels))
        return write_blocks(
            *blocks, ("Recommend Answer", labels), ("tool_call", write_selection(action.args["frames"]))
        )

    # -- episode -----------------------------------------------------------------------------------------------------

    def opening(self) -> tuple[Message, ...]:
        first, second = self.task.videos
        half = self.budget.initial // 2
        numbers = [index + 1 for index in spread(half, 0, first.num_frames - 1)]
        numbers += [first.num_frames + index + 1 for index in spread(half, 0, second.num_frames - 1)]
        return (Message(role="user", parts=(self.grant(self._numbered(numbers)), Text(text=self.prompt(1)))),)

    def _numbered(self, numbers: Sequence[int]) -> list[FrameRef]:
        first, second = self.task.videos
        found: list[FrameRef] = []
        for number in numbers:
            video: VideoHandle = first if number <= first.num_frames else second
            index = number - 1 if video is first else number - 1 - first.num_frames
            found += self.refs([index], f"Frame {number}: ", video)
        return found

    def prompt(self, k: int) -> str:
        if k > 1:
            return f"Turn {k} of {self.budget.max_turns}."
        first, second = self.task.videos
        return (
            f"{self.task.question}\nFrames 1 to {first.num_frames} are video 1, {first.num_frames + 1} to "
            f"{first.num_frames + second.num_frames} video 2. Which is better (0 = equal) in text alignment TA, visual "
            "quality VQ, motion quality MQ and overall OA? Write <Snapshot>...</Snapshot><Think>...</Think>, then "
            "<Recommend Answer>TA=., VQ=., MQ=., OA=., CF=.</Recommend Answer> (CF: confidence 1 to 3) and "
            f"<tool_call>{write_selection((1,))}</tool_call> to see frames, or <Answer>TA=., VQ=., MQ=., OA=.</Answer>"
        )

    def do_select(self, snapshot: str, labels: dict[str, int], frames: list[int]) -> Outcome:
        highest = sum(video.num_frames for video in self.task.videos)
        if not all(1 <= frame <= highest for frame in frames):
            raise Refused(f"frames are 1 to {highest}")
        if len(set(frames)) > self.budget.per_turn:
            raise Refused(f"{len(set(frames))} frames; at most {self.budget.per_turn} in a call")
        return Outcome(parts=(self.grant(self._numbered(sorted(set(frames)))),), info={"frames": sorted(set(frames))})

    def do_answer(self, snapshot: str, labels: dict[str, int]) -> Outcome:  # type: ignore[override]
        return Outcome(done=True)

    # -- rewards -----------------------------------------------------------------------------------------------------

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        gold = episode.task.evidence.labels
        executed = [turn.action for turn in episode.turns]
        formed = float(all(action.error is None for action in executed) and episode.status == "done")
        accuracies = [
            self._accuracy(action.args["labels"], gold) if "labels" in action.args else 0.0 for action in executed
        ]
        gains = [0.0] + [self.k * (after - before) for before, after in pairwise(accuracies)]
        accuracy = accuracies[-1] if formed else 0.0
        if not formed:  # what an unfinished episode recommended is worth nothing
            gains = [0.0] * len(executed)
        return Score(
            turn=tuple(gains),
            rollout=formed + accuracy,
            parts={"accuracy": accuracy, "format": formed, "selected": float(_selected(episode))},
        )

    def _accuracy(self, said: dict[str, int], gold: dict[str, int]) -> float:
        rest = sum(said[name] == gold[name] for name in DIMENSIONS) / len(DIMENSIONS)
        return self.overall * (said[OVERALL] == gold[OVERALL]) + (1 - self.overall) * rest

    def shape(self, group: Sequence[tuple[Episode, Score]]) -> list[Score]:
        """`eta * max(omega - share of the group that used the tool, 0)` for those that did."""
        share = sum(_selected(episode) for episode, _ in group) / len(group)
        bonus = self.eta * max(self.omega - share, 0.0)
        return [
            score.model_copy(update={"rollout": score.rollout + bonus * _selected(episode)}) for episode, score in group
        ]

    def random_look(self, rng: Random) -> str:
        labels = {name: rng.randint(0, 2) for name in (*DIMENSIONS, OVERALL)}
        frames = [rng.randint(1, sum(video.num_frames for video in self.task.videos))]
        args = {"snapshot": "s", "labels": labels | {"CF": 1}, "frames": frames}
        return self.render(Action(name="select", args=args, think="look"))

    def random_answer(self, rng: Random) -> str:
        labels = {name: rng.randint(0, 2) for name in (*DIMENSIONS, OVERALL)}
        return self.render(Action(name="answer", args={"snapshot": "s", "labels": labels}, think="?"))

    def answer_head(self) -> str:
        return write_blocks(("Snapshot", "s"), ("Think", "?")) + "<Answer>"

    def oracle(self) -> str:
        labels = dict(self.task.evidence.labels)
        if not self.turns:
            neutral = dict.fromkeys((*DIMENSIONS, OVERALL), 0) | {"CF": 1}
            half = self.task.videos[0].num_frames
            args = {"snapshot": "s", "labels": neutral, "frames": [1, half + 1]}
            return self.render(Action(name="select", args=args, think="look"))
        return self.render(Action(name="answer", args={"snapshot": "s", "labels": labels}, think="seen"))


def _selected(episode: Episode) -> bool:
    return any("frames" in turn.info for turn in episode.turns)


def read_labels(content: str, confidence: bool) -> dict[str, int] | str:
    """`TA=1, VQ=0, MQ=2, OA=1`, with `CF=3` where a confidence belongs; or why not."""
    names = (*DIMENSIONS, OVERALL, *(["CF"] if confidence else []))
    labels: dict[str, int] = {}
    for piece in content[:200].split(","):
        found = _LABEL.fullmatch(piece)
        if not found or found[1].upper() not in names or found[1].upper() in labels:
            return f"labels are {', '.join(f'{name}=...' for name in names)}; not {piece[:40]!r}"
        labels[found[1].upper()] = int(found[2])
    if set(labels) != set(names):
        return f"labels are {', '.join(names)}; {', '.join(sorted(set(names) - set(labels)))} is missing"
    if any(labels[name] > 2 for name in (*DIMENSIONS, OVERALL)) or labels.get("CF", 1) < 1:
        return "labels are 0, 1 or 2, the confidence 1 to 3"
    return {name: labels[name] for name in names}
