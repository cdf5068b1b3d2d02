"""`rewards.fit` and `rewards.load` → `FittedRewards`: axes, population, people; in memory until it is saved."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rewards import hashed
from rewards.api import calibrate
from rewards.api.encoders import Encoder
from rewards.api.person import Person
from rewards.api.scoring import features_of
from rewards.basis import meaning, projection, rails
from rewards.basis.belief import Belief
from rewards.basis.rails import Rails
from rewards.basis.store import FittedBasis, RewardRun, load_reward_run
from rewards.data.completions import read_completions
from rewards.errors import UserError
from rewards.methods.base import FittedModel
from rewards.methods.linear import LinearFitted
from rewards.methods.store import RECORD, load_model, save_model
from rewards.people import population, records
from rewards.people.book import Book
from rewards.people.calibration import Calibration
from rewards.people.pool import Question, make_pool, read_pool, write_pool
from rewards.people.population import People
from rewards.types import Preferences, Prompt, as_messages


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Fit:
    """What a fit in memory was made of, so that it can be stored.

    Attributes:
      table: all preferences whose pairs may be asked about. train: those that were fitted on.
      phi: float32[I, K] of the items. people: the model with everybody's Laplace posterior.
      seed: of the simulated people behind the error bars.
    """

    table: Preferences
    train: Preferences
    phi: Float[np.ndarray, "I K"]
    people: LinearFitted
    seed: int

    def records(self, identity: str) -> list[records.UserRecord]:
        """One record for every training person, with the answers it was computed from."""
        train, fitted, found = self.train, self.people, []
        order = np.lexsort((np.arange(train.num_comparisons), train.choice, train.user_index))
        for own in np.split(order, np.flatnonzero(np.diff(train.user_index[order])) + 1):
            user = int(train.user_index[own[0]])
            answers = tuple(records.answer_of(train, self.phi, int(row)) for row in own)
            posterior = Belief.from_precision(
                fitted.coef_mean[user], fitted.coef_precision[user], len(answers)
            )
            found.append(records.UserRecord(train.user_ids[user], identity, posterior, answers))
        return found


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class FittedRewards:
    """A reward for every person: r_u(x, y) = w_u · φ(x, y), with a population of w for people who have said nothing.

    Attributes:
      method: name of the reward model.
      model: the fitted model; None for a stored basis that no model was fitted for.
      encoder: reads new texts; None if they cannot be read.
      book: people's records.
      metrics: numbers of the fit.
      fit: what it was fitted on; None when it was opened from a run.
    """

    method: str
    model: FittedModel | None
    encoder: Encoder | None
    metrics: Mapping[str, float]
    _basis: FittedBasis | None
    _book: Book | None
    fit: Fit | None = None

    @property
    def basis(self) -> FittedBasis:
        """φ with its gauge and population, and the hash that people's records and policies refer to.

        Raises:
          UserError: this method's reward is not linear in coefficients.
        """
        if self._basis is None:
            reason = getattr(self.model, "policy_refusal", None) or "its reward is not linear in coefficients"
            raise UserError(f"rewards: method {self.method!r} has no basis: {reason}; fit method='house'")
        return self._basis

    @property
    def book(self) -> Book:
        self.basis  # noqa: B018  the same refusal
        assert self._book is not None
        return self._book

    @property
    def run(self) -> RewardRun | None:
        """The folder's record once the rewards are stored."""
        return None if self._book is None else self._book.run

    @property
    def stored_basis(self) -> FittedBasis:
        """`basis`, with its directory once there is one: what a policy's record names."""
        return self.run or self.basis

    @property
    def directory(self) -> Path | None:
        """Where the rewards are stored; None in memory."""
        return None if self.run is None else self.run.directory

    @property
    def num_basis(self) -> int:
        """K, the length of φ and of everybody's coefficients."""
        return self.basis.basis.num_basis

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the K axes; the first is the direction on which people agree."""
        return self.basis.basis.gauge.names

    @property
    def prior(self) -> Belief:
        """N(mean, cov) over coefficients: what is known of somebody who has said nothing."""
        return self.basis.prior

    @property
    def people(self) -> tuple[str, ...]:
        """Everybody with a record: the training people, and whoever answered since."""
        return self.book.names()

    @functools.cached_property
    def questions(self) -> tuple[Question, ...]:
        """The pairs that people may be asked about."""
        if self.fit is not None:
            return make_pool(self.fit.table, self.fit.phi)
        return read_pool(self._stored())

    @functools.cached_property
    def population(self) -> People:
        """The training people's posteriors, from which training a policy draws coefficients."""
        if self.fit is None:
            return population.load_people(self._stored())
        people, train = self.fit.people, self.fit.train
        counts = np.bincount(train.user_index, minlength=train.num_users)
        kept = np.flatnonzero(counts)
        return People(
            tuple(train.user_ids[user] for user in kept),
            tuple(
                Belief.from_precision(people.coef_mean[user], people.coef_precision[user], int(counts[user]))
                for user in kept
            ),
        )

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """How much wider than Laplace's an honest error bar is; None with too few people to tell."""
        if self.fit is None:
            return calibrate.read(self._stored())
        return calibrate.simulate(self.fit.train, self.fit.phi, self.fit.people, self.fit.seed)

    def person(self, name: str) -> Person:
        """Somebody by name; without answers exactly the population.

        Stored rewards keep people's records in their folder, rewards in memory keep them in memory.
        """
        person = Person(str(name), self)
        person.record  # noqa: B018  refuses a name that is none, and a damaged record, at once
        return person

    @functools.cached_property
    def meanings(self) -> dict[str, meaning.Meaning]:
        """By axis, the surface traits and words that go with it (`rewards.basis.meaning`)."""
        if self.fit is None:
            return meaning.read(self._stored())
        return dict(zip(self.axes, meaning.measure(self.fit.table, self.fit.phi), strict=True))

    def deviations(self, posterior: Belief) -> Float[np.ndarray, " K"]:
        """Standard deviation of every coefficient, widened by the calibration where there is one."""
        return calibrate.widened(self.calibration, posterior)

    def score(
        self, prompts: Prompt | Sequence[Prompt], completions: str | Sequence[str]
    ) -> Float[np.ndarray, "B K"]:
        """φ of completions, float32[B, K]; a person's reward is `score(...) @ person.mean`.

        Rewards of two completions of one prompt may be compared; those of different prompts only up to a shift.

        Args:
          prompts: one for every completion, or one for all.
          completions: texts.
        Raises:
          UserError: the encoder does not read new texts, or none was given to `rewards.load`.
        """
        texts = [completions] if isinstance(completions, str) else list(completions)
        asked = _one_each(prompts, len(texts))
        if len(asked) != len(texts):
            raise UserError(f"score: {len(asked)} prompts for {len(texts)} completions; give one for each")
        settings = self.basis.basis.encoder
        if settings["kind"] in ("precomputed", "attributes"):
            raise UserError(
                f"score: these rewards were fitted on {settings['kind']}, which new texts do not have; fit with "
                "encoder=rlhf.encoder(...)"
            )
        if self.encoder is None:
            raise UserError(
                "score: no encoder to read texts with; open the rewards with rewards.load(directory, "
                f"encoder=rlhf.encoder({settings['model']!r}))"
            )
        rows = [
            {"prompt": _messages(prompt), "completion": text}
            for prompt, text in zip(asked, texts, strict=True)
        ]
        items = read_completions(rows)
        return features_of(self.basis.basis, items, self.encoder.embed(items, settings))

    @property
    def rails(self) -> Rails | None:
        """Which coefficients may be personal in a policy that is trained with these rewards; None: all."""
        return self.stored_basis.rails

    def with_rails(self, given: Mapping[str, Any] | None, reason: str | None = None) -> "FittedRewards":
        """The same rewards with rails; those of stored rewards are set in their directory.

        Args:
          given: `axes`, `half_spaces`, `trust_nats` (`rewards.basis.rails.stated`); None switches the rails off.
          reason: why; needed to switch them off.
        Raises:
          UserError: an axis that is none, a wrong number, or limits that no coefficients meet.
        """
        found = None
        if given is not None:
            found = projection.stated_for(given, self.axes, self.basis.hash, self.prior, "rails")
        elif not (reason or "").strip():
            raise UserError("rails: switching them off needs a reason; say why")
        if self.run is not None:
            rails.write(self.run.directory, found, reason)
            return load(self.run.directory, encoder=self.encoder)
        return dataclasses.replace(self, _basis=dataclasses.replace(self.basis, rails=found))

    def save(self, directory: str | Path) -> Path:
        """Write a reward run that every command reads; from then on people's records are kept there.

        Raises:
          UserError: the directory holds other rewards.
        """
        directory = Path(directory)
        if self.directory is not None and directory.resolve() == self.directory.resolve():
            return directory
        if (directory / RECORD).exists():
            raise UserError(f"{directory}: holds rewards already; choose another directory")
        if self.directory is not None:
            raise UserError(f"{self.directory}: these rewards are stored already; copy their directory")
        self.write(directory)
        return directory

    def write(self, directory: Path) -> None:
        """`save` over whatever an unfinished fit has left there."""
        assert self.model is not None
        identity = save_model(directory, self.model)
        if self._book is None:
            return
        write_pool(directory, identity, self.questions)
        if self.basis.rails is not None:
            rails.write(directory, self.basis.rails)
        self.book.keep_in(load_reward_run(directory))
        meaning.write(directory, identity, self.axes, tuple(self.meanings.values()))
        if self.calibration is not None:
            hashed.write_record(directory / calibrate.FILE, {"basis": identity} | self.calibration.to_json())
        people = self.population
        population.save_people(  # last: with it the run is whole
            directory,
            identity,
            list(people.user_ids),
            np.stack([posterior.mean for posterior in people.posteriors]),
            np.stack([posterior.precision for posterior in people.posteriors]),
            [posterior.num_answers for posterior in people.posteriors],
        )

    def __repr__(self) -> str:
        place = "in memory" if self.directory is None else str(self.directory)
        if self._basis is None:
            return f"FittedRewards({self.method}, {place})"
        return f"FittedRewards({self.method}, num_basis={self.num_basis}, {len(self.people)} people, {place})"

    def _stored(self) -> RewardRun:
        self.basis  # noqa: B018  a method without a basis has neither people nor questions
        assert self.run is not None
        return self.run


def load(directory: str | Path, *, encoder: Encoder | None = None) -> FittedRewards:
    """Open a reward run: of `chorus rewards fit`, of `save`, or of a reinforcement-learning run with a population.

    Args:
      encoder: needed for `score` alone; the one the rewards were fitted with.
    Raises:
      UserError: no reward run, or a damaged one.
    """
    directory = Path(directory)
    model = load_model(directory) if (directory / RECORD).is_file() else None
    if model is not None and not isinstance(model, LinearFitted):
        return FittedRewards(model.kind, model, encoder, {}, None, None)
    run = load_reward_run(directory)
    method = "columns" if model is None else model.kind
    return FittedRewards(method, model, encoder, {}, run, Book(run))


def _one_each(prompts: Prompt | Sequence[Prompt], count: int) -> list[Prompt]:
    """The prompts as a list; a text or a conversation that stands alone is the prompt of all `count` completions."""
    if isinstance(prompts, str):
        return [prompts] * count
    messages: list[tuple[str, str]] = []
    each: list[Prompt] = []
    for part in prompts:
        match part:
            case (str(role), str(text)):
                messages.append((role, text))
            case _:
                each.append(part)
    return [tuple(messages)] * count if messages else each


def _messages(prompt: Prompt) -> str | list[dict[str, Any]]:
    return prompt if isinstance(prompt, str) else as_messages(prompt)
