"""What a person has said: answers, and the record that holds them with statements and skipped questions.

When are two answers one? The same question with the same outcome is one answer given twice, unless both came with a
time of their own and the times differ, or one source holds it more often than the record: people may honestly be
asked the same thing again. So reading a file twice, or a file that has grown, adds what is new and nothing else.
"""

import collections
import dataclasses
import datetime
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rewards import files
from rewards.people.edits import Edit
from rewards.types import Preferences, Prompt, UserPosterior


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answered question.

    Attributes:
      prompt, chosen, rejected: the texts.
      outcome: 1.0 when `chosen` was preferred, 0.5 for a tie.
      delta_features: K floats, φ(chosen) − φ(rejected) in the gauge of the record's basis.
      time: ISO 8601, UTC.
      timed: whether `time` came with the answer; else it is when it was read, which tells no two answers apart.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    outcome: float
    delta_features: tuple[float, ...]
    time: str
    timed: bool = False

    @property
    def key(self) -> str:
        """Names the question."""
        return question_key(self.prompt, self.chosen, self.rejected)

    @property
    def content(self) -> tuple[str, str]:
        """What was asked and which text was preferred, "" for a tie; not when."""
        preferred = {1.0: self.chosen, 0.0: self.rejected}.get(self.outcome, "")
        return self.key, preferred


@dataclasses.dataclass(frozen=True)
class UserRecord:
    """A person: id, basis hash, posterior, answers and edits in the order given, `question_key`s skipped."""

    user_id: str
    basis: str
    posterior: UserPosterior
    answers: tuple[Answer, ...]
    edits: tuple[Edit, ...] = ()
    skipped: tuple[str, ...] = ()


def make_answer(
    prompt: Prompt,
    chosen: str,
    rejected: str,
    outcome: float,
    delta_features: np.ndarray,
    time: str | None = None,
) -> Answer:
    """An answer given now, or at `time`."""
    when = time or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    delta = tuple(map(float, delta_features))
    return Answer(prompt, chosen, rejected, float(outcome), delta, when, time is not None)


def answer_of(prefs: Preferences, phi: np.ndarray, row: int) -> Answer:
    """Comparison `row` as an answer, with the time the data gives it; `phi` float[I, K] are the items' features."""
    chosen, rejected = int(prefs.chosen[row]), int(prefs.rejected[row])
    stamps = prefs.columns.get("timestamp")
    return make_answer(
        prefs.prompts[prefs.item_prompt[chosen]],
        prefs.item_text[chosen],
        prefs.item_text[rejected],
        float(prefs.outcome[row]),
        phi[chosen] - phi[rejected],
        None if stamps is None or stamps[row] is None else str(stamps[row]),
    )


def unknown(known: Iterable[Answer], given: Sequence[Answer]) -> list[Answer]:
    """Those of `given`, in order, that are no answer of `known`; each of the known stands for one of the given."""
    left: collections.defaultdict[tuple[str, str], list[Answer]] = collections.defaultdict(list)
    for answer in known:
        left[answer.content].append(answer)
    # Times first: an answer with a time of its own must not be taken for one that merely looks the same.
    matched = {
        index for index, answer in enumerate(given) if answer.timed and _take(left, answer, _same_time)
    }
    for index, answer in enumerate(given):
        if index not in matched and _take(left, answer, _times_may_agree):
            matched.add(index)
    return [answer for index, answer in enumerate(given) if index not in matched]


def _same_time(one: Answer, other: Answer) -> bool:
    return one.timed and other.timed and one.time == other.time


def _times_may_agree(one: Answer, other: Answer) -> bool:
    return not (one.timed and other.timed) or one.time == other.time


def _take(
    left: dict[tuple[str, str], list[Answer]], answer: Answer, alike: Callable[[Answer, Answer], bool]
) -> bool:
    """Remove the first known answer that is this one; whether there was one."""
    known = left[answer.content]
    found = next((index for index, one in enumerate(known) if alike(one, answer)), None)
    if found is not None:
        known.pop(found)
    return found is not None


def question_key(prompt: Prompt, first: str, second: str) -> str:
    """Names a pair of texts after a prompt, whichever way round they stand."""
    low, high = sorted((first, second))
    text = prompt if isinstance(prompt, str) else [list(message) for message in prompt]
    return files.sha256_json([text, low, high])[:32]
