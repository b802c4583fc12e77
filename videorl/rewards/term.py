"""What a reward function may look like, and how it is called.

A user's function may have any of three forms, told apart by its argument names; all are called with keywords:

    ours    (response, row, **params)
    verl's  (data_source, solution_str, ground_truth, extra_info, **params)
    TRL's   (prompts, completions, **columns): lists of one element in, a list of one element out

It returns a number, a `RewardResult`, or (as verl's may) a dict with "score" and further numbers to log.
verl's `ground_truth` is the row's `answer`, or its `spans` where it has no answer, and `extra_info` is the row under
its `meta`, which wins where both have a key. TRL's columns are the same two, and the row wins.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from numbers import Real
from types import SimpleNamespace
from typing import Any, Protocol, get_type_hints

from pydantic import TypeAdapter, ValidationError

from videorl.rewards.result import RewardResult


class Reward(Protocol):
    """A term with its parameters fixed."""

    def __call__(
        self, response: str, row: dict[str, Any] | None = None, *, gold: Any = None, **fields: Any
    ) -> RewardResult:
        """Score a response to a canonical row. Fields given by name go over the row's, and will do without one.

        `gold` is the field that `Term.gold` names.
        """
        ...


@dataclass(frozen=True)
class Term:
    """A reward function and what holds for it: its range, the row fields it reads, where its formula comes from, and
    which field holds the gold answer ("meta.boxes" is a key of `meta`).

    A user's function without a declared range is only held to being finite; to declare one, let the import string
    name a `Term` instead of a function.
    """

    function: Callable[..., Any]
    low: float = -math.inf
    high: float = math.inf
    fields: tuple[str, ...] = ()
    source: str = ""
    gold: str = "answer"

    def bind(self, **params: Any) -> Reward:
        """The term with its parameters fixed, as `reward(response, row)`.

        Raises ValueError now for a function of no known form and for parameters it does not take or still needs;
        `reward` raises it for a value outside the range.
        """
        signature = inspect.signature(self.function).parameters.values()
        open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature)
        named = {parameter.name: parameter for parameter in signature if parameter.kind in _BY_NAME}
        form = _call_form(named)
        for name in params:
            if name in form.names or (name not in named and not open_ended):
                raise ValueError(f"params.{name} is not a parameter; {suggest(name, named.keys() - form.names)}")
        for name, parameter in named.items():
            given = form.takes_columns or name in form.names or name in params
            if not given and parameter.default is inspect.Parameter.empty:
                raise ValueError(f"params.{name} is missing and has no default")

        def reward(
            response: str, row: dict[str, Any] | None = None, *, gold: Any = None, **fields: Any
        ) -> RewardResult:
            if row is None or gold is not None or fields:
                row = self._make_row(row, gold, fields)
            arguments = form.arguments(response, row)
            if not open_ended:
                arguments = {name: value for name, value in arguments.items() if name in named}
            result = _as_result(self.function(**arguments, **params))
            if not self.low <= result.value <= self.high:
                raise ValueError(f"value {result.value} is outside the declared range [{self.low}, {self.high}]")
            return result

        return reward

    def _make_row(self, row: dict[str, Any] | None, gold: Any, fields: dict[str, Any]) -> dict[str, Any]:
        made = {"id": "(no row)", "prompt": "", **(row or {}), **fields}
        made["meta"] = dict(made.get("meta") or {})
        if gold is not None:
            place, _, key = self.gold.rpartition(".")
            (made[place] if place else made)[key] = gold
        return made


# --- call forms ------------------------------------------------------------------------------------------------------

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class _Form:
    names: frozenset[str]  # what `arguments` always makes; a function need not take all of it
    arguments: Callable[[str, dict[str, Any]], dict[str, Any]]
    takes_columns: bool = False  # whether `arguments` also holds whatever the row has


def _our_arguments(response: str, row: dict[str, Any]) -> dict[str, Any]:
    return {"response": response, "row": row}


def _verl_arguments(response: str, row: dict[str, Any]) -> dict[str, Any]:
    answer = row.get("answer")
    return {
        "data_source": row.get("data_source"),
        "solution_str": response,
        "ground_truth": row.get("spans") if answer is None else answer,
        "extra_info": {**row, **(row.get("meta") or {})},
    }


def _trl_arguments(response: str, row: dict[str, Any]) -> dict[str, Any]:
    """A prompt given as messages has its completion as messages too, as in TRL."""
    chat = not isinstance(row["prompt"], str)
    columns = {**(row.get("meta") or {}), **row}
    return {
        **{name: [value] for name, value in columns.items() if name not in ("prompt", "meta")},
        "prompts": [row["prompt"]],
        "completions": [[{"role": "assistant", "content": response}] if chat else response],
    }


_OURS = _Form(frozenset({"response", "row"}), _our_arguments)
_VERL = _Form(frozenset({"data_source", "solution_str", "ground_truth", "extra_info"}), _verl_arguments)
_TRL = _Form(frozenset({"prompts", "completions"}), _trl_arguments, takes_columns=True)


def _call_form(names: Collection[str]) -> _Form:
    """The form whose tell-tale arguments a function takes by name."""
    if "response" in names and "row" in names:
        return _OURS
    if "solution_str" in names and "ground_truth" in names:
        return _VERL
    if "completions" in names:
        return _TRL
    raise ValueError(
        f"a reward function takes (response, row), verl's (data_source, solution_str, ground_truth, extra_info) or "
        f"TRL's (prompts, completions, **columns), by these names; this one takes ({', '.join(names)})"
    )


def _as_result(output: Any) -> RewardResult:
    if isinstance(output, list):
        (output,) = output
    if isinstance(output, RewardResult):
        return output
    if isinstance(output, dict):
        parts = {name: float(value) for name, value in output.items() if isinstance(value, Real)}
        return RewardResult(parts.pop("score"), parts)
    return RewardResult(output)


def validated(function: Callable[..., Any], params: dict[str, Any]) -> dict[str, Any]:
    """A built-in's parameters as its annotations want them, so that a bad value fails before the run."""
    wanted = {name: hint for name, hint in inspect.get_annotations(function).items() if name in params}
    # Only the hints that are needed: the others may name what is imported for type checkers alone
    hints = get_type_hints(SimpleNamespace(__annotations__=wanted), function.__globals__, include_extras=True)
    checked = dict(params)
    for name in params.keys() & hints.keys():
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(params[name])
        except ValidationError as error:
            raise ValueError(f"params.{name}: {params[name]!r}: {error.errors()[0]['msg']}") from error
    return checked


def suggest(name: str, known: Iterable[str]) -> str:
    """The valid names, the nearest to a wrong one first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? (of {', '.join(names)})" if near else f"choose from {', '.join(names) or 'none'}"
