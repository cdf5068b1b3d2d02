"""Honest uncertainty about a person: how much wider than Laplace's, or samples instead.

The posterior under a logistic likelihood is skewed, so Laplace's 95 % regions cover less than 95 %. Two cures:

    scaled    w ~ N(ŵ, c(n) H⁻¹); c(n) is the ratio of quantiles, Q_.95[d²] / χ²_.95, of d² = (w − ŵ)ᵀH(w − ŵ)
              over people whose coefficients are known, after n answers; one c for regions of all of w (χ²_K) and
              one for intervals of single margins w·v (χ²_1)
    sampled   elliptical slice sampling of the exact posterior, batched over people

Whose coefficients are known? Nobody's, in data. So `fit_scale` draws people from the fitted population and has
them answer the pairs that the training people answered: it corrects the approximation, not a wrong model.
`reliability` compares predictions with held-out answers of real people, which a wrong model cannot pass.

Letters in shapes: U people, n answers (padded), T margins, K basis outputs, S samples.
Source: elliptical slice sampling, Murray, Adams & MacKay 2010; around another Gaussian than the prior,
Nishihara, Murray & Adams 2014.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rewards.basis import likelihood, users
from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.files import JSONObject

LEVEL = 0.95
PROPOSAL_SHARE = 0.3
BURN_IN = 50
MAX_SHRINKS = 32  # of the slice's bracket, by about a half each


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Scale of a Laplace covariance by number of answers, for regions at `level`.

    Attributes:
      counts: increasing numbers of answers at which the scales were fitted; between them they are interpolated,
        beyond them held.
      region: c(n) for the ellipsoid of all coefficients.
      margin: c(n) for intervals of single margins.
    """

    counts: tuple[int, ...]
    region: tuple[float, ...]
    margin: tuple[float, ...]
    level: float = LEVEL

    def scaled(self, posterior: Belief, *, of: str = "region") -> Belief:
        """The posterior with its covariance multiplied by c(n); `of` is "region" or "margin".

        Without answers the Laplace posterior is the prior, which is exact: c(0) = 1.
        """
        if posterior.num_answers == 0:
            return posterior
        scale = np.interp(posterior.num_answers, self.counts, getattr(self, of))
        precision = np.float32(posterior.precision / np.float32(scale))
        return Belief.from_precision(posterior.mean, precision, posterior.num_answers)

    def to_json(self) -> JSONObject:
        return {name: list(getattr(self, name)) for name in ("counts", "region", "margin")} | {
            "level": self.level
        }

    @classmethod
    def from_json(cls, value: JSONObject, place: str) -> "Calibration":
        """Raises UserError, naming `place`, for anything that `to_json` does not write."""
        try:
            lists = [tuple(value[name]) for name in ("counts", "region", "margin")]
            level = float(value["level"])
            numbers = all(np.isfinite(part).all() and len(part) == len(lists[0]) > 0 for part in lists)
            right = numbers and 0 < level < 1 and min(lists[1]) > 0 and min(lists[2]) > 0
            right = right and all(a < b for a, b in zip(lists[0], lists[0][1:], strict=False))
        except (TypeError, KeyError, ValueError):
            right = False
        if not right:
            raise UserError(f"{place}: calibration is damaged; fit the rewards again")
        counts, region, margin = lists
        return cls(counts, region, margin, level)


def _chi2(level: float, dims: int) -> float:
    """Quantile of χ² with `dims` degrees of freedom."""
    from scipy.stats import chi2  # a second to import: a question needs none

    return float(chi2.ppf(level, dims))


def fit_scale(
    prior: Belief,
    delta: Float[np.ndarray, "U n K"],
    margins: Float[np.ndarray, "T K"],
    counts: tuple[int, ...],
    *,
    key: Key[Array, ""],
    lapse: float = 0.0,
    level: float = LEVEL,
) -> Calibration:
    """Scales from people drawn from the population who answer given pairs.

    Args:
      delta: Δφ of the pairs that U people answered, in order; each is answered by a person drawn from the prior.
      margins: Δφ of pairs whose margins the intervals are about.
      counts: numbers of answers to fit at, each at most n.
    Raises:
      UserError: a count beyond the answers given.
    """
    delta = np.asarray(delta, np.float32)
    if not 0 < min(counts) <= max(counts) <= delta.shape[1]:
        raise UserError(
            f"calibration: counts {counts} must be from 1 to {delta.shape[1]}, the answers of a person"
        )
    coef_key, answer_key = jax.random.split(key)
    coef = prior.sample(coef_key, len(delta))
    answers = draw_answers(coef, delta, answer_key, lapse)
    scales = []
    for count in sorted(counts):
        weight = np.broadcast_to(np.arange(delta.shape[1]) < count, answers.shape).astype(np.float32)
        mean, precision = users.laplace(
            np.float32(prior.mean), prior.precision, delta, answers, weight, np.float32(lapse)
        )
        scales.append(scale_of(coef, np.asarray(mean), np.asarray(precision), margins, level))
    region, margin = zip(*scales, strict=True)
    return Calibration(tuple(sorted(counts)), region, margin, level)


def scale_of(
    coef: Float[np.ndarray, "U K"],
    coef_mean: Float[np.ndarray, "U K"],
    coef_precision: Float[np.ndarray, "U K K"],
    margins: Float[np.ndarray, "T K"],
    level: float = LEVEL,
) -> tuple[float, float]:
    """(region, margin) scales that make the coverage over these people exactly `level`."""
    whole, single = _distances(coef, coef_mean, coef_precision, margins)
    return (
        float(np.quantile(whole, level) / _chi2(level, coef.shape[1])),
        float(np.quantile(single, level) / _chi2(level, 1)),
    )


def coverage(
    coef: Float[np.ndarray, "U K"],
    coef_mean: Float[np.ndarray, "U K"],
    coef_precision: Float[np.ndarray, "U K K"],
    margins: Float[np.ndarray, "T K"],
    level: float = LEVEL,
) -> dict[str, float]:
    """Share of true coefficients inside the ellipsoid, and of true margins inside their intervals."""
    whole, single = _distances(coef, coef_mean, coef_precision, margins)
    return {
        "region": float(np.mean(whole <= _chi2(level, coef.shape[1]))),
        "margin": float(np.mean(single <= _chi2(level, 1))),
    }


def sampled_coverage(
    coef: Float[np.ndarray, "U K"],
    samples: Float[np.ndarray, "U S K"],
    margins: Float[np.ndarray, "T K"],
    level: float = LEVEL,
) -> dict[str, float]:
    """The same for samples: ellipsoids and central intervals that hold `level` of them.

    The shape of an ellipsoid comes from one half of the samples and its size from the other: an ellipsoid fitted and
    sized on the same few samples is too small.
    """
    shaping, sizing = np.array_split(samples, 2, axis=1)
    mean = shaping.mean(axis=1)
    centred = shaping - mean[:, None]
    precision = np.linalg.inv(np.einsum("usk,usl->ukl", centred, centred) / shaping.shape[1])
    around = sizing - mean[:, None]
    inside = np.einsum("usk,ukl,usl->us", around, precision, around, optimize=True)
    whole = np.einsum("uk,ukl,ul->u", coef - mean, precision, coef - mean)
    drawn = np.einsum("usk,tk->ust", samples, margins)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2), axis=1)
    true = coef @ np.asarray(margins).T
    return {
        "region": float(np.mean(whole <= np.quantile(inside, level, axis=1))),
        "margin": float(np.mean((true >= low) & (true <= high))),
    }


@functools.partial(jax.jit, static_argnames="steps")
def sample(
    prior_mean: Float[Array, " K"],
    prior_precision: Float[Array, "K K"],
    delta: Float[Array, "U n K"],
    outcome: Float[Array, "U n"],
    weight: Float[Array, "U n"],
    lapse: Float[Array, ""],
    key: Key[Array, ""],
    *,
    steps: int = 1000,
) -> Float[Array, "U steps K"]:
    """Samples of every person's exact posterior, after `BURN_IN` steps from Laplace's mean.

    Elliptical slice sampling around N(ŵ, (Σ⁻¹ + 0.3 (H − Σ⁻¹))⁻¹) instead of the prior: between the prior, whose
    tails are safe and which mixes slowly after many answers, and Laplace, which mixes well but hardly visits the
    long tail of a skewed posterior. No step size.
    """
    identity = jnp.eye(delta.shape[-1])

    def person(delta, outcome, weight, key):
        mean, hessian = users.newton(prior_mean, prior_precision, delta, outcome, weight, lapse)
        # Only a share of what the answers tell: Laplace's own tails are too light on the flat side of the likelihood.
        proposal = prior_precision + PROPOSAL_SHARE * (hessian - prior_precision)
        root = jnp.linalg.cholesky(jnp.linalg.inv(proposal) + 1e-9 * identity)

        def residual(z):
            """log posterior − log proposal at w = mean + root z, up to a constant."""
            coef = mean + root @ z
            nll = likelihood.negative_log_likelihood(delta @ coef, outcome, lapse)
            deviation = coef - prior_mean
            return 0.5 * z @ z - jnp.sum(weight * nll) - 0.5 * deviation @ prior_precision @ deviation

        def step(z, drawn):
            other, height, angle, shares = drawn
            height = residual(z) + jnp.log(height)

            def rejected(carry):
                angle, _, _, tries = carry
                at = z * jnp.cos(angle) + other * jnp.sin(angle)
                # An angle of 0 is always accepted; the bracket shrinks to it geometrically.
                return (residual(at) < height) & (tries < MAX_SHRINKS)

            def shrink(carry):
                angle, low, high, tries = carry
                low, high = jnp.where(angle < 0, angle, low), jnp.where(angle < 0, high, angle)
                return low + shares[tries] * (high - low), low, high, tries + 1

            angle, *_, tries = jax.lax.while_loop(rejected, shrink, (angle, angle - 2 * jnp.pi, angle, 0))
            angle = jnp.where(tries < MAX_SHRINKS, angle, 0.0)
            z = z * jnp.cos(angle) + other * jnp.sin(angle)
            return z, mean + root @ z

        total = BURN_IN + steps
        normal_key, height_key, angle_key, shrink_key = jax.random.split(key, 4)
        # Drawn before the loop: a random number generator inside it would be most of its time.
        drawn = (
            jax.random.normal(normal_key, (total, mean.shape[0])),
            jax.random.uniform(height_key, (total,), minval=1e-20),
            jax.random.uniform(angle_key, (total,), maxval=2 * jnp.pi),
            jax.random.uniform(shrink_key, (total, MAX_SHRINKS)),
        )
        _, coefs = jax.lax.scan(step, jnp.zeros_like(mean), drawn)
        return coefs[BURN_IN:]

    return jax.vmap(person)(delta, outcome, weight, jax.random.split(key, delta.shape[0]))


def reliability(
    margin_mean: Float[np.ndarray, " N"],
    margin_var: Float[np.ndarray, " N"],
    outcome: Float[np.ndarray, " N"],
    *,
    lapse: float = 0.0,
    bins: int = 10,
) -> list[dict[str, float]]:
    """Predicted against observed share of held-out answers, in bins of predicted probability of equal size.

    The prediction averages σ over the margin's uncertainty, so overconfidence shows as predictions more extreme
    than what is observed. Ties count half.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    margins = np.asarray(margin_mean)[:, None] + np.sqrt(np.asarray(margin_var))[:, None] * nodes
    log_p = np.asarray(likelihood.log_probability(margins.astype(np.float32), np.float32(lapse)))
    predicted = np.exp(log_p) @ weights / weights.sum()
    return [
        {
            "predicted": float(predicted[part].mean()),
            "observed": float(np.asarray(outcome)[part].mean()),
            "answers": len(part),
        }
        for part in np.array_split(np.argsort(predicted, kind="stable"), bins)
        if len(part)
    ]


def draw_answers(
    coef: Float[np.ndarray, "U K"], delta: Float[np.ndarray, "U n K"], key: Key[Array, ""], lapse: float = 0.0
) -> Float[np.ndarray, "U n"]:
    """Answers (1 or 0) of people with these coefficients."""
    margin = np.einsum("unk,uk->un", delta, coef).astype(np.float32)
    p = np.exp(np.asarray(likelihood.log_probability(margin, np.float32(lapse))))
    return (np.asarray(jax.random.uniform(key, p.shape)) < p).astype(np.float32)


def _distances(coef, coef_mean, coef_precision, margins) -> tuple[np.ndarray, np.ndarray]:
    """d² of all of w [U], and of every margin [U, T]."""
    error = np.asarray(coef, np.float64) - coef_mean
    precision = np.asarray(coef_precision, np.float64)
    whole = np.einsum("uk,ukl,ul->u", error, precision, error)
    margins = np.asarray(margins, np.float64)
    # Two texts with the same features have a margin of 0, known without error; with no others, the axes themselves.
    told_apart = np.linalg.norm(margins, axis=1) > 1e-6
    margins = margins[told_apart] if told_apart.any() else np.eye(error.shape[1])
    variance = np.einsum("tk,ukl,tl->ut", margins, np.linalg.inv(precision), margins, optimize=True)
    return whole, (error @ margins.T) ** 2 / variance
