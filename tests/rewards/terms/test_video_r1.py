import pytest
from responses import COLOURS, make_row, reason, say

from videorl.answers.gold import RowError
from videorl.rewards.terms.video_r1 import video_r1_accuracy


def typed(problem_type, answer, **fields):
    return make_row("custom", answer=answer, **fields, meta={"problem_type": problem_type})


CHOICE = typed("multiple choice", "B", choices=COLOURS)


@pytest.mark.parametrize(
    ("row", "answer", "value"),
    [
        (CHOICE, "B", 1.0),
        (typed("numerical", "2.71"), "2.714", 1.0),
        (typed("OCR", "the quick brown fox"), "the quick fox", 3 / 4),
        (typed("free-form", "running dogs"), "runs dogs", 1.0),
        (typed("regression", 10), "8", 0.8),
    ],
)
@pytest.mark.parametrize("mode", ["strict", "legacy"])
def test_the_type_of_the_problem_says_how_answers_are_compared(row, answer, value, mode):
    assert video_r1_accuracy(say(answer), row, mode=mode).value == pytest.approx(value, abs=1e-9)
    assert reason(video_r1_accuracy(answer, row, mode=mode)) == "no_answer"


@pytest.mark.parametrize(
    ("row", "answer", "strict", "legacy"),
    [
        (CHOICE, "(B)", 1.0, 0.0),
        (CHOICE, "green", 1.0, 0.0),
        (typed("numerical", "5"), "5 people", 1.0, 0.0),
        (typed("numerical", "1234"), "1,234", 1.0, 0.0),  # the comma makes it a decimal
        (typed("numerical", "10"), "1_0", 0.0, 1.0),
        (typed("numerical", "0"), "0", 1.0, 1.0),
        (typed("numerical", "5"), "nan", 0.0, 0.0),
        (typed("numerical", "5.5"), "5.5, or 6", 0.0, 0.0),
        (typed("regression", "5"), "nan", 0.0, 1.0),  # the paper's code pays for NaN
        (typed("regression", "0"), "0", 1.0, 0.0),  # and not for an exact 0
        (typed("regression", "5"), "inf", 0.0, 0.0),
        (typed("regression", "5"), "1e400", 0.0, 0.0),
        (typed("regression", "5"), "5 or 6", 0.0, 0.0),
        (typed("OCR", "STOP"), "stop", 1.0, 0.0),
    ],
)
def test_where_strict_and_legacy_differ(row, answer, strict, legacy):
    assert video_r1_accuracy(say(answer), row).value == pytest.approx(strict)
    assert video_r1_accuracy(say(answer), row, mode="legacy").value == pytest.approx(legacy)


def test_legacy_reads_the_first_answer():
    quoted = say("A", think="is it <answer>B</answer>?")
    assert video_r1_accuracy(quoted, CHOICE).value == 0.0
    assert video_r1_accuracy(quoted, CHOICE, mode="legacy").value == 1.0


def test_tags_reach_the_strict_terms():
    assert video_r1_accuracy("B", CHOICE, tags="none").value == 1.0


@pytest.mark.parametrize("meta", [None, {}, {"problem_type": "essay"}, {"problem_type": None}])
def test_an_unknown_type_is_an_error(meta):
    with pytest.raises(RowError, match=r"row 'clip-7': meta.problem_type=.*must be one of multiple choice, numerical"):
        video_r1_accuracy(say("B"), {**CHOICE, "meta": meta})


@pytest.mark.parametrize("mode", ["strict", "legacy"])
@pytest.mark.parametrize(
    "row",
    [
        typed("multiple choice", "E", choices=COLOURS),
        typed("numerical", "five"),
        typed("OCR", ""),
        typed("regression", None),
    ],
)
def test_bad_gold_is_an_error(row, mode):
    with pytest.raises(RowError, match="row 'clip-7': answer="):
        video_r1_accuracy(say("B"), row, mode=mode)
