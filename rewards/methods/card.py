"""A person as a card in words: the card, read by the language model, gives the coefficients.

    w_u = μ + Aᵀ c_u,   c_u = whitened (e(card_u) − mean card),   r_u(x, y) = w_u · Vᵀ x

e(card) is the language model's embedding of the text, so whoever edits the card edits the reward, and any text
about a person can be one. An empty card has c = 0: the population mean, exactly. The mean card is that of the
training people, so μ is their mean too. V, A and μ are fitted together on cards written from half of a person's
answers and the other half as what is predicted: a card that quotes an answer would predict it, and that only.

    F = −Σ_n log P(y_n | w_{u(n)} · Δφ_n) + ½ ridge |V μ|² + ½ card_ridge |V Aᵀ|²

Each distinct card is one pass of the language model, in fitting about three a person (`max_people` bounds them).

Letters in shapes: P reduced width, Q card coordinates, K basis outputs, U people, n answers, D embedding width, C cards.
Source: PLUS, arXiv:2507.13579. Differs: the summary is written by a template or by any function given, and is not
trained by reinforcement learning; the reward is linear in what the language model makes of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
from pydantic.json_schema import SkipJsonSchema

from rewards.basis import likelihood
from rewards.basis.reduce import whitened_components
from rewards.data.order import by_content
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import card_fit
from rewards.methods import training as shared
from rewards.methods.base import Comparisons, ItemTable, RewardModel
from rewards.methods.card_text import EMPTY, CardAnswer, answers_of, embed_cards, writer_named
from rewards.methods.linear import Coefficients, LinearFitted, finish
from rewards.methods.rules import FixedRule
from rewards.types import Preferences

Write = Callable[[list[CardAnswer]], str]


@dataclasses.dataclass(frozen=True)
class CardState(Coefficients):
    """Coefficients, and the card of everybody they were read from: cards[U], strings."""

    cards: np.ndarray


@dataclasses.dataclass(frozen=True)
class CardFitted(LinearFitted):
    """A linear model whose coefficients come from a text; `rule` gives the population, for use without one.

    Attributes:
      centre[D], card_map[D, K]: w = μ + card_mapᵀ (e(card) − centre) in the canonical gauge.
      writer: "quotes", "attributes" or "custom"; max_answers: answers a card is written from, the last ones.
      cards: texts of the training people.
      write: the function of a custom writer; after loading give it again with `with_writer`.
    """

    kind: str = dataclasses.field(default="card", kw_only=True)
    centre: np.ndarray
    card_map: np.ndarray
    writer: str
    max_answers: int
    cards: tuple[str, ...]
    write: Write | None = None

    def with_writer(self, write: Write) -> "CardFitted":
        return dataclasses.replace(self, write=write)

    def _adapt(self, table: ItemTable, answers: Comparisons) -> CardState:
        """Write everybody's card and read it. The precision is the population's and the answers' curvature at w."""
        if self.writer == "custom" and self.write is None:
            raise UserError("card: fitted with a writer of your own; give it again with `with_writer(write)`")
        write = self.write or writer_named(self.writer)
        cards = [write(own) if own else EMPTY for own in answers_of(table, answers, self.max_answers)]
        state = self.read(table, cards)
        phi = self.features(table)
        delta = (phi[answers.chosen] - phi[answers.rejected]) * (answers.weight > 0)[..., None]
        margin = np.einsum("unk,uk->un", delta, state.mean)
        curvature = np.asarray(likelihood.fisher_information(margin, self.rule.lapse)) * answers.weight
        information = np.einsum("unk,un,unl->ukl", delta, curvature, delta)
        return dataclasses.replace(state, precision=(state.precision + information).astype(np.float32))

    def read(self, table: ItemTable, cards: list[str]) -> CardState:
        """People from their cards alone: what an edited card means. The precision is the population's."""
        embedded, present = embed_cards(table, cards, len(self.centre))
        shift = (embedded - self.centre) @ self.card_map.astype(np.float64)
        mean = self.prior.mean + np.where(present[:, None], shift, 0.0)
        precision = np.tile(self.rule.precision, (len(cards), 1, 1))
        return CardState(mean.astype(np.float32), precision.astype(np.float32), np.array(cards, dtype=object))

    def seen(self) -> CardState:
        return CardState(self.coef_mean, self.coef_precision, np.array(self.cards, dtype=object))

    def tensors(self) -> dict[str, np.ndarray]:
        own = {"card.centre": self.centre, "card.map": self.card_map}
        return super().tensors() | {name: np.asarray(value, np.float32) for name, value in own.items()}

    def settings(self) -> JSONObject:
        card = {
            "width": len(self.centre),
            "writer": self.writer,
            "max_answers": self.max_answers,
            "cards": list(self.cards),
        }
        return super().settings() | {"card": card}

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray], settings: JSONObject) -> "CardFitted":
        card = settings.get("card")
        names = {"width", "writer", "max_answers", "cards"}
        if not isinstance(card, dict) or set(card) != names:
            raise UserError(
                f"card model: setting 'card' must hold {', '.join(sorted(names))}; restore or refit the model"
            )
        linear = {name: array for name, array in tensors.items() if not name.startswith("card.")}
        base = LinearFitted.restore(linear, {k: v for k, v in settings.items() if k != "card"})
        own = {name: array for name, array in tensors.items() if name.startswith("card.")}
        expected = {"card.centre": (card["width"],), "card.map": (card["width"], base.basis.num_basis)}
        if {name: array.shape for name, array in own.items()} != expected:
            found = {name: list(array.shape) for name, array in sorted(own.items())}
            raise UserError(f"card model: tensors {found}, expected {expected}; restore or refit the model")
        if len(card["cards"]) != len(base.coef_mean):
            raise UserError(
                f"card model: {len(card['cards'])} cards for {len(base.coef_mean)} people; restore or refit the model"
            )
        return _of(
            base,
            own["card.centre"],
            own["card.map"],
            card["writer"],
            card["max_answers"],
            tuple(card["cards"]),
        )


def _of(linear: LinearFitted, *own: Any) -> CardFitted:
    fields = {field.name: getattr(linear, field.name) for field in dataclasses.fields(LinearFitted)}
    names = ("centre", "card_map", "writer", "max_answers", "cards", "write")
    return CardFitted(**fields, **dict(zip(names, own, strict=False)))


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class Card(shared.Reduced, RewardModel):
    """User card in words.

    Attributes:
      writer: "quotes" (texts preferred and rejected, shortened), "attributes" (which directions of the
        `attributes` column the person prefers, with counts), or a function of a list of `CardAnswer` to a text,
        e.g. a served language model.
      num_basis: K. `card_dims`: Q, principal components of the cards' embeddings.
      card_ridge: inverse prior variance of what a card changes, or several to choose from on people left out.
      max_answers: answers a card is written from, a person's last ones.
      max_people: people fitted on, drawn at random when there are more; all others have the empty card.
      steps: L-BFGS iterations.
      seed: of the people drawn, of the halves and of the people left out.
    """

    kind: ClassVar[str] = "card"
    fitted: ClassVar[type[CardFitted]] = CardFitted

    writer: Literal["quotes", "attributes"] | SkipJsonSchema[Callable[..., str]] = "quotes"
    num_basis: shared.Count = 4
    card_dims: shared.Count = 16
    card_ridge: shared.Positive | tuple[shared.Positive, ...] = (10.0, 100.0, 1000.0)
    max_answers: shared.Count = 20
    max_people: Annotated[int, pydantic.Field(ge=2, le=1_000_000_000)] = 150
    steps: shared.Count = 100
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0

    def _fit(self, table, training, *, weight=None, on_round=None) -> CardFitted:
        training, weight = card_fit.once_each(training, shared.checked_weight(training, weight))
        people = self._people(training, weight)
        kept = np.isin(training.user_index, people)
        problem = shared.build(table, training.select(kept), self, weight[kept])
        write = self.writer if callable(self.writer) else writer_named(self.writer)
        halves = card_fit.Halves.draw(problem.training, problem.weight, people, self.seed)
        written = [write(own) if own else EMPTY for own in answers_of(table, halves.given, self.max_answers)]
        own_answers = Comparisons.of(
            problem.training, card_fit.rows_of(problem.training, problem.weight, people)
        )
        seen = [write(own) if own else EMPTY for own in answers_of(table, own_answers, self.max_answers)]
        embedded, present = embed_cards(table, seen + written, None)
        if len({card for card, real in zip(seen, present, strict=False) if real}) < 2:
            raise UserError(
                f"{training.source}: all {len(people)} people have the same card; use another card.writer"
            )
        centre = embedded[: len(people)][present[: len(people)]].mean(axis=0)
        reduction = whitened_components(embedded[present], np.zeros(int(present.sum()), int), self.card_dims)
        coordinates = np.where(present[:, None], (embedded - centre) @ reduction.projection, 0.0)
        params, report = self._choose_ridge(problem, halves, coordinates[len(people) :], on_round)
        coef = np.tile(params["mean"].astype(np.float64), (training.num_users, 1))
        coef[people] += coordinates[: len(people)] @ params["card_map"]
        images = []

        def rule(gauge):
            images.append(gauge.image)
            return FixedRule(gauge.mean, gauge.precision, self.lapse)

        linear = finish(self.kind, problem, params["directions"], coef, rule, report)
        card_map = reduction.projection @ params["card_map"] @ images[0]
        texts = np.full(training.num_users, EMPTY, dtype=object)
        texts[people] = seen
        name, own = ("custom", self.writer) if callable(self.writer) else (self.writer, None)
        parts = (centre.astype(np.float32), card_map.astype(np.float32))
        return _of(linear, *parts, name, self.max_answers, tuple(texts), own)

    def _people(self, training: Preferences, weight: np.ndarray) -> np.ndarray:
        """People with an answer for the card and one to predict; at most `max_people`."""
        people = np.flatnonzero(np.bincount(training.user_index, weight > 0, training.num_users) >= 2)
        if len(people) < 4:
            raise UserError(
                f"{training.source}: {len(people)} people with two comparisons; cards need at least 4"
            )
        place, _ = by_content(training)
        drawn = np.random.default_rng(self.seed).permutation(people[np.argsort(place[people])])
        return drawn[: self.max_people][np.argsort(place[drawn[: self.max_people]])]

    def _choose_ridge(self, problem: shared.Problem, halves: card_fit.Halves, cards: np.ndarray, on_round):
        """Choose card_ridge on a quarter of the people, then fit on all."""
        ridges = self.card_ridge
        options = list(ridges) if isinstance(ridges, tuple) else [ridges]
        losses: dict[float, float] = {}
        if len(options) > 1:
            shuffled = np.random.default_rng(self.seed + 1).permutation(len(cards) // 2)
            # Both halves of a person are left out together.
            out = np.isin(np.arange(len(cards)) // 2, shuffled[: max(1, len(shuffled) // 4)])
            for ridge in options:
                params, _ = self._minimise(problem, halves, cards, ridge, ~out, None)
                losses[ridge] = card_fit.loss_nats(halves.data(problem, out), params, self.lapse)
        ridge = min(losses, key=losses.__getitem__) if losses else options[0]
        params, metrics = self._minimise(problem, halves, cards, ridge, np.ones(len(cards), bool), on_round)
        return params, metrics | {
            "card_ridge": ridge,
            "left_out_loss_nats": {str(k): v for k, v in losses.items()},
        }

    def _minimise(self, problem, halves: card_fit.Halves, cards, ridge: float, use: np.ndarray, on_round):
        data = halves.data(problem, use)
        scales = {"lapse": self.lapse, "ridge": self.ridge, "card_ridge": ridge}
        start = card_fit.start(problem, data, cards, self.num_basis, scales)
        return shared.minimise(card_fit.LINK, start, data, scales, steps=self.steps, on_round=on_round)
