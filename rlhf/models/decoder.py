"""One configuration-driven decoder for every family of `families.FAMILIES`.

Layers are kept in *stages*: stacks that `lax.scan` runs. A decoder with adapters only on its top n layers has two
stages, of which the lower is frozen, so its activations for fixed tokens can be computed once. For decoding every layer
is a stage of its own (`policy.decoding.apart`): a loop that reads a stack copies each layer out of it at every token.

Shapes: B rows, T tokens of this call, S cached positions, D width, V vocabulary, K basis outputs.
"""

import dataclasses
import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rlhf.mesh import place
from rlhf.mesh.rules import ROWS
from rlhf.models import attention
from rlhf.models import rope as ropes
from rlhf.models.adapters import AdapterSpec, Linear, gate_of
from rlhf.models.cache import Cache, LayerCache
from rlhf.models.conditioners import FiLM, LogitHeads, Prefix, WordKeys, write_words
from rlhf.models.config import ModelConfig
from rlhf.models.layout import HostOrDevice


class _Unsaid(enum.Enum):
    """Not an array, and not None, which says something."""

    Z = enum.auto()


@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer of one call shares.

    Attributes:
      mask: bool[B, T, S] of keys a query may see; window_mask: the same with the sliding window, None without one.
      rope, rope_local: (cos, sin) tables; unrotated: those that turn nothing, None where every layer has positions.
      gate: [B, 1, K·r] of the low-rank conditioner, None where z = 0 for all.
      z: [B, K] for the other kinds, None where z = 0 for all.
      words: keys and values of the words in front of the prompt, which `mask` covers first; None without any.
      index: int32 scalar, cache slot of the first token of this call; None without a cache.
    """

    mask: jax.Array
    window_mask: jax.Array | None
    rope: tuple[jax.Array, jax.Array]
    rope_local: tuple[jax.Array, jax.Array]
    unrotated: tuple[jax.Array, jax.Array] | None
    gate: jax.Array | None
    index: jax.Array | None
    z: jax.Array | None = None
    words: WordKeys | None = None


class Kind(NamedTuple):
    """What a layer is: of one layer bool, in a scan over layers arrays."""

    sliding: bool | HostOrDevice
    unrotated: bool | HostOrDevice


def kinds(config: ModelConfig, first: int, size: int) -> Kind:
    """Of the layers first … first+size−1, as arrays."""
    part = slice(first, first + size)
    return Kind(np.asarray(config.sliding[part]), np.asarray(config.unrotated[part]))


def _choose(which: bool | HostOrDevice, one: PyTree, other: PyTree) -> PyTree:
    """`one` in a layer that is `which`, else `other`; decided now where the layer is known."""
    if isinstance(which, bool):
        return one if which else other
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one, other)


class RMSNorm(nnx.Module):
    """x / sqrt(mean x² + eps) · scale in float32; Gemma stores scale − 1."""

    def __init__(self, width: int, config: ModelConfig, dtype):
        self.scale = nnx.Param(
            jnp.zeros((width,), dtype) if config.norm_plus_one else jnp.ones((width,), dtype)
        )
        self.eps, self.plus_one, self.wide = config.norm_eps, config.norm_plus_one, config.norm_in_float32

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        if self.wide:
            return (wide * (1.0 + scale if self.plus_one else scale)).astype(x.dtype)
        return wide.astype(x.dtype) * scale.astype(x.dtype)  # Llama rounds before scaling


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, spec: AdapterSpec | None, dtype, rngs: nnx.Rngs):
        heads, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        shared = {"spec": spec, "dtype": dtype, "rngs": rngs, "kept": config.kept}
        self.q = Linear(config.width, heads, bias=config.attention_bias, **shared)
        self.k = Linear(config.width, groups, bias=config.attention_bias, **shared)
        self.v = Linear(config.width, groups, bias=config.attention_bias, **shared)
        self.o = Linear(heads, config.width, bias=config.output_bias, **shared)
        widths = {"none": None, "head": (config.head_dim, config.head_dim), "all": (heads, groups)}[
            config.qk_norm
        ]
        self.q_norm, self.k_norm = (
            (None, None) if widths is None else (RMSNorm(w, config, dtype) for w in widths)
        )
        self.prefix = Prefix(config, spec, rngs) if spec and spec.has("prefix") else None
        self.config = config

    def heads(self, x, gate):
        """x[B, T, D] → queries, keys and values [B, T, heads, h], before positions."""
        query, key, value = (f(x, gate) for f in (self.q, self.k, self.v))
        shape, normed = (*x.shape[:2], -1, self.config.head_dim), self.config.qk_norm
        if self.q_norm is None or self.k_norm is None:
            return query.reshape(shape), key.reshape(shape), value.reshape(shape)
        if normed == "all":
            return self.q_norm(query).reshape(shape), self.k_norm(key).reshape(shape), value.reshape(shape)
        return self.q_norm(query.reshape(shape)), self.k_norm(key.reshape(shape)), value.reshape(shape)

    def __call__(self, x, context: Context, kind: Kind, cache, words=None):
        """x[B, T, D] → [B, T, D], and the keys and values of this layer (cached ones included)."""
        config, (batch, num_tokens, _) = self.config, x.shape
        query, key, value = self.heads(x, context.gate)
        rope, mask = context.rope, context.mask
        if context.window_mask is not None:
            rope, mask = _choose(kind.sliding, (context.rope_local, context.window_mask), (rope, mask))
        if context.unrotated is not None:
            rope = _choose(kind.unrotated, context.unrotated, rope)
        unrotated = query
        query, key = ropes.rotate(query, rope), ropes.rotate(key, rope)
        capped = (config.query_scale, config.attention_softcap)
        if isinstance(cache, LayerCache):
            assert context.index is not None, "a cache needs the slot to write to"
            kept = cache.write(key, value, context.index)
            out = attention.attend_one(query, *kept, mask, *capped)
        else:
            if cache is not None:
                assert context.index is not None, "a cache needs the slot to write to"
                start = (0, context.index, 0, 0)
                key = jax.lax.dynamic_update_slice(cache[0], key.astype(cache[0].dtype), start)
                value = jax.lax.dynamic_update_slice(cache[1], value.astype(cache[1].dtype), start)
            kept = (key, value)
            if words is not None:
                key, value = (jnp.concatenate(pair, axis=1) for pair in zip(words, kept, strict=True))
            out = attention.attend(query, key, value, mask, *capped)
        if self.prefix is not None and context.z is not None:
            out = out + self.prefix(unrotated, context.z)
        out = self.o(out.reshape(batch, num_tokens, -1), context.gate)
        return out, kept


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, spec: AdapterSpec | None, dtype, rngs: nnx.Rngs):
        shared = {"bias": config.mlp_bias, "spec": spec, "dtype": dtype, "rngs": rngs, "kept": config.kept}
        self.gate = Linear(config.width, config.mlp_width, **shared)
        self.up = Linear(config.width, config.mlp_width, **shared)
        self.down = Linear(config.mlp_width, config.width, **shared)
        self.activation = config.activation

    def __call__(self, x, context: Context):
        gate = self.gate(x, context.gate)
        return self.down(activated(self.activation, gate) * self.up(x, context.gate), context.gate)


def activated(name: str, gate: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) if name == "silu" else jax.nn.gelu(gate, name == "gelu_tanh")


class Experts(nnx.Module):
    """A mixture of experts: y = Σ_{e in top k} p_e · down_e(act(gate_e x) ⊙ up_e x), p = softmax(router x).

    Dropless: every token goes through its k experts whatever the others choose, so that a token's output depends on no other
    token. Tokens are sorted by expert and multiplied group by group. No adapters act here; LoRA and conditioners are those of
    the attention. No auxiliary loss is added for the router.
    """

    def __init__(self, config: ModelConfig, dtype, rngs: nnx.Rngs):
        shape = (config.num_experts, config.width, config.mlp_width)
        normal = jax.nn.initializers.lecun_normal(batch_axis=0)
        self.router = nnx.Param(
            jax.nn.initializers.lecun_normal()(rngs.params(), (config.width, config.num_experts), dtype)
        )
        self.gate = nnx.Param(normal(rngs.params(), shape, dtype))
        self.up = nnx.Param(normal(rngs.params(), shape, dtype))
        self.down = nnx.Param(normal(rngs.params(), (shape[0], shape[2], shape[1]), dtype))
        self.activation, self.num_experts = config.activation, config.num_experts
        self.chosen, self.sum_to_one = config.experts_per_token, config.expert_weights_sum_to_one

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] → [B, T, D]."""
        flat = x.reshape(-1, x.shape[-1])
        probs = jax.nn.softmax((flat @ self.router[...]).astype(jnp.float32), axis=-1)
        weights, experts = jax.lax.top_k(probs, self.chosen)
        if self.sum_to_one:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        order = jnp.argsort(experts.reshape(-1), stable=True)
        sizes = jnp.bincount(experts.reshape(-1), length=self.num_experts).astype(jnp.int32)
        rows = flat[order // self.chosen]
        gate = jax.lax.ragged_dot(rows, self.gate[...], sizes)
        hidden = activated(self.activation, gate) * jax.lax.ragged_dot(rows, self.up[...], sizes)
        out = jax.lax.ragged_dot(hidden, self.down[...], sizes)
        out = out[jnp.argsort(order)].reshape(*weights.shape, -1)  # back in the order of the tokens
        return jnp.einsum("nk,nkd->nd", weights, out.astype(jnp.float32)).astype(x.dtype).reshape(x.shape)


class Layer(nnx.Module):
    def __init__(self, config: ModelConfig, spec: AdapterSpec | None, dtype, rngs: nnx.Rngs):
        self.pre_attn = RMSNorm(config.width, config, dtype) if config.pre_norms else None
        self.attn = Attention(config, spec, dtype, rngs)
        self.post_attn = RMSNorm(config.width, config, dtype) if config.post_norms else None
        self.pre_mlp = RMSNorm(config.width, config, dtype) if config.pre_norms else None
        self.mlp = Experts(config, dtype, rngs) if config.num_experts else MLP(config, spec, dtype, rngs)
        self.post_mlp = RMSNorm(config.width, config, dtype) if config.post_norms else None
        film = spec if spec is not None and spec.has("film") else None
        self.film_attn = None if film is None else FiLM(config.width, film)
        self.film_mlp = None if film is None else FiLM(config.width, film)
        self.residual_scale = config.residual_scale

    def __call__(self, x, context: Context, kind: Kind, cache, words=None):
        normed = x if self.pre_attn is None else self.pre_attn(x)
        normed = normed if self.film_attn is None else self.film_attn(normed, context.z)
        out, cache = self.attn(normed, context, kind, cache, words)
        x = x + self.scaled(self.post_attn(out) if self.post_attn is not None else out)
        normed = x if self.pre_mlp is None else self.pre_mlp(x)
        normed = normed if self.film_mlp is None else self.film_mlp(normed, context.z)
        out = self.mlp(normed, context)
        return x + self.scaled(self.post_mlp(out) if self.post_mlp is not None else out), cache

    def scaled(self, out):
        return out if self.residual_scale == 1.0 else out * self.residual_scale


class Embed(nnx.Module):
    def __init__(self, config: ModelConfig, dtype, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))


class Decoder(nnx.Module):
    """Token ids to hidden states, hidden states to logits.

    Args:
      config: architecture.
      stages: numbers of layers of the stacks, bottom first; they add up to `config.num_layers`.
      spec: adapters of the top stages, None for none; `adapted`: so many stages have them.
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
        adapted: int = 1,
    ):
        if sum(stages) != config.num_layers:
            raise ValueError(f"stages {stages} must add up to {config.num_layers} layers")

        def stack(num_layers: int, stage_spec: AdapterSpec | None):
            make = nnx.vmap(lambda rngs: Layer(config, stage_spec, dtype, rngs), in_axes=0, out_axes=0)
            return make(rngs.split(num_layers))

        self.embed = Embed(config, dtype, rngs)
        frozen = len(stages) - adapted
        self.stages = nnx.List([stack(n, spec if i >= frozen else None) for i, n in enumerate(stages)])
        self.final_norm = RMSNorm(config.width, config, dtype)
        self.head = (
            None
            if config.tied
            else Linear(config.width, config.vocab_size, bias=False, spec=None, dtype=dtype, rngs=rngs)
        )
        heads = spec if spec is not None and spec.has("logit_heads") else None
        self.logit_heads = None if heads is None else LogitHeads(config, heads, rngs)
        if spec and spec.has("text") and frozen:
            raise ValueError(
                "words in front of the prompt change every layer: one stage, not cached lower ones"
            )
        self.config, self.spec, self.remat = config, spec, remat
        self.stage_sizes, self.adapted = stages, adapted

    def embed_tokens(self, tokens: HostOrDevice) -> jax.Array:
        """int32[B, T] → [B, T, D]."""
        x = place.rows(place.gathered(self.embed.embedding[...], "tensor", "fsdp")[tokens])
        return x * jnp.asarray(self.config.embed_scale, x.dtype) if self.config.embed_scale != 1.0 else x

    def read_words(self, z: HostOrDevice | None) -> WordKeys | None:
        """Run the words that z[B, K] writes through the layers; None for other conditioners and for nobody (z None).

        They depend on z alone, so a decoding loop reads them once and gives them to every `context`.
        """
        if z is None or self.spec is None or not self.spec.has("text"):
            return None
        words = self.spec.words
        assert words is not None, "text is made of words"
        (tokens, valid), after = write_words(words, z), len(words.begin)
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        # A place without a word sees itself, so that its softmax is not over nothing.
        mask = causal & (valid[:, None, :] | jnp.eye(tokens.shape[1], dtype=bool))
        cache = self.empty_cache(*tokens.shape)
        context = self.context(positions, mask, index=jnp.zeros((), jnp.int32))
        _, kept = self.run_stages(self.embed_tokens(tokens), context, cache=cache)
        keys, values = jax.tree.map(lambda a: a[:, :, after:], kept)
        return WordKeys(keys, values, positions[:, after:], valid[:, after:], after)

    def context(self, positions, mask, *, z=None, key_positions=None, index=None, words=None) -> Context:
        """Gather what all layers share.

        Args:
          positions: int32[B, T]; mask: bool[B, T, S].
          z: [B, K], None for the aggregate policy.
          key_positions: of the S keys, `positions` where None.
          index: cache slot of the first token.
          words: what `read_words(z)` returned; read here where None.
        """
        config, spec = self.config, self.spec
        if spec is None or not spec.num_basis:
            z = None
        elif z is not None and z.shape[-1] != spec.num_basis:
            raise ValueError(f"z has {z.shape[-1]} coefficients, the conditioner {spec.num_basis}")
        words = self.read_words(z) if words is None else words
        if words is not None:
            keys = positions if key_positions is None else key_positions
            positions, key_positions, mask = words.make_room(positions, keys, mask)
        window_mask = None
        if config.window:
            keys = positions if key_positions is None else key_positions
            window_mask = mask & attention.within_window(positions, keys, config.window)
        rope = ropes.tables(config.rope, config.head_dim, positions)
        same = config.rope_local == config.rope
        rope_local = rope if same else ropes.tables(config.rope_local, config.head_dim, positions)
        unrotated = ropes.still(rope) if any(config.unrotated) else None
        gate = gate_of(z, spec) if spec is not None and z is not None and spec.kind == "low_rank" else None
        return Context(mask, window_mask, rope, rope_local, unrotated, gate, index, z, words)

    def run_stages(self, x, context: Context, *, first: int = 0, last: int | None = None, cache=None):
        """Run stages first … last−1 on x[B, T, D].

        Args:
          cache: keys and values for each stage to read and write, or None.

        Returns:
          hidden states before the final norm, and the new (keys, values) of each stage run.
        """
        last = len(self.stages) if last is None else last
        keys, values = [], []
        for index in range(first, last):
            offset, size = sum(self.stage_sizes[:index]), self.stage_sizes[index]
            graphdef, state = nnx.split(self.stages[index])

            def body(x, layer, graphdef=graphdef):
                layer_state, kind, layer_cache, layer_words = layer
                x, kept = nnx.merge(graphdef, layer_state)(x, context, kind, layer_cache, layer_words)
                return place.rows(x), kept

            body = jax.checkpoint(body) if self.remat else body
            stage_cache = None if cache is None else (cache.keys[index], cache.values[index])
            words = context.words
            stage_words = None if words is None else (words.keys[index], words.values[index])
            if (
                max(self.stage_sizes) == 1 < len(self.stages)
            ):  # layers apart: nothing is copied out of a stack
                only = jax.tree.map(lambda a: a[0], (state, stage_cache, stage_words))
                kind = Kind(self.config.sliding[offset], self.config.unrotated[offset])
                x, new = body(x, (only[0], kind, *only[1:]))
                new = jax.tree.map(lambda a: a[None], new)
            else:
                layers = (state, kinds(self.config, offset, size), stage_cache, stage_words)
                x, new = jax.lax.scan(body, x, layers)
            if cache is not None:
                keys.append(new[0])
                values.append(new[1])
        return x, (tuple(keys), tuple(values))

    def step(
        self, x: jax.Array, context: Context, caches: tuple[LayerCache, ...]
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """Run all layers, each a stage, on one token a row, x[B, 1, D], after those in the caches.

        Words in front of a prompt are in the caches' first slots (`context.index` counts them).
        """
        new = []
        each = map(Kind, self.config.sliding, self.config.unrotated)
        for stage, kind, cache in zip(self.stages, each, caches, strict=True):
            graphdef, state = nnx.split(stage)
            layer = nnx.merge(graphdef, jax.tree.map(lambda a: a[0], state))
            x, cache = layer(x, context, kind, cache)
            x = place.rows(x)
            new.append(cache)
        return x, tuple(new)

    def logits(self, hidden: jax.Array, z: HostOrDevice | None | _Unsaid = _Unsaid.Z) -> jax.Array:
        """Hidden states [B, ..., D] before the final norm → float32 logits [B, ..., V].

        Args:
          z: [B, K] as given to `context`, None for the aggregate policy; must be said where there are logit heads.
        """
        x = self.final_norm(hidden)
        if self.head is None:
            kernel = place.gathered(self.embed.embedding[...], "tensor", "fsdp").T
        else:
            kernel = place.gathered(self.head.kernel[...], "fsdp", "tensor")
        logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        logits = place.constrained(logits, ROWS, *(None,) * (logits.ndim - 2), "tensor")
        divisor, cap = self.config.logit_divisor, self.config.final_softcap
        logits = logits if divisor == 1.0 else logits / divisor
        logits = cap * jnp.tanh(logits / cap) if cap else logits
        if self.logit_heads is None or z is None:
            return logits
        if z is _Unsaid.Z:
            raise ValueError("this decoder has logit heads: say whose logits, logits(hidden, z)")
        return logits + self.logit_heads(x, z)

    def empty_cache(self, batch: int, length: int) -> Cache:
        config, dtype = self.config, self.embed.embedding[...].dtype
        shapes = [(n, batch, length, config.num_kv_heads, config.head_dim) for n in self.stage_sizes]
        zeros = tuple(
            place.constrained(jnp.zeros(shape, dtype), None, ROWS, None, "tensor") for shape in shapes
        )
        return Cache(zeros, zeros, jnp.zeros((), jnp.int32))
