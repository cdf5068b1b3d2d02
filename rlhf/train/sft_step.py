"""Supervised fine-tuning on completions: the compiled step.

    L = −Σ_c weight_c log π(y_c | x_c) / Σ_c weight_c |y_c|

over the completions of packed rows; prompts carry no loss. Per-token normalisation is over the whole batch, so how
examples are packed changes nothing.

Shapes: A micro-batches, B rows, C completions, N scored nodes.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rlhf.policy.batches import SFTRows
from rlhf.policy.logprobs import PolicyParams, merge, token_logprobs
from rlhf.train import optim


class Batch(NamedTuple):
    """rows: leaves [A, B, ...]; hidden: activations under the trained layers, or None."""

    rows: SFTRows
    hidden: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Static:
    """What fixes the program; `dtype` is what trained base weights are computed in (`policy.merge`)."""

    graphdef: nnx.GraphDef
    schedule: optim.Schedule
    dtype: str = "float32"


def _loss(trained: dict[str, Any], frozen: PolicyParams, batch: Batch, total: jax.Array, static: Static):
    """This micro-batch's share of the batch loss, and metrics that add up over micro-batches."""
    rows = batch.rows
    params = merge(frozen, trained, static.dtype)
    logprobs, entropy = token_logprobs(static.graphdef, params, rows.packed, None, batch.hidden)
    weight = jnp.einsum("bc,bcn->bn", rows.weight, rows.packed.member.astype(jnp.float32))
    loss = -jnp.sum(weight * logprobs) / total
    return loss, {"train/loss/total": loss, "train/token_entropy_nats": jnp.mean(entropy)}


@functools.partial(jax.jit, static_argnames="static", donate_argnames="state")
def step(
    state: optim.TrainState, batch: Batch, frozen: PolicyParams, hyper: optim.Hyper, *, static: Static
) -> tuple[optim.TrainState, dict[str, jax.Array]]:
    """One optimiser step over A micro-batches; the state's buffers are donated."""
    total = jnp.sum(batch.rows.weight[..., None] * batch.rows.packed.member)

    def accumulate(grads, micro):
        gradient = jax.value_and_grad(_loss, has_aux=True)
        (_, metrics), new = gradient(state.params, frozen, micro, total, static)
        return jax.tree.map(jnp.add, grads, new), metrics

    grads, metrics = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, state.params), batch)
    state, norms = optim.apply_gradients(state, grads, hyper, static.schedule)
    metrics = {
        "train/loss/total": jnp.sum(metrics["train/loss/total"]),
        "train/token_entropy_nats": jnp.mean(metrics["train/token_entropy_nats"]),
    }
    return state, metrics | norms
