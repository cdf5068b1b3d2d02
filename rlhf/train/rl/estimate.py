"""From a rollout and its rewards to advantages and returns, once an iteration.

Channel algebra, the same for every algorithm (C = K + 2):
    r_t = (φ_1 … φ_K, KL_t, 1[no stop token]),   weights (w_1 … w_K, −β, −penalty)
The outputs φ arrive at the last real token, or token by token; the missing stop token at the last. All of it is linear,
so the vector goes through GAE whole and becomes a number at one place (`advantages.scalarise`).

Shapes: see `rlhf.train.rl.settings`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf.objectives import advantages as adv
from rlhf.objectives import surrogate as objectives
from rlhf.objectives.advantages import PPOAlgorithmConfig
from rlhf.objectives.kl_control import KLConfig
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.settings import RLSettings


class Estimate(NamedTuple):
    """What every epoch shares.

    Attributes:
      advantages: float32[B, T], scalar, as they enter the surrogate; unscaled: before dividing by the scale.
      returns: float32[B, T, C], what the critic should have said.
      channels: float32[B, T, C], the rewards as they came.
      scale: the running scale after this batch; divisor: float32 scalar, what the advantages were divided by.
      kl_factor: what a KL term in the loss has to be multiplied by to be weighed against these advantages by β.
    """

    advantages: jax.Array
    unscaled: jax.Array
    returns: jax.Array
    channels: jax.Array
    scale: adv.RunningScale
    divisor: jax.Array
    kl_factor: jax.Array


def at_last_token(values: jax.Array, mask: jax.Array) -> jax.Array:
    """values[B, …] at the last masked token of each row: [B, T, …]. A row without tokens keeps nothing."""
    num_slots = mask.shape[1]
    last = jax.nn.one_hot(mask.sum(axis=1) - 1, num_slots, dtype=values.dtype)
    return last.reshape(*last.shape, *(1,) * (values.ndim - 1)) * values[:, None]


def unfinished(rollout: Rollout, overlong_tokens: jax.Array | int) -> jax.Array:
    """What is priced by `missing_eos_penalty`, [B]: 1 without a stop token; or with c = overlong_tokens > 0

        clip((|y| − (T − c)) / c, 0, 1)

    Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 13, whose reward is minus this.
    """
    length, slots = rollout.mask.sum(axis=1), rollout.mask.shape[1]
    width = jnp.maximum(jnp.asarray(overlong_tokens, jnp.float32), 1.0)
    soft = jnp.clip((length - (slots - width)) / width, 0.0, 1.0)
    return jnp.where(jnp.asarray(overlong_tokens) > 0, soft, 1.0 - rollout.ended.astype(jnp.float32))


def reward_channels(
    rollout: Rollout, rewards: jax.Array, kl: KLConfig, overlong_tokens: jax.Array | int = 0
) -> jax.Array:
    """Channels float32[B, T, C] from rewards float32[B, K] (at the last token) or float32[B, T, K] (token by token).

    Raises:
      TypeError: rewards that are not floating-point: they would silently be rounded.
    """
    if not jnp.issubdtype(rewards.dtype, jnp.floating):
        raise TypeError(f"rewards have dtype {rewards.dtype}; give floating-point numbers")
    expected = (rollout.coef.shape, (*rollout.mask.shape, rollout.coef.shape[1]))
    if rewards.shape not in expected:
        raise ValueError(f"rewards have shape {rewards.shape}, expected {expected[0]} or {expected[1]}")
    rewards = rewards.astype(jnp.float32)
    outputs = at_last_token(rewards, rollout.mask) if rewards.ndim == 2 else rewards
    price = jnp.zeros(rollout.mask.shape)
    if kl.place == "reward":
        price = objectives.kl_estimate(rollout.logprobs, rollout.ref_logprobs, rollout.mask, kl.estimator)
    cut = at_last_token(unfinished(rollout, overlong_tokens), rollout.mask)
    channels = jnp.concatenate([outputs, price[..., None], cut[..., None]], axis=-1)
    return jnp.where(rollout.mask[..., None], channels, 0.0)


def estimate(
    rollout: Rollout,
    rewards: jax.Array,
    kl_coef: jax.Array,
    scale: adv.RunningScale,
    settings: RLSettings,
    added: jax.Array | None = None,
) -> Estimate:
    """Advantages of all tokens: vector GAE with a critic, one number a completion without.

    `added`[B] joins each completion's reward at its last token (guardrails): a channel of weight 1 that the critic says
    nothing of.

    ppo: GAE of every channel → scalarise → centre by group → scale. Others: returns summed over tokens → estimator →
    the same number at every token → scale (where the estimator does not standardise).
    """
    mask, algorithm, group_size = rollout.mask, settings.algorithm, settings.rollout.completions
    channels = reward_channels(rollout, rewards, settings.kl, algorithm.overlong_tokens)
    weights = adv.channel_weights(rollout.coef, kl_coef, algorithm.missing_eos_penalty)
    # R_i − mean(R) holds R_i itself, which shrinks its gradient to (G − 1)/G of the objective's: a KL outside it would
    # be overpriced by as much. RLOO has no such factor; the estimators that standardise have no scale to keep.
    share = 1.0
    if isinstance(algorithm, PPOAlgorithmConfig):
        vector, returns = adv.generalised_advantages(
            channels, rollout.values, mask, algorithm.discount, algorithm.gae_lambda
        )
        total = jnp.where(mask, adv.scalarise(vector, weights), 0.0)
        if added is not None:
            last = at_last_token(added[:, None], mask)
            more = (algorithm.discount, algorithm.gae_lambda)
            total = total + adv.generalised_advantages(last, jnp.zeros_like(last), mask, *more)[0][..., 0]
        total = adv.centre_tokens(total, mask, group_size) if algorithm.centre else total
    else:
        estimator = adv.ESTIMATORS[algorithm.kind]
        sums = channels.sum(axis=1)
        if added is not None:
            sums = jnp.concatenate([sums, added[:, None]], axis=1)
            weights = jnp.concatenate([weights, jnp.ones_like(weights[:, :1])], axis=1)
        per_row = estimator.advantage(sums, weights, group_size)
        total, returns = jnp.where(mask, per_row[:, None], 0.0), jnp.zeros_like(channels)
        share = estimator.kl_share(group_size)
    scale = scale.update(total, mask, algorithm.scale_decay)
    divisor, scaled = jnp.ones(()), total
    if algorithm.scaled and algorithm.scaling == "running":
        divisor = scale.value
        scaled = total / divisor
    elif algorithm.scaled and algorithm.scaling == "batch":
        scaled = adv.masked_whiten(total, mask)
    return Estimate(scaled, total, returns, channels, scale, divisor, share / divisor)
