"""Fit of the reward basis: comparisons of many people → φ, N(μ, Σ) and everyone's coefficients.

    1. embeddings → whitened coordinates within prompts (`reduce`),
    2. start: the pooled direction, then the SVD of every person's deviation from it,
    3. rounds of the joint objective (`joint`), each followed by empirical Bayes for μ, Σ and an
       exact return to the canonical gauge (`gauge`), so that shrinkage and steps always mean the same,
    4. width and number of outputs by the likelihood of people left out, after a few of their answers.

Letters in shapes: I items, D embedding width, P reduced width, K basis outputs, U users, N comparisons.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Annotated

import jax
import numpy as np
import pydantic

from rewards.basis import gauge, joint, users
from rewards.basis.belief import Belief
from rewards.basis.prior import empirical_bayes
from rewards.basis.readout import Readout
from rewards.basis.reduce import Reduction, whitened_components
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences, RewardBasis

OnRound = Callable[[int, dict[str, float]], None]
LEAST_TO_CHOOSE = 10
"""People with two comparisons below whom K and width are not chosen by people left out."""
_LOG = logging.getLogger("chorus")


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} stands in it twice; give every size once")
    return values


Count = Annotated[int, pydantic.Field(ge=1, le=100_000)]
Basis = Annotated[int, pydantic.Field(ge=1, le=1_000)]
_DISTINCT = (pydantic.Field(min_length=1), pydantic.AfterValidator(_distinct))
Counts = Annotated[tuple[Count, ...], *_DISTINCT]
Bases = Annotated[tuple[Basis, ...], *_DISTINCT]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class FitConfig:
    """Settings of `fit_basis`.

    Attributes:
      num_basis: K, or a list to choose from on held-out people.
      dims: principal components of the embeddings used, or a list to choose from.
      whitening: α, 1 gives every component the same variance, 0 leaves their variances as they are.
      ridge: λ, inverse prior variance of the reward per component coordinate (nats⁻²).
      lapse: ε, share of answers taken to be coin flips.
      shrinkage: τ, share of the way of Σ towards its diagonal, in the canonical gauge.
      rounds: rounds of the joint fit; half of them while K and width are chosen.
      steps: L-BFGS iterations in each round.
      held_out: share of people left out for the choice.
      adapt_answers: comparisons of a left-out person used to adapt; the others are predicted.
      marginalised: average the basis over everybody's uncertain coefficients; false fits it to their point
        estimates (joint MAP), which needs more answers a person.
      seed: seed of the choice of the people left out.
    """

    num_basis: Basis | Bases = (2, 4, 6)
    dims: Count | Counts = (8, 16, 32)
    whitening: Share = 1.0
    ridge: Annotated[float, pydantic.Field(gt=0, le=1e9)] = 10.0
    lapse: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    shrinkage: Share = 0.1
    rounds: Count = 20
    steps: Count = 10
    held_out: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.25
    adapt_answers: Count = 10
    marginalised: bool = True
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting tried: the loss of left-out people, nats a comparison, mean and error over people."""

    num_basis: int
    dims: int
    loss_nats: float
    loss_se: float
    chosen: bool = False


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A fitted basis in the canonical gauge.

    Attributes:
      coef_mean[U, K], coef_precision[U, K, K]: Laplace posteriors, in the order of the user table; people
        without comparisons hold the prior.
      candidates: what was tried in the choice of K and width, empty when both were given.
      metrics: numbers of the last round.
    """

    basis: RewardBasis
    prior: Belief
    coef_mean: np.ndarray
    coef_precision: np.ndarray
    candidates: tuple[Candidate, ...]
    metrics: dict[str, float]


def fit_basis(
    prefs: Preferences,
    embeddings: np.ndarray,
    config: FitConfig,
    *,
    encoder: JSONObject,
    encoder_hash: str = "",
    weight: np.ndarray | None = None,
    on_round: OnRound | None = None,
) -> FitResult:
    """Fit φ and the population on all comparisons of `prefs` (select the training people first).

    Outcomes may be soft, anything from 0 to 1: the probability that the attitude is for `chosen`.

    Args:
      embeddings: float[I, D], one row an item of `prefs`. Items in no comparison are not used.
      weight: float[N] ≥ 0, how much each comparison counts; 1 by default (`annotation.mixture` supplies others).
      encoder: settings that rebuild the embeddings, stored with the basis; `encoder_hash` the weights' hash.
      on_round: called as on_round(round, metrics) after every round of the final fit.
    Raises:
      UserError: too few people, no untied comparison, embeddings or weights that do not fit, embeddings that
      do not differ, a diverging fit.
    """
    _check(prefs, embeddings)
    weight = checked_weight(prefs, weight)
    used = np.unique(np.concatenate([prefs.chosen, prefs.rejected]))
    reference, prompts = np.asarray(embeddings)[used], prefs.item_prompt[used]
    widths = _as_tuple(config.dims)
    reduction = whitened_components(reference, prompts, max(widths), config.whitening)
    problem = _Problem.build(prefs, used, reduction, prompts)
    widths = tuple(sorted({min(width, reduction.rank) for width in widths}))
    sizes = tuple(k for k in sorted(set(_as_tuple(config.num_basis))) if k <= min(reduction.rank, widths[-1]))
    if not sizes:
        raise UserError(
            f"num_basis: {config.num_basis} outputs asked for, but the embeddings of {prefs.source} span "
            f"{min(reduction.rank, widths[-1])} directions; lower num_basis or raise dims"
        )
    _say_cut(config, prefs.source, reduction.rank)
    candidates = choose_size(problem, sizes, widths, config, weight)
    num_basis, dims = (
        next((c.num_basis, c.dims) for c in candidates if c.chosen) if candidates else (sizes[0], widths[0])
    )
    if candidates:
        _LOG.info(said_choice(candidates, config))
    state, metrics = run_rounds(problem, weight, num_basis, dims, config, on_round)
    head = reduction.projection[:, :dims] @ state.directions[:dims].astype(np.float64)
    raw_prior = Belief.from_cov(state.mean, state.cov)
    basis, prior, _ = gauge.canonicalise(
        head, raw_prior, reference, prompts, encoder=encoder, encoder_hash=encoder_hash
    )
    phi = Readout.of(basis).features(embeddings)
    coef_mean, coef_precision = users.posteriors(
        prior,
        prefs.user_index,
        phi[prefs.chosen] - phi[prefs.rejected],
        prefs.outcome,
        num_users=prefs.num_users,
        lapse=config.lapse,
        weight=weight,
    )
    return FitResult(basis, prior, coef_mean, coef_precision, candidates, metrics)


def _say_cut(config: FitConfig, source: str, rank: int) -> None:
    """Say which sizes that somebody chose the embeddings cannot have; the defaults are nobody's choice."""
    for name in ("num_basis", "dims"):
        sizes = _as_tuple(getattr(config, name))
        if sizes != getattr(FitConfig, name) and max(sizes) > rank:
            _LOG.warning(
                f"{name} {max(sizes)}: the embeddings of {source} span {rank} directions; at most these are used"
            )


def fit_pooled(prefs: Preferences, embeddings: np.ndarray, config: FitConfig) -> np.ndarray:
    """The model without people: one direction for all, by ridge logistic regression. Scores float32[I].

    It uses the same coordinates (the widest of `config.dims`), ridge and lapse as `fit_basis`: the baseline
    that personal coefficients have to beat.
    """
    _check(prefs, embeddings)
    used = np.unique(np.concatenate([prefs.chosen, prefs.rejected]))
    reference, prompts = np.asarray(embeddings)[used], prefs.item_prompt[used]
    reduction = whitened_components(reference, prompts, max(_as_tuple(config.dims)), config.whitening)
    problem = _Problem.build(prefs, used, reduction, prompts)
    items, local = problem.items, problem.prefs
    delta = items[local.chosen] - items[local.rejected]
    weight = np.ones(prefs.num_comparisons, np.float32)
    theta = joint.pooled_direction(delta, prefs.outcome, weight, config.ridge, config.lapse)
    centred = np.asarray(embeddings, np.float64) - reference.mean(axis=0, dtype=np.float64)
    return (centred @ (reduction.projection @ theta)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The training comparisons over reduced items; indices point into `items`."""

    items: np.ndarray
    prompts: np.ndarray
    prefs: Preferences

    @classmethod
    def build(
        cls, prefs: Preferences, used: np.ndarray, reduction: Reduction, prompts: np.ndarray
    ) -> "_Problem":
        table = np.full(prefs.num_items, -1, np.int32)
        table[used] = np.arange(len(used))
        local = dataclasses.replace(prefs, chosen=table[prefs.chosen], rejected=table[prefs.rejected])
        return cls(reduction.coordinates.astype(np.float32), prompts, local)

    def narrowed(self, dims: int) -> np.ndarray:
        """Items with all but the first `dims` coordinates zero: same shape, so nothing compiles again."""
        return self.items * (np.arange(self.items.shape[1]) < dims).astype(np.float32)


def run_rounds(
    problem: _Problem,
    weight: np.ndarray,
    num_basis: int,
    dims: int,
    config: FitConfig,
    on_round: OnRound | None = None,
) -> tuple[joint.RoundState[np.ndarray], dict[str, float]]:
    """The start and `config.rounds` rounds for one K and width; `weight[N]` says how much each comparison counts."""
    prefs, items = problem.prefs, problem.narrowed(dims)
    data = joint.Comparisons(
        *map(jax.device_put, (items, prefs.user_index, prefs.chosen, prefs.rejected, prefs.outcome, weight))
    )
    answers = np.bincount(prefs.user_index, weight, minlength=prefs.num_users)
    state = joint.initial_state(data, answers, num_basis, config.ridge, config.lapse)
    metrics: dict[str, float] = {}
    for number in range(config.rounds):
        if not config.marginalised:
            state = state._replace(coef_cov=np.zeros_like(state.coef_cov))
        state, values = joint.optimise(
            state, data, np.float32(config.ridge), np.float32(config.lapse), steps=config.steps
        )
        state = _next_round(state, answers, items, problem.prompts, config.shrinkage)
        metrics = {name: float(value) for name, value in values.items()}
        if not np.isfinite(metrics["objective"]):
            raise UserError(
                f"basis fit: the objective is {metrics['objective']} in round {number}; raise ridge "
                f"(now {config.ridge}) or lower num_basis (now {num_basis})"
            )
        metrics["aggregate_norm"] = float(np.linalg.norm(state.mean))
        metrics["taste_spread"] = float(np.sqrt(np.trace(state.cov)))
        if on_round:
            on_round(number, metrics)
    return state, metrics


def _next_round(
    state: joint.RoundState[jax.Array],
    answers: np.ndarray,
    items: np.ndarray,
    prompts: np.ndarray,
    shrinkage: float,
) -> joint.RoundState[np.ndarray]:
    """Canonical gauge, then μ, Σ by empirical Bayes in it, then the gauge of these; in float64."""
    present = (answers > 0).astype(np.float64)
    host = joint.RoundState(*(np.asarray(part, np.float64) for part in state))
    for amount in (0.0, shrinkage):
        mean, cov = empirical_bayes(host.coef_mean, host.coef_cov, present, amount)
        host = _regauge(host._replace(mean=mean, cov=cov), items, prompts)
    return joint.RoundState(*(np.asarray(part, np.float32) for part in host))


def _regauge(
    state: joint.RoundState[np.ndarray], items: np.ndarray, prompts: np.ndarray
) -> joint.RoundState[np.ndarray]:
    change, mean, cov = gauge.canonical_change(items @ state.directions, state.mean, state.cov, prompts)
    return joint.RoundState(
        state.directions @ change.T,
        mean,
        cov,
        gauge.transform_coef(change, state.coef_mean),
        gauge.transform_cov(change, state.coef_cov),
    )


def choose_size(
    problem: _Problem,
    sizes: tuple[int, ...],
    widths: tuple[int, ...],
    config: FitConfig,
    weight: np.ndarray,
) -> tuple[Candidate, ...]:
    """Try widths at the largest K, then every K at the width chosen; empty when there is nothing to choose.

    The smallest setting whose loss exceeds the best one's by at most one standard error is chosen; the
    error is that of the paired difference over people.
    """
    if len(sizes) == 1 and len(widths) == 1:
        return ()
    if _default_sizes(config) and len(_two_or_more(problem.prefs)) < LEAST_TO_CHOOSE:
        _LOG.info(
            f"too few people to choose by ({LEAST_TO_CHOOSE} with two comparisons at least): K = {sizes[0]} and {widths[0]} "
            "dimensions, the smallest, are taken; fit.num_basis and fit.dims set others"
        )
        return ()
    people = _people_to_choose_by(problem.prefs)
    shuffled = np.random.default_rng(config.seed).permutation(people)
    left_out = np.sort(shuffled[: max(2, round(config.held_out * len(people)))])
    losses: dict[tuple[int, int], np.ndarray] = {}
    for width in widths:
        fitting = [size for size in sizes if size <= width]
        if fitting:
            size = fitting[-1]
            losses[size, width] = held_out_loss(problem, left_out, size, width, config, weight)
    width = _one_standard_error(losses, by=1)[1]
    for size in sizes:
        if size <= width and (size, width) not in losses:
            losses[size, width] = held_out_loss(problem, left_out, size, width, config, weight)
    chosen = _one_standard_error({key: loss for key, loss in losses.items() if key[1] == width}, by=0)
    return tuple(
        Candidate(*key, float(loss.mean()), float(loss.std(ddof=1) / np.sqrt(len(loss))), key == chosen)
        for key, loss in losses.items()
    )


def said_choice(candidates: tuple[Candidate, ...], config: FitConfig) -> str:
    """One line: what was chosen, among what, by whom, and how the loss of people left out compares."""
    chosen = next(one for one in candidates if one.chosen)
    best = min(candidates, key=lambda one: one.loss_nats)
    text = (
        f"chosen by {config.held_out:.0%} of the training people, left out: K = {chosen.num_basis} of "
        f"{', '.join(map(str, _as_tuple(config.num_basis)))} and {chosen.dims} dimensions of "
        f"{', '.join(map(str, _as_tuple(config.dims)))} at ridge {config.ridge:g}; {chosen.loss_nats:.3f} nats a comparison "
        f"after {config.adapt_answers} answers at most (a coin: 0.693)"
    )
    if best is not chosen:
        text += (
            f"; the smallest within one standard error of the best, {best.loss_nats:.3f} "
            f"(K = {best.num_basis}, {best.dims} dimensions)"
        )
    return text


def _default_sizes(config: FitConfig) -> bool:
    """Whether the lists to choose from are nobody's choice."""
    plain = FitConfig()
    return config.num_basis == plain.num_basis and config.dims == plain.dims


def _two_or_more(prefs: Preferences) -> np.ndarray:
    return np.flatnonzero(np.bincount(prefs.user_index, minlength=prefs.num_users) > 1)


def _people_to_choose_by(prefs: Preferences) -> np.ndarray:
    people = _two_or_more(prefs)
    if len(people) < LEAST_TO_CHOOSE:
        raise UserError(
            f"{prefs.source}: {len(people)} people with two comparisons are too few to choose "
            f"num_basis and dims from lists ({LEAST_TO_CHOOSE} at least); give one number for each"
        )
    return people


def held_out_loss(
    problem: _Problem,
    left_out: np.ndarray,
    num_basis: int,
    dims: int,
    config: FitConfig,
    weight: np.ndarray,
) -> np.ndarray:
    """Fit without the people `left_out`, adapt to their first answers, predict the others: nats[people].

    With weights a person's loss is their weighted mean; it is 0 for somebody whose answers all weigh nothing.
    """
    prefs = problem.prefs
    outside = np.isin(prefs.user_index, left_out)
    brief = dataclasses.replace(config, rounds=(config.rounds + 1) // 2)
    state, _ = run_rounds(problem, weight * ~outside, num_basis, dims, brief)
    prior = Belief.from_cov(state.mean, state.cov)
    phi = problem.narrowed(dims) @ state.directions
    delta = phi[prefs.chosen] - phi[prefs.rejected]
    order = np.lexsort((np.arange(prefs.num_comparisons), prefs.choice, prefs.user_index))
    counts = np.bincount(prefs.user_index, minlength=prefs.num_users)
    rank = np.empty(prefs.num_comparisons, np.int64)
    rank[order] = np.arange(prefs.num_comparisons) - np.repeat(np.cumsum(counts) - counts, counts)
    # Half of the answers at most, so that people with few are still predicted on something.
    adapt = rank < np.minimum(config.adapt_answers, counts // 2)[prefs.user_index]
    rows, asked = np.flatnonzero(outside & ~adapt), np.flatnonzero(outside & adapt)
    coef_mean, precision = users.posteriors(
        prior,
        prefs.user_index[asked],
        delta[asked],
        prefs.outcome[asked],
        num_users=prefs.num_users,
        lapse=config.lapse,
        weight=weight[asked],
    )
    cov = np.linalg.inv(precision)[prefs.user_index[rows]]
    margin_mean = np.sum(coef_mean[prefs.user_index[rows]] * delta[rows], axis=1)
    margin_var = np.einsum("nk,nkl,nl->n", delta[rows], cov, delta[rows])
    loss = np.asarray(
        joint.predictive_loss(margin_mean, margin_var, prefs.outcome[rows], np.float32(config.lapse))
    )
    total = np.bincount(prefs.user_index[rows], loss * weight[rows], minlength=prefs.num_users)
    count = np.bincount(prefs.user_index[rows], weight[rows], minlength=prefs.num_users)
    return total[left_out] / np.maximum(count[left_out], 1e-9)


def _one_standard_error(losses: dict[tuple[int, int], np.ndarray], by: int) -> tuple[int, int]:
    """The key smallest in position `by` among those within one paired standard error of the best."""
    best = min(losses, key=lambda key: float(losses[key].mean()))

    def close(key: tuple[int, int]) -> bool:
        excess = losses[key] - losses[best]
        return float(excess.mean()) <= float(excess.std(ddof=1) / np.sqrt(len(excess)))

    return min((key for key in losses if close(key)), key=lambda key: key[by])


def _check(prefs: Preferences, embeddings: np.ndarray) -> None:
    if np.ndim(embeddings) != 2 or len(embeddings) != prefs.num_items:
        raise UserError(
            f"embeddings: shape {np.shape(embeddings)}, but {prefs.source} has {prefs.num_items} items; "
            "give one row an item"
        )
    _check_answers(prefs)


def check_ahead(prefs: Preferences, width: int, config: FitConfig) -> None:
    """What `fit_basis` would refuse of answers and sizes, before there are embeddings of so many numbers.

    Raises:
      UserError: as `fit_basis` does; it may still refuse embeddings that span fewer directions.
    """
    _check_answers(prefs)
    widths = {min(size, width) for size in _as_tuple(config.dims)}
    sizes = {size for size in _as_tuple(config.num_basis) if size <= max(widths)}
    if not sizes:
        raise UserError(
            f"num_basis: {config.num_basis} outputs asked for, but dims {config.dims} of embeddings of {width} numbers leave at "
            f"most {max(widths)}; lower num_basis or raise dims"
        )
    if len(sizes) > 1 or len(widths) > 1:
        _people_to_choose_by(prefs)


def _check_answers(prefs: Preferences) -> None:
    if len(np.unique(prefs.user_index)) < 2:
        raise UserError(
            f"{prefs.source}: comparisons of {len(np.unique(prefs.user_index))} person(s); a population "
            "needs at least two user_id values"
        )
    if not np.any(prefs.outcome != 0.5):
        raise UserError(
            f"{prefs.source}: all {prefs.num_comparisons} comparisons are ties; nothing can be learned"
        )


def checked_weight(prefs: Preferences, weight: np.ndarray | None) -> np.ndarray:
    """Weights of comparisons, float32[N]: ones by default; a UserError for what cannot be weights."""
    if weight is None:
        return np.ones(prefs.num_comparisons, np.float32)
    weight = np.asarray(weight, np.float32)
    if weight.shape != (prefs.num_comparisons,) or not (np.isfinite(weight) & (weight >= 0)).all():
        raise UserError(
            f"weight: shape {weight.shape} for the {prefs.num_comparisons} comparisons of {prefs.source}; give "
            "one finite number a row, not below 0"
        )
    if not weight.any():
        raise UserError(f"weight: 0 for every comparison of {prefs.source}; nothing can be learned")
    return weight


def _as_tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
