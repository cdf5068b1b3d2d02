"""Mixture of experts over groups of people: EM as in MaxMin-RLHF, and what every group gets.

    r_u(x, y) = θ_g(u) · x(x, y)
    E: p(g | u) ∝ share_g Π_n P(y_n | θ_g)^{a_n}   (hard: 1 for the likeliest group)
    M: θ_g = ridge logistic regression on all comparisons, weighted by p(g | u);  share_g = mean p(g | u)

A new person gets w = Σ_g p(g | answers) θ_g. A policy for the worst-off group maximises the smallest group
utility; `report["groups"]` has what it needs, each group under every group's reward and under the pooled one.

Source: Chakraborty et al. 2024, arXiv:2402.08925, algorithm 2 (hard EM). Differs: starts from clusters of
people's own directions instead of user_id modulo K; groups that lose all people are dropped; utilities are
expectations over a group, not per-sample minima.
"""

from typing import ClassVar

import numpy as np
import pydantic
from jaxtyping import Float

from rewards.basis import likelihood
from rewards.files import JSONObject
from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import Canonical, LinearFitted, finish
from rewards.methods.rules import GroupRule


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class Mixture(shared.Reduced, RewardModel):
    """Groups of people, one reward each.

    Attributes:
      num_groups: groups at the start.
      soft: keep probabilities of groups in the E-step instead of the likeliest alone.
      rounds: EM rounds at most; it stops when nobody moves.
    """

    kind: ClassVar[str] = "mixture"

    num_groups: shared.Count = 8
    soft: bool = False
    rounds: shared.Count = 30

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        present = problem.answers > 0
        member = self._start(problem, present)
        for number in range(self.rounds):
            member = member[:, member[present].sum(axis=0) > 0.5]
            directions, share = self._maximise(problem, member, present)
            loss = self._losses(problem, directions)
            new = self._expect(loss, share)
            moved = float(np.abs(new - member)[present].sum()) / 2
            member = new
            if on_round:
                total = float(np.sum(member * loss)) / float(problem.weight.sum())
                on_round(number, {"loss_nats": total, "people_moved": moved})
            if moved < 0.01:
                break
        keep = member[present].sum(axis=0) > 0.5
        member, directions = member[:, keep] / member[:, keep].sum(axis=1, keepdims=True), directions[:, keep]
        log_share = np.log(np.maximum(share[keep] / share[keep].sum(), 1e-12)).astype(np.float32)

        def rule(gauge: Canonical) -> GroupRule:
            vertices = gauge.coefficients(np.eye(directions.shape[1]))
            return GroupRule(vertices, log_share, gauge.precision, self.lapse)

        report = {"rounds": number + 1, "groups": self._groups(problem, directions, member, present)}
        return finish(self.kind, problem, directions, member, rule, report)

    def _start(self, problem: shared.Problem, present: np.ndarray) -> Float[np.ndarray, "U G"]:
        _, logits = shared.simplex_start(problem, self.num_groups, self.ridge, self.lapse)
        return np.eye(logits.shape[1])[np.argmax(logits, axis=1)] * present[:, None]

    def _maximise(self, problem: shared.Problem, member, present):
        columns = [
            shared.pooled_direction(
                problem, self.ridge, self.lapse, problem.weight * member[problem.data.user, group]
            )
            for group in range(member.shape[1])
        ]
        return np.stack(columns, axis=1), member[present].mean(axis=0)

    def _losses(self, problem: shared.Problem, directions: np.ndarray) -> Float[np.ndarray, "U G"]:
        """−log likelihood of every person's answers under every group's reward, nats."""
        data = problem.data
        nll = likelihood.negative_log_likelihood(
            problem.delta @ directions, data.outcome[:, None], np.float32(self.lapse)
        )
        total = np.zeros((len(problem.answers), directions.shape[1]))
        np.add.at(total, data.user, problem.weight[:, None] * np.asarray(nll, np.float64))
        return total

    def _expect(self, loss: np.ndarray, share: np.ndarray) -> Float[np.ndarray, "U G"]:
        score = np.log(np.maximum(share, 1e-12)) - loss
        if not self.soft:
            return np.eye(len(share))[np.argmax(score, axis=1)]
        odds = np.exp(score - score.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def _groups(self, problem: shared.Problem, directions, member, present) -> JSONObject:
        """Share of people, and the accuracy of each group's answers under every reward, the pooled one last."""
        pooled = shared.pooled_direction(problem, self.ridge, self.lapse)
        margin = problem.delta @ np.concatenate([directions, pooled[:, None]], axis=1)
        counted = problem.weight * (problem.data.outcome != 0.5)
        right = (margin > 0) == (problem.data.outcome > 0.5)[:, None]
        owned = member[problem.data.user] * counted[:, None]
        accuracy = owned.T @ right / np.maximum(owned.sum(axis=0), 1e-12)[:, None]
        return {
            "share": member[present].mean(axis=0).tolist(),
            "accuracy": accuracy[:, :-1].tolist(),
            "accuracy_pooled": accuracy[:, -1].tolist(),
            "worst_own": float(np.diag(accuracy[:, :-1]).min()),
            "worst_pooled": float(accuracy[:, -1].min()),
        }
