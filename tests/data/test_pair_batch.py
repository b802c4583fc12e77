"""Pairs to tensors by hand."""

import re
from types import SimpleNamespace

import pytest
from makers import make_rendered

from videorl.data.pair_batch import check_pairs, make_pair_batch
from videorl.types import DataError


class FakeWordTokenizer:
    """A token is a word and the space before it; its id is the number of its characters."""

    def __call__(self, text, add_special_tokens, return_offsets_mapping):
        assert return_offsets_mapping and not add_special_tokens
        spans = [found.span() for found in re.finditer(r"\s?\S+", text)]
        return {"input_ids": [end - start for start, end in spans], "offset_mapping": spans}


MODEL = SimpleNamespace(tokenizer=FakeWordTokenizer(), stop_ids=(99,))


def prompt(id, **fields):
    rendered = make_rendered(id)
    rendered.prompt.row.update({"chosen": None, "rejected": None, "phrases": None} | fields)
    return rendered


def test_two_rows_of_a_pair():
    phrases = [{"chosen": [2, 5], "rejected": [2, 11]}]
    pair = prompt("p", chosen="a red car", rejected="a bluish-red car goes", phrases=phrases)
    batch = make_pair_batch(MODEL, [pair], max_tokens=5)
    assert [(row.id, row.group, row.chosen) for row in batch.rows] == [
        ("p#chosen", "p", True),
        ("p#rejected", "p", False),
    ]
    assert batch.response_ids.tolist() == [[1, 4, 4, 99, 0], [1, 11, 4, 5, 99]]
    assert batch.response_mask.tolist() == [[True] * 4 + [False], [True] * 5]
    assert batch.need("phrases").tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]


def test_phrases_that_no_loss_asks_for_are_not_read():
    phrases = [{"chosen": [0, 2], "rejected": [0, 1]}, {"chosen": [2, 4], "rejected": [2, 3]}]  # two in one token
    pair = prompt("p", chosen="abcd", rejected="x y", phrases=phrases)
    assert make_pair_batch(MODEL, [pair], 9, with_phrases=False).phrases is None
    check_pairs(MODEL, [pair.prompt.row], 9)
    with pytest.raises(DataError, match="shares its tokens"):
        check_pairs(MODEL, [pair.prompt.row], 9, need_phrases=True)


def test_a_pair_without_phrases_has_none():
    batch = make_pair_batch(MODEL, [prompt("p", chosen="a", rejected="b c")], max_tokens=5)
    assert batch.phrases is None


@pytest.mark.parametrize(
    "fields, reason, text",
    [
        ({}, "no_pair", "row p: has no `chosen`"),
        ({"chosen": "a b c d e", "rejected": "a"}, "too_long", "`chosen` has 5 tokens and its end, rollout."),
        (
            {"chosen": "abcd", "rejected": "x y", "phrases": [
                {"chosen": [0, 2], "rejected": [0, 1]}, {"chosen": [2, 4], "rejected": [2, 3]}]},
            "phrases", "phrase 2 of `chosen`, 'cd', shares its tokens",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused(fields, reason, text):
    with pytest.raises(DataError, match=re.escape(text)) as error:
        make_pair_batch(MODEL, [prompt("p", **fields)], max_tokens=5)
    assert error.value.reason == reason


def test_all_bad_rows_are_said_before_anything_starts():
    rows = [{"id": id, "chosen": chosen, "rejected": "x", "phrases": None} for id, chosen in (("p", "a"), ("q", None))]
    check_pairs(MODEL, rows[:1], max_tokens=2)
    with pytest.raises(DataError, match=r"2 of 2 rows:\n  row q: has no .*\n  row p: `chosen` has 1 tokens"):
        check_pairs(MODEL, rows[::-1], max_tokens=1)
    with pytest.raises(DataError, match="1 of 1 rows:\n  row p: has no `phrases`, which the loss needs"):
        check_pairs(MODEL, rows[:1], max_tokens=2, need_phrases=True)
