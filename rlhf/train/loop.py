"""The host loop that every trainer shares: resume, data order, metrics one step late, checkpoints. No arithmetic."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from rewards.errors import UserError
from rlhf.run.directory import Run
from rlhf.run.metrics import MetricWriter
from rlhf.train.checkpoint import Checkpointer
from rlhf.train.optim import TrainState

SHOWN = (
    "train/loss/total",
    "train/reward",
    "train/accuracy",
    "train/kl_ref_nats",
    "train/grad_norm",
    "perf/tokens_per_second",
)
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def run_steps(
    run: Run,
    state: TrainState,
    step: Step,
    batch_of: Callable[[int], Any],
    config: Any,
    *,
    tokens_per_step: int | Callable[[dict[str, float]], float],
    title: str,
    shown: tuple[str, ...] = SHOWN,
    watch: Callable[[], None] | None = None,
) -> TrainState:
    """Run `config.train.steps` optimiser steps, continuing after the newest good checkpoint.

    Args:
      run: the open run directory.
      state: the state of step 0; a resumed run replaces its contents.
      step: compiled step; its state is donated.
      batch_of: step number → batch; a function of the number alone, so that a resumed run sees the same data.
      config: has `train.{steps, log_every, checkpoint_every, keep_checkpoints}`.
      tokens_per_step: for `perf/tokens_per_second`: a number, or a function of the step's metrics.
      title: name of the work on the console; `shown`: the metrics there.
      watch: called at every checkpoint, once the metrics so far are written.

    Raises:
      UserError: a metric is not finite (which, and in which step).
    """
    settings = config.train
    checkpointer = Checkpointer(run.directory / "checkpoints", keep=settings.keep_checkpoints)
    restored = checkpointer.restore(state)
    start = 0
    if restored is not None:
        start, state, _ = restored
    with MetricWriter(
        run.directory, start_step=start, num_steps=settings.steps, title=title, shown=shown
    ) as writer:
        pending: tuple[int, dict[str, jax.Array]] | None = None
        mark = time.perf_counter()
        for number in range(start, settings.steps):
            state, metrics = step(state, batch_of(number))
            if pending:
                mark = _report(writer, pending, mark, settings, tokens_per_step)
            pending = (number + 1, metrics)
            if (number + 1) % settings.checkpoint_every == 0 or number + 1 == settings.steps:
                _report(writer, pending, mark, settings, tokens_per_step)
                pending = None
                writer.flush()
                if watch is not None:
                    watch()
                checkpointer.save(number + 1, state, {"next_step": number + 1})
                mark = time.perf_counter()
    return state


def _report(
    writer: MetricWriter, pending: tuple[int, dict[str, jax.Array]], mark: float, settings: Any, tokens: Any
) -> float:
    """Read and write one step's metrics; a step lasts from the reading of the one before (`mark`) to its own."""
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
    if number % settings.log_every == 0 or number in (1, settings.steps):
        writer.write(number, values)
    return now
