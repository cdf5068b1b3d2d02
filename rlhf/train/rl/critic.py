"""A critic with one head a channel that sees the person: V_c(s_t, z) of the K outputs, the KL and the missing stop token.

    V(s_t, z) = W_2 gelu(W_1 [h_t; z] + b_1) + b_2,   h_t the normalised state before token t, W_2 = b_2 = 0 at first

What a state is worth depends on how this person's policy goes on, so z is an input. Zero heads start at V = 0: the first
advantages are plain returns. With `separate` the states come from a decoder with adapters of its own, over the same
frozen base and from the same lower activations, which begin as copies of the policy's.

Shapes: B rows, T completion slots, D width, H hidden, K basis outputs, C channels.
"""

from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from pydantic import Field

from rlhf.mesh import place
from rlhf.models.decoder import Decoder
from rlhf.objectives.advantages import num_channels
from rlhf.policy.logprobs import PolicyParams
from rlhf.run.config.unread import Unread
from rlhf.run.record import record

Critic = dict[str, PyTree]  # w1, b1, w2, b2; and "lora", "conditioner" where the backbone is separate


@record
class CriticConfig:
    """One value a basis output and one for the KL, seen with the person's coefficients."""

    backbone: Literal["shared", "separate"] = Field(
        default="separate",
        description="separate: adapters of its own over the same frozen base, at first a copy of the policy's; "
        "shared: heads on the policy's hidden states.",
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="Run of chorus train ppo with the same model, outputs and critic keys, whose critic this one starts "
        "from; null: zero heads over the policy's adapters.",
    )
    from_rewards: bool = Field(
        default=False,
        description="Values start as what the reward model says of the completion so far, and the heads learn the rest "
        "(rewards fitted over mean hidden states); false: they start at 0.",
    )
    stop_gradient: bool = Field(
        default=True, description="Keep the value loss out of the policy's adapters (shared only)."
    )
    hidden: int = Field(default=128, ge=1, le=65_536, description="Width of the heads' one hidden layer.")
    rate: float = Field(
        default=1.0, gt=0, le=1e6, description="Learning rate of the critic, as a multiple of the policy's."
    )
    coef: float = Field(default=0.5, gt=0, le=1e6, description="Weight of the value loss.")
    value_clip: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Values may leave the old ones by so much before the loss turns worse; null means no clipping.",
    )

    def unread(self) -> Iterator[Unread]:
        if self.separate:
            yield Unread(["stop_gradient"], "backbone", "critic.backbone separate")

    @property
    def separate(self) -> bool:
        """Whether it has a backbone of its own."""
        return self.backbone == "separate"


def init_critic(
    config: CriticConfig,
    params: PolicyParams,
    width: int,
    key: jax.Array,
    *,
    num_basis: int,
    personal: bool,
) -> Critic:
    """Fresh heads (He-normal inputs, zero outputs) and, if separate, a copy of the policy's adapters.

    Args:
      params: the policy the critic is initialised from.
      width: D of the model. num_basis: K. personal: whether z is an input (always where there are people).

    Raises:
      ValueError: separate, but the policy has no adapters of which the critic could have its own.
    """
    if config.separate and not jax.tree.leaves((params.lora, params.conditioner)):
        raise ValueError("a separate critic needs a policy with adapters; all weights are trained here")
    num_inputs = width + (num_basis if personal else 0)
    channels = num_channels(num_basis)
    critic: Critic = {
        "w1": jax.nn.initializers.he_normal()(key, (num_inputs, config.hidden), jnp.float32),
        "b1": jnp.zeros(config.hidden, jnp.float32),
        "w2": jnp.zeros((config.hidden, channels), jnp.float32),
        "b2": jnp.zeros(channels, jnp.float32),
    }
    if config.separate:
        # Copies: the training state donates its buffers, and one buffer cannot be donated twice.
        critic["lora"], critic["conditioner"] = jax.tree.map(jnp.copy, (params.lora, params.conditioner))
    return place.parameters(critic)


def backbone(config: CriticConfig, critic: Critic, params: PolicyParams) -> PolicyParams | None:
    """Parameters of the critic's own decoder, or None when it reads the policy's states."""
    if not config.separate:
        return None
    return params._replace(lora=critic["lora"], conditioner=critic["conditioner"])


def channel_values(
    config: CriticConfig, critic: Critic, decoder: Decoder, states: jax.Array, z: jax.Array | None
) -> jax.Array:
    """V[B, T, C] in float32 from states [B, T, D] before the final norm and z[B, K].

    The published scale of the final norm is applied, then its size is taken out, so that heads start alike on any model.
    """
    if not config.separate and config.stop_gradient:
        states = jax.lax.stop_gradient(states)
    features = decoder.final_norm(states).astype(jnp.float32)
    features = features * jax.lax.rsqrt(jnp.mean(features**2, axis=-1, keepdims=True) + 1e-6)
    if z is not None:
        wide = jnp.broadcast_to(z[:, None, :], (*features.shape[:2], z.shape[1]))
        features = jnp.concatenate([features, wide], axis=-1)
    inner = jax.nn.gelu(features @ critic["w1"] + critic["b1"])
    return inner @ critic["w2"] + critic["b2"]
