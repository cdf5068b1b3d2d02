"""A tiny run of policy-gradient training: policy, state, prompts and people, all of them on the device."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf.models.adapters import AdapterSpec
from rlhf.objectives.advantages import GRPOAlgorithmConfig, PPOAlgorithmConfig, num_channels
from rlhf.objectives.kl_control import KLConfig
from rlhf.policy import scoring
from rlhf.policy.conditioning import UserShares, UsersMixConfig
from rlhf.policy.logprobs import PolicyParams, init_adapters, structure
from rlhf.policy.sampling import SamplingSettings, left_pad
from rlhf.run.record import traced
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.guardrails.config import GuardrailsConfig
from rlhf.train.rl.critic import CriticConfig, init_critic
from rlhf.train.rl.rollout import People, Prompts, Rollout, iteration_keys, people_rows, score
from rlhf.train.rl.settings import RLProgram, RLSettings, RolloutConfig
from rlhf.train.rl.update import RLState, init_state
from tests.rlhf import tiny
from tests.rlhf.train import steps

STOP = (2,)
MIX = UsersMixConfig(posterior=0.5, prior=0.25, extremes=0.0, generic=0.25)


class Task(NamedTuple):
    """Everything but the reward that `iterate` needs."""

    state: RLState
    prompts: Prompts
    people: People
    frozen: PolicyParams
    sampling: SamplingSettings
    stop: jax.Array
    settings: RLSettings
    program: RLProgram

    def arguments(self) -> tuple:
        """Of `draw`, but the state."""
        return self.prompts, self.people, self.frozen, self.sampling, self.stop, self.settings


@functools.partial(jax.jit, static_argnames="program")
def _scored(params, critic, tokens, starts, z, settings: RLSettings, *, program: RLProgram):
    rollout = settings.rollout
    rows = scoring.rows_of(tokens, starts, z, rollout.max_new_tokens, rollout.completions)
    rows = scoring.with_lower_states(program.graphdef, params, rows)
    logprobs, _, values = score(settings, program, params, critic, rows)
    return logprobs, values, rows


def made_up_rollout(task: Task, seed: int = 0) -> Rollout:
    """Random completions of 1 … T tokens as if the policy had said them, and a reference near it; about half have ended.

    Cheaper than sampling: the decode loop need not be compiled.
    """
    rng, settings = np.random.default_rng(seed), task.settings
    batch, num_slots = len(task.prompts.starts), settings.rollout.max_new_tokens
    keys = iteration_keys(task.state.key, task.state.iteration)
    coef, z = people_rows(keys.users, task.people, batch, settings, task.program)
    mask = np.arange(num_slots) < rng.permutation(np.arange(batch) % num_slots + 1)[:, None]
    new = np.where(mask, rng.integers(3, 30, mask.shape), 0).astype(np.int32)
    tokens = jnp.concatenate([task.prompts.tokens, new], axis=1)
    trained = dict(task.state.params)
    critic = trained.pop("critic", None)
    params = task.frozen._replace(**trained)
    logprobs, values, rows = _scored(
        params, critic, tokens, task.prompts.starts, z, settings, program=task.program
    )
    near = logprobs + 0.2 * rng.normal(size=mask.shape)
    values = np.zeros((*mask.shape, num_channels(coef.shape[1]))) if values is None else values
    logprobs, near, values = (
        jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x, 0.0).astype(jnp.float32)
        for x in (logprobs, near, jnp.asarray(values))
    )
    ended = jnp.asarray(rng.random(batch) < 0.5)
    return Rollout(
        tokens,
        task.prompts.starts,
        jnp.asarray(mask),
        logprobs,
        near,
        logprobs,
        values,
        rows,
        coef,
        z,
        ended,
    )


def make_task(
    *,
    prompts: list[list[int]],
    people: Any,
    groups: int,
    group_size: int = 4,
    max_new_tokens: int = 3,
    spec: AdapterSpec | None = None,
    adapter_layers: int | None = 2,
    trained: str = "adapters",
    scale: float = 0.0,
    base: Any = None,
    algorithm: dict | None = None,
    critic: dict | None = None,
    kl: dict | None = None,
    optimizer: dict | None = None,
    shares: UserShares | None = None,
    guardrails: GuardrailsConfig | None = None,
    seed: int = 0,
) -> Task:
    """`prompts` are repeated to fill `groups` groups of `group_size` rows.

    Args:
      people: a population, or fixed weights [K].
      spec: adapters; default LoRA, and a conditioner where there are people.
      scale: standard deviation of random adapters (0: as before training).
      algorithm: of PPO where there is a critic, else of the estimators without one.
      algorithm, critic, kl, optimizer: keys of these sections; shares: by default half of them from posteriors.
    """
    personal = isinstance(people, tuple)
    num_basis = people.user_mean.shape[1] if personal else len(people)
    default = AdapterSpec(4, 4.0, num_basis if personal else 0, 4 if personal else 0)
    spec = spec or default
    base = base or tiny.make_base(tiny.make_config(), adapter_layers=adapter_layers)
    policy = tiny.make_policy(base, spec, scale=scale, seed=seed + 1)
    params = policy.params
    if not scale:
        lora, conditioner = init_adapters(policy.graphdef, params, jax.random.key(seed))
        params = params._replace(lora=lora, conditioner=conditioner)
    dtype = base.tree["embed"]["embedding"].dtype.name
    reference = structure(base.config, base.stages, None, dtype, False)[0]
    parts: dict[str, Any] = {"lora": params.lora} if trained == "adapters" else {"base": params.base}
    if personal:
        parts["conditioner"] = params.conditioner
    values = None if critic is None else CriticConfig(**({"hidden": 16, "backbone": "shared"} | critic))
    own = GRPOAlgorithmConfig if critic is None else PPOAlgorithmConfig
    settings = RLSettings(
        algorithm=own(**({"aggregation": "token"} | (algorithm or {}))),
        critic=values,
        rollout=RolloutConfig(completions=group_size, max_new_tokens=max_new_tokens),
        kl=KLConfig(**({"coef": 0.1} | (kl or {}))),
        guardrails=guardrails,
        optimizer=steps.make_optimizer(**({"weight_decay": 0.0} | (optimizer or {}))),
        num_steps=100,
    )
    if values is not None:
        key, width = jax.random.key(seed + 7), base.config.width
        parts["critic"] = init_critic(values, params, width, key, num_basis=num_basis, personal=personal)
    if personal and shares is None:
        shares = UserShares.of(MIX)
    rows = np.repeat(np.resize(np.arange(len(prompts)), groups), group_size)
    tokens, starts = left_pad([prompts[row] for row in rows], multiple=4)
    guard = None if guardrails is None else GuardState.start(guardrails, people)
    arrays = (
        init_state(jax.tree.map(jnp.array, parts), traced(settings), jax.random.key(seed + 11), guard=guard),
        Prompts(tokens, starts),
        people if personal else np.asarray(people, np.float32),
        jax.tree.map(jnp.array, params),
        SamplingSettings.of(len(rows)),
        np.array(STOP, np.int32),
        traced(settings),
    )
    return Task(*jax.tree.map(jnp.asarray, arrays), RLProgram(policy.graphdef, reference, shares))
