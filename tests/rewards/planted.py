"""Preferences made from a known basis and population, to see whether the fit finds them again."""

import dataclasses

import numpy as np

from rewards.types import Preferences


@dataclasses.dataclass(frozen=True)
class Planted:
    """`prefs` with embeddings in `item_features`; orthonormal directions[E, K], coef[U, K]; best accuracy."""

    prefs: Preferences
    directions: np.ndarray
    coef: np.ndarray
    bayes: float


def planted(
    seed: int,
    *,
    width: int = 64,
    num_basis: int = 5,
    num_users: int = 100,
    pairs: int = 100,
    mean: np.ndarray | None = None,
    spread: float = 1.0,
    num_items: int = 4000,
) -> Planted:
    """Draw w_u ~ N(mean, spread² I), pairs of items at random, and Bradley–Terry answers."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(width, num_basis)))[0]
    mean = 0.5 * rng.normal(size=num_basis) if mean is None else mean
    coef = mean + spread * rng.normal(size=(num_users, num_basis))
    embeddings = rng.normal(size=(num_items, width)).astype(np.float32)
    user = np.repeat(np.arange(num_users), pairs)
    return _answered(rng, embeddings, directions, coef, user)


def with_coefficients(world: Planted, coef: np.ndarray) -> Planted:
    """The same items and people with other coefficients, coef[U, K], and new answers."""
    rng = np.random.default_rng(7)
    return _answered(rng, world.prefs.item_features, world.directions, coef, world.prefs.user_index)


def _answered(rng, embeddings, directions, coef, user) -> Planted:
    num_items, count = len(embeddings), len(user)
    first = rng.integers(0, num_items, count)
    second = (first + rng.integers(1, num_items, count)) % num_items
    margin = np.sum(coef[user] * ((embeddings[first] - embeddings[second]) @ directions), axis=1)
    prefers_first = rng.random(count) < 1 / (1 + np.exp(-margin))
    starts = np.searchsorted(user, np.arange(len(coef)))
    prefs = Preferences(
        prompts=("Which one?",),
        item_prompt=np.zeros(num_items, np.int32),
        item_text=tuple(f"item {i}" for i in range(num_items)),
        item_features=embeddings,
        user_ids=tuple(f"user {u}" for u in range(len(coef))),
        user_index=user.astype(np.int32),
        chosen=np.where(prefers_first, first, second).astype(np.int32),
        rejected=np.where(prefers_first, second, first).astype(np.int32),
        outcome=np.ones(count, np.float32),
        choice=(np.arange(count) - starts[user]).astype(np.int32),
        row=np.arange(1, count + 1, dtype=np.int32),
        columns={},
        source="planted",
    )
    bayes = float(np.mean(1 / (1 + np.exp(-np.abs(margin)))))
    return Planted(prefs, directions, coef, bayes)


def last(prefs: Preferences, count: int) -> np.ndarray:
    """bool[N]: the last `count` choices of every person."""
    final = np.zeros(prefs.num_users, np.int64)
    np.maximum.at(final, prefs.user_index, prefs.choice)
    return prefs.choice > final[prefs.user_index] - count
