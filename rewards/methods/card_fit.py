"""The fit of user cards: which card predicts which answer, the objective and its start.

Letters in shapes: P reduced width, Q card coordinates, K basis outputs, N comparisons, n answers.
"""

import dataclasses

import jax
import numpy as np

from rewards.basis import likelihood
from rewards.data.order import by_content
from rewards.methods import training as shared
from rewards.methods.base import Comparisons
from rewards.types import Preferences


def coefficients(params):
    # The cards are data, but belong to people as coefficients do; without a gradient L-BFGS leaves them alone.
    return params["mean"] + jax.lax.stop_gradient(params["cards"]) @ params["card_map"]


def penalty(params, scales):
    aggregate, tastes = params["directions"] @ params["mean"], params["directions"] @ params["card_map"].T
    return 0.5 * scales["ridge"] * (aggregate @ aggregate) + 0.5 * scales["card_ridge"] * (tastes**2).sum()


LINK = shared.Link(shared.linear_features, coefficients, penalty)


def rows_of(training: Preferences, weight: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Rows of everybody's comparisons in time order, int[people, n]; −1 pads, comparisons of weight 0 are left out."""
    rows, (_, place) = np.flatnonzero(weight > 0), by_content(training)
    rows = rows[np.lexsort((place[rows], training.user_index[rows]))]
    counts = np.bincount(training.user_index[rows], minlength=training.num_users)
    start = (np.cumsum(counts) - counts)[people, None]
    position = np.arange(counts[people].max())
    inside = position < counts[people, None]
    return np.where(inside, rows[np.where(inside, start + position, 0)], -1)


def once_each(training: Preferences, weight: np.ndarray) -> tuple[Preferences, np.ndarray]:
    """Comparisons in which a person says the same thing again become one, with the sum of their weights.

    A card must not be asked to predict what it quotes; and a row that stands twice is a row of weight 2.
    """
    rows = np.flatnonzero(weight > 0)
    _, place = by_content(training)
    rows = rows[np.argsort(place[rows])]
    said = np.stack(
        [part[rows] for part in (training.user_index, training.chosen, training.rejected)], axis=1
    )
    outcome = training.outcome[rows, None].astype(np.float64)
    _, first, group = np.unique(
        np.concatenate([said, outcome], axis=1), axis=0, return_index=True, return_inverse=True
    )
    total = np.bincount(group.ravel(), weight[rows]).astype(np.float32)
    keep = np.zeros(training.num_comparisons, bool)
    keep[rows[first]] = True
    counted = np.zeros(training.num_comparisons, np.float32)
    counted[rows[first]] = total
    return training.select(keep), counted[keep]


@dataclasses.dataclass(frozen=True)
class Halves:
    """Two cards a person, each for predicting the half of the answers it was not written from.

    Attributes:
      given: answers of card 2p and 2p + 1 of person p: a random number of those of one half, so that short cards
        are known too.
      card: int[N], the card that predicts each training comparison.
    """

    given: Comparisons
    card: np.ndarray

    @classmethod
    def draw(cls, training: Preferences, weight: np.ndarray, people: np.ndarray, seed: int) -> "Halves":
        rng, (_, place) = np.random.default_rng(seed + 2), by_content(training)
        card = np.zeros(training.num_comparisons, np.int32)
        chosen: list[np.ndarray] = []
        for person, padded in enumerate(rows_of(training, weight, people)):
            rows = rng.permutation(padded[padded >= 0])
            parts = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            for side, part in enumerate(parts):
                given = part[: rng.integers(1, len(part) + 1)]
                chosen.append(given[np.argsort(place[given])])
                card[parts[1 - side]] = 2 * person + side
        table = np.full((len(chosen), max(map(len, chosen))), -1, np.int64)
        for line, rows in zip(table, chosen, strict=True):
            line[: len(rows)] = rows
        return cls(Comparisons.of(training, table), card)

    def data(self, problem: shared.Problem, use: np.ndarray):
        """The comparisons predicted by the cards where use[cards] holds; cards take the place of people."""
        return problem.data._replace(
            user=self.card, weight=problem.weight * use[self.card].astype(np.float32)
        )


def start(problem: shared.Problem, data, cards: np.ndarray, num_basis: int, scales: dict[str, float]):
    """θ pooled over everybody, then the SVD of the gradient that a full P × Q map of cards would follow."""
    theta = shared.pooled_direction(problem, scales["ridge"], scales["lapse"], data.weight).astype(np.float64)
    delta = problem.delta.astype(np.float64)
    margin = (delta @ theta).astype(np.float32)
    residual = data.weight * np.asarray(likelihood.score(margin, data.outcome, scales["lapse"]))
    curvature = float(data.weight @ np.asarray(likelihood.fisher_information(margin, scales["lapse"])))
    pull = (delta * residual[:, None]).T @ cards[data.user]
    num_basis = min(num_basis, *pull.shape)
    axis = theta / max(np.linalg.norm(theta), 1e-12)
    others = shared.leading((pull - np.outer(axis, axis @ pull)).T, num_basis - 1)
    directions = np.linalg.qr(np.concatenate([axis[:, None], others], axis=1))[0]
    return {
        "directions": directions,
        "mean": directions.T @ theta,
        "card_map": (directions.T @ pull).T / (2.0 * curvature + scales["card_ridge"]),
        "cards": cards,
    }


def loss_nats(data, params: dict[str, np.ndarray], lapse: float) -> float:
    """Mean loss of the weighted comparisons, nats."""
    phi, coef = data.items @ params["directions"], np.asarray(coefficients(params))
    margin = np.sum(coef[data.user] * (phi[data.chosen] - phi[data.rejected]), axis=1)
    loss = np.asarray(likelihood.negative_log_likelihood(margin, data.outcome, lapse))
    return float(data.weight @ loss / max(float(data.weight.sum()), 1e-9))
