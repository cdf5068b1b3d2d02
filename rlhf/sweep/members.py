"""One worker that trains trials together: members of a population, in one program of its own process."""

import logging
import time

from rewards.errors import UserError
from rewards.files import write_text
from rlhf.sweep import measures
from rlhf.sweep.config import Sweep
from rlhf.sweep.study import Claim, Study
from rlhf.sweep.worker import WAIT_SECONDS, give_up_when_all_fail, judge, should_stop
from rlhf.train import dpo_members
from rlhf.train.callbacks import Callback
from rlhf.train.config import DPOConfig
from rlhf.train.members import Pruned
from rlhf.train.rl import members as rl_members
from rlhf.train.rl.config import GRPOConfig, PPOConfig

Config = DPOConfig | PPOConfig | GRPOConfig
_LOG = logging.getLogger("chorus")


def work(sweep: Sweep) -> None:
    """Run trials, `sweep.population` at a time, until the budget is used and none is unfinished.

    Raises:
      UserError: every trial fails, or a metric is not there.
    """
    study = Study(sweep)
    while True:
        first = _next(study)
        if first is not None:
            _train(study, first)
        elif study.unfinished():
            time.sleep(WAIT_SECONDS)  # others are at work; should they die, their trials are to be finished
        else:
            return


def _train(study: Study, first: "_Trial") -> None:
    """Train this trial and those that follow, until none is to be begun."""
    sweep, waiting = study.sweep.config, [first]
    assert sweep.population is not None, "asked for where the sweep is read"

    def following() -> _Trial | None:
        return waiting.pop() if waiting else _next(study)

    try:
        size, at_once = sweep.population, sweep.population_at_once
        if isinstance(first.config, DPOConfig):
            dpo_members.train(first.config, size, following, study.directory, at_once)
        else:
            rl_members.train(first.config, size, following, at_once)
    finally:
        for one in waiting:  # what they all read was refused
            one.leave()


def _next(study: Study) -> "_Trial | None":
    """The next trial that there is anything to train for."""
    while (claim := study.begin()) is not None:
        try:
            if (trial := _begun(study, claim)) is not None:
                return trial
        except BaseException:
            claim.lock.release()
            raise
        claim.lock.release()
        give_up_when_all_fail(study)
    return None


def _begun(study: Study, claim: Claim) -> "_Trial | None":
    """The trial, or None where it has its result already, cannot begin, or killed its worker too often."""
    sweep = study.sweep
    if measures.finished(claim.directory, sweep.config.command):
        judge(study, claim)
        return None
    if study.was_killed(claim) and (died := study.died(claim)) > sweep.config.retries:
        study.failed(claim, f"its worker was killed {died} times (memory?); lower sweep.population")
        return None
    try:
        config = sweep.run_config(claim.chosen, claim.directory)
        write_text(claim.beside(".yaml"), sweep.yaml(claim.chosen, claim.directory))
    except UserError as error:  # values that do not go together
        study.failed(claim, str(error))
        return None
    assert isinstance(config, Config), "asked for where the sweep is read"
    study.mark(claim, True)
    return _Trial(study, claim, config)


class _Trial:
    """A trial that wants to be a member."""

    def __init__(self, study: Study, claim: Claim, config: Config):
        self._study, self._claim, self.config = study, claim, config
        self.callbacks = (_Watch(study, claim),)

    def complete(self) -> None:
        judge(self._study, self._claim)
        self._end()

    def fail(self, problem: UserError) -> None:
        self._study.failed(self._claim, str(problem))
        _LOG.info(f"trial {self._claim.number}: failed: {problem}")
        self._end()

    def prune(self) -> None:
        self._study.pruned(self._claim)
        _LOG.info(f"trial {self._claim.number}: pruned")
        self._end()

    def leave(self) -> None:
        self._study.mark(self._claim, False)
        self._claim.lock.release()

    def _end(self) -> None:
        self._claim.lock.release()
        give_up_when_all_fail(self._study)


class _Watch(Callback):
    """Hands a trial's metrics on to the study, and stops it when that says so."""

    def __init__(self, study: Study, claim: Claim):
        self._study, self._claim = study, claim

    def step(self, number: int, metrics: object) -> None:
        if should_stop(self._study, self._claim):
            raise Pruned
