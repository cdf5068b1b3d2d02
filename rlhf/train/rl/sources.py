"""Where the rewards of a reinforcement-learning run come from, and the reward run a run without one writes for itself.

Three sources: a fitted reward run; `columns` with a `population`, which become a reward run in OUTPUT/rewards (axis k is
column k, standardised once over samples of π_ref; the prior is the one given; nobody has answered yet), so that people
can be asked, served and evaluated as after a fit; `columns` alone, one policy for all, rewards as they are.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rewards import jsonl
from rewards.basis import projection, store
from rewards.basis.belief import Belief
from rewards.basis.rails import Rails
from rewards.basis.rails import write as write_rails
from rewards.basis.store import FittedBasis, RewardRun, load_reward_run
from rewards.data.completions import read_completions
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods.columns import check_spread, column_basis, moments
from rewards.people import population
from rewards.people.pool import Question, make_pool, write_pool
from rewards.people.population import People, load_people
from rewards.types import Preferences, RewardBasis
from rlhf.mesh.devices import apart, under_mesh
from rlhf.phi import encoder, on_device, on_host, sentence
from rlhf.phi.columns import table
from rlhf.phi.columns.arguments import IDS, check, check_reads_completions
from rlhf.phi.columns.config import ColumnConfig, plain
from rlhf.phi.columns.functions import load_function
from rlhf.phi.columns.jit import only_jit
from rlhf.phi.reward import Reward
from rlhf.policy import store as policy_store
from rlhf.policy.conditioning import Population, UserShares
from rlhf.policy.generation import Drawing, complete
from rlhf.policy.rails import in_force, recorded
from rlhf.run import processes
from rlhf.run.directory import Run
from rlhf.train.guardrails.config import measured_columns
from rlhf.train.rl.config import RLConfig
from rlhf.train.rl.prompts import PromptSet

FOLDER, SAMPLES = "rewards", "reference.jsonl"
PROBED = ("judge", "votes")  # rewards without a truth: each has a check that switches it off
PROBE_SIZE = (8, 4)  # prompts and samples of π_ref for that check


@dataclasses.dataclass(frozen=True)
class Source:
    """Rewards and people of a run.

    Attributes:
      names: K labels. run: the reward run, None for one policy for all.
      people: whose coefficients are drawn, or float32[K] weights without people; shares: which share of the groups for whom.
      reward: what computes φ; one that `can.compiled` is a part of `update.iterate`, another runs between its two halves.
      rails: what policy.json says of the rails. checks: what guardrails check completions for; None for nothing.
    """

    names: tuple[str, ...]
    run: FittedBasis | None
    people: Population | jnp.ndarray
    shares: UserShares | None
    reward: Reward
    rails: JSONObject = dataclasses.field(default_factory=dict)
    checks: Reward | None = None


@under_mesh
def prepare(
    config: RLConfig,
    base: policy_store.Base,
    prompts: PromptSet,
    job: Run | None = None,
    rewards: FittedBasis | None = None,
    people: People | None = None,
) -> Source:
    """Open, build or rebuild the rewards of a run, and what its guardrails check.

    Args:
      job: the run directory, which keeps the rewards of a population; None in memory.
      rewards, people: a basis and whom it was fitted on, instead of the directory that the configuration names.
    Raises:
      UserError: no such run, a basis that gives no rewards for new completions, a column that cannot be computed.
    """
    source, guard = _rewards(config, base, prompts, job, rewards, people), config.guardrails
    if guard is None:
        return source
    columns = _with_model(config, measured_columns(guard))
    check_columns(columns, prompts.rows, tokens=True)
    refuse_unreliable(config, columns, base, prompts)
    return dataclasses.replace(source, checks=_plain(config, columns, base)[1] if columns else None)


def _rewards(
    config: RLConfig,
    base: policy_store.Base,
    prompts: PromptSet,
    job: Run | None,
    rewards: FittedBasis | None,
    people: People | None,
) -> Source:
    if rewards is None and config.rewards is None:
        check_functions(config, prompts.rows)
    if rewards is not None and people is not None:
        check_functions(config, prompts.rows, rewards)
        return _personal(config, rewards, people, base)
    if config.rewards is not None:
        run = load_reward_run(config.rewards)
        check_functions(config, prompts.rows, run)
        return _stored(config, run, base)
    columns = _with_model(config, config.columns)
    if config.population is not None:
        if job is None:
            raise UserError("population: its rewards are kept in the run directory; give output_dir")
        directory = job.directory / FOLDER
        # Before the first checkpoint nothing depends on the folder, and it may hold what a mended column replaces.
        if not (job.resumed and any((job.directory / "checkpoints").glob("*/COMPLETE"))):
            build_run(config, directory, columns, base, prompts)
        return _stored(config, load_reward_run(directory), base)
    refuse_unreliable(config, columns, base, prompts)
    names, reward = _plain(config, columns, base)
    weights = np.ones(len(names)) if config.weights is None else np.array(config.weights)
    if len(weights) != len(names):
        raise UserError(
            f"weights: {len(weights)} numbers for the outputs {', '.join(names)}; give one an output"
        )
    return Source(names, None, jnp.asarray(weights, jnp.float32), None, reward)


def _plain(
    config: RLConfig, columns: Sequence[ColumnConfig], base: policy_store.Base
) -> tuple[tuple[str, ...], Reward]:
    """Columns as they are: the names of their outputs, and what computes them."""
    settings = table.as_they_are(columns)
    names = tuple(settings["names"])
    if only_jit(settings["columns"]):
        return names, on_device.compiled_columns(settings, None)
    with apart():
        features = on_host.ColumnFeatures(settings, None, config.host)
    return names, _on_host(config, features, base, config.rollout.completions)


def _on_host(
    config: RLConfig, features: on_host.Features, base: policy_store.Base, group_size: int = 1
) -> Reward:
    return on_host.HostReward(features, base.tokenizer, group_size, config.rollout.skip_special_tokens)


def _stored(config: RLConfig, run: RewardRun, base: policy_store.Base) -> Source:
    refuse_known_answers_only(run)
    return _personal(config, run, load_people(run), base)


def refuse_known_answers_only(run: FittedBasis) -> None:
    """Before the people of a run are read: what is wrong with the choice of rewards comes first."""
    kind = run.basis.encoder["kind"]
    if kind not in encoder.READ_NEW_TEXTS:
        raise UserError(
            f"rewards: {getattr(run, 'directory', 'these')} has encoder.kind {kind}, which gives no rewards "
            "for new completions; fit the rewards with encoder.kind=lm, sentence or columns"
        )


def _personal(config: RLConfig, run: FittedBasis, people_of: People, base: policy_store.Base) -> Source:
    refuse_known_answers_only(run)
    given, run = run, in_force(config.rails, run)
    names = run.basis.gauge.names
    drawn_from, shares = drawn_people(config, run.prior, list(people_of.posteriors), run.rails)
    rails = recorded(config.rails, given)
    return Source(names, run, drawn_from, shares, _reward_of(config, run, base), rails)


def drawn_people(
    config: RLConfig, prior: Belief, posteriors: list[Belief], rails: Rails | None
) -> tuple[Population, UserShares]:
    """Whose coefficients are drawn, and which share of the groups for whom."""
    users = config.users
    drawn_from = Population.from_posteriors(prior, posteriors, users.extreme_sd, rails, config.kl.coef)
    if (
        not posteriors
    ):  # the share of people who answered goes to the prior, of which they would have been drawn
        users = dataclasses.replace(users, posterior=0.0, prior=min(users.prior + users.posterior, 1.0))
    return drawn_from, UserShares.of(users)


def with_numbers(config: RLConfig, source: Source) -> Source:
    """The same rewards for a run that differs in numbers (`rlhf.sweep.together`): they say whose coefficients are drawn."""
    if not isinstance(source.run, RewardRun):
        return source
    people_of, run = load_people(source.run), source.run
    drawn_from, _ = drawn_people(config, run.prior, list(people_of.posteriors), run.rails)
    return dataclasses.replace(source, people=drawn_from)


def _reward_of(config: RLConfig, run: FittedBasis, base: policy_store.Base) -> Reward:
    """φ of a reward run: compiled where it reads the policy's own tokens, else on the host."""
    settings = run.basis.encoder
    if settings["kind"] == "lm":
        compiled = on_device.compiled_basis(run, base)
        if compiled is not None:
            return compiled
        with apart():
            return _on_host(config, on_host.EncoderFeatures(run.basis), base)
    if settings["kind"] == sentence.KIND:
        with apart():
            return _on_host(config, sentence.SentenceFeatures(run.basis), base)
    if only_jit(settings["columns"]):
        return on_device.compiled_columns(settings, run.basis)
    with apart():
        features = on_host.ColumnFeatures(settings, run.basis, config.host)
    return _on_host(config, features, base, config.rollout.completions)


def _with_model(config: RLConfig, columns: Sequence[ColumnConfig]) -> list[ColumnConfig]:
    """Jittable columns read the tokens of the model that is trained."""
    return [
        dataclasses.replace(column, model=config.model.name)
        if column.kind == "jit" and column.model is None
        else column
        for column in columns
    ]


def check_functions(config: RLConfig, rows: on_host.PromptRows, basis: FittedBasis | None = None) -> None:
    """Import reward functions and compare what they ask for with what there will be, before anything is loaded or sampled.

    Args:
      basis: fitted rewards, whose functions are then meant instead of the configuration's.
    Raises:
      UserError: a function cannot be imported, needs what there is not, or cannot tell completions apart.
    """
    if basis is None:
        settings = [plain(column) for column in config.columns]
    else:
        settings = [entry["settings"] for entry in basis.basis.encoder.get("columns", [])]
    # The rewards of a population are measured on texts first, where there are no tokens.
    _check_settings(settings, rows, basis is None and config.population is None)


def check_columns(columns: Sequence[ColumnConfig], rows: on_host.PromptRows, *, tokens: bool) -> None:
    """`check_functions` of other columns; `tokens` where they are shown token ids."""
    _check_settings([plain(column) for column in columns], rows, tokens)


def _check_settings(settings: list[JSONObject], rows: on_host.PromptRows, tokens: bool) -> None:
    columns = [*rows.columns, *([IDS] if tokens else [])]
    for spec in [one["function"] for one in settings if one["kind"] == "function"]:
        function = load_function(spec)
        check_reads_completions(function, spec)
        check(function, spec, columns, rows.source)


def columns_read(config: RLConfig) -> dict[str, dict[str, str]]:
    """What the columns of a configuration are made of, for `rlhf.run.inputs`."""
    checks = () if config.guardrails is None else measured_columns(config.guardrails)
    return table.made_of(_with_model(config, (*config.columns, *checks)))


def refuse_unreliable(
    config: RLConfig, columns: Sequence[ColumnConfig], base: policy_store.Base, prompts: PromptSet
) -> None:
    """Let judges and votes pass their own checks before anything is trained on them.

    Raises:
      UserError: a judge reads the order of two texts, or majorities are wrong on the probe prompts.
    """
    own = [column for column in columns if column.kind in PROBED]
    if own:
        samples = reference_samples(config, base, prompts, *PROBE_SIZE)
        _refuse_off(_measured(samples, own)[1])


def _measured(samples: Preferences, columns: Sequence[ColumnConfig]) -> tuple[np.ndarray, JSONObject]:
    """`table.prepare` by one process for all: a judge may answer twice in two ways."""

    def prepared() -> tuple[list[list[float]], JSONObject]:
        with apart():
            values, settings = table.prepare(samples, columns)
        return values.tolist(), settings

    if not processes.several():
        return table.prepare(samples, columns)
    values, settings = processes.from_writer(prepared)
    return np.array(values, np.float64), settings


def _refuse_off(settings: JSONObject) -> None:
    if settings["dropped"]:
        off = settings["dropped"][0]
        raise UserError(f"column {off['name']!r}: switched off, {off['reason']}; mend or remove it")


def build_run(
    config: RLConfig,
    directory: Path,
    columns: Sequence[ColumnConfig],
    base: policy_store.Base,
    prompts: PromptSet,
) -> None:
    """Write a complete reward run whose axes are the columns and whose prior is the configured one.

    Raises:
      UserError: a column is switched off by its own check, has several outputs, or tells no two samples of π_ref apart.
    """
    wanted = config.population
    assert wanted is not None, "only columns of people are made a reward run"
    samples = (
        read_completions(wanted.reference)
        if wanted.reference is not None
        else reference_samples(config, base, prompts, wanted.prompts, wanted.completions)
    )
    values, settings = _measured(samples, columns)
    _refuse_off(settings)
    names = tuple(settings["names"])
    if len(names) != len(wanted.mean):
        raise UserError(
            f"population.mean: {len(wanted.mean)} numbers for the outputs {', '.join(names)}; give one an output"
        )
    mean, spread = moments(values, samples.item_prompt)
    check_spread(spread, mean, names, samples.source)
    if not wanted.standardise:
        mean, spread = np.zeros_like(mean), np.ones_like(spread)
    settings["reference"] = {
        "source": samples.source,
        "items": len(values),
        "mean": mean.tolist(),
        "sd": spread.tolist(),
    }
    basis = column_basis(names, mean, spread, settings, settings["fingerprint"])
    prior = wanted.prior
    rails = None
    if wanted.rails:
        rails = projection.stated_for(wanted.rails, names, store.basis_hash(basis), prior, "population.rails")
    phi, pairs = ((values - mean) / spread).astype(np.float32), as_pairs(samples)
    # Everything is computed: from here on only files are written.
    processes.from_writer(
        lambda: _written(directory, samples, basis, prior, rails, make_pool(pairs, phi), len(names))
    )


def _written(
    directory: Path,
    samples: Preferences,
    basis: RewardBasis,
    prior: Belief,
    rails: Rails | None,
    pool: Sequence[Question],
    size: int,
) -> None:
    rows = zip(samples.item_prompt, samples.item_text, strict=True)
    jsonl.write(
        directory / SAMPLES,
        (
            {"prompt": jsonl.prompt_value(samples.prompts[prompt]), "completion": text}
            for prompt, text in rows
        ),
    )
    identity = store.save_reward_run(directory, basis, prior, extra={"lapse": 0.0})
    if rails is not None:
        write_rails(directory, rails, "the configuration of the training run")
    population.save_people(directory, identity, [], np.zeros((0, size)), np.zeros((0, size, size)), [])
    write_pool(directory, identity, pool)


def reference_samples(
    config: RLConfig, base: policy_store.Base, prompts: PromptSet, num_prompts: int, num_samples: int
) -> Preferences:
    """Completions of π_ref for the first prompts of the run."""
    graphdef, params, _ = policy_store.base_state(base, None, config.model.dtype, False)
    policy = policy_store.Policy(base, graphdef, params, None, None, {})
    index = np.repeat(np.arange(min(num_prompts, len(prompts.starts))), num_samples)
    rows = prompts.rows.take(index)
    completions = complete(
        policy,
        rows.prompts,
        None,
        Drawing(config.rollout.max_new_tokens, skip_special_tokens=config.rollout.skip_special_tokens),
        seed=config.seed,
    )
    return rows.with_texts([completion.text for completion in completions])


def as_pairs(samples: Preferences) -> Preferences:
    """Every sample against the next different one of its prompt: what people may be asked."""
    chosen, rejected = [], []
    first: dict[tuple[int, str], int] = {}
    last: dict[int, int] = {}
    for item, key in enumerate(zip(samples.item_prompt.tolist(), samples.item_text, strict=True)):
        own = first.setdefault(key, item)
        before = last.get(key[0], own)
        if before != own:
            chosen.append(before)
            rejected.append(own)
        last[key[0]] = own
    if not chosen:
        raise UserError(
            f"{samples.source}: no prompt has two different samples of π_ref, so there is nothing to ask people about; "
            "give more prompts or population.completions"
        )
    return dataclasses.replace(
        samples, chosen=np.array(chosen, np.int32), rejected=np.array(rejected, np.int32)
    )
