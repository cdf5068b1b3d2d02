"""One configuration-driven decoder for the Llama, Qwen and Gemma families.

Layers are kept in *stages*: stacks that `lax.scan` runs. A decoder with adapters only on its top n layers has two
stages, of which the lower is frozen, so its activations for fixed tokens can be computed once (`first_stage`).

Shapes: B rows, T tokens of this call, S cached positions, D width, V vocabulary, K basis outputs.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models import attention
from rlhf.models.adapters import AdapterSpec, Linear, gate_of
from rlhf.models.config import ModelConfig


class Cache(NamedTuple):
    """Keys and values of past tokens: for each stage, [layers, B, S, G, h] twice; `index` is where to write next."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    index: jax.Array


@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer of one call shares.

    Attributes:
      mask: bool[B, T, S] of keys a query may see; window_mask: the same with the sliding window, None without one.
      rope, rope_local: (cos, sin) tables.
      gate: [B, 1, K·r] of the conditioner, None where z = 0 for all.
      index: int32 scalar, cache slot of the first token of this call; None without a cache.
    """

    mask: jax.Array
    window_mask: jax.Array | None
    rope: tuple[jax.Array, jax.Array]
    rope_local: tuple[jax.Array, jax.Array]
    gate: jax.Array | None
    index: jax.Array | None


class RMSNorm(nnx.Module):
    """x / sqrt(mean x² + eps) · scale in float32; Gemma stores scale − 1."""

    def __init__(self, width: int, config: ModelConfig, dtype):
        self.scale = nnx.Param(
            jnp.zeros((width,), dtype) if config.norm_plus_one else jnp.ones((width,), dtype)
        )
        self.eps, self.plus_one = config.norm_eps, config.norm_plus_one

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        if self.plus_one:
            return (wide * (1.0 + scale)).astype(x.dtype)
        return wide.astype(x.dtype) * scale.astype(x.dtype)  # Llama rounds before scaling


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, spec: AdapterSpec | None, dtype, rngs: nnx.Rngs):
        heads, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        shared = {"spec": spec, "dtype": dtype, "rngs": rngs}
        self.q = Linear(config.width, heads, bias=config.attention_bias, **shared)
        self.k = Linear(config.width, groups, bias=config.attention_bias, **shared)
        self.v = Linear(config.width, groups, bias=config.attention_bias, **shared)
        self.o = Linear(heads, config.width, bias=config.output_bias, **shared)
        self.q_norm = RMSNorm(config.head_dim, config, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config, dtype) if config.qk_norm else None
        self.config = config

    def __call__(self, x, context: Context, sliding, cache):
        """x[B, T, D] → [B, T, D], and the keys and values of this layer (cached ones included)."""
        config, (batch, num_tokens, _) = self.config, x.shape
        shape = (batch, num_tokens, -1, config.head_dim)
        query, key, value = (f(x, context.gate).reshape(shape) for f in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        rope, mask = context.rope, context.mask
        if context.window_mask is not None:
            rope = jax.tree.map(lambda a, b: jnp.where(sliding, b, a), rope, context.rope_local)
            mask = jnp.where(sliding, context.window_mask, mask)
        query, key = attention.rotate(query, rope), attention.rotate(key, rope)
        if cache is not None:
            start = (0, context.index, 0, 0)
            key = jax.lax.dynamic_update_slice(cache[0], key.astype(cache[0].dtype), start)
            value = jax.lax.dynamic_update_slice(cache[1], value.astype(cache[1].dtype), start)
        out = attention.attend(query, key, value, mask, config.query_scale, config.attention_softcap)
        out = self.o(out.reshape(batch, num_tokens, -1), context.gate)
        return out, (key, value)


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, spec: AdapterSpec | None, dtype, rngs: nnx.Rngs):
        shared = {"bias": False, "spec": spec, "dtype": dtype, "rngs": rngs}
        self.gate = Linear(config.width, config.mlp_width, **shared)
        self.up = Linear(config.width, config.mlp_width, **shared)
        self.down = Linear(config.mlp_width, config.width, **shared)
        self.activation = config.activation

    def __call__(self, x, context: Context):
        gate = self.gate(x, context.gate)
        gate = (
            jax.nn.silu(gate)
            if self.activation == "silu"
            else jax.nn.gelu(gate, self.activation == "gelu_tanh")
        )
        return self.down(gate * self.up(x, context.gate), context.gate)


class Layer(nnx.Module):
    def __init__(self, config: ModelConfig, spec: AdapterSpec | None, dtype, rngs: nnx.Rngs):
        self.pre_attn = RMSNorm(config.width, config, dtype)
        self.attn = Attention(config, spec, dtype, rngs)
        self.post_attn = RMSNorm(config.width, config, dtype) if config.post_norms else None
        self.pre_mlp = RMSNorm(config.width, config, dtype)
        self.mlp = MLP(config, spec, dtype, rngs)
        self.post_mlp = RMSNorm(config.width, config, dtype) if config.post_norms else None

    def __call__(self, x, context: Context, sliding, cache):
        out, cache = self.attn(self.pre_attn(x), context, sliding, cache)
        x = x + (self.post_attn(out) if self.post_attn is not None else out)
        out = self.mlp(self.pre_mlp(x), context)
        return x + (self.post_mlp(out) if self.post_mlp is not None else out), cache


class Embed(nnx.Module):
    def __init__(self, config: ModelConfig, dtype, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))


class Decoder(nnx.Module):
    """Token ids to hidden states, hidden states to logits.

    Args:
      config: architecture.
      stages: numbers of layers of the stacks, bottom first; they add up to `config.num_layers`.
      spec: adapters of the top stage, None for none.
      dtype: of weights and activations; norms, softmax and logits are float32.
      remat: recompute each layer's activations in the backward pass.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        stages: tuple[int, ...],
        spec: AdapterSpec | None,
        dtype,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        if sum(stages) != config.num_layers:
            raise ValueError(f"stages {stages} must add up to {config.num_layers} layers")

        def stack(num_layers: int, stage_spec: AdapterSpec | None):
            make = nnx.vmap(lambda rngs: Layer(config, stage_spec, dtype, rngs), in_axes=0, out_axes=0)
            return make(rngs.split(num_layers))

        self.embed = Embed(config, dtype, rngs)
        top = len(stages) - 1
        self.stages = nnx.List([stack(n, spec if i == top else None) for i, n in enumerate(stages)])
        self.final_norm = RMSNorm(config.width, config, dtype)
        self.head = (
            None
            if config.tied
            else Linear(config.width, config.vocab_size, bias=False, spec=None, dtype=dtype, rngs=rngs)
        )
        self.config, self.spec, self.remat, self.stage_sizes = config, spec, remat, stages

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] → [B, T, D]."""
        x = self.embed.embedding[...][tokens]
        return x * jnp.asarray(self.config.embed_scale, x.dtype) if self.config.embed_scale != 1.0 else x

    def context(self, positions, mask, *, z=None, key_positions=None, index=None) -> Context:
        """Gather what all layers share; `key_positions` (default `positions`) are those of the S keys."""
        config = self.config
        window_mask = None
        if config.window:
            keys = positions if key_positions is None else key_positions
            window_mask = mask & attention.within_window(positions, keys, config.window)
        rope = attention.rope_tables(config.rope, config.head_dim, positions)
        same = config.rope_local == config.rope
        rope_local = rope if same else attention.rope_tables(config.rope_local, config.head_dim, positions)
        gate = gate_of(z, self.spec) if z is not None and self.spec and self.spec.num_basis else None
        return Context(mask, window_mask, rope, rope_local, gate, index)

    def run_stages(
        self, x, context: Context, *, first: int = 0, last: int | None = None, cache=None, unroll=1
    ):
        """Run stages first … last−1 on x[B, T, D].

        Args:
          cache: keys and values for each stage to read and write, or None.
          unroll: passed to `lax.scan`; unrolled layers decode about 1.4 times as fast on CPU and compile slower.

        Returns:
          hidden states before the final norm, and the new (keys, values) of each stage run.
        """
        last = len(self.stages) if last is None else last
        sliding, keys, values = self.config.sliding, [], []
        for index in range(first, last):
            offset, size = sum(self.stage_sizes[:index]), self.stage_sizes[index]
            graphdef, state = nnx.split(self.stages[index])
            flags = np.asarray(sliding[offset : offset + size])

            def body(x, layer, graphdef=graphdef):
                layer_state, flag, layer_cache = layer
                return nnx.merge(graphdef, layer_state)(x, context, flag, layer_cache)

            body = jax.checkpoint(body) if self.remat and cache is None else body
            stage_cache = None if cache is None else (cache.keys[index], cache.values[index])
            x, new = jax.lax.scan(
                body, x, (state, flags, stage_cache), unroll=size if unroll is True else unroll
            )
            if cache is not None:
                keys.append(new[0])
                values.append(new[1])
        return x, (tuple(keys), tuple(values))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] before the final norm → float32 logits [..., V]."""
        x = self.final_norm(hidden)
        kernel = self.embed.embedding[...].T if self.head is None else self.head.kernel[...]
        logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        cap = self.config.final_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def empty_cache(self, batch: int, length: int) -> Cache:
        config, dtype = self.config, self.embed.embedding[...].dtype
        shapes = [(n, batch, length, config.num_kv_heads, config.head_dim) for n in self.stage_sizes]
        zeros = tuple(jnp.zeros(shape, dtype) for shape in shapes)
        return Cache(zeros, zeros, jnp.zeros((), jnp.int32))
