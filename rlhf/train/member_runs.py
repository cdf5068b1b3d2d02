"""A member of a population as a run: its directory, who asked for it, and what becomes of both when it ends."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from jaxtyping import PyTree

from rewards.errors import UserError
from rlhf.run import inputs
from rlhf.run.directory import Run
from rlhf.train.callbacks import Callback
from rlhf.train.members import Member
from rlhf.train.trained import Diagnosis, Trained, close, finished

One = TypeVar("One", bound="RunMember")


class Asked(Protocol):
    """A run that somebody wants trained, and who hears how it ends."""

    @property
    def config(self) -> Any: ...
    @property
    def callbacks(self) -> Sequence[Callback]: ...
    def complete(self) -> None: ...
    def fail(self, problem: UserError) -> None: ...
    def prune(self) -> None: ...
    def leave(self) -> None: ...


def next_member(following: Callable[[], Asked | None], opened: Callable[[Asked], One]) -> One | None:
    """The next run that can begin, opened; those that cannot are told why. None when there is none now."""
    while (asked := following()) is not None:
        try:
            return opened(asked)
        except UserError as problem:
            asked.fail(problem)
        except BaseException:
            asked.leave()
            raise
    return None


class RunMember(Member):
    """One run of a population, with its directory open; a trainer says how it is prepared and what it has trained.

    Args:
      kind: of the run directory. read: what all members read, by content (`rlhf.run.inputs`).
    """

    diagnose: Diagnosis | None = None

    def __init__(self, asked: Asked, kind: str, read: inputs.Inputs):
        self._asked, self._open = asked, contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            self.job = opening.enter_context(Run.open(asked.config.output_dir, asked.config, kind))
            inputs.check(self.job, read, begun=finished(self.job) or None)
            self.prepare(asked.config, asked.callbacks)
            self._open = opening.pop_all()

    def prepare(self, config: Any, callbacks: Sequence[Callback]) -> None:
        """Set what `Member` promises; `job` is open. An error closes it again."""
        raise NotImplementedError

    def trained(self, state: PyTree) -> Trained:
        """The policy to keep when `state` is the last."""
        raise NotImplementedError

    def finish(self, state: PyTree) -> None:
        with self._open:
            trained = self.trained(state)
            trained.save(self.job.directory)
            close(self.job, trained, self.diagnose)
        self._asked.complete()

    def fail(self, problem: UserError) -> None:
        with contextlib.suppress(UserError), self._open:
            raise problem  # a directory in which nothing was made is given back
        self._asked.fail(problem)

    def prune(self) -> None:
        self._open.close()
        self._asked.prune()

    def leave(self) -> None:
        self._open.close()
        self._asked.leave()
