"""PReF: reward factorisation started by the SVD of the preference matrix.

The preferences of people (rows) for pairs (columns) are low rank in log-odds: P(y₁ ≻ y₂ | x, u) = σ(λ_u · Δφ).
    1. start: the matrix of centred answers (y − ½), unseen entries filled in by its own rank-K SVD again and
       again; people get U√S, features the regression of V√S on the embeddings;
    2. regularised joint logistic likelihood over (V, λ);
    3. a new person: λ by ridge-MLE from their answers; no population.

Source: Shenfeld, Faltings, Agrawal & Pacchiano 2025, arXiv:2503.06358 (equations only). Differs: the features
are linear in a frozen embedding instead of a fine-tuned language model; the matrix is centred at ½, else the
first component absorbs the offset; the regression on the embeddings is part of every round of filling in, so
people need not answer the same pairs and the matrix is never formed; L-BFGS on squared norms.
"""

from typing import ClassVar, Literal

import numpy as np
import pydantic
from jaxtyping import Float

from rewards.methods import lowrank
from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import LinearFitted
from rewards.methods.rules import GaussianRule


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class PReF(shared.Reduced, RewardModel):
    """PReF.

    Attributes:
      num_basis: K.
      regularise: "both" factors, or "features" alone as in the published code.
      user_ridge: ridge of the training people's coefficients (with "both").
      adapt_ridge: ridge of a new person's, in the canonical gauge.
      fill_rounds: rounds of filling in the preference matrix.
      steps: L-BFGS iterations.
    """

    kind: ClassVar[str] = "pref"

    ridge: shared.Positive = 10.0
    num_basis: shared.Count = 6
    regularise: Literal["both", "features"] = "both"
    user_ridge: shared.Positive = 3.0
    adapt_ridge: shared.Positive = 0.5
    fill_rounds: shared.Count = 10
    steps: shared.Count = 150

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        num_basis = min(self.num_basis, problem.reduction.rank, training.num_users)
        user_ridge = self.user_ridge if self.regularise == "both" else 0.0
        start = svd_start(problem, num_basis, self.fill_rounds)
        return lowrank.fit_both(
            self.kind,
            self,
            problem,
            start,
            on_round,
            user_ridge=user_ridge,
            adapt_ridge=self.adapt_ridge,
            steps=self.steps,
        )


def svd_start(
    problem: shared.Problem, num_basis: int, rounds: int
) -> tuple[Float[np.ndarray, "P K"], Float[np.ndarray, "U K"]]:
    """(V, λ) from the filled-in preference matrix M[people, pairs] ≈ L ΔXᵀ, L[U, P] of rank K.

    One round: L ← rank-K part, in the metric G = ΔXᵀΔX over distinct pairs, of L + R ΔX G⁻¹, with R the answers
    minus what L says of them, 0 for unseen entries. At last L is scaled to the log-odds of the answers.
    """
    data, delta = problem.data, problem.delta.astype(np.float64)
    pairs = np.stack([data.chosen, data.rejected], axis=1)
    # Δx changes sign with the answer, so the orientation of a pair does not matter.
    _, first, pair = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True, return_inverse=True)
    entry = np.stack([data.user, pair.reshape(-1)])
    _, inverse, repeats = np.unique(entry, axis=1, return_inverse=True, return_counts=True)
    share = problem.weight / repeats[inverse.reshape(-1)]  # repeated answers to a pair are one entry
    distinct = delta[first]
    values, vectors = np.linalg.eigh(distinct.T @ distinct)
    values = np.maximum(values, 1e-3 * values[-1])
    root, inverse_root = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
    scores = np.zeros((len(problem.answers), delta.shape[1]))
    left, size, right = scores[:, :num_basis], np.zeros(num_basis), root[:num_basis]
    for _ in range(rounds):
        residual = share * (data.outcome - 0.5 - np.sum(scores[data.user] * delta, axis=1))
        pull = np.zeros_like(scores)
        np.add.at(pull, data.user, residual[:, None] * delta)
        left, size, right = np.linalg.svd(scores @ root + pull @ inverse_root, full_matrices=False)
        left, size, right = left[:, :num_basis], size[:num_basis], right[:num_basis]
        scores = (left * size) @ right @ inverse_root
    margin = np.sum(scores[data.user] * delta, axis=1).astype(np.float32)
    scale = float(margin.std()) or 1.0
    stretch, _ = GaussianRule(np.zeros(1), np.full((1, 1), 1e-2))(
        (margin / scale)[None, :, None], np.asarray(data.outcome)[None], problem.weight[None]
    )
    stretch = max(float(stretch[0, 0]), 0.1) / scale
    directions, coef = inverse_root @ right.T * np.sqrt(size), left * np.sqrt(size) * stretch
    # Both factors of like size, where the two ridges balance.
    balance = np.sqrt(np.linalg.norm(coef, axis=0) / np.maximum(np.linalg.norm(directions, axis=0), 1e-12))
    return directions * balance, coef / np.maximum(balance, 1e-12)
