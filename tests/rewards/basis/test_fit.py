import dataclasses
import functools

import jax
import numpy as np
import pydantic
import pytest
from sklearn.linear_model import LogisticRegression

from rewards.basis import joint
from rewards.basis.fit import (
    Candidate,
    FitConfig,
    _Problem,
    checked_weight,
    fit_basis,
    fit_pooled,
    said_choice,
)
from rewards.basis.readout import Readout
from rewards.errors import UserError
from tests.rewards.planted import last, planted, with_coefficients

ENCODER = {"kind": "precomputed"}


@functools.cache
def planted_fit():
    """K = 5 in 64 dimensions, 100 people: fitted on 100 pairs each, 50 more to be predicted."""
    world = planted(0, pairs=150)
    test = last(world.prefs, 50)
    config = FitConfig(num_basis=5, dims=64, ridge=1.0)
    result = fit_basis(world.prefs.select(~test), world.prefs.item_features, config, encoder=ENCODER)
    return world, test, result


def accuracy(prefs, phi, coef, test):
    margin = np.sum(coef[prefs.user_index] * (phi[prefs.chosen] - phi[prefs.rejected]), axis=1)
    return float(np.mean(margin[test] > 0))


def test_planted_basis_is_recovered():
    world, test, result = planted_fit()
    assert 0.82 < world.bayes < 0.86
    found = np.linalg.qr(result.basis.head @ Readout.of(result.basis).change.T)[0]
    overlap = np.mean(np.linalg.svd(found.T @ world.directions)[1] ** 2)
    phi = Readout.of(result.basis).features(world.prefs.item_features)
    own = accuracy(world.prefs, phi, result.coef_mean, test)
    swapped = accuracy(world.prefs, phi, np.roll(result.coef_mean, 1, axis=0), test)
    pooled = fit_pooled(world.prefs.select(~test), world.prefs.item_features, FitConfig(dims=64, ridge=1.0))
    pooled_accuracy = np.mean((pooled[world.prefs.chosen] > pooled[world.prefs.rejected])[test])
    assert overlap >= 0.95
    assert own >= 0.81
    assert swapped <= 0.55 < pooled_accuracy < own - 0.1


def test_the_population_has_the_planted_spread():
    world, _, result = planted_fit()
    phi = Readout.of(result.basis).features(world.prefs.item_features)
    # The spread of true utilities of people around their mean, per item, against what the prior says.
    items = world.prefs.item_features - world.prefs.item_features.mean(axis=0)
    utilities = items @ world.directions @ world.coef.T
    true = np.mean(np.var(utilities, axis=1))
    fitted = np.mean(np.einsum("ik,kl,il->i", phi, result.prior.cov, phi))
    assert fitted == pytest.approx(true, rel=0.25)


def test_gauge_of_the_fit_is_canonical():
    world, _, result = planted_fit()
    used = np.unique(np.concatenate([world.prefs.chosen, world.prefs.rejected]))
    phi = Readout.of(result.basis).features(world.prefs.item_features[used])
    np.testing.assert_allclose(phi.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(phi.T), np.eye(5), atol=0.02)
    np.testing.assert_allclose(result.prior.mean[1:], 0, atol=1e-4)
    assert result.prior.mean[0] > 0
    spread = np.diag(result.prior.cov)[1:]
    assert np.all(np.diff(spread) <= 1e-4)


def test_one_output_serves_opposite_tastes():
    """w = ±2 in equal numbers: no common direction, weights must be signed."""
    world = planted(1, num_basis=1, pairs=150, mean=np.zeros(1), spread=1e-6)
    signs = np.where(np.arange(100) % 2, 3.0, -3.0)[:, None]
    world = with_coefficients(world, signs)
    test = last(world.prefs, 50)
    config = FitConfig(num_basis=1, dims=64, ridge=1.0)
    result = fit_basis(world.prefs.select(~test), world.prefs.item_features, config, encoder=ENCODER)
    phi = Readout.of(result.basis).features(world.prefs.item_features)
    assert accuracy(world.prefs, phi, result.coef_mean, test) >= 0.85


def test_similar_people_are_better_served_by_the_pooled_model():
    """Personalisation must be allowed to lose: ten pairs of people who all agree."""
    world = planted(2, pairs=60, mean=np.full(5, 0.9), spread=0.02)
    test = last(world.prefs, 50)
    train, embeddings = world.prefs.select(~test), world.prefs.item_features
    config = FitConfig(num_basis=5, dims=64, ridge=1.0)
    result = fit_basis(train, embeddings, config, encoder=ENCODER)
    phi = Readout.of(result.basis).features(embeddings)
    pooled = fit_pooled(train, embeddings, config)
    pooled_accuracy = np.mean((pooled[world.prefs.chosen] > pooled[world.prefs.rejected])[test])
    assert pooled_accuracy >= accuracy(world.prefs, phi, result.coef_mean, test)
    assert pooled_accuracy > 0.75


def test_pooled_model_equals_scikit_learn():
    world = planted(3, width=8, num_basis=2, num_users=10, pairs=40, num_items=50)
    prefs, embeddings = world.prefs, world.prefs.item_features
    scores = fit_pooled(prefs, embeddings, FitConfig(dims=8, ridge=2.0))
    centred = embeddings - embeddings.mean(0)
    values, vectors = np.linalg.eigh(np.cov(centred.T))
    delta = ((embeddings[prefs.chosen] - embeddings[prefs.rejected]) @ vectors) / np.sqrt(values)
    # Both orders of every pair: scikit-learn wants two classes; each pair then counts twice, so C is halved.
    model = LogisticRegression(C=1 / 4.0, fit_intercept=False, tol=1e-10)
    model.fit(np.concatenate([delta, -delta]), np.repeat([1, 0], len(delta)))
    expected = delta @ model.coef_[0]
    np.testing.assert_allclose(scores[prefs.chosen] - scores[prefs.rejected], expected, atol=2e-3)
    used = np.unique(np.concatenate([prefs.chosen, prefs.rejected]))
    np.testing.assert_allclose(scores[used].mean(), 0, atol=1e-4)  # the zero of the scores


def test_same_seed_same_bits_and_the_callback_sees_every_round():
    world = planted(4, width=12, num_basis=2, num_users=20, pairs=20, num_items=60)
    config, rounds = FitConfig(num_basis=2, dims=8, rounds=4, steps=5), []
    runs = [
        fit_basis(
            world.prefs,
            world.prefs.item_features,
            config,
            encoder=ENCODER,
            on_round=lambda number, metrics: rounds.append((number, metrics["objective"])),
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0].coef_mean, runs[1].coef_mean)
    np.testing.assert_array_equal(runs[0].basis.head, runs[1].basis.head)
    assert [number for number, _ in rounds] == [0, 1, 2, 3] * 2
    assert rounds[:4] == rounds[4:]


def test_size_is_chosen_on_people_left_out():
    world = planted(5, width=16, num_basis=3, num_users=60, pairs=40, num_items=300, spread=1.5)
    config = FitConfig(num_basis=(1, 3), dims=16, ridge=1.0, rounds=8)
    result = fit_basis(world.prefs, world.prefs.item_features, config, encoder=ENCODER)
    loss = {candidate.num_basis: candidate.loss_nats for candidate in result.candidates}
    assert set(loss) == {1, 3}
    assert loss[3] < loss[1] - 0.02
    assert result.basis.num_basis == next(c.num_basis for c in result.candidates if c.chosen) == 3


def test_expected_loss_equals_monte_carlo():
    rng = np.random.default_rng(0)
    mean, var = np.array([-2.0, 0.0, 1.5], np.float32), np.array([0.3, 2.0, 4.0], np.float32)
    outcome = np.array([1.0, 0.5, 0.0], np.float32)
    margin = mean + np.sqrt(var) * rng.normal(size=(400_000, 3))
    expected = (outcome * np.logaddexp(0, -margin) + (1 - outcome) * np.logaddexp(0, margin)).mean(0)
    actual = joint.expected_loss(*map(jax.numpy.asarray, (mean, var, outcome)), jax.numpy.float32(0))
    np.testing.assert_allclose(actual, expected, atol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, e: (p.select(p.user_index == 0), e, FitConfig()), "at least two"),
        (lambda p, e: (p, e[:-1], FitConfig()), "one row an item"),
        (lambda p, e: (p, np.where(np.arange(len(e))[:, None] == 3, np.nan, e), FitConfig()), "item 3"),
        (lambda p, e: (p, np.ones_like(e), FitConfig()), "same embedding"),
        (lambda p, e: (p, e, FitConfig(num_basis=9, dims=4)), "num_basis"),
        (lambda p, e: (p.select(p.user_index < 3), e, FitConfig(num_basis=(2, 3))), "too few"),
        (lambda p, e: (all_ties(p), e, FitConfig()), "ties"),
    ],
)
def test_bad_input_is_named_in_one_line(change, message):
    world = planted(6, width=6, num_basis=2, num_users=12, pairs=6, num_items=20)
    prefs, embeddings, config = change(world.prefs, world.prefs.item_features)
    with pytest.raises(UserError, match=message) as caught:
        fit_basis(prefs, embeddings, config, encoder=ENCODER)
    assert "\n" not in str(caught.value)


def all_ties(prefs):
    return dataclasses.replace(prefs, outcome=np.full(prefs.num_comparisons, 0.5, np.float32))


def test_config_refuses_what_it_does_not_know():
    with pytest.raises(pydantic.ValidationError):
        FitConfig(num_base=3)
    with pytest.raises(pydantic.ValidationError):
        FitConfig(lapse=1.0)
    hash(FitConfig())


def test_weights_of_comparisons():
    prefs = planted(3, width=4, num_basis=2, num_users=4, pairs=5, num_items=20).prefs
    count = prefs.num_comparisons
    np.testing.assert_array_equal(checked_weight(prefs, None), np.ones(count))
    given = np.linspace(0, 2, count)
    np.testing.assert_array_equal(checked_weight(prefs, given), given.astype(np.float32))
    for bad in (given[1:], given[:, None], -given, given * np.nan, given * np.inf, 0 * given):
        with pytest.raises(UserError, match="weight"):
            checked_weight(prefs, bad)


def test_fewer_coordinates_are_zeros_behind_the_first():
    prefs = planted(3, width=4, num_basis=2, num_users=4, pairs=5, num_items=20).prefs
    items = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    narrowed = _Problem(items, np.zeros(3, np.int32), prefs).narrowed(2)
    np.testing.assert_array_equal(narrowed, items * [1, 1, 0, 0])


def test_too_few_people_to_choose_by_get_the_smallest_default_and_lists_of_ones_own_are_refused(caplog):
    world = planted(0, width=12, num_basis=2, num_users=6, pairs=12, num_items=60)
    few, features = world.prefs, world.prefs.item_features
    with caplog.at_level("INFO", "chorus"):
        result = fit_basis(few, features, FitConfig(rounds=2), encoder={})
    assert result.basis.num_basis == 2 and not result.candidates
    assert "too few people to choose by" in caplog.text
    with pytest.raises(UserError, match="6 people with two comparisons are too few to choose"):
        fit_basis(few, features, FitConfig(num_basis=(2, 3), rounds=2), encoder={})


def test_the_choice_is_said_in_one_line():
    tried = (Candidate(4, 16, 0.601, 0.01), Candidate(2, 16, 0.605, 0.01, chosen=True))
    said = said_choice(tried, FitConfig())
    assert said.startswith(
        "chosen by 25% of the training people, left out: K = 2 of 2, 4, 6 and 16 dimensions of 8, 16, 32"
    )
    assert (
        "the smallest within one standard error of the best, 0.601 (K = 4, 16 dimensions)" in said
        and "\n" not in said
    )
