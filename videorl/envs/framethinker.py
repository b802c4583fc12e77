"""FrameThinker (arXiv 2509.24304): choose frames between two, ask for the frame at a time, or answer.

The reward is one number for the episode, and nothing where its cognitive consistency (CCV) fails: where the thinking
does not say what the action does, or an action repeats another.
"""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random

from videorl.envs.env import Outcome, Refused, Variant, VideoEnv, in_spans, nearest, right, spread
from videorl.envs.records import Action, Budget, Episode, Message, Score, Text, Turn
from videorl.envs.tags import read_step, write_blocks

LONG = 300.0  # seconds: longer videos get more frames of fewer pixels
BUDGET = Budget(initial=8, per_turn=8, max_turns=5, total=40, max_pixels=640 * 360)
LONG_BUDGET = Budget(initial=12, per_turn=12, max_turns=5, total=60, max_pixels=448 * 252)
_ACTION = re.compile(
    r"choose frames between (\d{1,7}) and (\d{1,7})"
    r"|get frame number at time (\d{1,4}):([0-5]\d)"
    r"|output answer: (.{1,2000})",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(r"\d+")
_CLOCK = re.compile(r"\b\d{1,2}:\d{2}\b")


class FrameThinker(VideoEnv):
    """Indices are those of the candidate frames. `bonus_choose` and `bonus_time` are added for the use of a tool, in
    the paper where the answer is right. `variant=release`: 0.02 for a choose and 0.5 for a time query where the
    question names a time, right or wrong; CCV asks of the action after a time query only that a choose contains the
    frame.
    """

    on_bad = "end"

    def __init__(
        self,
        budget: Budget = BUDGET,
        long_budget: Budget = LONG_BUDGET,
        variant: Variant = "paper",
        bonus_choose: float = 0.0,
        bonus_time: float = 0.2,
    ):
        super().__init__(budget)
        self._budgets = (budget, long_budget)
        self.variant, self.bonus_choose, self.bonus_time = variant, bonus_choose, bonus_time

    # -- grammar -----------------------------------------------------------------------------------------------------

    def parse(self, response: str) -> Action:
        step = read_step(response, "action")
        if isinstance(step, str):
            return Action(error=step)
        think, _, content = step
        found = _ACTION.fullmatch(content)
        if not found:
            return Action(think=think, error=f"{content[:60]!r} is no action")
        first, last, minutes, seconds, answer = found.groups()
        if first is not None:
            return Action(name="choose", args={"first": int(first), "last": int(last)}, think=think)
        if minutes is not None:
            return Action(name="time", args={"seconds": 60 * int(minutes) + int(seconds)}, think=think)
        return Action(name="answer", args={"text": answer.strip()}, think=think)

    @staticmethod
    def render(action: Action) -> str:
        args = action.args
        if action.name == "choose":
            text = f"choose frames between {args['first']} and {args['last']}"
        elif action.name == "time":
            text = f"get frame number at time {_clock(args['seconds'])}"
        else:
            text = f"output answer: {args['text']}"
        return write_blocks(("think", action.think), ("action", text))

    # -- episode -----------------------------------------------------------------------------------------------------

    def opening(self) -> tuple[Message, ...]:
        video = self.task.videos[0]
        self.budget = self._budgets[video.duration > LONG]
        frames = self.grant(self.refs(spread(self.budget.initial, 0, video.num_frames - 1), "frame {}: "))
        return (Message(role="user", parts=(frames, Text(text=self.prompt(1)))),)

    def prompt(self, k: int) -> str:
        if k > 1:
            return f"Turn {k} of {self.budget.max_turns}."
        video = self.task.videos[0]
        return (
            f"{self.question}\nThe video has {video.num_frames} frames and lasts {_clock(round(video.duration))}. "
            "Write <think>...</think><action>...</action> with one of: choose frames between A and B | get frame "
            "number at time MM:SS | output answer: X"
        )

    def do_choose(self, first: int, last: int) -> Outcome:
        count, last = self.budget.per_turn, min(last, self.task.videos[0].num_frames - 1)
        if not first < last - count:
            raise Refused(f"between {first} and {last} there have to be more than {count} frames")
        refs = self.refs(spread(count, first + 1, last - 1), "frame {}: ")
        return Outcome(parts=(self.grant(refs),), info={"frames": [ref.index for ref in refs]})

    def do_time(self, seconds: int) -> Outcome:
        video = self.task.videos[0]
        if seconds > video.duration:
            raise Refused(f"{_clock(seconds)} is after the video's end at {_clock(round(video.duration))}")
        index = nearest(video, video.times[0] + seconds)
        text = f"Frame number at time {_clock(seconds)} is: {index}"
        return Outcome(parts=(Text(text=text),), info={"frame": index})

    # -- rewards -----------------------------------------------------------------------------------------------------

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        accuracy, consistent = right(episode), float(self._consistent(episode))
        used = {turn.action.name for turn in episode.turns if turn.action.error is None}
        if self.variant == "release":
            asked = bool(_CLOCK.search(episode.task.question))
            total = accuracy + 0.5 * ("time" in used and asked) + 0.02 * ("choose" in used)
        else:
            total = accuracy * (1 + self.bonus_choose * ("choose" in used) + self.bonus_time * ("time" in used))
        return Score(
            turn=(0.0,) * len(episode.turns),
            rollout=total * consistent,
            parts={"accuracy": accuracy, "consistent": consistent},
        )

    def _consistent(self, episode: Episode) -> bool:
        """CCV, of the actions that were executed."""
        turns = episode.turns
        if not turns or turns[-1].action.name != "answer" or any(turn.action.error for turn in turns):
            return False
        chosen = [
            (turn.action.args["first"], turn.action.args["last"]) for turn in turns if turn.action.name == "choose"
        ]
        whole = (0, episode.task.videos[0].num_frames - 1)
        earlier: set[tuple[int, int]] = {whole, (whole[0] + 1, whole[1] - 1)}
        for first, last in chosen:
            if (first, last) in earlier:
                return False
            earlier |= {(first, last), (first + 1, last - 1)}
        times = [turn.action.args["seconds"] for turn in turns if turn.action.name == "time"]
        if len(set(times)) < len(times) or not all(self._thought(turn) for turn in turns):
            return False
        return all(self._followed(turn, after) for turn, after in pairwise(turns) if turn.action.name == "time")

    @staticmethod
    def _thought(turn: Turn) -> bool:
        """The last two whole numbers of the thinking are the interval that is chosen."""
        if turn.action.name != "choose":
            return True
        numbers = [int(number) for number in _NUMBER.findall(turn.action.think[-2000:])]
        return numbers[-2:] == [turn.action.args["first"], turn.action.args["last"]]

    def _followed(self, asked: Turn, after: Turn) -> bool:
        """A time query is followed by a choose around the frame that it gave."""
        if after.action.name != "choose":
            return self.variant == "release" and after.action.name != "answer"
        return after.action.args["first"] <= asked.info["frame"] <= after.action.args["last"]

    def random_look(self, rng: Random) -> str:
        """The shortest range that a choose may have."""
        length = self.budget.per_turn + 1
        first = rng.randint(0, max(0, self.task.videos[0].num_frames - 1 - length))
        args = {"first": first, "last": first + length}
        return self.render(Action(name="choose", args=args, think=f"between {first} and {first + length}"))

    def oracle(self) -> str:
        task, video = self.task, self.task.videos[0]
        done = [turn.action.name for turn in self.turns]
        if not task.evidence.spans or "choose" in done:
            return self.render(Action(name="answer", args={"text": task.answer}, think=self.gold))
        gold = in_spans(video, task.evidence.spans[:1])
        middle = sorted(gold)[len(gold) // 2]
        if "time" not in done:
            return self.render(
                Action(name="time", args={"seconds": int(video.times[middle] - video.times[0])}, think="?")
            )
        reach = self.budget.per_turn // 2 + 1
        last = min(video.num_frames - 1, max(max(gold), middle) + reach)
        first = max(0, min(min(gold) - 1, last - self.budget.per_turn - 2))
        last = min(video.num_frames - 1, max(last, first + self.budget.per_turn + 1))  # where the video begins with it
        return self.render(
            Action(name="choose", args={"first": first, "last": last}, think=f"between {first} and {last}")
        )


def _clock(seconds: int) -> str:
    return f"{seconds // 60:02d}:{seconds % 60:02d}"
