"""A critic with one head a channel that sees the person: V_c(s_t, z) of the K outputs, the KL and the missing stop token.

    V(s_t, z) = W_2 gelu(W_1 [h_t; z] + b_1) + b_2,   h_t the normalised state before token t, W_2 = b_2 = 0 at first

What a state is worth depends on how this person's policy goes on, so z is an input. Zero heads start at V = 0: the first
advantages are plain returns. With `separate` the states come from a decoder with adapters of its own, over the same
frozen base and from the same lower activations, which begin as copies of the policy's.

Shapes: B rows, T completion slots, D width, H hidden, K basis outputs, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlhf.models.decoder import Decoder
from rlhf.policy.logprobs import PolicyParams
from rlhf.train.rl.settings import CriticSpec, num_channels

Critic = dict[str, Any]  # w1, b1, w2, b2; and "lora", "conditioner" where the backbone is separate


def init_critic(spec: CriticSpec, params: PolicyParams, width: int, key: jax.Array) -> Critic:
    """Fresh heads (He-normal inputs, zero outputs) and, if separate, a copy of the policy's adapters.

    Args:
      params: the policy the critic is initialised from.
      width: D of the model.

    Raises:
      ValueError: separate, but the policy has no adapters of which the critic could have its own.
    """
    if spec.separate and not jax.tree.leaves((params.lora, params.conditioner)):
        raise ValueError("a separate critic needs a policy with adapters; all weights are trained here")
    num_inputs = width + (spec.num_basis if spec.sees_person else 0)
    channels = num_channels(spec.num_basis)
    critic: Critic = {
        "w1": jax.nn.initializers.he_normal()(key, (num_inputs, spec.hidden), jnp.float32),
        "b1": jnp.zeros(spec.hidden, jnp.float32),
        "w2": jnp.zeros((spec.hidden, channels), jnp.float32),
        "b2": jnp.zeros(channels, jnp.float32),
    }
    if spec.separate:
        # Copies: the training state donates its buffers, and one buffer cannot be donated twice.
        critic["lora"], critic["conditioner"] = jax.tree.map(jnp.copy, (params.lora, params.conditioner))
    return critic


def backbone(spec: CriticSpec, critic: Critic, params: PolicyParams) -> PolicyParams | None:
    """Parameters of the critic's own decoder, or None when it reads the policy's states."""
    if not spec.separate:
        return None
    return params._replace(lora=critic["lora"], conditioner=critic["conditioner"])


def channel_values(
    spec: CriticSpec, critic: Critic, decoder: Decoder, states: jax.Array, z: jax.Array | None
) -> jax.Array:
    """V[B, T, C] in float32 from states [B, T, D] before the final norm and z[B, K].

    The published scale of the final norm is applied, then its size is taken out, so that heads start alike on any model.
    """
    if not spec.separate and spec.stop_gradient:
        states = jax.lax.stop_gradient(states)
    features = decoder.final_norm(states).astype(jnp.float32)
    features = features * jax.lax.rsqrt(jnp.mean(features**2, axis=-1, keepdims=True) + 1e-6)
    if spec.sees_person:
        wide = jnp.broadcast_to(z[:, None, :], (*features.shape[:2], z.shape[1]))
        features = jnp.concatenate([features, wide], axis=-1)
    inner = jax.nn.gelu(features @ critic["w1"] + critic["b1"])
    return inner @ critic["w2"] + critic["b2"]
