"""Models whose reward is linear in a person's coefficients: one record for all of them.

    r_u(x, y) = w_u · φ(x, y),   φ read through the canonical gauge (rewards.gauge)

They differ in how φ is found and in the *rule* that finds w_u from answers (`rewards.methods.rules`). A rule sees
Δφ in the canonical gauge and returns coefficients with a precision, so records, questions and policies treat
every model alike. Every one of them carries a population N(μ, Σ), the moments of its training people, which is
what conditions a policy, z = Σ^{-1/2}(w − μ). Where people cannot differ (everybody alike, weights on a simplex)
Σ would be singular; `FLOOR` is added to its diagonal.

Letters in shapes: I items, D embedding width, P reduced width, U people, n answers, T pairs, K basis outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from rewards import hashed
from rewards.basis import gauge, likelihood, named, store
from rewards.basis.belief import Belief
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import rules
from rewards.methods.base import Comparisons, FittedModel, ItemTable
from rewards.methods.training import Problem
from rewards.types import Quadratic, RewardBasis

FLOOR = 1e-4
"""Variance (nats²) added to every axis of Σ: tastes that differ by a hundredth of a nat per standard deviation
of a feature are no tastes. Isotropic in the canonical gauge, so the axes stay where they are."""
RANK = 1e-4  # singular values of a head below this share of the largest are no outputs of their own


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """State of people in a linear model: mean[U, K] and precision[U, K, K] in the canonical gauge."""

    mean: np.ndarray
    precision: np.ndarray


@dataclasses.dataclass(frozen=True)
class LinearFitted(FittedModel):
    """A fitted linear model.

    Attributes:
      kind: name of the estimator in `rewards.methods.MODELS`.
      basis: φ with its gauge record.
      prior: N(μ, Σ), moments of the training people's coefficients: what conditions a policy.
      rule: how a new person's coefficients are found.
      coef_mean[U, K], coef_precision[U, K, K]: the training people; without answers what the rule gives for none.
      report: numbers of the fit, JSON.
    """

    kind: str  # pyright: ignore[reportIncompatibleVariableOverride]  one record serves many estimators
    basis: RewardBasis
    prior: Belief
    rule: rules.Rule
    coef_mean: np.ndarray
    coef_precision: np.ndarray
    report: JSONObject

    def features(self, table: ItemTable) -> Float[np.ndarray, "I K"]:
        return Readout.of(self.basis).features(
            table.embeddings, table.prefs.item_prompt, table.prompt_embeddings
        )

    def with_probes(
        self, table: ItemTable, values: Float[np.ndarray, "I P"], probes: Sequence[str]
    ) -> "LinearFitted":
        """The same rewards with axes that are named after probes (`rewards.basis.named`); `report` says how well they read.

        Args:
          values: what each probe says of every item of `table`.
        Raises:
          UserError: as `named.turn`.
        """
        by = named.turn(self.features(table), values, probes, table.prefs.item_prompt, self.prior)
        prior = Belief.from_cov(named.turned_coef(by, self.prior.mean), named.turned_cov(by, self.prior.cov))
        return dataclasses.replace(
            self,
            basis=gauge.turned(self.basis, by.matrix, by.names),
            prior=prior,
            rule=rules.turned(self.rule, by),
            coef_mean=named.turned_coef(by, self.coef_mean),
            coef_precision=named.turned_cov(by, self.coef_precision),
            report=self.report
            | {"probes": {name: dataclasses.asdict(one) for name, one in by.probes.items()}},
        )

    def _adapt(self, table: ItemTable, answers: Comparisons) -> Coefficients:
        phi = self.features(table)
        delta = (phi[answers.chosen] - phi[answers.rejected]) * (answers.weight > 0)[..., None]
        return Coefficients(*self.rule(delta, answers.outcome, answers.weight))

    def seen(self) -> Coefficients:
        return Coefficients(self.coef_mean, self.coef_precision)

    def _margins(
        self, table: ItemTable, people: Coefficients, pairs: Comparisons
    ) -> Float[np.ndarray, "U T"]:
        phi = self.features(table)
        delta = phi[pairs.chosen] - phi[pairs.rejected]
        return np.einsum("utk,uk->ut", delta, people.mean) * (pairs.weight > 0)

    def tensors(self) -> dict[str, np.ndarray]:
        named = {"prior.mean": self.prior.mean, "prior.cov": self.prior.cov}
        named |= {"coef_mean": self.coef_mean, "coef_precision": self.coef_precision}
        named |= {f"rule.{name}": array for name, array in rules.arrays(self.rule).items()}
        return store.basis_tensors(self.basis) | {name: _f32(array) for name, array in named.items()}

    def settings(self) -> JSONObject:
        quadratic = self.basis.quadratic
        return {
            "num_basis": self.basis.num_basis,
            "embedding_width": int(self.basis.head.shape[0]),
            "gauge": store.gauge_record(self.basis.gauge),
            "encoder": self.basis.encoder,
            "quadratic": None if quadratic is None else store.quadratic_record(quadratic),
            "rule": rules.scalars(self.rule),
            "report": self.report,
            "kind": self.kind,
        }

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray], settings: JSONObject) -> "LinearFitted":
        try:
            width, num_basis = settings["embedding_width"], settings["num_basis"]
            shapes = store.basis_shapes(width, num_basis, settings["quadratic"])
            num_users = len(tensors["coef_mean"]) if "coef_mean" in tensors else 0
            shapes |= {"prior.mean": (num_basis,), "prior.cov": (num_basis, num_basis)}
            shapes |= {"coef_mean": (num_users, num_basis)}
            shapes |= {"coef_precision": (num_users, num_basis, num_basis)}
            rule_shapes = rules.shapes(settings["rule"], num_basis)
            shapes |= {f"rule.{name}": shape for name, shape in rule_shapes.items()}
            hashed.check_tensors(
                tensors, shapes, "reward model", "a linear model", "restore or refit the model"
            )
            basis = store.basis_of(tensors, settings["gauge"], settings["encoder"], settings["quadratic"])
            return cls(
                kind=settings["kind"],
                basis=basis,
                prior=Belief.from_cov(tensors["prior.mean"], tensors["prior.cov"]),
                rule=rules.restore(settings["rule"], {name: tensors[f"rule.{name}"] for name in rule_shapes}),
                coef_mean=tensors["coef_mean"],
                coef_precision=tensors["coef_precision"],
                report=settings["report"],
            )
        except KeyError as error:
            raise UserError(
                f"reward model: setting {error.args[0]!r} is missing; restore or refit the model"
            ) from None


@dataclasses.dataclass(frozen=True)
class Canonical:
    """What a rule is made from: where raw coefficients go in the canonical gauge, w′ = imageᵀ w, and μ, Σ⁻¹."""

    image: Float[np.ndarray, "L K"]
    mean: Float[np.ndarray, " K"]
    precision: Float[np.ndarray, "K K"]

    def coefficients(self, raw: Float[np.ndarray, "*b L"]) -> Float[np.ndarray, "*b K"]:
        return (np.asarray(raw, np.float64) @ self.image).astype(np.float32)

    def covariance(self, raw: Float[np.ndarray, "L L"]) -> Float[np.ndarray, "K K"]:
        return self.image.T @ np.asarray(raw, np.float64) @ self.image


MakeRule = Callable[[Canonical], rules.Rule]


def finish(
    kind: str,
    problem: Problem,
    directions: Float[np.ndarray, "P L"],
    coef: Float[np.ndarray, "U L"],
    make_rule: MakeRule,
    report: JSONObject,
) -> LinearFitted:
    """A linear model from directions in the reduced coordinates and everybody's raw coefficients.

    Linearly dependent directions are first replaced by as many independent ones, which changes no reward.
    """
    directions = np.asarray(directions, np.float64)
    left, size, right = np.linalg.svd(directions, full_matrices=False)
    rank = max(int(np.sum(size > RANK * size[0])), 1)
    keep = rank == directions.shape[1]
    shrink = np.eye(rank) if keep else (right.T * size)[:, :rank]
    head = problem.reduction.projection @ (directions if keep else left[:, :rank])
    return finish_head(kind, problem, head, coef, make_rule, report, shrink=shrink)


def finish_head(
    kind: str,
    problem: Problem,
    head: Float[np.ndarray, "D K"],
    coef: Float[np.ndarray, "U L"],
    make_rule: MakeRule,
    report: JSONObject,
    *,
    shrink: Float[np.ndarray, "L K"] | None = None,
    quadratic: Quadratic | None = None,
) -> LinearFitted:
    """`finish` for a head over the embeddings themselves; coef @ shrink are the coefficients of the head.

    The population is the moments of the people with answers, the gauge the canonical one of that population;
    people without answers get what the rule gives for none.
    """
    shrink = np.eye(head.shape[1]) if shrink is None else shrink
    present = problem.answers > 0
    raw = np.asarray(coef, np.float64) @ shrink
    deviation = raw[present] - raw[present].mean(axis=0)
    moments = Belief.from_cov(raw[present].mean(axis=0), deviation.T @ deviation / len(deviation))
    table = problem.table
    basis, prior, change = gauge.canonicalise(
        head,
        moments,
        table.embeddings[problem.used],
        problem.prompts,
        encoder=table.encoder,
        encoder_hash=table.encoder_hash,
        quadratic=quadratic,
        prompt_embeddings=problem.prompt_embeddings,
    )
    num_basis = basis.num_basis
    prior = Belief.from_cov(prior.mean, (prior.cov + FLOOR * np.eye(num_basis)).astype(np.float32))
    image = shrink @ np.linalg.inv(change)
    rule = make_rule(Canonical(image, prior.mean, prior.precision))
    generic = rule(*(np.zeros((1, 1, *width), np.float32) for width in ((num_basis,), (), ())))
    coef_mean = np.where(present[:, None], raw @ np.linalg.inv(change), generic[0]).astype(np.float32)
    phi = Readout.of(basis).features(table.embeddings, table.prefs.item_prompt, problem.prompt_embeddings)
    training = problem.training
    delta = phi[training.chosen] - phi[training.rejected]
    precision = rule.precision + _information(problem, delta, coef_mean, rule.lapse)
    report = {
        "num_basis": num_basis,
        "training_loss_nats": _loss(problem, delta, coef_mean, rule.lapse),
    } | report
    return LinearFitted(kind, basis, prior, rule, coef_mean, precision.astype(np.float32), report)


def _information(problem: Problem, delta: np.ndarray, coef: np.ndarray, lapse: float) -> np.ndarray:
    """Σ_n a_n I(w_u·Δφ_n) Δφ_n Δφ_nᵀ of every person, float64[U, K, K]; in order of people, never N × K × K."""
    user = problem.training.user_index
    margin = np.sum(coef[user] * delta, axis=1)
    curvature = problem.weight * np.asarray(likelihood.fisher_information(margin, lapse))
    scaled = delta * np.sqrt(curvature)[:, None]
    order = np.argsort(user, kind="stable")
    rows = np.split(scaled[order], np.cumsum(np.bincount(user, minlength=len(coef)))[:-1])
    return np.stack([own.T @ own for own in rows]).astype(np.float64)


def _loss(problem: Problem, delta: np.ndarray, coef: np.ndarray, lapse: float) -> float:
    margin = np.sum(coef[problem.training.user_index] * delta, axis=1)
    loss = np.asarray(likelihood.negative_log_likelihood(margin, problem.training.outcome, lapse))
    return float(problem.weight @ loss / problem.weight.sum())


def _f32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
