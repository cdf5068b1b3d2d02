"""Guardrails over packed rows: what they see of the completions of one prompt, and the labels that gates overrule.

Within a row everything is exact: π_ref is known for each completion, so averages over π_ref, restricted to the row, are sums.

Shapes: B rows, C completions, P pairs, Q checks, K basis outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf.models.layout import HostOrDevice
from rlhf.policy.batches import PairRows
from rlhf.policy.conditioning import Population
from rlhf.train.guardrails.acts import Acts, Found, GuardState, Metrics, Seen, act, passed
from rlhf.train.guardrails.config import GuardrailsConfig


class RowsSeen(NamedTuple):
    """target: w_eff·φ [B, C], None for losses on labels; phi: [B, C, K]; checks: [B, C, Q]; ref_logprobs, logprobs: log π of
    whole completions, [B, C]; valid: bool[B, C]; z: [B, K]."""

    target: jax.Array | None
    phi: HostOrDevice
    checks: HostOrDevice | None
    ref_logprobs: HostOrDevice
    logprobs: jax.Array
    valid: HostOrDevice
    z: HostOrDevice | None


def guarded(
    config: GuardrailsConfig,
    state: GuardState,
    given: RowsSeen,
    people: Population | None,
    beta: jax.Array | float,
) -> tuple[Acts, Found, Metrics]:
    """What the guardrails do to the targets of rows; no gradient passes through them."""
    valid, checks = given.valid, given.checks
    assert checks is not None, "guardrails come with their checks"
    log_weight = jnp.where(valid, given.ref_logprobs, -jnp.inf)
    share = jax.nn.softmax(jnp.where(valid, jax.lax.stop_gradient(given.logprobs), -jnp.inf), axis=1)
    reward = jnp.zeros(share.shape) if given.target is None else jnp.where(valid, given.target, 0.0)
    average = own = shared = None
    if people is not None:
        average = jnp.where(valid, given.phi @ people.conditioning.origin, 0.0)
    if config.truth is not None:
        assert average is not None, "right answers of whom, compared with whose"
        right = (jnp.asarray(checks)[..., config.index(config.truth.check)] > 0.5) & jnp.asarray(valid)
        own, shared = (_right(log_weight + paid / beta, right) for paid in (reward, average))
    seen = Seen(
        reward,
        average,
        log_weight,
        share,
        jnp.asarray(checks),
        own,
        shared,
        None if given.z is None else jnp.asarray(given.z),
    )
    return act(config, state, seen, beta)


def _right(logits: jax.Array, right: jax.Array) -> jax.Array:
    """How often the optimum with these logits answers right, [B]; within (0, 1) also where all or no answers are."""
    return jnp.clip(jnp.sum(jax.nn.softmax(logits, axis=1) * right, axis=1), 1e-4, 1.0 - 1e-4)


def relabelled(config: GuardrailsConfig, rows: PairRows, checks: HostOrDevice | None) -> PairRows:
    """Pairs under the gates: the side that passes has won, and a pair in which neither passes counts nothing.

    For losses on labels; where targets come from coefficients, the gates have changed those.
    """
    if not config.gates:
        return rows
    assert checks is not None, "gates come with their checks"
    passes = passed(config, jnp.asarray(checks)) & (rows.item >= 0)
    first, second = (jnp.take_along_axis(passes, rows.pairs[..., side], axis=1) for side in (0, 1))
    outcome = jnp.where(first == second, rows.outcome, first.astype(jnp.float32))
    return rows._replace(outcome=outcome, pair_weight=jnp.where(first | second, rows.pair_weight, 0.0))
