"""From a person's answers to their coefficients: the four rules of linear models.

    GaussianRule   MAP under N(mean, precision⁻¹): house, offset; with mean 0 the ridge-MLE of PReF and RFM
    HullRule       w = Σ_v a_v vertex_v, a on the simplex: LoRe, PAL
    GroupRule      w = Σ_g p(g | answers) vertex_g: mixtures of experts
    FixedRule      everybody has the same w: aggregate Bradley–Terry

A rule is called with Δφ[U, n, K] in the canonical gauge, outcomes and weights [U, n] and returns coefficients
[U, K] with their precision [U, K, K]. People are computed in padded blocks, so a new person or another answer
reuses a compiled program.

Letters in shapes: U people, n answers, K basis outputs, V vertices (prototypes, groups).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from rewards.basis import likelihood, named, users
from rewards.errors import UserError
from rewards.files import JSONObject

MAX_PEOPLE = 1024  # people a call; bounds the padded arrays
HULL_STEPS = 400

Result = tuple[Float[np.ndarray, "U K"], Float[np.ndarray, "U K K"]]


@dataclasses.dataclass(frozen=True)
class GaussianRule:
    """argmin_w −Σ_i a_i log P(y_i | w·v_i) + ½ (w − mean)ᵀ precision (w − mean), the Laplace posterior."""

    mean: np.ndarray
    precision: np.ndarray
    lapse: float = 0.0

    def __call__(self, delta, outcome, weight) -> Result:
        mean, precision, lapse = _f32(self.mean), _f32(self.precision), np.float32(self.lapse)
        return _in_blocks(
            lambda *block: users.laplace(mean, precision, *block, lapse), delta, outcome, weight
        )


@dataclasses.dataclass(frozen=True)
class HullRule:
    """w = vertexᵀ a, a = argmin over the simplex of −Σ_i a_i log P(y_i | w·v_i) + ½ anchor |a − start|².

    A convex problem (without a lapse). `start` is the mean of the training people and what no answers give;
    `anchor` 0 is the unpenalised fit of the papers.
    """

    vertices: np.ndarray
    start: np.ndarray
    precision: np.ndarray
    anchor: float
    lapse: float = 0.0

    def __call__(self, delta, outcome, weight) -> Result:
        arrays = tuple(map(_f32, (self.vertices, self.start, self.precision)))
        scalars = np.float32(self.anchor), np.float32(self.lapse)
        return _in_blocks(lambda *block: _hull(*arrays, *scalars, *block), delta, outcome, weight)


@dataclasses.dataclass(frozen=True)
class GroupRule:
    """w = Σ_g p(g | answers) vertex_g with p(g) = exp(log_share_g): the posterior mean over groups."""

    vertices: np.ndarray
    log_share: np.ndarray
    precision: np.ndarray
    lapse: float = 0.0

    def __call__(self, delta, outcome, weight) -> Result:
        arrays = tuple(map(_f32, (self.vertices, self.log_share, self.precision)))
        return _in_blocks(
            lambda *block: _group(*arrays, np.float32(self.lapse), *block), delta, outcome, weight
        )


@dataclasses.dataclass(frozen=True)
class FixedRule:
    """The same w for everybody, whatever they answer."""

    mean: np.ndarray
    precision: np.ndarray
    lapse: float = 0.0

    def __call__(self, delta, outcome, weight) -> Result:
        people = len(delta)
        return np.tile(_f32(self.mean), (people, 1)), np.tile(_f32(self.precision), (people, 1, 1))


Rule = GaussianRule | HullRule | GroupRule | FixedRule
"""Answers → coefficients and precision; without answers the precision is `precision`."""


@jax.jit
def _hull(vertices, start, precision, anchor, lapse, delta, outcome, weight):
    def one(delta, outcome, weight):
        margins = delta @ vertices.T
        shares = _simplex_fit(margins, outcome, weight, start, anchor, lapse)
        coef = shares @ vertices
        return coef, precision + _information(delta, coef, weight, lapse)

    return jax.vmap(one)(delta, outcome, weight)


def _simplex_fit(
    margins: Float[Array, "n V"], outcome, weight, start: Float[Array, " V"], anchor, lapse
) -> Float[Array, " V"]:
    """Accelerated projected gradient with restarts; the step is 1 / a bound on the curvature (σ′ ≤ ¼).

    Source: Beck & Teboulle 2009; restart by the gradient, O'Donoghue & Candès 2015. optax has the projection
    onto the simplex but no constrained solver.
    """
    gram = (margins * weight[:, None]).T @ margins
    step = 1.0 / (0.25 * jnp.max(jnp.sum(jnp.abs(gram), axis=1)) + anchor + 1e-6)

    def gradient(shares):
        return anchor * (shares - start) - margins.T @ (
            weight * likelihood.score(margins @ shares, outcome, lapse)
        )

    def turn(carry, _):
        shares, ahead, momentum = carry
        slope = gradient(ahead)
        new = optax.projections.projection_simplex(ahead - step * slope)
        restart = jnp.vdot(ahead - new, new - shares) > 0
        grown = jnp.where(restart, 1.0, 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2)))
        push = jnp.where(restart, 0.0, (momentum - 1.0) / grown)
        return (new, new + push * (new - shares), grown), None

    (shares, _, _), _ = jax.lax.scan(turn, (start, start, jnp.float32(1.0)), None, length=HULL_STEPS)
    return shares


@jax.jit
def _group(vertices, log_share, precision, lapse, delta, outcome, weight):
    def one(delta, outcome, weight):
        loss = likelihood.negative_log_likelihood(delta @ vertices.T, outcome[:, None], lapse)
        coef = jax.nn.softmax(log_share - weight @ loss) @ vertices
        return coef, precision + _information(delta, coef, weight, lapse)

    return jax.vmap(one)(delta, outcome, weight)


def _information(delta, coef, weight, lapse):
    curvature = weight * likelihood.fisher_information(delta @ coef, lapse)
    return (delta * curvature[:, None]).T @ delta


def _in_blocks(compiled: Callable[..., Any], delta, outcome, weight) -> Result:
    """Call in blocks of people, people padded to a power of two and answers to one of few lengths."""
    delta, outcome, weight = _f32(delta), _f32(outcome), _f32(weight)
    people, length, num_basis = delta.shape
    answers = users.bucket(length)
    parts = []
    for first in range(0, people, MAX_PEOPLE):
        block = slice(first, min(first + MAX_PEOPLE, people))
        count = block.stop - block.start
        size = 1 << (count - 1).bit_length()
        pad = ((0, size - count), (0, answers - length))
        packed = np.pad(delta[block], (*pad, (0, 0))), *(np.pad(x[block], pad) for x in (outcome, weight))
        parts.append([np.asarray(part)[:count] for part in compiled(*packed)])
    if not parts:
        return np.zeros((0, num_basis), np.float32), np.zeros((0, num_basis, num_basis), np.float32)
    mean, precision = (np.concatenate(part) for part in zip(*parts, strict=True))
    return mean, precision


RULES: dict[str, type] = {
    "gaussian": GaussianRule,
    "hull": HullRule,
    "group": GroupRule,
    "fixed": FixedRule,
}
_SHAPES = {
    "gaussian": {"mean": "K", "precision": "KK"},
    "hull": {"vertices": "VK", "start": "V", "precision": "KK"},
    "group": {"vertices": "VK", "log_share": "V", "precision": "KK"},
    "fixed": {"mean": "K", "precision": "KK"},
}


def turned(rule: Rule, by: named.Turn) -> Rule:
    """The same rule for coefficients w′ = Q w."""
    changed = {"precision": named.turned_cov(by, rule.precision)}
    own = "vertices" if isinstance(rule, HullRule | GroupRule) else "mean"
    return dataclasses.replace(rule, **changed, **{own: named.turned_coef(by, getattr(rule, own))})


def name_of(rule: Rule) -> str:
    return next(name for name, kind in RULES.items() if type(rule) is kind)


def arrays(rule: Rule) -> dict[str, np.ndarray]:
    """The arrays of a rule by name."""
    return {name: _f32(getattr(rule, name)) for name in _SHAPES[name_of(rule)]}


def scalars(rule: Rule) -> JSONObject:
    """Name and numbers of a rule, JSON; with the number of vertices for those that have some."""
    name = name_of(rule)
    numbers = {
        field.name: float(getattr(rule, field.name))
        for field in dataclasses.fields(rule)
        if field.name not in _SHAPES[name]
    }
    count = {"num_vertices": len(rule.vertices)} if isinstance(rule, HullRule | GroupRule) else {}
    return {"name": name} | numbers | count


def shapes(record: JSONObject, num_basis: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of the rule that `scalars` described."""
    size = {"K": num_basis, "V": record.get("num_vertices", 0)}
    return {name: tuple(size[axis] for axis in axes) for name, axes in _shapes_of(record).items()}


def restore(record: JSONObject, own: dict[str, np.ndarray]) -> Rule:
    """The inverse of `arrays` and `scalars`."""
    parts = {name: own[name] for name in _shapes_of(record)}
    numbers = {name: value for name, value in record.items() if name not in ("name", "num_vertices")}
    return RULES[record["name"]](**parts, **numbers)


def _shapes_of(record: JSONObject) -> dict[str, str]:
    if record["name"] not in _SHAPES:
        raise UserError(
            f"reward model: rule {record['name']!r} is unknown; this version knows {', '.join(RULES)}"
        )
    return _SHAPES[record["name"]]


def _f32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
