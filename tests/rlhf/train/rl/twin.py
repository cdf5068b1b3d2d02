"""A slow twin of one update, written with loops over rows, tokens and channels, in float64 where it can be.

It shares with the package only the decoder (through a plain forward pass over one unpadded row) and the order of rows,
which it has to know: GAE, centring, scaling, losses, AdamW and the early stop are written out again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.train.rl import rollout as rollouts
from tests.rlhf.train.rl.setup import Task


def estimate(task: Task, rollout, rewards, *, scaled: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Scalar advantages [B, T] and returns [B, T, C] of one rollout, the running scale being that of this batch."""
    settings, own = task.settings, task.settings.algorithm
    ppo = settings.critic is not None
    kl_coef, penalty = float(task.state.kl_coef), float(own.missing_eos_penalty)
    batch, num_slots = rollout.mask.shape
    num_basis = rewards.shape[-1]
    advantages = np.zeros((batch, num_slots))
    returns = np.zeros((batch, num_slots, num_basis + 2))
    for row in range(batch):
        length = int(rollout.mask[row].sum())
        weights = [*map(float, rollout.coef[row]), -kl_coef, -penalty]
        for channel in range(num_basis + 2):
            reward = [0.0] * length
            for t in range(length):
                log_ratio = float(rollout.logprobs[row, t]) - float(rollout.ref_logprobs[row, t])
                if channel < num_basis and rewards.ndim == 3:
                    reward[t] = float(rewards[row, t, channel])
                elif channel < num_basis and t == length - 1:
                    reward[t] = float(rewards[row, channel])
                elif channel == num_basis and settings.kl.place == "reward":
                    k3 = np.exp(-log_ratio) - 1 + log_ratio
                    reward[t] = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": k3}[settings.kl.estimator]
                elif channel == num_basis + 1 and t == length - 1:
                    reward[t] = 0.0 if rollout.ended[row] else 1.0
            following, running = 0.0, 0.0
            for t in reversed(range(length)):
                gain = sum(reward)
                if ppo:
                    value, discount = float(rollout.values[row, t, channel]), float(own.discount)
                    running = (
                        reward[t] + discount * following - value + discount * float(own.gae_lambda) * running
                    )
                    following = value
                    returns[row, t, channel] = running + value
                    gain = running
                advantages[row, t] += weights[channel] * gain
    size = settings.rollout.completions
    for first in range(0, batch, size):
        group = range(first, first + size)
        if ppo and own.centre:
            real = [advantages[r, t] for r in group for t in range(num_slots) if rollout.mask[r, t]]
            for r in group:
                advantages[r] = (advantages[r] - np.mean(real)) * np.asarray(rollout.mask[r])
        if not ppo and own.kind == "rloo":
            totals = {r: advantages[r, 0] for r in group}
            for r in group:
                others = np.mean([totals[j] for j in group if j != r])
                advantages[r] = (totals[r] - others) * np.asarray(rollout.mask[r])
    real = advantages[np.asarray(rollout.mask)]
    if not scaled:
        return advantages, returns
    if own.scaling == "running":
        advantages = advantages / np.sqrt(np.mean(real**2))
    elif own.scaling == "batch":
        whitened = (advantages - real.mean()) / real.std(ddof=1)
        advantages = np.where(rollout.mask, whitened, 0.0)
    return advantages, returns


def row_terms(program, config, params, critic, tokens, before, z):
    """Log-probs [T], entropies [T] and values [T, C] from one right-padded row: every layer, a causal mask, no cache.

    Args:
      before: slots of the tokens before each completion token.
    """
    positions = jnp.arange(len(tokens))[None]
    mask = jnp.tril(jnp.ones((1, len(tokens), len(tokens)), bool))

    def states_of(params):
        decoder = nnx.merge(program.graphdef, *params)
        context = decoder.context(positions, mask, z=z)
        return decoder, decoder.run_stages(decoder.embed_tokens(tokens[None]), context)[0][:, before]

    decoder, states = states_of(params)
    logprobs = jax.nn.log_softmax(decoder.logits(states, z)[0])
    taken = logprobs[np.arange(len(before)), tokens[before + 1]]
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=1)
    if critic is None:
        return taken, entropy, None
    if config.backbone == "separate":
        decoder, states = states_of(params._replace(lora=critic["lora"], conditioner=critic["conditioner"]))
    elif config.stop_gradient:
        states = jax.lax.stop_gradient(states)
    features = decoder.final_norm(states)[0]
    features = features / jnp.sqrt(jnp.mean(features**2, axis=1, keepdims=True) + 1e-6)
    if z is not None:
        features = jnp.concatenate([features, jnp.tile(z, (len(before), 1))], axis=1)
    inner = jax.nn.gelu(features @ critic["w1"] + critic["b1"])
    return taken, entropy, inner @ critic["w2"] + critic["b2"]


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.grad, argnums=1, has_aux=True)
def row_gradient(program, trained, frozen, settings, row, z, gain, goal, weights, price):
    """Gradient of one row's part of the loss, and of the sum over its tokens of KL(old‖new).

    Args:
      row: tokens, slots before the completion's tokens, and the rollout's mask, log-probs, reference, values and their start.
      weights: of a token in the policy's terms, and in the entropy and value terms.
    """
    tokens, before, real, old_logprobs, reference, old_values, offset = row
    params = frozen._replace(**{name: part for name, part in trained.items() if name != "critic"})
    logprobs, entropy, values = row_terms(
        program, settings.critic, params, trained.get("critic"), tokens, before, z
    )
    own, critic, kl_config = settings.algorithm, settings.critic, settings.kl
    change = logprobs - old_logprobs
    ratio = jnp.exp(change)
    limited = jnp.minimum(jnp.maximum(ratio, 1 - own.clip_low), 1 + own.clip_high)
    total = -weights[0] * jnp.sum(real * jnp.minimum(ratio * gain, limited * gain))
    total -= own.entropy_coef * weights[1] * jnp.sum(real * entropy)
    if kl_config.place == "loss":
        x = logprobs - reference
        kl = x**2 / 2 if kl_config.estimator == "k2" else jnp.exp(-x) - 1 + x
        total += price * weights[0] * jnp.sum(real * kl)
    if values is not None:
        values += offset
        near = old_values + jnp.minimum(
            jnp.maximum(values - old_values, -critic.value_clip), critic.value_clip
        )
        worse = jnp.maximum((values - goal) ** 2, (near - goal) ** 2) / 2
        total += critic.coef * weights[1] * jnp.sum(real[:, None] * worse) / values.shape[1]
    return total, jnp.sum(real * (jnp.exp(change) - 1 - change))


def gradient(trained, task: Task, rollout, advantages, returns, rows, price: float):
    """Gradient of the loss of the given rows, one row after the other, and KL(old‖new) in nats a token."""
    num_slots = rollout.mask.shape[1]
    num_tokens = sum(int(rollout.mask[row].sum()) for row in rows)
    grads, moved = jax.tree.map(lambda x: 0.0 * x, trained), 0.0
    for row in map(int, rows):
        start, length = int(rollout.starts[row]), int(rollout.mask[row].sum())
        tokens = np.pad(rollout.tokens[row, start:], (0, start))
        before = rollout.tokens.shape[1] - num_slots - start - 1 + np.arange(num_slots)
        real = rollout.mask[row].astype(np.float32)
        per_token = {
            "token": 1.0 / num_tokens,
            "sequence": 1.0 / (length * len(rows)),
            "constant": 1.0 / (num_slots * len(rows)),
        }[task.settings.algorithm.aggregation]
        offset = 0.0 if rollout.value_start is None else rollout.value_start[row]
        old = (rollout.logprobs[row], rollout.ref_logprobs[row], rollout.values[row])
        known = (tokens, before, real, *old, offset)
        z = None if rollout.z is None else rollout.z[row][None]
        weights = np.array([per_token, 1.0 / num_tokens])
        new, kl = row_gradient(
            task.program,
            trained,
            task.frozen,
            task.settings,
            known,
            z,
            advantages[row],
            returns[row],
            weights,
            price,
        )
        grads, moved = jax.tree.map(jnp.add, grads, new), moved + float(kl) / num_tokens
    return grads, moved


def update(task: Task, rollout, rewards) -> tuple[dict, int]:
    """Trained parameters after all epochs and minibatches, and how many optimiser steps were made."""
    settings = jax.tree.map(np.asarray, task.settings)
    rates, own = settings.optimizer, settings.algorithm
    rollout, rewards = jax.tree.map(np.asarray, (rollout, rewards))
    advantages, returns = estimate(task, rollout, rewards)
    real = estimate_scale(task, rollout, rewards)
    price = float(task.state.kl_coef) / real
    shuffle = rollouts.iteration_keys(task.state.key, task.state.iteration).shuffle
    trained = jax.tree.map(np.asarray, dict(task.state.params))
    names, tree = jax.tree_util.tree_flatten_with_path(trained)
    first, second, steps = [0.0 * x for _, x in names], [0.0 * x for _, x in names], 0
    for key in jax.random.split(shuffle, own.epochs):
        order = np.asarray(jax.random.permutation(key, rollout.mask.shape[0]))
        for rows in order.reshape(own.minibatches, -1):
            grads, moved = gradient(trained, task, rollout, advantages, returns, rows, price)
            if moved > settings.kl.stop_nats:
                return trained, steps
            steps += 1
            grads = [np.asarray(g) for g in jax.tree.leaves(grads)]
            norm = np.sqrt(sum(np.sum(g**2) for g in grads))
            for i, ((path, old), g) in enumerate(zip(names, grads, strict=True)):
                g = g * min(1.0, float(rates.max_grad_norm) / norm)
                first[i] = rates.beta1 * first[i] + (1 - rates.beta1) * g
                second[i] = rates.beta2 * second[i] + (1 - rates.beta2) * g**2
                mean, square = first[i] / (1 - rates.beta1**steps), second[i] / (1 - rates.beta2**steps)
                rate = rates.learning_rate * (settings.critic.rate if path[0].key == "critic" else 1.0)
                step = mean / (np.sqrt(square) + rates.eps) + rates.weight_decay * old
                names[i] = (path, old - rate * step)
            trained = jax.tree.unflatten(tree, [leaf for _, leaf in names])
    return trained, steps


def estimate_scale(task: Task, rollout, rewards) -> float:
    """What the advantages were divided by, when it is the running scale's first batch; 1 otherwise."""
    if task.settings.algorithm.scaling != "running":
        return 1.0
    advantages, _ = estimate(task, rollout, rewards, scaled=False)
    return float(np.sqrt(np.mean(advantages[np.asarray(rollout.mask)] ** 2)))
