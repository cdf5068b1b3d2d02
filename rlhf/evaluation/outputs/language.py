"""In which language a text is: does a policy answer in another than it was asked in?

py3langid's model, offline. Short texts, lists, tables and code have no language that could be known, so a text has one only
where the model is sure of it; only pairs of prompt and completion that both have one are counted.

Source: Lui and Baldwin 2012, langid.py: An off-the-shelf language identification tool.
"""

import functools
from collections.abc import Sequence

from rewards.types import Prompt

SURE = 0.7
"""Probability of the likeliest language below which a text has none."""
FEWEST_LETTERS, READ = 20, 500
"""Letters that a text needs, and how many characters of it are read."""
IDEOGRAMS = 0x2E80
"""First of the scripts of East Asia: a letter there counts for four, being a word or half of one."""
NONE = ("und", "zxx")  # py3langid's words for "not sure" and for what is no language


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second to load

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)


def languages(texts: Sequence[str]) -> list[str | None]:
    """Code of the language of each text, such as en; None where it is not clear."""
    known = {text: _language(text[:READ]) for text in set(texts)}
    return [known[text] for text in texts]


def _language(text: str) -> str | None:
    letters = sum(4 if letter >= chr(IDEOGRAMS) else 1 for letter in text if letter.isalpha())
    if letters < FEWEST_LETTERS:
        return None
    found, _ = _identifier().classify(text.encode("utf-8", "replace"))
    return None if found in NONE else found


def of_prompts(prompts: Sequence[Prompt]) -> list[str | None]:
    """The language in which each is asked: that of the text, or of the last message of the user."""
    return languages([_asked(prompt) for prompt in prompts])


def _asked(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return next((said for role, said in reversed(prompt) if role == "user"), "")


def other_language(asked: Sequence[str | None], answered: Sequence[str | None]) -> float | None:
    """Share of answers in another language than the prompt; None where of no pair both are known."""
    known = [(a, b) for a, b in zip(asked, answered, strict=True) if a is not None and b is not None]
    return sum(a != b for a, b in known) / len(known) if known else None
