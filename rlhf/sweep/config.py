"""The configuration of `chorus sweep`: a run's own YAML with one more section, read and checked before anything runs."""

import copy
import dataclasses
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from rewards.errors import UserError, meant
from rewards.files import JSONObject
from rlhf.run.config import unread
from rlhf.run.config.common import RunConfig
from rlhf.run.config.describe import schema_of
from rlhf.run.config.document import Key, parse_value
from rlhf.run.config.load import COMMAND_LINE, apply_override, build, field_type, read, to_dict, to_yaml
from rlhf.run.record import record
from rlhf.sweep import measures, together
from rlhf.sweep.measures import Command, Constraint
from rlhf.sweep.space import Range, range_of

_SECTION = "sweep"
_MOST = 100_000  # points of a grid


@record
class SweepConfig:
    """`chorus sweep`: the section `sweep` beside a base configuration. Every other key of the section is one of the base
    configuration, with the values to try: `optimizer.learning_rate: {log: [1e-5, 1e-3]}`."""

    command: Command = Field(description="What a trial runs; `rewards evaluate` fits first.")
    objectives: dict[str, Literal["minimize", "maximize"]] = Field(
        min_length=1,
        description="Metric and its direction; several make a Pareto front. A name with a slash is one of metrics.jsonl "
        "(mean over the last tenth of its lines; eval/… of the policy that is kept), another one of metrics.json.",
    )
    constraints: tuple[str, ...] = Field(
        default=(),
        description="Conditions a trial must meet to be chosen, such as `train/kl_ref_nats <= 5`. tpe and nsga2 steer by "
        "them; the others only report them.",
    )
    sampler: Literal["tpe", "random", "grid", "cmaes", "nsga2"] = Field(
        default="tpe", description="How the next values are chosen."
    )
    sampler_seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of that choice.")
    pruner: Literal["none", "median", "halving", "hyperband"] = Field(
        default="none",
        description="Stops trials that do badly on the way; for one objective of metrics.jsonl.",
    )
    prune_after: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Steps that every trial gets; null means a ninth of train.steps.",
    )
    trials: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Number of trials, failed and pruned ones included; null with sampler grid is the whole grid.",
    )
    hours: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="No trial starts later than this after the first one; those begun are finished.",
    )
    workers: int = Field(
        default=1, ge=1, le=1_000, description="Processes of this machine that run trials at the same time."
    )
    population: int | None = Field(
        default=None,
        ge=2,
        le=1_000,
        description="Trials that a worker trains together, in one compiled program over one frozen model; for train dpo, "
        "train grpo and train ppo where only numbers of the loss, the optimiser and the like, and seeds, are tried. null: every "
        "trial is a process.",
    )
    population_at_once: int | None = Field(
        default=None,
        ge=1,
        le=1_000,
        description="How many of them are computed side by side, the others one after the other; fewer need less memory. null: 1 "
        "on CPUs, all elsewhere.",
    )
    retries: int = Field(
        default=2,
        ge=0,
        le=1_000,
        description="How often a trial whose own process died (killed for memory, for example) is taken up again.",
    )


_CHANGEABLE = ("trials", "hours", "workers", "retries", "population", "population_at_once")
"""What the same command may say otherwise when it resumes."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that was read and checked.

    Attributes:
      base: plain values of the base configuration, without the section `sweep`.
      space: key → values to try.
    """

    config: SweepConfig
    base: JSONObject
    space: dict[str, Range]
    constraints: tuple[Constraint, ...]
    directory: Path
    place: str
    sources: dict[Key, str] = dataclasses.field(repr=False)

    @property
    def schema(self) -> type[RunConfig]:
        return schema_of(measures.KINDS[self.config.command])

    @property
    def steps(self) -> int | None:
        """Steps of a trial, where that is one number for all."""
        return None if "train.steps" in self.space else self.base.get("train", {}).get("steps")

    @property
    def num_trials(self) -> int | None:
        """The budget; a grid ends by itself."""
        if self.config.sampler != "grid":
            return self.config.trials
        whole = self.grid_size()
        return min(whole, self.config.trials or whole)

    def grid_size(self) -> int:
        """Points of the whole grid."""
        return math.prod(len(one.grid()) for one in self.space.values())

    def grid_point(self, number: int) -> JSONObject:
        """Values of the trial of this number in a grid; a budget below the whole grid takes a random part of it."""
        whole, values = self.grid_size(), {}
        if self.num_trials != whole:
            number = random.Random(self.config.sampler_seed).sample(range(whole), whole)[number]
        for key, one in reversed(self.space.items()):
            number, place = divmod(number, len(one.grid()))
            values[key] = one.grid()[place]
        return values

    def values(self, chosen: JSONObject, output_dir: Path) -> JSONObject:
        """Plain values of the run with these values of the space."""
        values = copy.deepcopy(self.base) | {"output_dir": str(output_dir)}
        for key, value in chosen.items():
            _put(values, key.split("."), value)
        return values

    def run_config(self, chosen: JSONObject, output_dir: Path) -> RunConfig:
        """The run with these values of the space; refused where the command itself would."""
        sources = dict(self.sources)
        for key in chosen:
            sources[tuple(key.split("."))] = self.space[key].place
        return build(self.values(chosen, output_dir), self.schema, self.place, sources)

    def yaml(self, chosen: JSONObject, output_dir: Path) -> str:
        """The same as a file that the command reads."""
        return to_yaml(self.run_config(chosen, output_dir))

    def space_words(self) -> dict[str, str]:
        """Key → kind of its range, for drawing."""
        return {key: one.kind for key, one in self.space.items()}

    def identity(self) -> JSONObject:
        """What makes it this sweep and no other: everything but its budget."""
        config = to_dict(self.config)
        settings = {name: value for name, value in config.items() if name not in _CHANGEABLE}
        base = {key: value for key, value in self.base.items() if key != "output_dir"}
        return {"sweep": settings | {key: one.written for key, one in self.space.items()}, **base}


def read_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep.

    Args:
      overrides: `key=value` of the base configuration, `sweep.key=value` of the sweep.
    Raises:
      UserError: what is wrong with settings, ranges, metrics or any end of a range, in one line.
    """
    path = Path(path)
    values, sources = read(path)
    section = values.pop(_SECTION, {})
    if not isinstance(section, dict):
        raise UserError(f"sweep [{sources[_SECTION,]}]: must be a section of settings and keys with ranges")
    if not section and not any(one.startswith(f"{_SECTION}.") for one in overrides):
        raise UserError(
            f"{path.name}: no section `sweep`; add `sweep: {{command: train dpo, objectives: …, trials: 20, "
            "optimizer.learning_rate: {log: [1e-5, 1e-3]}}`"
        )
    own = {key[1:]: place for key, place in sources.items() if key[0] == _SECTION and len(key) > 1}
    section = _flat(section, own)
    places = {".".join(key): place for key, place in own.items()}
    _override_section(section, places, [one for one in overrides if one.startswith(f"{_SECTION}.")])
    settings = {key: section.pop(key) for key in list(section) if key in _SETTINGS}
    marked = {(key,): place for key, place in places.items() if "." not in key}
    config = build_settings(settings, marked, path.name)
    schema = schema_of(measures.KINDS[config.command])
    sources = {key: place for key, place in sources.items() if key[0] != _SECTION}
    for override in overrides:
        if not override.startswith(f"{_SECTION}."):
            apply_override(values, override, sources, schema)
    space = {
        key: range_of(key, value, places.get(key, path.name), _no_setting(key, schema))
        for key, value in section.items()
    }
    directory = values.get("output_dir")
    if not isinstance(directory, str) or not directory.strip():
        raise UserError(f"output_dir [{path.name}]: missing; name the folder of the sweep")
    constraints = tuple(
        measures.constraint(text, places.get("constraints", path.name)) for text in config.constraints
    )
    sweep = Sweep(config, values, space, constraints, Path(directory), path.name, sources)
    _check(sweep, places)
    return sweep


_SETTINGS = tuple(SweepConfig.__dataclass_fields__)  # pyright: ignore[reportAttributeAccessIssue]


def build_settings(settings: JSONObject, sources: dict[Key, str], place: str) -> SweepConfig:
    """The settings alone; complaints name them as `sweep.KEY`."""
    try:
        return build(settings, SweepConfig, place, sources)
    except UserError as error:
        raise UserError(f"sweep.{error}") from None


def _flat(section: JSONObject, places: dict[Key, str], prefix: Key = ()) -> JSONObject:
    """Nested keys as dotted ones: a section is taken apart until its keys are no longer names of keys."""
    found: JSONObject = {}
    for name, value in section.items():
        path = (*prefix, str(name))
        setting = len(path) == 1 and name in _SETTINGS
        inner = {".".join(path): value}
        if isinstance(value, dict) and value and not setting and not _is_range(value):
            inner = _flat(value, places, path)
        for key in found.keys() & inner.keys():
            raise UserError(
                f"sweep.{key} [{places.get(path, _SECTION)}]: key given twice, once as a section and once with dots; remove one"
            )
        found |= inner
    return found


def _is_range(value: JSONObject) -> bool:
    """Whether a mapping is meant as a range, spelt right or not: its values are lists or single values."""
    return not any(isinstance(inner, dict) for inner in value.values())


def _override_section(section: JSONObject, places: dict[str, str], overrides: Sequence[str]) -> None:
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = dotted.strip().removeprefix(f"{_SECTION}.")
        if not equals or not text.strip() or not re.fullmatch(r"[\w]+(\.[\w]+)*", key):
            raise UserError(f"{override[:200]!r} [command line]: an override is sweep.key=value")
        section[key] = parse_value(text, f"{dotted} [command line]")
        places[key] = "command line"


def _no_setting(key: str, schema: type) -> str:
    """What to do about an entry that is no range: perhaps it was meant as a setting."""
    if field_type(schema, key.split(".")) is not None:
        return "write {log: [1e-5, 1e-3]}, {uniform: [0, 1]}, {int: [1, 8]} or {choice: [a, b]}"
    return f"neither a setting of sweep nor a key of its command; {meant(key, _SETTINGS, 'settings: ' + ', '.join(_SETTINGS))}"


def _check(sweep: Sweep, places: dict[str, str]) -> None:
    """Everything that can be known before anything runs."""

    def refuse(key: str, message: str) -> None:
        raise UserError(f"sweep.{key} [{places.get(key, sweep.place)}]: {message}")

    config = sweep.config
    if not sweep.space:
        refuse(
            "command",
            "no key has values to try; add for example optimizer.learning_rate: {log: [1e-5, 1e-3]}",
        )
    if "output_dir" in sweep.space:
        refuse("output_dir", "every trial has its own; remove the key")
    if config.trials is None and config.hours is None and config.sampler != "grid":
        refuse("trials", "no budget; set sweep.trials, sweep.hours or both")
    several = len(config.objectives) > 1
    if config.pruner != "none" and several:
        refuse("pruner", f"{config.pruner} compares trials by one objective, here are {len(config.objectives)}; "
               "set sweep.pruner: none")  # fmt: skip
    if config.sampler == "cmaes" and several:
        refuse("sampler", "cmaes has one objective; use nsga2 or tpe")
    if config.sampler == "cmaes" and (words := [k for k, r in sweep.space.items() if r.kind == "choice"]):
        refuse("sampler", f"cmaes needs numbers, and {words[0]} is a choice; use tpe")
    if config.sampler == "cmaes" and len(sweep.space) < 2:
        refuse("sampler", "cmaes needs two or more keys; use tpe")
    if config.sampler == "grid":
        for key, one in sweep.space.items():
            if one.kind not in ("choice", "int"):
                refuse(key, f"{one.kind} has no grid; write {{choice: […]}} or {{int: [low, high, step]}}")
        if sweep.grid_size() > _MOST:
            refuse("sampler", f"a grid of {sweep.grid_size()} points; take fewer values, or sampler random")
    _check_values(sweep)
    for name in (*config.objectives, *(one.metric for one in sweep.constraints)):
        key = "objectives" if name in config.objectives else "constraints"
        if problem := measures.unknown(name, sweep.config.command, sweep.base):
            refuse(key, problem)
    if config.pruner != "none":
        [name] = config.objectives
        if "/" not in name:
            refuse("pruner", f"{name} is known only at the end of a trial; prune by a metric of metrics.jsonl, or set "
                   "sweep.pruner: none")  # fmt: skip
        if sweep.steps is None:
            refuse("pruner", "trials must have the same train.steps to be compared on the way")
    if config.population_at_once is not None and config.population is None:
        refuse("population_at_once", "not read without sweep.population; remove it, or give sweep.population")
    if config.population is not None:
        first = sweep.run_config({key: one.ends()[0] for key, one in sweep.space.items()}, sweep.directory)
        if problem := together.problem(config.command, list(sweep.space), first):
            refuse("population", problem)
    if config.prune_after is not None and (
        config.pruner == "none" or config.prune_after >= (sweep.steps or 0)
    ):
        refuse("prune_after", f"not read with pruner {config.pruner} and train.steps {sweep.steps}")


def _check_values(sweep: Sweep) -> None:
    """Both ends of every range and every choice make a valid run, one key at a time, and some run reads each key."""
    first = {key: one.ends()[0] for key, one in sweep.space.items()}
    corners = [first | {key: value} for key, one in sweep.space.items() for value in one.ends()]
    try:
        for chosen in corners:
            sweep.run_config(chosen, sweep.directory)
        for key, one in sweep.space.items():
            _check_read(sweep, key, [chosen | {key: value} for chosen in corners for value in one.ends()])
    except UserError as error:
        own = str(error).partition(" ")[0].rstrip(":") in sweep.space  # else a key of the base configuration
        raise UserError(f"{'sweep.' if own else ''}{error}") from None


def _check_read(sweep: Sweep, key: str, runs: list[JSONObject]) -> None:
    problem = None
    for chosen in runs:
        try:
            unread.check(
                sweep.run_config(chosen, sweep.directory), {tuple(key.split(".")): COMMAND_LINE}, COMMAND_LINE
            )
        except UserError as error:
            problem = str(error).replace(f"[{COMMAND_LINE}]", f"[{sweep.space[key].place}]")
            continue
        return
    if problem:
        raise UserError(problem)


def _put(values: JSONObject, path: Sequence[str], value: object) -> None:
    for name in path[:-1]:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[path[-1]] = copy.deepcopy(value)
