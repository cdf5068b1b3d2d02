"""The house model: signed coefficients μ + δ_u with a population prior, in the canonical gauge (`rewards.basis.fit`).

    P(chosen ≻ rejected) = ε/2 + (1 − ε) σ(w_u · Δφ),  w_u ~ N(μ, Σ)

φ, μ and Σ are fitted with the coefficients averaged out (`marginalised`), which a few answers a person need, or
as joint MAP; a new person gets the Laplace posterior under N(μ, Σ), without answers exactly the prior.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import pydantic

from rewards.basis import fit
from rewards.basis import prior as prior_module
from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import LinearFitted
from rewards.methods.rules import GaussianRule


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class House(fit.FitConfig, RewardModel):
    """Settings as `rewards.basis.fit.FitConfig`."""

    kind: ClassVar[str] = "house"

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        fitted = fit.fit_basis(
            training,
            np.asarray(table.embeddings),
            self,
            encoder=table.encoder,
            encoder_hash=table.encoder_hash,
            weight=weight,
            on_round=on_round,
        )
        rule = GaussianRule(fitted.prior.mean, prior_module.precision(fitted.prior), self.lapse)
        report = fitted.metrics | {
            "num_basis": fitted.basis.num_basis,
            "candidates": [dataclasses.asdict(candidate) for candidate in fitted.candidates],
        }
        return LinearFitted(
            self.kind, fitted.basis, fitted.prior, rule, fitted.coef_mean, fitted.coef_precision, report
        )
