"""The five tastes of configs/style/grpo.yaml: the markers of `rlhf.phi.columns.style`, bounded so that they cannot be gamed.

A rate of a short text has no bound worth the name: "Thank you." has 50 words of care in 100, dozens of standard deviations
above what a model writes. A policy finds that within minutes and says nothing else. Hence three bounds:

    rate'(y) = clip(rate(y) · min(1, words(y)/30), −6, 6)    a short text is counted as one of 30 words
    length'(y) = max(words(y), 12)                           nothing is gained by saying nothing
"""

from collections.abc import Callable
from typing import Any

from rlhf.phi.columns import style

FEWEST_WORDS = 12.0  # an answer of one sentence
RATE_WORDS = 30.0  # words of most answers of 48 tokens
MOST = 6.0  # markers in 100 words: every sentence has one

structure_share = style.structure_share


def length_words(completions: list[Any], **columns: Any) -> list[float]:
    """Number of words, at least 12."""
    return [max(words, FEWEST_WORDS) for words in style.length_words(completions)]


def formality(completions: list[Any], **columns: Any) -> list[float]:
    """Formal connectives less contractions, colloquial words and exclamations, per 100 words, within ±6."""
    return _bounded(style.formality, completions)


def warmth(completions: list[Any], **columns: Any) -> list[float]:
    """Words of politeness and care, per 100 words, at most 6."""
    return _bounded(style.warmth, completions)


def certainty(completions: list[Any], **columns: Any) -> list[float]:
    """Boosters less hedges, per 100 words, within ±6."""
    return _bounded(style.certainty, completions)


def _bounded(rate: Callable[[list[Any]], list[float]], completions: list[Any]) -> list[float]:
    return [
        min(MOST, max(-MOST, value * min(1.0, words / RATE_WORDS)))
        for value, words in zip(rate(completions), style.length_words(completions), strict=True)
    ]
