"""The compiled part of the mixture: EM over the kinds of answer (equations in `annotation.mixture`).

Everything is per question, in the orientation of its first side, so a question measured many times costs as much
as one measured once.

Letters in shapes: Q questions, U people, F kinds of cue, J distinct rows of cues.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GENUINE, NON_ATTITUDE, CONSTRUCTED = 0, 1, 2
CUE_NATS = 2.0  # κ where it cannot be learned: a constructed answer follows its cue in 88 % of the cases
PERSON_STEPS = 20  # EM steps of the π_u once π stands
SLIP_PRIOR = (2.0, 20.0)  # Beta: slips are rare, and few repeats must not say that everything is one


class Questions(NamedTuple):
    """Questions on the device, in the orientation of their first side, sorted by person.

    `cue` holds the J distinct rows of cues; `count` how often each occurred among a question's answers.
    """

    cue: Float[Array, "J F"]
    count: Float[Array, "Q J"]
    user: Int[Array, " Q"]
    wins: Float[Array, " Q"]
    answers: Float[Array, " Q"]
    log_up: Float[Array, " Q"]
    log_down: Float[Array, " Q"]


class MixtureState(NamedTuple):
    """What EM estimates: π, the π_u of the people, κ and the share of slips e."""

    share: Float[Array, " 3"]
    user_share: Float[Array, "U 3"]
    kappa: Float[Array, " F"]
    slip: Float[Array, ""]


class MixtureSettings(NamedTuple):
    """What stays while EM runs; `slips` and `cues`[F] are 1 where e and κ are learned, 0 where they stay."""

    concentration: Float[Array, ""]
    cue_sd: Float[Array, ""]
    slips: Float[Array, ""]
    cues: Float[Array, " F"]


def _expect(state: MixtureState, data: Questions):
    """E-step: log joint of the kinds [Q, 3] and ã [Q], the attitude for the first side."""
    slips = data.answers - data.wins
    # xlogy has 0 · log 0 = 0, for e = 0 and answers that need no slip.
    up = data.log_up + _xlogy(data.wins, 1.0 - state.slip) + _xlogy(slips, state.slip)
    down = data.log_down + _xlogy(data.wins, state.slip) + _xlogy(slips, 1.0 - state.slip)
    genuine = jnp.logaddexp(up, down)
    coin = -data.answers * jnp.log(2.0)
    framed = data.count @ jax.nn.log_sigmoid(data.cue @ state.kappa)
    kinds = jnp.stack([genuine, coin, framed], axis=1)
    share = state.user_share[data.user]
    # A kind whose share is 0, as constructed without a cue, stays out.
    return jnp.where(share > 0, jnp.log(jnp.maximum(share, 1e-30)), -jnp.inf) + kinds, jax.nn.sigmoid(
        up - down
    )


def _xlogy(x: Array, y: Array) -> Array:
    return jnp.where(x > 0, x * jnp.log(jnp.maximum(y, 1e-30)), 0.0)


def _maximise(
    state: MixtureState, data: Questions, rho: Array, attitude: Array, hyper: MixtureSettings
) -> MixtureState:
    """M-step of π and e, and one Newton step of κ; everybody has π."""
    counted = (data.answers > 0).astype(jnp.float32)
    rho = rho * counted[:, None]
    share = jnp.sum(rho, axis=0) / jnp.sum(counted)
    missed = attitude * (data.answers - data.wins) + (1.0 - attitude) * data.wins
    slip = (jnp.sum(rho[:, GENUINE] * missed) + SLIP_PRIOR[0] - 1.0) / (
        jnp.sum(rho[:, GENUINE] * data.answers) + sum(SLIP_PRIOR) - 2.0
    )
    slip = hyper.slips * jnp.minimum(slip, 0.45)
    kappa = state.kappa
    if kappa.shape[0]:
        weight = rho[:, CONSTRUCTED] @ data.count
        push = data.cue @ kappa
        gradient = (weight * jax.nn.sigmoid(-push)) @ data.cue - (kappa - CUE_NATS) / hyper.cue_sd**2
        curvature = weight * jax.nn.sigmoid(push) * jax.nn.sigmoid(-push)
        hessian = (data.cue * curvature[:, None]).T @ data.cue + jnp.eye(kappa.shape[0]) / hyper.cue_sd**2
        kappa = kappa + hyper.cues * jnp.clip(jnp.linalg.solve(hessian, gradient), -1.0, 1.0)
    return MixtureState(share, jnp.broadcast_to(share, state.user_share.shape), kappa, slip)


def _user_shares(
    state: MixtureState, data: Questions, rho: Array, hyper: MixtureSettings
) -> Float[Array, "U 3"]:
    """π_u = (concentration · π + Σ ρ) / (concentration + questions) of every person."""
    rho = rho * (data.answers > 0)[:, None]
    num_users = state.user_share.shape[0]
    total = jax.ops.segment_sum(rho, data.user, num_segments=num_users, indices_are_sorted=True)
    counts = hyper.concentration + jnp.sum(total, axis=1, keepdims=True)
    return (hyper.concentration * state.share + total) / counts


@jax.jit
def fit(state: MixtureState, data: Questions, hyper: MixtureSettings, max_steps):
    """EM of π, κ, e until none moves by 1e-5, then of the π_u: state, ρ [Q, 3], ã [Q], loss a question, steps.

    While π is sought everybody has it: π_u that follow their own ρ would pull π away from what was planted.
    """

    def step(carry):
        state, _, number = carry
        joint_log, attitude = _expect(state, data)
        new = _maximise(state, data, jax.nn.softmax(joint_log, axis=1), attitude, hyper)
        moved = [
            jnp.max(jnp.abs(a - b), initial=0.0) for a, b in zip(_shared(new), _shared(state), strict=True)
        ]
        return new, jnp.max(jnp.stack(moved)) > 1e-5, number + 1

    def unfinished(carry):
        return carry[1] & (carry[2] < max_steps)

    def person(_, state):
        rho = jax.nn.softmax(_expect(state, data)[0], axis=1)
        return state._replace(user_share=_user_shares(state, data, rho, hyper))

    state = state._replace(user_share=jnp.broadcast_to(state.share, state.user_share.shape))
    state, _, steps = jax.lax.while_loop(unfinished, step, (state, jnp.array(True), jnp.array(0)))
    state = jax.lax.fori_loop(0, PERSON_STEPS, person, state)
    joint_log, attitude = _expect(state, data)
    counted = data.answers > 0
    loss = -jnp.sum(jax.nn.logsumexp(joint_log, axis=1), where=counted) / jnp.sum(counted)
    return state, jax.nn.softmax(joint_log, axis=1), attitude, loss, steps


def _shared(state: MixtureState) -> tuple[Array, Array, Array]:
    return state.share, state.kappa, state.slip[None]
