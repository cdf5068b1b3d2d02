"""What is believed about a person, or about the population: N(mean, cov) over coefficients.

A belief keeps the matrix it was made from and inverts it when the other one is asked for, so that neither loses digits
by going back and forth. Inverses are computed in float64 on the host; inside a compiled program, in its own precision.

Letters in shapes: K basis outputs, M directions, S samples.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from rewards.errors import UserError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "matrix"],
    meta_fields=["given", "num_answers"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Belief:
    """A Gaussian over the coefficients of one person, in the canonical gauge. Made by `from_cov`, `from_precision`.

    Attributes:
      mean: ŵ or μ, [K], nats a unit of φ.
      matrix: [K, K], the covariance or the precision, as `given` says.
      num_answers: how many answers of the person it rests on; 0 for a population. Static under jit.
    """

    mean: np.ndarray
    matrix: np.ndarray
    given: Literal["cov", "precision"]
    num_answers: int = 0

    @classmethod
    def from_cov(cls, mean: ArrayLike, cov: ArrayLike, num_answers: int = 0) -> "Belief":
        """N(mean, cov), mean[K] and cov[K, K] kept as they are."""
        return cls(mean, cov, "cov", num_answers)  # pyright: ignore[reportArgumentType]  NumPy's or JAX's

    @classmethod
    def from_precision(cls, mean: ArrayLike, precision: ArrayLike, num_answers: int = 0) -> "Belief":
        """N(mean, precision⁻¹), mean[K] and precision[K, K] kept as they are."""
        return cls(mean, precision, "precision", num_answers)  # pyright: ignore[reportArgumentType]  NumPy's or JAX's

    @property
    def cov(self) -> np.ndarray:
        """[K, K]; float64 on the host when it is an inverse."""
        return self.matrix if self.given == "cov" else _plain_inverse(self.matrix)

    @property
    def precision(self) -> np.ndarray:
        """[K, K]; on the host, when it is an inverse, symmetric float32.

        Raises:
          UserError: the covariance is not positive definite.
        """
        if self.given == "precision":
            return self.matrix
        if isinstance(self.matrix, Tracer):
            return _plain_inverse(self.matrix)
        cov = np.asarray(self.matrix, np.float64)
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(cov))
        except np.linalg.LinAlgError:
            smallest = float(np.linalg.eigvalsh(cov).min())
            raise UserError(
                f"group prior: covariance is not positive definite (smallest eigenvalue {smallest:.3g}); "
                "refit the basis, or choose fewer outputs (num_basis)"
            ) from None
        return (inverse.T @ inverse).astype(np.float32)

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation along every axis, [K]."""
        if isinstance(self.matrix, Tracer):
            return jnp.sqrt(jnp.diagonal(self.cov))  # pyright: ignore[reportReturnType]
        return np.sqrt(np.diag(self.cov))

    def margins(self, directions: Float[ArrayLike, "M K"]) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
        """Mean and standard deviation of w·v for every direction v, nats. Traceable."""
        directions, cov = jnp.asarray(directions), jnp.asarray(self.cov)
        variance = jnp.sum((directions @ cov) * directions, axis=1)
        return directions @ self.mean, jnp.sqrt(jnp.maximum(variance, 0.0))

    def sample(self, key: Key[Array, ""], count: int) -> Float[np.ndarray, "S K"]:
        """`count` vectors of coefficients, float32, on the host."""
        noise = np.asarray(jax.random.normal(key, (count, len(self.mean))))
        root = np.linalg.cholesky(np.asarray(self.cov, np.float64))
        return (np.asarray(self.mean) + noise @ root.T).astype(np.float32)


def _plain_inverse(matrix: np.ndarray) -> np.ndarray:
    if isinstance(matrix, Tracer):
        return jnp.linalg.inv(matrix)  # pyright: ignore[reportReturnType]
    return np.linalg.inv(np.asarray(matrix, np.float64))
