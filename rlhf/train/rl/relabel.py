"""Relabelling: completions sampled for one person are learned from once more as if others had asked for them.

φ(x, y) does not depend on who asked, only w and z do, so another person's reward is known for every completion. What
is wrong is the distribution: y was drawn from π(·|x, z_u) and not from π(·|x, z_v). Truncated importance weights
(Ionides 2008) make up for it, one a completion, before the update:

    ρ_i = min(c, π(y_i|x, z_v) / π(y_i|x, z_u)),    A_i = ρ_i (R_i − Σ_j ρ_j R_j / Σ_j ρ_j),    R_i = Σ_c weight_c · return_c

The baseline is the group's weighted mean, so that a group's advantages still sum to 0. Truncation at c keeps the variance
bounded and biases towards completions that both people would get; long completions for people far apart get weights
near 0, and nothing is learned from them (`train/relabel_effective_share`).

Shapes: see `rlhf.train.rl.settings`; R people a group besides the one it was sampled for, so R·B more rows.
"""

import jax
import jax.numpy as jnp

from rlhf.objectives.advantages import (
    ESTIMATORS,
    GRPOAlgorithmConfig,
    channel_weights,
    scalarise,
    tells_apart,
)
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl.estimate import reward_channels
from rlhf.train.rl.rollout import People, Rollout
from rlhf.train.rl.settings import RLProgram, RLSettings

KEY_NUMBER = 2**32 - 1  # of the people drawn here, among the keys of an iteration


def for_others(
    rollout: Rollout,
    params: rollouts.PolicyParams,
    people: People,
    key: jax.Array,
    settings: RLSettings,
    program: RLProgram,
) -> Rollout:
    """The rollout R times over, each group for another person drawn like any other; log-probs are theirs.

    Args:
      params: the policy as it was when it sampled.
      key: of the iteration.
    """
    rows, batch, times = rollout.rows, rollout.mask.shape[0], _algorithm(settings).relabel
    group_size = settings.rollout.completions
    assert rows is not None and rollout.z is not None, "relabelling needs the people of a rollout"
    keys = jax.random.split(jax.random.fold_in(key, KEY_NUMBER), times)
    drawn = [rollouts.people_rows(each, people, batch, settings, program) for each in keys]
    coef = jnp.concatenate([coef for coef, _ in drawn])
    z = jnp.concatenate([z for _, z in drawn if z is not None])
    again = jax.tree.map(lambda part: jnp.concatenate([part] * times), rollout._replace(rows=None))
    rows = jax.tree.map(lambda part: jnp.concatenate([part] * times), rows)
    group = jnp.arange(times * batch) // group_size
    rows = rows._replace(group=group, z=z[::group_size])
    logprobs, _, _ = rollouts.score(settings, program, params, None, rows)
    return again._replace(rows=rows, coef=coef, z=z, logprobs=jnp.where(again.mask, logprobs, 0.0))


def importance(rollout: Rollout, others: Rollout, limit: jax.Array | float) -> jax.Array:
    """ρ float32[R·B] of the completions for other people; 1 where both would say it as readily."""
    sampled = jnp.tile(rollout.logprobs.sum(axis=1), others.mask.shape[0] // rollout.mask.shape[0])
    return jnp.minimum(jnp.exp(jnp.minimum(others.logprobs.sum(axis=1) - sampled, 30.0)), limit)


def advantages(
    others: Rollout,
    rewards: jax.Array,
    weight: jax.Array,
    kl_coef: jax.Array,
    settings: RLSettings,
) -> jax.Array:
    """A[R·B], before the scale; rewards float32[R·B, K] or [R·B, T, K] are those of the same completions."""
    algorithm, group_size = _algorithm(settings), settings.rollout.completions
    channels = reward_channels(others, rewards, settings.kl, settings.algorithm.overlong_tokens).sum(axis=1)
    weights = channel_weights(others.coef, kl_coef, algorithm.missing_eos_penalty)
    total = scalarise(channels, weights).reshape(-1, group_size)
    weight = weight.reshape(total.shape)
    mean = jnp.sum(weight * total, axis=1, keepdims=True) / jnp.maximum(
        weight.sum(axis=1, keepdims=True), 1e-12
    )
    factor = ESTIMATORS[algorithm.kind].factor
    assert factor is not None, "check_algorithm"
    deviation = jnp.where(tells_apart(total)[:, None], total - mean, 0.0)
    return (factor(group_size) * weight * deviation).reshape(-1)


def _algorithm(settings: RLSettings) -> GRPOAlgorithmConfig:
    assert isinstance(settings.algorithm, GRPOAlgorithmConfig), "relabelling weighs completions, not tokens"
    return settings.algorithm


def effective_share(weight: jax.Array) -> jax.Array:
    """(Σρ)² / (n Σρ²): which part of the relabelled completions counts; 1 where all weights are equal."""
    return weight.sum() ** 2 / jnp.maximum(weight.size * jnp.sum(weight**2), 1e-12)
