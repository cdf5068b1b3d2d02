"""Autoregressive sampling: one compiled prefill and decode loop with a key/value cache and early exit.

Prompts are left-padded, so all rows write the same cache slot; padding is masked, positions count from a row's first
token, and every row draws from its own key, so what one row says does not depend on its neighbours. Rows that share
prompt and person share the prefill (`group_size`).

Shapes: B rows, P prompt slots, T new tokens, V vocabulary, K basis outputs.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models.layout import HostOrDevice
from rlhf.policy import decoding
from rlhf.policy.logprobs import PolicyParams


class SamplingSettings(NamedTuple):
    """Per-row arrays [B]: changing them compiles nothing.

    Attributes:
      temperature: 0 is greedy.
      top_k: keep the k likeliest tokens, 0 all; top_p: smallest set with at least this mass, 1 all;
      min_p: keep tokens with at least this fraction of the likeliest one's probability, 0 all.
    """

    temperature: HostOrDevice
    top_k: HostOrDevice
    top_p: HostOrDevice
    min_p: HostOrDevice

    @classmethod
    def of(cls, batch: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
        return cls(
            np.full(batch, temperature, np.float32),
            np.full(batch, top_k, np.int32),
            np.full(batch, top_p, np.float32),
            np.full(batch, min_p, np.float32),
        )


class Samples(NamedTuple):
    """tokens int32[B, T] (0 after the end); logprobs float32[B, T] of the sampled tokens under the untempered
    policy, 0 after the end; mask bool[B, T], True up to and including the stop token."""

    tokens: jax.Array
    logprobs: jax.Array
    mask: jax.Array


def filter_logits(logits: jax.Array, settings: SamplingSettings, likeliest: int = 512) -> jax.Array:
    """Apply top-k, then top-p, then min-p to tempered logits[B, V]; removed tokens become −inf.

    Order and meaning as in transformers' logits warpers; the likeliest token always stays.

    Args:
      likeliest: so many tokens are sorted at first. Where they do not settle every row (top_k is larger, or top_p needs
        more of them) all V are.
    """
    if likeliest >= logits.shape[-1]:
        threshold = _threshold(jnp.sort(logits, axis=-1)[:, ::-1], logits, settings)[0]
    else:
        top, settled = _threshold(_largest(logits, likeliest), logits, settings)
        threshold = jax.lax.cond(
            jnp.all(settled),
            lambda: top,
            lambda: _threshold(jnp.sort(logits, axis=-1)[:, ::-1], logits, settings)[0],
        )
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.maximum(settings.min_p, 1e-38))[:, None]
    return jnp.where(logits < floor, -jnp.inf, logits)


def _largest(logits: jax.Array, size: int) -> jax.Array:
    """[B, size] in descending order; the barriers keep XLA from making a whole sort of it again."""
    return jax.lax.optimization_barrier(jax.lax.top_k(jax.lax.optimization_barrier(logits), size))[0]


def _threshold(
    descending: jax.Array, logits: jax.Array, settings: SamplingSettings
) -> tuple[jax.Array, jax.Array]:
    """The least logit that top-k and top-p keep, [B, 1], from the largest in order, [B, n]; whether these settle it, [B]."""
    size = descending.shape[-1]
    limited, wanted = settings.top_k > 0, settings.top_p < 1.0
    kth = jnp.take_along_axis(descending, jnp.clip(settings.top_k - 1, 0, size - 1)[:, None], axis=1)
    kth = jnp.where(limited[:, None], kth, -jnp.inf)
    # Tokens as likely as the k-th stay, too, and the last one of `descending` may have equals beyond it.
    within = limited & (settings.top_k <= size) & (descending[:, -1] < kth[:, 0])
    kept = jnp.where(descending < kth, -jnp.inf, descending)
    total = jnp.where(within, jax.nn.logsumexp(kept, axis=-1), jax.nn.logsumexp(logits, axis=-1))
    probs = jnp.exp(kept - total[:, None])
    before = jnp.cumsum(probs, axis=-1) - probs
    # Float32 sums of many small probabilities reach 1 before the end; top_p = 1 still keeps every token.
    stays = before < settings.top_p[:, None]
    last = jnp.min(jnp.where(stays, kept, jnp.inf), axis=-1, keepdims=True)
    threshold = jnp.where(wanted[:, None], jnp.maximum(kth, last), kth)
    settled = (within | ~limited) & (~wanted | within | ~stays[:, -1])
    return threshold, jnp.logical_or(settled, size == logits.shape[-1])


def first_max(scores: jax.Array) -> jax.Array:
    """`jnp.argmax` over the last axis, int32, as two reductions that XLA's CPU compiler vectorises (its argmax it does not).

    The scores are computed once, whatever computes them.
    """
    scores = jax.lax.optimization_barrier(scores)
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    return jnp.min(jnp.where(scores == largest, index, scores.shape[-1] - 1), axis=-1)


def pick(
    logits: jax.Array, keys: jax.Array, step: jax.Array, settings: SamplingSettings, filtered: bool
) -> jax.Array:
    """Next token of each row, int32[B], from logits[B, V] and each row's own key at this step."""
    tempered = logits / jnp.maximum(settings.temperature, 1e-6)[:, None]
    tempered = filter_logits(tempered, settings) if filtered else tempered
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(step_keys)
    greedy = settings.temperature <= 0
    return first_max(jnp.where(greedy[:, None], logits, tempered + noise))


class _Loop(NamedTuple):
    step: jax.Array
    token: jax.Array
    done: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    mask: jax.Array
    state: decoding.State


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "filtered", "group_size"))
def generate(
    params: PolicyParams,
    prompts: jax.Array,
    starts: jax.Array,
    z: jax.Array | None,
    keys: jax.Array,
    settings: SamplingSettings,
    stop: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    max_new_tokens: int,
    filtered: bool,
    group_size: int = 1,
) -> Samples:
    """Sample a completion for each row.

    Args:
      params: policy arrays.
      prompts: int32[B, P], left-padded; `starts` int32[B], slot of each row's first token.
      z: [B, K], None for the aggregate policy.
      keys: one key a row.
      stop: int32[S] tokens that end a completion; −1 entries match nothing.
      max_new_tokens: T.
      filtered: whether any row uses top-k, top-p or min-p (they need a sort of the vocabulary).
      group_size: so many neighbouring rows have the same prompt and z, which is then read once for all of them.
    """
    graphdef, params = decoding.apart(graphdef, params)
    decoder = nnx.merge(graphdef, *params)

    def advance(loop: _Loop, logits: jax.Array, state: decoding.State) -> _Loop:
        token = pick(logits, keys, loop.step, settings, filtered)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        alive = ~loop.done
        return _Loop(
            loop.step + 1,
            token,
            loop.done | jnp.any(token[:, None] == stop[None, :], axis=1),
            loop.tokens.at[:, loop.step].set(jnp.where(alive, token, 0)),
            loop.logprobs.at[:, loop.step].set(jnp.where(alive, logprob, 0.0)),
            loop.mask.at[:, loop.step].set(alive),
            state,
        )

    batch, shape = len(prompts), (len(prompts), max_new_tokens)
    logits, state = decoding.prefill(decoder, prompts, starts, z, max_new_tokens, group_size)
    loop = _Loop(
        jnp.zeros((), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros(batch, bool),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, bool),
        state,
    )
    loop = jax.lax.while_loop(
        lambda loop: (loop.step < max_new_tokens) & ~jnp.all(loop.done),
        lambda loop: advance(loop, *decoding.step(decoder, loop.state, loop.token)),
        advance(loop, logits, state),
    )
    return Samples(loop.tokens, loop.logprobs, loop.mask)


def left_pad(prompts: Sequence[Sequence[int]], *, multiple: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Right-align token lists: (int32[B, P], start of each row); P is rounded up so that few shapes occur."""
    width = -(-max(len(prompt) for prompt in prompts) // multiple) * multiple
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
    return tokens, np.array([width - len(prompt) for prompt in prompts], np.int32)


def row_keys(seed: int, rows: np.ndarray) -> jax.Array:
    """One key a row, from the run's seed and the row's own number (not its place in a batch)."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(np.asarray(rows, np.uint32))
