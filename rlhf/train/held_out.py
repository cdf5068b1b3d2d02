"""Measurements on held-out data during training, and the state of the step where they were best.

What is held out depends on names alone (`rewards.data.split`), not on the run's seed, so that runs are compared on the same
rows. A measurement is a function of the parameters: the same rows, people and random numbers every time.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rewards.data.split import held_out_labels
from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.mesh import place
from rlhf.policy.batches import microbatches
from rlhf.train.checkpoint import Checkpointer

_LOG = logging.getLogger("chorus")
FOLDER = "best"
KEY = 2**32 - 2
"""No step of a run has this number: the key of what is drawn for a measurement is fold_in(run key, KEY)."""


class Wanted(Protocol):
    """What this reads of a configuration's `train` section."""

    @property
    def steps(self) -> int | None: ...
    @property
    def evaluate_every(self) -> int | None: ...
    @property
    def keep_best(self) -> str | None: ...


class State(Protocol):
    """What trainers' states have in common (named tuples)."""

    @property
    def params(self) -> dict[str, PyTree]: ...
    @property
    def opt_state(self) -> Any: ...
    @property
    def key(self) -> jax.Array: ...
    def _replace(self, **changes: object) -> Any: ...


S = TypeVar("S", bound=State)


class Division(NamedTuple):
    """Indices of what is trained on and of what is held out."""

    train: np.ndarray
    held_out: np.ndarray


def divide(share: float, source: str, **labels: Sequence[str] | None) -> Division:
    """Hold out a share of the first kind of label of which there are 1/share or more; else of the rows one by one.

    Args:
      labels: kind ("people", "prompts") → the label of every row, None where it means nothing.
    Raises:
      UserError: there is only one row.
    """
    known = {kind: names for kind, names in labels.items() if names is not None}
    count = len(next(iter(known.values())))
    known["rows"] = list(map(str, range(count)))
    kind = next((kind for kind, names in known.items() if len(set(names)) * share >= 1), "rows")
    if count < 2:
        raise UserError(f"{source}: one row, of which none can be held out; remove train.evaluate_every")
    held = held_out_labels(known[kind], share)
    total = len(set(known[kind]))
    own = len({name for name, out in zip(known[kind], held, strict=True) if out})
    _LOG.info(f"{own} of {total} {kind} ({int(held.sum())} of {count} rows) are held out for eval/…")
    return Division(np.flatnonzero(~held), np.flatnonzero(held))


def in_batches(rows: PyTree, index: np.ndarray, size: int) -> tuple[PyTree, np.ndarray]:
    """Rows `index` as leaves [A, size, …], the last part filled up with the first row; real[A, size] says which count."""
    parts = -(-len(index) // size)
    filled = np.concatenate([index, np.repeat(index[:1], parts * size - len(index))])
    real = (np.arange(parts * size) < len(index)).astype(np.float32).reshape(parts, size)
    return microbatches(rows, filled, parts), real


class HeldOut(Generic[S]):
    """Measures every `train.evaluate_every` steps and after the last, and keeps the best state where it is asked to.

    Args:
      measure: state → metrics under `eval/`.
      folder: of the run; None keeps the best in memory.
    """

    def __init__(
        self, train: Wanted, measure: Callable[[S], dict[str, jax.Array]], folder: Path | None = None
    ):
        self._every, self._last, self._measure = train.evaluate_every, train.steps, measure
        self._best = None if train.keep_best is None else Best(train.keep_best, folder)

    def __call__(self, number: int, state: S) -> dict[str, jax.Array]:
        """Metrics after step `number`."""
        if self._every is None or (number % self._every and number != self._last):
            return {}
        metrics = self._measure(state)
        if self._best is not None:
            self._best.offer(number, state, float(metrics[self._best.metric]))
        return metrics

    def chosen(self, state: S) -> S:
        """The state to keep, `state` being the last."""
        return state if self._best is None else self._best.take(state)

    def record(self) -> JSONObject:
        """For policy.json: which step the policy is of, where that is not simply the last."""
        return {} if self._best is None else {"best": self._best.record()}


class Best:
    """The parameters of the step with the best value; of equal ones the first.

    On disk in `best/`, written before the checkpoint of its step: a run that goes on from an earlier checkpoint comes to the
    same step again, so a best that lies ahead of it is passed over until then.
    """

    def __init__(self, metric: str, folder: Path | None):
        self.metric, self._low = metric, "loss" in metric
        self._checkpoints = None if folder is None else Checkpointer(folder / FOLDER, keep=1)
        self._found: tuple[int, float] | None = None
        self._state: Any = None
        self._opened = False

    def offer(self, number: int, state: State, value: float) -> None:
        """Keep a copy of the state if it is better than all before."""
        if not self._opened:
            self._open(number, state)
        if not np.isfinite(value):  # the loop stops the run and says so
            return
        if self._found is not None and not (value < self._found[1] if self._low else value > self._found[1]):
            return
        self._found = number, value
        if self._checkpoints is None:
            # A view of the buffers, which `device_get` may give, would change with the next step: they are donated.
            self._state = jax.tree.map(lambda leaf: np.array(place.host(leaf)), _light(state))
        else:
            self._checkpoints.save(number, _light(state), {"metric": self.metric, "value": value})

    def _open(self, number: int, state: State) -> None:
        """What an earlier session found before step `number`."""
        self._opened = True
        stored = None if self._checkpoints is None else self._checkpoints.restore(_light(state))
        if stored is not None and stored[0] < number:
            self._found = stored[0], float(stored[2]["value"])

    def take(self, state: Any) -> Any:
        """The best state, with the optimiser and the key of the last."""
        if not self._opened:  # a run whose last step was finished by an earlier session
            self._open((1 << 62), state)
        if self._found is None:
            return state
        best = self._state
        if self._checkpoints is not None:
            stored = self._checkpoints.restore(_light(state))
            assert stored is not None and stored[0] == self._found[0], "written when it was found"
            best = stored[1]
        best = place.state(state.params, jax.tree.map(jnp.asarray, best))
        return best._replace(opt_state=state.opt_state, key=state.key)

    def record(self) -> JSONObject:
        """Metric, step and value."""
        if self._found is None:
            return {"metric": self.metric, "step": None, "value": None}
        return {"metric": self.metric, "step": self._found[0], "value": self._found[1]}


def _light(state: State) -> Any:
    """The state without what only the next step needs."""
    return state._replace(opt_state=(), key=())
