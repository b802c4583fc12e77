import pytest
from responses import COLOURS, make_row, say

from videorl.answers.gold import RowError
from videorl.rewards.result import RewardResult
from videorl.rewards.terms.choices import multiple_choice, verdict, yes_no

MC = make_row("mc", choices=COLOURS, answer="B")


@pytest.mark.parametrize(
    ("response", "value", "why"),
    [
        (say("B"), 1.0, None),
        (say("(B) green"), 1.0, None),
        (say("green"), 1.0, None),
        (say("A"), 0.0, None),
        ("<answer>B</answer>", 1.0, None),  # reads the answer without the strict format
        (say("A", think="so <answer>B</answer>"), 0.0, None),
        (say("B", think="so <answer>A</answer>"), 1.0, None),
        ("<think>so <answer>B</answer> or", 0.0, "unclosed_think"),
        (say("A") + "<answer>B</answer>", 1.0, None),  # the last answer stands; the format term refuses two
        (say("A, B, C, D"), 0.0, "several_letters"),
        (say("not A, not C"), 0.0, "several_letters"),
        (say("not B"), 0.0, "negated"),
        (say("Because"), 0.0, "no_letter"),
        (say("A red or blue one"), 0.0, "no_letter"),
        (say("E"), 0.0, "outside_options"),
        ("B", 0.0, "no_answer"),
    ],
)
def test_multiple_choice(response, value, why):
    result = multiple_choice(response, MC)
    assert result.value == value
    assert (result.failure.reason if result.failure else None) == why


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"choices": COLOURS, "answer": "E"}, "answer='E'"),
        ({"choices": COLOURS, "answer": "purple"}, "answer='purple'"),
        ({"choices": COLOURS, "answer": 1}, "answer=1"),
        ({"choices": COLOURS}, "answer=None"),
        ({"choices": ["red", "red"], "answer": "red"}, "several_letters"),
        ({"answer": "A"}, "choices=None"),
        ({"choices": [], "answer": "A"}, "choices="),
        ({"choices": "red", "answer": "A"}, "choices='red'"),
        ({"choices": [1, 2], "answer": "A"}, "choices="),
    ],
)
def test_bad_gold_letter_is_an_error_and_not_a_zero(fields, says):
    for response in (say("A"), "unreadable"):
        with pytest.raises(RowError, match=r"row 'clip-7': ") as error:
            multiple_choice(response, make_row("mc", **fields))
        assert says in str(error.value) and error.value.reason == "bad_gold"


@pytest.mark.parametrize("mode", ["strict", "v1", "video_r1", "longvila"])
def test_every_mode_reads_a_plain_letter(mode):
    assert multiple_choice(say("B"), MC, mode=mode) == RewardResult(1.0)
    assert multiple_choice(say("A"), MC, mode=mode) == RewardResult(0.0)


@pytest.mark.parametrize(
    ("response", "strict", "v1", "video_r1", "longvila"),
    [
        (say("(B)"), 1.0, 1.0, 0.0, 0.0),
        (say("green"), 1.0, 0.0, 0.0, 0.0),
        (say("Because"), 0.0, 1.0, 0.0, 0.0),
        (say("B or A"), 0.0, 1.0, 0.0, 0.0),
        (say("A", think="<answer>B</answer>"), 0.0, 1.0, 1.0, 1.0),
        ("B", 0.0, 0.0, 0.0, 1.0),
        ("<think>is it <answer>B</answer> or", 0.0, 1.0, 1.0, 1.0),
    ],
)
def test_what_the_modes_make_of_the_same_response(response, strict, v1, video_r1, longvila):
    values = {"strict": strict, "v1": v1, "video_r1": video_r1, "longvila": longvila}
    assert {mode: multiple_choice(response, MC, mode=mode).value for mode in values} == values


def test_a_bad_row_is_an_error_in_every_mode():
    for mode in ("strict", "v1", "video_r1", "longvila"):
        with pytest.raises(RowError, match="row 'clip-7': answer='E'"):
            multiple_choice(say("A"), {**MC, "answer": "E"}, mode=mode)


PAIR = make_row("mc", choices=["Video 1 is better", "Video 2 is better"], answer="B")


@pytest.mark.parametrize(
    ("answer", "value", "why"),
    [
        ("Video 2 is better", 1.0, None),
        ("video 2 is better.", 1.0, None),
        ("Video 1 is better", 0.0, None),
        ("B", 0.0, "no_verdict"),
        ("2", 0.0, "no_verdict"),
        ("Video 2 is not better", 0.0, "no_verdict"),
        ("Video 1 is better, no, Video 2 is better", 0.0, "several_verdicts"),
    ],
)
def test_verdict(answer, value, why):
    result = verdict(say(answer), PAIR)
    assert (result.value, result.failure and result.failure.reason) == (value, why)
    assert verdict(say(answer), {**PAIR, "answer": "Video 2 is better"}) == result


@pytest.mark.parametrize("fields", [{"choices": None}, {"answer": "C"}, {"answer": "better"}])
def test_bad_gold_verdict_is_an_error(fields):
    with pytest.raises(RowError, match="row 'clip-7': "):
        verdict(say("Video 1 is better"), {**PAIR, **fields})


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        ("yes", "Yes, he does", 1.0),
        ("Yes.", "no", 0.0),
        ("no", "No.", 1.0),
        ("no", "Nothing", 0.0),
        ("no", "yes/no", 0.0),
    ],
)
def test_yes_no(gold, answer, value):
    assert yes_no(say(answer), make_row("open", answer=gold)).value == value


@pytest.mark.parametrize("gold", [None, "maybe", True, 1])
def test_bad_gold_yes_no_is_an_error(gold):
    with pytest.raises(RowError, match=r"row 'clip-7': answer=.*must be yes or no"):
        yes_no(say("yes"), make_row("open", answer=gold))
