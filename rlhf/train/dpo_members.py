"""A population of preference runs in one program: one frozen model and one set of rows, S adapters with their numbers.

The step is `dpo_step.step`, mapped over the members. Each member writes the run directory that its configuration would write
alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rewards.data.read import read_preferences
from rlhf.mesh import devices
from rlhf.models.layout import HostOrDevice
from rlhf.policy.conditioning import Population
from rlhf.policy.logprobs import PolicyParams
from rlhf.train import dpo_step as dpo
from rlhf.train import memory, optim
from rlhf.train.callbacks import Callback
from rlhf.train.config import DPOConfig
from rlhf.train.dpo import read_for, rewards_of
from rlhf.train.dpo_ready import Material, Ready, material_of, ready
from rlhf.train.member_runs import Asked, RunMember, next_member
from rlhf.train.members import Given, Stepped, run_members, stack
from rlhf.train.sft import open_base
from rlhf.train.trained import Trained, run_callbacks

Constants = tuple[Population | None, dpo.DPOSettings]
Moved = tuple[optim.TrainState, dict[str, jax.Array]]


@functools.partial(jax.jit, static_argnames=("program", "shared", "at_once"), donate_argnames="states")
def step(
    states: optim.TrainState,
    batches: dpo.DPOBatch,
    constants: Constants,
    taken: HostOrDevice,
    frozen: PolicyParams,
    *,
    program: dpo.DPOProgram,
    shared: bool,
    at_once: int,
) -> tuple[optim.TrainState, dict[str, jax.Array]]:
    """One optimiser step of every member: leaves [S, …] of `states` and `constants`; `frozen` is everybody's.

    Args:
      batches: leaves [S, A, B, …], or [A, B, …] where the members share one.
      taken: bool[S]; an empty place costs nothing where members are computed one after the other.
      at_once: members computed side by side, the others one after the other. With 1 the program of a member is that of a run
        of its own, and so are its roundings.
    """

    def one(own: tuple[optim.TrainState, Constants, jax.Array, dpo.DPOBatch | None]) -> Moved:
        state, (population, settings), there, batch = own

        def moved() -> Moved:
            given = batches if batch is None else batch
            return dpo.step(state, given, frozen, population, settings, program=program)

        if at_once > 1:
            return moved()
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(moved)[1])
        return jax.lax.cond(there, moved, lambda: (state, nothing))

    rows = (states, constants, taken, None if shared else batches)
    return jax.lax.map(one, rows, batch_size=None if at_once == 1 else at_once)


def train(
    first: DPOConfig,
    size: int,
    following: Callable[[], Asked | None],
    cache: Path,
    at_once: int | None = None,
) -> None:
    """Train all that `following` asks for, `size` at a time.

    Args:
      first: any of their configurations; they differ in numbers and seeds only (`rlhf.sweep.together`).
      following: the next; None when there is none now. cache: keeps the reference log-probs.
      at_once: as of `step`; None takes 1 on CPUs, which gain nothing by more, and all elsewhere.
    """
    with devices.use(first.mesh):
        if at_once is None:
            at_once = 1 if jax.default_backend() == "cpu" else size
        everybody = _Everybody(first, size, min(at_once, size), cache)
        run_members(size, lambda: everybody.member(following), everybody.step)


class _Everybody:
    """What the members of a population share."""

    def __init__(self, config: DPOConfig, size: int, at_once: int, cache: Path):
        self._size, self._at_once = size, at_once
        prefs = read_preferences(
            config.data.path, config.data.split, columns=config.data.columns, people=False
        )
        basis, people = rewards_of(config)
        self.read = read_for(config, prefs, None, basis, people)
        self.material: Material = material_of(config, prefs, open_base(config), basis, people, cache)
        self._frozen: PolicyParams | None = None
        self._program: dpo.DPOProgram | None = None
        self._shared = True

    def member(self, following: Callable[[], Asked | None]) -> "_Member | None":
        """The next one that can begin."""
        member = next_member(following, lambda asked: _Member(self, asked))
        if member is not None:
            self._takes(member.ready)
        return member

    def _takes(self, one: Ready) -> None:
        """The program has every term that some member asks for: elsewhere its weight is 0."""
        known = self._program or one.program
        self._program = dataclasses.replace(
            known,
            with_nll=known.with_nll or one.program.with_nll,
            with_rail=known.with_rail or one.program.with_rail,
        )
        if self._frozen is None:
            trained = self._size * memory.ADAM * _bytes(one.state.params)
            needed = {"the model": _bytes(one.frozen), f"what {self._size} members train": trained}
            memory.check(needed, "sweep.population")
            self._frozen = one.frozen._replace(**dict.fromkeys(one.state.params))

    def step(self, states: optim.TrainState, constants: Constants, given: Sequence[Given | None]) -> Stepped:
        """One step of every member that is there."""
        assert self._frozen is not None and self._program is not None, "there are members"
        taken = np.array([one is not None for one in given])
        batches = [one.batch for one in given if one is not None]
        # Once their ways have parted they stay parted: whoever is left alone needs no program of his own.
        self._shared &= all(batch is batches[0] for batch in batches)
        batch = batches[0]
        if not self._shared:
            batch = stack([batch if one is None else one.batch for one in given])
        how = {"program": self._program, "shared": self._shared, "at_once": self._at_once}
        return Stepped(*step(states, batch, constants, taken, self._frozen, **how))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


class _Member(RunMember):
    """One preference run of a population."""

    def __init__(self, everybody: _Everybody, asked: Asked):
        self._everybody = everybody
        super().__init__(asked, "dpo", everybody.read)

    def prepare(self, config: DPOConfig, callbacks: Sequence[Callback]) -> None:
        self.ready = ready(config, self._everybody.material, self.job.directory)
        self.callbacks = run_callbacks(self.job, config.train, "dpo", callbacks, track=config.track)
        steps = self.ready.config.train.steps
        assert steps is not None, "settled"
        self.state, self.batch_of = self.ready.state, self.ready.batch_of
        self.constants: Constants = (self.ready.population, self.ready.settings)
        self.order, self.num_steps = config.seed, steps
        self.checkpoint_every, self.max_skips = config.train.checkpoint_every, config.train.max_skips
        self.tokens_per_step, self.evaluation = self.ready.tokens_per_step, self.ready.evaluation

    def trained(self, state: optim.TrainState) -> Trained:
        return self.ready.trained(state)
