"""The command: workers in processes of their own, replaced when they die, then table, best.yaml and report."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rewards import jsonl
from rewards.errors import UserError
from rewards.files import JSONObject, remove_leftovers
from rlhf.run.directory import LOCK
from rlhf.sweep.config import Sweep, read_sweep
from rlhf.sweep.locks import Lock
from rlhf.sweep.results import TABLE, write_results
from rlhf.sweep.study import Study
from rlhf.sweep.worker import work

_LOG = logging.getLogger("chorus")
_POLL_SECONDS, _PATIENCE_SECONDS = 0.3, 600.0
_MISTAKE, _INTERRUPTED = 2, (130, 143, 129)
_DEATHS = 25  # of workers with no trial finished between


def run(path: str | Path, overrides: Sequence[str] = (), *, worker: bool = False) -> JSONObject:
    """Run a sweep to its end, or go on with one; returns metrics.json.

    Args:
      worker: only run trials, beside other workers of the same sweep on this or another machine; writes no results.
    """
    sweep = read_sweep(path, overrides)
    if worker:
        _work(sweep)
        return {"run_dir": str(sweep.directory)}
    study = Study(sweep)
    with contextlib.closing(_Alone(sweep.directory)):
        remove_leftovers(sweep.directory)
        _run_workers(sweep, study, [str(path), *overrides])
        result = write_results(sweep, Study(sweep))
    counts = result["trials"]
    if counts["failed"] and not counts["complete"] + counts["pruned"]:
        rows = jsonl.rows(sweep.directory / TABLE)
        raise UserError(
            f"output_dir {sweep.directory}: all trials failed, the last with: {rows[-1]['problem']}"
        )
    return result


def _work(sweep: Sweep) -> None:
    """A worker's work: trials in processes of their own, or together in this one."""
    if sweep.config.population is None:
        work(sweep)
        return
    from rlhf.sweep import members  # JAX, which the others leave to their trials

    members.work(sweep)


class _Alone:
    """This sweep has one command at a time; workers may be many."""

    def __init__(self, directory: Path):
        self._lock = Lock(directory / LOCK)
        if not self._lock.attempt():
            raise UserError(
                f"output_dir {directory}: another `chorus sweep` works here; wait for it, or add a worker to it with "
                "--worker"
            )

    def close(self) -> None:
        self._lock.release()


class _Worker:
    """A worker's process, in a session of its own: a Ctrl-C for the command must not reach trials twice."""

    def __init__(self, place: int, sweep: Sweep, words: Sequence[str]):
        self.log = sweep.directory / "workers" / f"{place}.log"
        self.log.parent.mkdir(exist_ok=True)
        self._said = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlhf", "sweep", *words, "--worker"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | _device(place, sweep.config.workers),
            )

    def said(self) -> list[str]:
        """Lines since the last call."""
        text = self.log.read_bytes()[self._said :]
        whole = text[: text.rfind(b"\n") + 1]
        self._said += len(whole)
        return whole.decode(errors="replace").splitlines()

    def end(self) -> None:
        self.process.terminate()

    def clear(self) -> None:
        """After its death: end what it ran, with a checkpoint, before somebody else takes that up."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                time.sleep(0.1)
                os.killpg(self.process.pid, 0)
            os.killpg(self.process.pid, signal.SIGKILL)


def _device(place: int, workers: int) -> dict[str, str]:
    """Each worker its own share of the devices, where CUDA_VISIBLE_DEVICES lists several."""
    devices = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if workers < 2 or len(devices) < 2:
        return {}
    share = devices[place::workers] or [devices[place % len(devices)]]
    return {"CUDA_VISIBLE_DEVICES": ",".join(share)}


def _run_workers(sweep: Sweep, study: Study, words: Sequence[str]) -> None:
    """Until no worker has anything left to do; one that was killed is replaced."""
    if not study.left():
        return
    total = sweep.num_trials
    _LOG.info(f"{sweep.directory}: {total or 'any number of'} trials, {sweep.config.workers} workers")
    workers = {place: _Worker(place, sweep, words) for place in range(sweep.config.workers)}
    deaths, finished = 0, study.num_finished()
    try:
        while workers:
            time.sleep(_POLL_SECONDS)
            for place, one in list(workers.items()):
                status = one.process.poll()
                _pass_on(one, study, total)
                if status is None:
                    continue
                del workers[place]
                one.clear()
                if status == _MISTAKE:
                    raise UserError(_complaint(one.log))
                if status == 1:
                    raise RuntimeError(f"a worker broke; see {one.log}")
                if status == 0:
                    continue
                now = study.num_finished()
                deaths, finished = (1, now) if now > finished else (deaths + 1, finished)
                if deaths > _DEATHS:
                    raise UserError(
                        f"output_dir {sweep.directory}: workers were killed {deaths} times with no trial finished between "
                        "(memory?); lower sweep.workers and run the command again"
                    )
                _LOG.info(f"worker {place} was ended from outside; another takes its place")
                workers[place] = _Worker(place, sweep, words)
    finally:
        for one in workers.values():
            one.end()
        for one in workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(_PATIENCE_SECONDS)
            one.clear()


def _pass_on(worker: _Worker, study: Study, total: int | None) -> None:
    for line in worker.said():
        if line.startswith("trial "):
            _LOG.info(f"{line}  [{study.num_finished()}{f' of {total}' if total else ''}]")


def _complaint(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("chorus: ")]
    return said[-1].removeprefix("chorus: ") if said else f"a worker gave up; see {log}"
