"""Records of the reward side. Frozen; arrays are NumPy on the host.

Letters in shapes: I items, U users, N comparisons, D embedding width, K basis outputs.
"""

import dataclasses
import json
from typing import Any

import numpy as np

Prompt = str | tuple[tuple[str, str], ...]
"""A plain string, or chat messages as ((role, content), ...); without any message, nothing: the text begins there."""


MESSAGE_KEYS = ("name", "tool_calls", "tool_call_id")
"""What a message may say besides role and content."""


class Message(tuple[str, str]):
    """(role, content) of a message that says more: a `name`, `tool_calls`, a `tool_call_id`.

    Attributes:
      more: those fields as JSON text, keys in order.
    """

    more: str

    def __new__(cls, role: str, content: str, more: str) -> "Message":
        made = super().__new__(cls, (role, content))
        made.more = more
        return made

    def __getnewargs__(self) -> tuple[str, str, str]:
        return self[0], self[1], self.more

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and tuple(self) == tuple(other) and self.more == other.more

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((*self, self.more))


def as_messages(prompt: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    """Messages as chat templates and files have them."""
    return [
        {"role": one[0], "content": one[1]} | (json.loads(one.more) if isinstance(one, Message) else {})
        for one in prompt
    ]


NOBODY = "-"
"""The one user id of comparisons that do not say who chose."""
Values = list[Any]
"""One value per row, of whatever kind the data has; what uses them checks them."""
Columns = dict[str, Values]


def message_of(value: dict[str, Any]) -> tuple[str, str]:
    """The inverse of `as_messages`, for one message."""
    more = {name: part for name, part in value.items() if name not in ("role", "content")}
    role, content = value["role"], value["content"]
    return (
        Message(role, content, json.dumps(more, sort_keys=True, ensure_ascii=False))
        if more
        else (role, content)
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Preferences:
    """Comparisons of many people over a table of distinct (prompt, completion) items.

    Attributes:
      prompts: distinct prompts.
      item_prompt: int32[I], index into `prompts`.
      item_text: I completion texts.
      item_features: float32[I, D] when the file brings its own embeddings, else None.
      user_ids: U external ids.
      user_index: int32[N], index into `user_ids`.
      chosen, rejected: int32[N], indices of items.
      outcome: float32[N], 1.0 when `chosen` was preferred, 0.5 for a tie.
      choice: int32[N], index of the choice event within the person, in time order; the rows of one
        best-of-four share it.
      row: int32[N], 1-based row of the source, for error messages.
      columns: optional columns (`shown_first`, `frame`, `attributes`, ...) as lists of length N.
      source: where the rows came from, for messages.
    """

    prompts: tuple[Prompt, ...]
    item_prompt: np.ndarray
    item_text: tuple[str, ...]
    item_features: np.ndarray | None
    user_ids: tuple[str, ...]
    user_index: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    outcome: np.ndarray
    choice: np.ndarray
    row: np.ndarray
    columns: Columns
    source: str

    def __repr__(self) -> str:
        people = f" by {len(np.unique(self.user_index)):,} people" if self.has_people else ""
        return f"Preferences({self.num_comparisons:,} comparisons{people}, {self.num_items:,} completions; {self.source})"

    @property
    def has_people(self) -> bool:
        """Whether the comparisons say who chose."""
        return self.user_ids != (NOBODY,)

    @property
    def num_comparisons(self) -> int:
        return len(self.user_index)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_text)

    def select(self, mask: np.ndarray) -> "Preferences":
        """Keep the comparisons where `mask` (bool[N]) holds; item and user tables stay as they are."""
        keep = np.flatnonzero(mask)
        return dataclasses.replace(
            self,
            user_index=self.user_index[keep],
            chosen=self.chosen[keep],
            rejected=self.rejected[keep],
            outcome=self.outcome[keep],
            choice=self.choice[keep],
            row=self.row[keep],
            columns={name: [values[i] for i in keep] for name, values in self.columns.items()},
        )


@dataclasses.dataclass(frozen=True)
class Gauge:
    """How raw basis outputs are read: φ = scale · signs ⊙ (rotation · whitening · (raw − mean)).

    The raw outputs and the coefficients are only identified up to an invertible change of basis and a
    prompt-dependent shift; a prior, a lock or a norm means something only after this record is applied.

    Attributes:
      centring: name of the rule that removes the prompt-dependent shift.
      mean: float32[K], whitening: float32[K, K], rotation: float32[K, K], signs: float32[K] of ±1, scale: float.
      names: K labels; axis 0 is the aggregate direction.
      encoder_hash: sha256 over the encoder's weights and settings.
    """

    centring: str
    mean: np.ndarray
    whitening: np.ndarray
    rotation: np.ndarray
    signs: np.ndarray
    scale: float
    names: tuple[str, ...]
    encoder_hash: str


@dataclasses.dataclass(frozen=True)
class PromptPart:
    """The part of a quadratic basis that depends on the prompt: f(x, y)^T head_k c(x), c = projection^T e(x).

    Attributes:
      projection: float32[D, Q].
      head: float32[K, R, Q].
      source: where e(x) comes from: "encoder" (the prompt embedded by itself) or "mean" (the mean embedding of
        the prompt's items in the table given).
    """

    projection: np.ndarray
    head: np.ndarray
    source: str


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """What ideal-point models add to every raw output k: −|f|^2 + f^T head_k c(x), f = square^T e(x, y).

    −|f − p_k|^2 is −|f|^2 + 2 f·p_k up to a constant, so the prototypes p_k themselves live in the linear head.

    Attributes:
      square: float32[D, R].
      prompt: prototypes that depend on the prompt; None when they do not.
    """

    square: np.ndarray
    prompt: PromptPart | None = None


@dataclasses.dataclass(frozen=True)
class RewardBasis:
    """raw(x, y) = head^T e(x, y), plus the same quadratic term in every output, read through `gauge`.

    Attributes:
      head: float32[D, K].
      gauge: the gauge record.
      encoder: plain settings that rebuild e(x, y) (kind, model, layer, pooling, ...).
      quadratic: only for ideal-point models.
    """

    head: np.ndarray
    gauge: Gauge
    encoder: dict[str, Any]
    quadratic: Quadratic | None = None

    @property
    def num_basis(self) -> int:
        return self.head.shape[1]
