"""Reward terms by name: the built-in functions, the scorers, and users' own by import string."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import ValidationError

from videorl.imports import load_object
from videorl.rewards.term import Reward, Term, suggest, validated
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
    "video_reward_model": "videorl.rewards.scorers.video_reward_model:VideoRewardModel",
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
            problems = error.errors(include_input=False)  # a value in the wrong place may be a secret
            raise ValueError("; ".join(f"params.{_dotted(each['loc'])}: {each['msg']}" for each in problems)) from error
    try:
        inspect.signature(scorer).bind(None, **validated(scorer.__init__, params))
    except TypeError as error:
        raise ValueError(f"params: {error}") from error
    return scorer


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))
