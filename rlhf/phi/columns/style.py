"""Small style rewards that need no model, in TRL's signature: f(completions, **columns) -> list[float].

They count surface markers of English text, so they are coarse; their use is that several of them span tastes
that people really differ in, at no cost and with meanings that can be checked by reading. All but the first
two are rates per 100 words, so that they do not measure length. Source of the kinds of markers: Biber 1988,
Variation across Speech and Writing (formality, hedges and boosters); Danescu-Niculescu-Mizil et al. 2013,
arXiv:1306.6078 (politeness).
"""

import re

from rlhf.phi.columns.items import Text, text_of

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_STRUCTURED = re.compile(r"\s*(?:[-*+•]\s|\d+[.)]\s|#{1,6}\s|\||>\s|```)")
_FORMAL = (
    "therefore|however|furthermore|moreover|consequently|nevertheless|thus|hence|accordingly|regarding|"
    "additionally|whereas|upon|in accordance with|with respect to|in order to|such as"
)
_INFORMAL = (
    r"\w+['’](?:s|re|ve|ll|d|m|t)|gonna|wanna|gotta|kinda|sorta|yeah|yep|nope|hey|ok|okay|cool|awesome|stuff|"
    "lots|guys|super|btw|lol"
)
_WARM = (
    r"please|thanks?|thank you|welcome|glad|happy to|feel free|hope|sorry|appreciate|congratulations|enjoy|"
    r"wonderful|lovely|great question|let me know|take care|you['’]ve got this|i understand|don['’]t worry"
)
_CERTAIN = (
    "always|never|certainly|definitely|clearly|obviously|undoubtedly|absolutely|must|proven|without doubt|"
    "of course|guaranteed|exactly|no question|in fact"
)
_HEDGED = (
    "maybe|perhaps|possibly|probably|might|could|may|seems?|appears?|likely|unlikely|roughly|about|somewhat|"
    r"suggests?|i think|i believe|it depends|not sure|tends? to|generally|usually|often|in my opinion"
)
_EXCLAMATION = re.compile(r"!|[\U0001F300-\U0001FAFF☀-➿]")


def length_words(completions: list[Text], **columns: object) -> list[float]:
    """Number of words."""
    return [float(len(_WORD.findall(text_of(completion)))) for completion in completions]


def structure_share(completions: list[Text], **columns: object) -> list[float]:
    """Share of lines with text that are headings, list items, table rows, quotes or code fences."""
    shares = []
    for completion in completions:
        lines = [line for line in text_of(completion).splitlines() if line.strip()]
        shares.append(sum(bool(_STRUCTURED.match(line)) for line in lines) / max(1, len(lines)))
    return shares


def formality(completions: list[Text], **columns: object) -> list[float]:
    """Formal connectives less contractions and colloquial words, per 100 words."""
    return [
        _rate(text, _FORMAL) - _rate(text, _INFORMAL) - _per_hundred(text, len(_EXCLAMATION.findall(text)))
        for text in map(text_of, completions)
    ]


def warmth(completions: list[Text], **columns: object) -> list[float]:
    """Words of politeness and care, per 100 words."""
    return [_rate(text_of(completion), _WARM) for completion in completions]


def certainty(completions: list[Text], **columns: object) -> list[float]:
    """Boosters (certainly, always) less hedges (perhaps, might), per 100 words."""
    return [_rate(text, _CERTAIN) - _rate(text, _HEDGED) for text in map(text_of, completions)]


def _rate(text: str, markers: str) -> float:
    return _per_hundred(text, len(re.findall(rf"\b(?:{markers})\b", text, flags=re.IGNORECASE)))


def _per_hundred(text: str, count: int) -> float:
    return 100.0 * count / max(1, len(_WORD.findall(text)))
