"""`fitted.person(name)`: somebody's coefficients, and the questions that would teach most about them."""

import dataclasses
import html
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.people import pool as pool_module
from rewards.people.pool import Preferred, Question
from rewards.people.records import Answer, UserRecord

if TYPE_CHECKING:
    from rewards.api.fitted import FittedRewards


@dataclasses.dataclass(frozen=True, repr=False)
class Person:
    """Somebody in front of fitted rewards; what they answer changes what these properties say.

    Attributes:
      name: their id.
      rewards: the rewards that their coefficients belong to.
    """

    name: str
    rewards: "FittedRewards"

    @property
    def record(self) -> UserRecord:
        """Answers, edits and posterior as they stand now."""
        return self.rewards.book.get(self.name)

    @property
    def posterior(self) -> Belief:
        """Laplace posterior of the coefficients; without answers exactly the population."""
        return self.record.posterior

    @property
    def mean(self) -> Float[np.ndarray, " K"]:
        """Coefficients, nats a unit of φ."""
        return np.asarray(self.posterior.mean)

    @property
    def sd(self) -> Float[np.ndarray, " K"]:
        """Standard deviation of every coefficient, calibrated where the rewards have a calibration."""
        return self.rewards.deviations(self.posterior)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What they answered, in order."""
        return self.record.answers

    def ask(self, rule: str = "information") -> Question:
        """The open question whose answer would teach most, its sides in an order drawn from the name.

        Args:
          rule: how questions are chosen, a name of `rewards.people.acquisition.RULES`.
        Raises:
          UserError: every question has been answered, or no such rule.
        """
        record = self.record
        index = pool_module.next_question(self.rewards.basis, record, self.rewards.questions, rule)
        if index is None:
            raise UserError(
                f"{self.name}: all {len(self.rewards.questions)} questions are answered; fit on data with more pairs"
            )
        question = self.rewards.questions[index]
        first, _ = pool_module.sides(self.name, len(record.answers) + len(record.skipped))
        return question if first == "first" else question.swapped()

    def answer(self, question: Question, preferred: Preferred) -> "Person":
        """Learn from an answer; returns the person again.

        Args:
          preferred: "first", "second" or "tie".
        Raises:
          UserError: another word, or a question of other rewards.
        """
        if preferred not in ("first", "second", "tie"):
            raise UserError(f"answer {preferred!r}: use 'first', 'second' or 'tie'")
        if len(question.delta_features) != self.rewards.num_basis:
            raise UserError(
                f"question: has {len(question.delta_features)} features, these rewards have {self.rewards.num_basis}; "
                "ask this person with ask()"
            )
        self.rewards.book.add(self.name, answers=[pool_module.answer_to(question, preferred)])
        return self

    def skip(self, question: Question) -> "Person":
        """Never ask this question again; nothing is learned from it."""
        self.rewards.book.add(self.name, skipped=[question.key])
        return self

    def card(self) -> str:
        """Coefficients beside the population's, one line an axis."""
        prior, mean, sd = self.rewards.prior, self.mean, self.sd
        width = max(map(len, self.rewards.axes))
        lines = [
            f"  {axis:<{width}}  {mean[k]:+.2f} ± {sd[k]:.2f}   (population {prior.mean[k]:+.2f} ± "
            f"{prior.sd[k]:.2f})"
            for k, axis in enumerate(self.rewards.axes)
        ]
        return "\n".join([f"{self.name}: {_answers(len(self.answers))}", *lines])

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:+.2f}" for value in self.mean)
        return f"Person({self.name!r}, {_answers(len(self.answers))}, mean=[{shown}])"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.card())}</pre>"


def _answers(count: int) -> str:
    return f"{count} answer" if count == 1 else f"{count} answers"
