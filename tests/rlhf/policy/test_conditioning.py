"""Coefficients → z: the rail as shrinkage, where training coefficients come from, and the choice of basis."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from rewards.basis import gauge
from rewards.basis.belief import Belief
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rlhf.policy.conditioning import Conditioning, Gate, Population, UserShares, sample_coef

K = 3


def make_prior(seed: int = 0) -> Belief:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(K, K))
    return Belief.from_cov(
        rng.normal(size=K).astype(np.float32), (factor @ factor.T + 0.3 * np.eye(K)).astype(np.float32)
    )


def log_softmax(values):
    shifted = values - values.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_the_rail_is_shrinkage_of_coefficients():
    """What maximises E[w·φ] − β KL(π‖π_ref) − η KL(π‖π_agg) over 12 answers is π_ref tilted by w_eff at β."""
    rng = np.random.default_rng(0)
    phi, ref = rng.normal(size=(12, K)), log_softmax(rng.normal(size=12))
    coef, mean, beta, eta = rng.normal(size=K), rng.normal(size=K), 0.4, 0.25
    aggregate = log_softmax(ref + phi @ mean / beta)

    def negative_objective(logits):
        log_p = log_softmax(logits)
        p = np.exp(log_p)
        value = p @ (phi @ coef - beta * (log_p - ref) - eta * (log_p - aggregate))
        terms = phi @ coef - beta * (log_p - ref) - eta * (log_p - aggregate)
        return -value, -p * (terms - p @ terms)

    found = minimize(negative_objective, np.zeros(12), jac=True, method="BFGS", options={"gtol": 1e-12})
    gate = Gate.of(Belief.from_cov(mean.astype(np.float32), np.eye(K, dtype=np.float32)), beta, eta)
    shrunk = gate.compose(coef.astype(np.float32))[0].astype(np.float64)
    np.testing.assert_allclose(
        np.exp(log_softmax(found.x)), np.exp(log_softmax(ref + phi @ shrunk / beta)), atol=1e-6
    )
    assert np.abs(shrunk - coef).max() > 0.1


def test_no_rail_keeps_the_coefficients_and_an_endless_one_gives_the_mean():
    coef, mean = np.array([[1.0, -2.0, 3.0]], np.float32), np.array([0.5, 0.5, 0.5], np.float32)
    prior = Belief.from_cov(mean, np.eye(K, dtype=np.float32))
    np.testing.assert_array_equal(Gate.of(prior, 0.3, 0.0).compose(coef)[0], coef)
    np.testing.assert_allclose(Gate.of(prior, 0.3, 1e9).compose(coef)[0], mean[None], rtol=1e-6)


def test_z_whitens_the_population_and_is_zero_at_its_mean():
    prior = make_prior()
    conditioning = Conditioning.from_prior(prior)
    people = np.random.default_rng(1).multivariate_normal(prior.mean, prior.cov, 40_000).astype(np.float32)
    gate = Gate(conditioning, 0.5, 0.0)
    z = gate(people)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T), np.eye(K), atol=0.04)
    np.testing.assert_array_equal(gate(prior.mean), 0.0)
    np.testing.assert_allclose(conditioning.cov_sqrt @ conditioning.cov_sqrt, prior.cov, atol=1e-5)
    back = conditioning.mean + z @ conditioning.cov_sqrt
    np.testing.assert_allclose(back, people, atol=1e-4)


MIXES = [
    (0.5, 0.3, 0.1, 0.1),
    (0.98, 0.0, 0.0, 0.02),
    (0.25, 0.25, 0.25, 0.25),
    (0.0, 0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 0.7, 0.3, 0.0),
]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize("mix", MIXES)
def test_shares_hold_over_the_step_and_the_run(batch, mix):
    """In every step within one row of the share, over a run exactly: also with two rows and four kinds."""
    shares, steps = UserShares(*mix), 4000
    kinds = jax.vmap(lambda key: shares.kinds(key, batch))(jax.random.split(jax.random.key(3), steps))
    counts = np.stack([np.sum(np.asarray(kinds) == kind, axis=1) for kind in range(4)], axis=1)
    assert (counts.sum(axis=1) == batch).all()
    assert np.abs(counts - np.array(mix) * batch).max() < 1 + 1e-5
    np.testing.assert_allclose(counts.mean(axis=0) / batch, mix, atol=0.025)
    assert (counts[:, np.array(mix) == 0] == 0).all()


def test_training_coefficients_have_the_stated_moments_in_the_stated_order():
    prior = make_prior()
    precision = np.stack([np.diag([4.0, 9.0, 16.0]), make_prior(5).cov]).astype(np.float32)
    means = np.array([[5.0, 0.0, 0.0], [-5.0, 1.0, 2.0]], np.float32)
    people = [Belief.from_precision(m, h, 3) for m, h in zip(means, precision, strict=True)]
    population = Population.from_posteriors(prior, people, extreme_sd=2.5)
    num = 20_000
    shares = UserShares(1 / 4, 1 / 4, 1 / 4, 1 / 4)
    coef = np.asarray(sample_coef(jax.random.key(0), population, shares, 4 * num))
    assert coef.shape == (4 * num, K)
    own, drawn, extreme, generic = np.split(coef, [num, 2 * num, 3 * num])
    first = own[:, 0] > 0
    assert abs(first.mean() - 0.5) < 0.02  # both people about equally often; 5σ apart on axis 0
    for chosen, mean, h in ((first, means[0], precision[0]), (~first, means[1], precision[1])):
        np.testing.assert_allclose(own[chosen].mean(axis=0), mean, atol=0.08)
        np.testing.assert_allclose(np.cov(own[chosen].T), np.linalg.inv(h), atol=0.12)
    np.testing.assert_allclose(drawn.mean(axis=0), prior.mean, atol=0.06)
    np.testing.assert_allclose(np.cov(drawn.T), prior.cov, rtol=0.08, atol=0.08)
    z = Gate.of(prior, 0.1, 0.0)(extreme)
    assert np.allclose(np.sort(np.abs(z), axis=1), [0.0, 0.0, 2.5], atol=1e-4)
    assert {(int(np.abs(row).argmax()), bool(row.max() > 1)) for row in z[:500]} == {
        (a, s) for a in range(K) for s in (0, 1)
    }
    np.testing.assert_array_equal(generic, np.tile(prior.mean, (num, 1)))


def test_a_change_of_basis_changes_no_answer():
    """(φ, w) → (Aφ, A⁻ᵀw): after canonicalisation z and w_eff·φ are what they were."""
    rng = np.random.default_rng(3)
    embeddings, item_prompt = rng.normal(size=(60, 8)), np.repeat(np.arange(6), 10)
    head, prior = rng.normal(size=(8, K)), make_prior(2)
    coef = rng.multivariate_normal(prior.mean, prior.cov, 9)
    change = rng.normal(size=(K, K)) + 2 * np.eye(K)

    def answers(head, prior, coef):
        basis, canonical, b = gauge.canonicalise(head, prior, embeddings, item_prompt, encoder={})
        w = gauge.transform_coef(b, coef).astype(np.float32)
        w, z = Gate.of(canonical, 0.5, 0.2).compose(w)
        phi = Readout.of(basis).features(embeddings, item_prompt)
        return np.asarray(z), w @ phi.T

    moved = Belief.from_cov(gauge.transform_coef(change, prior.mean), gauge.transform_cov(change, prior.cov))
    # raw′ = A raw, so head′ = head Aᵀ.
    z, scores = answers(head, prior, coef)
    z_moved, scores_moved = answers(head @ change.T, moved, gauge.transform_coef(change, coef))
    np.testing.assert_allclose(z_moved, z, atol=2e-4)
    np.testing.assert_allclose(scores_moved, scores, atol=2e-4)
    assert np.abs(coef - gauge.transform_coef(change, coef)).max() > 0.1


def test_shapes_are_checked():
    """Coefficients of another basis never become a z."""
    gate = Gate.of(make_prior(), 1.0, 0.0)
    for size in (1, K - 1, K + 1):
        with pytest.raises(ValueError, match=f"the gate takes {K} a person"):
            gate(jnp.ones((2, size)))


RECORD = {"prior": {"mean": [0.5, -1.0], "cov": [[4.0, 0.0], [0.0, 0.25]]}, "beta": 0.3, "eta": 0.1}


def test_a_policy_s_record_makes_its_gate():
    gate = Gate.from_record(RECORD, "policy.json")
    w = np.array([2.5, -2.0])
    shrunk = (0.3 * w + 0.1 * np.array([0.5, -1.0])) / 0.4
    np.testing.assert_allclose(gate.checked(w), (shrunk - [0.5, -1.0]) / [2.0, 0.5], rtol=1e-6)
    assert Gate.from_record({"beta": 0.3, "eta": 0.1}, "policy.json") is None


@pytest.mark.parametrize(
    "change, named",
    [
        ({"beta": None}, "beta is None"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"eta": -1.0}, "eta is -1.0"),
        ({"eta": float("inf")}, "eta is inf"),
        ({"eta": "0.1"}, "eta is '0.1'"),
    ],
)
def test_a_damaged_record_makes_no_gate(change, named):
    with pytest.raises(UserError, match=f"^runs/p/policy.json: {re.escape(named)}, must be a finite number"):
        Gate.from_record(RECORD | change, "runs/p/policy.json")
