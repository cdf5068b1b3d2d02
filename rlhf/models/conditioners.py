"""Every way in which a person's z changes the decoder, behind one interface.

    low_rank     y = xW + Σ_k z_k (x A_k) B_k in every linear layer                        (`adapters.Linear`)
    film         x̂ ← x̂ ⊙ (1 + Σ_k z_k γ_k) + Σ_k z_k δ_k after both norms of a block       (`FiLM`)
    prefix       attention + Σ_m softmax_m(q·κ_m / √h) Σ_k z_k ν_km in every layer          (`Prefix`)
    logit_heads  log π ∝ log π_agg + Σ_k z_k ℓ_k,  ℓ_k = (norm(h) A_k) B_k                  (`LogitHeads`)
    text         words chosen by z stand in front of the prompt                              (`make_words`)

The first four are linear in z with factors that start at 0: at z = 0 the policy is the aggregate one exactly, whatever
was trained, and at initialisation it is the reference for every z. Text has no parameters: near z = 0 it writes
nothing, which is the aggregate policy exactly, but any other z changes the prompt from the first step on.

FiLM: Perez et al. 2018 (arXiv:1709.07871), identity at the start as in few-shot steerable alignment (arXiv:2412.13998).
Prefix: Li & Liang 2021 (arXiv:2101.00190) put slots into the attention's own softmax, where slots take weight from the
text even with empty values; the zero-initialised attention of LLaMA-Adapter (arXiv:2303.16199) gives the slots their
own softmax, and that term vanishes with its values. Queries are taken before the rotation: slots have no position.
Logit heads: one head a reward as in MAH-DPO (arXiv:2510.01167); trained with `users.extremes` alone, every head sees its
own axis only and the sum at decoding time is the baseline without joint training.

Shapes: B rows, T tokens, K basis outputs, D width, G key/value heads, h head width, M slots, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.mesh import place
from rlhf.models import attention
from rlhf.models.adapters import AdapterSpec, Conditioner, Words
from rlhf.models.config import ModelConfig
from rlhf.models.layout import HostOrDevice
from rlhf.models.tokenizer import Tokenizer

ZERO = ("film_scale", "film_shift", "prefix_values")
THRESHOLDS = (-1.5, -0.75, -0.25, 0.25, 0.75, 1.5)
"""Where z, in standard deviations of the population, changes its word."""
LEVELS = ("far less", "less", "slightly less", "", "slightly more", "more", "far more")


def starts_at_zero(name: str) -> bool:
    """Whether a factor of an adapter is 0 at initialisation (the inputs' factors are random)."""
    return name.endswith("_b") or name in ZERO


class FiLM(nnx.Module):
    """x̂ + x̂ ⊙ (z γ) + z δ for normed inputs x̂[B, T, D] and z[B, K]; written so that small zγ survive bfloat16."""

    def __init__(self, width: int, spec: AdapterSpec):
        shape = (spec.num_basis, width)
        self.film_scale = Conditioner(jnp.zeros(shape, jnp.float32))
        self.film_shift = Conditioner(jnp.zeros(shape, jnp.float32)) if spec.shift else None

    def __call__(self, x: jax.Array, z: jax.Array | None) -> jax.Array:
        if z is None:
            return x
        y = x + x * (z @ self.film_scale[...])[:, None, :].astype(x.dtype)
        return y if self.film_shift is None else y + (z @ self.film_shift[...])[:, None, :].astype(x.dtype)


class Prefix(nnx.Module):
    """Attention over M slots of their own softmax: keys shared by all, values linear in z."""

    def __init__(self, config: ModelConfig, spec: AdapterSpec, rngs: nnx.Rngs):
        shape = (spec.slots, config.num_kv_heads * config.head_dim)
        uniform = jax.nn.initializers.he_uniform()
        self.prefix_keys = Conditioner(uniform(rngs.params(), shape, jnp.float32))
        self.prefix_values = Conditioner(jnp.zeros((spec.num_basis, *shape), jnp.float32))
        self.config = config

    def __call__(self, query: jax.Array, z: jax.Array) -> jax.Array:
        """query[B, T, H, h], not rotated; z[B, K] → [B, T, H, h] to add to the attention's output."""
        config, batch = self.config, query.shape[0]
        values = jnp.einsum("bk,kmd->bmd", z, self.prefix_values[...])
        keys = jnp.broadcast_to(self.prefix_keys[...], values.shape)
        shape = (batch, -1, config.num_kv_heads, config.head_dim)
        keys, values = (part.reshape(shape).astype(query.dtype) for part in (keys, values))
        mask = jnp.ones((batch, query.shape[1], keys.shape[1]), bool)
        return attention.attend(query, keys, values, mask, config.query_scale, config.attention_softcap)


class LogitHeads(nnx.Module):
    """K heads of rank r on the normed last hidden state; what they add comes after a final soft cap."""

    def __init__(self, config: ModelConfig, spec: AdapterSpec, rngs: nnx.Rngs):
        inner = spec.num_basis * spec.basis_rank
        uniform = jax.nn.initializers.he_uniform()
        self.heads_a = Conditioner(uniform(rngs.params(), (config.width, inner), jnp.float32))
        self.heads_b = Conditioner(jnp.zeros((inner, config.vocab_size), jnp.float32))
        self.rank = spec.basis_rank

    def __call__(self, x: jax.Array, z: HostOrDevice) -> jax.Array:
        """x[B, …, D] after the final norm, z[B, K] → float32[B, …, V]."""
        gate = jnp.repeat(z, self.rank, axis=-1)
        gate = gate.reshape(gate.shape[0], *(1,) * (x.ndim - 2), gate.shape[1]).astype(x.dtype)
        inner = (x @ self.heads_a[...].astype(x.dtype)) * gate
        return jnp.matmul(inner, self.heads_b[...].astype(x.dtype), preferred_element_type=jnp.float32)


class WordKeys(NamedTuple):
    """What the layers see of the words that z writes.

    Attributes:
      keys, values: for each stage [layers, B, W, G, h].
      positions: int32[B, W]; `valid` bool[B, W], False where an axis says nothing or less than it could.
      after: how many tokens of a prompt stand in front of the words and do not see them.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    positions: jax.Array
    valid: jax.Array
    after: int

    def take(self, rows: jax.Array) -> "WordKeys":
        """The words of some rows, in this order (`place.picked`)."""
        keys, values = jax.tree.map(lambda part: place.picked(part, rows, 1), (self.keys, self.values))
        positions, valid = place.picked(self.positions, rows), place.picked(self.valid, rows)
        return WordKeys(keys, values, positions, valid, self.after)

    def make_room(
        self, positions: jax.Array, key_positions: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Positions [B, T], key positions [B, W + S] and mask [B, T, W + S] of a text with the words in it."""
        count = jnp.sum(self.valid, axis=1, keepdims=True)
        late, late_keys = positions >= self.after, key_positions >= self.after
        mask = jnp.concatenate([late[:, :, None] & self.valid[:, None, :], mask], axis=2)
        moved = key_positions + jnp.where(late_keys, count, 0)
        return (
            positions + jnp.where(late, count, 0),
            jnp.concatenate([self.positions, moved], axis=1),
            mask,
        )


def make_words(tokenizer: Tokenizer, names: tuple[str, ...]) -> Words:
    """Tokens of "far less NAME. " … "far more NAME. " for every axis, to stand where a user's message starts.

    A prompt of messages that opens differently (another system message) gets them after as many tokens.
    """
    phrases = tuple(
        tuple(
            tuple(tokenizer.encode_completion(f"{level} {name}. ")[:-1]) if level else () for level in LEVELS
        )
        for name in names
    )
    return Words(phrases, tuple(tokenizer.begin_ids))


def text_of(z: np.ndarray, names: tuple[str, ...]) -> str:
    """The words for one z[K], as `make_words` tokenises them; "" near z = 0."""
    levels = np.searchsorted(THRESHOLDS, z, side="left")
    return "".join(f"{LEVELS[i]} {name}. " for i, name in zip(levels, names, strict=True) if LEVELS[i])


def write_words(words: Words, z: HostOrDevice) -> tuple[jax.Array, jax.Array]:
    """Token ids int32[B, W] for z[B, K] and bool[B, W] of those that are written; `begin` comes first."""
    width = max(len(ids) for axis in words.phrases for ids in axis)
    table = np.full((len(words.phrases), len(words.phrases[0]), width), -1, np.int32)
    for k, axis in enumerate(words.phrases):
        for level, ids in enumerate(axis):
            table[k, level, : len(ids)] = ids
    level = jnp.searchsorted(jnp.asarray(THRESHOLDS, z.dtype), z, side="left")
    chosen = jnp.asarray(table)[jnp.arange(len(table)), level].reshape(z.shape[0], -1)
    begin = jnp.broadcast_to(jnp.asarray(words.begin, jnp.int32), (z.shape[0], len(words.begin)))
    tokens = jnp.concatenate([begin, chosen], axis=1)
    return jnp.maximum(tokens, 0), tokens >= 0
