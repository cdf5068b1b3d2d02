"""Held-out prompts of a reinforcement-learning run: completions are drawn for them as in training, and rewarded."""

import collections
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rewards.data.split import prompt_text
from rewards.errors import UserError
from rlhf.mesh import place
from rlhf.objectives import surrogate as objectives
from rlhf.phi.columns.arguments import TrainerState, training
from rlhf.phi.reward import Reward
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.sampling import SamplingSettings
from rlhf.train import held_out
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import RLConfig
from rlhf.train.rl.prompts import PromptSet
from rlhf.train.rl.rollout import People, Prompts, Rollout
from rlhf.train.rl.settings import RLProgram, RLSettings


class Wanted(Protocol):
    """What `divided` reads of a configuration's `train` section."""

    @property
    def evaluate_every(self) -> int | None: ...
    @property
    def evaluate_share(self) -> float: ...


class StateAt(Protocol):
    """How far the training is, for reward functions."""

    def __call__(self, number: int, *, evaluation: bool = False) -> TrainerState: ...


class Given(NamedTuple):
    """What a trainer draws completions with, besides its state."""

    people: People
    frozen: PolicyParams
    stop: jax.Array
    settings: RLSettings
    program: RLProgram
    reward: Reward
    state_at: StateAt


def divided(train: Wanted, prompts: PromptSet) -> tuple[PromptSet, PromptSet | None]:
    """Prompts that are trained on, and those that are held out; equal prompts stand on one side."""
    if train.evaluate_every is None:
        return prompts, None
    rows = prompts.rows
    labels = [prompt_text(prompt) for prompt in rows.prompts]
    found = held_out.divide(train.evaluate_share, rows.source, prompts=labels)

    def part(index: np.ndarray) -> PromptSet:
        return PromptSet(rows.take(index), prompts.tokens[index], prompts.starts[index], prompts.dropped)

    return part(found.train), part(found.held_out)


class Measured:
    """State → means over held-out prompts; the same people and random numbers every time.

    Completions come from the program that draws them in training where rewards are computed on the host; a run whose whole
    iteration is one program compiles drawing once more.
    """

    def __init__(self, config: RLConfig, prompts: PromptSet, given: Given):
        rollout = config.rollout
        group = rollout.users_per_prompt * rollout.completions
        self._prompts, self._given = prompts, given
        every = np.arange(len(prompts.starts))
        parts, real = held_out.in_batches(every, every, rollout.prompts_per_step)
        self._index, self._real = np.repeat(parts, group, axis=1), np.repeat(real, group, axis=1)
        greedy = SamplingSettings.of(config.rows, temperature=0.0)
        sampling = greedy if config.train.evaluate_greedy else rollout.sampling(config.rows)
        self._sampling = place.sent(place.batch(sampling))

    def __call__(self, state: updates.RLState) -> dict[str, jax.Array]:
        """Metrics under `eval/`; outputs of the basis are numbered.

        Raises:
          UserError: a reward cannot be computed.
        """
        given, prompts = self._given, self._prompts
        totals: dict[str, jax.Array] | None = None
        at = given.state_at(int(state.iteration), evaluation=True)
        logged: dict[str, list[float]] = collections.defaultdict(list)
        for number, (index, real) in enumerate(zip(self._index, self._real, strict=True)):
            # Iterations count from 0: these numbers are no iteration's, and −1 is of the critic's start.
            own = state._replace(iteration=jnp.array(-2 - number, jnp.int32))
            rows = (prompts.tokens[index], prompts.starts[index], real)
            tokens, starts, counts = place.sent(place.batch(rows))
            rollout = updates.draw(
                own,
                Prompts(tokens, starts),
                given.people,
                given.frozen,
                self._sampling,
                given.stop,
                given.settings,
                program=given.program,
            )
            try:
                with training(at, len(index)) as said:
                    phi = given.reward(rollout, prompts.rows.take(index)).phi
            except UserError as error:
                raise UserError(f"held-out prompts: {error}") from None
            for name, value in said.means("eval").items():
                logged[name].append(value)
            totals = _sums(totals, rollout._replace(rows=None), place.sent(place.batch(phi)), counts)
        assert totals is not None, "a prompt at least is held out"
        return _means(totals) | {name: jnp.float32(np.mean(values)) for name, values in logged.items()}


@jax.jit
def _sums(
    totals: dict[str, jax.Array] | None, rollout: Rollout, phi: jax.Array, real: jax.Array
) -> dict[str, jax.Array]:
    """`totals` and what this batch adds, each weighted by real[B]."""
    mask = rollout.mask
    outputs = phi if phi.ndim == 2 else jnp.sum(jnp.where(mask[..., None], phi, 0.0), axis=1)
    log_ratio = objectives.kl_estimate(rollout.logprobs, rollout.ref_logprobs, mask, "k1")
    rows = {
        "count": jnp.ones_like(real),
        "eval/reward": jnp.sum(outputs * rollout.coef, axis=1),
        "eval/kl_ref_nats": log_ratio.sum(axis=1),
        "eval/completion_tokens": mask.sum(axis=1),
        "eval/eos_share": rollout.ended.astype(jnp.float32),
    }
    rows |= {f"eval/reward/{k}": outputs[:, k] for k in range(outputs.shape[1])}
    found = {name: jnp.sum(values * real) for name, values in rows.items()}
    return found if totals is None else jax.tree.map(jnp.add, totals, found)


@jax.jit
def _means(totals: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: value / totals["count"] for name, value in totals.items() if name != "count"}
