"""Environments by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from videorl.envs.env import Env
from videorl.envs.records import Budget
from videorl.imports import load_object

BUILT_IN = {
    "single_turn": "videorl.envs.single_turn:SingleTurn",
    "video_mtr": "videorl.envs.video_mtr:VideoMTR",
    "framethinker": "videorl.envs.framethinker:FrameThinker",
    "video_com": "videorl.envs.video_com:VideoCoM",
    "earl": "videorl.envs.earl:Earl",
    "vr_thinker": "videorl.envs.vr_thinker:VRThinker",
    "remote": "videorl.envs.remote:RemoteEnv",
}


def load_env(target: str, params: Mapping[str, Any]) -> Env:
    """A new environment: a built-in name or 'my_pkg:MyEnv', made with `params`. A budget among them is given as a
    mapping of what differs from its default.

    Raises ValueError where the name or a parameter does not fit.
    """
    if target not in BUILT_IN and ":" not in target:
        raise ValueError(f"target: {target!r}, choose one of {', '.join(BUILT_IN)}, or give 'my_pkg:MyEnv'")
    made = load_object(BUILT_IN.get(target, target))
    defaults = {name: parameter.default for name, parameter in inspect.signature(made).parameters.items()}
    try:
        whole = {name: _budget(defaults.get(name), value) for name, value in params.items()}
        return made(**whole)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError(f"params: {dict(params)}, {wrong}") from error
    except TypeError as error:
        raise ValueError(f"params: {dict(params)}, {error}") from error


def _budget(default: Any, value: Any) -> Any:
    if isinstance(default, Budget) and isinstance(value, Mapping):
        return Budget.model_validate(default.model_dump() | dict(value))
    return value
