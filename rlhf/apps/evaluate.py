"""`chorus evaluate`: one policy on answers that can be listed, or any policies by what they write; with a file or without."""

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.evaluation.config import EvaluateConfig
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.run import cluster
from rlhf.run.config import load
from rlhf.run.config.document import Key, dump
from rlhf.run.directory import holds


def evaluate(path: str | None, given: Mapping[str, object], overrides: Sequence[str]) -> JSONObject:
    """Run the kind of evaluation that is asked for; arguments as in `configuration`."""
    config = configuration(path, given, overrides)
    cluster.enter(config.mesh)
    if isinstance(config, OutputsConfig):
        from rlhf.evaluation.outputs.run import run as run_outputs

        return run_outputs(config)
    from rlhf.evaluation.policy import run as run_enumerated

    return run_enumerated(config)


def configuration(
    path: str | None, given: Mapping[str, object], overrides: Sequence[str]
) -> EvaluateConfig | OutputsConfig:
    """What a command line asks for.

    Args:
      path: YAML file; one with `policies` compares what policies write. given: dotted key → what an option says.
    Raises:
      UserError: neither a file nor policies, or a configuration that is wrong.
    """
    if path is not None and "=" in path and not Path(path).exists():
        path, overrides = None, [path, *overrides]  # no file: the word is a key
    values, sources = ({}, {}) if path is None else load.read(Path(path))
    place = "no file" if path is None else Path(path).name
    named = "policies" in values or "policies" in given
    if named or any(one.startswith("policies=") for one in overrides):
        words = [f"{key}={dump(value, flow=True)}" for key, value in _keys(given).items()]
        sources |= load.overridden(values, [*words, *overrides], OutputsConfig, sources)
        return _outputs({"seed": 0} | values, place, sources)
    if path is None:
        raise UserError("evaluate: no policies; give CONFIG, a YAML file, or --policies RUN RUN …")
    if given:
        raise UserError(
            f"{path}: has no policies, which options are for; add --policies RUN RUN … or write key=value"
        )
    sources |= load.overridden(values, overrides, EvaluateConfig, sources)
    return load.made(values, EvaluateConfig, place, sources)


def _outputs(values: JSONObject, place: str, sources: dict[Key, str]) -> OutputsConfig:
    """With a folder of its own where none is given: the first that is free, or is this very evaluation."""
    if "output_dir" in values:
        return load.made(values, OutputsConfig, place, sources)
    name = f"runs/evaluate-{_stem(values.get('policies'))}"
    for number in itertools.count(1):
        values["output_dir"] = name if number == 1 else f"{name}-{number}"
        config = load.made(values, OutputsConfig, place, sources)
        if holds(config.output_dir, config, "outputs"):
            logging.getLogger("chorus").info(f"output_dir: {config.output_dir}")
            return config
    raise AssertionError("there is always another number")


def _keys(given: Mapping[str, object]) -> JSONObject:
    """Options as keys: a number of people is that many of each group, a judge is a function."""
    found = dict(given)
    if isinstance(who := found.get("people"), list):
        counts = [word for word in who if word.isdigit()]
        if len(counts) > 1:
            raise UserError(f"--people {' '.join(who)}: two numbers; give one, of people of each group")
        found["people"] = [word for word in who if not word.isdigit()] or ["held-out"]
        if counts:
            found["count"] = int(counts[0])
    if isinstance(judges := found.get("judges"), list):
        found["judges"] = [_function(one) if isinstance(one, str) else one for one in judges]
    return found


def _function(place: str) -> JSONObject:
    return {"name": place.rpartition(":")[2], "kind": "function", "function": place}


def _stem(policies: object) -> str:
    names = policies if isinstance(policies, list) else []
    text = "-".join(re.sub(r"[^\w.-]+", "-", Path(str(name)).name).strip("-.") for name in names[:3])
    return text[:60] or "policies"
