"""The optimiser every trainer shares: AdamW with clipping by global norm, schedule inside the compiled step.

Numbers that a sweep varies (`Hyper`) are arrays, so another learning rate compiles nothing; what changes the program
(kind of schedule) is static.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Static part: `kind` is constant, linear or cosine (to zero at the last step), after a linear warm-up."""

    kind: str


class Hyper(NamedTuple):
    """Float32 scalars of the optimiser; `num_steps` and `warmup_steps` count optimiser steps."""

    learning_rate: jax.Array
    warmup_steps: jax.Array
    num_steps: jax.Array
    weight_decay: jax.Array
    beta1: jax.Array
    beta2: jax.Array
    eps: jax.Array
    max_grad_norm: jax.Array

    @classmethod
    def from_config(cls, optimizer: Any, num_steps: int) -> "Hyper":
        values = (
            optimizer.learning_rate,
            optimizer.warmup_steps,
            num_steps,
            optimizer.weight_decay,
            optimizer.beta1,
            optimizer.beta2,
            optimizer.eps,
            optimizer.max_grad_norm,
        )
        return cls(*(jnp.float32(value) for value in values))


class TrainState(NamedTuple):
    """What the next step needs: step number, trained arrays, optimiser state, key of the run."""

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def learning_rate(step: jax.Array, hyper: Hyper, schedule: Schedule) -> jax.Array:
    """Learning rate of step 0, 1, …: up linearly over `warmup_steps`, then constant, linear or cosine to 0."""
    step = step.astype(jnp.float32)
    warm = jnp.minimum(1.0, (step + 1.0) / jnp.maximum(hyper.warmup_steps, 1.0))
    span = jnp.maximum(hyper.num_steps - hyper.warmup_steps, 1.0)
    done = jnp.clip((step - hyper.warmup_steps) / span, 0.0, 1.0)
    if schedule.kind == "constant":
        decay = jnp.ones_like(done)
    elif schedule.kind == "linear":
        decay = 1.0 - done
    elif schedule.kind == "cosine":
        decay = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    else:
        raise ValueError(f"unknown schedule {schedule.kind!r}")
    return hyper.learning_rate * warm * decay


def _transform(hyper: Hyper) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(hyper.max_grad_norm),
        optax.scale_by_adam(hyper.beta1, hyper.beta2, hyper.eps),
        optax.add_decayed_weights(hyper.weight_decay),
    )


def init_state(params: Any, hyper: Hyper, key: jax.Array) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, _transform(hyper).init(params), key)


def apply_gradients(
    state: TrainState, grads: Any, hyper: Hyper, schedule: Schedule
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One AdamW step; returns the new state and the norms worth watching."""
    updates, opt_state = _transform(hyper).update(grads, state.opt_state, state.params)
    rate = learning_rate(state.step, hyper, schedule)
    updates = jax.tree.map(lambda u, p: (-rate * u).astype(p.dtype), updates, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "train/learning_rate": rate,
        "train/grad_norm": optax.tree.norm(grads),
        "train/update_norm": optax.tree.norm(updates),
        "train/param_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, opt_state, state.key), metrics
