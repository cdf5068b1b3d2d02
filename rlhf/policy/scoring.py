"""One teacher-forced pass over left-padded prompts and completions: hidden states.

The state before completion token t is the output at slot W−1+t; it predicts the token and carries its value. Only these T
slots meet the vocabulary (`vocabulary.token_scores`).

Shapes: B completions of N prompts, W prompt slots, T completion slots, D width, V vocabulary, K basis outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rlhf.mesh import place
from rlhf.models.cache import Cache
from rlhf.models.conditioners import WordKeys
from rlhf.models.decoder import Context, Decoder
from rlhf.models.layout import HostOrDevice
from rlhf.policy.logprobs import PolicyParams


class Rows(NamedTuple):
    """Completions, and the prompts they follow: each prompt stands here once and is read once for all that follow it.

    Attributes:
      prompts: int32[N, W], left-padded; starts: int32[N], slot of the first token; z: float32[N, K], None for nobody.
      tokens: int32[B, T], completions; group: int32[B], the prompt that each one follows.
      prompt_hidden [N, W, D], hidden [B, T, D]: activations under the top stage where those are known, else None.
    """

    prompts: HostOrDevice
    starts: HostOrDevice
    z: HostOrDevice | None
    tokens: HostOrDevice
    group: jax.Array
    prompt_hidden: jax.Array | None = None
    hidden: jax.Array | None = None

    def take(self, order: jax.Array) -> "Rows":
        """Some of the completions; with fewer of them than prompts each takes a prompt of its own along.

        So does each where rows are divided over devices: one that moves would else read its prompt's layers on another.
        """
        group = self.group[order]
        tokens, hidden = place.rows(jax.tree.map(lambda part: part[order], (self.tokens, self.hidden)))
        part = self._replace(tokens=tokens, group=group, hidden=hidden)
        if len(order) >= len(self.prompts) and place.num_row_parts() == 1:
            return part
        once = (self.prompts, self.starts, self.z, self.prompt_hidden)
        prompts, starts, z, prompt_hidden = place.rows(jax.tree.map(lambda part: part[group], once))
        group = jnp.arange(len(order))
        return part._replace(prompts=prompts, starts=starts, z=z, prompt_hidden=prompt_hidden, group=group)


def rows_of(
    tokens: HostOrDevice, starts: HostOrDevice, z: HostOrDevice | None, num_slots: int, group_size: int = 1
) -> Rows:
    """From tokens[B, W + T] with starts[B] and z[B, K]; neighbours of a group have the same prompt and z."""
    batch, width = tokens.shape[0], tokens.shape[1] - num_slots
    group = jnp.arange(batch) // group_size
    prompts, starts, z = jax.tree.map(
        lambda part: place.firsts(part, group_size), (tokens[:, :width], starts, z)
    )
    return Rows(prompts, starts, z, tokens[:, width:], group)


def _context(
    decoder: Decoder,
    starts: HostOrDevice,
    first_slot: int,
    num_slots: int,
    z: HostOrDevice | None,
    words: WordKeys | None,
) -> Context:
    """Positions count from a row's first token and padding is unseen, as in `sampling.generate`."""
    slots = jnp.arange(first_slot + num_slots)
    queries = slots[first_slot:]
    positions = slots[None, :] - starts[:, None]
    mask = (positions >= 0)[:, None, :] & (slots[None, None, :] <= queries[None, :, None])
    mask = mask | (slots[None, None, :] == queries[None, :, None])  # a softmax over nothing would be NaN
    own = jnp.maximum(positions[:, first_slot:], 0)
    index = jnp.asarray(first_slot, jnp.int32)
    return decoder.context(own, mask, z=z, key_positions=positions, index=index, words=words)


def states_after(
    decoder: Decoder, rows: Rows, *, first: int = 0, last: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Outputs of the stages first … last−1 at the prompts' slots [N, W, D] and at the completions' [B, T, D].

    Prompts go through the layers once; their keys and values serve every completion. Differentiable.
    """
    width, num_slots = rows.prompts.shape[1], rows.tokens.shape[1]
    words = decoder.read_words(rows.z)
    context = _context(decoder, rows.starts, 0, width, rows.z, words)
    start = decoder.embed_tokens(rows.prompts) if rows.prompt_hidden is None else rows.prompt_hidden
    empty = decoder.empty_cache(*rows.prompts.shape)
    at_prompts, kept = decoder.run_stages(start, context, first=first, last=last, cache=empty)

    if not num_slots:
        return at_prompts, place.picked(at_prompts, rows.group)[:, :0]
    room = [(0, 0), (0, 0), (0, num_slots), (0, 0), (0, 0)]
    unused = (None,) * first  # a cache has a place for every stage
    keys, values = (
        unused + tuple(jnp.pad(place.picked(part, rows.group, 1), room) for part in parts) for parts in kept
    )
    z = None if rows.z is None else place.picked(rows.z, rows.group)
    words = None if words is None else words.take(rows.group)
    context = _context(decoder, place.picked(rows.starts, rows.group), width, num_slots, z, words)
    start = decoder.embed_tokens(rows.tokens) if rows.hidden is None else rows.hidden
    assert context.index is not None
    cache = Cache(keys, values, context.index)
    after, _ = decoder.run_stages(start, context, first=first, last=last, cache=cache)
    return at_prompts, after


def with_lower_states(graphdef: nnx.GraphDef, params: PolicyParams, rows: Rows) -> Rows:
    """Rows with the activations under the top stage, which adapters do not change; as they are with a single stage."""
    decoder = nnx.merge(graphdef, *params)
    top = len(decoder.stages) - 1
    if top == 0:
        return rows
    prompt_hidden, hidden = states_after(decoder, rows._replace(z=None), last=top)
    return rows._replace(prompt_hidden=prompt_hidden, hidden=hidden)


def completion_states(decoder: Decoder, rows: Rows) -> jax.Array:
    """States before each completion token, [B, T, D], before the final norm."""
    first = 0 if rows.hidden is None else len(decoder.stages) - 1
    # What follows the last token is of no use.
    tokens, hidden = jax.tree.map(lambda part: part[:, :-1], (rows.tokens, rows.hidden))
    at_prompts, after = states_after(decoder, rows._replace(tokens=tokens, hidden=hidden), first=first)
    return jnp.concatenate([place.picked(at_prompts, rows.group)[:, -1:], after], axis=1)
