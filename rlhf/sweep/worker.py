"""One worker: take a trial, run its commands in processes of their own, hand its numbers on, until nothing is left."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rewards.errors import UserError
from rewards.files import write_text
from rlhf.run.directory import LOCK
from rlhf.sweep import measures
from rlhf.sweep.config import Sweep
from rlhf.sweep.study import Claim, Study

_LOG = logging.getLogger("chorus")
_POLL_SECONDS, _PATIENCE_SECONDS = 0.3, 600.0
WAIT_SECONDS = 1.0
_MISTAKE = 2  # exit status of a command that says what is wrong in one line
ENOUGH_FAILED = 3
"""Trials that fail, with none that succeeds, before a sweep is given up."""


def work(sweep: Sweep) -> None:
    """Run trials until the budget is used and none is unfinished.

    Raises:
      UserError: every trial fails, or a metric is not there.
    """
    study = Study(sweep)
    while True:
        claim = study.begin()
        if claim is not None:
            try:
                run_trial(study, claim)
            finally:
                claim.lock.release()
            give_up_when_all_fail(study)
        elif study.unfinished():
            time.sleep(WAIT_SECONDS)  # others are at work; should they die, their trials are to be finished
        else:
            return


def run_trial(study: Study, claim: Claim) -> None:
    """Run a trial, or what is left of it, to its end: complete, pruned or failed."""
    sweep = study.sweep
    try:
        write_text(claim.beside(".yaml"), sweep.yaml(claim.chosen, claim.directory))
    except UserError as error:  # values that do not go together
        study.failed(claim, str(error))
        return
    for words in measures.commands(sweep.config.command):
        while not measures.finished(claim.directory, " ".join(words)):
            status = _run(study, claim, words)
            if status is None:
                study.pruned(claim)
                _LOG.info(f"trial {claim.number}: pruned")
                return
            if status == 0:
                break
            said = _last_line(claim.beside(".log"))
            if status == _MISTAKE:
                study.failed(claim, said)
                _LOG.info(f"trial {claim.number}: failed: {said}")
                return
            died = study.died(claim)
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            _LOG.info(f"trial {claim.number}: its process ended ({how}), {died} times so far")
            if died > sweep.config.retries:
                study.failed(claim, f"{how} {died} times; last line: {said}")
                return
    judge(study, claim)


def judge(study: Study, claim: Claim) -> None:
    """Hand on the numbers of a trial whose run is finished."""
    sweep = study.sweep
    values = [measures.final(claim.directory, name) for name in sweep.config.objectives]
    excess = [one.excess(measures.final(claim.directory, one.metric)) for one in sweep.constraints]
    if any(value != value for value in (*values, *excess)):
        study.failed(claim, "an objective is not a number")
        return
    study.complete(claim, values, excess)
    shown = ", ".join(
        f"{name} {value:.4g}" for name, value in zip(sweep.config.objectives, values, strict=True)
    )
    _LOG.info(f"trial {claim.number}: {shown}")


def _run(study: Study, claim: Claim, words: list[str]) -> int | None:
    """Exit status of one command of the trial; None when it was pruned."""
    command = [sys.executable, "-m", "rlhf", *words, str(claim.beside(".yaml"))]
    with open(claim.beside(".log"), "ab") as log:
        # The process inherits the trial's lock: while it lives, even without its worker, nobody takes the trial up.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[claim.lock.handle],
            env=os.environ | {"JAX_NUM_PROCESSES": "1"},  # a trial is no part of a job of several processes
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                if should_stop(study, claim):
                    _end(process)
                    return None
        except KeyboardInterrupt as stop:
            # Ctrl-C reaches the whole group, and a second signal would end the run without a checkpoint.
            if stop.args and stop.args[0] == signal.SIGINT:
                _wait(process, 30.0)
            _end(process)
            raise
        except BaseException:
            _end(process)
            raise
    return process.returncode


def should_stop(study: Study, claim: Claim) -> bool:
    """Report what is new in metrics.jsonl; whether the pruner has enough of the trial."""
    config = study.sweep.config
    if config.pruner == "none" or not (claim.directory / LOCK).exists():
        return False
    [name] = config.objectives
    last = study.last_step(claim)
    fresh = itertools.dropwhile(lambda point: point[0] <= last, measures.running(claim.directory, name))
    return any(study.report(claim, step, value) for step, value in list(fresh) if value == value)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask for a checkpoint and the end; after ten minutes without an answer, end it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        if not _wait(process, _PATIENCE_SECONDS):
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(log: Path) -> str:
    """What a command that failed said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.strip()), "nothing")
    return said.removeprefix("chorus: ")


def give_up_when_all_fail(study: Study) -> None:
    """Raises UserError where the first trials have all failed."""
    states = [one for one in study.trials() if one.state.is_finished()]
    if len(states) >= ENOUGH_FAILED and all(one.state.name == "FAIL" for one in states):
        raise UserError(
            f"output_dir {study.directory}: the first {len(states)} trials all failed, the last with: "
            f"{states[-1].user_attrs.get('problem', 'no message')}"
        )
