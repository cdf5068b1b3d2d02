import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from rewards.basis import likelihood


@pytest.mark.parametrize("lapse", [0.0, 0.13])
@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_equals_the_formula_in_double_precision(lapse, outcome):
    margin = np.array([-7.3, -0.4, 0.0, 1.7, 9.1])
    p = lapse / 2 + (1 - lapse) * expit(margin)
    expected = -(outcome * np.log(p) + (1 - outcome) * np.log1p(-p))
    actual = likelihood.negative_log_likelihood(jnp.float32(margin), jnp.full(5, outcome), lapse)
    np.testing.assert_allclose(actual, expected, rtol=3e-5)


@pytest.mark.parametrize("lapse", [0.0, 0.13])
def test_finite_value_and_gradient_far_out(lapse):
    margin = jnp.array([-300.0, 300.0])
    value, gradient = jax.value_and_grad(
        lambda s: likelihood.negative_log_likelihood(s, jnp.array([1.0, 0.0]), lapse).sum()
    )(margin)
    expected = 600.0 if lapse == 0 else -2 * np.log(lapse / 2)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, [-1.0, 1.0] if lapse == 0 else [0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("lapse", [0.0, 0.2])
def test_score_is_the_derivative(lapse):
    margin = jnp.linspace(-6, 6, 13)
    for outcome in (0.0, 0.5, 1.0):
        derivative = jax.vmap(jax.grad(likelihood.negative_log_likelihood), (0, None, None))(
            margin, outcome, lapse
        )
        np.testing.assert_allclose(likelihood.score(margin, outcome, lapse), -derivative, atol=1e-6)


@pytest.mark.parametrize("lapse", [0.0, 0.2])
def test_fisher_information_is_the_expected_squared_score(lapse):
    margin = jnp.linspace(-5, 5, 11)
    p = lapse / 2 + (1 - lapse) * expit(np.asarray(margin))
    yes, no = (likelihood.score(margin, outcome, lapse) for outcome in (1.0, 0.0))
    squared = p * yes**2 + (1 - p) * no**2
    np.testing.assert_allclose(likelihood.fisher_information(margin, lapse), squared, rtol=1e-4)


def test_swapping_the_two_completions_swaps_the_answer():
    margin, outcome = jnp.array([0.7, -2.1]), jnp.array([1.0, 0.5])
    np.testing.assert_allclose(
        likelihood.negative_log_likelihood(margin, outcome, 0.1),
        likelihood.negative_log_likelihood(-margin, 1 - outcome, 0.1),
        rtol=1e-6,
    )


@pytest.mark.parametrize("lapse", [0.0, 0.13])
@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_three_in_one_equals_the_three(lapse, outcome):
    margin = jnp.array([-120.0, -30.0, -7.3, -0.4, 0.0, 1.7, 9.1, 40.0, 120.0])
    value, score, information = likelihood.value_score_information(margin, outcome, lapse)
    np.testing.assert_allclose(
        value, likelihood.negative_log_likelihood(margin, outcome, lapse), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(score, likelihood.score(margin, outcome, lapse), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        information, likelihood.fisher_information(margin, lapse), rtol=1e-4, atol=1e-7
    )
