"""What the point-estimate models share: the reduced problem, deterministic starts, one compiled trainer.

A model of this family is a `Link`: how parameters give φ over the reduced items and everybody's coefficients,
and what is penalised. All lower the same objective by L-BFGS,

    F(params) = −Σ_n a_n log P(y_n | w_{u(n)} · Δφ_n) + penalty(params, scales)

from a start made of the data alone (no random numbers), so that a fit depends neither on the order of people
nor on a rotation of the embeddings.

Letters in shapes: I items, P reduced width, K outputs, U people, N comparisons, Q width of a prompt's vector.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
from jaxtyping import Array, Float
from sklearn.cluster import KMeans

from rewards.basis import likelihood, users
from rewards.basis.belief import Belief
from rewards.basis.fit import checked_weight
from rewards.basis.joint import Comparisons
from rewards.basis.reduce import Reduction, whitened_components
from rewards.errors import UserError
from rewards.methods.base import ItemTable, OnRound
from rewards.methods.rules import GaussianRule
from rewards.types import Preferences

CHUNK_STEPS = 25  # steps a compiled call; between calls the callback hears of the progress

Count = Annotated[int, pydantic.Field(ge=1, le=1_000_000)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Positive = Annotated[float, pydantic.Field(gt=0, le=1e9)]
NotNegative = Annotated[float, pydantic.Field(ge=0, le=1e9)]
Lapse = Annotated[float, pydantic.Field(ge=0, lt=1)]
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Reduced:
    """Settings that every point-estimate model has.

    Attributes:
      dims: principal components of the embeddings used.
      whitening: α, 1 gives every component the same variance, 0 leaves their variances as they are.
      ridge: inverse prior variance of a reward direction per component coordinate (nats⁻²).
      lapse: ε, share of answers taken to be coin flips.
    """

    dims: Count = 32
    whitening: Share = 1.0
    ridge: Positive = 3.0
    lapse: Lapse = 0.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """Training comparisons over reduced items.

    Attributes:
      used: items in comparisons; prompts[len(used)] their prompts; reduction: their coordinates.
      weight[N]: how much each comparison counts; answers[U]: the sum of a person's weights.
      data: the same for compiled code; indices point into `data.items`.
      prompt_embeddings: float[P, D] of the table; None when the encoder gave none.
    """

    table: ItemTable
    training: Preferences
    used: np.ndarray
    prompts: np.ndarray
    reduction: Reduction
    weight: np.ndarray
    answers: np.ndarray
    data: Comparisons[np.ndarray]

    @property
    def prompt_embeddings(self) -> np.ndarray | None:
        return self.table.prompt_embeddings

    @property
    def delta(self) -> Float[np.ndarray, "N P"]:
        items = np.asarray(self.data.items)
        return items[self.data.chosen] - items[self.data.rejected]


def build(
    table: ItemTable, training: Preferences, settings: Reduced, weight: Float[np.ndarray, " N"] | None
) -> Problem:
    """Reduce the embeddings of the items in comparisons.

    Raises:
      UserError: embeddings or weights that do not fit, no untied comparison, embeddings that do not differ.
    """
    weight = checked_weight(training, weight)
    if np.ndim(table.embeddings) != 2 or len(table.embeddings) != training.num_items:
        raise UserError(
            f"embeddings: shape {np.shape(table.embeddings)}, but {training.source} has {training.num_items} "
            "items; give one row an item"
        )
    if not np.any((training.outcome != 0.5) & (weight > 0)):
        raise UserError(
            f"{training.source}: all {training.num_comparisons} comparisons are ties or have weight 0; "
            "nothing can be learned"
        )
    used = np.unique(np.concatenate([training.chosen, training.rejected]))
    prompts = training.item_prompt[used]
    reduction = whitened_components(
        np.asarray(table.embeddings)[used], prompts, settings.dims, settings.whitening
    )
    local = np.zeros(training.num_items, np.int32)
    local[used] = np.arange(len(used))
    data = Comparisons(
        reduction.coordinates.astype(np.float32),
        training.user_index.astype(np.int32),
        local[training.chosen],
        local[training.rejected],
        training.outcome.astype(np.float32),
        weight,
    )
    answers = np.bincount(training.user_index, weight, minlength=training.num_users)
    return Problem(table, training, used, prompts, reduction, weight, answers, data)


@dataclasses.dataclass(frozen=True)
class Link:
    """A model for the trainer; functions at module level, so that equal links share a compiled program.

    Attributes:
      features: (params, items[I, P], context) → φ[I, K].
      coefficients: (params) → w[U, K].
      penalty: (params, scales) → nats; scales is a dict of numbers.
    """

    features: Callable[..., Float[Array, "I K"]]
    coefficients: Callable[..., Float[Array, "U K"]]
    penalty: Callable[..., Float[Array, ""]]


def minimise(
    link: Link,
    params: Any,
    data: Comparisons[np.ndarray],
    scales: dict[str, float],
    *,
    steps: int,
    context: Any = None,
    on_round: OnRound | None = None,
) -> tuple[Any, dict[str, float]]:
    """Lower F from `params` by `steps` iterations of L-BFGS; returns (params, metrics).

    Args:
      scales: `lapse`, and what the penalty needs.
      context: what the features need besides the items (prompts' vectors), or None.
    Raises:
      UserError: the objective is not finite.
    """
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    traced = {name: np.float32(value) for name, value in scales.items()}
    placed = Comparisons(*map(jax.device_put, data))
    solver_state = _solver().init(params)
    metrics: dict[str, float] = {}
    for number in range(-(-steps // CHUNK_STEPS)):
        params, solver_state, values = _descend(link, params, solver_state, placed, traced, context)
        metrics = {name: float(value) for name, value in values.items()}
        if not np.isfinite(metrics["objective"]):
            raise UserError(
                f"reward model: the objective is {metrics['objective']} after {(number + 1) * CHUNK_STEPS} "
                "steps; raise ridge"
            )
        if on_round:
            on_round(number, metrics)
    return jax.tree.map(np.asarray, params), metrics


def _solver() -> optax.GradientTransformationExtraArgs:
    return optax.lbfgs(memory_size=10)


@functools.partial(jax.jit, static_argnames=("link",))
def _descend(link: Link, params, solver_state, data: Comparisons[Array], scales, context):
    def loss_nats(params):
        phi = link.features(params, data.items, context)
        coef = link.coefficients(params)
        margin = jnp.sum(coef[data.user] * (phi[data.chosen] - phi[data.rejected]), axis=1)
        nll = likelihood.negative_log_likelihood(margin, data.outcome, scales["lapse"])
        return jnp.sum(data.weight * nll)

    def loss(params):
        return loss_nats(params) + link.penalty(params, scales)

    solver = _solver()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    (params, solver_state), _ = jax.lax.scan(step, (params, solver_state), None, length=CHUNK_STEPS)
    metrics = {"objective": loss(params), "loss_nats": loss_nats(params) / jnp.sum(data.weight)}
    return params, solver_state, metrics


def linear_features(params, items, context):
    """φ = Vᵀ x."""
    return items @ params["directions"]


# ---------------------------------------------------------------------------------------------------- starts


def pooled_direction(problem: Problem, ridge: float, lapse: float, weight=None) -> Float[np.ndarray, " P"]:
    """One θ for everybody: ridge logistic regression with weights a_n (`problem.weight` by default)."""
    weight = problem.weight if weight is None else weight
    width = problem.reduction.rank
    rule = GaussianRule(np.zeros(width), ridge * np.eye(width), lapse)
    coef, _ = rule(problem.delta[None], problem.data.outcome[None], np.asarray(weight)[None])
    return coef[0]


def person_directions(
    problem: Problem, mean: Float[np.ndarray, " P"], ridge: float, lapse: float
) -> Float[np.ndarray, "U P"]:
    """Everybody's own direction, MAP under N(mean, I / ridge), from their answers alone."""
    prior = Belief.from_cov(np.asarray(mean, np.float32), np.eye(len(mean), dtype=np.float32) / ridge)
    own, _ = users.posteriors(
        prior,
        problem.data.user,
        problem.delta,
        problem.data.outcome,
        num_users=problem.training.num_users,
        lapse=lapse,
        weight=problem.weight,
    )
    return own


def leading(rows: Float[np.ndarray, "U P"], count: int) -> Float[np.ndarray, "P K"]:
    """The first `count` right singular vectors as columns, from the P × P moments."""
    _, _, vectors = np.linalg.svd(rows.T @ rows)
    return vectors[:count].T


def centres(points: Float[np.ndarray, "U P"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` cluster centres of the points and everybody's cluster: k-means from points far apart.

    The first is the point farthest from the mean, each next one farthest from those chosen (Gonzalez 1985), so
    the result does not depend on the order of points. Fewer centres than asked when points coincide.
    """
    points = np.asarray(points, np.float64)
    distance = np.linalg.norm(points - points.mean(axis=0), axis=1)
    chosen: list[int] = []
    while len(chosen) < count and distance.max() > 1e-9:
        chosen.append(int(np.argmax(distance)))
        away = np.linalg.norm(points - points[chosen[-1]], axis=1)
        distance = away if len(chosen) == 1 else np.minimum(distance, away)
    if len(chosen) < 2:
        return points.mean(axis=0, keepdims=True), np.zeros(len(points), int)
    fitted = KMeans(len(chosen)).set_params(init=points[chosen], n_init=1).fit(points)
    return fitted.cluster_centers_, np.asarray(fitted.labels_)


def simplex_start(
    problem: Problem, count: int, ridge: float, lapse: float
) -> tuple[Float[np.ndarray, "P K"], Float[np.ndarray, "U K"]]:
    """Directions whose hull holds most people's own directions, and logits of everybody's shares.

    People's directions are denoised by their first `count` singular vectors (people weighted by the root of
    their answers), clustered, and the centres moved outwards by half, since centres lie inside the hull.
    """
    pooled = pooled_direction(problem, ridge, lapse)
    own = person_directions(problem, pooled, ridge, lapse)
    if count == 1:
        return pooled[:, None], np.zeros((len(own), 1))
    present = problem.answers > 0
    plane = leading(own * np.sqrt(problem.answers)[:, None], min(count, own.shape[1]))
    points = own @ plane
    middle = points[present].mean(axis=0)
    found, _ = centres(points[present], count)
    corners = np.tile(middle, (count, 1))
    corners[: len(found)] += 1.5 * (found - middle)
    distance = np.sum((points[:, None] - corners) ** 2, axis=2)
    logits = -0.5 * distance / max(float(distance.min(axis=1).mean()), 1e-6)
    return plane @ corners.T, np.clip(logits - logits.mean(axis=1, keepdims=True), -3.0, 3.0)
