"""A belief keeps what it is given to the bit, and says the same in either form."""

import jax
import numpy as np
import pytest

from rewards.basis.belief import Belief
from rewards.errors import UserError

MEAN = np.array([0.5, -1.0, 2.0], np.float32)
COV = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]], np.float32)


def test_either_matrix_is_kept_and_the_other_is_its_inverse():
    assert Belief.from_cov(MEAN, COV).cov is COV and Belief.from_precision(MEAN, COV).precision is COV
    precision = Belief.from_cov(MEAN, COV).precision
    assert precision.dtype == np.float32
    np.testing.assert_array_equal(precision, precision.T)
    np.testing.assert_allclose(precision @ COV, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(Belief.from_precision(MEAN, precision).cov, COV, rtol=1e-6, atol=1e-6)


def test_margins_and_samples_are_those_of_the_gaussian():
    belief, direction = Belief.from_cov(MEAN, COV), np.array([[1.0, -2.0, 0.5]], np.float32)
    mean, sd = belief.margins(direction)
    drawn = belief.sample(jax.random.key(0), 200_000)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose((drawn @ direction[0]).mean(), mean[0], atol=0.02)
    np.testing.assert_allclose((drawn @ direction[0]).std(), sd[0], rtol=0.01)
    np.testing.assert_allclose(drawn.std(axis=0), belief.sd, rtol=0.01)


def test_inside_a_compiled_program_it_is_the_same_and_numbers_of_answers_are_static():
    traced = jax.jit(lambda belief: (belief.precision, belief.sd, belief))
    precision, sd, back = traced(Belief.from_cov(MEAN, COV, 4))
    np.testing.assert_allclose(precision, np.linalg.inv(COV), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sd, np.sqrt(np.diag(COV)), rtol=1e-6)
    assert back.num_answers == 4 and back.given == "cov"


def test_a_covariance_that_is_none_is_named():
    with pytest.raises(UserError, match=r"not positive definite \(smallest eigenvalue -1"):
        _ = Belief.from_cov(MEAN, np.diag([1.0, 1.0, -1.0])).precision
