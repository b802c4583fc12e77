from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.phrases import align_phrases


def differing(chosen, rejected):
    spans = align_phrases(chosen, rejected)
    return [(chosen[slice(*one["chosen"])], rejected[slice(*one["rejected"])]) for one in spans]


def test_words_that_were_replaced():
    assert differing("a red car stops, then turns left", "a blue car stops, then drives off left") == [
        ("red", "blue"),
        ("turns", "drives off"),
    ]


def test_what_only_one_says_stands_with_the_word_before_it():
    assert differing("the dog runs", "the big dog runs") == [("the", "the big")]
    assert differing("the dog runs", "dog runs") == [("the dog", "dog")]


def test_answers_in_tags():
    assert differing("<think>green</think><answer>B</answer>", "<think>red</think><answer>A</answer>") == [
        ("green", "red"),
        ("B", "A"),
    ]


def test_nothing_differs():
    assert align_phrases("the same", "the  same") == []
    assert align_phrases("word", "  ") == []


words = st.lists(st.sampled_from(["a", "b", "c", ",", "  "]), max_size=12).map(" ".join)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(words, words)
def test_phrases_come_in_order_and_cover_every_difference(chosen, rejected):
    phrases = align_phrases(chosen, rejected)
    rest = {"chosen": "", "rejected": ""}
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        end = 0
        for phrase in phrases:
            start, stop = phrase[side]
            assert end <= start < stop <= len(text)
            rest[side] += text[end:start]
            end = stop
        rest[side] += text[end:]
    if chosen.split() and rejected.split():
        assert rest["chosen"].split() == rest["rejected"].split()
