"""The host loop over several runs that one compiled program trains together: a population of members.

Each member has what a run of its own has: order of the data, keys, numbers, callbacks, its own step number. Its state lies in a
row of arrays [S, …]; a member that ends, however it ends, makes room for the next one, and nothing is compiled for that.
"""

import functools
import time
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rewards.errors import UserError
from rlhf.run import signals
from rlhf.train.callbacks import Callback
from rlhf.train.loop import Evaluation, Numbers


class Member:
    """One run of a population; a trainer overrides the methods.

    Attributes:
      state, constants: its rows of the population's arrays: what a step changes, and what it only reads.
      batch_of: step number → batch. order: members of the same order have the same batch at the same step.
      num_steps, checkpoint_every, max_skips, tokens_per_step, callbacks, evaluation: as `loop.run_steps` takes them.
    """

    state: PyTree
    constants: PyTree
    batch_of: Callable[[int], PyTree]
    order: Hashable
    num_steps: int
    checkpoint_every: int
    max_skips: int = 0
    tokens_per_step: int | Callable[[dict[str, float]], float]
    callbacks: Sequence[Callback]
    evaluation: Evaluation[Any] | None

    def finish(self, state: PyTree) -> None:
        """It came to its last step."""

    def fail(self, problem: UserError) -> None:
        """It cannot go on."""

    def prune(self) -> None:
        """It was told to stop; its checkpoint is written."""

    def leave(self) -> None:
        """The command ends before the member does; its checkpoint is written, if its training had begun."""


class Pruned(Exception):
    """Raised by a member's callback in `step`: this member goes no further."""


class Given(NamedTuple):
    """A member and its batch. Members of one order at one step have the same object."""

    member: Any
    batch: PyTree


class Stepped(NamedTuple):
    """What a step of all gives.

    Attributes:
      states: leaves [S, …]. metrics: [S] each. more: place → metrics of that member alone.
      failed: place → why that member cannot go on; its state is of no use.
    """

    states: PyTree
    metrics: dict[str, jax.Array]
    more: Mapping[int, Mapping[str, float]] = types.MappingProxyType({})
    failed: Mapping[int, UserError] = types.MappingProxyType({})


StepAll = Callable[[PyTree, PyTree, Sequence[Given | None]], Stepped]
"""(states, constants, by place who is there and their batch) → what came of it; the states are donated."""


class _Seat:
    """A member that is being trained.

    Attributes:
      number: finished steps. reported: the last one whose metrics were handed on. measured: held-out numbers of the last step.
    """

    def __init__(self, member: Member):
        self.member, self.measured = member, {}
        self.pruned = False
        self._numbers = Numbers(
            member.callbacks, member.max_skips, member.tokens_per_step, member.batch_of, member.num_steps
        )
        self._begun: list[Callback] = []
        restored = next(filter(None, (one.restore(member.state) for one in member.callbacks)), None)
        self.number, self.state = (0, member.state) if restored is None else restored
        self.reported = self.number
        for callback in member.callbacks:
            callback.begin(self.number, member.num_steps)
            self._begun.append(callback)

    @property
    def ended(self) -> bool:
        return self.number >= self.member.num_steps

    @property
    def due(self) -> bool:
        """Whether a checkpoint is to be written now."""
        return self.pruned or self.ended or self.number % self.member.checkpoint_every == 0

    def tell(self, metrics: dict[str, float], seconds: float) -> None:
        """Hand on the metrics of the step after the last that was reported."""
        self.reported += 1
        values = metrics | {name: float(value) for name, value in self.measured.items()}
        self.measured = {}
        try:
            self._numbers.tell(self.reported, values, seconds)
        except Pruned:
            self.pruned = True

    def checkpoint(self, state: PyTree) -> None:
        if self._numbers.made_by(self.number):
            for callback in self.member.callbacks:
                callback.checkpoint(self.number, state)

    def end(self) -> None:
        """No callback is called after it."""
        begun, self._begun = self._begun, []
        for callback in begun:
            callback.end()


def run_members(size: int, following: Callable[[], Member | None], step: StepAll) -> None:
    """Train members, `size` at a time, until `following` has no more.

    Args:
      following: opens the next member; None when there is none now.
      step: compiled step of all; members beyond the first `size` come to the places of those that ended.

    Raises:
      KeyboardInterrupt: a signal came; every member's step was finished and its checkpoint written.
    """
    population = _Population(following, step)
    try:
        with signals.boundaries():
            population.seat(size)
            while population.any():
                population.step()
    finally:
        population.close()


class _Population:
    """The members that are trained now, by place in the arrays; None where nobody is."""

    def __init__(self, following: Callable[[], Member | None], step: StepAll):
        self._following, self._step = following, step
        self._seats: list[_Seat | None] = []
        self._late: Stepped | None = None  # of the last step; its metrics are not handed on yet
        self._left, self._mark = False, 0.0  # whether somebody has left for whom nobody has come yet

    def any(self) -> bool:
        return any(seat is not None for seat in self._seats)

    def seat(self, size: int) -> None:
        """The first members; fewer where there are fewer."""
        while len(self._seats) < size and (seat := self._next()) is not None:
            self._seats.append(seat)
        if seats := self._taken():
            self._states = stack([seat.state for _, seat in seats])
            self._constants = stack([seat.member.constants for _, seat in seats])
        self._mark = time.perf_counter()

    def step(self) -> None:
        """One step of every member, and what is due after it."""
        following = self._step(self._states, self._constants, self._given())
        if self._late is not None:
            self._report()
        self._states, self._late = following.states, following
        for place, problem in following.failed.items():
            self._fail(place, problem)
        for place, seat in self._taken():
            seat.number += 1
            if seat.member.evaluation is not None:
                try:
                    seat.measured = seat.member.evaluation(seat.number, row(self._states, place))
                except UserError as problem:
                    self._fail(place, problem)
        ending = signals.pending()
        if ending or self._left or any(seat.due for _, seat in self._taken()):
            self._report()
            self._settle(ending)
            if ending:
                signals.leave()
            self._mark = time.perf_counter()

    def _given(self) -> list[Given | None]:
        batches: dict[tuple[Hashable, int], PyTree] = {}
        given: list[Given | None] = [None] * len(self._seats)
        for place, seat in self._taken():
            key = (seat.member.order, seat.number)
            if key not in batches:
                batches[key] = seat.member.batch_of(seat.number)
            given[place] = Given(seat.member, batches[key])
        return given

    def _report(self) -> None:
        """Hand on the metrics of the last step; a member whose numbers are not finite ends here."""
        assert self._late is not None, "after a step"
        metrics, more, self._late = jax.device_get(self._late.metrics), self._late.more, None
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        for place, seat in self._taken():
            own = {name: float(values[place]) for name, values in metrics.items()}
            try:
                seat.tell(own | dict(more.get(place, {})), seconds)
            except UserError as problem:
                self._fail(place, problem)

    def _settle(self, ending: bool) -> None:
        """Checkpoints, of all when the command ends; members that came to their end make room."""
        for place, seat in self._taken():
            if not (ending or seat.due):
                continue
            state = row(self._states, place)
            seat.checkpoint(state)
            if seat.ended or seat.pruned:
                self._empty(place)
                seat.member.finish(state) if seat.ended else seat.member.prune()
        if ending:
            return
        self._left = False
        for place, seat in enumerate(self._seats):
            if seat is None and (new := self._next()) is not None:
                self._seats[place] = new
                self._states = placed(self._states, new.state, place)
                self._constants = placed(self._constants, new.member.constants, place)

    def _next(self) -> _Seat | None:
        """The next member that has anything to do."""
        while (member := self._following()) is not None:
            try:
                seat = _Seat(member)
            except UserError as problem:
                member.fail(problem)
                continue
            except BaseException:
                member.leave()
                raise
            if not seat.ended:
                return seat
            seat.end()
            member.finish(seat.state)
        return None

    def _taken(self) -> list[tuple[int, _Seat]]:
        return [(place, seat) for place, seat in enumerate(self._seats) if seat is not None]

    def _fail(self, place: int, problem: UserError) -> None:
        seat = self._empty(place)
        seat.member.fail(problem)

    def _empty(self, place: int) -> _Seat:
        seat, self._seats[place] = self._seats[place], None
        assert seat is not None, "somebody sat there"
        self._left = True
        seat.end()
        return seat

    def close(self) -> None:
        """Whoever is still here leaves."""
        for place, seat in self._taken():
            self._empty(place)
            seat.member.leave()


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of several members as one, leaves [S, …]."""

    def stacked(*leaves: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)

    return jax.tree.map(stacked, *trees)


@jax.jit
def row(tree: PyTree, place: int) -> PyTree:
    """One member's part."""
    return jax.tree.map(lambda leaf: leaf[place], tree)


@jax.jit
def rows(tree: PyTree, index: np.ndarray) -> PyTree:
    """The parts of several members, in this order; a place beyond the last is that of the last."""
    return jax.tree.map(lambda leaf: _copied(leaf).at[index].get(mode="clip"), tree)


@functools.partial(jax.jit, donate_argnums=0)
def placed(tree: PyTree, part: PyTree, place: int | np.ndarray) -> PyTree:
    """The arrays with another member in this place, or several in these; what is beyond the last is dropped."""
    return jax.tree.map(lambda leaf, own: _copied(leaf).at[place].set(_copied(own), mode="drop"), tree, part)


def _copied(leaf: jax.Array) -> jax.Array:
    """A run's key moves to another place and is used by none besides, which the checker of keys cannot see."""
    return jax.random.clone(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
