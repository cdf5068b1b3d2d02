"""A policy as it leaves training: in memory, and how a run directory keeps it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rewards import jsonl
from rewards.files import JSONObject
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import store as policy_store
from rlhf.policy.conditioning import Gate
from rlhf.policy.logprobs import PolicyParams, structure
from rlhf.run import processes
from rlhf.run.directory import REPORT, RESULT, Run, read_result
from rlhf.run.metrics import read_metrics
from rlhf.train.callbacks import CHECKPOINTS, SHOWN, Callback, Checkpoints, Metrics, NotFinite
from rlhf.train.checkpoint import Checkpointer
from rlhf.train.config import TrainConfig
from rlhf.train.diagnosis.detectors import Finding
from rlhf.train.rl import samples
from rlhf.train.rl.config import RLTrainConfig

Diagnosis = Callable[[list[JSONObject]], list[Finding]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a trainer returns.

    Attributes:
      base: the model underneath. params, spec: all parameters, and which adapters they have.
      record: what policy.json says. full: whether all weights were trained.
      num_rows: rows of data, for the report.
    """

    base: policy_store.Base
    params: PolicyParams
    spec: AdapterSpec | None
    record: JSONObject
    full: bool
    num_rows: int

    def policy(self) -> policy_store.Policy:
        """Ready to run, as `load_policy` gives it."""
        dtype = self.record["dtype"]
        graphdef, _ = structure(self.base.config, self.base.stages, self.spec, dtype, False)
        params = self.params
        if self.full:  # kept in float32 while it was trained
            base = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.dtype(dtype)), params.base)
            params = params._replace(base=base)
        gate = Gate.from_record(self.record, "policy")
        record = self.record | {"full": self.full}
        return policy_store.Policy(self.base, graphdef, params, self.spec, gate, record)

    def save(self, directory: Path) -> None:
        """Write `policy/` of a run."""
        policy_store.save_policy(directory, self.params, self.spec, self.record, full=self.full)


def load_checkpoint(run: str | Path, step: int) -> policy_store.Policy:
    """The policy of a finished run as it was after `step` steps, as far as that checkpoint is kept.

    Raises:
      UserError: no finished policy there, or no good checkpoint of that step.
    """
    policy = policy_store.load_policy(run)
    roles = ("lora", "conditioner", *(("base",) if policy.record["full"] else ()))
    now = {role: getattr(policy.params, role) for role in roles}
    held = {role: part for role, part in now.items() if jax.tree.leaves(part)}
    then = Checkpointer(Path(run) / CHECKPOINTS).read(step, {"params": held})["params"]
    then = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), then, held)
    return dataclasses.replace(policy, params=policy.params._replace(**then))


def finished(job: Run) -> bool:
    """Whether an earlier session completed this very run."""
    return job.resumed and (job.directory / RESULT).is_file() and policy_store.is_run(job.directory)


def run_callbacks(
    job: Run,
    train: TrainConfig | RLTrainConfig,
    title: str,
    own: Sequence[Callback] = (),
    *,
    track: tuple[str, ...],
    shown: tuple[str, ...] = SHOWN,
    watch: Sequence[Callback] = (),
) -> list[Callback]:
    """What a run directory wants of the loop: its metrics are whole before a checkpoint of the same step is written.

    Args:
      train: the configuration's `train` section. own: the user's callbacks. track: trackers. watch: called before a checkpoint.
    """
    metrics = Metrics(job.directory, train.log_every, title, shown, track)
    kept = [NotFinite(job.directory), Checkpoints(job.directory, train.keep_checkpoints)]
    return [metrics, *own, *watch, *kept]


def stored(job: Run, diagnose: Diagnosis | None = None) -> JSONObject:
    """`metrics.json` of a finished run; its report is written again where it is missing."""

    def reported() -> JSONObject:
        if not (job.directory / REPORT).is_file():
            _write_report(job, diagnose)
        return job.stored_result()

    return processes.from_writer(reported)


def close(job: Run, trained: Trained, diagnose: Diagnosis | None = None) -> JSONObject:
    """Write report.html and metrics.json of a finished training run; returns the latter.

    Its metrics are those of the step that the policy is of: the last, or the best where `train.keep_best` asks for it.

    Args:
      diagnose: rows of metrics.jsonl → findings for the report (`rlhf.train.diagnosis.detectors.diagnose`).
    """
    return processes.from_writer(lambda: _closed(job, trained, diagnose))


def _closed(job: Run, trained: Trained, diagnose: Diagnosis | None) -> JSONObject:
    rows = _write_report(job, diagnose)
    best = trained.record.get("best", {})
    row = next((row for row in rows if row["step"] == best.get("step")), _last(rows))
    kept = {name: value for name, value in row.items() if not name.startswith("perf/")}
    more = {"best": best} if best else {}
    job.write_result(kept | more | {"run_dir": str(job.directory), "num_rows": trained.num_rows})
    return read_result(job.directory)


def _samples(path: Path) -> list[JSONObject]:
    """Whole entries of samples.jsonl; none where there is no such file."""
    return [entry for _, entry in jsonl.whole_lines(path) if isinstance(entry, dict)]


def _last(rows: list[JSONObject]) -> JSONObject:
    """The last step that was made; a step that was left out has not all of its numbers."""
    return next((row for row in reversed(rows) if not row.get("train/skipped")), rows[-1])


def _write_report(job: Run, diagnose: Diagnosis | None) -> list[JSONObject]:
    from rlhf.report import write_training_report

    rows = read_metrics(job.directory)
    findings = [] if diagnose is None else [finding._asdict() for finding in diagnose(rows)]
    write_training_report(job.directory, rows, findings, _samples(job.directory / samples.FILE))
    return rows
