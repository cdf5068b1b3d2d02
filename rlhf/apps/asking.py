"""Conversations about pairs of texts: in the terminal, or as a questionnaire somebody fills in elsewhere.

A questionnaire is a file of JSON lines, one question each: `user_id`, `prompt`, `first`, `second` and `preferred`,
which the person sets to "1", "2", "tie" or "skip"; empty means not answered yet. `chorus users update` reads it.
"""

import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import ndtr

from rewards import jsonl
from rewards.basis import meaning, store
from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import records
from rewards.people.pool import Preferred, Question, answer_to, prompt_of, sides

WIDTH = 100  # columns of the widest line of a question
QUESTION_KEYS = ("user_id", "prompt", "first", "second", "preferred")
REPLIES: dict[str, Preferred | Literal["skip", ""]] = {
    "1": "first",
    "2": "second",
    "tie": "tie",
    "skip": "skip",
    "": "",
}
Reply = Preferred | Literal["s", "q"]
"""What somebody who is shown a question may say; s skips it, q stops."""


def show_and_read(
    question: Question,
    shown: tuple[Preferred, Preferred],
    read: Callable[[str], str],
    say: Callable[[str], None],
) -> Reply:
    """Show the pair and return which was preferred: `first`, `second`, `tie`, `s` (skip) or `q` (quit)."""
    prompt = question.prompt
    say(wrapped(prompt if isinstance(prompt, str) else "\n".join(f"{role}: {text}" for role, text in prompt)))
    texts = {"first": question.first, "second": question.second}
    for number, side in enumerate(shown, 1):
        say(wrapped(texts[side], f"  [{number}] ", "      "))
    while True:
        try:
            reply = read("Which do you like better? 1, 2, t (tie), s (skip), q (stop): ").strip().lower()
        except EOFError:
            return "q"
        if reply in ("1", "2"):
            return shown[int(reply) - 1]
        if reply in ("t", "tie"):
            return "tie"
        if reply in ("s", "skip"):
            return "s"
        if reply in ("q", "quit"):
            return "q"
        say(f"{reply!r} is none of 1, 2, t, s, q.")


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """A text of some lines, broken between words at the terminal's width (100 at most); only lines that are too long change.

    Args:
      first: what its first line begins with; rest: every other line.
    """
    width = min(shutil.get_terminal_size().columns, WIDTH)
    lines, start = [], first
    for line in text.split("\n"):
        broken = [line]
        if len(start) + len(line) > width:
            broken = textwrap.wrap(
                line, max(width - len(start), 20), break_long_words=False, break_on_hyphens=False
            )
        for part in broken or [line]:
            lines.append(f"{start}{part}" if part else start.rstrip() if start == rest else start)
            start = rest
    return "\n".join(lines)


def learned(run: store.RewardRun, before: Belief, after: Belief, means: Mapping[str, meaning.Meaning]) -> str:
    """What one answer changed: the axis that moved most, in its prior's unit, and how the person now reads on it.

    Args:
      means: what the axes go with (`meaning.read`), by name.
    """
    moved = np.abs(after.mean - before.mean) / run.prior.sd
    k = int(np.argmax(moved))
    names = run.basis.gauge.names
    others = [f"{names[j]} {before.mean[j]:+.2f} → {after.mean[j]:+.2f}" for j in range(len(names)) if j != k]
    text = (
        f"Learned: {means[names[k]].label(names[k])} moved most, {before.mean[k]:+.2f} → {after.mean[k]:+.2f}: "
        f"{reading(run, after, k)}."
    )
    return text + (f" Also {', '.join(others)}." if others else "")


def reading(run: store.RewardRun, posterior: Belief, k: int) -> str:
    """In plain words, on which side of the average person somebody stands on axis k, and how sure that is."""
    sd = float(posterior.sd[k])
    z = float(posterior.mean[k] - run.prior.mean[k]) / sd
    sure = float(ndtr(abs(z)))
    side = "more" if z > 0 else "less"
    if sure < 0.6:
        return f"about as much of a taste for “{run.basis.gauge.names[k]}” as the average person"
    word = "almost certainly" if sure >= 0.95 else "probably" if sure >= 0.8 else "perhaps"
    return f"{word} ({sure:.0%}) {side} of a taste for “{run.basis.gauge.names[k]}” than the average person, ± {sd:.2f}"


def questionnaire(name: str, number: int, pool: Sequence[Question], chosen: np.ndarray) -> list[JSONObject]:
    """Rows for the person to fill in; sides are drawn as on the terminal, from question `number` on."""
    rows = []
    for offset, index in enumerate(chosen.tolist()):
        asked = pool[index]
        question = asked if sides(name, number + offset)[0] == "first" else asked.swapped()
        messages = jsonl.prompt_value(question.prompt)
        texts = {"first": question.first, "second": question.second}
        rows.append({"user_id": name, "prompt": messages, **texts, "preferred": ""})
    return rows


def is_questionnaire(path: str) -> bool:
    """Whether the first line of a file is a question, not a row of a preference file."""
    try:
        if not Path(path).is_file():  # a pipe is read once, by the reader of preference files
            return False
        _, first = next(jsonl.read(path))
    except (OSError, ValueError, StopIteration, UserError):
        return False  # the reader of preference files says what is wrong
    return isinstance(first, dict) and "preferred" in first and "chosen" not in first


def read_questionnaire(
    path: str, name: str, pool: Sequence[Question]
) -> tuple[list[records.Answer], list[str], int]:
    """(answers, keys of skipped questions, number still empty) of a filled-in questionnaire.

    Raises:
      UserError: naming the row: of another person, with another reply than those above, not a question of this run,
      or the same question twice.
    """
    by_key = {question.key: question for question in pool}
    answers, skipped, empty, seen = [], [], 0, set()
    for number, value in jsonl.read(path):
        row = _row(path, number, value)
        if str(row["user_id"]) != name:
            raise UserError(
                f"{path}: row {number}: user_id is {row['user_id']!r}, not {name!r}; give this person's file"
            )
        reply = REPLIES.get(str(row["preferred"]).strip().lower())
        if reply is None:
            raise UserError(
                f"{path}: row {number}: preferred is {row['preferred']!r}; use 1, 2, tie, skip or nothing"
            )
        key = _key(path, number, row)
        if key not in by_key:
            raise UserError(
                f"{path}: row {number}: not a question of this reward run; keep the texts as they were"
            )
        if key in seen:
            raise UserError(f"{path}: row {number}: the same question twice; remove one")
        seen.add(key)
        if reply == "skip":
            skipped.append(key)
        elif not reply:
            empty += 1
        else:
            question = by_key[key]
            if reply != "tie" and row["first"] != question.first:
                reply = "second" if reply == "first" else "first"
            answers.append(answer_to(question, reply))
    return answers, skipped, empty


def _row(path: str, number: int, row: object) -> JSONObject:
    if isinstance(row, jsonl.LineError):
        raise UserError(f"{path}: row {number}: {row}; keep one question a line")
    if not isinstance(row, dict) or set(row) != set(QUESTION_KEYS):
        raise UserError(
            f"{path}: row {number}: must hold {', '.join(QUESTION_KEYS)} and nothing else; restore it"
        )
    return row


def _key(path: str, number: int, row: JSONObject) -> str:
    try:
        return records.question_key(prompt_of(row["prompt"]), row["first"], row["second"])
    except (TypeError, KeyError, IndexError):
        raise UserError(
            f"{path}: row {number}: prompt, first and second must be as asked; restore them"
        ) from None
