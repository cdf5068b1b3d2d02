"""`chorus train ppo|grpo`: prompts and rewards → one policy conditioned on coefficients (or an ordinary one).

A step: prompts by number, people by the run's key, completions, rewards, advantages, updates. With a compiled reward the
step is one program; otherwise the completions are decoded and rewarded between its two halves.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rewards.basis.store import FittedBasis, RewardRun, load_reward_run
from rewards.data.completions import read_completions
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people.population import People, load_people
from rlhf.mesh import place
from rlhf.mesh.devices import under_mesh
from rlhf.phi.columns import arguments
from rlhf.phi.on_host import PromptRows
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams, structure
from rlhf.run import inputs, processes
from rlhf.run.directory import Run
from rlhf.run.record import traced
from rlhf.train import held_out, memory, optim
from rlhf.train.callbacks import Callback
from rlhf.train.diagnosis.detectors import diagnose
from rlhf.train.dpo import Rewards
from rlhf.train.dpo_parts import adapter_spec, read_of
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.hints import lessons as rl_hints
from rlhf.train.hints.lessons import Lessons
from rlhf.train.length import in_steps
from rlhf.train.loop import run_steps
from rlhf.train.rl import (
    critic_store as rl_critic,
)
from rlhf.train.rl import (
    prompts as rl_data,
)
from rlhf.train.rl import (
    samples as rl_samples,
)
from rlhf.train.rl import (
    sources as rl_rewards,
)
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import GRPOConfig, PPOConfig, RLConfig
from rlhf.train.rl.critic import Critic, init_critic
from rlhf.train.rl.held_out import Given, Measured, divided
from rlhf.train.rl.prompts import PromptSet
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.settings import RLProgram
from rlhf.train.rl.size import check_sampling, memory_line
from rlhf.train.rl.sources import Source
from rlhf.train.rl.watch import Watch
from rlhf.train.sft import base_record, fresh_policy, open_base, read_by, trained_parts
from rlhf.train.trained import Trained, close, finished, run_callbacks, stored

_LOG = logging.getLogger("chorus")
SHOWN = (
    "train/reward",
    "eval/reward",
    "train/kl_ref_nats",
    "train/completion_tokens",
    "train/eos_share",
    "train/token_entropy_nats",
    "perf/step_seconds",
)


@under_mesh
def run(
    config: PPOConfig | GRPOConfig,
    *,
    rows: PromptRows | None = None,
    base: policy_store.Base | None = None,
    rewards: Rewards | None = None,
    callbacks: Sequence[Callback] = (),
    own: optim.Own = None,
) -> JSONObject:
    """Train and write the run directory; returns its `metrics.json`. A finished run is not trained again.

    Args:
      rows: the prompts. base: the model. rewards: run directory → a basis and whom it was fitted on. What is None is read
        from where the configuration says. callbacks: called by the loop besides the run's own. own: as in `train`.
    """
    kind = kind_of(config)
    with Run.open(config.output_dir, config, kind) as job:
        done = finished(job)
        if rows is None:
            data = config.data
            rows = rl_data.read_prompts(data.path, data.split, data.columns)
        if config.hints is not None and processes.several():
            raise UserError("hints: kept by one process only; remove them, or give --processes 1")
        basis, people = (None, None) if rewards is None else rewards(job.directory)
        inputs.check(job, _read(config, base, rows, basis, people), begun=done or None)
        if done:
            return stored(job, diagnose)
        if basis is None and config.rewards is None:
            rl_rewards.check_functions(config, rows)
        base = base or open_base(config)
        prompts = rl_data.prompt_set(config, base, rows)
        check_sampling(config, base, prompts.tokens.shape[1])
        source = rl_rewards.prepare(config, base, prompts, job, basis, people)
        lessons = None if config.hints is None else rl_hints.prepare(config, job, base, source)
        beside = run_callbacks(
            job, config.train, kind, callbacks, track=config.track, shown=SHOWN, watch=[Watch(job.directory)]
        )
        trained = train(config, base, prompts, source, beside, lessons, directory=job.directory, own=own)
        trained.save(job.directory)
        return close(job, trained, diagnose)


def _read(
    config: RLConfig,
    base: policy_store.Base | None,
    rows: PromptRows,
    basis: FittedBasis | None,
    people: People | None,
) -> inputs.Inputs:
    """What a run reads: prompts, model, rewards (fitted, or the columns they are made of) and the critic it starts from."""
    if basis is None and config.rewards is not None:
        run = load_reward_run(config.rewards)
        rl_rewards.refuse_known_answers_only(run)
        basis, people = run, load_people(run)
    found = read_by(config, rows, base) | read_of(basis, people) | rl_rewards.columns_read(config)
    if config.population is not None and config.population.reference is not None:
        place = config.population.reference
        found["population.reference"] = {place: inputs.content(read_completions(place))}
    if isinstance(config, PPOConfig) and config.critic.start is not None:
        found["critic.start"] = {config.critic.start: rl_critic.identity(config.critic.start)}
    return found


def kind_of(config: RLConfig) -> str:
    """`ppo` or `grpo`."""
    return "ppo" if isinstance(config, PPOConfig) else "grpo"


@under_mesh
def train(
    config: PPOConfig | GRPOConfig,
    base: policy_store.Base,
    prompts: PromptSet,
    source: Source,
    callbacks: Sequence[Callback] = (),
    lessons: Lessons | None = None,
    *,
    directory: Path | None = None,
    own: optim.Own = None,
) -> Trained:
    """Train in memory.

    Args:
      config: everything but its paths counts.
      prompts, source: what `prompts.prompt_set` and `sources.prepare` give. lessons: hints beside the rewards.
      callbacks: called by the loop. directory: keeps samples.jsonl, hints.jsonl and the critic; None keeps nothing.
      own: a user's own optimiser.
    """
    memory.check_pass(config)
    prompts, unseen = divided(config.train, prompts)
    updates_a_step = config.algorithm.epochs * config.algorithm.minibatches
    config = in_steps(config, len(prompts.starts), config.rollout.prompts_per_step, updates_a_step)
    spec = adapter_spec(config, None if source.run is None else source.names, base)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    if config.kl.controller == "adaptive" and config.rows > config.kl.horizon:
        _LOG.warning(
            f"kl.horizon: {config.kl.horizon:g} is below the {config.rows} completions of an iteration; β reacts as if it "
            "were as many, raise it"
        )
    trainer = Trainer(config, base, graphdef, params, run_key, source, prompts, directory, lessons, own)
    hinted = (0, 0) if lessons is None else lessons.size
    memory_line(config, base, trainer.state, prompts.tokens.shape[1], hinted)
    if lessons is not None and directory is not None:
        lessons.write(directory)
    evaluation = None
    if unseen is not None:
        given = Given(
            trainer.people,
            trainer.frozen,
            trainer.stop,
            trainer.settings,
            trainer.program,
            source.reward,
            trainer.state_at,
        )
        measured = Measured(config, unseen, given)

        def measure(state: updates.RLState) -> dict[str, jax.Array]:
            return named(measured(state), source.names)

        evaluation = held_out.HeldOut(config.train, measure, directory)
    state = run_steps(
        trainer.state,
        trainer.step,
        rl_data.batches(config, prompts),
        config.train,
        tokens_per_step=lambda metrics: metrics["train/completion_tokens"] * config.rows,
        callbacks=callbacks,
        evaluate=evaluation,
    )
    chosen = {}
    if evaluation is not None:
        state, chosen = evaluation.chosen(state), evaluation.record()
    trained = dict(state.params)
    critic = trained.pop("critic", None)
    record = (
        base_record(config, base, kind_of(config)) | _record(config, source, float(state.kl_coef)) | chosen
    )
    if isinstance(config, PPOConfig) and directory is not None:
        purpose = _purpose(config, base, source)
        record["critic"] = rl_critic.save(directory, trainer.critic_spec, critic, purpose)
    params = params._replace(**trained)
    return Trained(base, params, spec, record, config.tune.mode == "full", len(prompts.starts))


class Trainer:
    """What stays the same from step to step, and the step."""

    def __init__(
        self,
        config: PPOConfig | GRPOConfig,
        base: policy_store.Base,
        graphdef: nnx.GraphDef,
        params: PolicyParams,
        key: jax.Array,
        source: Source,
        prompts: PromptSet,
        directory: Path | None,
        lessons: Lessons | None = None,
        own: optim.Own = None,
    ):
        self.config, self.source, self.prompts, self.lessons = config, source, prompts, lessons
        self.settings = place.everywhere(traced(config.settings))
        self.term = None if lessons is None else lessons.term(graphdef)
        self.program = RLProgram(
            graphdef=graphdef,
            reference=structure(base.config, base.stages, None, config.model.dtype, config.model.remat)[0],
            shares=source.shares,
            filtered=config.rollout.filtered,
            dtype=config.model.dtype,
            extra=self.term,
            own=own,
            skip=config.train.on_nonfinite == "skip",
        )
        full = config.tune.mode == "full"
        trained = trained_parts(params, full, conditioned=source.run is not None)
        # The state is donated: what is trained must share no buffer with what stays, π_ref above all.
        trained = jax.tree.map(jnp.copy, trained)
        self.frozen = params
        if isinstance(config, PPOConfig):
            trained["critic"], self.critic_spec = _critic(config, base, params, source, key)
        guard = None
        if config.guardrails is not None:
            guard = GuardState.start(config.guardrails, source.people, config.kl.coef, config.rail.eta)
        self.state = updates.init_state(trained, self.settings, key, own, guard)
        sampling = config.rollout.sampling(config.rows)
        stop = np.array(base.tokenizer.eos_ids, np.int32)
        people, self.sampling, stop = place.sent((source.people, place.batch(sampling), stop))
        self.people, self.stop = place.everywhere((people, stop))
        self.samples = None
        if directory is not None:
            self.samples = rl_samples.Samples(directory, base.tokenizer, source, prompts.rows, config)

    def step(
        self, state: updates.RLState, batch: rl_data.PromptBatch
    ) -> tuple[updates.RLState, dict[str, jax.Array]]:
        """One iteration; the state is donated."""
        shared = (batch.prompts, self.people, self.frozen)
        rest = (self.sampling, self.stop, self.settings)
        # The teacher is the policy of the run's start, also in a session that goes on.
        extra = None
        if self.lessons is not None and self.term is not None:
            extra = self.lessons.rows(batch.number, self.frozen, self.term)
        reward, checks, extra_columns = self.source.reward, self.source.checks, {}
        if reward.kernel is not None and (checks is None or checks.kernel is not None):
            state, metrics, rollout, rewards = updates.iterate(
                state,
                *shared,
                reward.arrays,
                *rest,
                program=self.program,
                reward=reward.kernel,
                extra=extra,
                checks=None if checks is None else checks.kernel,
                check_arrays=None if checks is None else checks.arrays,
            )
        else:
            rollout = updates.draw(state, *shared, *rest, program=self.program)
            rows = self.prompts.rows.take(batch.index)
            try:
                with arguments.training(self.state_at(batch.number), len(batch.index)) as said:
                    given = reward(rollout, rows)
                    checked = self.checked(rollout, rows)
            except UserError as error:
                raise UserError(f"step {batch.number + 1}: {error}") from None
            rewards = place.sent(place.batch(given.phi))
            state, metrics = updates.update(
                state,
                rollout,
                rewards,
                self.frozen,
                self.settings,
                program=self.program,
                extra=extra,
                people=self.people,
                checks=checked,
            )
            counts = given.left_out.values()
            metrics["train/left_out_share"] = jnp.float32(
                sum(counts) / (len(batch.index) * len(self.source.names))
            )
            metrics |= {name: jnp.float32(value) for name, value in said.means("train").items()}
            extra_columns = said.extra
        if self.samples is not None:
            self.samples.take(batch, rollout, rewards, extra_columns)
        return state, named(metrics, self.source.names)

    def checked(self, rollout: Rollout, rows: PromptRows) -> jax.Array | None:
        """What the checks of guardrails say of completions, float32[B, C]; None without guardrails."""
        if self.config.guardrails is None:
            return None
        checks = self.source.checks
        if checks is None:
            return updates.check_values(None, None, rollout)
        values = place.sent(place.batch(checks(rollout, rows).phi))
        return values if values.ndim == 2 else values.sum(axis=1)

    def state_at(self, number: int, *, evaluation: bool = False) -> arguments.TrainerState:
        """What reward functions see of the training after `number` steps."""
        visited = number * self.config.rollout.prompts_per_step
        steps = self.config.train.steps
        assert steps is not None, "settled with the length"
        return arguments.TrainerState(number, steps, visited / len(self.prompts.starts), evaluation)


def named(metrics: dict[str, jax.Array], names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Numbered outputs of the basis under their names: `train/reward/0` becomes `train/reward/NAME`."""
    words = {str(k): name.replace(" ", "_").replace("/", "_") for k, name in enumerate(names)}

    def renamed(metric: str) -> str:
        head, _, last = metric.rpartition("/")
        return f"{head}/{words[last]}" if last in words else metric

    return {renamed(metric): value for metric, value in metrics.items()}


def _critic(
    config: PPOConfig, base: policy_store.Base, params: PolicyParams, source: Source, key: jax.Array
) -> tuple[Critic, JSONObject]:
    """A fresh critic, or that of `critic.start`; and what it is, for its record."""
    if config.critic.from_rewards and not source.reward.can.beginnings:
        raise UserError(
            "critic.from_rewards true: only rewards fitted over mean hidden states of a model that reads the policy's tokens "
            "(encoder.kind lm, encoder.pool mean) say something of half a completion; set it to false"
        )
    if config.critic.from_rewards and source.checks is not None and source.checks.kernel is None:
        raise UserError(
            "critic.from_rewards true: rewards stay inside the compiled iteration, and guardrails.checks are computed outside "
            "it; choose checks of kind jit or set critic.from_rewards to false"
        )
    num_basis, personal = len(source.names), source.run is not None
    spec = rl_critic.spec_of(config.critic, num_basis, personal)
    key = jax.random.fold_in(key, 2**32 - 1)  # no iteration has this number
    critic = init_critic(
        config.critic, params, base.config.width, key, num_basis=num_basis, personal=personal
    )
    if config.critic.start is not None:
        critic = rl_critic.load(config.critic.start, spec, critic, _purpose(config, base, source))
    return critic, spec


def _purpose(config: PPOConfig, base: policy_store.Base, source: Source) -> JSONObject:
    rewards = source.run.hash if config.critic.from_rewards and source.run is not None else None
    return rl_critic.made_for(base, source.names, rewards)


def _record(config: RLConfig, source: Source, kl_coef: float) -> JSONObject:
    """What a policy must remember: the price of KL it ended with, and the population it was trained for.

    η moves along with β, so that ρ = η/(β+η), by which coefficients were shrunk in training, stays what it was.
    """
    record: JSONObject = {"beta": kl_coef, "eta": config.rail.eta * kl_coef / config.kl.coef}
    run = source.run
    if run is None:
        return record | {"names": list(source.names), "weights": np.asarray(source.people).tolist()}
    return record | {
        "rewards": str(run.directory.resolve()) if isinstance(run, RewardRun) else None,
        "basis": run.hash,
        "names": list(run.basis.gauge.names),
        "prior": {"mean": run.prior.mean.tolist(), "cov": run.prior.cov.tolist()},
        **source.rails,
        **({"trust_beta": config.kl.coef} if source.rails.get("rails") else {}),
    }
