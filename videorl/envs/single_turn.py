"""The trivial environment: a question with uniform frames, one answer."""

from __future__ import annotations

from videorl.answers.answer import Failure, find_answer
from videorl.envs.env import VideoEnv, right, spread
from videorl.envs.records import Action, Budget, Episode, Message, Score, Text
from videorl.envs.tags import write_blocks

BUDGET = Budget(initial=16, per_turn=16, max_turns=1, max_pixels=256 * 28 * 28)


class SingleTurn(VideoEnv):
    on_bad = "end"

    def __init__(self, budget: Budget = BUDGET):
        super().__init__(budget)

    def parse(self, response: str) -> Action:
        answer = find_answer(response)
        if isinstance(answer, Failure):
            return Action(error=str(answer))
        return Action(name="answer", args={"text": str(answer)})

    @staticmethod
    def render(action: Action) -> str:
        return write_blocks(("think", action.think), ("answer", action.args["text"]))

    def opening(self) -> tuple[Message, ...]:
        video = self.task.videos[0]
        frames = self.grant(self.refs(spread(self.budget.initial, 0, video.num_frames - 1)), as_video=True)
        return (Message(role="user", parts=(frames, Text(text=self.question))),)

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        accuracy = right(episode)
        return Score(turn=(0.0,) * len(episode.turns), rollout=accuracy, parts={"accuracy": accuracy})

    def oracle(self) -> str:
        return self.render(Action(name="answer", args={"text": self.task.answer}, think=self.gold))
