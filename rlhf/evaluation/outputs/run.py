"""`chorus evaluate` with policies: write, judge, compare, report.

samples.jsonl, samples.parquet, samples.csv   every completion: policy, person, prompt, text, worth by judge
matrix.json                                   people by people, by policy
metrics.json, report.html, report.md          the figures, and what they say
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np

from rewards.basis.store import RewardRun, load_reward_run
from rewards.data.prompts import is_text
from rewards.data.prompts import read_prompts as read_lines
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.files import JSONObject, sha256_json, write_json
from rewards.types import Preferences, Prompt
from rlhf.evaluation.outputs import (
    figures,
    formats,
    judging,
    listed,
    people,
    policies,
    samples,
    scoring,
    tables,
)
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.evaluation.outputs.judging import Judged
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.samples import Written
from rlhf.mesh.devices import under_mesh
from rlhf.phi.columns import table
from rlhf.phi.columns.arguments import check_reads_completions
from rlhf.phi.columns.functions import load_function
from rlhf.phi.config import RewardsConfig
from rlhf.phi.reward import PromptRows
from rlhf.policy.store import Policy
from rlhf.report.outputs import write_outputs_report
from rlhf.run import inputs
from rlhf.run.config.common import PeopleDataConfig
from rlhf.run.config.load import load
from rlhf.run.directory import CONFIG, REPORT, RESULT, Run, plain, read_result
from rlhf.train.rl.prompts import read_prompts

_LOG = logging.getLogger("chorus")
MATRIX = "matrix.json"


@dataclasses.dataclass(frozen=True)
class World:
    """What an evaluation is about, read and checked before anything is loaded or written."""

    sources: list[policies.Source]
    reference: policies.Source | None
    run: RewardRun | None
    people: list[Person]
    asked: PromptRows
    prefs: Preferences | None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.asked.prompts


@under_mesh
def run(config: OutputsConfig) -> JSONObject:
    """Evaluate and write everything; a finished evaluation is not repeated while all that it read is as it was then."""
    with Run.open(config.output_dir, config, "outputs") as job:
        world = read(config)
        found = read_by(config, world)
        done = all((job.directory / name).is_file() for name in (REPORT, RESULT, f"{tables.SAMPLES}.jsonl"))
        if job.resumed and done and inputs.unchanged(job, found):
            return job.stored_result()

        exact: dict[str, JSONObject] = {}

        def finish(one: Written, load: Callable[[], Policy]) -> Written:
            if config.enumerate and one.source.conditioned:
                exact[one.source.name] = _exact(
                    world, one.source.load()
                )  # not the copy that writes, whose layers lie apart
            [one] = judging.best([one], world.run, world.asked, world.people)
            return scoring.with_aggregate(one, load, world.prompts) if config.sampling.untouched else one

        written = samples.write_all(config, world.sources, world.prompts, world.people, finish)
        if world.reference is not None:
            written = scoring.with_reference(written, world.reference, world.prompts)
        judged = judging.judge(config, written, world.run, world.asked, world.people)
        for name, found_of in judged.checks.items():
            if found_of["off"]:
                _LOG.warning(f"judge {name!r} is not counted: {found_of['off']}")
            elif partial := found_of.get("self", {}).get("partial"):
                _LOG.warning(f"judge {name!r} does not compare them: {partial}")
        result = summary(config, world, written, judged)
        for name, found_exactly in exact.items():
            result["policies"][name]["exact"] = found_exactly
        rows = list(tables.sample_rows(world.people, world.prompts, written, judged))
        tables.write(job.directory, rows)
        matrices = {
            one.source.name: matrix.tolist()
            for one, matrix in zip(written, judged.matrices, strict=True)
            if matrix is not None
        }
        names = [person.name for person in world.people]
        write_json(job.directory / MATRIX, {"people": names, "policies": matrices})
        write_outputs_report(job.directory, plain(result), matrices, names, rows)
        formats.write_markdown(job.directory, plain(result))
        if config.inspect_logs:
            formats.write_inspect(job.directory, plain(result), [plain(row) for row in rows])
        if config.track:
            formats.track(job.directory, config.track, plain(result), [plain(row) for row in rows])
        inputs.write(job, found)
        job.write_result(result)
        return read_result(job.directory)


def read(config: OutputsConfig) -> World:
    """Resolve what the configuration names.

    Raises:
      UserError: a policy, a person, data or prompts that are not there.
    """
    for judge in config.judges:
        if judge.function is not None:  # imported before anything is written
            check_reads_completions(load_function(judge.function), judge.function)
    run = None if config.rewards is None else load_reward_run(config.rewards)
    place = policies.reference_of(config.policies, config.reference)
    sources = policies.sources(config.policies, place, run)
    data = config.data or _data_of(run)
    in_context = [one for one in sources if one.in_context]
    held_out = run is not None and people.HELD_OUT in config.people
    prefs = (
        None
        if data is None or not (config.prompts is None or held_out or in_context or config.enumerate)
        else _preferences(data)
    )
    whom = people.chosen(config, run, data, prefs)
    if in_context:
        _check_answers(in_context[0], config, whom)
    reference = None if place is None else policies.model(policies.REFERENCE, place)
    if config.enumerate and (
        prefs is None or reference is None or not any(one.conditioned for one in sources)
    ):
        raise UserError(
            "enumerate: needs a policy with people and the data that lists their answers; give them, or leave it out"
        )
    return World(sources, reference, run, whom, _asked(config, prefs), prefs)


def _exact(world: World, policy: Policy) -> JSONObject:
    assert world.run is not None and world.prefs is not None and world.reference is not None, (
        "checked in read"
    )
    place, prefs = world.reference.place, world.prefs
    return listed.exact(policy, place, world.run, prefs, world.people, world.prompts)


def _check_answers(source: policies.Source, config: OutputsConfig, whom: Sequence[Person]) -> None:
    """Somebody has given answers that can stand in a prompt."""
    silent = [one.name for one in whom if not one.answers and one.group != people.POPULATION]
    if not config.answers or not any(one.answers for one in whom) and not silent:
        why = "answers is 0" if not config.answers else "the average person has given no answers"
        raise UserError(
            f"policies: {source.name}: nobody's answers stand in a prompt ({why}); leave @in-context out, or give others"
        )
    if silent:
        raise UserError(
            f"policies: {source.name}: no answers of {silent[0]} are in the data; give data that has them, or other people"
        )


def _data_of(run: RewardRun | None) -> PeopleDataConfig | None:
    """The data that a reward run was fitted on, by its configuration."""
    if run is None or not (run.directory / CONFIG).is_file():
        return None
    return load(run.directory / CONFIG, (), RewardsConfig).data


def _preferences(data: PeopleDataConfig) -> Preferences:
    return read_preferences(data.path, data.split, columns=data.columns)


def _asked(config: OutputsConfig, prefs: Preferences | None) -> PromptRows:
    """The prompts, each once, with the other columns of the row where each stands first, which functions may read."""
    if config.prompts is not None and is_text(config.prompts):
        found = tuple(read_lines(config.prompts))
        rows = PromptRows(found, np.arange(1, len(found) + 1, dtype=np.int32), {}, config.prompts)
    elif config.prompts is not None:
        rows = read_prompts(config.prompts)
    elif prefs is not None:
        number = np.arange(1, len(prefs.prompts) + 1, dtype=np.int32)
        rows = PromptRows(prefs.prompts, number, {}, prefs.source)
    else:
        raise UserError(
            "prompts: none given, and the rewards do not say on which data they were fitted; give prompts"
        )
    first: dict[Prompt, int] = {}
    for place, prompt in enumerate(rows.prompts):
        first.setdefault(prompt, place)
    if (again := len(rows.prompts) - len(first)) > 0:
        _LOG.warning(f"prompts: {again} of {len(rows.prompts)} stand there before; each is asked once")
    return rows.take(np.array(list(first.values()))[: config.max_prompts])


def read_by(config: OutputsConfig, world: World) -> inputs.Inputs:
    """What an evaluation reads, by content."""
    coefs = [[one.name, None if one.coef is None else one.coef.tolist()] for one in world.people]
    if any(one.in_context for one in world.sources):
        coefs.append(["answers", [one.answers for one in world.people]])
    found: dict[str, dict[str, str]] = {
        "policies": {one.name: one.identity for one in world.sources},
        "people": {"people": sha256_json(coefs)},
        "prompts": {"prompts": inputs.content(world.asked)},
    }
    if world.run is not None:
        found["rewards"] = {"basis": world.run.hash}
    if world.reference is not None:
        found["reference"] = {"reference": world.reference.identity}
    if config.judges:
        found["judges"] = {name: sha256_json(parts) for name, parts in table.made_of(config.judges).items()}
    return found


def _described(person: Person) -> JSONObject:
    found: JSONObject = {"name": person.name, "group": person.group}
    return found if person.coef is None else found | {"coefficients": person.coef.tolist()}


def summary(config: OutputsConfig, world: World, written: Sequence[Written], judged: Judged) -> JSONObject:
    """The contents of metrics.json."""
    result: JSONObject = {
        "run_dir": config.output_dir,
        "people": len(world.people),
        "prompts": len(world.prompts),
        "samples": config.sampling.num_samples,
        "completions": sum(int(np.prod(one.shape)) for one in written),
        "temperature": config.sampling.temperature,
        "reference": None if world.reference is None else world.reference.place,
        "judges": list(judged.values),
        "judge_checks": judged.checks,
        "axes": list(judged.axes),
        "persons": [_described(one) for one in world.people],
        **figures.figures(written, judged, world.people, world.prompts, config.sampling.untouched),
    }
    status, text = figures.headline(result)
    return result | {"verdict": {"status": status, "text": text}}
