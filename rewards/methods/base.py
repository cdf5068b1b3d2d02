"""One interface for every personalised reward model: estimator → fitted model → people → predictions.

An estimator only stores its settings; `fit` returns a frozen `FittedModel` and changes nothing:

    fitted = House(num_basis=4).fit(table, training)
    people = fitted.adapt(table, answers)            # one state a person, from their answers alone
    fitted.predict(table, people, pairs)             # P(chosen ≻ rejected), [U, T]
    fitted.score(table, people, pairs)               # accuracy of every person, [U]

Everything reads one `ItemTable` (texts with their embeddings), so all models share encoder and data; models
whose reward is linear in a coefficient vector also share gauge, prior and records (`linear.LinearFitted`).

Letters in shapes: I items, D embedding width, P prompts, U people, n answers and T test pairs (padded),
K basis outputs, N training comparisons.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from rewards.files import JSONObject
from rewards.methods import checks
from rewards.types import Preferences

OnRound = Callable[[int, dict[str, float]], None]
EmbedTexts = Callable[[list[str]], np.ndarray]
"""Texts → float32[n, D], in the space of the table's embeddings."""


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """All items of a data set with their embeddings.

    Attributes:
      prefs: whose item and prompt tables are meant; its comparisons are not looked at here.
      embeddings: float32[I, D].
      encoder: settings that rebuild the embeddings, `encoder_hash` the hash of its weights.
      prompt_embeddings: float32[P, D] when the encoder can embed prompts by themselves.
      embed_texts: embeds any text, for models that put a person into words; None without a language model.
    """

    prefs: Preferences
    embeddings: Float[np.ndarray, "I D"]
    encoder: JSONObject
    encoder_hash: str = ""
    prompt_embeddings: Float[np.ndarray, "P D"] | None = None
    embed_texts: EmbedTexts | None = None

    def __post_init__(self) -> None:
        checks.check_table(self)

    @classmethod
    def of(
        cls,
        prefs: Preferences,
        embeddings: Float[np.ndarray, "I D"],
        settings: JSONObject,
        embed: Callable[[Preferences, JSONObject], np.ndarray],
    ) -> "ItemTable":
        """All items with their embeddings; with a model that embeds (`settings`) also the means to embed any text.

        Prompts are left to the models, which take the mean of a prompt's items: it costs no forward pass.
        """

        def texts(of: list[str]) -> np.ndarray:
            return embed(text_items(of), settings)

        embed_texts = texts if settings["kind"] in ("lm", "sentence") else None
        return cls(prefs, embeddings, settings, settings.get("fingerprint", ""), embed_texts=embed_texts)


def text_items(texts: list[str]) -> Preferences:
    """Texts as completions of an empty prompt that nobody compared."""
    nothing = np.zeros(0, np.int32)
    return Preferences(
        prompts=("",),
        item_prompt=np.zeros(len(texts), np.int32),
        item_text=tuple(texts),
        item_features=None,
        user_ids=(),
        user_index=nothing,
        chosen=nothing,
        rejected=nothing,
        outcome=np.zeros(0, np.float32),
        choice=nothing,
        row=nothing,
        columns={},
        source="texts",
    )


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """Comparisons of U people, padded to one length; indices point into the table of items.

    Attributes:
      weight: 0 for padding, else how much the answer counts (1, or the probability that it is genuine).
    """

    chosen: Int[np.ndarray, "U n"]
    rejected: Int[np.ndarray, "U n"]
    outcome: Float[np.ndarray, "U n"]
    weight: Float[np.ndarray, "U n"]

    @classmethod
    def of(cls, prefs: Preferences, rows: Int[np.ndarray, "U n"]) -> "Comparisons":
        """From row numbers of `prefs`, one line a person; −1 pads."""
        present = rows >= 0
        index = np.where(present, rows, 0)
        return cls(
            prefs.chosen[index] * present,
            prefs.rejected[index] * present,
            np.where(present, prefs.outcome[index], 0.5).astype(np.float32),
            present.astype(np.float32),
        )

    def first(self, count: int) -> "Comparisons":
        """Only the first `count` answers count; shapes stay, so nothing compiles again."""
        mask = np.arange(self.weight.shape[1]) < count
        return dataclasses.replace(self, weight=self.weight * mask.astype(np.float32))


class FittedModel(abc.ABC):
    """A fitted reward model: frozen, with everything needed to place new people.

    Attributes:
      kind: name in `rewards.methods.MODELS`.
      policy_refusal: why it cannot drive a conditioned policy; None when it can.
    """

    kind: ClassVar[str]
    policy_refusal: ClassVar[str | None] = None

    def adapt(self, table: ItemTable, answers: Comparisons) -> Any:
        """State of every person from their answers alone: an array or a tuple of arrays, [U, ...] each.

        Without answers it is the model's idea of a person nothing is known about.

        Raises:
          UserError: answers that are none (`rewards.methods.checks`).
        """
        return self._adapt(table, checks.checked_answers(table, answers))

    @abc.abstractmethod
    def _adapt(self, table: ItemTable, answers: Comparisons) -> Any: ...

    @abc.abstractmethod
    def seen(self) -> Any:
        """States of the training people as fitted, in the order of the user table they were fitted on."""

    def margins(self, table: ItemTable, people: Any, pairs: Comparisons) -> Float[np.ndarray, "U T"]:
        """r_u(chosen) − r_u(rejected) in nats; 0 for padding, and for an item against itself.

        Raises:
          UserError: pairs of items that there are not, or people who are not as many as the lines of `pairs`.
        """
        pairs = checks.checked_pairs(table, pairs)
        checks.check_people(people, len(pairs.weight))
        return self._margins(table, people, pairs)

    @abc.abstractmethod
    def _margins(self, table: ItemTable, people: Any, pairs: Comparisons) -> Float[np.ndarray, "U T"]: ...

    @abc.abstractmethod
    def tensors(self) -> dict[str, np.ndarray]:
        """What `store.save_model` writes besides the settings; float32."""

    @abc.abstractmethod
    def settings(self) -> JSONObject:
        """JSON beside the tensors: hyper-parameters and what the fit reported."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, tensors: dict[str, np.ndarray], settings: JSONObject) -> "FittedModel":
        """The inverse of `tensors` and `settings`; raises UserError for a missing or misshapen tensor."""

    def predict(self, table: ItemTable, people: Any, pairs: Comparisons) -> Float[np.ndarray, "U T"]:
        """P(chosen ≻ rejected) = σ(margin); ½ for padding."""
        return 0.5 * (1.0 + np.tanh(0.5 * self.margins(table, people, pairs)))

    def score(self, table: ItemTable, people: Any, pairs: Comparisons) -> Float[np.ndarray, " U"]:
        """Share of each person's untied pairs predicted right; a margin of exactly 0 is half right."""
        pairs = checks.checked_pairs(table, pairs)
        margins = self.margins(table, people, pairs)
        counted = (pairs.weight > 0) & (pairs.outcome != 0.5)
        signed = margins * np.where(pairs.outcome > 0.5, 1.0, -1.0)
        right = np.where(signed == 0, 0.5, signed > 0)
        total = counted.sum(axis=1)
        return np.where(total > 0, (right * counted).sum(axis=1) / np.maximum(total, 1), np.nan)


class RewardModel(abc.ABC):
    """An estimator. Subclasses are frozen, validated dataclasses of settings (`rewards.basis.fit.FitConfig`'s way)."""

    kind: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]

    def fit(
        self,
        table: ItemTable,
        training: Preferences,
        *,
        weight: Float[np.ndarray, " N"] | None = None,
        on_round: OnRound | None = None,
    ) -> FittedModel:
        """Fit on the comparisons of `training` (same item and user tables as `table.prefs`).

        Args:
          weight: how much each comparison counts, all 1 by default (`annotation.mixture` supplies others).
        Raises:
          UserError: comparisons that are none (`rewards.methods.checks`), too little data, or data the model cannot
            use; the line says what to change.
        """
        training = checks.checked_training(table, training, weight)
        fitted = self._fit(table, training, weight=weight, on_round=on_round)
        checks.check_fitted(fitted.seen(), training, self.kind)
        return fitted

    @abc.abstractmethod
    def _fit(
        self,
        table: ItemTable,
        training: Preferences,
        *,
        weight: Float[np.ndarray, " N"] | None = None,
        on_round: OnRound | None = None,
    ) -> FittedModel: ...
