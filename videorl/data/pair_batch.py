"""From preference rows to what workers train on: two rows of a `Batch` for each pair, the chosen one first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from videorl.data.batch import Batch, Row, make_given_batch, pad, prompt_row
from videorl.data.schema import MAX_REPORTED
from videorl.models.base import VideoModel
from videorl.types import DataError, RenderedPrompt

SIDES = ("chosen", "rejected")


def check_pairs(model: VideoModel, rows: Sequence[dict[str, Any]], max_tokens: int, need_phrases: bool = False) -> None:
    """Raise DataError `bad_rows`, which names up to 20 rows, where `make_pair_batch` could not use all of them, or one
    has no phrases where the loss needs them."""
    bad = []
    for row in rows:
        try:
            for side in SIDES:
                _tokenize(model, row, side, max_tokens, need_phrases)
            if need_phrases and not row["phrases"]:
                raise DataError("phrases", f"row {row['id']}: has no `phrases`, which the loss needs; add them")
        except DataError as error:
            bad.append(str(error))
    if bad:
        more = [f"... and {len(bad) - MAX_REPORTED} more"] if len(bad) > MAX_REPORTED else []
        raise DataError("bad_rows", "\n  ".join([f"{len(bad)} of {len(rows)} rows:", *bad[:MAX_REPORTED], *more]))


def make_pair_batch(
    model: VideoModel, prompts: Sequence[RenderedPrompt], max_tokens: int, with_phrases: bool = True
) -> Batch:
    """Each response is the text of its side and the end-of-turn token; `phrases` where they are asked for and every row
    has some.

    Raises:
        DataError: `no_pair` for a row without one, `too_long` for a response of more than `max_tokens`, `phrases`
            where a phrase has no token of its own.
    """
    rows: list[Row] = []
    responses: list[list[int]] = []
    phrases: list[list[int]] = []
    for prompt in prompts:
        for side in SIDES:
            ids, numbers = _tokenize(model, prompt.prompt.row, side, max_tokens, with_phrases)
            rows.append(prompt_row(prompt, id=f"{prompt.prompt.id}#{side}", chosen=side == "chosen"))
            responses.append(ids)
            phrases.append(numbers)
    batch = make_given_batch(rows, responses)
    return batch.with_(phrases=pad(phrases, torch.long)) if all(map(any, phrases)) else batch


def _tokenize(
    model: VideoModel, row: dict[str, Any], side: str, max_tokens: int, with_phrases: bool
) -> tuple[list[int], list[int]]:
    """Token ids of a response, and for each the number of the phrase it is in (0: none).

    A token on the border of two phrases counts to the first.
    """
    if row[side] is None:
        raise DataError("no_pair", f"row {row['id']}: has no `chosen` and `rejected`; add them or take it out")
    encoded = model.tokenizer(row[side], add_special_tokens=False, return_offsets_mapping=True)
    spans: list[tuple[int, int]] = encoded["offset_mapping"]
    if len(spans) >= max_tokens:
        raise DataError(
            "too_long",
            f"row {row['id']}: `{side}` has {len(spans)} tokens and its end, rollout.max_response_tokens={max_tokens}; "
            "raise that, or take the row out",
        )
    numbers = [0] * len(spans)
    for number, phrase in enumerate((with_phrases and row["phrases"]) or [], 1):
        start, stop = phrase[side]
        inside = [
            place for place, (begin, end) in enumerate(spans) if begin < stop and end > start and not numbers[place]
        ]
        if not inside:
            raise DataError(
                "phrases",
                f"row {row['id']}: phrase {number} of `{side}`, {row[side][start:stop]!r}, shares its tokens with the "
                "one before; make them one phrase",
            )
        for place in inside:
            numbers[place] = number
    return [*encoded["input_ids"], model.stop_ids[0]], [*numbers, 0]
