"""The words of a user card: what a writer gets, two writers without a language model, and the embedding of cards.

Letters in shapes: U people, n answers, C cards, D embedding width.
"""

import dataclasses
import weakref
from collections.abc import Callable

import numpy as np

from rewards.errors import UserError
from rewards.methods.base import Comparisons, EmbedTexts, ItemTable
from rewards.types import Preferences, Prompt

EMPTY = "Nothing is known about this person yet."
QUOTE_CHARACTERS = 120


@dataclasses.dataclass(frozen=True)
class CardAnswer:
    """One answer as a card writer sees it.

    Attributes:
      prompt, chosen, rejected: the texts; `chosen` is the one preferred.
      tie: neither was.
      attributes: name → (value of chosen, value of rejected); empty when the data has none.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    tie: bool
    attributes: dict[str, tuple[float, float]]


def writer_named(name: str) -> Callable[[list[CardAnswer]], str]:
    writers = {"quotes": quotes, "attributes": attributes}
    if name not in writers:
        raise UserError(f"card.writer: {name!r} is unknown; use quotes or attributes")
    return writers[name]


def quotes(answers: list[CardAnswer]) -> str:
    """The texts a person preferred and those they rejected, shortened."""
    chosen = [_short(answer.chosen) for answer in answers if not answer.tie]
    rejected = [_short(answer.rejected) for answer in answers if not answer.tie]
    equal = [f"{_short(a.chosen)} and {_short(a.rejected)}" for a in answers if a.tie]
    parts = [("Likes", chosen), ("Dislikes", rejected), ("Finds equal", equal)]
    return "\n".join(f"{title}: {'; '.join(dict.fromkeys(texts))}" for title, texts in parts if texts)


def attributes(answers: list[CardAnswer]) -> str:
    """Which direction of every attribute the person prefers, and in how many of the answers that differ in it.

    Raises:
      UserError: an answer whose texts have no attributes.
    """
    higher: dict[str, int] = {}
    total: dict[str, int] = {}
    for answer in answers:
        if not answer.attributes:
            raise UserError(
                f"card.writer: no attributes for {_short(answer.chosen)}; add the attributes column or use "
                "card.writer=quotes"
            )
        for name, (chosen, rejected) in answer.attributes.items():
            total.setdefault(name, 0)
            if not answer.tie and chosen != rejected:
                total[name] += 1
                higher[name] = higher.get(name, 0) + (chosen > rejected)
    wishes, mixed = [], []
    for name, count in total.items():
        up, label = higher.get(name, 0), name.replace("_", " ")
        if 2 * up == count:
            mixed += [label] if count else []
        else:
            wish, times = ("higher", up) if 2 * up > count else ("lower", count - up)
            wishes.append(f"{wish} {label} ({times} of {count} answers)")
    lines = [f"Prefers {', '.join(wishes)}."] if wishes else []
    lines += [f"Undecided about {', '.join(mixed)}."] if mixed else []
    return "\n".join(lines) or EMPTY


def answers_of(table: ItemTable, answers: Comparisons, limit: int) -> list[list[CardAnswer]]:
    """Everybody's last `limit` answers, the preferred text first."""
    described = _item_attributes(table.prefs)
    prefs, people = table.prefs, []
    for chosen, rejected, outcome, weight in zip(
        answers.chosen, answers.rejected, answers.outcome, answers.weight, strict=True
    ):
        own = []
        for position in np.flatnonzero(weight > 0)[-limit:]:
            first, second = int(chosen[position]), int(rejected[position])
            if outcome[position] < 0.5:
                first, second = second, first
            values = described.get(first, {}), described.get(second, {})
            shared = {name: (values[0][name], values[1][name]) for name in values[0] if name in values[1]}
            own.append(
                CardAnswer(
                    prefs.prompts[prefs.item_prompt[first]],
                    prefs.item_text[first],
                    prefs.item_text[second],
                    bool(outcome[position] == 0.5),
                    shared,
                )
            )
        people.append(own)
    return people


def _item_attributes(prefs: Preferences) -> dict[int, dict[str, float]]:
    """Attribute values of every item in a row that has them by name."""
    out: dict[int, dict[str, float]] = {}
    rows = zip(prefs.chosen, prefs.rejected, prefs.columns.get("attributes", ()), strict=False)
    for chosen, rejected, value in rows:
        names = (value or {}).get("feature_names")
        if names:
            out[int(chosen)] = dict(zip(names, value["chosen"], strict=True))
            out[int(rejected)] = dict(zip(names, value["rejected"], strict=True))
    return out


# Embeddings of cards by content, for as long as the function that made them lives.
_embedded: weakref.WeakKeyDictionary[EmbedTexts, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()


def embed_cards(table: ItemTable, cards: list[str], width: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float64[C, D] and which cards say something, bool[C]; every distinct text is embedded once.

    Raises:
      UserError: no language model, a width other than the one fitted, or values that are not finite.
    """
    if table.embed_texts is None:
        raise UserError("card: user cards are read by a language model; set encoder.kind=lm and model.name")
    present = np.array([bool(card.strip()) and card != EMPTY for card in cards], bool)
    known = _embedded.setdefault(table.embed_texts, {})
    new = [card for card in dict.fromkeys(np.array(cards, dtype=object)[present]) if card not in known]
    if new:
        vectors = np.asarray(table.embed_texts(new), np.float64)
        if vectors.ndim != 2 or len(vectors) != len(new) or not np.isfinite(vectors).all():
            raise UserError(
                f"card: the encoder gave shape {vectors.shape} for {len(new)} cards, or values that are not finite; "
                "check model.name"
            )
        known.update(zip(new, vectors, strict=True))
    found = [known[card] for card, real in zip(cards, present, strict=True) if real]
    size = len(found[0]) if found else width or 1
    if width is not None and size != width:
        raise UserError(
            f"card: cards embed to width {size}, but the model was fitted with {width}; use the same language model"
        )
    out = np.zeros((len(cards), size))
    out[present] = np.reshape(found, (-1, size))
    return out, present


def _short(text: str) -> str:
    words = " ".join(text.split())
    return f"“{words if len(words) <= QUOTE_CHARACTERS else words[: QUOTE_CHARACTERS - 1].rstrip() + '…'}”"
