"""The optimiser every trainer shares: AdamW with clipping by global norm, schedule inside the compiled step.

Its numbers are arrays in compiled code (`run.record.traced`), so another learning rate compiles nothing; the kind of
schedule is static. `num_steps` counts the optimiser steps of the run, at whose end the schedule ends.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from pydantic import Field, model_validator

from rlhf.mesh import place
from rlhf.run.record import Count, record


@record
class OptimizerConfig:
    """AdamW with warm-up and clipping by the global norm."""

    learning_rate: float = Field(
        gt=0, le=1e3, description="Peak learning rate; 1e-4 is usual for lora, 1e-5 for full."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine",
        description="Course after warm-up: constant, or linear/cosine to zero at the last step.",
    )
    warmup_steps: Count = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Optimiser steps of linear warm-up from zero; 0 means none.",
    )
    warmup_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Warm-up as a share of the run's optimiser steps, instead of warmup_steps.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=1e3, description="Decoupled weight decay; 0 means none."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, le=1, description="Added to the root of the second moment.")
    max_grad_norm: float = Field(
        default=1.0, gt=0, le=1e12, description="Gradients with a larger global norm are scaled down to it."
    )

    @model_validator(mode="after")
    def _one_warmup(self):
        if self.warmup_steps and self.warmup_share:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and warmup_share {self.warmup_share:g} are both given; remove one"
            )
        return self


Own = optax.GradientTransformation | None
"""An optimiser that a user brings from Python; static, so the same object compiles once."""


class TrainState(NamedTuple):
    """What the next step needs: step number, trained arrays, optimiser state, key of the run; what guardrails remember."""

    step: jax.Array
    params: PyTree
    opt_state: optax.OptState
    key: jax.Array
    guard: PyTree = None


def learning_rate(step: jax.Array, optimizer: OptimizerConfig, num_steps: jax.Array | int) -> jax.Array:
    """Learning rate of step 0, 1, …: up linearly over `warmup_steps`, then constant, linear or cosine to 0."""
    step = step.astype(jnp.float32)
    warm = jnp.minimum(1.0, (step + 1.0) / jnp.maximum(optimizer.warmup_steps, 1.0))
    span = jnp.maximum(num_steps - optimizer.warmup_steps, 1.0)
    done = jnp.clip((step - optimizer.warmup_steps) / span, 0.0, 1.0)
    if optimizer.schedule == "constant":
        decay = jnp.ones_like(done)
    elif optimizer.schedule == "linear":
        decay = 1.0 - done
    else:
        decay = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return optimizer.learning_rate * warm * decay


def _transform(optimizer: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(optimizer.max_grad_norm),
        optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.eps),
        optax.add_decayed_weights(optimizer.weight_decay),
    )


def init_state(params: PyTree, optimizer: OptimizerConfig, key: jax.Array, own: Own = None) -> TrainState:
    """State of step 0; `own` as in `apply_gradients`."""
    opt_state = (own or _transform(optimizer)).init(params)
    return place.state(params, TrainState(jnp.zeros((), jnp.int32), params, opt_state, key))


def accumulate(gradient: Callable[[PyTree], tuple[PyTree, PyTree]], inputs: PyTree) -> tuple[PyTree, PyTree]:
    """Sum of the gradients of A micro-batches, one after the other.

    Args:
      gradient: inputs of one micro-batch → (gradient, metrics).
      inputs: leaves [A, …]. With A = 1 there is no loop, which would cost a tree of zeros, an addition and two copies of the
        gradient.
    Returns:
      The sum, and metrics with leaves [A, …].
    """
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        grads, metrics = gradient(jax.tree.map(lambda leaf: leaf[0], inputs))
        return grads, jax.tree.map(lambda leaf: leaf[None], metrics)

    def add(total: PyTree, one: PyTree) -> tuple[PyTree, PyTree]:
        grads, metrics = gradient(one)
        total = jax.tree.map(jnp.add, total, grads)
        return place.pinned(total, total), metrics

    shapes = jax.eval_shape(lambda: gradient(jax.tree.map(lambda leaf: leaf[0], inputs))[0])
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, zeros, inputs)


State = TypeVar("State", bound=Any)  # a TrainState, or another named tuple with its counters


def unless_finite(
    before: State, after: State, metrics: dict[str, jax.Array]
) -> tuple[State, dict[str, jax.Array]]:
    """A step that is not made where one of its numbers is not finite.

    Everything keeps the value of before, parameters, moments and running scales to the bit; the counters `step` and
    `iteration` go on, and with them data, keys and schedule.

    Args:
      before, after: the states around the step.
      metrics: its metrics, all of them scalars; the norms of `apply_gradients` among them see gradient, update and parameters.
    Returns:
      The state, and the metrics with `train/skipped` (0 or 1), which is read with the others: nothing more visits the host.
    """
    values = jnp.stack([jnp.asarray(value, jnp.float32) for value in metrics.values()])
    finite = jnp.isfinite(values).all()
    counters = {name: getattr(after, name) for name in ("step", "iteration", "key") if hasattr(after, name)}
    kept = jax.tree.map(
        lambda new, old: new if new is old else jnp.where(finite, new, old),
        after._replace(**dict.fromkeys(counters)),
        before._replace(**dict.fromkeys(counters)),
    )
    return kept._replace(**counters), metrics | {"train/skipped": 1.0 - finite}


def apply_gradients(
    state: TrainState, grads: PyTree, optimizer: OptimizerConfig, num_steps: jax.Array | int, own: Own = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One AdamW step, or one of a user's own optimiser; returns the new state and the norms worth watching.

    Args:
      own: whole optimiser, its rate and clipping included; `optimizer` then counts for nothing.
    """
    grads = place.pinned(state.params, grads)
    if own is not None:
        rate = None
        updates, opt_state = own.update(grads, state.opt_state, state.params)
    else:
        updates, opt_state = _transform(optimizer).update(grads, state.opt_state, state.params)
        rate = learning_rate(state.step, optimizer, num_steps)
        updates = jax.tree.map(lambda u, p: (-rate * u).astype(p.dtype), updates, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = ({} if rate is None else {"train/learning_rate": rate}) | {
        "train/grad_norm": optax.tree.norm(grads),
        "train/update_norm": optax.tree.norm(updates),
        "train/param_norm": optax.tree.norm(params),
    }
    new = TrainState(state.step + 1, params, opt_state, state.key, state.guard)
    return place.pinned(state.params, new), metrics
