"""Video-MTR (arXiv 2508.20478): retrieve a range of frames, up to twice, then answer.

A pool of candidate frames; 16 uniform ones first, 8 of the range that a retrieve names. Turn rewards for a retrieve
that comes closer to the evidence count where the answer is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from videorl.envs.env import Outcome, Refused, Variant, VideoEnv, in_spans, right, set_iou, spread
from videorl.envs.records import Action, Budget, Episode, Message, Score, Text
from videorl.envs.tags import read_step, write_blocks

BUDGET = Budget(initial=16, per_turn=8, max_turns=3, total=32, max_pixels=128 * 14**2)
FORMAT, GAIN = 0.1, 0.5
MARGIN = 0.001  # by which IoU has to be better, in the release
_RANGE = re.compile(r"(\d{1,6})\s*,\s*(\d{1,6})")


class VideoMTR(VideoEnv):
    """`drop` times the loss of IoU is the penalty of a retrieve that is no better than the best so far; the paper does
    not say its size. `variant=release`: as the published code, which compares with the turn before, has no penalty, and
    takes 0.1 from the answer's reward for every turn before it.

    `gated`: turn rewards count where the answer is right alone; in the release a last rewarded turn below 0.5 takes the
    gains of those before it. `bonus`: the exploration bonus of a batch in which few episodes retrieve.
    """

    scope = "batch"

    def __init__(
        self,
        budget: Budget = BUDGET,
        variant: Variant = "paper",
        drop: float = 0.5,
        gated: bool = True,
        bonus: bool = True,
    ):
        super().__init__(budget)
        self.variant, self.drop, self.gated, self.bonus = variant, drop, gated, bonus

    # -- grammar -----------------------------------------------------------------------------------------------------

    def parse(self, response: str) -> Action:
        step = read_step(response, "retrieve", "answer")
        if isinstance(step, str):
            return Action(error=step)
        think, name, content = step
        if name == "answer":
            return Action(name="answer", args={"text": content}, think=think)
        found = _RANGE.fullmatch(content)
        if not found:
            return Action(think=think, error=f"<retrieve> takes two frame indices a,b; not {content[:40]!r}")
        return Action(name="retrieve", args={"first": int(found[1]), "last": int(found[2])}, think=think)

    @staticmethod
    def render(action: Action) -> str:
        if action.name == "answer":
            return write_blocks(("think", action.think), ("answer", action.args["text"]))
        first, last = action.args["first"], action.args["last"]
        return write_blocks(("think", action.think), ("retrieve", f"{first},{last}"))

    # -- episode -----------------------------------------------------------------------------------------------------

    def opening(self) -> tuple[Message, ...]:
        video = self.task.videos[0]
        frames = self.grant(self.refs(spread(self.budget.initial, 0, video.num_frames - 1), "frame_idx:{}, "))
        return (Message(role="user", parts=(frames, Text(text=self.prompt(1)))),)

    def prompt(self, k: int) -> str:
        last = self.task.videos[0].num_frames - 1
        answer = "<think>...</think><answer>X</answer>"
        ways = (
            f"<think>...</think><retrieve>a,b</retrieve> for frames between indices a and b of 0 to {last}, or {answer}"
        )
        return f"{self.question}\nTurn {k} of {self.budget.max_turns}. {answer if k == self.budget.max_turns else ways}"

    def do_retrieve(self, first: int, last: int) -> Outcome:
        highest = self.task.videos[0].num_frames - 1
        if not first <= last <= highest:
            raise Refused(f"{first},{last} is no range of frames between 0 and {highest}")
        refs = self.refs(spread(self.budget.per_turn, first, last), "frame_idx:{}, ")
        frames = self.grant(refs)
        return Outcome(parts=(frames,), info={"frames": [ref.index for ref in refs]})

    # -- rewards -----------------------------------------------------------------------------------------------------

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        turns, accuracy = episode.turns, right(episode)
        gold = in_spans(episode.task.videos[0], episode.task.evidence.spans) if episode.task.evidence.spans else set()
        granted = sum(len(turn.info.get("frames", ())) for turn in turns)
        seen = {ref.index for ref in episode.shown[: episode.frames_used - granted]}
        best = before = set_iou(seen, gold)
        gains, formats = [0.0] * len(turns), [FORMAT * (turn.action.error is None) for turn in turns]
        for place, turn in enumerate(turns):
            if "frames" not in turn.info:
                continue
            iou = set_iou(set(turn.info["frames"]), gold)
            if self.variant == "release":
                gains[place] = GAIN * (iou > before + MARGIN)
            else:
                gains[place] = GAIN if iou > best else -self.drop * (best - iou)
            best, before = max(best, iou), iou
        final = len(turns) - 1
        if self.variant == "release":
            rewards = [gain + form for gain, form in zip(gains, formats, strict=True)]
            outcome = accuracy * (1 - 0.1 * final) if accuracy else 0.0
            rewarded = [(k, reward) for k, reward in enumerate(_received(rewards, outcome)) if reward > 0]
            if self.gated and rewarded and rewarded[-1][1] < GAIN:
                rewards = [reward - GAIN * (k < rewarded[-1][0] and reward > GAIN) for k, reward in enumerate(rewards)]
        else:
            gate = accuracy > 0 or not self.gated
            rewards = [gate * (gain + form) for gain, form in zip(gains[:final], formats[:final], strict=True)]
            rewards += formats[final:]  # what a retrieve gains in the last turn cannot help an answer any more
            outcome = accuracy
        return Score(
            turn=tuple(rewards),
            rollout=outcome,
            parts={"accuracy": accuracy, "evidence_iou": best, "format": sum(formats) / max(1, len(turns)) / FORMAT},
        )

    def shape(self, group: Sequence[tuple[Episode, Score]]) -> list[Score]:
        """A batch in which fewer than half of the episodes retrieve: 0.5 more for every retrieve, 1.0 below a tenth.
        In the release those count of which two turns are rewarded."""
        rate = sum(self._explores(episode, score) for episode, score in group) / len(group)
        bonus = (1.0 if rate < 0.1 else 0.5 if rate < 0.5 else 0.0) if self.bonus else 0.0
        return [
            score.model_copy(
                update={
                    "turn": tuple(
                        reward + bonus * ("frames" in turn.info)
                        for reward, turn in zip(score.turn, episode.turns, strict=True)
                    )
                }
            )
            for episode, score in group
        ]

    def _explores(self, episode: Episode, score: Score) -> bool:
        if self.variant == "release":
            return sum(reward > 0 for reward in _received(score.turn, score.rollout)) >= 2
        return any("frames" in turn.info for turn in episode.turns)

    def random_look(self, rng: Random) -> str:
        """A range as long as a retrieve's frames."""
        last = self.task.videos[0].num_frames - 1
        first = rng.randint(0, max(0, last - self.budget.per_turn + 1))
        args = {"first": first, "last": min(last, first + self.budget.per_turn - 1)}
        return self.render(Action(name="retrieve", args=args, think="look"))

    def oracle(self) -> str:
        """A range that holds the evidence: around the frame nearest to it of those shown, as far as frames suffice."""
        task, video = self.task, self.task.videos[0]
        if self.turns or not task.evidence.spans:
            return self.render(Action(name="answer", args={"text": task.answer}, think=self.gold))
        evidence = in_spans(video, task.evidence.spans[:1])
        first, last = min(evidence), max(evidence)
        near = min((ref.index for ref in self.shown), key=lambda index: abs(index - (first + last) / 2))
        reach = self.budget.per_turn // 2
        if last - first < self.budget.per_turn and near - reach <= first and last <= near + reach:
            first, last = max(0, near - reach), min(video.num_frames - 1, near + reach)
        return self.render(Action(name="retrieve", args={"first": first, "last": last}, think="look"))


def _received(turns: Sequence[float], rollout: float) -> list[float]:
    """Rewards by turn, that of the whole episode with its last one."""
    return [*turns[:-1], *(last + rollout for last in turns[-1:])]
