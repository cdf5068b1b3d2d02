"""`chorus users …`: ask a person, learn from their answers, show, list and erase records."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rewards import gauge, questions, records, store
from rewards import prior as prior_module
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.files import read_json
from rlhf import encoder
from rlhf.jobs.rewards import QUESTIONS, USERS, answer_of


def ask_terminal(
    rewards: str,
    name: str,
    max_questions: int,
    *,
    read: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Ask `name` about the most informative pairs, one at a time; q ends, the same command goes on.

    Every answer is stored at once. The order of the two texts on the screen is drawn from the person's name
    and the number of the question, so that neither side is favoured.
    """
    run = store.load_reward_run(rewards)
    pool = _questions(run)
    deltas = np.array([question["delta_features"] for question in pool], np.float32)
    record = _record(run, name)
    skipped: set[int] = set()
    for _ in range(max_questions):
        allowed = _not_asked(pool, record, skipped)
        if not allowed.any():
            say("Every question has been asked.")
            break
        index, gains = questions.choose(record.posterior, deltas, allowed=allowed, lapse=_lapse(run))
        say(f"\nQuestion {len(record.answers) + 1}, worth {gains[index] / math.log(2):.2f} bits")
        reply = _show_and_read(pool[index], name, len(record.answers), read, say)
        if reply == "q":
            say("Stopped; the same command goes on from here.")
            break
        if reply == "s":
            skipped.add(index)
            continue
        answer = _answer_to(pool[index], reply)
        before = record.posterior
        record = records.append(_folder(run), run, name, [answer], lapse=_lapse(run))
        say(_learned(run, before, record.posterior))
    return describe(run, record)


def ask_file(rewards: str, name: str, answers: str, max_questions: int) -> dict[str, Any]:
    """Choose up to `max_questions` rows of a file by what they would teach, and learn from those."""
    run = store.load_reward_run(rewards)
    candidates = _new_answers(run, name, answers)
    deltas = np.array([answer.delta_features for answer in candidates], np.float32)
    record, open_rows = _record(run, name), np.ones(len(candidates), bool)
    taken: list[records.Answer] = []
    for _ in range(min(max_questions, len(candidates))):
        together = records.UserRecord(name, run.hash, record.posterior, (*record.answers, *taken))
        belief = records.recompute(run, together, lapse=_lapse(run))
        index, _ = questions.choose(belief, deltas, allowed=open_rows, lapse=_lapse(run))
        open_rows[index] = False
        taken.append(candidates[index])
    record = records.append(_folder(run), run, name, taken, lapse=_lapse(run))
    return describe(run, record) | {"asked": len(taken)}


def update(rewards: str, name: str, answers: str) -> dict[str, Any]:
    """Learn from every row of a preference file."""
    run = store.load_reward_run(rewards)
    new = _new_answers(run, name, answers)
    return describe(run, records.append(_folder(run), run, name, new, lapse=_lapse(run))) | {
        "added": len(new)
    }


def show(rewards: str, name: str) -> dict[str, Any]:
    """A person's coefficients; somebody unknown is an error."""
    run = store.load_reward_run(rewards)
    return describe(run, records.load(_folder(run), name, run))


def everybody(rewards: str) -> dict[str, Any]:
    """Ids and numbers of answers."""
    run = store.load_reward_run(rewards)
    people = records.list_records(_folder(run))
    return {"users": [{"user_id": user_id, "num_answers": count} for user_id, count in people]}


def forget(rewards: str, name: str) -> dict[str, Any]:
    """Erase a person's record."""
    if not Path(rewards).is_dir():
        raise UserError(f"{rewards}: no such reward run; create one with `chorus rewards fit`")
    records.forget(Path(rewards) / USERS, name)
    return {"user_id": name, "forgotten": True}


def describe(run: store.RewardRun, record: records.UserRecord) -> dict[str, Any]:
    """A record as the commands print it: mean and sd along every axis, beside the population's."""
    cov = np.linalg.inv(np.asarray(record.posterior.coef_precision, np.float64))
    axes = [
        {
            "name": axis,
            "mean": float(record.posterior.coef_mean[k]),
            "sd": float(np.sqrt(cov[k, k])),
            "prior_mean": float(run.prior.mean[k]),
            "prior_sd": float(np.sqrt(run.prior.cov[k, k])),
        }
        for k, axis in enumerate(run.basis.gauge.names)
    ]
    return {
        "user_id": record.user_id,
        "basis": record.basis,
        "num_answers": len(record.answers),
        "coef_mean": np.asarray(record.posterior.coef_mean, np.float64).tolist(),
        "z": prior_module.standardise(run.prior, record.posterior.coef_mean).tolist(),
        "axes": axes,
    }


def _folder(run: store.RewardRun) -> Path:
    return run.directory / USERS


def _lapse(run: store.RewardRun) -> float:
    return float(run.extra.get("lapse", 0.0))


def _record(run: store.RewardRun, name: str) -> records.UserRecord:
    known = records.exists(_folder(run), name)
    return records.load(_folder(run), name, run) if known else records.new_record(run, name)


def _questions(run: store.RewardRun) -> list[dict[str, Any]]:
    path = run.directory / QUESTIONS
    content = read_json(path)
    if not isinstance(content, dict) or not content.get("questions") or content.get("basis") != run.hash:
        raise UserError(
            f"{path}: not the questions of this run's basis; fit the run again or use --answers FILE"
        )
    return content["questions"]


def _key(prompt: Any, first: str, second: str) -> tuple[str, str, str]:
    """Names a pair whichever way round; a chat prompt may be tuples or the lists of a file."""
    messages = prompt if isinstance(prompt, str) else repr([tuple(message) for message in prompt])
    low, high = sorted((first, second))
    return messages, low, high


def _not_asked(pool: list[dict[str, Any]], record: records.UserRecord, skipped: set[int]) -> np.ndarray:
    asked = {_key(answer.prompt, answer.chosen, answer.rejected) for answer in record.answers}
    return np.array(
        [
            index not in skipped
            and _key(question["prompt"], question["first"], question["second"]) not in asked
            for index, question in enumerate(pool)
        ]
    )


def _new_answers(run: store.RewardRun, name: str, path: str) -> list[records.Answer]:
    """The rows of a preference file as answers of `name`.

    Raises:
      UserError: the file holds rows of somebody else: mixing two people into one record cannot be undone.
    """
    prefs = read_preferences(path)
    others = [user for user in prefs.user_ids if user != name]
    if others:
        row = prefs.row[prefs.user_index == prefs.user_ids.index(others[0])][0]
        raise UserError(
            f"{path}: row {row}: user_id is {others[0]!r}, not {name!r}; give a file of this person alone"
        )
    phi = gauge.features(run.basis, encoder.embed_items(prefs, run.basis.encoder), prefs.item_prompt)
    order = np.lexsort((np.arange(prefs.num_comparisons), prefs.choice))
    return [answer_of(prefs, phi, int(row)) for row in order]


def _show_and_read(
    question: dict[str, Any], name: str, number: int, read: Callable[[str], str], say: Callable[[str], None]
) -> str:
    """Show the pair and return which was preferred: `first`, `second`, `tie`, `s` (skip) or `q` (quit)."""
    swapped = hashlib.sha256(f"{name}:{number}".encode()).digest()[0] % 2 == 1
    sides = ("second", "first") if swapped else ("first", "second")
    prompt = question["prompt"]
    say(prompt if isinstance(prompt, str) else "\n".join(f"{role}: {content}" for role, content in prompt))
    for number_shown, side in enumerate(sides, 1):
        say(f"  [{number_shown}] {question[side]}")
    while True:
        try:
            reply = read("Which do you like better? 1, 2, t (tie), s (skip), q (stop): ").strip().lower()
        except EOFError:
            return "q"
        if reply in ("1", "2"):
            return sides[int(reply) - 1]
        if reply in ("t", "tie", "s", "skip", "q", "quit"):
            return {"t": "tie"}.get(reply[0], reply[0])
        say(f"{reply!r} is none of 1, 2, t, s, q.")


def _answer_to(question: dict[str, Any], preferred: str) -> records.Answer:
    chosen, rejected = ("second", "first") if preferred == "second" else ("first", "second")
    delta = np.array(question["delta_features"]) * (-1.0 if preferred == "second" else 1.0)
    prompt = question["prompt"]
    prompt = prompt if isinstance(prompt, str) else tuple((role, content) for role, content in prompt)
    outcome = 0.5 if preferred == "tie" else 1.0
    return records.make_answer(prompt, question[chosen], question[rejected], outcome, delta)


def _learned(run: store.RewardRun, before: Any, after: Any) -> str:
    """What one answer changed, axis by axis."""
    sd = np.sqrt(np.diag(np.linalg.inv(np.asarray(after.coef_precision, np.float64))))
    parts = [
        f"{axis} {before.coef_mean[k]:+.2f} → {after.coef_mean[k]:+.2f} ± {sd[k]:.2f}"
        for k, axis in enumerate(run.basis.gauge.names)
    ]
    return "Learned: " + ", ".join(parts)
