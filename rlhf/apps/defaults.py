"""A run without a file: what the data, the model and a few options leave open gets a default, and the file can be written.

The learning rates are those of TRL's own scripts: about ten times as high for adapters as for all weights, and lower the
more often the data are the model's own. With `train grpo` the estimator is GRPO; files that name none keep `centred`, which
does not erase how strong a person's taste is (`rlhf.objectives.advantages`).
"""

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.run.config import load
from rlhf.run.config.describe import describe, schema_of
from rlhf.run.config.document import dump
from rlhf.run.directory import holds

FULL_RATE = {"reward": 1e-5, "sft": 2e-5, "dpo": 1e-6, "ppo": 1e-6, "grpo": 1e-6}
LORA_RATE = {"reward": 1e-4, "sft": 2e-4, "dpo": 1e-5, "ppo": 1e-5, "grpo": 1e-5}
PLACE = "no file"


def resolved(kind: str, options: Mapping[str, object], overrides: Sequence[str]) -> tuple[Any, JSONObject]:
    """The configuration of a run without a file, and the values that were given or chosen (the rest are defaults of keys).

    Args:
      kind: as in `chorus config describe`.
      options: dotted key → value, of what the command line gives besides overrides; None: not given.
      overrides: `key.sub=value`, over everything else.
    Raises:
      UserError: as `load`; or neither model nor data.
    """
    schema = schema_of(kind)
    given: JSONObject = {}
    for key, value in options.items():
        if value is not None:
            _put(given, key, value)
    sources = load.overridden(given, overrides, schema)
    if _get(given, "data.path") is None:
        raise UserError(
            f"{kind}: give CONFIG, a YAML file, or --model and --data (chorus config new {kind} writes one)"
        )
    values = _merged(_chosen(kind, given), given)
    if _get(values, "output_dir") is not None:
        return load.made(values, schema, PLACE, sources), values
    name = "-".join(filter(None, (kind, _stem(_get(values, "data.path")), _stem(_get(values, "model.name")))))
    for number in itertools.count(1):
        values = _merged(values, {"output_dir": f"runs/{name}" if number == 1 else f"runs/{name}-{number}"})
        config = load.made(values, schema, PLACE, sources)
        if holds(values["output_dir"], config, kind):
            return config, values
    raise AssertionError("there is always another number")


def commented(kind: str, values: JSONObject) -> str:
    """The values as YAML, each under what its key means."""
    docs = {entry.key: entry.doc for entry in describe(schema_of(kind))}
    docs["columns"] = "Rewards, one basis output each; docs/columns.md has every key."
    verb = {"rewards": "chorus rewards fit", "reward": "chorus rewards train"}.get(
        kind, f"chorus train {kind}"
    )
    lines = [f"# {verb} FILE; every other key: chorus config describe {kind}"]

    def write(section: JSONObject, path: str, indent: str) -> None:
        for name, value in section.items():
            key = f"{path}{name}"
            if isinstance(value, dict):
                lines.append(f"{indent}{name}:")
                write(value, f"{key}.", f"{indent}  ")
                continue
            lines.extend(
                textwrap.wrap(
                    docs.get(key, ""), 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
                )
            )
            lines.append(f"{indent}{dump({name: value}, flow=True)[1:-1]}")

    write(values, "", "")
    return "\n".join(lines) + "\n"


def _chosen(kind: str, given: JSONObject) -> JSONObject:
    """What is chosen for what is not given; keys whose alternatives are given are left out."""
    values: JSONObject = {"seed": 0}
    if kind == "rewards":
        return values
    full = _get(given, "tune.mode") == "full"
    rate = (FULL_RATE if full else LORA_RATE)[kind]
    chosen: JSONObject = {"optimizer.learning_rate": rate, "optimizer.warmup_share": 0.1, "train.epochs": 1}
    if _get(given, "optimizer.warmup_steps") is not None:
        del chosen["optimizer.warmup_share"]
    if _get(given, "train.steps") is not None:
        del chosen["train.epochs"]
    if kind in ("reward", "sft", "dpo"):
        chosen["train.log_every"] = 1
        if _get(given, "train.accumulation_steps") is None:
            chosen["train.batch_rows"] = None
    if kind == "sft":
        chosen["train.row_length"] = None
    if kind == "dpo" and _get(given, "rewards") is None:
        chosen["loss.kind"] = "dpo"
    if kind in ("ppo", "grpo"):
        chosen |= {"rollout.max_new_tokens": 128, "kl.coef": 0.05}
        chosen["model.remat"] = True  # what is kept for the backward pass of a group is the memory of the run
    if kind == "ppo" and full:
        chosen["critic.backbone"] = "shared"  # the other has adapters over a base that stays
    if kind == "grpo":
        chosen |= {"algorithm.kind": "grpo", "rollout.completions": 8}
    for key, value in chosen.items():
        _put(values, key, value)
    return values


def _stem(place: object) -> str:
    """A path or name as part of a folder's name."""
    name = Path(str(place)).name if place is not None else ""
    name = re.sub(r"(\.(jsonl|json|parquet|csv|tsv|gz|gguf))+$", "", name)
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60]


def _get(values: JSONObject, key: str) -> Any:
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _put(values: JSONObject, key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _merged(base: JSONObject, over: JSONObject) -> JSONObject:
    """`over` on top of `base`, what identifies a run first."""
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    order = ("seed", "output_dir", "data", "model", "rewards", "columns")
    return {
        name: merged[name]
        for name in (*(n for n in order if n in merged), *(n for n in merged if n not in order))
    }
