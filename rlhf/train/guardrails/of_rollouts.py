"""Guardrails over sampled completions: what they see of a rollout, and what becomes of its advantages.

Averages over π_ref come from the samples of the policy, weighted by π_ref/π of whole completions and normalised within
each group: exact at the first iteration, where both are one, and noisier the further the policy has moved.

Shapes: see `rlhf.train.rl.settings`; R = B/G groups.
"""

import jax
import jax.numpy as jnp

from rlhf.train.guardrails.acts import Acts, GuardState, Metrics, Seen, act, moved
from rlhf.train.guardrails.config import GuardrailsConfig
from rlhf.train.rl.rollout import People, Rollout


def seen_of(
    config: GuardrailsConfig,
    rollout: Rollout,
    rewards: jax.Array,
    checks: jax.Array,
    people: People | None,
    size: int,
) -> Seen:
    """A rollout in groups of `size`; rewards [B, K] or [B, T, K], checks [B, C]."""
    phi = rewards if rewards.ndim == 2 else jnp.sum(rewards, axis=1, where=rollout.mask[..., None])
    groups = phi.shape[0] // size
    log_ratio = jnp.sum(rollout.ref_logprobs - rollout.logprobs, axis=1, where=rollout.mask)
    average = own = shared = None
    if config.floor is not None:
        assert people is not None and not isinstance(people, jax.Array), (
            "the average person's reward needs people"
        )
        average = (phi @ people.conditioning.origin).reshape(groups, size)
    if config.truth is not None:
        own, shared = _right(config, rollout, checks, size)
    return Seen(
        reward=jnp.sum(phi * rollout.coef, axis=1).reshape(groups, size),
        average=average,
        log_weight=log_ratio.reshape(groups, size),
        share=jnp.full((groups, size), 1.0 / size),
        checks=checks.reshape(groups, size, -1),
        own_right=own,
        shared_right=shared,
        z=None if rollout.z is None else rollout.z[::size],
    )


def _right(
    config: GuardrailsConfig, rollout: Rollout, checks: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """How often answers are right for the person of a group and for all people with the same prompt, [R] each.

    Add-half estimates, strictly between 0 and 1: (n + ½)/(G + 1). Groups with the same prompt are found by its tokens.
    """
    assert config.truth is not None, "asked for where it is"
    right = (checks[:, config.index(config.truth.check)] > 0.5).astype(jnp.float32).reshape(-1, size)
    own = (right.sum(axis=1) + 0.5) / (size + 1)
    prompt = rollout.tokens[::size, : -rollout.mask.shape[1]]
    same = jnp.all(prompt[:, None] == prompt[None], axis=-1).astype(jnp.float32)
    return own, same @ own / same.sum(axis=1)


def guarded(
    config: GuardrailsConfig,
    state: GuardState,
    rollout: Rollout,
    rewards: jax.Array,
    checks: jax.Array,
    people: People | None,
    kl_coef: jax.Array,
    size: int,
) -> tuple[Acts, GuardState, Metrics]:
    """What the guardrails do to one iteration, and what they remember of it."""
    seen = seen_of(config, rollout, rewards.astype(jnp.float32), checks, people, size)
    acts, found, metrics = act(config, state, seen, kl_coef)
    return acts, moved(config, state, found), metrics
