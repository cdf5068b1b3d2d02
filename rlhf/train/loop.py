"""The host loop that every trainer shares: data order, metrics one step late, callbacks. No arithmetic, no files."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from rewards.errors import UserError
from rlhf.train.callbacks import Callback
from rlhf.train.optim import TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


class Length(Protocol):
    """What the loop reads of a configuration's `train` section."""

    @property
    def steps(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


def run_steps(
    state: TrainState,
    step: Step,
    batch_of: Callable[[int], Any],
    train: Length,
    *,
    tokens_per_step: int | Callable[[dict[str, float]], float],
    callbacks: Sequence[Callback] = (),
) -> TrainState:
    """Run `train.steps` optimiser steps and return the state after the last.

    Args:
      state: the state of step 0; a callback may restore a later one.
      step: compiled step; its state is donated.
      batch_of: step number → batch; a function of the number alone, so that a resumed run sees the same data.
      tokens_per_step: for `perf/tokens_per_second`: a number, or a function of the step's metrics.
      callbacks: called in this order at every event.

    Raises:
      UserError: a metric is not finite (which, and in which step).
    """
    restored = next(filter(None, (callback.restore(state) for callback in callbacks)), None)
    start = 0
    if restored is not None:
        start, state = restored
    begun: list[Callback] = []
    try:
        for callback in callbacks:
            callback.begin(start, train.steps)
            begun.append(callback)
        pending: tuple[int, dict[str, jax.Array]] | None = None
        mark = time.perf_counter()
        for number in range(start, train.steps):
            state, metrics = step(state, batch_of(number))
            if pending:
                mark = _report(callbacks, pending, mark, tokens_per_step)
            pending = (number + 1, metrics)
            if (number + 1) % train.checkpoint_every == 0 or number + 1 == train.steps:
                _report(callbacks, pending, mark, tokens_per_step)
                pending = None
                for callback in callbacks:
                    callback.checkpoint(number + 1, state)
                mark = time.perf_counter()
    finally:
        for callback in begun:
            callback.end()
    return state


def _report(
    callbacks: Sequence[Callback], pending: tuple[int, dict[str, jax.Array]], mark: float, tokens: Any
) -> float:
    """Read and hand on one step's metrics; a step lasts from the reading of the one before (`mark`) to its own."""
    number, metrics = pending
    values = {name: float(value) for name, value in metrics.items()}
    now = time.perf_counter()
    seconds = now - mark
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"step {number}: {', '.join(bad)} not finite; lower optimizer.learning_rate or optimizer.max_grad_norm, "
            "then start in a new output_dir"
        )
    tokens = tokens(values) if callable(tokens) else tokens
    values |= {"perf/step_seconds": seconds, "perf/tokens_per_second": tokens / seconds}
    for callback in callbacks:
        callback.step(number, values)
    return now
