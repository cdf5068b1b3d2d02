"""What a reward is to a trainer: completions and the rows of their prompts in, φ out, and what it can do besides.

A trainer asks `can` and never which class it holds: a compiled reward may be fused into the iteration, one that reads
beginnings may start a critic's values, one that speaks token by token gives [B, T, K].

Shapes: B rows, T completion slots, K outputs.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import PyTree
from pydantic import Field

from rewards.types import NOBODY, Columns, Preferences, Prompt
from rlhf.policy.scoring import Rows
from rlhf.run.record import record


@record
class HostConfig:
    """Rewards that are computed outside the compiled program: Python functions, models, judges."""

    parallel: int = Field(default=4, ge=1, le=256, description="Columns computed at a time.")
    timeout_seconds: float = Field(
        default=600.0,
        gt=0,
        le=1e6,
        description="Longest time one column may take for the completions of an iteration.",
    )
    retries: int = Field(
        default=0, ge=0, le=100, description="Further tries after a column failed, with growing pauses."
    )


@dataclasses.dataclass(frozen=True)
class PromptRows:
    """Prompts of a run, with the row each came from and what else stands there.

    Attributes:
      prompts: N prompts. row: int32[N], 1-based rows of `source`. columns: lists of length N.
    """

    prompts: tuple[Prompt, ...]
    row: np.ndarray
    columns: Columns
    source: str

    def take(self, index: np.ndarray) -> "PromptRows":
        return PromptRows(
            tuple(self.prompts[i] for i in index),
            self.row[index],
            {name: [values[i] for i in index] for name, values in self.columns.items()},
            self.source,
        )

    def with_texts(self, texts: Sequence[str]) -> Preferences:
        """One completion a prompt as items: a comparison of each with itself, as when completions are scored."""
        distinct: dict[Prompt, int] = {}
        item_prompt = [distinct.setdefault(prompt, len(distinct)) for prompt in self.prompts]
        count = len(texts)
        return Preferences(
            prompts=tuple(distinct),
            item_prompt=np.array(item_prompt, np.int32),
            item_text=tuple(texts),
            item_features=None,
            user_ids=(NOBODY,),
            user_index=np.zeros(count, np.int32),
            chosen=np.arange(count, dtype=np.int32),
            rejected=np.arange(count, dtype=np.int32),
            outcome=np.full(count, 0.5, np.float32),
            choice=np.arange(count, dtype=np.int32),
            row=self.row,
            columns=self.columns,
            source=self.source,
        )


class Completions(Protocol):
    """What a reward reads of completions on the device (`rlhf.train.rl.rollout.Rollout` is one).

    Attributes:
      tokens: int32[B, L], prompt | completion; starts: int32[B], slot of the first token.
      mask: bool[B, T], completion tokens up to and including the one that stopped it; ended: bool[B], whether one did.
      rows: the same tokens, with activations that may be shared.
    """

    @property
    def tokens(self) -> jax.Array: ...
    @property
    def starts(self) -> jax.Array: ...
    @property
    def mask(self) -> jax.Array: ...
    @property
    def ended(self) -> jax.Array: ...
    @property
    def rows(self) -> Rows | None: ...


@dataclasses.dataclass(frozen=True)
class Can:
    """compiled: has a kernel for compiled programs. beginnings: says something of half a completion. tokens: gives every
    token its own number."""

    compiled: bool
    beginnings: bool
    tokens: bool


class Rewards(NamedTuple):
    """phi: float32[B, K] or [B, T, K]. left_out: by column, of how many completions it said nothing; only those above 0."""

    phi: jax.Array | np.ndarray
    left_out: dict[str, int]


class Reward(Protocol):
    """φ of completions: float32[B, K], or float32[B, T, K] where it `can.tokens`.

    Attributes:
      can: what it can do. kernel, arrays: its function and what that reads, where it `can.compiled`; else None.
    """

    @property
    def can(self) -> Can: ...
    @property
    def kernel(self) -> "Kernel | None": ...
    @property
    def arrays(self) -> PyTree: ...
    def __call__(self, completions: Completions, prompts: PromptRows) -> Rewards: ...


class Kernel(Protocol):
    """The function of a compiled reward; hashable, for it is static under jit."""

    @property
    def reads_beginnings(self) -> bool: ...
    @property
    def per_token(self) -> bool: ...
    def __call__(self, arrays: PyTree, completions: Completions) -> jax.Array: ...
    def beginnings(self, arrays: PyTree, completions: Completions) -> jax.Array:
        """φ of the completion before each token, float32[B, T, K]; only where it `reads_beginnings`."""
        ...


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A reward inside compiled programs: its function and what that reads."""

    kernel: Kernel
    arrays: PyTree

    @property
    def can(self) -> Can:
        return Can(compiled=True, beginnings=self.kernel.reads_beginnings, tokens=self.kernel.per_token)

    def __call__(self, completions: Completions, prompts: PromptRows) -> Rewards:
        return Rewards(_run(self.kernel, self.arrays, completions), {})


@functools.partial(jax.jit, static_argnums=0)
def _run(kernel: Kernel, arrays: PyTree, completions: Completions) -> jax.Array:
    return kernel(arrays, completions)
