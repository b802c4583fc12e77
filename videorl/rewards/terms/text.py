"""Answers that are free text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import snowballstemmer

from videorl.answers.answer import Tags
from videorl.answers.gold import gold_answer
from videorl.answers.text import parse_text, words
from videorl.rewards.result import RewardResult, score_answer

_NEEDS_WORDS = "must be a text with at least one word"


def text_match(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """1 if the answer is the gold text; case, mark-up, blanks and surrounding punctuation may differ."""
    gold = gold_answer(row, parse_text, _NEEDS_WORDS)
    return score_answer(response, tags, parse_text, lambda text: text == gold)


def word_accuracy(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """1 - word error rate, at least 0: "OCR" of Video-R1, but of texts as `text_match` compares them."""
    gold = gold_answer(row, parse_text, _NEEDS_WORDS).split()
    return score_answer(response, tags, parse_text, lambda text: compute_word_accuracy(gold, text.split()))


def rouge(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """The mean of the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L: "free-form" of Video-R1."""
    gold = gold_answer(row, parse_text, _NEEDS_WORDS)
    return score_answer(response, tags, parse_text, lambda text: compute_rouge(gold, text))


def compute_word_accuracy(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """1 - (substitutions + deletions + insertions) / words of the reference, at least 0.

    Takes |reference| * |hypothesis| steps at most, and none where the hypothesis is so long that the result is 0.
    """
    if len(hypothesis) >= 2 * len(reference):
        return 0.0
    distances = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, distances[0] = distances[0], i
        for j, said in enumerate(hypothesis, 1):
            substituted = diagonal + (said != wanted)
            diagonal = distances[j]
            distances[j] = min(substituted, distances[j] + 1, distances[j - 1] + 1)
    return max(0.0, 1 - distances[-1] / len(reference))


def compute_rouge(reference: str, hypothesis: str) -> float:
    """Mean F-measure of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) over runs of letters and digits, in lower case.

    Words of more than three characters are stemmed by Porter's algorithm. The rouge_score package, which Video-R1 uses,
    knows ASCII words only and stems a few short ones ("used", "keys") in another way; in English text that hardly ever
    changes the result. One word has no bigram, so a one-word reference earns 2/3 at most.
    """
    wanted, said = _stems(reference), _stems(hypothesis)
    scores = (
        _overlap(Counter(wanted), Counter(said)),
        _overlap(Counter(pairwise(wanted)), Counter(pairwise(said))),
        _f_measure(_longest_common_subsequence(wanted, said), len(wanted), len(said)),
    )
    return sum(scores) / 3


def _stems(text: str) -> list[str]:
    stem = snowballstemmer.stemmer("porter").stemWord  # made here: it holds the word it works on
    return [stem(word) if len(word) > 3 else word for word in words(text)]


def _overlap(wanted: Counter[Any], said: Counter[Any]) -> float:
    return _f_measure((wanted & said).total(), wanted.total(), said.total())


def _f_measure(shared: int, wanted: int, said: int) -> float:
    """The harmonic mean of shared / wanted and shared / said; 0 where nothing is shared."""
    return 2 * shared / (wanted + said) if shared else 0.0


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, with a bit for each word of `a` (Hyyrö 2004): the zeros left in the row are the words matched."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for word in b:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()
