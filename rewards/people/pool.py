"""The pairs of texts that people may be asked about, and the choice of the next one.

questions.json of a reward run   `basis`, and the pool: prompt, first, second, delta_features (φ(first) − φ(second))
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from rewards import hashed, jsonl
from rewards.basis.store import FittedBasis, RewardRun
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import questions, records
from rewards.people.edits import locked
from rewards.types import Message, Preferences, Prompt, message_of

FILE = "questions.json"
AGAIN = "fit the run again or use --answers FILE"
MAX_QUESTIONS = 2000
Preferred = Literal["first", "second", "tie"]


@dataclasses.dataclass(frozen=True, repr=False)
class Question:
    """Which of two texts somebody likes better.

    Attributes:
      prompt, first, second: the texts.
      delta_features: φ(first) − φ(second), K numbers.
    """

    prompt: Prompt
    first: str
    second: str
    delta_features: tuple[float, ...]

    def __repr__(self) -> str:
        prompt = self.prompt
        shown = prompt if isinstance(prompt, str) else "\n".join(f"{role}: {text}" for role, text in prompt)
        return f"{shown}\n  first:  {self.first}\n  second: {self.second}"

    @property
    def key(self) -> str:
        """Names the pair, whichever way round it stands."""
        return records.question_key(self.prompt, self.first, self.second)

    def swapped(self) -> "Question":
        """The same question with its sides exchanged."""
        return Question(self.prompt, self.second, self.first, tuple(-value for value in self.delta_features))


def make_pool(prefs: Preferences, phi: np.ndarray) -> tuple[Question, ...]:
    """Every distinct pair of the data, evenly thinned to MAX_QUESTIONS; `phi` float[I, K] are the items' features."""
    pairs = np.unique(np.sort(np.stack([prefs.chosen, prefs.rejected], axis=1), axis=1), axis=0)
    if len(pairs) > MAX_QUESTIONS:
        pairs = pairs[np.unique(np.linspace(0, len(pairs) - 1, MAX_QUESTIONS).astype(int))]
    return tuple(
        Question(
            prefs.prompts[prefs.item_prompt[a]],
            prefs.item_text[a],
            prefs.item_text[b],
            tuple((phi[a] - phi[b]).astype(float).tolist()),
        )
        for a, b in pairs.tolist()
    )


def write_pool(directory: Path, identity: str, pool: Sequence[Question]) -> None:
    """Write the pool of the basis with hash `identity`."""
    rows = [_row(question) for question in pool]
    hashed.write_record(directory / FILE, {"basis": identity, "questions": rows})


def _row(question: Question) -> dict[str, Any]:
    prompt = question.prompt
    more = isinstance(prompt, tuple) and any(isinstance(message, Message) for message in prompt)
    return {**vars(question), "prompt": jsonl.prompt_value(prompt) if more else prompt}


def read_pool(run: RewardRun) -> tuple[Question, ...]:
    """Read the pool of a reward run.

    Raises:
      UserError: it is missing, damaged, or belongs to another basis.
    """
    path = run.directory / FILE

    def parse(content: JSONObject) -> tuple[Question, ...]:
        listed = isinstance(content.get("questions"), list) and content["questions"]
        if not listed or content.get("basis") != run.hash:
            raise UserError(f"{path}: not the questions of this run's basis; {AGAIN}")
        return tuple(
            _parse(path, number, question, run.basis.num_basis)
            for number, question in enumerate(content["questions"])
        )

    return hashed.parse_record(path, AGAIN, parse)


def _parse(path: Path, number: int, question: Any, num_basis: int) -> Question:
    try:
        texts, delta = (question["first"], question["second"]), question["delta_features"]
        right = all(isinstance(text, str) for text in texts) and np.shape(delta) == (num_basis,)
        if right and np.isfinite(np.array(delta, np.float32)).all() and question["prompt"] is not None:
            return Question(prompt_of(question["prompt"]), *texts, tuple(map(float, delta)))
    except (TypeError, KeyError, ValueError, OverflowError, IndexError):
        pass
    raise UserError(f"{path}: questions[{number}] is damaged; {AGAIN}")


def prompt_of(value: Any) -> Prompt:
    """A prompt from JSON: text, or messages as (role, content) pairs or as objects."""
    if isinstance(value, str):
        return value
    return tuple(message_of(m) if isinstance(m, dict) else (m[0], m[1]) for m in value)


def deltas(pool: Sequence[Question]) -> np.ndarray:
    """φ(first) − φ(second) of every question, float32[M, K]."""
    return np.array([question.delta_features for question in pool], np.float32)


MOST_LOCKED = 0.5
"""Share of what people differ by on a pair that may come from locked axes; above it the pair is about those."""


def worth_asking(
    run: FittedBasis, delta: Float[np.ndarray, "M K"]
) -> tuple[Float[np.ndarray, "M K"], Bool[np.ndarray, " M"]]:
    """Pairs without what they would tell of locked axes, and which of them are not about those in the first place.

    What somebody says of a locked axis is used nowhere, so nobody is asked for it: a rule of `acquisition` sees Δφ with 0
    there, and a pair is not asked at all where l'Σl > MOST_LOCKED (l'Σl + f'Σf), l and f its locked and its other part.
    """
    names = locked(run)
    if not names:
        return delta, np.ones(len(delta), bool)
    held = np.isin(run.basis.gauge.names, names)
    cov = np.asarray(run.prior.cov, np.float64)
    parts = [np.where(which, delta, 0.0) for which in (held, ~held)]
    own, rest = (np.einsum("mk,kj,mj->m", part, cov, part) for part in parts)
    return parts[1].astype(np.float32), own <= MOST_LOCKED * (own + rest)


def open_questions(pool: Sequence[Question], record: records.UserRecord) -> np.ndarray:
    """bool[M]: questions neither answered nor skipped."""
    closed = {answer.key for answer in record.answers} | set(record.skipped)
    return np.array([question.key not in closed for question in pool])


def choosing(run: FittedBasis, name: str, number: int, rule: str) -> JSONObject:
    """Arguments of `questions.choose` and `choose_batch` for question `number` of a person."""
    return {"rule": rule, "prior": run.prior, "key": key_for(name, number), "lapse": run.lapse}


def key_for(name: str, number: int) -> jax.Array:
    """A random key from the person and the number of the question: the same person is asked the same."""
    digest = hashlib.sha256(f"{name}:{number}".encode()).digest()
    return jax.random.key(int.from_bytes(digest[:4]))


def next_question(
    run: FittedBasis, record: records.UserRecord, pool: Sequence[Question], rule: str = "information"
) -> int | None:
    """Index of the best question that is still open, and not about locked axes, under a rule of `acquisition`; else None."""
    delta, may = worth_asking(run, deltas(pool))
    allowed = open_questions(pool, record) & may
    if not allowed.any():
        return None
    number = len(record.answers) + len(record.skipped)
    index, _ = questions.choose(
        record.posterior, delta, allowed=allowed, **choosing(run, record.user_id, number, rule)
    )
    return index


def sides(name: str, number: int) -> tuple[Preferred, Preferred]:
    """Which text of question `number` stands first, drawn from the name, so that neither side is favoured."""
    swapped = hashlib.sha256(f"{name}:{number}".encode()).digest()[0] % 2 == 1
    return ("second", "first") if swapped else ("first", "second")


def answer_to(question: Question, preferred: Preferred) -> records.Answer:
    """The answer to a question: the text preferred, or a tie."""
    asked = question.swapped() if preferred == "second" else question
    outcome = 0.5 if preferred == "tie" else 1.0
    return records.make_answer(
        asked.prompt, asked.first, asked.second, outcome, np.array(asked.delta_features)
    )
