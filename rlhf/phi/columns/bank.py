"""Probes with names, in TRL's signature: what rails are usually about, as functions of English text.

They are coarse counts of words; those of `rlhf.phi.columns.style` are among them. `PROBES` names them all, and
`rewards.basis.named` makes axes of those that a basis shows. A better one is a function or a classifier of your own.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from rlhf.phi.columns import style
from rlhf.phi.columns.items import Text, text_of

T = TypeVar("T")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE = re.compile(r"[.!?…]+(?:\s|$)")
_AGREES = (
    r"you(?:['’]re| are) (?:absolutely |completely |quite |totally )?right|i (?:completely |fully |totally )?agree|"
    "good point|exactly|as you say|well said|absolutely|indeed"
)
_FLATTERS = (
    r"(?:great|excellent|good|brilliant|insightful|thoughtful|fantastic) (?:question|point|idea|observation)|"
    r"you(?:['’]re| are) (?:so |very |clearly )?(?:smart|clever|brilliant|insightful|thoughtful|right|an? expert)|"
    "your (?:insight|expertise|intelligence|excellent|brilliant|great)"
)


def length(completions: list[Text], **columns: object) -> list[float]:
    """log(1 + words)."""
    return [math.log1p(words) for words in style.length_words(completions)]


def hedging(completions: list[Text], **columns: object) -> list[float]:
    """Hedges (perhaps, might) less boosters (certainly, always), per 100 words."""
    return [-value for value in style.certainty(completions)]


def jargon(completions: list[Text], **columns: object) -> list[float]:
    """Words of ten letters and more, per 100 words."""
    return _each(completions, lambda words, text: _rate(words, sum(len(word) >= 10 for word in words)))


def specificity(completions: list[Text], **columns: object) -> list[float]:
    """Numbers, and names (capitals that begin no sentence), per 100 words."""

    def named(words: list[str], text: str) -> float:
        names = re.findall(r"(?<=[a-z,;] )[A-Z]\w+", text)
        return _rate(words, len(names) + sum(word[0].isdigit() for word in words))

    return _each(completions, named)


def readability(completions: list[Text], **columns: object) -> list[float]:
    """Flesch's reading ease (1948) with a syllable for every group of vowels: higher reads more easily."""

    def ease(words: list[str], text: str) -> float:
        if not words:
            return 0.0
        sentences = max(1, len(_SENTENCE.findall(text)))
        syllables = sum(max(1, len(re.findall(r"[aeiouy]+", word.lower()))) for word in words)
        return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)

    return _each(completions, ease)


def agreement(completions: list[Text], **columns: object) -> list[float]:
    """Words by which an answer sides with whoever asks, per 100 words."""
    return _each(completions, lambda words, text: _rate(words, _count(_AGREES, text)))


def flattery(completions: list[Text], **columns: object) -> list[float]:
    """Praise of whoever asks, per 100 words."""
    return _each(completions, lambda words, text: _rate(words, _count(_FLATTERS, text)))


PROBES: dict[str, Callable[..., list[float]]] = {
    "length": length,
    "lists": style.structure_share,
    "jargon": jargon,
    "hedging": hedging,
    "agreement": agreement,
    "warmth": style.warmth,
    "specificity": specificity,
    "readability": readability,
    "flattery": flattery,
    "formality": style.formality,
}


def spec(name: str) -> str:
    """`module:function` of a probe."""
    function = PROBES[name]
    return f"{function.__module__}:{function.__name__}"


def _each(completions: Sequence[Text], value: Callable[[list[str], str], T]) -> list[T]:
    return [value(_WORD.findall(text), text) for text in map(text_of, completions)]


def _count(markers: str, text: str) -> int:
    return len(re.findall(rf"\b(?:{markers})\b", text, flags=re.IGNORECASE))


def _rate(words: list[str], count: int) -> float:
    return 100.0 * count / max(1, len(words))
