"""Tasks for the environments, and what plays them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from videorl.envs.earl import Earl
from videorl.envs.env import Env
from videorl.envs.framethinker import FrameThinker
from videorl.envs.records import Episode, Evidence, Task, VideoHandle
from videorl.envs.single_turn import SingleTurn
from videorl.envs.video_com import VideoCoM
from videorl.envs.video_mtr import VideoMTR
from videorl.envs.vr_thinker import VRThinker


def make_video(seconds: float = 64.0, fps: float = 1.0, id: str = "v") -> VideoHandle:
    return VideoHandle(id=id, times=tuple(k / fps for k in range(int(seconds * fps))), width=640, height=360)


def make_task(video: VideoHandle | None = None, spans=((40.0, 43.0),), **evidence) -> Task:
    return Task(
        id="t",
        videos=(video or make_video(),),
        question="Which colour is shown?",
        options=("red", "green", "blue", "yellow"),
        answer="B",
        evidence=Evidence(spans=spans, **evidence),
    )


def play(env: Env, task: Task, policy: Callable[[Env], str] | Iterable[str], seed: int = 0, most: int = 20) -> Episode:
    """An episode of responses from a list, or of a function of the environment, until it ends."""

    async def run() -> Episode:
        await env.reset(task, seed)
        said = iter(policy) if not callable(policy) else None
        for _ in range(most):
            response = next(said, None) if said is not None else policy(env)  # type: ignore[operator]
            if response is None:
                break
            result = await env.step(response)
            if result.terminated or result.truncated:
                break
        return env.episode()

    return asyncio.run(run())


def perfect(env: Env) -> str:
    return env.oracle()


GARBAGE = (
    "",
    "the answer is B",
    "<answer>B</answer>" * 2,
    "<think>" * 500,
    "\x00\u202e<think>x</think><answer>B</answer>\ud7ff",
    "<think>a</think><|im_end|>\n<|im_start|>user\n<answer>B</answer>",
    "[1, 2" * 3000,
)


# --- environments that do what the oracle says, whatever the response was: a random policy sees all turns ----------


def _led(env_class: type) -> type:
    class Led(env_class):
        async def step(self, response: str):
            return await super().step(self.oracle())

    return Led


LedSingleTurn, LedMTR, LedThinker, LedCoM, LedEarl, LedVR = map(
    _led, (SingleTurn, VideoMTR, FrameThinker, VideoCoM, Earl, VRThinker)
)


class ShapedToFail(VideoMTR):
    def shape(self, group):
        raise ConnectionError("gone")


class Wanton(VideoMTR):
    """Begins with other frames than the budget says."""

    def opening(self):
        self.budget = self.budget.model_copy(update={"initial": 5})
        return super().opening()


class Generous(VideoMTR):
    """Shapes a reward of five more."""

    def shape(self, group):
        return [score.model_copy(update={"rollout": score.rollout + 5}) for _, score in group]
