"""The nearest coefficients within rails, for many people at once: one small quadratic program.

    w̃ = argmin_v (v − w)ᵀ M⁻¹ (v − w)   s.t.  v_k = ℓ_k (locked),  D v ≤ b,  a ≤ v ≤ c (bounded)

M is a posterior covariance (guardrails are paid for where the person is known least) or, in the gate, the population's Σ: w̃
then depends on w alone, and the same coefficients give the same policy wherever they come from. One half-space alone has the
closed form w̃ = w − M d (d·w − b)₊ / (dᵀ M d).

1. What w says of a locked axis is overwritten first, so w̃ does not depend on it at all. (Left in, M would move correlated
   free axes along with it: asking for more of what is locked would be heard on the others.) v moves in the other axes
   alone, under M₁ = M_{FF} − M_{FL} M_{LL}⁻¹ M_{LF} = ((M⁻¹)_{FF})⁻¹.
2. With M₁ = S Sᵀ and v = v₀ + S u the rest is the point of least norm in {u : A u ≤ c}, A = G S with rows of norm 1: the
   dual active-set method of Goldfarb and Idnani (1983), which is exact after finitely many turns. A turn takes the limit
   that is missed most, goes towards it with the active ones held, and lets go of those whose price reaches 0; the
   inverse of the active limits' Gram matrix is kept up to date by bordering. People who meet the rails cost no turn.
3. What is still outside by rounding is pulled towards a point well inside (the Chebyshev centre): no rail is ever missed by
   more than float32.
4. Trust region: w̃ ← μ̃ + (w̃ − μ̃) min(1, √(κ / KL)),  KL = ‖w̃ − μ̃‖² / (2β²) nats: the local KL (w̃−μ̃)ᵀ C (w̃−μ̃) / (2β²)
   between π_ref tilted by w̃ and by μ̃, where C = Cov[φ] is I in the canonical gauge. Rails are convex and hold at μ̃, so
   they hold on the way.

Everything that depends on the rails alone is computed once on the host in float64.

Shapes: … people, K basis outputs, F axes that are not locked, R limits (half-spaces and bounds).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.optimize import linprog

from rewards.basis.belief import Belief
from rewards.basis.rails import Rails, stated
from rewards.errors import UserError

TURNS = 6  # at most so many for every limit; a bound that no problem tried has come near
TOLERANCE = 2e-6  # of a limit, in standard deviations of what it limits (rows of A have norm 1)
PARALLEL = 1e-6  # squared sine under which a limit counts as one of those that are active
FLOAT32 = 1e-5  # what rounding may miss a limit by
SLACK = 1e-9
VISIBLE = 1e-3  # smaller changes of a coefficient are not spoken of


class Limits(NamedTuple):
    """Rails of a population as arrays: what compiled code reads. R is 0 where there are only locks.

    Attributes:
      low, high: [K], infinite where an axis is free, equal where it is locked.
      rows: [R, K], G scaled so that A has rows of norm 1; bound: [R].
      reach: [R, K], A Sᵀ; gram: [R, R], A Aᵀ.
      anchor: [K], well inside; origin: [K], μ̃.
      radius: β √(2κ), how far from μ̃ the trust region reaches; infinite without one.
    """

    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray
    bound: np.ndarray
    reach: np.ndarray
    gram: np.ndarray
    anchor: np.ndarray
    origin: np.ndarray
    radius: np.ndarray


def limits(rails: Rails, prior: Belief, beta: float, metric: np.ndarray | None = None) -> Limits:
    """Rails over the coefficients of a population N(μ, Σ).

    Args:
      beta: price of KL to π_ref, which turns nats into a distance of coefficients.
      metric: M[K, K], symmetric positive definite; None is Σ.
    Raises:
      UserError: no coefficients meet all of them.
    """
    size = len(rails.names)
    cov = np.asarray(prior.cov if metric is None else metric, np.float64)
    cov = 0.5 * (cov + cov.T)
    place = {name: k for k, name in enumerate(rails.names)}
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    for axis in rails.axes:
        low[place[axis.name]], high[place[axis.name]] = axis.low, axis.high
    locked = low == high
    value = np.where(locked, low, 0.0)
    root = _root(cov, locked)
    rows, bound, named = _inequalities(rails, place)
    names, rows, bound = _met_by_locks(rows, bound, named, root, value)
    norms = np.linalg.norm(rows @ root, axis=1, keepdims=True)
    rows, bound = rows / norms, bound / norms[:, 0]
    a = rows @ root
    start = np.where(locked, value, np.asarray(prior.mean, np.float64))
    anchor = start + root @ _inside(a, bound - rows @ start, names)
    made = Limits(
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        rows=rows.astype(np.float32),
        bound=bound.astype(np.float32),
        reach=(a @ root.T).astype(np.float32),
        gram=(a @ a.T).astype(np.float32),
        anchor=anchor.astype(np.float32),
        origin=anchor.astype(np.float32),
        radius=np.array(np.inf, np.float32),
    )
    origin = np.asarray(project(made, np.asarray(prior.mean, np.float32)))
    return made._replace(origin=origin, radius=np.array(beta * np.sqrt(2.0 * rails.trust_nats), np.float32))


def stated_for(
    given: Mapping[str, Any], names: Sequence[str], basis: str, prior: Belief, place: str
) -> Rails:
    """`rails.stated` for a population; refuses what no coefficients meet, too."""
    found = stated(given, names, basis, place)
    limits(found, prior, 1.0)
    return found


@jax.jit
def project(limits: Limits, coef: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """w̃ of coefficients, by 1. to 4. above; coefficients that meet the rails stay as they are."""
    start = jnp.where(limits.low == limits.high, limits.low, coef)
    if not limits.bound.size:
        return _trusted(limits, jnp.clip(start, limits.low, limits.high))
    room = limits.bound - start @ limits.rows.T
    flat = jnp.reshape(room, (-1, room.shape[-1]))
    prices = jax.vmap(_prices, in_axes=(None, 0))(jnp.asarray(limits.gram), flat).reshape(room.shape)
    found = jnp.where(jnp.any(prices > 0, axis=-1, keepdims=True), start - prices @ limits.reach, start)
    return _trusted(limits, _pulled_in(limits, found))


class _Turn(NamedTuple):
    """prices: λ[R]; active: bool[R]; inverse: [R, R] of the active limits' Gram matrix, 0 elsewhere; entering: the limit on
    its way in, −1 for none."""

    prices: jax.Array
    active: jax.Array
    inverse: jax.Array
    entering: jax.Array
    count: jax.Array
    going: jax.Array


def _prices(gram: Float[Array, "R R"], room: Float[Array, " R"]) -> Float[Array, " R"]:
    """λ[R] ≥ 0 of min ½|u|² s.t. A u ≤ room, with u = −Aᵀ λ; gram = A Aᵀ."""
    size = gram.shape[0]

    def turn(at: _Turn) -> _Turn:
        missed = -gram @ at.prices - room
        fresh = jnp.argmax(jnp.where(at.active, -jnp.inf, missed))
        entering = jnp.where(at.entering < 0, fresh, at.entering)
        going = (at.entering >= 0) | (missed[fresh] > TOLERANCE * (1.0 + jnp.abs(room[fresh])))
        # Raising its price by t lowers those of the active ones by t·fall, so that they stay met exactly.
        fall = at.inverse @ gram[entering]
        apart = 1.0 - gram[entering] @ fall  # squared sine to the span of the active ones
        own = jnp.arange(size) == entering
        to_meet = jnp.where(apart > PARALLEL, missed[entering] / jnp.maximum(apart, PARALLEL), jnp.inf)
        until = jnp.where(at.active & (fall > 1e-7), at.prices / jnp.maximum(fall, 1e-7), jnp.inf)
        leaving = jnp.argmin(until)
        step = jnp.minimum(until[leaving], to_meet)
        full = to_meet <= until[leaving]
        going &= jnp.isfinite(step)
        prices = jnp.maximum(at.prices - step * fall + step * own, 0.0)
        border = own - fall
        grown = at.inverse + jnp.outer(border, border) / jnp.maximum(apart, PARALLEL)
        column = at.inverse[leaving]
        gone = jnp.arange(size) == leaving
        shrunk = at.inverse - jnp.outer(column, column) / jnp.maximum(column[leaving], 1e-30)
        shrunk = jnp.where(gone[:, None] | gone[None, :], 0.0, shrunk)
        after = _Turn(
            jnp.where(full, prices, jnp.where(gone, 0.0, prices)),
            jnp.where(full, at.active | own, at.active & ~gone),
            jnp.where(full, grown, shrunk),
            jnp.where(full, -1, entering),
            at.count + 1,
            going,
        )
        return jax.tree.map(lambda new, old: jnp.where(going, new, old), after, at)._replace(going=going)

    first = _Turn(
        jnp.zeros(size),
        jnp.zeros(size, bool),
        jnp.zeros((size, size)),
        jnp.int32(-1),
        jnp.int32(0),
        jnp.any(room < 0),
    )
    found = jax.lax.while_loop(lambda at: at.going & (at.count < TURNS * size), turn, first)
    # What rounding left of the active limits: two steps of iterative refinement.
    prices = found.prices
    for _ in range(2):
        missed = jnp.where(found.active, -gram @ prices - room, 0.0)
        prices = jnp.where(found.active, jnp.maximum(prices + found.inverse @ missed, 0.0), prices)
    return prices


def _trusted(limits: Limits, coef: jax.Array) -> jax.Array:
    """4. above, of coefficients that meet the rails."""
    away = coef - limits.origin
    share = limits.radius / jnp.maximum(jnp.linalg.norm(away, axis=-1, keepdims=True), 1e-30)
    return jnp.where(share < 1.0, limits.origin + share * away, coef)


def within(limits: Limits, coef: Float[np.ndarray, "... K"], slack: float = 1e-4) -> Bool[np.ndarray, "..."]:
    """Whether coefficients meet the limits of axes exactly, and half-spaces up to `slack` standard deviations."""
    coef = np.asarray(coef, np.float64)
    held = np.all((coef >= limits.low) & (coef <= limits.high), axis=-1)
    return np.asarray(held & ((coef @ limits.rows.T - limits.bound).max(axis=-1, initial=-np.inf) <= slack))


def actions(rails: Rails, asked: np.ndarray, given: np.ndarray) -> list[str]:
    """What the rails did to one person's coefficients [K], in words; empty where they left them alone."""
    said, place = [], {name: k for k, name in enumerate(rails.names)}
    for axis in rails.axes:
        before, after = float(asked[place[axis.name]]), float(given[place[axis.name]])
        if not axis.low - VISIBLE <= before <= axis.high + VISIBLE:
            said.append(f"{axis.name} {before:+.3g} → {after:+.3g} ({axis})")
    for half in rails.half_spaces:
        over = float(np.dot(half.direction, asked)) - half.limit
        if over > VISIBLE * float(np.linalg.norm(half.direction)):
            said.append(f"{half.name} was {over:.3g} over its limit {half.limit:+g}")
    if not said and np.abs(np.asarray(given) - np.asarray(asked)).max() > VISIBLE:
        said.append(f"moved to within {rails.trust_nats:g} nats of the aggregate policy")
    return said


def _pulled_in(limits: Limits, coef: jax.Array) -> jax.Array:
    """Towards the anchor, as far as the limit that is missed most asks for."""
    over = coef @ limits.rows.T - limits.bound
    over = jnp.where(over > FLOAT32 * (1.0 + jnp.abs(limits.bound)), over, 0.0)
    slack = jnp.maximum(limits.bound - limits.rows @ limits.anchor, 0.0)
    share = jnp.where((over > 0) & (slack > 0), over / (over + slack), 0.0)
    share = jnp.max(share, axis=-1, keepdims=True)
    return jnp.clip(coef + share * (limits.anchor - coef), limits.low, limits.high)


def _root(cov: np.ndarray, locked: np.ndarray) -> np.ndarray:
    """S[K, F] with S Sᵀ = M₁, 0 in the rows of locked axes."""
    free = ~locked
    root = np.zeros((len(cov), int(free.sum())))
    if free.any():
        root[free] = np.linalg.cholesky(np.linalg.inv(np.linalg.inv(cov)[np.ix_(free, free)]))
    return root


def _inequalities(rails: Rails, place: dict[str, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """G[R, K], b[R] and what each row is."""
    size = len(rails.names)
    rows, bound, names = [], [], []
    for axis in rails.axes:
        if axis.kind == "bounded":
            unit = np.eye(size)[place[axis.name]]
            rows += [unit, -unit]
            bound += [axis.high, -axis.low]
            names += [f"{axis.name!r} at most {axis.high:g}", f"{axis.name!r} at least {axis.low:g}"]
    for half in rails.half_spaces:
        rows.append(np.array(half.direction))
        bound.append(half.limit)
        names.append(str(half))
    return np.array(rows).reshape(len(rows), size), np.array(bound), names


def _met_by_locks(
    rows: np.ndarray, bound: np.ndarray, names: list[str], root: np.ndarray, at: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The limits without those that the locks alone decide.

    Raises:
      UserError: one that the locks break.
    """
    lengths = np.linalg.norm(rows, axis=1) * max(float(np.linalg.norm(root, 2)) if root.size else 0.0, 1e-300)
    decided = np.linalg.norm(rows @ root, axis=1) <= 1e-9 * lengths if root.size else np.ones(len(rows), bool)
    for row, most, name in zip(rows[decided], bound[decided], np.array(names)[decided], strict=True):
        if row @ at > most + SLACK:
            raise UserError(
                f"rails: {name} cannot be met: the locked values alone give {row @ at:g}; change a lock or the limit"
            )
    kept = ~decided
    return [name for name, stays in zip(names, kept, strict=True) if stays], rows[kept], bound[kept]


def _inside(a: np.ndarray, room: np.ndarray, names: list[str]) -> np.ndarray:
    """u[F] at the centre of the largest ball, of radius 1 at most, in {a u ≤ room}.

    Raises:
      UserError: the set is empty; names the limits that contradict one another.
    """
    size = a.shape[1]
    if not len(a):
        return np.zeros(size)
    worth = np.append(np.zeros(size), -1.0)
    space = [(None, None)] * size + [(None, 1.0)]
    found = linprog(worth, A_ub=np.column_stack([a, np.ones(len(a))]), b_ub=room, bounds=space)
    if found.status != 0 or found.x[-1] < -SLACK:
        against = [name for name, price in zip(names, found.ineqlin.marginals, strict=True) if price < -1e-9]
        raise UserError(f"rails: {' and '.join(against) or 'their limits'} cannot hold together; loosen one")
    return found.x[:size]
