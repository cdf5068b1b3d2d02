"""How people differ in the crossed model: directions V in the text and loadings ξ a text, by what answers predict.

    φ_k(y) = v_kᵀx(y) + ξ_{k,y},   s_u,n = (1 + s ε_u) m_n + δ_u·Δφ_n,   ε_u ~ N(0, 1), δ_u ~ N(0, c I)

m_n is the margin of the base that never saw the person's fold. V and ξ lower the loss of a person's targets given
other answers of theirs, no text in both,

    L = −Σ_targets log E[σ(s)],   δ | context ~ N(δ̂, H⁻¹) by Laplace,   + ½ ridge |V|² + ½ |ξ|² / τ_ξ²

so an axis is worth what it predicts and not what it fits. The expectation is MacKay's: E[σ(s)] ≈ σ(ŝ / √(1 + πv/8)).
c and s are chosen afterwards, by the same loss on people whose fold was left out of everything, earlier answers → later
ones: the smallest within one standard error of the best, c first; c = s = 0 is the base.

Letters in shapes: I items, P reduced width, K axes, N answers, B episodes, n context, T targets.
Source: MacKay 1992 (moderated outputs); one-standard-error rule, Breiman et al. 1984.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Array, Float

from rewards.basis import likelihood, users
from rewards.methods.crossed_data import Answers, Episodes, draw_episodes, earlier_and_later

SCALES = (0.0, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0)
"""Variances c of a taste that are tried, as shares of the one that V and ξ were fitted under."""
SPREADS = (0.0, 0.15, 0.3, 0.5)
"""Standard deviations s of how sharply people choose that are tried."""
NEWTON = 4  # steps of the posterior; from the prior, where the curvature is largest, they reach it
MOST_EPISODES = 4096


@dataclasses.dataclass(frozen=True)
class Tastes:
    """Personal axes in reduced coordinates.

    Attributes:
      directions: V[P, K]; loadings: ξ[I, K]. scale: c; spread: s.
      losses: (c, s) → mean and standard error over people of the loss on people left out, nats; se is that of the
        difference to the best.
    """

    directions: Float[np.ndarray, "P K"]
    loadings: Float[np.ndarray, "I K"]
    scale: float
    spread: float
    losses: dict[tuple[float, float], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Penalty:
    """ridge of V (nats⁻²), standard deviation τ_ξ of the loadings, lapse ε, and steps of L-BFGS."""

    ridge: float
    loading: float
    lapse: float
    steps: int


def fit_tastes(
    items: Float[np.ndarray, "I P"],
    answers: Answers,
    margin: Float[np.ndarray, " N"],
    num_axes: int,
    penalty: Penalty,
    *,
    most_context: int,
    seed: int,
) -> Tastes:
    """V and ξ of everybody, and the scale by people left out."""
    per_person = int(np.clip(MOST_EPISODES // answers.num_people, 1, 4))
    drawn = draw_episodes(answers, seed, per_person=per_person, most_context=most_context, most_targets=4)
    met = earlier_and_later(answers, most_context=most_context, most_targets=6)
    width = items.shape[1]
    nothing = Tastes(np.zeros((width, 0)), np.zeros((len(items), 0)), 0.0, 0.0, {})
    if len(drawn.user) == 0 or len(met.user) < 2:
        return nothing
    learner = _Learner(items, answers, margin, drawn, penalty)
    fold_of = np.zeros(answers.num_people, int)
    fold_of[answers.user] = answers.fold
    scales = SCALES if num_axes else SCALES[:1]
    grid = {(c, s): np.zeros(len(met.user)) for c in scales for s in SPREADS}
    for fold in range(answers.num_folds):
        held = fold_of[met.user] == fold
        if not held.any():
            continue
        phi = learner.features(learner.fit(num_axes, fold_of != fold)) if num_axes else nothing.loadings
        for (c, s), found in grid.items():
            found[held] = learner.person_loss(phi, met, c, s)[held]
    scale, spread, losses = choose(grid)
    if scale == 0.0:
        return dataclasses.replace(nothing, spread=spread, losses=losses)
    params = learner.fit(num_axes, np.ones(answers.num_people, bool))
    directions, loadings = learner.unpacked(params)
    return Tastes(directions, loadings, scale, spread, losses)


def choose(
    grid: dict[tuple[float, float], np.ndarray],
) -> tuple[float, float, dict[tuple[float, float], tuple[float, float]]]:
    """The smallest c, then the smallest s, whose loss is within one standard error of the best.

    Args:
      grid: (c, s) → loss of every person; the standard error is that of the paired difference.
    """
    best = min(grid, key=lambda key: float(grid[key].mean()))
    table = {}
    for key, loss in grid.items():
        difference = loss - grid[best]
        table[key] = float(loss.mean()), float(difference.std(ddof=1) / np.sqrt(len(loss)))
    near = [key for key, (mean, error) in table.items() if mean - table[best][0] <= error or key == best]
    scale, spread = min(near)
    return scale, spread, table


class _Learner:
    """The compiled objective and what it reads; one program serves all folds, whose people differ in weight alone."""

    def __init__(
        self, items: np.ndarray, answers: Answers, margin: np.ndarray, drawn: Episodes, penalty: Penalty
    ):
        self.items, self.answers, self.margin, self.penalty = items, answers, margin, penalty
        self.drawn = drawn
        self.unit_direction = penalty.ridge**-0.5
        self.batch = self._batch(drawn, drawn.share)
        self.placed = jnp.asarray(items, jnp.float32)

    def fit(self, num_axes: int, people: np.ndarray) -> np.ndarray:
        """Packed parameters, units of their prior deviations, from the people under the mask."""
        weight = jnp.asarray(self.drawn.share * people[self.drawn.user], jnp.float32)
        units = jnp.float32(self.unit_direction), jnp.float32(self.penalty.loading)

        def objective(packed: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = _objective(
                jnp.asarray(packed.reshape(-1, num_axes), jnp.float32),
                self.placed,
                self.batch,
                weight,
                units,
                jnp.float32(self.penalty.lapse),
            )
            return float(value), np.asarray(slope, np.float64).ravel()

        options = {"maxiter": self.penalty.steps, "maxcor": 15, "ftol": 1e-5, "gtol": 1e-3}
        start = self._start(num_axes, people)
        found = scipy.optimize.minimize(
            objective, start.ravel(), jac=True, method="L-BFGS-B", options=options
        )
        return found.x.reshape(-1, num_axes)

    def _start(self, num_axes: int, people: np.ndarray) -> Float[np.ndarray, "rows K"]:
        """Along what people's residuals have in common: leading right singular vectors of everybody's score."""
        a = self.answers
        residual = a.weight * (a.outcome - 1 / (1 + np.exp(-self.margin))) * people[a.user]
        count = np.maximum(np.bincount(a.user, a.weight, len(people)), 1e-9)
        residual = residual / np.sqrt(count)[a.user]
        shape = len(people), len(self.items)
        parts = [
            scipy.sparse.csr_matrix((sign * residual, (a.user, side)), shape=shape)
            for sign, side in ((1, a.chosen), (-1, a.rejected))
        ]
        by_item = parts[0] + parts[1]
        by_text = np.asarray(by_item @ self.items) * self.unit_direction
        by_item = by_item * self.penalty.loading
        # Small side: people or text directions; the loadings of the axes follow from the people.
        moments = by_text @ by_text.T if len(people) <= 2000 else None
        if moments is not None:
            moments = moments + (by_item @ by_item.T).toarray()
            size, left = np.linalg.eigh(moments)
            left, size = left[:, ::-1][:, :num_axes], np.sqrt(np.maximum(size[::-1][:num_axes], 1e-12))
            right = np.concatenate([by_text.T @ left, by_item.T @ left]) / size
        else:
            vectors = np.linalg.svd(by_text.T @ by_text)[0][:, :num_axes]
            right = np.concatenate([vectors, np.zeros((len(self.items), vectors.shape[1]))])
        right = np.pad(right, ((0, 0), (0, num_axes - right.shape[1])))
        spread = np.sqrt(np.mean(self._delta(right) ** 2, axis=0))
        return 0.7 * right / np.maximum(spread, 1e-9)

    def _delta(self, packed: np.ndarray) -> np.ndarray:
        phi = self.features(packed)
        return phi[self.answers.chosen] - phi[self.answers.rejected]

    def unpacked(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = self.items.shape[1]
        return packed[:width] * self.unit_direction, packed[width:] * self.penalty.loading

    def features(self, packed: np.ndarray) -> Float[np.ndarray, "I K"]:
        directions, loadings = self.unpacked(packed)
        return self.items @ directions + loadings

    def _batch(self, episodes: Episodes, share: np.ndarray) -> "_Batch":
        a = self.answers

        def part(rows: np.ndarray) -> tuple[np.ndarray, ...]:
            present, index = rows >= 0, np.where(rows >= 0, rows, 0)
            numbers = (self.margin[index], a.outcome[index], a.weight[index] * present)
            return (
                a.chosen[index].astype(np.int32),
                a.rejected[index].astype(np.int32),
                *(np.asarray(number, np.float32) for number in numbers),
            )

        return _Batch(part(episodes.context), part(episodes.target))

    def person_loss(self, phi: np.ndarray, met: Episodes, scale: float, spread: float) -> np.ndarray:
        """Mean loss of every person's later answers, given the earlier ones, under one c and s."""
        batch = self._batch(met, met.share)
        widths = np.append(np.full(phi.shape[1], np.sqrt(scale)), spread)
        loss = _losses(
            jnp.asarray(phi, jnp.float32),
            batch,
            jnp.asarray(widths, jnp.float32),
            jnp.float32(self.penalty.lapse),
        )
        weight = np.asarray(batch.target[4])
        return np.sum(np.asarray(loss) * weight, axis=1) / weight.sum(axis=1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["context", "target"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Batch:
    """(chosen, rejected, margin, outcome, weight) of context [B, n] and targets [B, T]."""

    context: tuple
    target: tuple


@jax.jit
@jax.value_and_grad
def _objective(packed, items, batch: _Batch, share, units, lapse):
    width = items.shape[1]
    phi = items @ (packed[:width] * units[0]) + packed[width:] * units[1]
    widths = jnp.append(jnp.ones(phi.shape[1]), 0.0)
    loss = predictive_loss(phi, batch, widths, lapse)
    return jnp.sum(share[:, None] * batch.target[4] * loss) + 0.5 * jnp.sum(packed**2)


@jax.jit
def _losses(phi, batch: _Batch, widths, lapse):
    return predictive_loss(phi, batch, widths, lapse)


def predictive_loss(
    phi: Float[Array, "I K"], batch: _Batch, widths: Float[Array, " K+1"], lapse: Float[Array, ""]
) -> Float[Array, "B T"]:
    """−log P of every target given the context, the posterior of δ and ε averaged out.

    `widths` are prior deviations: √c for each axis, and s; axes of width 0 change nothing.
    """

    def side(part):
        chosen, rejected, margin, outcome, weight = part
        delta = jnp.concatenate([phi[chosen] - phi[rejected], margin[..., None]], axis=-1) * widths
        return delta, margin, outcome, weight

    solve = jax.vmap(users.solve)
    delta, margin, outcome, weight = side(batch.context)
    eye = jnp.eye(len(widths))

    def curvature(coef):
        total = margin + jnp.einsum("bnk,bk->bn", delta, coef)
        curve = weight * likelihood.fisher_information(total, lapse)
        return total, jnp.einsum("bnk,bn,bnl->bkl", delta, curve, delta) + eye

    def step(coef, _):
        total, hessian = curvature(coef)
        slope = jnp.einsum("bnk,bn->bk", delta, weight * likelihood.score(total, outcome, lapse)) - coef
        return coef + solve(hessian, slope), None

    coef = jax.lax.scan(step, jnp.zeros((len(margin), len(widths))), None, length=NEWTON)[0]
    hessian = curvature(coef)[1]
    delta, margin, outcome, _ = side(batch.target)
    mean = margin + jnp.einsum("btk,bk->bt", delta, coef)
    inverse = jax.vmap(solve, in_axes=(None, 0), out_axes=1)(
        hessian, jnp.broadcast_to(eye[:, None], (len(eye), len(mean), len(eye)))
    )
    variance = jnp.einsum("btk,bkl,btl->bt", delta, inverse, delta)
    return likelihood.negative_log_likelihood(mean / jnp.sqrt(1 + jnp.pi * variance / 8), outcome, lapse)
