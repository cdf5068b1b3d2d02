"""Weights and soft outcomes in the fit of the basis."""

import dataclasses
import functools

import numpy as np
import pytest

from rewards.annotation.basis import fit_basis_mixture
from rewards.annotation.mixture import MixtureConfig
from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.basis.fit import FitConfig, fit_basis
from rewards.basis.readout import Readout
from rewards.errors import UserError
from tests.rewards.planted import last, planted

ENCODER = {"kind": "precomputed"}
CONFIG = FitConfig(num_basis=2, dims=8, ridge=1.0, rounds=6)


@functools.cache
def world():
    return planted(0, width=8, num_basis=2, num_users=30, pairs=60, num_items=300, spread=1.5)


def test_weight_one_is_no_weight_and_weight_zero_is_no_row():
    prefs, embeddings = world().prefs, world().prefs.item_features
    plain = fit_basis(prefs, embeddings, CONFIG, encoder=ENCODER)
    ones = fit_basis(prefs, embeddings, CONFIG, encoder=ENCODER, weight=np.ones(prefs.num_comparisons))
    np.testing.assert_array_equal(plain.coef_mean, ones.coef_mean)
    kept = prefs.choice % 6 > 0
    zeros = fit_basis(prefs, embeddings, CONFIG, encoder=ENCODER, weight=kept.astype(float))
    assert not np.allclose(zeros.coef_mean, plain.coef_mean, atol=0.05)
    # The rows left out still define which items are whitened, so items are kept the same.
    fewer = prefs.select(kept)
    used = np.union1d(fewer.chosen, fewer.rejected)
    assert len(used) == len(np.union1d(prefs.chosen, prefs.rejected))
    dropped = fit_basis(fewer, embeddings, CONFIG, encoder=ENCODER)
    # L-BFGS sums in another order; leaving the weights unused moves coefficients by tenths.
    np.testing.assert_allclose(zeros.coef_mean, dropped.coef_mean, atol=0.015)


def test_weight_two_is_the_row_twice():
    rng = np.random.default_rng(0)
    delta, outcome = rng.normal(size=(12, 3)), rng.random(12)
    prior = Belief.from_cov(np.zeros(3), np.eye(3))
    weight = np.where(np.arange(12) % 2, 2.0, 1.0)
    index = np.zeros(12, int)
    twice = np.repeat(np.arange(12), weight.astype(int))
    weighted = users.posteriors(prior, index, delta, outcome, num_users=1, weight=weight)
    repeated = users.posteriors(
        prior, index[:1].repeat(len(twice)), delta[twice], outcome[twice], num_users=1
    )
    for a, b in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_genuine_weights_protect_the_basis():
    """A third of all answers favours whatever stands first in one coordinate: it must not enter φ."""
    clean = world()
    prefs, embeddings = clean.prefs, clean.prefs.item_features
    rng = np.random.default_rng(1)
    test = last(prefs, 15)
    foreign = np.linalg.svd(clean.directions.T)[2][-1]  # orthogonal to all tastes
    side = np.sign((embeddings[prefs.chosen] - embeddings[prefs.rejected]) @ foreign)
    pushed = (rng.random(len(side)) < 0.4) & ~test
    swap = pushed & (side < 0)
    chosen, rejected = np.where(swap, (prefs.rejected, prefs.chosen), (prefs.chosen, prefs.rejected))
    names = [f"x{i}" for i in range(8)]
    attributes = [
        {"feature_names": names, "chosen": (embeddings[c] @ foreign * np.ones(8)).tolist(),
         "rejected": (embeddings[r] @ foreign * np.ones(8)).tolist()}
        for c, r in zip(chosen, rejected, strict=True)
    ]  # fmt: skip
    columns = {"frame": ["x0"] * len(side), "attributes": attributes, "timestamp": list(range(len(side)))}
    dirty = dataclasses.replace(prefs, chosen=chosen, rejected=rejected, columns=columns)
    train = dirty.select(~test)
    plain = fit_basis(train, embeddings, CONFIG, encoder=ENCODER)
    mixed, found = fit_basis_mixture(
        train, embeddings, CONFIG, encoder=ENCODER, mixture=MixtureConfig(rounds=4)
    )

    def accuracy(result):
        phi = Readout.of(result.basis).features(embeddings)
        margin = np.sum(
            result.coef_mean[prefs.user_index] * (phi[prefs.chosen] - phi[prefs.rejected]), axis=1
        )
        return np.mean(margin[test] > 0)

    assert found.share[2] > 0.2
    assert accuracy(mixed) > accuracy(plain) + 0.03


@pytest.mark.parametrize("weight", [np.ones(3), -np.ones(1800), np.full(1800, np.nan), np.zeros(1800)])
def test_bad_weights_are_named(weight):
    with pytest.raises(UserError, match="^weight"):
        fit_basis(world().prefs, world().prefs.item_features, CONFIG, encoder=ENCODER, weight=weight)
