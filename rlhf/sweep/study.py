"""The record of trials: an Optuna study in one append-only file, which any number of workers share.

A worker holds the lock of the trial it runs. A trial that is unfinished and whose lock is free has lost its worker: the next
one takes up the same trial, with the same number, values and run directory. So none is lost and none runs twice.

    trials.log         the study (Optuna's journal)
    trials/0007/       the run directory; beside it 0007.yaml, 0007.log (what the run said) and 0007.lock
"""

import contextlib
import datetime
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import opening
from rewards.errors import UserError
from rewards.files import JSONObject, write_text
from rlhf.run.config.document import dump, parse
from rlhf.run.directory import first_difference
from rlhf.sweep.config import Sweep
from rlhf.sweep.locks import Lock

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

RECORD, IDENTITY, TRIALS = "trials.log", "sweep.yaml", "trials"
_STUDY, _DIED, _AT_WORK, PROBLEM = "sweep", "died", "at work", "problem"


def optuna() -> Any:
    """The library, imported only where a sweep runs."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "chorus sweep needs Optuna; install it with: pip install 'chorus-rlhf[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    return optuna


class Claim:
    """A trial that this worker alone may run."""

    def __init__(self, trial: "Trial", lock: Lock, chosen: JSONObject, directory: Path):
        self.trial, self.lock, self.chosen, self.directory = trial, lock, chosen, directory

    @property
    def number(self) -> int:
        return self.trial.number

    def beside(self, suffix: str) -> Path:
        return self.directory.with_name(f"{self.directory.name}{suffix}")


class Study:
    """The trials of a sweep on disk; made where there are none yet.

    Raises:
      UserError: the directory holds another sweep, or something else.
    """

    def __init__(self, sweep: Sweep):
        self.sweep, self.directory = sweep, sweep.directory
        self._optuna = optuna()
        self._refuse_foreign()  # before anything is left in somebody's folder
        try:
            (self.directory / TRIALS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output_dir {self.directory}: cannot create it ({error.strerror}); choose another output_dir"
            ) from None
        with self._alone():
            self._check_identity()
            self._mend_record()
            journal = self._optuna.storages.journal
            path = str(self.directory / RECORD)
            backend = journal.JournalFileBackend(path, lock_obj=Lock(self.directory / f"{RECORD}.lock"))
            self._storage = self._optuna.storages.JournalStorage(backend)
            self._study = self._optuna.create_study(
                storage=self._storage,
                study_name=_STUDY,
                directions=list(sweep.config.objectives.values()),
                load_if_exists=True,
                pruner=_pruner(self._optuna, sweep),
            )

    def _alone(self) -> Lock:
        return Lock(self.directory / "sweep.lock")

    def _refuse_foreign(self) -> None:
        if not self.directory.is_dir() or (self.directory / IDENTITY).exists():
            return
        own = {TRIALS, "sweep.lock", "run.lock", "workers"}
        others = {one.name for one in self.directory.iterdir() if not one.name.endswith(".tmp")} - own
        if others:
            raise UserError(
                f"output_dir {self.directory}: not empty ({min(others)}) and no sweep; choose another output_dir"
            )

    def _check_identity(self) -> None:
        path, wanted = self.directory / IDENTITY, self.sweep.identity()
        self._refuse_foreign()
        if not path.exists():
            write_text(path, f"# chorus sweep\n{dump(wanted)}")
        stored, _ = parse(opening.text(path), IDENTITY)
        if not isinstance(stored, dict):
            raise UserError(f"{path}: damaged, so the sweep cannot be resumed; choose another output_dir")
        if difference := first_difference(stored, wanted):
            key, old, new = difference
            raise UserError(
                f"output_dir {self.directory}: holds a sweep with another configuration ({key} is {old} there, {new} "
                f"here); choose another output_dir or set {key} back"
            )

    def _mend_record(self) -> None:
        """Drop a last line that a full disk or a crash of the machine tore: nobody has acted on it."""
        path = self.directory / RECORD
        if path.exists() and not (text := path.read_bytes()).endswith(b"\n") and text:
            os.truncate(path, text.rfind(b"\n") + 1)

    def trials(self) -> list["FrozenTrial"]:
        return self._study.get_trials(deepcopy=False)

    def begin(self) -> Claim | None:
        """A trial whose worker is gone, else a new one, else None: nothing is left to begin."""
        with self._alone():
            trials = self.trials()
            for one in trials:
                if not one.state.is_finished() and (lock := self._lock_of(one.number)) is not None:
                    self._study.sampler = _sampler(self._optuna, self.sweep, one.number)
                    return self._claim(self._optuna.trial.Trial(self._study, one._trial_id), lock)
            if not self._may_begin(trials):
                return None
            self._study.sampler = _sampler(self._optuna, self.sweep, len(trials))
            trial = self._study.ask()
            lock = self._lock_of(trial.number)
            assert lock is not None, "a new trial is nobody's"
            return self._claim(trial, lock)

    def _claim(self, trial: "Trial", lock: Lock) -> Claim:
        chosen = {key: one.suggest(trial) for key, one in self.sweep.space.items()}
        return Claim(trial, lock, chosen, self.run_directory(trial.number))

    def run_directory(self, number: int) -> Path:
        return self.directory / TRIALS / f"{number:04d}"

    def chosen(self, trial: "FrozenTrial") -> JSONObject:
        """Values of a trial as the YAML file has them."""
        return {
            key: one.plain(trial.params[key]) for key, one in self.sweep.space.items() if key in trial.params
        }

    def _lock_of(self, number: int) -> Lock | None:
        lock = Lock(self.directory / TRIALS / f"{number:04d}.lock")
        return lock if lock.attempt() else None

    def _may_begin(self, trials: list["FrozenTrial"]) -> bool:
        limit, hours = self.sweep.num_trials, self.sweep.config.hours
        if limit is not None and len(trials) >= limit:
            return False
        first = min((one.datetime_start for one in trials if one.datetime_start), default=None)
        return (
            hours is None
            or first is None
            or datetime.datetime.now() - first < datetime.timedelta(hours=hours)
        )

    def num_finished(self) -> int:
        return sum(one.state.is_finished() for one in self.trials())

    def left(self) -> bool:
        """Whether there is anything to do."""
        return self.unfinished() or self._may_begin(self.trials())

    def unfinished(self) -> bool:
        """Whether some trial is still to be finished, by whomever."""
        return any(not one.state.is_finished() for one in self.trials())

    def report(self, claim: Claim, step: int, value: float) -> bool:
        """Hand on a value on the way; True: the trial should be stopped."""
        claim.trial.report(value, step)
        return claim.trial.should_prune()

    def last_step(self, claim: Claim) -> int:
        """The last step that was reported, also before the trial was taken up again."""
        return max(self._frozen(claim).intermediate_values, default=0)

    def _frozen(self, claim: Claim) -> "FrozenTrial":
        return self._storage.get_trial(claim.trial._trial_id)

    def died(self, claim: Claim) -> int:
        """Count that the trial's own process died; how often so far."""
        count = self._frozen(claim).user_attrs.get(_DIED, 0) + 1
        claim.trial.set_user_attr(_DIED, count)
        return count

    def mark(self, claim: Claim, at_work: bool) -> None:
        """Note that this worker trains the trial itself, or that it has put it down in good order."""
        claim.trial.set_user_attr(_AT_WORK, at_work)

    def was_killed(self, claim: Claim) -> bool:
        """Whether the worker that trained it itself never put it down."""
        return bool(self._frozen(claim).user_attrs.get(_AT_WORK))

    def complete(self, claim: Claim, values: list[float], excess: list[float]) -> None:
        for one, value in zip(self.sweep.constraints, excess, strict=True):
            claim.trial.set_constraint(one.text, value)
        self._tell(claim, "COMPLETE", values)

    def pruned(self, claim: Claim) -> None:
        self._tell(claim, "PRUNED")

    def failed(self, claim: Claim, problem: str) -> None:
        claim.trial.set_user_attr(PROBLEM, problem)
        self._tell(claim, "FAIL")

    def _tell(self, claim: Claim, state: str, values: list[float] | None = None) -> None:
        with self._alone():
            self._study.sampler = _sampler(self._optuna, self.sweep, claim.number)
            self._study.tell(claim.trial, values, self._optuna.trial.TrialState[state])

    def feasible(self, trial: "FrozenTrial") -> bool:
        return all(value <= 0 for value in trial.constraints.values())

    def best(self) -> list["FrozenTrial"]:
        """The best feasible trial, or the Pareto front of several objectives, by number."""
        done = [one for one in self.trials() if one.state.name == "COMPLETE" and self.feasible(one)]
        signs = [1 if way == "minimize" else -1 for way in self.sweep.config.objectives.values()]
        costs = {
            one.number: [sign * value for sign, value in zip(signs, one.values, strict=True)] for one in done
        }
        if len(signs) == 1:
            return sorted(done, key=lambda one: (costs[one.number], one.number))[:1]
        return [
            one
            for one in done
            if not any(_dominates(costs[other.number], costs[one.number]) for other in done)
        ]

    def importance(self) -> dict[str, float]:
        """Share of each key in how much the first objective varies; empty where there are too few trials."""
        with contextlib.suppress(ValueError, RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = self._optuna.importance.get_param_importances(
                self._study, evaluator=evaluator, target=lambda one: one.values[0]
            )
            return {str(key): float(share) for key, share in found.items()}
        return {}


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _sampler(library: Any, sweep: Sweep, number: int) -> Any:
    """A sampler for the trial of this number: seeded by it, so that neither workers nor sessions repeat one another."""
    config, samplers = sweep.config, library.samplers
    seed = (config.sampler_seed + 7919 * number) % 2**31
    if config.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if config.sampler == "grid":
        return samplers.PartialFixedSampler(sweep.grid_point(number), samplers.RandomSampler(seed=seed))
    if config.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed)
    if config.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, (config.trials or 50) // 4)))
    return samplers.TPESampler(seed=seed)


def _pruner(library: Any, sweep: Sweep) -> Any:
    config, pruners = sweep.config, library.pruners
    steps = sweep.steps or 1
    least = config.prune_after or max(1, steps // 9)
    if config.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=least)
    if config.pruner == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
    if config.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=least, max_resource=steps, reduction_factor=3)
    return pruners.NopPruner()
