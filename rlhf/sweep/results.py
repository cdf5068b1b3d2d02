"""What a sweep leaves: trials.jsonl, best.yaml, report.html, metrics.json."""

from typing import TYPE_CHECKING

from rewards import hashed, jsonl
from rewards.files import JSONObject, write_text
from rlhf.run.directory import RESULT, plain, read_result
from rlhf.run.metrics import read_metrics
from rlhf.sweep.config import Sweep
from rlhf.sweep.study import PROBLEM, Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TABLE, BEST = "trials.jsonl", "best.yaml"
_STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "unfinished",
    "WAITING": "unfinished",
}


def write_results(sweep: Sweep, study: Study) -> JSONObject:
    """Write all of them from the record of trials; metrics.json last."""
    from rlhf.report import write_sweep_report

    rows = [_row(sweep, study, one) for one in study.trials()]
    front = study.best()
    chosen = _compromise(sweep, front)
    result: JSONObject = {
        "run_dir": str(sweep.directory),
        "command": sweep.config.command,
        "objectives": dict(sweep.config.objectives),
        "constraints": list(sweep.config.constraints),
        "trials": {
            state: sum(row["state"] == state for row in rows) for state in dict.fromkeys(_STATES.values())
        },
        "best": None,
        "front": [one.number for one in front],
        "importance": study.importance(),
    }
    if chosen is not None:
        path = sweep.directory / BEST
        values = dict(zip(sweep.config.objectives, chosen.values, strict=True))
        found = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        command = f"chorus {sweep.config.command} {path}"
        if sweep.config.command == "rewards evaluate":
            command = f"chorus rewards fit {path} && {command}"
        head = f"# Trial {chosen.number} of {sweep.directory}: {found}\n#\n#   {command}\n#\n"
        write_text(path, head + sweep.yaml(study.chosen(chosen), sweep.directory / "best"))
        result["best"] = {
            "trial": chosen.number,
            "values": values,
            "params": study.chosen(chosen),
            "config": str(path),
            "command": command,
        }
    jsonl.write(sweep.directory / TABLE, map(hashed.with_hash, rows))
    write_sweep_report(sweep.directory, result, rows, sweep.space_words())
    hashed.write_record(sweep.directory / RESULT, plain(result))
    return read_result(sweep.directory)


def _row(sweep: Sweep, study: Study, trial: "FrozenTrial") -> JSONObject:
    directory = study.run_directory(trial.number)
    lines = read_metrics(directory) if directory.is_dir() else []
    done = trial.state.name == "COMPLETE"
    return plain(
        {
            "trial": trial.number,
            "state": _STATES[trial.state.name],
            "params": study.chosen(trial),
            "values": dict(zip(sweep.config.objectives, trial.values, strict=True)) if done else {},
            "feasible": study.feasible(trial) if done else None,
            "steps": lines[-1]["step"] if lines else 0,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "problem": trial.user_attrs.get(PROBLEM, ""),
            "run_dir": str(directory),
        }
    )


def _compromise(sweep: Sweep, front: list["FrozenTrial"]) -> "FrozenTrial | None":
    """The best trial; of a front, the one nearest to having the best of every objective, each scaled to its range."""
    if not front:
        return None
    signs = [1 if way == "minimize" else -1 for way in sweep.config.objectives.values()]
    costs = [[sign * value for sign, value in zip(signs, one.values, strict=True)] for one in front]
    low = [min(column) for column in zip(*costs, strict=True)]
    width = [(max(column) - min(column)) or 1.0 for column in zip(*costs, strict=True)]

    def distance(cost: list[float]) -> float:
        return sum(((value - least) / wide) ** 2 for value, least, wide in zip(cost, low, width, strict=True))

    return min(zip(front, costs, strict=True), key=lambda pair: (distance(pair[1]), pair[0].number))[0]
