"""The host loop that every trainer shares: data order, metrics one step late, callbacks, and the way out on a signal.

No arithmetic, no files.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from rewards.errors import UserError
from rlhf.run import processes, signals
from rlhf.run.progress import waiting
from rlhf.train.callbacks import Callback

_LOG = logging.getLogger("chorus")
COMPILING = (
    "compiling and running the first step; with the same shapes later steps and runs do not compile again"
)
_NAMED = 4  # metrics in a message

State = TypeVar("State")
Metrics = dict[str, jax.Array]
Step = Callable[[State, PyTree], tuple[State, Metrics]]
Evaluation = Callable[[int, State], Metrics]


@dataclasses.dataclass(frozen=True)
class Batches:
    """Step number → its batch, by way of which rows of the data these are: `rows` and `made` of them and the number."""

    rows: Callable[[int], np.ndarray]
    made: Callable[[int, np.ndarray], PyTree]

    def __call__(self, number: int) -> PyTree:
        return self.made(number, self.rows(number))


class Length(Protocol):
    """What the loop reads of a configuration's `train` section."""

    @property
    def steps(self) -> int | None: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def max_skips(self) -> int: ...


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
      UserError: a metric is not finite (which, and in which step), and the step was not left out (`optim.unless_finite`), or
        too many in a row were.
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
    numbers = Numbers(callbacks, train.max_skips, tokens_per_step, batch_of, num_steps)
    mark = time.perf_counter()

    def settle(number: int) -> None:
        """Metrics and checkpoint of the state after step `number`, the last one finished."""
        if late is not None:
            _report(numbers, *late, mark)
        if numbers.made_by(number):
            for callback in callbacks:
                callback.checkpoint(number, state)

    for number in range(start, num_steps):
        batch = batch_of(number)
        for callback in callbacks:
            callback.before(number, state, batch, step)
        first = number == start
        try:
            with waiting(COMPILING) if first else contextlib.nullcontext():
                following, metrics = step(state, batch)
                if first:
                    jax.block_until_ready(metrics)
        except KeyboardInterrupt:  # long host work inside the step was told to stop waiting
            alone = not processes.several()  # others are inside the step
            if alone and signals.pending() and number > start and not _given_away(state):
                settle(number)
            raise
        state = following
        if late is not None:
            mark = _report(numbers, *late, mark)
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


def _report(numbers: "Numbers", number: int, metrics: dict[str, jax.Array], mark: float) -> float:
    """Read and hand on one step's metrics; a step lasts from the reading of the one before (`mark`) to its own."""
    values = {name: float(value) for name, value in metrics.items()}
    now = time.perf_counter()
    numbers.tell(number, values, now - mark)
    return now


class Numbers:
    """Hands on the metrics of one step after the other, and ends the run where they are not finite.

    Args:
      max_skips: steps in a row that may be left out (`optim.unless_finite`).
      tokens, batch_of: as `run_steps` takes them.
      num_steps: of the whole run, of which one has to be made.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        max_skips: int,
        tokens: int | Callable[[dict[str, float]], float],
        batch_of: Callable[[int], PyTree],
        num_steps: int,
    ):
        self._callbacks, self._max_skips, self._tokens = callbacks, max_skips, tokens
        self._batch_of, self._num_steps = batch_of, num_steps
        self._skips = 0  # in a row, up to the step that was told last

    def tell(self, number: int, values: dict[str, float], seconds: float) -> None:
        """Hand on the metrics of step `number`, which took so many seconds; of a step that was left out, what is finite.

        Raises:
          UserError: a metric is not finite, and the step was made, or too many in a row were not, or all of the run.
        """
        count = self._tokens(values) if callable(self._tokens) else self._tokens
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        self._skips = self._skips + 1 if values.get("train/skipped") else 0
        measured = [name for name in bad if name.startswith("eval/")]  # of a state that was kept
        nothing = self._skips >= self._num_steps  # not one step was made
        if bad and (measured or not self._skips or self._skips > self._max_skips or nothing):
            self._stop(number, bad)
        if self._skips:
            _LOG.warning(f"step {number}: left out, {_listed(bad)} not finite")
        values = values | {"perf/step_seconds": seconds, "perf/tokens_per_second": count / seconds}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        for callback in self._callbacks:
            callback.step(number, values)

    def made_by(self, number: int) -> bool:
        """Whether one of the steps up to this one was made; else the state is that of the beginning."""
        return self._skips < number

    def _stop(self, number: int, bad: list[str]) -> NoReturn:
        known = isinstance(self._batch_of, Batches)
        rows = self._batch_of.rows(number - 1).tolist() if known else []
        told = [text for one in self._callbacks if (text := one.broken(number, bad, rows)) is not None]
        advice = "lower optimizer.learning_rate or optimizer.max_grad_norm, then start in a new output_dir"
        if self._skips:
            which = "in a row" if self._skips < self._num_steps else "of the run, all of them"
            in_row = f", for {self._skips} steps {which} (train.max_skips {self._max_skips})"
        else:
            in_row, advice = "", f"{advice}; or go on with train.on_nonfinite=skip"
        raise UserError(f"step {number}: {_listed(bad)} not finite{in_row}; {'; '.join([*told, advice])}")


def _listed(names: Sequence[str]) -> str:
    """The first few names, the losses before what follows from them, and how many more."""
    names = sorted(names, key=lambda name: (name != "train/loss/total", "/loss" not in name))
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
