"""The host loop that every trainer shares: data order, metrics one step late, callbacks, and the way out on a signal.

No arithmetic, no files.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import jax
from jaxtyping import PyTree

from rewards.errors import UserError
from rlhf.run import processes, signals
from rlhf.train.callbacks import Callback

State = TypeVar("State")
Metrics = dict[str, jax.Array]
Step = Callable[[State, PyTree], tuple[State, Metrics]]
Evaluation = Callable[[int, State], Metrics]


class Length(Protocol):
    """What the loop reads of a configuration's `train` section."""

    @property
    def steps(self) -> int | None: ...
    @property
    def checkpoint_every(self) -> int: ...


def run_steps(
    state: State,
    step: Step[State],
    batch_of: Callable[[int], PyTree],
    train: Length,
    *,
    tokens_per_step: int | Callable[[dict[str, float]], float],
    callbacks: Sequence[Callback] = (),
    evaluate: Evaluation[State] | None = None,
) -> State:
    """Run `train.steps` optimiser steps and return the state after the last.

    Args:
      state: the state of step 0; a callback may restore a later one.
      step: compiled step; its state is donated.
      batch_of: step number → batch; a function of the number alone, so that a resumed run sees the same data.
      tokens_per_step: for `perf/tokens_per_second`: a number, or a function of the step's metrics.
      callbacks: called in this order at every event.
      evaluate: (steps done, state) → further metrics of that step; most steps have none (`rlhf.train.held_out`).

    Raises:
      UserError: a metric is not finite (which, and in which step).
      KeyboardInterrupt: a signal came; the step was finished, its metrics and a checkpoint are written.
    """
    num_steps = train.steps
    assert num_steps is not None, "the length of a run is settled when it begins"
    restored = next(filter(None, (callback.restore(state) for callback in callbacks)), None)
    start = 0
    if restored is not None:
        start, state = restored
    begun: list[Callback] = []
    with signals.boundaries():
        try:
            for callback in callbacks:
                callback.begin(start, num_steps)
                begun.append(callback)
            return _loop(start, num_steps, state, step, batch_of, train, tokens_per_step, callbacks, evaluate)
        finally:
            for callback in begun:
                callback.end()


def _loop(
    start: int,
    num_steps: int,
    state: State,
    step: Step[State],
    batch_of: Callable[[int], PyTree],
    train: Length,
    tokens_per_step: int | Callable[[dict[str, float]], float],
    callbacks: Sequence[Callback],
    evaluate: Evaluation[State] | None,
) -> State:
    """The steps from `start` on; a signal ends them after a checkpoint of what is done."""
    late: tuple[int, dict[str, jax.Array]] | None = None
    mark = time.perf_counter()

    def settle(number: int) -> None:
        """Metrics and checkpoint of the state after step `number`, the last one finished."""
        if late is not None:
            _report(callbacks, late, mark, tokens_per_step)
        for callback in callbacks:
            callback.checkpoint(number, state)

    for number in range(start, num_steps):
        batch = batch_of(number)
        try:
            following, metrics = step(state, batch)
        except KeyboardInterrupt:  # long host work inside the step was told to stop waiting
            alone = not processes.several()  # others are inside the step
            if alone and signals.pending() and number > start and not _given_away(state):
                settle(number)
            raise
        state = following
        if late is not None:
            mark = _report(callbacks, late, mark, tokens_per_step)
        late = (number + 1, metrics if evaluate is None else metrics | evaluate(number + 1, state))
        ending = processes.ending(number + 1)
        if ending or (number + 1) % train.checkpoint_every == 0 or number + 1 == num_steps:
            settle(number + 1)
            if ending:
                signals.leave()
            late, mark = None, time.perf_counter()
    return state


def _given_away(state: PyTree) -> bool:
    """Whether a compiled step has taken the state's buffers."""
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state))


def _report(
    callbacks: Sequence[Callback],
    pending: tuple[int, dict[str, jax.Array]],
    mark: float,
    tokens: int | Callable[[dict[str, float]], float],
) -> float:
    """Read and hand on one step's metrics; a step lasts from the reading of the one before (`mark`) to its own."""
    number, metrics = pending
    values = {name: float(value) for name, value in metrics.items()}
    now = time.perf_counter()
    tell(callbacks, number, values, now - mark, tokens)
    return now


def tell(
    callbacks: Sequence[Callback],
    number: int,
    values: dict[str, float],
    seconds: float,
    tokens: int | Callable[[dict[str, float]], float],
) -> None:
    """Hand on the metrics of step `number`, which took so many seconds.

    Raises:
      UserError: a metric is not finite.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"step {number}: {', '.join(bad)} not finite; lower optimizer.learning_rate or optimizer.max_grad_norm, "
            "then start in a new output_dir"
        )
    count = tokens(values) if callable(tokens) else tokens
    values = values | {"perf/step_seconds": seconds, "perf/tokens_per_second": count / seconds}
    for callback in callbacks:
        callback.step(number, values)
