"""`chorus rewards train`: fine-tune the model as a reward model, and fit basis and population over it.

    OUTPUT/             the training run: adapters or weights (policy/), head (head.safetensors), metrics, checkpoints
    OUTPUT/classifier/  head.num_basis 0: the reward model as Hugging Face's …ForSequenceClassification
    OUTPUT/rewards/     head.num_basis above 0: a reward run as `chorus rewards fit` makes it, over the trained model

The people of the reward run are fitted again over the trained states, by the house's rule, so that questions, new people and
policies work as with any other run; the head's own people teach the model only.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rewards import hashed
from rewards.basis.fit import check_ahead
from rewards.data.read import read_preferences
from rewards.data.split import keep_people, prompt_text, split_people
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.mesh import place
from rlhf.mesh.devices import under_mesh
from rlhf.models.adapters import AdapterSpec
from rlhf.models.hf_values import cut
from rlhf.models.load import read_hf_config
from rlhf.phi import fit
from rlhf.phi.columns.classifier import conversations, pad_of
from rlhf.phi.config import EncoderConfig, EncoderModelConfig, RewardsConfig
from rlhf.phi.methods import AUTO, HOUSE, check_names, make_model
from rlhf.policy import store as policy_store
from rlhf.policy.batches import encode_items
from rlhf.policy.packing import Sequences, pack
from rlhf.run import inputs, processes
from rlhf.run.directory import Run
from rlhf.run.record import traced
from rlhf.train import by_length, held_out, memory, optim
from rlhf.train.callbacks import Callback
from rlhf.train.length import num_steps, settled
from rlhf.train.loop import run_steps
from rlhf.train.reward import step as reward
from rlhf.train.reward.classifier import HEAD, save_classifier
from rlhf.train.reward.config import RewardTrainConfig
from rlhf.train.sft import (
    base_record,
    fresh_policy,
    frozen_parts,
    open_base,
    read_by,
    tokens_per_step,
    trained_parts,
)
from rlhf.train.trained import Trained, close, finished, run_callbacks, stored

REWARDS, CLASSIFIER = "rewards", "classifier"
_WIDEST = 1e6  # margin in logits, as coefficients


def run(
    config: RewardTrainConfig,
    *,
    base: policy_store.Base | None = None,
    callbacks: Sequence[Callback] = (),
) -> JSONObject:
    """Train, then fit or export; returns the `metrics.json` of training, with where the rewards are, and of the fit.

    What is finished is not done again.

    Args:
      base: the model; None reads it from where the configuration says. callbacks: called by the loop besides the run's own.
    """
    prefs, train = comparisons(config)
    if config.head.num_basis:  # what the fit would refuse is said before anything is trained
        check_names(rewards_config(config))
        make_model(rewards_config(config), config.fit.model)
    directory = Path(config.output_dir)
    result = _trained(config, prefs.select(train), base, callbacks)
    if not config.head.num_basis:
        return result | {"classifier": str(save_classifier(directory / CLASSIFIER, directory))}
    return result | {"rewards": fit.fit(rewards_config(config))}


def comparisons(config: RewardTrainConfig) -> tuple[Preferences, np.ndarray]:
    """The preferences, and bool[N], which are trained on: those of training people; all where there are no tastes.

    Raises:
      UserError: tastes are asked for, and comparisons do not say who chose.
    """
    data = config.data
    prefs = read_preferences(data.path, data.split, columns=data.columns, people=bool(config.head.num_basis))
    if not config.head.num_basis:
        return prefs, np.ones(prefs.num_comparisons, bool)
    prefs = keep_people(prefs, data.min_comparisons, data.max_people)
    return prefs, split_people(prefs, data.held_out_people, data.split_seed)[0]


def rewards_config(config: RewardTrainConfig) -> RewardsConfig:
    """What `chorus rewards fit` and `evaluate` read of the same people, over the trained encoder."""
    return RewardsConfig(
        seed=config.seed,
        output_dir=str(Path(config.output_dir) / REWARDS),
        data=config.data,
        model=EncoderModelConfig(name=config.output_dir),
        encoder=EncoderConfig(layer=-1, pool=config.head.pool),
        fit=config.fit,
        evaluation=config.evaluation,
    )


@under_mesh
def _trained(
    config: RewardTrainConfig,
    prefs: Preferences,
    base: policy_store.Base | None,
    callbacks: Sequence[Callback],
) -> JSONObject:
    if processes.several():  # the fit over the trained model is that of one process
        raise UserError(
            f"chorus rewards train: started as {processes.count()} processes; it runs in one, on all of its devices"
        )
    with Run.open(config.output_dir, config, "reward") as job:
        done = finished(job)
        inputs.check(job, read_by(config, prefs), begun=done or None)
        if done:
            return stored(job)
        beside = run_callbacks(
            job,
            config.train,
            "reward",
            callbacks,
            track=config.track,
            shown=("train/loss/pair", "train/accuracy"),
        )
        base = base or open_base(config)
        trained, head = train(config, prefs, base, beside, directory=job.directory)
        hashed.save(job.directory, HEAD, {name: np.asarray(part, np.float32) for name, part in head.items()},
                    {"pool": config.head.pool, "num_basis": config.head.num_basis})  # fmt: skip
        trained.save(job.directory)
        return close(job, trained)


@under_mesh
def train(
    config: RewardTrainConfig,
    prefs: Preferences,
    base: policy_store.Base,
    callbacks: Sequence[Callback] = (),
    own: optim.Own = None,
    *,
    directory: Path | None = None,
) -> tuple[Trained, reward.Head]:
    """Train in memory; the tuned model and its head.

    Args:
      prefs: comparisons to learn from; people are those who occur in them. The rest as in `rlhf.train.sft.train`.
    """
    _check_sizes(config, prefs, base.config.width)
    kept = comparison_rows(config, prefs, base)
    index, other = np.arange(prefs.num_comparisons), None
    if config.train.evaluate_every is not None:
        index, other = _held_out(config, prefs)
    config = settled(config, base, kept.packed.take(index))
    full = config.tune.mode == "full"
    spec = None if full else AdapterSpec(config.tune.lora_rank, config.tune.lora_alpha)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    memory.check_rows(config, base, kept, kept.packed)
    run_key, head_key = jax.random.split(run_key)
    num_users = len(prefs.user_ids) if config.head.num_basis else 0
    head = place.parameters({"score": reward.init_head(config.head, base.config.width, num_users, head_key)})
    settings = place.everywhere(
        traced(
            reward.RewardSettings(
                optimizer=config.optimizer,
                num_steps=num_steps(config),
                centring=config.head.centring,
                prior_sd=config.head.prior_sd,
                num_rows=len(index),
            )
        )
    )
    state = optim.init_state(trained_parts(params, full) | head, settings.optimizer, run_key, own)
    frozen = frozen_parts(params, full)
    program = reward.RewardProgram(
        graphdef, config.head.pool, config.model.dtype, own, skip=config.train.on_nonfinite == "skip"
    )
    step = functools.partial(reward.step, frozen=frozen, settings=settings, program=program)
    evaluation = None
    if other is not None:
        assert config.train.batch_rows is not None, "settled with the length"
        held, real = held_out.in_batches(kept, other, config.train.batch_rows)
        held = place.batch(held._replace(weight=held.weight * real), 1)
        evaluation = held_out.HeldOut(
            config.train,
            lambda state: reward.evaluate(state.params, held, frozen, settings, program=program),
            directory,
        )
    learned = jax.tree.map(lambda leaf: leaf[index], kept)
    state = run_steps(
        state,
        step,
        by_length.batches(config, learned, learned.packed),
        config.train,
        tokens_per_step=tokens_per_step(config, kept.packed),
        callbacks=callbacks,
        evaluate=evaluation,
    )
    record = base_record(config, base, policy_store.REWARD)
    if evaluation is not None:
        state, record = evaluation.chosen(state), record | evaluation.record()
    parts = dict(state.params)
    head = parts.pop("score")
    return Trained(base, params._replace(**parts), spec, record, full, len(index)), head


def _check_sizes(config: RewardTrainConfig, prefs: Preferences, width: int) -> None:
    """Refuse, before anything is trained, more directions than there can be, and what the fit that follows would refuse.

    Raises:
      UserError: the key, its value and the most that it can be; or the answers that are too few.
    """
    num_basis, num_users = config.head.num_basis, len(np.unique(prefs.user_index))
    if num_basis > min(num_users, width):
        raise UserError(
            f"head.num_basis {num_basis}: {num_users} training people and hidden states of {width} numbers differ in at most "
            f"{min(num_users, width)} directions; lower it"
        )
    if num_basis and config.fit.model in (AUTO, HOUSE):
        check_ahead(prefs, width, config.fit)


def comparison_rows(
    config: RewardTrainConfig, prefs: Preferences, base: policy_store.Base
) -> reward.RewardRows:
    """Every comparison as a packed row, in the order of the file.

    Raises:
      UserError: a text that is longer than the model's context, or a margin that is no number.
    """
    if config.head.num_basis:  # as the encoder of the reward run reads them
        prompts, completions = encode_items(prefs, base.tokenizer, base.config.max_positions)
        items = [
            Sequences(prompts[prompt], (completion,))
            for prompt, completion in zip(prefs.item_prompt, completions, strict=True)
        ]
    else:  # as a classifier does
        items = conversations(prefs, base, pad_of(read_hf_config(base.directory)))
    pairs = zip(prefs.chosen.tolist(), prefs.rejected.tolist(), strict=True)
    packed = pack(
        [
            [items[chosen]._replace(completions=items[chosen].completions + items[rejected].completions)]
            for chosen, rejected in pairs
        ]
    )
    count = prefs.num_comparisons
    return reward.RewardRows(
        packed._replace(heads=packed.heads[:, :0], scored_head=packed.scored_head[:, :0]),
        prefs.user_index.astype(np.int32) if config.head.num_basis else np.full(count, -1, np.int32),
        prefs.outcome.astype(np.float32),
        _margins(config.head.margin_column, prefs),
        np.ones(count, np.float32),
    )


def _margins(column: str | None, prefs: Preferences) -> np.ndarray:
    if column is None:
        return np.zeros(prefs.num_comparisons, np.float32)
    if column not in prefs.columns:
        known = ", ".join(sorted(prefs.columns)) or "none besides the texts"
        raise UserError(f"head.margin_column {column!r}: {prefs.source} has no such column; it has {known}")
    values = prefs.columns[column]
    for row, value in zip(prefs.row, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_WIDEST <= value <= _WIDEST:
            raise UserError(
                f"{prefs.source}: row {row}: {column} is {cut(value)}; give a number from {-_WIDEST:g} to {_WIDEST:g}"
            )
    return np.array(values, np.float32)


def _held_out(config: RewardTrainConfig, prefs: Preferences) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are learned from, and rows held out: of prompts, because people's own coefficients are learned."""
    prompts = [prompt_text(prefs.prompts[prompt]) for prompt in prefs.item_prompt[prefs.chosen]]
    found = held_out.divide(config.train.evaluate_share, prefs.source, prompts=prompts)
    return found.train, found.held_out
