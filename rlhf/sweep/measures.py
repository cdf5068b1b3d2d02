"""What a trial is judged by: metrics of its run directory, and conditions on them."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from rewards.errors import UserError, meant
from rewards.files import JSONObject
from rlhf.run.directory import RESULT, read_result
from rlhf.run.metric_docs import FIT, TRAINING, explained
from rlhf.run.metrics import read_metrics

Command = Literal[
    "rewards fit", "rewards evaluate", "rewards train", "train sft", "train dpo", "train ppo", "train grpo"
]
COMMANDS: tuple[str, ...] = get_args(Command)
KINDS = {command: command.split()[1] for command in COMMANDS}
KINDS |= {"rewards fit": "rewards", "rewards evaluate": "rewards", "rewards train": "reward"}
"""Command → kind of its configuration."""
LEFT_OUT = "left_out_loss_nats"
"""The loss on people left out by which a fit chooses K and width: `candidates` of metrics.json."""
_SFT = {"train/loss/total", "train/token_entropy_nats", "train/learning_rate", "train/grad_norm"}
_SFT |= {"train/update_norm", "train/param_norm", "perf/step_seconds", "perf/tokens_per_second"}
_SFT |= {"eval/loss/total"}
_FITTED = {"training_accuracy", "num_basis", LEFT_OUT}
_REPLAYED = ("accuracy", "accuracy_random", "loss_nats")
_SWAP = {f"evaluation.swap.{name}" for name in ("own", "swapped", "flip_rate", "difference")}


def commands(command: str) -> list[list[str]]:
    """Arguments of the commands that a trial runs one after the other."""
    words = command.split()
    return [["rewards", "fit"], words] if command == "rewards evaluate" else [words]


def finished(directory: Path, command: str) -> bool:
    """Whether the run of a trial has its result."""
    if not (directory / RESULT).is_file():
        return False
    return command != "rewards evaluate" or "evaluation" in read_result(directory)


def unknown(name: str, command: str, base: JSONObject) -> str | None:
    """What is wrong with a metric's name, as far as it can be known without a run."""
    kind = KINDS[command]
    if name.startswith("eval/") and (base.get("train") or {}).get("evaluate_every") is None:
        return f"{name} is measured with train.evaluate_every only; give it in the configuration of the sweep"
    if kind in ("ppo", "grpo") and "/" in name and explained(name) is not None:
        return None
    if kind in ("ppo", "grpo"):
        return _not_among(name, command, ["train/reward", "train/kl_ref_nats", "train/loss/total"], more=True)
    if kind != "rewards":
        return _not_among(name, command, sorted(_SFT if kind == "sft" else TRAINING))
    known = sorted(FIT) + sorted(_FITTED)
    if command == "rewards evaluate":
        counts = (base.get("evaluation") or {}).get("counts") or (0, 3, 5, 10)
        known += [f"evaluation.{metric}.{count}" for count in counts for metric in _REPLAYED]
        known += ["evaluation.pooled_accuracy", *sorted(_SWAP)]
    return _not_among(name, command, known)


def _not_among(name: str, command: str, known: list[str], *, more: bool = False) -> str | None:
    if name in known:
        return None
    listed = f"known: {', '.join(known)}{', …' if more else ''} (docs/metrics.md)"
    return f"{name} is no metric of `chorus {command}`; {meant(name, known, listed)}"


class Missing(UserError):
    """A finished run does not have a metric."""


def final(directory: Path, name: str) -> float:
    """A metric of a finished run.

    Raises:
      Missing: the run does not have it; those that it has are named.
    """
    if name.startswith("eval/") and name in (result := read_result(directory)):
        return float(result[name])  # of the policy that was kept; no noise of a batch to average away
    if "/" in name:
        curve = list(running(directory, name))
        if not curve:
            known = sorted({key for row in read_metrics(directory) for key in row if "/" in key})
            raise Missing(
                f"{directory}: no metric {name}; {meant(name, known, 'it has ' + ', '.join(known))}"
            )
        return curve[-1][1]
    result = read_result(directory)
    if name == LEFT_OUT:
        chosen = [one["loss_nats"] for one in result.get("candidates", []) if one.get("chosen")]
        if not chosen:
            raise Missing(
                f"{directory}: no {LEFT_OUT}: it is measured where fit.num_basis or fit.dims has several values"
            )
        return float(chosen[0])
    value: object = result
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, dict) and "mean" in value:
        value = value["mean"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Missing(f"{directory}: no number {name} in metrics.json")
    return float(value)


def running(directory: Path, name: str) -> Iterator[tuple[int, float]]:
    """(step, mean over the last tenth of the lines up to it) of a metric of metrics.jsonl; null is not a number."""
    values: list[float] = []
    for row in read_metrics(directory):
        if name in row:
            values.append(math.nan if row[name] is None else float(row[name]))
            last = values[-max(1, len(values) // 10) :]
            yield row["step"], sum(last) / len(last)


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A condition on a metric."""

    text: str
    metric: str
    sign: str
    limit: float

    def excess(self, value: float) -> float:
        """By how much it is broken; at most 0 when it is met."""
        return value - self.limit if self.sign == "<=" else self.limit - value


def constraint(text: str, place: str) -> Constraint:
    """Read `METRIC <= NUMBER` or `METRIC >= NUMBER`."""
    found = re.fullmatch(r"\s*(\S+)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
    if found is None:
        raise UserError(
            f"sweep.constraints [{place}]: a condition is METRIC <= NUMBER or METRIC >= NUMBER (got {text!r})"
        )
    return Constraint(" ".join(text.split()), found[1], found[2], float(found[3]))
