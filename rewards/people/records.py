"""Users on disk: users/NAME.json, one record a person.

A record holds the hash of the basis its numbers belong to, the posterior, and events that are only ever
appended: answers, edits (what the person said about their own taste) and questions they skipped. The posterior
follows from the prior, the edits and the answers, so it can be recomputed and checked; `forget` erases the file.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards import files, hashed
from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.basis.store import FittedBasis, RewardRun
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.names import checked_name
from rewards.people import edits as edits_module
from rewards.people import record_json
from rewards.people.answers import Answer, UserRecord, unknown
from rewards.people.answers import answer_of as answer_of
from rewards.people.answers import make_answer as make_answer
from rewards.people.answers import question_key as question_key
from rewards.people.edits import Edit

MAX_NAME = 80
AGREES = 0.05  # how far a stored mean may be from the recomputed one, in the person's posterior standard deviations
AGAIN = "restore the record, or forget the user and ask again"


@dataclasses.dataclass(frozen=True)
class Learned:
    """A record after events were added to it, and how many of the answers it did not hold before."""

    record: UserRecord
    added: int


def file_name(user_id: str) -> str:
    """File name for any id: the id itself where it is harmless, else its harmless part and a hash of the id.

    No id can leave the folder, collide with another on a file system that ignores case, or grow too long.
    """
    if not user_id.strip():
        raise UserError(f"user id {user_id!r}: empty; give every user a name")
    if not user_id.isascii() and any("\ud800" <= letter <= "\udfff" for letter in user_id):
        raise UserError(f"user id {user_id!r}: not valid Unicode; write it in UTF-8")
    safe = re.sub(r"[^a-z0-9_-]", "_", user_id)[:MAX_NAME]
    if safe == user_id:
        return f"{safe}.json"
    return f"{safe}~{hashlib.sha256(user_id.encode()).hexdigest()[:16]}.json"


def path_of(directory: str | Path, user_id: str) -> Path:
    return Path(directory) / file_name(user_id)


def exists(directory: str | Path, user_id: str) -> bool:
    return path_of(directory, user_id).is_file()


def new_record(run: FittedBasis, user_id: str) -> UserRecord:
    """Somebody who has not answered anything: exactly the prior. Nothing is written."""
    checked_name(user_id, "user id")
    return UserRecord(user_id, run.hash, users.posterior(run.prior, np.zeros((0, 0)), np.zeros(0)), ())


def load(directory: str | Path, user_id: str, run: RewardRun) -> UserRecord:
    """Read a record.

    Raises:
      UserError: no such user, not a valid record, a record of another basis, or one whose posterior does not follow
        from its answers.
    """
    path = path_of(directory, user_id)
    if not path.is_file():
        raise UserError(f"{path}: no record of user {user_id!r}; create one with `chorus users ask`")
    return hashed.parse_record(path, AGAIN, lambda content: _checked(path, content, user_id, run))


def _checked(path: Path, content: JSONObject, user_id: str, run: RewardRun) -> UserRecord:
    record = record_json.parse(path, content)
    if record.user_id != user_id:
        raise UserError(
            f"{path}: belongs to user {record.user_id!r}, not {user_id!r}; restore the file's name"
        )
    if record.basis != run.hash:
        raise UserError(
            f"{path}: coefficients of basis {record.basis[:12]}…, but {run.directory} is {run.hash[:12]}…; "
            "use the reward run they were made with, or forget the user and ask again"
        )
    record_json.check_widths(path, record, len(run.prior.mean))
    _check_posterior(path, run, record)
    return record


def append(directory: str | Path, run: RewardRun, user_id: str, answers: Sequence[Answer]) -> UserRecord:
    """Add answers to a record (a new one if there is none), recompute the posterior, write, return it."""
    return add(directory, run, user_id, answers=answers)


def add(
    directory: str | Path,
    run: RewardRun,
    user_id: str,
    *,
    answers: Sequence[Answer] = (),
    edits: Sequence[Edit] = (),
    skipped: Sequence[str] = (),
) -> UserRecord:
    """`append` for events of every kind."""
    return learn(directory, run, user_id, answers=answers, edits=edits, skipped=skipped).record


def learn(
    directory: str | Path,
    run: RewardRun,
    user_id: str,
    *,
    answers: Sequence[Answer] = (),
    edits: Sequence[Edit] = (),
    skipped: Sequence[str] = (),
) -> Learned:
    """`add`, with the number of answers that the record did not hold yet (`rewards.people.answers` says which are).

    Processes that add to the same record at once wait for one another: no answer is lost, none counts twice.
    """
    with files.locked(directory):
        record = load(directory, user_id, run) if exists(directory, user_id) else new_record(run, user_id)
        after = with_events(run, record, answers=answers, edits=edits, skipped=skipped)
        write(directory, after)
    return Learned(after, len(after.answers) - len(record.answers))


def with_events(
    run: FittedBasis,
    record: UserRecord,
    *,
    answers: Sequence[Answer] = (),
    edits: Sequence[Edit] = (),
    skipped: Sequence[str] = (),
) -> UserRecord:
    """The record with those of these events that it does not hold, and the posterior that follows; not written."""
    record = dataclasses.replace(
        record,
        answers=record.answers + tuple(unknown(record.answers, answers)),
        edits=record.edits + tuple(edits),
        skipped=record.skipped + tuple(key for key in skipped if key not in record.skipped),
    )
    return dataclasses.replace(record, posterior=recompute(run, record))


def write(directory: str | Path, record: UserRecord) -> None:
    """Put a record in the place of any that there was."""
    with files.locked(directory):
        hashed.write_record(path_of(directory, record.user_id), record_json.to_json(record))


def recompute(run: FittedBasis, record: UserRecord) -> Belief:
    """The posterior that follows from the prior, the edits and the answers of the record."""
    delta = np.array([answer.delta_features for answer in record.answers], np.float32)
    outcomes = np.array([answer.outcome for answer in record.answers], np.float32)
    return users.posterior(edits_module.apply(run.prior, record.edits), delta, outcomes, lapse=run.lapse)


def _check_posterior(path: Path, run: RewardRun, record: UserRecord) -> None:
    stored, found = record.posterior, recompute(run, record)
    precision = np.asarray(found.precision, np.float64)
    error = np.asarray(stored.mean, np.float64) - found.mean
    off = np.abs(np.asarray(stored.precision, np.float64) - precision).max() / np.abs(precision).max()
    if not (error @ precision @ error <= AGREES**2 and off <= AGREES):
        raise UserError(
            f"{path}: coef_mean and coef_precision do not follow from the answers and edits of the record; {AGAIN}"
        )


def forget(directory: str | Path, user_id: str) -> None:
    """Erase a record with everything the person answered. Works on a damaged or foreign record too."""
    path = path_of(directory, user_id)
    if not path.is_file():
        raise UserError(f"{path}: no record of user {user_id!r}; `chorus users list` shows who is known")
    with files.locked(directory):
        path.unlink(missing_ok=True)


def list_records(directory: str | Path) -> list[tuple[str, int]]:
    """(user id, number of answers) of every record, by id; of any basis."""
    paths = sorted(Path(directory).glob("[!.]*.json")) if Path(directory).is_dir() else []
    records = [hashed.parse_record(path, AGAIN, functools.partial(record_json.parse, path)) for path in paths]
    return sorted((record.user_id, len(record.answers)) for record in records)
