"""Reward functions by name: the built-in terms, and users' own by import string.

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

from videorl.imports import load_object
from videorl.rewards.result import RewardResult
from videorl.rewards.terms import (
    boxes,
    choices,
    format,
    keyframe,
    numbers,
    permutations,
    scores,
    spatiotemporal,
    text,
    times,
    video_r1,
)
from videorl.rewards.terms.accuracy import accuracy


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


TERMS = {
    "format": Term(
        format.follows_format, 0.0, 1.0, (), "the think/answer pattern of Video-R1 (2503.21776), with no loopholes"
    ),
    "multiple_choice": Term(choices.multiple_choice, 0.0, 1.0, ("choices", "answer"), "'multiple choice' of Video-R1"),
    "number": Term(numbers.number, 0.0, 1.0, ("answer",), "'numerical' of Video-R1"),
    "regression": Term(numbers.regression, 0.0, 1.0, ("answer",), "'regression' of Video-R1: 1 - relative error"),
    "counts": Term(numbers.counts, 0.0, 1.0, ("answer",), "counting of VideoSSR"),
    "permutation": Term(permutations.permutation, 0.0, 1.0, ("answer",), "temporal jigsaw of VideoSSR"),
    "scores": Term(scores.scores, 0.0, 1.0, ("answer",), "score table of VideoScore2 (2509.22799)"),
    "verdict": Term(choices.verdict, 0.0, 1.0, ("choices", "answer"), "pairwise verdict of UnifiedReward-Think"),
    "yes_no": Term(choices.yes_no, 0.0, 1.0, ("answer",), "exact match"),
    "text_match": Term(text.text_match, 0.0, 1.0, ("answer",), "exact match of normalised text"),
    "word_accuracy": Term(text.word_accuracy, 0.0, 1.0, ("answer",), "'OCR' of Video-R1: 1 - word error rate"),
    "rouge": Term(text.rouge, 0.0, 1.0, ("answer",), "'free-form' of Video-R1: mean of ROUGE-1/2/L"),
    "video_r1_accuracy": Term(
        video_r1.video_r1_accuracy, 0.0, 1.0, ("choices", "answer", "meta"), "Video-R1, by meta.problem_type"
    ),
    "temporal_iou": Term(
        times.temporal_iou,
        0.0,
        1.0,
        ("spans", "meta"),
        "tIoU of Temporal-R1 (2506.01908), STVG-o1 (R_t) and others",
        gold="spans",
    ),
    "temporal_recall": Term(
        times.temporal_recall, 0.0, 1.0, ("spans", "meta"), "R1@threshold of Charades-STA", gold="spans"
    ),
    "temporal_r1_format": Term(times.temporal_r1_format, 0.0, 1.0, (), "format of Temporal-R1, with no loopholes"),
    "box_iou": Term(boxes.box_iou, 0.0, 1.0, ("meta",), "IoU of one box", gold="meta.boxes"),
    "box_giou": Term(
        boxes.box_giou, -1.0, 1.0, ("meta",), "generalised IoU (1902.09630) of one box", gold="meta.boxes"
    ),
    "hungarian_iou": Term(
        boxes.hungarian_iou, 0.0, 1.0, ("meta",), "matched IoU of Veason-R1 (2508.11538)", gold="meta.boxes"
    ),
    "box_recall": Term(boxes.box_recall, 0.0, 1.0, ("meta",), "recall of Vision-R1 (2503.18013)", gold="meta.boxes"),
    "box_precision": Term(boxes.box_precision, 0.0, 1.0, ("meta",), "precision of Vision-R1", gold="meta.boxes"),
    "detection_format": Term(boxes.detection_format, 0.0, 1.0, (), "dual format of Vision-R1"),
    "tube_format": Term(spatiotemporal.tube_format, 0.0, 1.0, (), "R_f of STVG-o1 (2511.21375)"),
    "tube_coverage": Term(spatiotemporal.tube_coverage, 0.0, 1.0, ("meta",), "R_c of STVG-o1", gold="meta.tube"),
    "tube_spatial": Term(spatiotemporal.tube_spatial, -10.0, 2.0, ("meta",), "R_s of STVG-o1", gold="meta.tube"),
    "tube_gain": Term(spatiotemporal.tube_gain, 0.0, 6.0, ("meta",), "R_k of STVG-o1", gold="meta.tube"),
    "keyframe_format": Term(keyframe.keyframe_format, 0.0, 2.0, (), "format of Veason-R1"),
    "keyframe_area": Term(
        keyframe.keyframe_area, 0.0, 1.0, ("meta",), "keyframe reward of Veason-R1", gold="meta.keyframes"
    ),
    "keyframe_boxes": Term(
        keyframe.keyframe_boxes, 0.0, 1.0, ("meta",), "spatial reward of Veason-R1", gold="meta.keyframes"
    ),
    "accuracy": Term(accuracy, 0.0, 1.0, ("task", "choices", "answer", "spans"), "by task, one of these three"),
}


def load(target: str, /, **params: Any) -> Reward:
    """A reward function by built-in name or import string.

        load("accuracy")(response, row).value
        load("number", tolerance=0.5)(response="<answer>6</answer>", gold=6).value

    Raises ValueError, naming the nearest built-in, if there is none; and as `Term.bind`.
    """
    if ":" in target:
        loaded = load_object(target)
        term = loaded if isinstance(loaded, Term) else Term(loaded, source=target)
    elif target in TERMS:
        term = TERMS[target]
        params = validated(term.function, params)
    else:
        raise ValueError(
            f"{target!r} is not a built-in reward term; {suggest(target, TERMS)}, "
            "or give an import string such as 'my_pkg.rewards:function'"
        )
    return term.bind(**params)


SCORERS = {
    "judge": "videorl.rewards.scorers.judge:Judge",
    "pairwise_judge": "videorl.rewards.scorers.judge:PairwiseJudge",
    "text_similarity": "videorl.rewards.scorers.similarity:TextSimilarity",
    "video_text_similarity": "videorl.rewards.scorers.similarity:VideoTextSimilarity",
    "reward_model": "videorl.rewards.scorers.reward_model:RewardModel",
}
"""Built-in scorers, imported where one is asked for."""


def find_scorer(target: str, /, **params: Any) -> type[Any] | None:
    """The class that a target names, a `Scorer` or one with `compare`, its parameters checked; None for a function.

    Raises ValueError for a parameter that the class does not take, still needs or refuses.
    """
    if target not in SCORERS and ":" not in target:
        return None
    scorer = load_object(SCORERS.get(target, target))
    if not inspect.isclass(scorer):
        return None
    if model := getattr(scorer, "Params", None):
        try:
            model.model_validate(params)
        except ValidationError as error:
            raise ValueError("; ".join(_describe(each) for each in error.errors())) from error
    try:
        inspect.signature(scorer).bind(None, **validated(scorer.__init__, params))
    except TypeError as error:
        raise ValueError(f"params: {error}") from error
    return scorer


def _describe(error: Any) -> str:
    return f"params.{'.'.join(map(str, error['loc']))}: {error['input']!r}: {error['msg']}"


def suggest(name: str, known: Iterable[str]) -> str:
    """The valid names, the nearest to a wrong one first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? (of {', '.join(names)})" if near else f"choose from {', '.join(names) or 'none'}"


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
