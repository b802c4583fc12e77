"""Lines of recorded episodes.

Most are of Video-MTR: to look at the evidence and answer right earns 0.5 + 2 x 0.1 + 1 = 1.7, and 1.6 in its release.
"""

from __future__ import annotations

import json
import re

from env_policies import make_task, make_video, perfect, play

from videorl.envs.records import Evidence, Task
from videorl.envs.registry import load_env
from videorl.envs.video_mtr import VideoMTR
from videorl.episodes.records import EpisodeLine, NamedEnv

LOOK = "<think>look</think><retrieve>40,43</retrieve>"
RIGHT = "<think>x</think><answer>B</answer>"
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]hi[/red]\u202e\r\x9b2J"
TASKS = {
    "single_turn": make_task(),
    "video_mtr": make_task(),
    "framethinker": make_task().model_copy(update={"question": "What happens at 00:41?"}),
    "video_com": make_task(make_video(121.0), spans=((42.0, 43.0),), boxes={43.0: (0.2, 0.2, 0.6, 0.6)}),
    "earl": make_task(),
    "vr_thinker": Task(
        id="pair",
        videos=(make_video(id="a"), make_video(id="b")),
        question="A cat jumps.",
        answer="1",
        evidence=Evidence(labels={"TA": 1, "VQ": 2, "MQ": 1, "OA": 1}),
    ),
}


class Plain(VideoMTR):
    """An environment of the user's."""


def make_line(policy=None, env: str = "video_mtr", params=None, task: Task | None = None, **fields) -> EpisodeLine:
    made = load_env(env, params or {})
    policy = policy or ([LOOK, RIGHT] if env == "video_mtr" else perfect)
    episode = play(made, task or TASKS.get(env) or make_task(), policy)
    named = NamedEnv(target=env, params=params or {})
    rest = {"step": 1, "id": "row-0", "index": 0, "progress": 0.25, "error": None}
    return EpisodeLine(**{**rest, "env": named, "episode": episode, "score": made.score(episode, 0.25), **fields})


def make_errored(**fields) -> EpisodeLine:
    episode = make_line([RIGHT]).episode.model_copy(update={"status": "errored", "turns": ()})
    return make_line(episode=episode, score=None, error="the engine died", **fields)


def write(path, *lines: EpisodeLine | str) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else line.model_dump_json()}\n" for line in lines))
    return str(path)


def refuse(text: str) -> None:
    raise AssertionError(f"nothing was to be reported: {text}")


def row(out: str, label: str) -> list[str]:
    """The other cells of a row of the printed table."""
    (line,) = [line for line in out.splitlines() if re.match(rf"│ +{label} ", line)]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def change(**fields) -> str:
    return json.dumps(json.loads(make_line().model_dump_json()) | fields)


def change_episode(**fields) -> str:
    return change(episode=json.loads(make_line().episode.model_dump_json()) | fields)
