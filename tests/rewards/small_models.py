"""The smallest reward models that can be compared: one taste for all, a Gaussian over tastes, and broken ones."""

import dataclasses
from typing import ClassVar

import numpy as np

from rewards.basis import fit
from rewards.basis.readout import Readout
from rewards.methods.base import Comparisons, FittedModel, RewardModel
from rewards.methods.rules import GaussianRule
from rewards.types import RewardBasis


@dataclasses.dataclass(frozen=True)
class SmallFitted(FittedModel):
    """w·φ with the house posterior; `listens` False is the amputated model, whose people are all the mean."""

    kind: ClassVar[str] = "small"
    basis: RewardBasis
    rule: GaussianRule
    coef: np.ndarray
    listens: bool = True

    def features(self, table):
        return Readout.of(self.basis).features(table.embeddings, table.prefs.item_prompt)

    def _adapt(self, table, answers: Comparisons):
        if not self.listens:
            return np.tile(self.rule.mean, (len(answers.weight), 1))
        phi = self.features(table)
        return self.rule(phi[answers.chosen] - phi[answers.rejected], answers.outcome, answers.weight)[0]

    def seen(self):
        return self.coef

    def _margins(self, table, people, pairs):
        phi = self.features(table)
        return np.einsum("utk,uk->ut", phi[pairs.chosen] - phi[pairs.rejected], people) * (pairs.weight > 0)

    def tensors(self):
        return {}

    def settings(self):
        return {}

    @classmethod
    def restore(cls, tensors, settings):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class SmallHouse(RewardModel):
    kind: ClassVar[str] = "small"
    num_basis: int = 2
    dims: int = 4
    listens: bool = True

    def _fit(self, table, training, *, weight=None, on_round=None):
        config = fit.FitConfig(num_basis=self.num_basis, dims=self.dims, rounds=6, ridge=1.0)
        result = fit.fit_basis(training, table.embeddings, config, encoder={}, weight=weight)
        rule = GaussianRule(result.prior.mean, np.linalg.inv(result.prior.cov))
        return SmallFitted(result.basis, rule, result.coef_mean, self.listens)


@dataclasses.dataclass(frozen=True)
class SmallAggregate(RewardModel):
    kind: ClassVar[str] = "aggregate"
    dims: int = 4

    def _fit(self, table, training, *, weight=None, on_round=None):
        score = fit.fit_pooled(
            training, table.embeddings, fit.FitConfig(num_basis=1, dims=self.dims, ridge=1.0)
        )
        return Everybody(score, training.num_users)


@dataclasses.dataclass(frozen=True)
class Everybody(FittedModel):
    kind: ClassVar[str] = "aggregate"
    score_of: np.ndarray
    num_users: int

    def _adapt(self, table, answers):
        return np.ones((len(answers.weight), 1))

    def seen(self):
        return np.ones((self.num_users, 1))

    def _margins(self, table, people, pairs):
        return (self.score_of[pairs.chosen] - self.score_of[pairs.rejected]) * (pairs.weight > 0)

    def tensors(self):
        return {}

    def settings(self):
        return {}

    @classmethod
    def restore(cls, tensors, settings):
        raise NotImplementedError
