"""A step that is not finite: what a run keeps of it, and its replay by `chorus replay`.

    RUN/nonfinite.json   the step, its metrics that are not finite, the rows and the key it took, the checkpoint before it

A run is a function of its configuration, its inputs and the step number, so the checkpoint before the step is enough to come
to it again: the replay is the run itself in a folder that is thrown away, begun there and left before that step.
"""

import contextlib
import dataclasses
import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from rewards import hashed, opening
from rewards.basis.store import load_reward_run
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people.population import load_people
from rlhf.mesh.devices import under_mesh
from rlhf.policy import store as policy_store
from rlhf.run import inputs, processes
from rlhf.run.config.common import MeshConfig
from rlhf.run.config.describe import schema_of
from rlhf.run.config.document import parse
from rlhf.run.config.load import load
from rlhf.run.directory import CONFIG, INPUTS, first_difference
from rlhf.train import locate
from rlhf.train.callbacks import CHECKPOINTS, NOT_FINITE, Callback, key_of
from rlhf.train.checkpoint import Checkpointer
from rlhf.train.sft import open_base

JOBS = {
    "sft": "rlhf.train.sft:run",
    "dpo": "rlhf.train.dpo:run",
    "ppo": "rlhf.train.rl.trainer:run",
    "grpo": "rlhf.train.rl.trainer:run",
    "reward": "rlhf.train.reward.trainer:run",
}
_SHOWN = 60  # characters of a row's text


class _Reached(Exception):
    """The replay has seen its step."""


class _Replay(Callback):
    """Brings a run to the step after its checkpoint, and looks into that step instead of making it."""

    def __init__(self, run: Path, again: Path, record: JSONObject):
        self._run, self._again, self._record = run, again, record
        self.found: JSONObject = {}
        self.rows: list[locate.Row] = []

    def restore(self, state: PyTree) -> tuple[int, PyTree] | None:
        key = self._record.get("key")
        if key is not None and key != key_of(state):
            raise UserError(
                f"{self._run / CONFIG}: seed: is another than that of step {self._record['step']}; restore the file, or run the "
                "training's command again"
            )
        stored = Checkpointer(self._run / CHECKPOINTS).restore(state, before=self._record["step"])
        return None if stored is None else stored[:2]

    def begin(self, start: int, num_steps: int) -> None:
        then, now = (
            hashed.read_record(folder / INPUTS)["inputs"] if (folder / INPUTS).is_file() else {}
            for folder in (self._run, self._again)
        )
        for where, parts in then.items():
            if (changed := inputs.change(parts, now.get(where, {}))) is not None:
                raise UserError(f"{self._run}: {where}: {changed}; the step cannot be replayed without it")

    def before(self, number: int, state: Any, batch: PyTree, step: Callable[..., Any]) -> None:
        if number + 1 != self._record["step"]:
            return
        parameters = locate.not_finite(state.params)
        norm = float(optax.tree.norm(state.params))
        self.rows = locate.rows(state, batch, step)
        _, metrics = step(jax.tree.map(jnp.copy, state), batch)
        bad = [name for name, value in metrics.items() if not np.isfinite(float(value))]
        self.found = {"not_finite": bad, "parameters_not_finite": list(parameters), "param_norm": norm}
        raise _Reached


def replay(directory: str) -> JSONObject:
    """Run the step again that ended a run, and say where its numbers stop being finite.

    Returns:
      step, the recorded and the replayed metrics that are not finite, parameters that were not before the step, and
      the rows: place in the step, number in the data, person, coefficients, text, terms of the loss, parameters by gradient.
    Raises:
      UserError: no run, no such step in it, or what the run read is not what it was.
    """
    run = Path(directory)
    if not (run / CONFIG).is_file():
        raise UserError(f"{directory}: not a run (no {CONFIG}); give the output_dir of a training")
    if not (run / NOT_FINITE).is_file():
        raise UserError(f"{directory}: every step was finite (no {NOT_FINITE}); there is nothing to replay")
    if processes.several():
        raise UserError("chorus replay runs in one process, on all of its devices; start it once")
    kind = opening.text(run / CONFIG).split("\n", 1)[0].removeprefix("# chorus ").strip()
    if kind not in JOBS:
        raise UserError(f"{directory}: holds a {kind} run; {', '.join(JOBS)} can be replayed")
    record = hashed.parse_record(run / NOT_FINITE, "run the training's command again", _checked)
    config: Any = load(run / CONFIG, [], schema_of(kind))
    then, now = record.get("config"), parse(opening.text(run / CONFIG), CONFIG)[0]
    if isinstance(then, dict) and isinstance(now, dict) and (changed := first_difference(then, now)):
        raise UserError(
            f"{run / CONFIG}: {changed[0]}: is another than that of step {record['step']}; restore the file, or run the "
            "training's command again"
        )
    with tempfile.TemporaryDirectory(prefix="chorus-replay-") as folder:
        again = Path(folder) / "run"
        config = dataclasses.replace(config, output_dir=str(again), mesh=MeshConfig(), track=())
        callback = _Replay(run, again, record)
        base = _again(config, kind, callback)
    names = _people(config, kind) if any(row.user >= 0 for row in callback.rows) else ()
    rows = [_row(row, record["rows"], names, base.tokenizer) for row in callback.rows]
    return {
        "run": directory,
        "step": record["step"],
        "recorded": record["metrics"],
        **callback.found,
        "rows": rows,
    }


def _checked(record: JSONObject) -> JSONObject:
    """The record, when it has what is read here."""
    wanted = {"step": int, "metrics": list, "rows": list}
    for name, kind in wanted.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{NOT_FINITE}: holds no {name}; run the training's command again")
    return record


@under_mesh
def _again(config: Any, kind: str, callback: _Replay) -> policy_store.Base:
    """Run until the callback has seen its step; the model underneath."""
    base = open_base(config)
    module, _, job = JOBS[kind].partition(":")
    with contextlib.suppress(_Reached):
        getattr(importlib.import_module(module), job)(config, base=base, callbacks=[callback])
    return base


def _people(config: Any, kind: str) -> Sequence[str]:
    """Who stands behind the numbers of people in the rows of a step."""
    if kind == "reward":
        from rlhf.train.reward.trainer import comparisons

        prefs, train = comparisons(config)
        return prefs.select(train).user_ids
    if config.loss.kind == "observed":
        return load_people(load_reward_run(config.rewards)).user_ids
    data = config.data
    return read_preferences(data.path, data.split, columns=data.columns, people=False).user_ids


def _row(row: locate.Row, numbers: Sequence[int], names: Sequence[str], tokenizer: Any) -> JSONObject:
    text = " ".join(tokenizer.decode(list(row.tokens)).split())
    return {
        "place": row.place,
        "row": numbers[row.place] if row.place < len(numbers) else None,
        "person": names[row.user] if 0 <= row.user < len(names) else None,
        "coefficients": row.coef,
        "update": row.update,
        "terms": list(row.terms),
        "gradient": list(row.gradient),
        "text": text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…",
    }
