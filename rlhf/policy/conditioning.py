"""From a person's coefficients to the policy's conditioning signal, at one place: the gate.

    w̃     = nearest coefficients within the rails   (`rewards.basis.projection`; w without rails), μ̃ likewise of μ
    w_eff = (β w̃ + η μ̃) / (β + η)                   the aggregate-prior term, as shrinkage of coefficients
    z     = Σ^(-1/2) (w_eff − μ̃)                    z = 0 is the aggregate policy, within the rails as everybody

The optimum of E[w·φ] − β KL(π‖π_ref) − η KL(π‖π_agg) is π_ref tilted by w_eff at temperature β, so that term lives
here, once, and is exact, free and reported (ρ = η/(β+η)). Training, sampling, evaluation, export and the commands about
people all pass through `Gate`; what must hold for everybody's z has its place there. The rails are convex and hold at μ̃,
so they hold for w_eff as well; and because the origin of z is μ̃, also where nobody is named (no z at all).

Shapes: B rows, K basis outputs, U users.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from pydantic import Field, model_validator

from rewards.basis import projection
from rewards.basis.belief import Belief
from rewards.basis.projection import Limits
from rewards.basis.rails import Rails, check_basis, from_json
from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.models.layout import HostOrDevice
from rlhf.run.config.unread import Unread
from rlhf.run.record import record


@record
class RailConfig:
    """The aggregate-prior rail."""

    eta: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Weight η of KL(π‖π_agg): coefficients shrink to (βw + ημ)/(β+η); 0 means no rail.",
    )


@record
class UsersMixConfig:
    """Whose coefficients a training row gets. The four shares sum to 1."""

    posterior: float = Field(
        default=0.5, ge=0, le=1, description="Share drawn from the posteriors of training people."
    )
    prior: float = Field(default=0.3, ge=0, le=1, description="Share drawn from the prior N(μ, Σ).")
    extremes: float = Field(
        default=0.1, ge=0, le=1, description="Share at μ ± extreme_sd standard deviations along one axis."
    )
    generic: float = Field(default=0.1, ge=0, le=1, description="Share at μ itself, the aggregate user.")
    extreme_sd: float = Field(
        default=2.0,
        gt=0,
        le=1e3,
        description="Distance of the extremes from μ, in prior standard deviations.",
    )

    def unread(self) -> Iterator[Unread]:
        if self.extremes == 0:
            yield Unread(["extreme_sd"], "extremes", "users.extremes 0")

    @model_validator(mode="after")
    def _shares(self):
        total = self.posterior + self.prior + self.extremes + self.generic
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"posterior + prior + extremes + generic must be 1, not {total:g}")
        return self


class Conditioning(NamedTuple):
    """The population as the policy sees it: mean[K], symmetric cov_sqrt[K, K] and its inverse, and its rails."""

    mean: np.ndarray
    cov_sqrt: np.ndarray
    inverse_sqrt: np.ndarray
    limits: Limits | None = None

    @classmethod
    def from_prior(cls, prior: Belief, rails: Rails | None = None, beta: float = 1.0) -> "Conditioning":
        """Symmetric square roots of Σ by eigendecomposition; β turns the nats of a trust region into a distance."""
        values, vectors = np.linalg.eigh(np.asarray(prior.cov, np.float64))
        root = np.sqrt(np.maximum(values, 1e-12))
        return cls(
            np.asarray(prior.mean, np.float32),
            ((vectors * root) @ vectors.T).astype(np.float32),
            ((vectors / root) @ vectors.T).astype(np.float32),
            None if rails is None else projection.limits(rails, prior, beta),
        )

    @property
    def origin(self) -> Float[HostOrDevice, " k"]:
        """μ̃[K]: whose policy z = 0 is."""
        return self.mean if self.limits is None else self.limits.origin


class Gate(NamedTuple):
    """The one way from coefficients to z: `gate(coef)`; `gate.compose(coef)` gives w_eff as well.

    Attributes:
      conditioning: the population and its rails. beta, eta: prices of KL to π_ref and to π_agg; numbers, or traced scalars.
    """

    conditioning: Conditioning
    beta: Float[Array, ""] | float
    eta: Float[Array, ""] | float

    @classmethod
    def of(cls, prior: Belief, beta: float, eta: float, rails: Rails | None = None) -> "Gate":
        """The gate of a population N(μ, Σ) under the prices and the rails of a training run."""
        return cls(Conditioning.from_prior(prior, rails, beta), beta, eta)

    @classmethod
    def from_record(cls, record: JSONObject, place: str) -> "Gate | None":
        """The gate that a policy's record describes; None for a policy without people.

        Args:
          record: contents of policy.json. place: its path, for messages.
        Raises:
          UserError: β or η are missing or outside their range, or the rails are damaged or of another basis; no z could be
            computed, or a wrong one would be.
        """
        prior = record.get("prior")
        if not prior:
            return None
        for name, lowest in (("beta", "> 0"), ("eta", "≥ 0")):
            value = record.get(name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
                or value < 0
                or (value == 0 and name == "beta")
            ):
                raise UserError(
                    f"{place}: {name} is {value!r}, must be a finite number {lowest}; restore the file or train again"
                )
        mean, cov = np.array(prior["mean"], np.float32), np.array(prior["cov"], np.float32)
        belief, beta, eta = Belief.from_cov(mean, cov), float(record["beta"]), float(record["eta"])
        # β may have moved in training; the trust region stayed where it began.
        began = float(record.get("trust_beta", beta))
        return cls(Conditioning.from_prior(belief, rails_of(record, place), began), beta, eta)

    def railed(self, coef: Float[HostOrDevice, "*b k"]) -> Float[HostOrDevice, "*b k"]:
        """w̃ of coefficients; themselves where there are no rails."""
        limits = self.conditioning.limits
        return coef if limits is None else projection.project(limits, coef)

    def compose(
        self, coef: Float[HostOrDevice, "*b k"]
    ) -> tuple[Float[HostOrDevice, "*b k"], Float[HostOrDevice, "*b k"]]:
        """(w_eff, z) of coefficients w; η = 0 leaves w̃ alone, η → ∞ gives everyone μ̃ and z = 0.

        Raises:
          ValueError: coefficients of another size, one of which would spread over all axes.
        """
        origin, inverse_sqrt = self.conditioning.origin, self.conditioning.inverse_sqrt
        if coef.shape[-1:] != origin.shape:
            raise ValueError(
                f"coefficients have shape {coef.shape}, the gate takes {origin.shape[0]} a person"
            )
        shrunk = (self.beta * self.railed(coef) + self.eta * origin) / (self.beta + self.eta)
        return shrunk, (shrunk - origin) @ inverse_sqrt

    def __call__(self, coef: Float[HostOrDevice, "*b k"]) -> Float[HostOrDevice, "*b k"]:
        """z of coefficients w."""
        return self.compose(coef)[1]

    def drawn(self, noise: Float[HostOrDevice, "*b k"]) -> Float[HostOrDevice, "*b k"]:
        """z of people of whom only a draw from N(0, I) is known: that draw, brought within the rails."""
        if self.conditioning.limits is None:
            return noise
        return self(self.conditioning.mean + noise @ self.conditioning.cov_sqrt)

    def checked(self, coef: ArrayLike) -> np.ndarray:
        """z float32[…, K] of coefficients that a user gave.

        Raises:
          UserError: not K finite numbers, or so large that nothing could be said of where the rails would take them.
        """
        num_basis = len(self.conditioning.mean)
        with np.errstate(over="ignore"):  # too large for float32: infinite, which is refused
            given = np.asarray(coef, np.float32)
        if given.shape[-1:] != (num_basis,) or not np.isfinite(given).all():
            raise UserError(
                f"coefficients: {np.array(coef).tolist()} must be {num_basis} finite numbers, one per basis output"
            )
        limits = self.conditioning.limits
        if limits is not None and not projection.within(limits, np.asarray(self.railed(given))).all():
            raise UserError(
                f"coefficients: {np.array(coef).tolist()} are too far from the population to be brought within the rails; "
                "give coefficients like those of `chorus users show`"
            )
        return np.asarray(self(given), np.float32)


def rail_metrics(conditioning: Conditioning, asked: Float[HostOrDevice, "b k"]) -> dict[str, jax.Array]:
    """How often the rails moved coefficients that were drawn, and how far: scalars, in prior standard deviations."""
    assert conditioning.limits is not None, "rails to be moved by"
    away = (projection.project(conditioning.limits, asked) - asked) @ conditioning.inverse_sqrt
    distance = jnp.linalg.norm(away, axis=1)
    return {"train/rails/moved_share": jnp.mean(distance > 1e-4), "train/rails/moved_sd": jnp.mean(distance)}


def rails_of(record: JSONObject, place: str) -> Rails | None:
    """The rails that a policy's record holds.

    Raises:
      UserError: they are damaged, or of another basis than the policy.
    """
    body, digest = record.get("rails"), record.get("rails_hash")
    if body is None and digest is None:
        return None
    found = None if body is None else from_json(body, place)
    if found is None or found.hash != digest:
        raise UserError(
            f"{place}: rails are not those of rails_hash {str(digest)[:12]}…, with which it was trained; "
            "restore the file or train again"
        )
    check_basis(found, str(record.get("basis")), record["names"], place)
    return found


POSTERIOR, PRIOR, EXTREME, GENERIC = range(4)


@dataclasses.dataclass(frozen=True)
class UserShares:
    """Which share of the rows is drawn for whom (static). They hold for every size of a batch, over a step and over the run.

    Attributes:
      posterior: a training person's posterior; prior: N(μ, Σ); extremes: ±sd along one axis of z; generic: w = μ.
    """

    posterior: float | int
    prior: float | int
    extremes: float | int
    generic: float | int

    @classmethod
    def of(cls, users: UsersMixConfig) -> "UserShares":
        return cls(users.posterior, users.prior, users.extremes, users.generic)

    def kinds(self, key: jax.Array, batch: int) -> Int[Array, " b"]:
        """Kind of every row, ascending: systematic sampling.

            u_i = (U + i)/B,   U uniform on [0, 1),   kind of row i: the share in which u_i falls

        Every step has each kind within one row of its share of B, and on average exactly: rounding to whole rows, which
        would turn 50/30/10/10 % of four rows into 25 % each, happens nowhere.
        """
        total = self.posterior + self.prior + self.extremes + self.generic
        edges = np.cumsum([self.posterior, self.prior, self.extremes]) / total
        edges = np.where(edges > 1 - 1e-6, 2.0, edges)  # rounding must not open a share of 0
        u = (jax.random.uniform(key) + jnp.arange(batch)) / batch
        return jnp.searchsorted(jnp.asarray(edges, jnp.float32), u, side="right").astype(jnp.int32)


class Population(NamedTuple):
    """What training coefficients are drawn from: the conditioning and the training people's posteriors.

    Attributes:
      conditioning: prior mean and square roots.
      user_mean: [U, K]; user_scale: [U, K, K], with user_scale·ε ~ N(0, H⁻¹).
      extreme_sd: how far out the axis extremes lie, in prior standard deviations.
    """

    conditioning: Conditioning
    user_mean: np.ndarray
    user_scale: np.ndarray
    extreme_sd: np.ndarray | np.float32

    @classmethod
    def from_posteriors(
        cls,
        prior: Belief,
        posteriors: list[Belief],
        extreme_sd: float,
        rails: Rails | None = None,
        beta: float = 1.0,
    ) -> "Population":
        means = np.stack([p.mean for p in posteriors]) if posteriors else prior.mean[None]
        covs = [p.cov for p in posteriors]
        scales = (
            np.stack([np.linalg.cholesky(cov) for cov in covs]) if covs else np.zeros((1, *prior.cov.shape))
        )
        return cls(
            Conditioning.from_prior(prior, rails, beta),
            means.astype(np.float32),
            scales.astype(np.float32),
            np.float32(extreme_sd),
        )


def coef_of_users(key: jax.Array, population: Population, user: HostOrDevice) -> Float[Array, "b k"]:
    """A draw from the posterior of each of the training people `user`[B]."""
    noise = jax.random.normal(key, (user.shape[0], population.user_mean.shape[1]))
    return population.user_mean[user] + jnp.einsum("bij,bj->bi", population.user_scale[user], noise)


def sample_coef(
    key: jax.Array, population: Population, shares: UserShares, batch: int
) -> Float[Array, "b k"]:
    """Coefficients for one micro-batch, in the order posterior, prior, extremes, generic."""
    kind_key, user_key, noise_key, prior_key, axis_key, sign_key = jax.random.split(key, 6)
    conditioning, num_basis = population.conditioning, population.user_mean.shape[1]
    kind = shares.kinds(kind_key, batch)[:, None]
    user = jax.random.randint(user_key, (batch,), 0, population.user_mean.shape[0])
    of_users = coef_of_users(noise_key, population, user)
    drawn = jax.random.normal(prior_key, (batch, num_basis))
    axis = jax.random.randint(axis_key, (batch,), 0, num_basis)
    sign = jax.random.rademacher(sign_key, (batch, 1), jnp.float32)
    extreme = sign * population.extreme_sd * jax.nn.one_hot(axis, num_basis)
    z = jnp.where(kind == PRIOR, drawn, jnp.where(kind == EXTREME, extreme, 0.0))
    return jnp.where(kind == POSTERIOR, of_users, conditioning.mean + z @ conditioning.cov_sqrt)
