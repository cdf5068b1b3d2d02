"""Where states meet the vocabulary: log-probs and entropies without ever holding [B, T, V].

Slots are taken a few at a time where their logits are many, and read again in the backward pass: 4 rows of 512 slots and
128,000 tokens would be 1 GB of float32 logits, and three times as much going back.

Shapes: B rows, T slots, N scored nodes, D width, V vocabulary, K basis outputs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rlhf.mesh.devices import axis
from rlhf.mesh.place import num_row_parts
from rlhf.models.decoder import Decoder
from rlhf.models.layout import HostOrDevice

LOGITS_BYTES = 128 << 20
"""float32 logits that a device holds at once; the backward pass holds about three times as much."""


def in_chunks(
    function: Callable[..., tuple[PyTree, PyTree]], vocab: int, *arrays: PyTree
) -> tuple[PyTree, PyTree]:
    """`function(*arrays)`, a few slots at a time where B·T·V float32 numbers are more than `LOGITS_BYTES`.

    Args:
      function: arrays with leaves [B, t, …], any t → (leaves [B, t, …], leaves that add up over the slots).
      vocab: V, what it holds a slot and row.
      arrays: trees with leaves [B, T, …].
    """
    batch, num_slots = jax.tree.leaves(arrays)[0].shape[:2]
    size = max(1, LOGITS_BYTES * num_row_parts() * axis("tensor") // (4 * batch * vocab))
    if size >= num_slots:
        return function(*arrays)
    num_chunks = -(-num_slots // size)
    size = -(-num_slots // num_chunks)

    def split(leaf: jax.Array) -> jax.Array:
        leaf = jnp.take(leaf, jnp.minimum(jnp.arange(num_chunks * size), num_slots - 1), axis=1)
        return jnp.moveaxis(leaf.reshape(batch, num_chunks, size, *leaf.shape[2:]), 1, 0)

    def join(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(batch, num_chunks * size, *leaf.shape[3:])[:, :num_slots]

    chunks = jax.tree.map(split, arrays)
    by_slot, summed = jax.lax.map(jax.checkpoint(lambda parts: function(*parts)), chunks)
    return jax.tree.map(join, by_slot), jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), summed)


def token_scores(
    decoder: Decoder, states: jax.Array, taken: HostOrDevice, z: HostOrDevice | None
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of the tokens int[B, T] taken after states [B, T, D], and entropies: float32[B, T], nats, differentiable."""

    def score(states: jax.Array, taken: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[()]]:
        logits = decoder.logits(states, z)
        logsumexp, entropy = _normaliser(logits)
        own = jnp.take_along_axis(logits, taken[..., None], axis=-1)[..., 0]
        return (own - logsumexp, entropy), ()

    return in_chunks(score, decoder.config.vocab_size, states, taken)[0]


def tree_scores(
    decoder: Decoder, states: jax.Array, head: HostOrDevice, taken: HostOrDevice, z: HostOrDevice | None
) -> tuple[jax.Array, jax.Array]:
    """The same where several nodes follow one state, as in a token tree.

    Args:
      states: [B, T, D]. head: int[B, N], the state that each scored node follows. taken: int[B, N], its token.
    Returns:
      log-probs float32[B, N] and entropies float32[B, T], nats.
    """
    row = jnp.arange(states.shape[0])[:, None]

    def score(states: jax.Array, slot: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        logits = decoder.logits(states, z)
        place = head - slot[:, :1]
        here = (place >= 0) & (place < states.shape[1])
        own = logits[row, jnp.where(here, place, 0), taken]
        return _normaliser(logits), jnp.where(here, own, 0.0)

    slots = jnp.broadcast_to(jnp.arange(states.shape[1]), states.shape[:2])
    (logsumexp, entropy), own = in_chunks(score, decoder.config.vocab_size, states, slots)
    return own - jnp.take_along_axis(logsumexp, jnp.asarray(head), axis=1), entropy


def _normaliser(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log Σ exp and the entropy log Σ exp − E[logit] of every distribution."""
    logsumexp = jax.nn.logsumexp(logits, axis=-1)
    expected = jnp.sum(jnp.exp(logits - logsumexp[..., None]) * logits, axis=-1)
    return logsumexp, logsumexp - expected
