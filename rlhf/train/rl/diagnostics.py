"""Numbers about one rollout and its advantages, all of them scalars that stay on the device until they are read.

Names end in their unit where there is one. Outputs of the basis are numbered: `train/reward/0` is the mean of the first.
"""

import jax
import jax.numpy as jnp

from rlhf.objectives import advantages as adv
from rlhf.objectives import surrogate as objectives
from rlhf.train.rl.estimate import Estimate
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.settings import RLSettings

Metrics = dict[str, jax.Array]


def batch_metrics(rollout: Rollout, found: Estimate, settings: RLSettings) -> Metrics:
    """What the batch looked like before it was learnt from."""
    mask, group_size = rollout.mask, settings.rollout.completions
    num_basis = rollout.coef.shape[1]
    outputs = found.channels[..., :num_basis].sum(axis=1)
    reward = jnp.sum(outputs * rollout.coef, axis=1)
    spread = adv.group_std(reward, group_size) if group_size > 1 else jnp.ones_like(reward)
    log_ratio = objectives.kl_estimate(rollout.logprobs, rollout.ref_logprobs, mask, "k1")
    metrics = {
        "train/reward": reward.mean(),
        "train/reward_sd": reward.std(),
        # Rounding leaves something of the order 1e-7 where all answers of a group earned the same.
        "train/zero_variance_share": jnp.mean(spread <= 1e-5 * (1.0 + jnp.abs(reward))),
        "train/kl_ref_nats": log_ratio.sum(axis=1).mean(),
        "train/kl_ref_sd_nats": log_ratio.sum(axis=1).std(),
        "train/advantage_sd": _masked_sd(found.unscaled, mask),
        "train/advantage_scale": found.divisor,
        "train/completion_tokens": mask.sum(axis=1).mean(),
        "train/reward_length_correlation": _group_correlation(reward, mask.sum(axis=1), group_size),
        "train/eos_share": rollout.ended.astype(jnp.float32).mean(),
        "train/sampler_gap_nats": jnp.max(
            jnp.where(mask, jnp.abs(rollout.sampler_logprobs - rollout.logprobs), 0.0)
        ),
    }
    if rollout.z is not None:
        metrics["train/z_norm"] = jnp.linalg.norm(rollout.z, axis=1).mean()
    for k in range(num_basis):
        metrics |= {f"train/reward/{k}": outputs[:, k].mean(), f"train/reward_sd/{k}": outputs[:, k].std()}
    if isinstance(settings.algorithm, adv.PPOAlgorithmConfig):
        # Against what happened, not against λ-returns: those contain the values themselves.
        discount = settings.algorithm.discount
        _, actual = adv.generalised_advantages(found.channels, rollout.values, mask, discount, 1.0)
        explained = objectives.explained_variance(rollout.values, actual, mask)
        names = (*map(str, range(num_basis)), "kl", "no_stop")
        metrics |= {f"train/explained_variance/{name}": explained[c] for c, name in enumerate(names)}
    return metrics


def _group_correlation(reward: jax.Array, length: jax.Array, group_size: int) -> jax.Array:
    """Pearson's, of deviations from the group's means; 0 where either does not vary (but for rounding)."""
    own, other = (x - adv.group_mean(x, group_size) for x in (reward, length.astype(reward.dtype)))
    varies = (own.std() > 1e-5 * (1.0 + jnp.abs(reward).mean())) & (other.std() > 0)
    product = jnp.sqrt(jnp.sum(own**2) * jnp.sum(other**2))
    return jnp.where(varies, jnp.sum(own * other) / jnp.where(varies, product, 1.0), 0.0)


def _masked_sd(values: jax.Array, mask: jax.Array) -> jax.Array:
    real = mask.astype(values.dtype)
    count = jnp.maximum(real.sum(), 1.0)
    mean = jnp.sum(real * values) / count
    return jnp.sqrt(jnp.sum(real * (values - mean) ** 2) / count)
