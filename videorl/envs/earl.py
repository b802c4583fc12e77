"""EARL, "Select Less, Reason More" (arXiv 2510.15440): select frames of the current view, and it is sampled anew around
them.

Read from notes on the paper alone. Unknown there, and so settings here: the weights of action and relevance, the share
of training at which they change, and how several selections are pooled (their union is taken).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from videorl.envs.env import Outcome, Refused, VideoEnv, in_spans, right, set_iou, spread
from videorl.envs.records import Action, Budget, Episode, Message, Score, Text
from videorl.envs.tags import read_step, write_blocks

BUDGET = Budget(initial=32, per_turn=16, max_turns=3, total=64, max_pixels=256 * 28 * 28)
MAX_SELECTED = 64


class Earl(VideoEnv):
    """Weights are (action, relevance), `early` before `switch` of the training, `late` from there on."""

    def __init__(
        self,
        budget: Budget = BUDGET,
        selections: int = 2,
        early: tuple[float, float] = (1.0, 0.2),
        late: tuple[float, float] = (0.2, 1.0),
        switch: float = 0.5,
    ):
        super().__init__(budget)
        self.selections, self.early, self.late, self.switch = selections, tuple(early), tuple(late), switch

    # -- grammar -----------------------------------------------------------------------------------------------------

    def parse(self, response: str) -> Action:
        step = read_step(response, "tool_call", "answer")
        if isinstance(step, str):
            return Action(error=step)
        think, name, content = step
        if name == "answer":
            return Action(name="answer", args={"text": content}, think=think)
        frames = read_selection(content)
        if isinstance(frames, str):
            return Action(think=think, error=frames)
        return Action(name="select", args={"frames": frames}, think=think)

    @staticmethod
    def render(action: Action) -> str:
        if action.name == "answer":
            return write_blocks(("think", action.think), ("answer", action.args["text"]))
        return write_blocks(("think", action.think), ("tool_call", write_selection(action.args["frames"])))

    # -- episode -----------------------------------------------------------------------------------------------------

    def opening(self) -> tuple[Message, ...]:
        self.view = spread(self.budget.initial, 0, self.task.videos[0].num_frames - 1)
        return (Message(role="user", parts=(self._show(), Text(text=self.prompt(1)))),)

    def _show(self):
        refs = [
            ref.model_copy(update={"label": f"{place}: "}) for place, ref in enumerate(self.refs(self.view), start=1)
        ]
        return self.grant(refs)

    def prompt(self, k: int) -> str:
        left = self.selections - self._selected()
        select = f"<tool_call>{write_selection((1, 2))}</tool_call> to look around frames, or "
        ways = f"{select if left > 0 and k < self.budget.max_turns else ''}<answer>X</answer>"
        return f"{self.question}\nTurn {k} of {self.budget.max_turns}: <think>...</think>, then {ways}"

    def _selected(self) -> int:
        return sum("selected" in turn.info for turn in self.turns)

    def do_select(self, frames: list[int]) -> Outcome:
        if self._selected() == self.selections:
            raise Refused(f"{self.selections} selections are all there are")
        if not all(1 <= frame <= len(self.view) for frame in frames):
            raise Refused(f"frames are 1 to {len(self.view)} of those shown last")
        places = sorted({frame - 1 for frame in frames})
        around: set[int] = set()
        for place in places:  # from the neighbour before to the neighbour after
            around.update(range(self.view[max(0, place - 1)], self.view[min(len(self.view) - 1, place + 1)] + 1))
        pool, selected = sorted(around), [self.view[place] for place in places]
        view, shown = self.view, [pool[place] for place in spread(self.budget.per_turn, 0, len(pool) - 1)]
        self.view = shown
        try:
            parts = (self._show(),)
        except Refused:
            self.view = view
            raise
        return Outcome(parts=parts, info={"selected": selected, "frames": shown})

    # -- rewards -----------------------------------------------------------------------------------------------------

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        accuracy, gold = right(episode), self._gold(episode)
        selected = {index for turn in episode.turns for index in turn.info.get("selected", ())}
        relevance = set_iou(selected, gold)
        correct = (1.0 if relevance >= 0.5 else 0.5) if accuracy else -1.0
        action, weight = self.early if progress < self.switch else self.late
        return Score(
            turn=(0.0,) * len(episode.turns),
            rollout=correct + action * bool(selected) + weight * relevance,
            parts={"accuracy": accuracy, "relevance": relevance, "selected": float(bool(selected))},
        )

    def _gold(self, episode: Episode) -> set[int]:
        """Key frames: those of the first view that lie in the evidence; where none does, the one nearest to it."""
        gold = in_spans(episode.task.videos[0], episode.task.evidence.spans)
        first = {ref.index for ref in episode.shown[: self.budget.initial]}
        if not gold or gold & first:
            return gold & first
        middle = sum(gold) / len(gold)
        return {min(first, key=lambda index: (abs(index - middle), index))}

    def random_look(self, rng: Random) -> str:
        frames = [rng.randint(1, len(self.view))]
        return self.render(Action(name="select", args={"frames": frames}, think="look"))

    def oracle(self) -> str:
        task = self.task
        if self.turns or not task.evidence.spans:
            return self.render(Action(name="answer", args={"text": task.answer}, think=self.gold))
        gold = self._gold(self.episode())
        places = [place for place, index in enumerate(self.view, start=1) if index in gold]
        return self.render(Action(name="select", args={"frames": places}, think="look"))


def read_selection(content: str) -> list[int] | str:
    """The frames of a `select_frames` call; or why it is none."""
    try:
        call: Any = json.loads(content)
    except (ValueError, RecursionError):
        return "the tool call is not JSON"
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"} or call["name"] != "select_frames":
        return 'a tool call is {"name": "select_frames", "arguments": {"target_frames": [...]}}'
    arguments = call["arguments"]
    frames = arguments.get("target_frames") if isinstance(arguments, dict) else None
    if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_SELECTED or not all(type(f) is int for f in frames):
        return f"target_frames is a list of 1 to {MAX_SELECTED} whole numbers"
    return frames


def write_selection(frames: Sequence[int]) -> str:
    return json.dumps({"name": "select_frames", "arguments": {"target_frames": [*frames]}})
