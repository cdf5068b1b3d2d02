"""Named rewards as they are: every column of the embedding is one basis output, under its own name.

    φ_k(x, y) = (e_k(x, y) − mean_k) / sd_k,   w_u ~ N(μ, Σ)

The gauge is fixed by the columns themselves: centring as everywhere, a diagonal scale, no rotation, no change of sign,
so axis k is column k and a coefficient says how many nats one standard deviation of that reward is worth. mean and sd
(within prompts) are taken once, over samples of π_ref where the encoder brings them (`encoder["reference"]`), else over
the items of the comparisons, and are stored in the gauge record. Only people are fitted: μ and Σ by empirical Bayes.

Letters in shapes: I items, U people, n answers (padded), K = D columns.
"""

from typing import ClassVar

import numpy as np
import pydantic

from rewards.basis import gauge, readout
from rewards.basis.belief import Belief
from rewards.basis.prior import empirical_bayes
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import training as shared
from rewards.methods.base import ItemTable, RewardModel
from rewards.methods.linear import FLOOR, LinearFitted
from rewards.methods.rules import GaussianRule
from rewards.types import Gauge, Preferences, RewardBasis

MAX_COLUMNS = 64  # more numbers an item are an embedding, not rewards
CONVERGED = 1e-3  # nats per standard deviation of a column


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class Columns(RewardModel):
    """Settings.

    Attributes:
      lapse: ε, share of answers taken to be coin flips.
      shrinkage: τ, share of the way of Σ towards its diagonal.
      rounds: at most so many rounds of empirical Bayes.
    """

    kind: ClassVar[str] = "columns"

    lapse: shared.Lapse = 0.0
    shrinkage: shared.Share = 0.1
    rounds: shared.Count = 20

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        weight = shared.checked_weight(training, weight)
        if not np.any((training.outcome != 0.5) & (weight > 0)):
            raise UserError(
                f"{training.source}: all {training.num_comparisons} comparisons are ties or have weight 0; "
                "nothing can be learned"
            )
        basis = as_they_are(table, training)
        delta, outcome, padded = _by_person(training, Readout.of(basis).features(table.embeddings), weight)
        present = (padded.sum(axis=1) > 0).astype(np.float64)
        prior = Belief.from_cov(
            np.zeros(basis.num_basis, np.float32), np.eye(basis.num_basis, dtype=np.float32)
        )
        for number in range(self.rounds):
            rule = GaussianRule(prior.mean, prior.precision, self.lapse)
            coef, precision = rule(delta, outcome, padded)
            mean, cov = empirical_bayes(
                np.asarray(coef, np.float64), np.linalg.inv(precision), present, self.shrinkage
            )
            after = Belief.from_cov(
                mean.astype(np.float32), (cov + FLOOR * np.eye(len(mean))).astype(np.float32)
            )
            change = max(
                float(np.abs(after.mean - prior.mean).max()),
                float(np.abs(after.sd - prior.sd).max()),
            )
            prior = after
            if on_round:
                on_round(number, {"change": change, "taste_spread": float(np.sqrt(np.trace(prior.cov)))})
            if change < CONVERGED:
                break
        rule = GaussianRule(prior.mean, prior.precision, self.lapse)
        coef, precision = rule(delta, outcome, padded)
        report = {
            "num_basis": basis.num_basis,
            "rounds": number + 1,
            "change": change,
            "column_mean": basis.gauge.mean.tolist(),
            "column_sd": (1.0 / np.diag(basis.gauge.whitening)).tolist(),
        }
        return LinearFitted(self.kind, basis, prior, rule, coef, precision, report)


def as_they_are(table: ItemTable, training: Preferences) -> RewardBasis:
    """The basis whose outputs are the columns themselves, standardised.

    Raises:
      UserError: too many columns, one that is the same for all completions of every prompt, or values that are not
        finite.
    """
    values = np.asarray(table.embeddings, np.float64)
    if values.ndim != 2 or len(values) != training.num_items:
        raise UserError(
            f"embeddings: shape {values.shape}, but {training.source} has {training.num_items} items; "
            "give one row an item"
        )
    if values.shape[1] > MAX_COLUMNS:
        raise UserError(
            f"fit.model columns: {values.shape[1]} numbers an item are an embedding, not at most {MAX_COLUMNS} rewards; "
            "choose encoder.kind columns, attributes or precomputed, or another fit.model"
        )
    names = _names(table.encoder, values.shape[1])
    used = np.unique(np.concatenate([training.chosen, training.rejected]))
    mean, spread = moments(values[used], training.item_prompt[used])
    if reference := table.encoder.get("reference"):
        mean, spread = np.asarray(reference["mean"]), np.asarray(reference["sd"])
    check_spread(spread, mean, names, training.source)
    return column_basis(names, mean, spread, table.encoder, table.encoder_hash)


def column_basis(
    names: tuple[str, ...], mean: np.ndarray, spread: np.ndarray, encoder: JSONObject, encoder_hash: str
) -> RewardBasis:
    """φ_k = (e_k − mean_k)/spread_k under the names given; mean, spread float[K]."""
    identity = np.eye(len(names), dtype=np.float32)
    record = Gauge(
        centring=gauge.CENTRING,
        mean=np.asarray(mean, np.float32),
        whitening=np.diag(1.0 / np.asarray(spread, np.float64)).astype(np.float32),
        rotation=identity,
        signs=np.ones(len(names), np.float32),
        scale=1.0,
        names=names,
        encoder_hash=encoder_hash,
    )
    return RewardBasis(identity, record, dict(encoder))


def moments(values: np.ndarray, item_prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each column, and its standard deviation within prompts, float64[K]."""
    if not np.isfinite(values).all():
        raise UserError("columns: a value is not finite; check the rewards")
    centred = readout.centre(values, item_prompt)
    return values.mean(axis=0), np.sqrt(np.mean(centred**2, axis=0))


def check_spread(spread: np.ndarray, mean: np.ndarray, names: tuple[str, ...], source: str) -> None:
    """Refuse a column that tells no two completions of a prompt apart."""
    for name, sd, centre in zip(names, spread, mean, strict=True):
        if not sd > 1e-7 * max(1e-30, abs(centre)):
            raise UserError(
                f"column {name!r}: the same for all completions of every prompt of {source}; remove it, or give "
                "prompts two completions that differ in it"
            )


def _names(encoder: JSONObject, width: int) -> tuple[str, ...]:
    names = tuple(encoder.get("names") or (f"column {index}" for index in range(1, width + 1)))
    if len(names) != width:
        raise UserError(f"columns: {len(names)} names for {width} columns; compute the embeddings again")
    return names


def _by_person(
    training: Preferences, phi: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Δφ[U, n, K], outcome[U, n] and weight[U, n], 0 where a person has fewer than n answers."""
    counts = np.bincount(training.user_index, minlength=training.num_users)
    order = np.argsort(training.user_index, kind="stable")
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    person = training.user_index[order]
    shape = (training.num_users, max(1, int(counts.max(initial=0))))
    delta = np.zeros((*shape, phi.shape[1]), np.float32)
    outcome, padded = np.full(shape, 0.5, np.float32), np.zeros(shape, np.float32)
    delta[person, column] = (phi[training.chosen] - phi[training.rejected])[order]
    outcome[person, column] = training.outcome[order]
    padded[person, column] = weight[order]
    return delta, outcome, padded
