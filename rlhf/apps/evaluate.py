"""`chorus evaluate`: one policy on answers that can be listed, or any policies by what they write; with a file or without."""

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.run.config import load
from rlhf.run.config.describe import schema_of
from rlhf.run.config.document import dump
from rlhf.run.directory import holds

OUTPUTS, ENUMERATED = "outputs", "evaluate"


def evaluate(path: str | None, given: Mapping[str, object], overrides: Sequence[str]) -> JSONObject:
    """Run the kind of evaluation that is asked for.

    Args:
      path: YAML file; one with `policies` compares what policies write. given: dotted key → what an option says.
    Raises:
      UserError: neither a file nor policies, or a configuration that is wrong.
    """
    if path is not None and "=" in path and not Path(path).exists():
        path, overrides = None, [path, *overrides]  # no file: the word is a key
    values, sources = ({}, {}) if path is None else load.read(Path(path))
    named = "policies" in values or "policies" in given
    if not named and not any(one.startswith("policies=") for one in overrides):
        if path is None:
            raise UserError("evaluate: no policies; give CONFIG, a YAML file, or --policies RUN RUN …")
        if given:
            raise UserError(
                f"{path}: has no policies, which options are for; add --policies RUN RUN … or write key=value"
            )
        from rlhf.evaluation.policy import run as run_enumerated

        schema = schema_of(ENUMERATED)
        sources |= load.overridden(values, overrides, schema, sources)
        return run_enumerated(load.made(values, schema, Path(path).name, sources))
    from rlhf.evaluation.outputs.run import run

    schema = schema_of(OUTPUTS)
    words = [f"{key}={dump(value, flow=True)}" for key, value in _keys(given).items()]
    sources |= load.overridden(values, [*words, *overrides], schema, sources)
    place = "no file" if path is None else Path(path).name
    values.setdefault("seed", 0)
    if "output_dir" in values:
        return run(load.made(values, schema, place, sources))
    for number in itertools.count(1):
        values["output_dir"] = f"runs/evaluate-{_stem(values.get('policies'))}" + (
            "" if number == 1 else f"-{number}"
        )
        config = load.made(values, schema, place, sources)
        if holds(values["output_dir"], config, OUTPUTS):
            logging.getLogger("chorus").info(f"output_dir: {values['output_dir']}")
            return run(config)
    raise AssertionError("there is always another number")


def _keys(given: Mapping[str, object]) -> JSONObject:
    """Options as keys: a number of people is that many held-out ones, a judge is a function."""
    found = dict(given)
    if isinstance(who := found.get("people"), list):
        counts = [word for word in who if word.isdigit()]
        if len(counts) > 1:
            raise UserError(f"--people {' '.join(who)}: two numbers; give one, of people of each group")
        found["people"] = [word for word in who if not word.isdigit()] or ["held-out"]
        if counts:
            found["count"] = int(counts[0])
    if isinstance(functions := found.get("judges"), list):
        found["judges"] = [
            {"name": one.rpartition(":")[2], "kind": "function", "function": one}
            if isinstance(one, str)
            else one
            for one in functions
        ]
    return found


def _stem(policies: object) -> str:
    names = policies if isinstance(policies, list) else []
    text = "-".join(re.sub(r"[^\w.-]+", "-", Path(str(name)).name).strip("-.") for name in names[:3])
    return text[:60] or "policies"
