"""Crossed effects: what the text says, what each text is worth besides, and how much people differ.

    r_u(y) = w_u · φ(y),   φ_0(y) = θᵀe(y) + b_y,   φ_k(y) = v_kᵀe(y) + ξ_{k,y}
    w_u = (1 + s ε_u, δ_u),   ε_u ~ N(0, 1),   δ_u ~ N(0, c I)

b and ξ are 0 for a text that nobody judged. Linear in w: a person without answers has exactly the base, one with
answers the Laplace posterior. Where answers are not shown to predict a person's later ones, c = 0 and everybody gets the
base (`report["scale"]`).

What a policy sees: only θ and V can be read off a text that the policy wrote itself, so the stored basis and its gauge
hold these alone; b and ξ are stored beside it and added where a text is one of those that were judged.

Letters in shapes: I items, J judged items, D embedding width, P reduced width, K outputs.
Source: the base and the tastes, `crossed_base` and `crossed_tastes`.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Annotated, ClassVar

import numpy as np
import pydantic
from jaxtyping import Float

from rewards import hashed
from rewards.basis import gauge, users
from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import training as shared
from rewards.methods.base import ItemTable, RewardModel
from rewards.methods.crossed_base import Base, fit_base
from rewards.methods.crossed_data import Answers
from rewards.methods.crossed_tastes import Penalty, Tastes, fit_tastes
from rewards.methods.linear import FLOOR, RANK, LinearFitted
from rewards.methods.rules import FixedRule, GaussianRule
from rewards.types import Preferences, Prompt

EFFECTS = "item.effects"
KEY = 16  # hex digits of a text's key


@dataclasses.dataclass(frozen=True)
class CrossedFitted(LinearFitted):
    """A linear model whose φ of a judged text has something of its own.

    Attributes:
      keys: of the judged texts, rising; effects: float32[J, K], what is added to φ, in the canonical gauge.
    """

    keys: tuple[str, ...] = ()
    effects: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 1), np.float32))

    def features(self, table: ItemTable) -> Float[np.ndarray, "I K"]:
        """φ of the text and, for judged texts, their own."""
        return super().features(table) + self.own(table)

    def own(self, table: ItemTable) -> Float[np.ndarray, "I K"]:
        """b and ξ of every item, in the canonical gauge; 0 for a text that was never judged."""
        place = {key: index for index, key in enumerate(self.keys)}
        index = np.array([place.get(key, len(self.keys)) for key in keys_of(table.prefs)])
        return np.concatenate([self.effects, np.zeros((1, self.basis.num_basis), np.float32)])[index]

    def as_written(self) -> LinearFitted:
        """The same people and axes where every text counts as new: what a policy is rewarded by."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(LinearFitted)}
        return LinearFitted(**fields)

    def tensors(self) -> dict[str, np.ndarray]:
        return super().tensors() | {EFFECTS: np.ascontiguousarray(self.effects, np.float32)}

    def settings(self) -> JSONObject:
        return super().settings() | {"keys": list(self.keys)}

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray], settings: JSONObject) -> "CrossedFitted":
        for name in ("keys", "num_basis"):
            if name not in settings:
                raise UserError(f"reward model: setting {name!r} is missing; restore or refit the model")
        keys = settings["keys"]
        shape = {EFFECTS: (len(keys), int(settings["num_basis"]))}
        own = {name: tensors[name] for name in shape if name in tensors}
        hashed.check_tensors(own, shape, "reward model", "a crossed model", "restore or refit the model")
        rest = {name: array for name, array in tensors.items() if name not in shape}
        linear = LinearFitted.restore(rest, settings)
        return cls(**vars(linear), keys=tuple(keys), effects=own[EFFECTS])


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class Crossed(RewardModel):
    """Crossed effects of texts and people.

    Attributes:
      num_basis: outputs, the shared one among them; with few dimensions fewer.
      dims, whitening, lapse: as in `training.Reduced`.
      ridge: inverse variance of a personal direction per component coordinate (nats⁻²).
      loading: τ_ξ, standard deviation of a text's own loading on a personal axis.
      folds: of people, for the base that explains nobody's own answers and for all choices.
      max_context: most answers that a person is met with in the fit.
      steps: L-BFGS iterations of the personal part.
      seed: of folds and episodes.
    """

    kind: ClassVar[str] = "crossed"
    fitted: ClassVar[type[LinearFitted]] = CrossedFitted

    num_basis: shared.Count = 4
    dims: shared.Count = 48
    whitening: shared.Share = 1.0
    ridge: shared.Positive = 10.0
    loading: shared.Positive = 0.5
    lapse: shared.Lapse = 0.0
    folds: Annotated[int, pydantic.Field(ge=2, le=100)] = 4
    max_context: Annotated[int, pydantic.Field(ge=1, le=1_000)] = 16
    steps: shared.Count = 60
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0

    def _fit(self, table, training, *, weight=None, on_round=None) -> CrossedFitted:
        reduced = shared.Reduced(dims=self.dims, whitening=self.whitening, lapse=self.lapse)
        problem = shared.build(table, training, reduced, weight)
        items = problem.reduction.coordinates
        answers = Answers.of(problem, self.folds, self.seed)
        base = fit_base(items, problem.prompts, answers, self.lapse, self.seed)
        if on_round:
            on_round(0, {"base_loss_nats": base.losses[base.ridge, base.variance]})
        axes = min(self.num_basis, problem.reduction.rank) - 1
        tastes = fit_tastes(
            items,
            answers,
            base.margin,
            axes,
            Penalty(self.ridge, self.loading, self.lapse, self.steps),
            most_context=self.max_context,
            seed=self.seed,
        )
        if on_round:
            on_round(1, {"scale": tastes.scale, "spread": tastes.spread})
        return _fitted(self.kind, problem, answers, base, tastes, self.lapse)


def _fitted(
    kind: str, problem: shared.Problem, answers: Answers, base: Base, tastes: Tastes, lapse: float
) -> CrossedFitted:
    """The record in the canonical gauge of the text."""
    directions, effects, variance = _axes(base, tastes)
    table, training = problem.table, problem.training
    raw_mean = np.eye(len(variance))[0]
    basis, prior, change = gauge.canonicalise(
        problem.reduction.projection @ directions,
        Belief.from_cov(raw_mean, np.diag(variance)),
        table.embeddings[problem.used],
        problem.prompts,
        encoder=table.encoder,
        encoder_hash=table.encoder_hash,
        prompt_embeddings=problem.prompt_embeddings,
    )
    num_basis = basis.num_basis
    prior = Belief.from_cov(prior.mean, (prior.cov + FLOOR * np.eye(num_basis)).astype(np.float32))
    personal = tastes.scale > 0 or tastes.spread > 0
    rule = (GaussianRule if personal else FixedRule)(prior.mean, prior.precision, lapse)
    coef_mean = np.tile(np.asarray(prior.mean, np.float32), (training.num_users, 1))
    coef_precision = np.tile(prior.precision, (training.num_users, 1, 1))
    if personal:
        mean, precision = _seen(
            answers, base, (problem.reduction.coordinates @ directions + effects), prior, change, lapse
        )
        coef_mean[answers.order], coef_precision[answers.order] = mean, precision
    keys = np.array(keys_of(training))[problem.used]
    order = np.argsort(keys)
    report: JSONObject = {
        "num_basis": num_basis,
        "base_ridge": base.ridge,
        "base_variance": base.variance,
        "base_loss_nats": base.losses[base.ridge, base.variance],
        "scale": tastes.scale,
        "spread": tastes.spread,
        "judged_texts": len(keys),
        "left_out_loss_nats": [[c, s, *values] for (c, s), values in tastes.losses.items()],
    }
    return CrossedFitted(
        kind,
        basis,
        prior,
        rule,
        coef_mean,
        coef_precision,
        report,
        keys=tuple(keys[order].tolist()),
        effects=(effects @ change.T)[order].astype(np.float32),
    )


def _axes(base: Base, tastes: Tastes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions[P, K], effects[I, K] and prior variances[K], the shared output first.

    Personal axes are turned to the principal ones of V, of unit length; one that no text shows, or that is the
    shared direction again, is left out: a policy could not be told about it.
    """
    left, size, right = np.linalg.svd(tastes.directions, full_matrices=False)
    loadings = tastes.loadings @ right.T
    length = np.linalg.norm(base.direction)
    kept = size > RANK * max(length, 1e-12)
    left, loadings, size = left[:, kept], loadings[:, kept] / size[kept], size[kept]
    while left.shape[1]:
        unit = np.column_stack([base.direction / length, left])
        if np.linalg.svd(unit, compute_uv=False)[-1] > RANK:
            break
        left, loadings, size = left[:, :-1], loadings[:, :-1], size[:-1]
    # A spread of 0 is one of a hundredth: a population must be a proper one to be standardised.
    variance = np.append(max(tastes.spread, 0.01) ** 2, tastes.scale * size**2)
    return np.column_stack([base.direction, left]), np.column_stack([base.strength, loadings]), variance


def _seen(
    answers: Answers, base: Base, phi: np.ndarray, prior: Belief, change: np.ndarray, lapse: float
) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors of the training people, in the order of `answers`, whose base never saw their fold."""
    delta = phi[answers.chosen] - phi[answers.rejected]
    delta[:, 0] = base.margin
    return users.posteriors(
        prior,
        answers.user,
        (delta @ change.T).astype(np.float32),
        answers.outcome.astype(np.float32),
        num_users=answers.num_people,
        lapse=lapse,
        weight=answers.weight.astype(np.float32),
    )


def keys_of(prefs: Preferences) -> tuple[str, ...]:
    """What a text is recognised by: a hash of prompt and completion, whatever table it stands in."""
    return _keys(prefs.prompts, np.asarray(prefs.item_prompt, np.int64).tobytes(), prefs.item_text)


@functools.lru_cache(maxsize=4)
def _keys(prompts: tuple[Prompt, ...], item_prompt: bytes, texts: tuple[str, ...]) -> tuple[str, ...]:
    asked = [hashlib.sha256(json.dumps(prompt).encode()) for prompt in prompts]
    found = []
    for prompt, text in zip(np.frombuffer(item_prompt, np.int64).tolist(), texts, strict=True):
        digest = asked[prompt].copy()
        digest.update(b"\0" + text.encode())
        found.append(digest.hexdigest()[:KEY])
    return tuple(found)
