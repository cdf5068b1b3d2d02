"""What a hint may do: become a token-level lesson, a statement about the person's taste, both, or nothing.

    class     lesson for the policy          statement about w_u              why
    style     yes                            if its words name a direction    form is the person's own affair
    content   yes                            if its words name a direction    what to include, likewise
    bounded   no                             if its words name a direction    warmth, certainty and their kin cost accuracy
                                                                              when trained for; w is under the rails, which
                                                                              a lesson to the policy would go around
    fact      only if verified               no                               truth is nobody's taste
    stance    no                             no                               "agree with me": what rails exist against
    safety    no                             no                               refusals, warnings, instructions, chat markup
    other     no                             no                               not understood; nothing is guessed

The class is found by phrases in `hint_words.json`, strictest class first, so one unsafe phrase decides for the whole hint.
A rule that can be read was preferred to a classifier, because whoever is refused is owed the reason: it names the phrase.
It knows English only and errs towards nothing: the lists of unsafe classes are wide, those of safe ones explicit. It tells
kinds of wishes apart; what a wish is about ("include how to …") is for a moderation model, which `decide` takes in.

Statements come from `rewards.people.edits.from_words`, the same function behind `chorus users edit --text`, so both agree.
A hint about a locked direction does nothing: it may not reach the policy by another door.
"""

import dataclasses
import functools
import importlib.resources
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from rewards.basis.belief import Belief
from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.people import edits
from rewards.people.edits import Edit

HintClass = Literal["safety", "stance", "fact", "bounded", "style", "content", "other"]
ORDER: tuple[HintClass, ...] = ("safety", "stance", "fact", "bounded", "style", "content")
MAX_CHARACTERS = 300  # a hint is one to three sentences; more is a prompt of its own


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one hint.

    Attributes:
      text: as the person wrote it. kind: its class; phrase: what made it that, "" for other.
      distil: whether the hinted policy may teach the unhinted one.
      edits: statements about w_u; empty for none.
      reason: one line for the log, and for the person.
    """

    text: str
    kind: HintClass
    phrase: str
    distil: bool
    edits: tuple[Edit, ...]
    reason: str


def classify(text: str) -> tuple[HintClass, str]:
    """(class, the phrase that decided), strictest class first; ("other", "") where no phrase is known."""
    plain = _plain(text)
    phrases = _phrases()
    for mark in phrases["markup"]:
        if mark in plain:
            return "safety", mark
    if len(plain) > MAX_CHARACTERS:
        return "other", ""
    words = re.findall(r"[a-z0-9;'-]+", plain)
    for kind in ORDER:
        for phrase in phrases[kind]:
            if _said(phrase.split(), words):
                return kind, phrase
    return "other", ""


def decide(
    text: str,
    *,
    run: RewardRun | None = None,
    posterior: Belief | None = None,
    verified: bool = False,
    moderate: Callable[[str], bool] | None = None,
) -> Decision:
    """What becomes of a hint.

    Args:
      run, posterior: the reward run and the present belief about the person; without them nothing is said about w_u.
      verified: somebody checked the claim of a fact hint.
      moderate: a moderation model; False refuses a hint that the rule would let pass.
    """
    kind, phrase = classify(text)
    if moderate is not None and not moderate(text):
        kind, phrase = "safety", "moderation"
    if kind in ("safety", "stance"):
        return Decision(text, kind, phrase, False, (), f"refused as {kind}: {phrase!r}")
    if kind == "other":
        return Decision(text, kind, phrase, False, (), "not understood: no known phrase of style or content")
    if kind == "fact":
        reason = (
            "a verified claim teaches" if verified else f"a claim of fact ({phrase!r}) that nobody verified"
        )
        return Decision(text, kind, phrase, verified, (), reason)
    found, held = _statements(text, run, posterior)
    if held:
        return Decision(text, kind, phrase, False, (), "names a locked direction of this run")
    distil = kind != "bounded"
    done = [
        *["teaches the policy"] * distil,
        *[f"{len(found)} statement(s) about the coefficients"] * bool(found),
    ]
    reason = (
        " and ".join(done)
        or f"{kind} ({phrase!r}) reaches the coefficients only, and its words name none of them"
    )
    return Decision(text, kind, phrase, distil, found, reason)


def _statements(text: str, run: RewardRun | None, posterior: Belief | None) -> tuple[tuple[Edit, ...], bool]:
    """Edits that the words make, and whether they are refused for a lock."""
    if run is None or posterior is None:
        return (), False
    try:
        return tuple(edits.from_words(run, posterior, text)), False
    except UserError:
        pass  # names nothing, or something locked: without locks it shows which
    extra = {key: value for key, value in run.extra.items() if key != "locked"}
    try:
        edits.from_words(dataclasses.replace(run, extra=extra, rails=None), posterior, text)
    except UserError:
        return (), False
    return (), True


@functools.cache
def _phrases() -> dict[str, list[str]]:
    return json.loads(
        importlib.resources.files("rlhf.train.hints").joinpath("hint_words.json").read_text("utf-8")
    )


def _plain(text: str) -> str:
    """Lower case, compatibility forms folded, typographic quotes straightened, invisible characters dropped."""
    folded = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'").lower()
    kept = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")
    return " ".join(kept.split())


def _said(phrase: list[str], words: list[str]) -> bool:
    """Whether the words of a phrase follow one another in `words`; a final * stands for any ending."""

    def same(pattern: str, word: str) -> bool:
        return word.startswith(pattern[:-1]) if pattern.endswith("*") else word == pattern

    return any(
        all(map(same, phrase, words[first : first + len(phrase)]))
        for first in range(len(words) - len(phrase) + 1)
    )
