"""What happens beside the steps of a training loop: metrics on disk, checkpoints, progress, a history, a user's own."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from rewards import hashed, opening
from rlhf.mesh import place
from rlhf.mesh.devices import ONE_DEVICE, described
from rlhf.run import processes
from rlhf.run.config.document import parse
from rlhf.run.directory import CONFIG
from rlhf.run.metrics import MetricWriter
from rlhf.run.progress import ProgressLine
from rlhf.run.system import system_metrics
from rlhf.train.checkpoint import Checkpointer
from rlhf.train.optim import TrainState

_LOG = logging.getLogger("chorus")

NOT_FINITE = "nonfinite.json"
SHOWN = (
    "train/loss/total",
    "train/reward",
    "train/accuracy",
    "eval/loss/total",
    "eval/accuracy",
    "train/kl_ref_nats",
    "train/grad_norm",
    "perf/tokens_per_second",
)


class Callback:
    """Subclass it and override what is needed; every method does nothing.

    A loop calls `restore` and `begin` once, `step` after every step (its numbers are read while the next one runs),
    `checkpoint` every so many steps and after the last, `end` whatever happens.
    """

    def restore(self, state: PyTree) -> tuple[int, PyTree] | None:
        """(steps done, state) to go on from instead of `state`; None starts afresh."""
        return None

    def begin(self, start: int, num_steps: int) -> None:
        """`start` steps of `num_steps` are done."""

    def before(self, number: int, state: PyTree, batch: PyTree, step: Callable[..., object]) -> None:
        """The step after `number` of them: its state, its rows, and what will be called with them."""

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        """Step `number`, counted from 1, and its metrics (docs/metrics.md). An exception ends the training."""

    def checkpoint(self, number: int, state: PyTree) -> None:
        """The state after step `number`; its arrays are given away at the next step, so copy what is kept."""

    def broken(self, number: int, names: Sequence[str], rows: Sequence[int]) -> str | None:
        """Metrics `names` of step `number`, of these rows, are not finite, and the training ends; words for the message."""
        return None

    def end(self) -> None:
        """The training is over, or was broken off."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Metrics of one step, counted from 1."""

    step: int
    metrics: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]


class History(Callback):
    """Keeps every step's metrics in memory."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(Step(number, dict(metrics)))


class Function(Callback):
    """A plain function of (step, metrics)."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], object]):
        self._function = function

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        self._function(number, metrics)


class Progress(Callback):
    """A line on stderr."""

    def __init__(self, title: str, shown: Sequence[str] = SHOWN):
        self._title, self._shown = title, shown
        self._line: ProgressLine | None = None

    def begin(self, start: int, num_steps: int) -> None:
        self._line = ProgressLine(self._title, num_steps, start=start)

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        if self._line is not None:
            names = [name for name in self._shown if name in metrics]
            self._line.update(number, "  ".join(f"{name} {metrics[name]:.4g}" for name in names))

    def end(self) -> None:
        if self._line is not None:
            self._line.close()


class Metrics(Callback):
    """metrics.jsonl, trackers and the console of a run directory: every `log_every`-th step, the first, the last, those
    with held-out numbers, and those that were left out."""

    def __init__(
        self,
        directory: Path,
        log_every: int,
        title: str,
        shown: tuple[str, ...] = SHOWN,
        track: tuple[str, ...] = ("tensorboard",),
    ):
        self._directory, self._every, self._title, self._shown = directory, log_every, title, shown
        self._track = track
        self._writer: MetricWriter | None = None
        self._last = 0

    def begin(self, start: int, num_steps: int) -> None:
        self._last = num_steps
        if processes.is_writer():
            self._writer = MetricWriter(
                self._directory,
                start_step=start,
                num_steps=num_steps,
                title=self._title,
                shown=self._shown,
                track=self._track,
            )

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        due = number % self._every == 0 or number in (1, self._last)
        if self._writer is not None and (due or _noted(metrics)):
            self._writer.write(number, {**metrics, **system_metrics()})

    def checkpoint(self, number: int, state: PyTree) -> None:
        if self._writer is not None:
            self._writer.flush()

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _noted(metrics: Mapping[str, float]) -> bool:
    """Whether a step is written whatever its number."""
    return bool(metrics.get("train/skipped")) or any(name.startswith("eval/") for name in metrics)


CHECKPOINTS = "checkpoints"
"""Folder in a run directory."""


class Checkpoints(Callback):
    """Checkpoints of a run directory, and the newest good one of them at the start."""

    def __init__(self, directory: Path, keep: int):
        self._directory = directory
        self._checkpointer = Checkpointer(directory / CHECKPOINTS, keep=keep)

    def restore(self, state: TrainState) -> tuple[int, PyTree] | None:
        restored = self._checkpointer.restore(state)
        if restored is None:
            return None
        step, state, meta = restored
        before = meta.get("mesh", ONE_DEVICE)
        if before != described():
            _LOG.info(f"{self._directory}: step {step} was made on {before}; goes on on {described()}")
        return step, state

    def checkpoint(self, number: int, state: TrainState) -> None:
        self._checkpointer.save(number, state, {"next_step": number, "mesh": described()})


def key_of(state: TrainState) -> list[int]:
    """The key of a run, as its records hold it."""
    return np.asarray(place.host(jax.random.key_data(state.key))).tolist()


class NotFinite(Callback):
    """What a run directory keeps of a step that was not finite, for `chorus replay`."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._key: list[int] | None = None

    def restore(self, state: TrainState) -> tuple[int, PyTree] | None:
        self._key = key_of(state)  # the same for the whole run
        return None

    def broken(self, number: int, names: Sequence[str], rows: Sequence[int]) -> str | None:
        done = [step for step in Checkpointer(self._directory / CHECKPOINTS).steps() if step < number]
        record = {
            "step": number,
            "metrics": list(names),
            "rows": list(rows),
            "key": self._key,
            "checkpoint": max(done, default=None),
            "config": self._config(),
        }
        if processes.is_writer():
            hashed.write_record(self._directory / NOT_FINITE, record)
        return f"`chorus replay {self._directory}` says which row and term"

    def _config(self) -> object:
        """Values of the run's configuration as they stand in its folder; None where there is no such file."""
        path = self._directory / CONFIG
        return parse(opening.text(path), CONFIG)[0] if path.is_file() else None


def of_user(given: Iterable[object]) -> list[Callback]:
    """Callbacks as they were passed: objects of `Callback`, or functions of (step, metrics).

    Raises:
      TypeError: something else.
    """
    found = []
    for one in given:
        if not isinstance(one, Callback) and not callable(one):
            raise TypeError(
                f"callbacks: {one!r} is neither a rlhf.Callback nor a function of (step, metrics)"
            )
        found.append(one if isinstance(one, Callback) else Function(one))
    return found
