"""`chorus train ppo|grpo`: prompts and rewards → one policy conditioned on coefficients (or an ordinary one).

A step: prompts by number, people by the run's key, completions, rewards, advantages, updates. With a compiled reward the
step is one program; otherwise the completions are decoded and rewarded between its two halves.
"""

from collections.abc import Sequence
from pathlib import Path

from rewards.basis.store import FittedBasis, load_reward_run
from rewards.data.completions import read_completions
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people.population import People, load_people
from rlhf.mesh.devices import under_mesh
from rlhf.phi.on_host import PromptRows
from rlhf.policy import store as policy_store
from rlhf.run import inputs, processes
from rlhf.run.directory import Run
from rlhf.train import optim
from rlhf.train.callbacks import Callback
from rlhf.train.diagnosis.detectors import diagnose
from rlhf.train.dpo import Rewards
from rlhf.train.dpo_parts import read_of
from rlhf.train.hints import lessons as rl_hints
from rlhf.train.hints.lessons import Lessons
from rlhf.train.loop import run_steps
from rlhf.train.rl import critic_store as rl_critic
from rlhf.train.rl import prompts as rl_data
from rlhf.train.rl import sources as rl_rewards
from rlhf.train.rl.config import GRPOConfig, PPOConfig, RLConfig
from rlhf.train.rl.prompts import PromptSet
from rlhf.train.rl.ready import kind_of, ready
from rlhf.train.rl.size import check_sampling
from rlhf.train.rl.sources import Source
from rlhf.train.rl.watch import Watch
from rlhf.train.sft import open_base, read_by
from rlhf.train.trained import Trained, close, finished, run_callbacks, stored

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
        inputs.check(job, read_for(config, base, rows, basis, people), begun=done or None)
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


def read_for(
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
    begun = ready(config, base, prompts, source, lessons, directory, own)
    state = run_steps(
        begun.trainer.state,
        begun.trainer.step,
        begun.batch_of,
        begun.config.train,
        tokens_per_step=begun.tokens_per_step,
        callbacks=callbacks,
        evaluate=begun.evaluation,
    )
    return begun.trained(state)
