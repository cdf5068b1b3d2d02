"""Supervised fine-tuning on completions: the compiled step.

    L = −Σ_c weight_c log π(y_c | x_c) / Σ_c weight_c |y_c|

over the completions of packed rows; prompts carry no loss. Per-token normalisation is over the whole batch, so how
examples are packed changes nothing.

Shapes: A micro-batches, B rows, C completions, N scored nodes.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from rlhf.models.layout import HostOrDevice
from rlhf.policy.batches import SFTRows
from rlhf.policy.logprobs import PolicyParams, merge, real_heads, token_logprobs
from rlhf.run.record import Count, record
from rlhf.train import optim


class SFTBatch(NamedTuple):
    """rows: leaves [A, B, ...]; hidden: activations under the trained layers, or None."""

    rows: SFTRows
    hidden: HostOrDevice | None


@record
class SFTSettings:
    """The sections of a run that compiled code reads; `traced` before they go there. num_steps: optimiser steps of the run."""

    optimizer: optim.OptimizerConfig
    num_steps: Count


@dataclasses.dataclass(frozen=True)
class SFTProgram:
    """What fixes the program besides the settings; `dtype` is what trained base weights are computed in (`policy.merge`),
    `own` a user's own optimiser (`optim.apply_gradients`), `skip` whether a step that is not finite is left out
    (`optim.unless_finite`)."""

    graphdef: nnx.GraphDef
    dtype: str = "float32"
    own: optim.Own = None
    skip: bool = False


def loss_of(
    trained: dict[str, PyTree], frozen: PolicyParams, batch: SFTBatch, total: jax.Array, program: SFTProgram
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This micro-batch's share of the batch loss, and metrics that add up over micro-batches."""
    rows = batch.rows
    params = merge(frozen, trained, program.dtype)
    logprobs, entropy = token_logprobs(program.graphdef, params, rows.packed, None, batch.hidden)
    weight = jnp.einsum("bc,bcn->bn", rows.weight, rows.packed.member.astype(jnp.float32))
    loss = -jnp.sum(weight * logprobs) / total
    return loss, {
        "train/loss/total": loss,
        "train/token_entropy_nats": jnp.mean(entropy, where=real_heads(rows.packed)),
    }


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def step(
    state: optim.TrainState,
    batch: SFTBatch,
    frozen: PolicyParams,
    settings: SFTSettings,
    *,
    program: SFTProgram,
) -> tuple[optim.TrainState, dict[str, jax.Array]]:
    """One optimiser step over A micro-batches; the state's buffers are donated."""
    total = jnp.sum(batch.rows.weight[..., None] * batch.rows.packed.member)

    def gradient(micro: SFTBatch) -> tuple[PyTree, dict[str, jax.Array]]:
        return jax.grad(loss_of, has_aux=True)(state.params, frozen, micro, total, program)

    grads, metrics = optim.accumulate(gradient, batch)
    new, norms = optim.apply_gradients(state, grads, settings.optimizer, settings.num_steps, program.own)
    metrics = {
        "train/loss/total": jnp.sum(metrics["train/loss/total"]),
        "train/token_entropy_nats": jnp.mean(metrics["train/token_entropy_nats"]),
    } | norms
    return optim.unless_finite(state, new, metrics) if program.skip else (new, metrics)


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    trained: dict[str, PyTree], batch: SFTBatch, frozen: PolicyParams, *, program: SFTProgram
) -> dict[str, jax.Array]:
    """The loss of a whole data set, of A micro-batches; rows that do not count have weight 0."""
    total = jnp.sum(batch.rows.weight[..., None] * batch.rows.packed.member)

    def loss(micro: SFTBatch) -> jax.Array:
        return loss_of(trained, frozen, micro, total, program)[0]

    return {"eval/loss/total": jnp.sum(jax.lax.map(loss, batch))}
