"""`rlhf.train_sft`, `train_dpo`, `train_ppo`, `train_grpo`: data and rewards in memory → `Policy`.

Without `output_dir` nothing is written. With it the run directory is the one of `chorus train`: it resumes, and every
command reads it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

import rewards.api.fitted as reward_api
from rewards.api.fitted import FittedRewards
from rewards.api.reading import PreferenceSet
from rewards.basis.store import FittedBasis
from rewards.data.read import read_preferences
from rewards.data.sources import Source
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import population
from rewards.people.population import People
from rewards.types import Preferences
from rlhf.api.policies import Policy, load_policy
from rlhf.api.settings import Config, configuration
from rlhf.phi.columns.functions import remember
from rlhf.policy import store as policy_store
from rlhf.run import inputs
from rlhf.train import dpo, sft
from rlhf.train.callbacks import Callback, History, Progress, of_user
from rlhf.train.config import DPOConfig, SFTConfig
from rlhf.train.rl import prompts as rl_prompts
from rlhf.train.rl import sources as rl_sources
from rlhf.train.rl import trainer as rl
from rlhf.train.rl.config import GRPOConfig, PPOConfig
from rlhf.train.rl.size import check_sampling
from rlhf.train.trained import Trained

Data = Preferences | PreferenceSet | Source
RL = {"ppo": PPOConfig, "grpo": GRPOConfig}
"""Preferences, `rewards.read(...)` (its training part is taken), or any source that `rewards.read` takes."""
Model = str | Path | Policy
"""A short name, directory, .gguf file or hub id; the directory of a training run; or a policy."""
OwnCallback = Callback | Callable[[int, Mapping[str, float]], object]
RewardFunction = Callable[..., Sequence[float | None]]
"""TRL's signature: f(prompts, completions, **columns) -> one number a completion; more in docs/columns.md."""
Optimizer = optax.GradientTransformation | Mapping[str, object] | None
MEMORY = "memory"


def train_sft(
    model: Model,
    data: Data,
    *,
    steps: int = 100,
    callbacks: Sequence[OwnCallback] = (),
    optimizer: Optimizer = None,
    output_dir: str | Path | None = None,
    seed: int = 0,
    **keys: object,
) -> Policy:
    """Fine-tune on completions: rows of prompt and completion (or messages), or the preferred side of preferences.

    Args:
      model: what is tuned.
      data: see `Data`.
      steps: optimiser steps; `epochs=` counts passes over the data instead.
      callbacks: `rlhf.Callback` objects, or functions of (step, metrics).
      optimizer: any optax GradientTransformation, whole, with its own rate, schedule and clipping; or the `optimizer`
        section of the configuration as a dict. A resumed run must be given the same.
      output_dir: run directory to write and to resume; None keeps everything in memory.
      seed: of initialisation and data order.
      keys: of `chorus train sft` (docs/configuration.md): a section (`tune={"lora_rank": 8}`), or the last name of a key
        where only one section has it (`learning_rate=1e-4`, `batch_rows=4`).
    Raises:
      UserError: no such keyword (the nearest is named), a bad row, or a model that cannot be read.
    """
    own, keys = _own(optimizer, keys)
    prefs = _parts(data, sft.read_examples)
    config = _config(SFTConfig, "train_sft", model, prefs, output_dir, seed, steps, keys)
    base = _base(model, config, output_dir)
    if output_dir is not None:
        sft.run(config, prefs=prefs, base=base, callbacks=of_user(callbacks), own=own)
        return load_policy(output_dir)
    history = History()
    beside = _in_memory("sft", history, callbacks)
    return _policy(sft.train(config, prefs, base or sft.open_base(config), beside, own), history, None)


def train_dpo(
    model: Model,
    data: Data,
    *,
    rewards: FittedRewards | str | Path | None = None,
    steps: int = 100,
    callbacks: Sequence[OwnCallback] = (),
    optimizer: Optimizer = None,
    output_dir: str | Path | None = None,
    seed: int = 0,
    **keys: object,
) -> Policy:
    """Fine-tune on preferences: one policy conditioned on coefficients, or without `rewards` an ordinary DPO policy.

    Args:
      model: what is tuned; at the same time π_ref.
      data: see `Data`. With rewards every pair teaches every person, so nobody need be named.
      rewards: of `rewards.fit`, or the directory of a reward run.
      steps, callbacks, optimizer, output_dir, seed: as in `train_sft`.
      keys: of `chorus train dpo`: `loss={"kind": "ipo"}`, `conditioner={"kind": "film"}`, `dpo_beta=0.1`, …
    Raises:
      UserError: as `train_sft`.
    """
    own, keys = _own(optimizer, keys)
    prefs = _parts(data, lambda source: read_preferences(source, people=False))
    fitted = _opened(rewards)
    given = {"loss.kind": "dpo"} if fitted is None else {"rewards": _named(fitted)}
    config = _config(DPOConfig, "train_dpo", model, prefs, output_dir, seed, steps, keys, given)
    base = _base(model, config, output_dir)
    if output_dir is not None:
        beside = of_user(callbacks)
        dpo.run(config, prefs=prefs, base=base, rewards=_keeping(fitted), callbacks=beside, own=own)
        return load_policy(output_dir)
    history = History()
    basis, people = _people(fitted)
    beside = _in_memory("dpo", history, callbacks)
    trained = dpo.train(config, prefs, base or sft.open_base(config), basis, people, beside, own=own)
    return _policy(trained, history, fitted)


def train_ppo(
    model: Model,
    data: Data | Sequence[str],
    *,
    rewards: FittedRewards | RewardFunction | Sequence[RewardFunction] | str | Path | None = None,
    steps: int = 100,
    callbacks: Sequence[OwnCallback] = (),
    optimizer: Optimizer = None,
    output_dir: str | Path | None = None,
    seed: int = 0,
    **keys: object,
) -> Policy:
    """PPO with a critic that has one value a basis output; the policy is conditioned on coefficients where there are people.

    Args:
      model: what is tuned; at the same time π_ref.
      data: prompts: texts, rows of `prompt` with any other columns, or preferences, whose distinct prompts are taken.
      rewards: of `rewards.fit`, or the directory of a reward run; or functions with TRL's signature, whose sum (or
        `weights=`) is the reward of everybody.
      steps: iterations: sample, reward, learn.
      callbacks, optimizer, output_dir, seed: as in `train_sft`.
      keys: of `chorus train ppo`: `max_new_tokens=64`, `prompts_per_step=8`, `kl={"coef": 0.05}`, …
    Raises:
      UserError: as `train_sft`; or no rewards.
    """
    return _train_rl("ppo", model, data, rewards, steps, callbacks, optimizer, output_dir, seed, keys)


def train_grpo(
    model: Model,
    data: Data | Sequence[str],
    *,
    rewards: FittedRewards | RewardFunction | Sequence[RewardFunction] | str | Path | None = None,
    steps: int = 100,
    callbacks: Sequence[OwnCallback] = (),
    optimizer: Optimizer = None,
    output_dir: str | Path | None = None,
    seed: int = 0,
    **keys: object,
) -> Policy:
    """Policy gradients without a critic (centred, RLOO, GRPO, REINFORCE++, GDPO); arguments as in `train_ppo`.

    The default estimator subtracts a group's mean and keeps the strength of a taste;
    `algorithm={"kind": "grpo"}` divides by the group's deviation as TRL does.
    """
    return _train_rl("grpo", model, data, rewards, steps, callbacks, optimizer, output_dir, seed, keys)


def _train_rl(
    kind: str,
    model: Model,
    data: Data | Sequence[str],
    rewards: FittedRewards | str | Path | RewardFunction | Sequence[RewardFunction] | None,
    steps: int,
    callbacks: Sequence[OwnCallback],
    optimizer: Optimizer,
    output_dir: str | Path | None,
    seed: int,
    keys: JSONObject,
) -> Policy:
    own, keys = _own(optimizer, keys)
    if "epochs" in keys:  # of the two keys of this name the one that was there first
        keys = {("algorithm.epochs" if name == "epochs" else name): value for name, value in keys.items()}
    rows = _prompt_rows(data)
    given: JSONObject = {"rollout.max_new_tokens": 64, "kl.coef": 0.05}
    functions = [rewards] if callable(rewards) else rewards if isinstance(rewards, (list, tuple)) else []
    fitted = None if functions else _opened(rewards)
    if functions:
        given["columns"] = [_column(function) for function in functions]
    elif fitted is not None:
        given["rewards"] = _named(fitted)
    config = _config(RL[kind], f"train_{kind}", model, rows, output_dir, seed, steps, keys, given)
    base = _base(model, config, output_dir)
    if output_dir is not None:
        beside = of_user(callbacks)
        rl.run(config, rows=rows, base=base, rewards=_keeping(fitted), callbacks=beside, own=own)
        return load_policy(output_dir)
    if config.hints is not None:
        raise UserError(f"train_{kind}: hints are kept in the run directory; give output_dir")
    history = History()
    if functions:
        rl_sources.check_functions(config, rows)
    base = base or sft.open_base(config)
    basis, people = _people(fitted)
    prompts = rl_prompts.prompt_set(config, base, rows)
    check_sampling(config, base, prompts.tokens.shape[1])
    source = rl_sources.prepare(config, base, prompts, None, basis, people)
    beside = _in_memory(kind, history, callbacks, rl.SHOWN)
    return _policy(rl.train(config, base, prompts, source, beside, own=own), history, fitted)


def _own(optimizer: Optimizer, keys: JSONObject) -> tuple[optax.GradientTransformation | None, JSONObject]:
    """A user's own optimiser, and the keys with the section where that was given."""
    if optimizer is None or isinstance(optimizer, optax.GradientTransformation):
        return optimizer, keys
    if not isinstance(optimizer, Mapping):
        raise UserError(
            f"optimizer: a {type(optimizer).__name__} is none; give an optax GradientTransformation, or a dict of keys"
        )
    return None, {"optimizer": dict(optimizer)} | keys


def _config(
    schema: type[Config],
    call: str,
    model: Model,
    data: Preferences | rl_prompts.PromptRows,
    output_dir: str | Path | None,
    seed: int,
    steps: int,
    keys: JSONObject,
    given: Mapping[str, object] | None = None,
) -> Config:
    """The configuration of a run; what is in memory is named by its content where a run directory must know it again."""
    tune = keys.get("tune", {}).get("mode") if isinstance(keys.get("tune"), dict) else None
    full = "full" in (tune, keys.get("mode"), keys.get("tune.mode"))
    name = model if not isinstance(model, Policy) else model.directory or MEMORY
    length = keys.get("train", {}) if isinstance(keys.get("train"), dict) else {}
    by_epochs = keys.keys() & {"epochs", "train.epochs"} or "epochs" in length
    defaults = {
        "seed": int(seed),
        "output_dir": MEMORY if output_dir is None else str(output_dir),
        "data.path": MEMORY if output_dir is None else f"{MEMORY}:{inputs.content(data)}",
        "model.name": str(name),
        "optimizer.learning_rate": 1e-5 if full else 1e-4,
        "train.steps": None if by_epochs else steps,
    }
    return configuration(schema, call, defaults | dict(given or {}), keys)


def _base(model: Model, config: sft.Tuning, output_dir: str | Path | None) -> policy_store.Base | None:
    """The model underneath where it is a policy in memory; None where the configuration names it."""
    if not isinstance(model, Policy) or model.directory is not None:
        return None
    if output_dir is not None:
        raise UserError(
            "model: this policy is in memory only, and a run directory names its model; save the policy and give its "
            "directory"
        )
    if config.model.base is not None:
        raise UserError(
            f"model.base {config.model.base}: this policy is in memory only, and to merge it again its model is read from "
            "disk; save the policy and give its directory, or leave model.base null"
        )
    layers, dtype = config.model.adapter_layers, config.model.dtype
    identity = _identity(model.loaded)
    return policy_store.base_of(
        model.loaded, policy_store.IN_MEMORY, identity, adapter_layers=layers, dtype=dtype
    )


def _identity(policy: policy_store.Policy) -> str:
    """sha256 over the model underneath and everything that was trained."""
    digest = hashlib.sha256(policy.base.fingerprint.encode())
    for leaf in jax.tree.leaves((policy.params.lora, policy.params.conditioner, policy.params.base)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _parts(data: Data, read: Callable[[Source], Preferences]) -> Preferences:
    if isinstance(data, PreferenceSet):
        return data.training
    return data if isinstance(data, Preferences) else read(data)


def _prompt_rows(data: Data | Sequence[str]) -> rl_prompts.PromptRows:
    if not isinstance(data, (Preferences, PreferenceSet)):
        return rl_prompts.read_prompts(data)
    prefs = _parts(data, read_preferences)
    first = np.sort(np.unique(prefs.item_prompt[prefs.chosen], return_index=True)[1])
    columns = {name: [values[row] for row in first] for name, values in prefs.columns.items()}
    asked = tuple(prefs.prompts[prefs.item_prompt[prefs.chosen[row]]] for row in first)
    return rl_prompts.PromptRows(asked, prefs.row[first], columns, prefs.source)


def _opened(rewards: object) -> FittedRewards | None:
    if rewards is None or isinstance(rewards, FittedRewards):
        return rewards
    if not isinstance(rewards, (str, Path)):
        raise UserError(
            f"rewards: a {type(rewards).__name__} gives none; pass rewards.fit(...), a directory, or functions"
        )
    return reward_api.load(rewards)


def _named(fitted: FittedRewards) -> str:
    """By content, not by place: rewards in memory get a directory in the first session of a run."""
    return f"{MEMORY}:{fitted.basis.hash}"


def _keeping(fitted: FittedRewards | None) -> dpo.Rewards | None:
    """Rewards in memory are stored in the run directory: a policy knows its people by them."""
    if fitted is None:
        return None

    def keep(directory: Path) -> tuple[FittedBasis | None, People | None]:
        place = directory / "rewards"
        if fitted.directory is not None:
            return _people(fitted)
        if (place / f"{population.NAME}.json").is_file():  # whole, of an earlier session of this very run
            return _people(reward_api.load(place))
        fitted.write(place)
        return _people(fitted)

    return keep


def _people(fitted: FittedRewards | None) -> tuple[FittedBasis | None, People | None]:
    return (None, None) if fitted is None else (fitted.stored_basis, fitted.population)


def _column(function: object) -> dict[str, str]:
    if not callable(function):
        raise UserError(
            f"rewards: {function!r} is no function; give f(prompts, completions, **columns) or rewards.fit(...)"
        )
    name = getattr(function, "__name__", type(function).__name__)
    return {"name": name, "kind": "function", "function": remember(function)}


def _in_memory(
    title: str, history: History, callbacks: Sequence[OwnCallback], shown: Sequence[str] | None = None
) -> list[Callback]:
    progress = Progress(title) if shown is None else Progress(title, shown)
    return [history, progress, *of_user(callbacks)]


def _policy(trained: Trained, history: History, fitted: FittedRewards | None) -> Policy:
    return Policy(trained.policy(), tuple(history.steps), None, fitted)
