"""Controls of the comparison: data on which personalisation must lose, data on which it must win, base rewards.

    identical people   every answer is redrawn from the aggregate model: nobody differs, so no model may beat it
    planted tastes     every answer is redrawn from known, widely spread coefficients over the real items: a
                       protocol that does not find personalisation there cannot find it anywhere
    base rewards       scores that know neither people nor embeddings: length, an item's mean success

Only who won a comparison changes; items, people, pairs and their order stay those of the data.

Letters in shapes: N comparisons, I items, U users, K basis outputs.
"""

import dataclasses

import numpy as np

from rewards.basis.reduce import whitened_components
from rewards.methods.base import ItemTable
from rewards.types import Preferences

PLANTED_BASIS = 3
PLANTED_MARGIN = 4.0
"""Root mean square margin of a planted answer, nats: its best prediction is right in about 85 of 100 cases."""
COMMON = 0.2
"""Share of the planted margin's variance that all people have in common."""


def redraw(prefs: Preferences, margin: np.ndarray, seed: int) -> Preferences:
    """The same comparisons with answers drawn from σ(margin[N]), margin in favour of `chosen`; ties are decided."""
    stays = np.random.default_rng([seed, 101]).random(prefs.num_comparisons) < 0.5 * (
        1 + np.tanh(0.5 * np.asarray(margin, np.float64))
    )
    return dataclasses.replace(
        prefs,
        chosen=np.where(stays, prefs.chosen, prefs.rejected),
        rejected=np.where(stays, prefs.rejected, prefs.chosen),
        outcome=np.ones(prefs.num_comparisons, np.float32),
    )


def identical_people(prefs: Preferences, margin: np.ndarray, seed: int) -> Preferences:
    """Everybody answers by one and the same reward, whose margins (float[N]) are given."""
    return redraw(prefs, margin, seed)


@dataclasses.dataclass(frozen=True)
class PlantedTastes:
    """`prefs` with planted answers; `best`: accuracy of the true coefficients on comparisons under a mask."""

    prefs: Preferences
    margin: np.ndarray

    def best(self, mask: np.ndarray) -> float:
        return float(np.mean(0.5 * (1 + np.tanh(0.5 * np.abs(self.margin[mask])))))


def planted_tastes(
    prefs: Preferences, table: ItemTable, seed: int, *, worth: float | None = None
) -> PlantedTastes:
    """w_u ~ N(μ, I) over the first principal components of the items within prompts.

    The margins of the data's comparisons are scaled to `PLANTED_MARGIN`, `COMMON` of their variance shared.

    Args:
      worth: by how much knowing the tastes beats knowing only what is shared, as a share of the comparisons; the shared part
        of the variance is then what makes it so (at its largest, where nothing is shared, if that is too little).
    """
    used = np.unique(np.concatenate([prefs.chosen, prefs.rejected]))
    coordinates = np.zeros((prefs.num_items, PLANTED_BASIS))
    reduced = whitened_components(table.embeddings[used], prefs.item_prompt[used], PLANTED_BASIS).coordinates
    coordinates[used, : reduced.shape[1]] = reduced
    rng = np.random.default_rng([seed, 202])
    delta = coordinates[prefs.chosen] - coordinates[prefs.rejected]
    shared = _unit(delta @ rng.normal(size=PLANTED_BASIS))
    own = _unit(np.sum(delta * rng.normal(size=(prefs.num_users, PLANTED_BASIS))[prefs.user_index], axis=1))
    common = COMMON if worth is None else _common(shared, own, worth)
    margin = PLANTED_MARGIN * _unit(np.sqrt(common) * shared + np.sqrt(1 - common) * own)
    answered = redraw(prefs, margin, seed)
    return PlantedTastes(answered, np.where(answered.chosen == prefs.chosen, margin, -margin))


def _common(shared: np.ndarray, own: np.ndarray, worth: float) -> float:
    """Share of the margin's variance in common at which the tastes are worth so much, by halving: worth falls with it."""

    def of(common: float) -> float:
        margin = PLANTED_MARGIN * _unit(np.sqrt(common) * shared + np.sqrt(1 - common) * own)
        first = 0.5 * (1 + np.tanh(0.5 * margin))
        known = np.maximum(first, 1 - first)
        crowd = np.where(shared > 0, first, np.where(shared < 0, 1 - first, 0.5))
        return float(np.mean(known - crowd))

    below, above = 0.0, 1.0
    for _ in range(30):
        middle = (below + above) / 2
        below, above = (middle, above) if of(middle) > worth else (below, middle)
    return below


def _unit(values: np.ndarray) -> np.ndarray:
    return values / max(float(np.sqrt(np.mean(values**2))), 1e-12)


def base_rewards(prefs: Preferences, training: np.ndarray) -> dict[str, np.ndarray]:
    """Scores that need no model, float[I]: "length" and "item mean".

    Length in characters, with the sign that fits the training comparisons; an item's share of training
    comparisons won, (wins + 1) / (comparisons + 2), so that an item never compared stands at one half.
    """
    length = np.array([len(text) for text in prefs.item_text], np.float64)
    part = prefs.select(training & (prefs.outcome != 0.5))
    sign = 1.0 if np.sum(np.sign(length[part.chosen] - length[part.rejected])) >= 0 else -1.0
    wins = np.bincount(part.chosen, minlength=prefs.num_items)
    seen = wins + np.bincount(part.rejected, minlength=prefs.num_items)
    return {"length": sign * length, "item mean": (wins + 1.0) / (seen + 2.0)}
