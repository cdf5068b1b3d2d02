"""The reward that everybody shares in the crossed model: a direction in the text and one strength a text.

    s_n = θᵀΔx_n + b_chosen − b_rejected,   θ ~ N(0, I / ridge),   b_y ~ N(0, τ² I)

A MAP fit of a convex problem. `ridge` and τ² are chosen by the log loss of people left out, on texts that the others
judged and, half of the verdict, on texts that nobody judged: on known texts alone a strength a text explains what
the direction should, and nothing would hold the direction to what it is for. People are left out by folds; the
fits without a fold also give the base that explains that fold's answers (`Base.margin`), so that nobody's own answers
enter the strengths that their tastes are measured against.

Letters in shapes: I items, P reduced width, M distinct pairs, N answers, F folds.
Source: Bradley & Terry 1952; crossed random effects, Baayen, Davidson & Bates 2008; cross-fitting, Chernozhukov et
al. 2018.
"""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Int

from rewards.methods.crossed_data import Answers

RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
STRENGTHS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Variances τ² that are tried; 0 is a model of the text alone."""


@dataclasses.dataclass(frozen=True)
class Base:
    """The shared reward.

    Attributes:
      direction: θ[P]; strength: b[I], 0 for texts that nobody judged.
      margin: float[N] of every answer, by the fit without its person's fold.
      ridge, variance: as chosen; `losses`: (ridge, τ²) → mean held-out loss, nats.
    """

    direction: Float[np.ndarray, " P"]
    strength: Float[np.ndarray, " I"]
    margin: Float[np.ndarray, " N"]
    ridge: float
    variance: float
    losses: dict[tuple[float, float], float]


def fit_base(
    items: Float[np.ndarray, "I P"], prompts: Int[np.ndarray, " I"], answers: Answers, lapse: float, seed: int
) -> Base:
    """Choose ridge and τ², fit with everybody, and once more without each fold."""
    pairs = _Pairs.of(items, answers)
    folds = range(answers.num_folds)
    text_fold = _folds_of_texts(prompts, answers.num_folds, seed)
    losses: dict[tuple[float, float], float] = {}
    starts: dict[int, np.ndarray] = {}

    def loss(ridge: float, variance: float) -> float:
        if (ridge, variance) not in losses:
            found = []
            for fold in folds:
                new = pairs.touch(text_fold == fold)
                weight = pairs.wins - pairs.wins_of[fold]
                coef = pairs.solve(weight * ~new[:, None], ridge, variance, lapse, starts.get(fold), 1e-7)
                starts[fold] = coef
                found.append(pairs.loss(coef, pairs.wins_of[fold], new, lapse, variance))
            losses[ridge, variance] = float(np.mean(found))
        return losses[ridge, variance]

    ridge, variance = 30.0, 0.3
    for _ in range(2):  # one setting after the other, twice: the loss is flat along most of the grid
        ridge = min(RIDGES, key=lambda value: loss(value, variance))
        variance = min(STRENGTHS, key=lambda value: loss(ridge, value))
    coef = pairs.solve(pairs.wins, ridge, variance, lapse, None)
    margin = np.empty(len(answers.user))
    for fold in folds:
        own = pairs.solve(pairs.wins - pairs.wins_of[fold], ridge, variance, lapse, coef)
        rows = answers.fold == fold
        margin[rows] = pairs.margins(own, items, answers, rows)
    width = items.shape[1]
    return Base(coef[:width], coef[width:], margin, ridge, variance, losses)


def _folds_of_texts(prompts: Int[np.ndarray, " I"], folds: int, seed: int) -> Int[np.ndarray, " I"]:
    """A text belongs to a fold too and is new to that fold's people: with all texts of its prompt, given enough prompts."""
    rng = np.random.default_rng([seed, 31])
    asked, place = np.unique(prompts, return_inverse=True)
    if len(asked) >= 2 * folds:
        return (rng.permutation(len(asked)) % folds)[place]
    return rng.permutation(len(prompts)) % folds


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Answers added up by pair; what the base reads of them.

    Attributes:
      delta: Δx[M, P]; first, second: items; wins[M, 2]: weight of answers for first and for second; wins_of[F, M, 2].
    """

    num_items: int
    delta: Float[np.ndarray, "M P"]
    first: Int[np.ndarray, " M"]
    second: Int[np.ndarray, " M"]
    wins: Float[np.ndarray, "M 2"]
    wins_of: Float[np.ndarray, "F M 2"]

    @classmethod
    def of(cls, items: np.ndarray, answers: Answers) -> "_Pairs":
        code = answers.chosen.astype(np.int64) * len(items) + answers.rejected
        distinct, place = np.unique(code, return_inverse=True)
        first, second = distinct // len(items), distinct % len(items)
        wins = np.zeros((answers.num_folds, len(distinct), 2))
        for side, outcome in ((0, answers.outcome), (1, 1 - answers.outcome)):
            np.add.at(wins[..., side], (answers.fold, place), answers.weight * outcome)
        return cls(len(items), items[first] - items[second], first, second, wins.sum(axis=0), wins)

    def touch(self, texts: np.ndarray) -> np.ndarray:
        return texts[self.first] | texts[self.second]

    def margins(self, coef: np.ndarray, items: np.ndarray, answers: Answers, rows: np.ndarray) -> np.ndarray:
        value = items @ coef[: items.shape[1]] + coef[items.shape[1] :]
        return value[answers.chosen[rows]] - value[answers.rejected[rows]]

    def solve(
        self,
        wins: np.ndarray,
        ridge: float,
        variance: float,
        lapse: float,
        start: np.ndarray | None,
        precision: float = 1e-10,
    ) -> Float[np.ndarray, " parameters"]:
        """(θ, b) by L-BFGS in units of their prior deviations."""
        width = self.delta.shape[1]
        unit = np.concatenate(
            [np.full(width, ridge**-0.5), np.full(self.num_items, np.sqrt(max(variance, 1e-12)))]
        )
        if variance == 0:
            unit[width:] = 0.0

        def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
            coef = z * unit
            margin = self.delta @ coef[:width] + coef[width:][self.first] - coef[width:][self.second]
            value, slope = _value_slope(margin, wins, lapse)
            effect = np.bincount(self.first, slope, self.num_items)
            effect -= np.bincount(self.second, slope, self.num_items)
            gradient = np.concatenate([slope @ self.delta, effect])
            return value + 0.5 * float(z @ z), gradient * unit + z

        z = (
            np.zeros(len(unit))
            if start is None
            else np.where(unit > 0, start / np.where(unit > 0, unit, 1), 0)
        )
        options = {"maxiter": 200, "maxcor": 20, "ftol": precision, "gtol": 1e-4}
        found = scipy.optimize.minimize(objective, z, jac=True, method="L-BFGS-B", options=options)
        return found.x * unit

    def loss(
        self, coef: np.ndarray, wins: np.ndarray, new: np.ndarray, lapse: float, variance: float
    ) -> float:
        """Mean loss on known texts and on pairs with a new one, half each; a new text's b is averaged out."""
        width = self.delta.shape[1]
        margin = self.delta @ coef[:width] + coef[width:][self.first] - coef[width:][self.second]
        shrunk = np.where(new, margin / np.sqrt(1 + np.pi * variance / 8), margin)
        parts = []
        for kind in (~new, new):
            if (total := wins[kind].sum()) > 0:
                parts.append(_value_slope(shrunk[kind], wins[kind], lapse)[0] / total)
        return float(np.mean(parts)) if parts else 0.0


def _value_slope(margin: np.ndarray, wins: np.ndarray, lapse: float) -> tuple[float, np.ndarray]:
    """−Σ wins log P and its derivative in the margins (`rewards.basis.likelihood`, float64)."""
    up, down = (_log_probability(sign * margin, lapse) for sign in (1, -1))
    value = -float(wins[:, 0] @ up + wins[:, 1] @ down)
    rise = (1 - lapse) * scipy.special.expit(margin) * scipy.special.expit(-margin)
    return value, rise * (wins[:, 1] * np.exp(-down) - wins[:, 0] * np.exp(-up))


def _log_probability(margin: np.ndarray, lapse: float) -> np.ndarray:
    genuine = scipy.special.log_expit(margin)
    return genuine if lapse == 0 else np.logaddexp(np.log(lapse / 2), np.log1p(-lapse) + genuine)
