"""A run's `rollouts.jsonl` as the commands on data sets read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from videorl.types import DataError

REWARD = "reward"


def sampled_rollouts(path: str) -> Iterator[dict[str, Any]]:
    """The lines, without greedy rollouts and those of second passes: neither is a sample of the model's answers.

    Raises:
        DataError: `unreadable`, or `bad_rollouts` with the line.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                record = _read_rollout(line, f"{path}, line {number}") if line.strip() else None
                if record is not None and record.get("temperature") != 0 and "pass" not in record:
                    yield record
    except OSError as error:
        raise DataError("unreadable", f"{path} cannot be read: {error}") from error


def values_of(record: dict[str, Any]) -> dict[str, float | None]:
    """The reward terms of a rollout, and `reward`. A null stands for no value."""
    return record["terms"] | {REWARD: record["reward"]}


def missing_term(path: str, name: str, seen: set[str]) -> DataError:
    known = ", ".join(sorted(seen))
    return DataError("no_term", f"{path}: no sampled rollout has the term {name!r}; there are {known}")


def _read_rollout(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = from_json(line, allow_inf_nan=False)
        numbers = [record["reward"], *record["terms"].values()]
        well_formed = isinstance(record["prompt_id"], str)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError("bad_rollouts", f"{place} is no rollout ({error!r}); give a run's rollouts.jsonl") from error
    if not well_formed or not all(value is None or type(value) in (int, float) for value in numbers):
        raise DataError("bad_rollouts", f"{place}: prompt_id must be a text, the reward and its terms numbers or null")
    return record
