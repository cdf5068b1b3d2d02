"""Evaluation figures against closed forms on small matrices."""

import numpy as np
import pytest
from scipy.special import rel_entr

from rlhf.report import figures as evaluate


def distributions(seed: int, num: int, answers: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(answers, 0.7), num)


def test_kl_and_normalise():
    p, q = distributions(0, 4), distributions(1, 4)
    np.testing.assert_allclose(evaluate.kl(np.log(q), np.log(p)), rel_entr(q, p).sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(evaluate.kl(np.log(p), np.log(p)), 0.0, atol=1e-15)
    np.testing.assert_allclose(np.exp(evaluate.normalise(np.log(q) - 1e4)), q, rtol=1e-9)


def test_optimum_satisfies_the_gibbs_identity():
    """For every q: β KL(q‖optimum) = β log Z − (E_q[r] − β KL(q‖π_ref))."""
    rng = np.random.default_rng(0)
    reference, rewards, beta = np.log(distributions(2, 1)[0]), rng.normal(size=(3, 6)), 0.3
    best = evaluate.optimum(reference, rewards, beta)
    log_z = np.log((np.exp(reference) * np.exp(rewards / beta)).sum(axis=1))
    q = distributions(3, 3)
    objective = (q * rewards).sum(axis=1) - beta * evaluate.kl(np.log(q), reference[None])
    np.testing.assert_allclose(beta * evaluate.kl(np.log(q), best), beta * log_z - objective, atol=1e-10)
    np.testing.assert_allclose(
        evaluate.optimum(reference - 7.0, rewards, beta), best, atol=1e-10
    )  # mass outside


def test_dominance_counts_ordered_and_mutual_pairs():
    matrix = np.array([[2.0, 1.0, 1.5], [0.0, 1.0, 0.5], [4.0, 4.0, 4.0]])
    # Rows 0 and 1 beat both others; row 2 ties with both, which is no win.
    assert evaluate.dominance(matrix) == pytest.approx(4 / 6)
    assert evaluate.mutual_dominance(matrix) == pytest.approx(1 / 3)  # only (0, 1)
    np.testing.assert_allclose(evaluate.off_diagonal_mean(matrix), [1.25, 0.25, 4.0])
    # The row is the person who is paid: a transposed matrix counts otherwise.
    assert evaluate.dominance(matrix.T) == pytest.approx(3 / 6)


def test_enumerated_summary():
    """Two people of opposite taste, two answers, by hand."""
    phi, coef = np.array([[1.0], [-1.0]]), np.array([[1.0], [-2.0]])
    policy = np.log(np.array([[0.8, 0.1], [0.2, 0.6]]))  # 0.9 and 0.8 of the mass are valid answers
    answers = evaluate.Enumerated(policy, np.log(np.array([0.4, 0.4])), np.log(np.array([0.3, 0.1])))
    result, matrix = evaluate.summarise_enumerated(answers, phi, coef, 0.5 * coef, beta=2.0)
    own = np.array([[8 / 9, 1 / 9], [2 / 8, 6 / 8]])
    np.testing.assert_allclose(matrix, [[7 / 9, -0.5], [-14 / 9, 1.0]], atol=1e-12)
    assert result["diagonal_dominance"] == result["mutual_dominance"] == 1.0
    assert result["own_reward"] == pytest.approx((7 / 9 + 1.0) / 2)
    assert result["swapped_reward"] == pytest.approx((-0.5 - 14 / 9) / 2)
    assert result["aggregate_reward"] == pytest.approx(0.0)
    assert result["reference_reward"] == pytest.approx((0.5 - 1.0) / 2)
    assert result["own_beats_aggregate"] == 1.0 and result["own_beats_reference"] == 1.0
    assert result["valid_mass"] == pytest.approx(0.85)
    assert result["valid_mass_aggregate"] == pytest.approx(0.8)
    assert result["valid_mass_reference"] == pytest.approx(0.4)
    # Optimum under w/2 at β = 2: π_ref ∝ (3/4, 1/4) times exp(±w/4).
    best = np.array([0.75, 0.25])[None] * np.exp(np.array([[0.25, -0.25], [-0.5, 0.5]]))
    best /= best.sum(axis=1, keepdims=True)
    kl = rel_entr(own, best).sum(axis=1)
    assert result["kl_to_optimum"] == pytest.approx(kl.mean())
    np.testing.assert_allclose(result["per_person"]["kl_to_optimum"], kl)
    assert result["kl_to_optimum_worst_decile"] == pytest.approx(np.quantile(kl, 0.9))
    assert result["best_reward"] == pytest.approx(((best @ phi)[:, 0] * coef[:, 0]).mean())
    reference = np.array([[0.75, 0.25]])
    assert result["kl_to_reference"] == pytest.approx(rel_entr(own, reference).sum(axis=1).mean())
    assert result["kl_to_aggregate"] == pytest.approx(rel_entr(own, np.full((1, 2), 0.5)).sum(axis=1).mean())
    assert result["kl_of_optimum_to_reference"] == pytest.approx(rel_entr(best, reference).sum(axis=1).mean())
    assert result["kl_of_reference_to_optimum"] == pytest.approx(rel_entr(reference, best).sum(axis=1).mean())


def test_sampled_summary_agrees_with_the_enumerated_one():
    rng = np.random.default_rng(4)
    num_users, num_samples = 4, 4000
    space, coef, probs = rng.normal(size=(6, 2)), rng.normal(size=(num_users, 2)), distributions(5, num_users)
    drawn = np.stack([rng.choice(6, num_samples, p=p) for p in probs])
    texts = [[f"answer {i}" for i in own] for own in drawn]
    result, matrix = evaluate.summarise_samples(space[drawn], texts, coef, drawn < 3)
    answers = evaluate.Enumerated(np.log(probs), np.log(probs[0]), np.log(probs[0]))
    exact, exact_matrix = evaluate.summarise_enumerated(answers, space, coef, coef, beta=1.0)
    np.testing.assert_allclose(matrix, exact_matrix, atol=0.1)  # about 4 standard errors
    assert result["own_reward"] == pytest.approx(exact["own_reward"], abs=0.05)
    assert result["valid_answers"] == pytest.approx(probs[:, :3].sum() / num_users, abs=0.03)
    assert result["words"] == 2.0
    assert result["distinct_between_people"] == len(np.unique(drawn)) / drawn.size
    assert result["distinct_within_person"] == pytest.approx(
        np.mean([len(np.unique(d)) / num_samples for d in drawn])
    )
