"""Trackers: where metrics go besides metrics.jsonl, which alone is the truth.

A tracker is started and written to in a thread of its own, so a server that is slow or away delays no step, and whatever it
raises is said once and ends the tracker, never the run. Each reads its own variables (WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID, …); without them it writes on this machine and needs no network.
"""

import contextlib
import functools
import hashlib
import importlib.util
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rewards import hashed
from rewards.errors import UserError

_LOG = logging.getLogger("chorus")
PROJECT = "chorus"
_CLOSE_SECONDS = 60.0
Values = Mapping[str, float]


class Tracker(Protocol):
    """What a tracker is asked to do; any exception ends it."""

    def write(self, step: int, values: Values) -> None:
        """Metrics of a step; steps only grow."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class TableTracker(Tracker, Protocol):
    """One that shows tables as well."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None: ...


class TensorBoard:
    """Files in tensorboard/ of the run directory."""

    def __init__(self, directory: Path, start_step: int):
        from tensorboardX import SummaryWriter  # a second to import: only where something is written

        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class Wandb:
    """Weights & Biases; offline in wandb/ of the run directory unless there is a key (`wandb sync` sends it later)."""

    def __init__(self, directory: Path, name: str, mark: str):
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        (directory / "wandb").mkdir(exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(directory),
            name=name,
            id=mark,
            resume="allow",
            mode=mode,  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of texts and numbers that W&B sorts and filters."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow; mlflow.db in the run directory unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, directory: Path, name: str, mark: str):
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        own = f"sqlite:///{(directory / 'mlflow.db').resolve()}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if found is None else found.experiment_id
        runs = self._client.search_runs([experiment], f"tags.chorus_run = '{mark}'", max_results=1)
        run = (
            runs[0] if runs else self._client.create_run(experiment, tags={"chorus_run": mark}, run_name=name)
        )
        self._run = run.info.run_id

    def write(self, step: int, values: Values) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def flush(self) -> None:
        """Every batch is written at once."""

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Trackio:
    """Trackio; its own folder in the cache of Hugging Face, which `trackio show` reads, unless TRACKIO_DIR or
    TRACKIO_SPACE_ID say otherwise."""

    def __init__(self, directory: Path, name: str, mark: str):
        import trackio  # pyright: ignore[reportMissingImports]

        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{name}-{mark[:6]}",
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
        )

    def write(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


_ELSEWHERE: dict[str, tuple[Callable[[Path, str, str], Tracker], str]] = {
    "wandb": (Wandb, "wandb"),
    "mlflow": (MLflow, "mlflow"),
    "trackio": (Trackio, "trackio"),
}


def check(names: Iterable[str]) -> None:
    """Raise a UserError where a tracker's package is not installed."""
    for name in names:
        package = _ELSEWHERE[name][1] if name in _ELSEWHERE else None
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"track {name}: the package is not installed; pip install 'chorus-rlhf[{name}]', or remove it from track"
            )


class Trackers:
    """All trackers of a run.

    Args:
      names: "tensorboard", "wandb", "mlflow", "trackio".
      start_step: the step that is gone on from. sent: the last one that an earlier session wrote; it is not sent twice.
    """

    def __init__(self, names: Iterable[str], directory: Path, start_step: int, sent: int):
        self._all: list[_Guarded] = []
        name, mark = directory.resolve().name, _mark(directory)
        for kind in dict.fromkeys(names):
            if kind == "tensorboard":  # files only: no thread
                self._all.append(_Guarded(kind, lambda: TensorBoard(directory, start_step)))
            else:
                make = _ELSEWHERE[kind][0]
                self._all.append(_Threaded(kind, lambda make=make: make(directory, name, mark), sent))

    def write(self, step: int, values: Values) -> None:
        for tracker in self._all:
            tracker.write(step, values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table, to those that show tables."""
        for tracker in self._all:
            tracker.table(name, columns, rows)

    def flush(self) -> None:
        for tracker in self._all:
            tracker.flush()

    def close(self) -> None:
        for tracker in self._all:
            tracker.close()


def _mark(directory: Path) -> str:
    """A name for this very run, the same in every session of it: its folder and when its first session began."""
    began = ""
    with contextlib.suppress(UserError, OSError, LookupError, TypeError):
        began = hashed.read_record(directory / "environment.json")["sessions"][0]["started"]
    return hashlib.sha256(f"{directory.resolve()} {began}".encode()).hexdigest()[:16]


class _Guarded:
    """A tracker that is dropped at its first exception, with one line."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self._name = name
        self._tracker: Tracker | None = None
        self._do(lambda: setattr(self, "_tracker", make()))

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # a library's own sys.exit, too
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            self._tracker = None
            text = " ".join(str(error).split())
            kind = "" if text and isinstance(error, Exception) else type(error).__name__
            said = ": ".join(filter(None, (kind, text)))
            _LOG.warning(
                f"track {self._name}: {said[:300]}; nothing more goes there, the run and metrics.jsonl go on"
            )

    def write(self, step: int, values: Values) -> None:
        if (tracker := self._tracker) is not None:
            self._do(lambda: tracker.write(step, values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if isinstance(tracker := self._tracker, TableTracker):
            self._do(lambda: tracker.table(name, columns, rows))

    def flush(self) -> None:
        if (tracker := self._tracker) is not None:
            self._do(tracker.flush)

    def close(self) -> None:
        if (tracker := self._tracker) is not None:
            self._do(tracker.close)


class _Threaded(_Guarded):
    """The same in a thread, which also makes it; values that are not finite stay in metrics.jsonl (as null)."""

    def __init__(self, name: str, make: Callable[[], Tracker], sent: int):
        self._name, self._sent = name, sent
        self._tracker = None
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True, name=f"track-{name}")
        self._thread.start()

    def _work(self, make: Callable[[], Tracker]) -> None:
        self._do(lambda: setattr(self, "_tracker", make()))
        while (given := self._queue.get()) is not None:  # the end
            given()
        super().close()

    def write(self, step: int, values: Values) -> None:
        if step > self._sent:
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._queue.put(functools.partial(super().write, step, finite))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self._queue.put(functools.partial(super().table, name, columns, rows))

    def flush(self) -> None:
        """The thread does what is due as it comes."""

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            _LOG.warning(
                f"track {self._name}: does not end within {_CLOSE_SECONDS:.0f} seconds; left alone, metrics.jsonl has everything"
            )
