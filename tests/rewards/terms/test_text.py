import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, make_row, reason, say

from videorl.answers.gold import RowError
from videorl.rewards.result import RewardResult
from videorl.rewards.terms.text import compute_rouge, compute_word_accuracy, rouge, text_match, word_accuracy

SIGN = make_row("open", answer="Stop here!")


@pytest.mark.parametrize("answer", ["stop here", "**STOP** here."])
def test_the_same_text(answer):
    assert text_match(say(answer), SIGN) == word_accuracy(say(answer), SIGN) == RewardResult(1.0)


@pytest.mark.parametrize("answer", ["stop", "stop here now", "do not stop here", "stop there"])
def test_another_text(answer):
    assert text_match(say(answer), SIGN) == RewardResult(0.0)


@pytest.mark.parametrize("term", [text_match, word_accuracy, rouge])
def test_no_text(term):
    assert reason(term(say("..."), SIGN)) == "no_words"
    assert reason(term("stop here", SIGN)) == "no_answer"
    assert term("stop here", SIGN, tags="none").value > 0


@pytest.mark.parametrize("term", [text_match, word_accuracy, rouge])
@pytest.mark.parametrize("gold", [None, "", "!?", ["stop"], {"text": "stop"}])
def test_bad_gold_text_is_an_error(term, gold):
    with pytest.raises(RowError, match=r"row 'clip-7': answer=.*at least one word"):
        term(say("stop"), make_row("open", answer=gold))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("the quick brown fox", 1.0),
        ("the quick fox", 3 / 4),  # one deleted of four
        ("the very quick brown fox", 3 / 4),  # one inserted
        ("the slow brown fox", 3 / 4),  # one substituted
        ("quick the brown fox", 2 / 4),  # one inserted and one deleted
        ("a red dog", 0.0),
        ("the quick brown fox and three dogs more", 0.0),  # four inserted: the error rate is 1
        ("the quick brown fox " * 2, 0.0),
        ("the quick brown fox " * 200, 0.0),  # an error rate of 199 earns no less
    ],
)
def test_word_accuracy(answer, value):
    assert word_accuracy(say(answer), make_row("open", answer="the quick brown fox")).value == pytest.approx(value)


sentences = st.lists(st.sampled_from("abcd"), min_size=1, max_size=7)


def slow_edit_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    last = slow_edit_distance(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(last, slow_edit_distance(a[:-1], b) + 1, slow_edit_distance(a, b[:-1]) + 1)


@fixed
@given(sentences, st.lists(st.sampled_from("abcd"), max_size=5))
def test_word_accuracy_against_a_slow_definition(reference, hypothesis):
    distance = slow_edit_distance(reference[:5], hypothesis)
    expected = max(0.0, 1 - distance / len(reference[:5]))
    assert compute_word_accuracy(reference[:5], hypothesis) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        # ROUGE-1 and ROUGE-L: the, cat, on, mat: 2 * 4 / (6 + 4). ROUGE-2: "the cat" alone: 2 * 1 / (5 + 3)
        ("the cat sat on the mat", "the cat on mat", (0.8 + 0.25 + 0.8) / 3),
        # the same words in another order: 1, no bigram of 1, one word of 2
        ("red bike", "bike red", (1 + 0 + 0.5) / 3),
        ("running dogs", "Runs, dog!", 1.0),  # run, dog
        ("seven dogs", "a cat", 0.0),
        ("yes", "yes", 2 / 3),  # no bigrams
        # saying "the" six times: only two of them count. ROUGE-1: 2 * 2 / (6 + 6), ROUGE-2: 0, ROUGE-L: 2 * 2 / (6 + 6)
        ("the cat sat on the mat", "the " * 6, (4 / 12 + 0 + 4 / 12) / 3),
    ],
)
def test_rouge(gold, answer, value):
    assert rouge(say(answer), make_row("open", answer=gold)).value == pytest.approx(value, abs=1e-12)


def slow_common(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + slow_common(a[1:], b[1:])
    return max(slow_common(a[1:], b), slow_common(a, b[1:]))


@fixed
@given(sentences, sentences)
def test_rouge_against_a_slow_definition(a, b):
    def f_measure(shared, wanted, said):
        precision, recall = shared / max(said, 1), shared / max(wanted, 1)
        return 2 * precision * recall / (precision + recall) if shared else 0.0

    def overlap(n):
        left = [tuple(b[i : i + n]) for i in range(len(b) - n + 1)]
        wanted, said, shared = len(a) - n + 1, len(left), 0
        for i in range(wanted):
            if tuple(a[i : i + n]) in left:
                left.remove(tuple(a[i : i + n]))
                shared += 1
        return f_measure(shared, wanted, said)

    expected = (overlap(1) + overlap(2) + f_measure(slow_common(a, b), len(a), len(b))) / 3
    assert compute_rouge(" ".join(a), " ".join(b)) == pytest.approx(expected, abs=1e-12)
