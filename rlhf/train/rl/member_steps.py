"""One iteration of a population of reinforcement-learning runs: members side by side, group after group.

An iteration is `update.iterate`, or its two halves with rewards of the host between them, mapped over the members of a group.

Shapes: S members, or those of a group where it says so; the others as in `rlhf.train.rl.settings`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rewards.errors import UserError
from rlhf.phi.reward import Kernel
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.sampling import SamplingSettings
from rlhf.train.members import Given, Stepped, placed, row, rows, stack
from rlhf.train.rl import update as updates
from rlhf.train.rl.iteration import Rewarded, Trainer, named
from rlhf.train.rl.rollout import People, Prompts, Rollout
from rlhf.train.rl.settings import RLProgram, RLSettings

Constants = tuple[People, RLSettings, SamplingSettings, PyTree]
"""People, settings, how rows are drawn, and what a compiled reward reads where that is a member's own (else None)."""


def _each(function: Callable[..., Any], *parts: PyTree) -> Any:
    """`function` over leaves [S, …]: side by side, or for one member as it is, with the roundings of a run alone."""
    if jax.tree.leaves(parts)[0].shape[0] > 1:
        return jax.vmap(function)(*parts)
    found = function(*jax.tree.map(lambda leaf: leaf[0], parts))
    return jax.tree.map(lambda leaf: leaf[None], found)


@functools.partial(jax.jit, static_argnames=("program", "reward", "checks"), donate_argnames="states")
def iterate(
    states: updates.RLState,
    prompts: Prompts,
    constants: Constants,
    frozen: PolicyParams,
    arrays: PyTree,
    stop: jax.Array,
    *,
    program: RLProgram,
    reward: Kernel,
    checks: Kernel | None,
    check_arrays: PyTree,
) -> tuple[updates.RLState, dict[str, jax.Array], Rollout, jax.Array]:
    """One whole iteration of members side by side: leaves [S, …] of `states`, `prompts` and `constants`; the rest is everybody's.

    Args:
      arrays: what the reward reads where it is everybody's.
    """

    def one(state: updates.RLState, prompts: Prompts, own: Constants) -> Any:
        people, settings, sampling, own_arrays = own
        read = arrays if own_arrays is None else own_arrays
        rest = (frozen, read, sampling, stop, settings)
        how = {"program": program, "reward": reward, "checks": checks, "check_arrays": check_arrays}
        return updates.iterate(state, prompts, people, *rest, **how)

    return _each(one, states, prompts, constants)


@functools.partial(jax.jit, static_argnames="program")
def draw(
    states: updates.RLState,
    prompts: Prompts,
    constants: Constants,
    frozen: PolicyParams,
    stop: jax.Array,
    *,
    program: RLProgram,
) -> Rollout:
    """The first half of it, up to the completions."""

    def one(state: updates.RLState, prompts: Prompts, own: Constants) -> Rollout:
        people, settings, sampling, _ = own
        return updates.draw(state, prompts, people, frozen, sampling, stop, settings, program=program)

    return _each(one, states, prompts, constants)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="states")
def update(
    states: updates.RLState,
    rollouts: Rollout,
    rewards: tuple[jax.Array, jax.Array | None],
    constants: Constants,
    frozen: PolicyParams,
    *,
    program: RLProgram,
) -> tuple[updates.RLState, dict[str, jax.Array]]:
    """The second half: what is learned from completions whose rewards, and what guardrails check, are known."""

    def one(state: updates.RLState, rollout: Rollout, given: Any, own: Constants) -> Any:
        people, settings, _, _ = own
        phi, checks = given
        rest = {"program": program, "people": people, "checks": checks}
        return updates.update(state, rollout, phi, frozen, settings, **rest)

    return _each(one, states, rollouts, rewards, constants)


class Steps:
    """The step of all (`rlhf.train.members.StepAll`).

    Args:
      shared: the trainer of any member: program, rewards and checks are everybody's.
      frozen: the model without the parts that are trained. at_once: members of a group.
    """

    def __init__(self, shared: Trainer, frozen: PolicyParams, at_once: int):
        self._shared, self._frozen, self._at_once = shared, frozen, at_once

    def __call__(
        self, states: updates.RLState, constants: Constants, given: Sequence[Given | None]
    ) -> Stepped:
        """One iteration of every member that is there; members whose rewards cannot be computed have failed."""
        size, metrics = len(given), {}
        more: dict[int, dict[str, float]] = {}
        failed: dict[int, UserError] = {}
        for places in self._groups(given):
            # Places that are not there read the last member and write nowhere.
            index = np.array(places + [size] * (min(self._at_once, size) - len(places)))
            group = _Group(self._shared, self._frozen, [one for place in places if (one := given[place])])
            moved = group.moved(rows(states, index), rows(constants, index), len(index))
            more |= {places[n]: values for n, values in group.more.items()}
            failed |= {places[n]: problem for n, problem in group.failed.items()}
            if moved is None:
                continue
            states = placed(states, moved[0], index)
            empty = {name: jnp.zeros(size, values.dtype) for name, values in moved[1].items()}
            metrics = placed(metrics or empty, moved[1], index)
        return Stepped(states, named(metrics, self._shared.source.names), more, failed)

    def _groups(self, given: Sequence[Given | None]) -> Iterator[list[int]]:
        """Places of members that are computed side by side."""
        taken = [place for place, one in enumerate(given) if one is not None]
        for start in range(0, len(taken), self._at_once):
            yield taken[start : start + self._at_once]


class _Group:
    """Members that are computed side by side.

    Attributes:
      more: number in the group → metrics of that member alone. failed: … → why it cannot go on.
    """

    def __init__(self, shared: Trainer, frozen: PolicyParams, given: Sequence[Given]):
        self._shared, self._frozen, self._given = shared, frozen, given
        self.more: dict[int, dict[str, float]] = {}
        self.failed: dict[int, UserError] = {}

    def moved(
        self, states: updates.RLState, constants: Constants, width: int
    ) -> tuple[updates.RLState, dict[str, jax.Array]] | None:
        """States and metrics after the iteration, [width, …]; None where all have failed."""
        batches = [one.batch for one in self._given]
        prompts = stack([batches[min(n, len(batches) - 1)].prompts for n in range(width)])
        first, given = (states, prompts, constants, self._frozen), self._given
        stop, program, extra = self._shared.stop, self._shared.program, {}
        if self._shared.compiled:
            reward, checks = self._shared.source.reward, self._shared.source.checks
            states, metrics, rollouts, rewards = iterate(
                *first,
                None if constants[-1] is not None else reward.arrays,
                stop,
                program=program,
                reward=reward.kernel,
                checks=None if checks is None else checks.kernel,
                check_arrays=None if checks is None else checks.arrays,
            )
        else:
            rollouts = draw(*first, stop, program=program)
            said = self._rewarded(rollouts)
            if not said:
                return None
            extra = {n: one.extra for n, one in said.items()}
            some = next(iter(said.values()))  # in the place of whoever has failed, and is not heard of again
            every = [said.get(n, some) for n in range(width)]
            rewards = stack([one.rewards for one in every])
            checks = None if some.checks is None else stack([one.checks for one in every])
            states, metrics = update(
                states, rollouts, (rewards, checks), constants, self._frozen, program=program
            )
        for n, one in enumerate(given):
            samples = one.member.trainer.samples
            if n not in self.failed and samples is not None:
                rollout, phi = row((rollouts._replace(rows=None), rewards), n)
                samples.take(one.batch, rollout, phi, extra.get(n, {}))
        return states, metrics

    def _rewarded(self, rollouts: Rollout) -> dict[int, Rewarded]:
        """Number in the group → what the host says of its completions."""
        said = {}
        for n, one in enumerate(self._given):
            trainer: Trainer = one.member.trainer
            kept = rollouts if trainer.source.reward.can.compiled else rollouts._replace(rows=None)
            try:
                said[n] = trainer.rewarded(one.batch, row(kept, n))
            except UserError as problem:
                self.failed[n] = problem
                continue
            self.more[n] = named(said[n].metrics, trainer.source.names)
        return said
