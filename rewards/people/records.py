"""Users on disk: users/NAME.json, one record a person.

A record holds the hash of the basis its numbers belong to, the posterior, and events that are only ever
appended: answers, edits (what the person said about their own taste) and questions they skipped. The posterior
follows from the prior, the edits and the answers, so it can be recomputed and checked; `forget` erases the file.
"""

import dataclasses
import datetime
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards import files
from rewards.basis import users
from rewards.basis.store import FittedBasis, RewardRun
from rewards.errors import UserError
from rewards.people import edits as edits_module
from rewards.people.edits import Edit
from rewards.types import Preferences, Prompt, UserPosterior

KEYS = ("user_id", "basis", "coef_mean", "coef_precision", "answers")
ANSWER_KEYS = ("prompt", "chosen", "rejected", "outcome", "time", "delta_features")
EDIT_KEYS = ("name", "text", "direction", "value", "sd", "time")
OPTIONAL_KEYS = ("edits", "skipped")  # written when there are any
MAX_NAME = 80


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answered question.

    Attributes:
      prompt, chosen, rejected: the texts.
      outcome: 1.0 when `chosen` was preferred, 0.5 for a tie.
      delta_features: K floats, φ(chosen) − φ(rejected) in the gauge of the record's basis.
      time: ISO 8601, UTC.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    outcome: float
    delta_features: tuple[float, ...]
    time: str


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
    time = time or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Answer(prompt, chosen, rejected, float(outcome), tuple(map(float, delta_features)), time)


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
    return UserRecord(user_id, run.hash, users.posterior(run.prior, np.zeros((0, 0)), np.zeros(0)), ())


def load(directory: str | Path, user_id: str, run: RewardRun) -> UserRecord:
    """Read a record.

    Raises:
      UserError: no such user, not a valid record, or a record of another basis.
    """
    path = path_of(directory, user_id)
    if not path.is_file():
        raise UserError(f"{path}: no record of user {user_id!r}; create one with `chorus users ask`")
    record = _parse(path, files.read_json(path))
    if record.user_id != user_id:
        raise UserError(
            f"{path}: belongs to user {record.user_id!r}, not {user_id!r}; restore the file's name"
        )
    if record.basis != run.hash:
        raise UserError(
            f"{path}: coefficients of basis {record.basis[:12]}…, but {run.directory} is {run.hash[:12]}…; "
            "use the reward run they were made with, or forget the user and ask again"
        )
    _check_widths(path, record, len(run.prior.mean))
    return record


def append(
    directory: str | Path, run: RewardRun, user_id: str, answers: list[Answer], *, lapse: float = 0.0
) -> UserRecord:
    """Add answers to a record (a new one if there is none), recompute the posterior, write, return it.

    Processes that add to the same record at once wait for one another, so no answer is lost.
    """
    return add(directory, run, user_id, answers=answers, lapse=lapse)


def add(
    directory: str | Path,
    run: RewardRun,
    user_id: str,
    *,
    answers: Sequence[Answer] = (),
    edits: Sequence[Edit] = (),
    skipped: Sequence[str] = (),
    lapse: float = 0.0,
) -> UserRecord:
    """`append` for events of every kind."""
    with files.locked(directory):
        record = load(directory, user_id, run) if exists(directory, user_id) else new_record(run, user_id)
        record = with_events(run, record, answers=answers, edits=edits, skipped=skipped, lapse=lapse)
        files.write_json(path_of(directory, user_id), to_json(record))
    return record


def with_events(
    run: FittedBasis,
    record: UserRecord,
    *,
    answers: Sequence[Answer] = (),
    edits: Sequence[Edit] = (),
    skipped: Sequence[str] = (),
    lapse: float = 0.0,
) -> UserRecord:
    """The record with these events after its own, and the posterior that follows; nothing is written."""
    record = dataclasses.replace(
        record,
        answers=record.answers + tuple(answers),
        edits=record.edits + tuple(edits),
        skipped=record.skipped + tuple(key for key in skipped if key not in record.skipped),
    )
    return dataclasses.replace(record, posterior=recompute(run, record, lapse=lapse))


def recompute(run: FittedBasis, record: UserRecord, *, lapse: float = 0.0) -> UserPosterior:
    """The posterior that follows from the prior, the edits and the answers of the record."""
    delta = np.array([answer.delta_features for answer in record.answers], np.float32)
    outcomes = np.array([answer.outcome for answer in record.answers], np.float32)
    return users.posterior(edits_module.apply(run.prior, record.edits), delta, outcomes, lapse=lapse)


def question_key(prompt: Prompt, first: str, second: str) -> str:
    """Names a pair of texts after a prompt, whichever way round they stand."""
    low, high = sorted((first, second))
    text = prompt if isinstance(prompt, str) else [list(message) for message in prompt]
    return files.sha256_json([text, low, high])[:32]


def forget(directory: str | Path, user_id: str) -> None:
    """Erase a record with everything the person answered. Works on a damaged or foreign record too."""
    path = path_of(directory, user_id)
    if not path.is_file():
        raise UserError(f"{path}: no record of user {user_id!r}; `chorus users list` shows who is known")
    path.unlink()


def list_records(directory: str | Path) -> list[tuple[str, int]]:
    """(user id, number of answers) of every record, by id; of any basis."""
    paths = sorted(Path(directory).glob("[!.]*.json")) if Path(directory).is_dir() else []
    records = [_parse(path, files.read_json(path)) for path in paths]
    return sorted((record.user_id, len(record.answers)) for record in records)


def to_json(record: UserRecord) -> dict[str, Any]:
    """The record as in the file."""
    events: dict[str, Any] = {}
    if record.edits:
        events["edits"] = [edits_module.to_json(edit) for edit in record.edits]
    if record.skipped:
        events["skipped"] = list(record.skipped)
    return {
        "user_id": record.user_id,
        "basis": record.basis,
        "coef_mean": np.asarray(record.posterior.coef_mean, np.float64).tolist(),
        "coef_precision": np.asarray(record.posterior.coef_precision, np.float64).tolist(),
        "answers": [
            {
                "prompt": answer.prompt
                if isinstance(answer.prompt, str)
                else [{"role": role, "content": content} for role, content in answer.prompt],
                "chosen": answer.chosen,
                "rejected": answer.rejected,
                "outcome": answer.outcome,
                "time": answer.time,
                "delta_features": list(answer.delta_features),
            }
            for answer in record.answers
        ],
    } | events


def _parse(path: Path, value: Any) -> UserRecord:
    _check_keys(path, "record", value, KEYS, OPTIONAL_KEYS)
    if not (isinstance(value["user_id"], str) and isinstance(value["basis"], str)):
        raise UserError(f"{path}: user_id and basis must be strings; restore the record")
    if not isinstance(value["answers"], list):
        raise UserError(f"{path}: answers must be a list; restore the record")
    answers = tuple(_parse_answer(path, index, answer) for index, answer in enumerate(value["answers"]))
    try:
        with np.errstate(over="ignore"):  # too large for float32: infinite, which is refused below
            mean = np.array(value["coef_mean"], np.float32)
            precision = np.array(value["coef_precision"], np.float32)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: coef_mean and coef_precision must be numbers; restore the record") from None
    if mean.ndim != 1 or precision.shape != (len(mean),) * 2 or not np.isfinite(precision.sum() + mean.sum()):
        raise UserError(
            f"{path}: coef_mean{list(mean.shape)} and coef_precision{list(precision.shape)} must be finite, "
            "K and K × K; restore the record"
        )
    if np.linalg.eigvalsh(precision.astype(np.float64)).min(initial=np.inf) <= 0:
        raise UserError(f"{path}: coef_precision must be positive definite; restore the record")
    posterior = UserPosterior(mean, precision, len(answers))
    edits, skipped = _parse_events(path, value)
    return UserRecord(value["user_id"], value["basis"], posterior, answers, edits, skipped)


def _parse_events(path: Path, value: dict[str, Any]) -> tuple[tuple[Edit, ...], tuple[str, ...]]:
    """Edits and skipped questions; absent from records written before there were any."""
    edits, skipped = value.get("edits", []), value.get("skipped", [])
    if not (isinstance(skipped, list) and all(isinstance(key, str) for key in skipped)):
        raise UserError(f"{path}: skipped must be a list of texts; restore the record")
    if not isinstance(edits, list):
        raise UserError(f"{path}: edits must be a list; restore the record")
    parsed = []
    for index, edit in enumerate(edits):
        place = f"edits[{index}]"
        _check_keys(path, place, edit, EDIT_KEYS)
        texts = all(isinstance(edit[key], str) for key in ("name", "text", "time"))
        direction = edit["direction"]
        numbers = isinstance(direction, list) and all(
            map(_is_number, [*direction, edit["value"], edit["sd"]])
        )
        if not (texts and numbers and edit["sd"] > 0):
            raise UserError(
                f"{path}: {place} must hold name, text, time and finite numbers; restore the record"
            )
        parsed.append(Edit(**(edit | {"direction": tuple(map(float, direction))})))
    return tuple(parsed), tuple(skipped)


def _parse_answer(path: Path, index: int, value: Any) -> Answer:
    place = f"answers[{index}]"
    _check_keys(path, place, value, ANSWER_KEYS)
    prompt = value["prompt"]
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and prompt):
        raise UserError(
            f"{path}: {place}.prompt is {prompt!r}, expected text or a list of messages; restore the record"
        )
    if isinstance(prompt, list):
        for message in prompt:
            _check_keys(path, f"{place}.prompt", message, ("role", "content"))
        prompt = tuple((message["role"], message["content"]) for message in prompt)
    for key in ("chosen", "rejected", "time"):
        if not isinstance(value[key], str):
            raise UserError(f"{path}: {place}.{key} is {value[key]!r}, expected text; restore the record")
    if value["outcome"] not in (0, 0.5, 1) or isinstance(value["outcome"], bool):
        raise UserError(f"{path}: {place}.outcome is {value['outcome']!r}; use 1, 0.5 (tie) or 0")
    delta = value["delta_features"]
    if not (isinstance(delta, list) and all(_is_number(entry) for entry in delta)):
        raise UserError(
            f"{path}: {place}.delta_features must be a list of finite numbers; restore the record"
        )
    outcome = float(value["outcome"])
    return Answer(
        prompt, value["chosen"], value["rejected"], outcome, tuple(map(float, delta)), value["time"]
    )


def _is_number(value: Any) -> bool:
    """Finite also as float32, in which it is reckoned with; JSON integers may have any size."""
    largest = float(np.finfo(np.float32).max)
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


def _check_keys(
    path: Path, place: str, value: Any, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: {place} must be a JSON object, found {type(value).__name__}; restore the record"
        )
    for key in sorted((set(keys) ^ set(value)) - set(optional)):
        problem = "is missing" if key in keys else "is unknown"
        raise UserError(f"{path}: {place}: key {key!r} {problem}; restore the record")


def _check_widths(path: Path, record: UserRecord, num_basis: int) -> None:
    widths = [len(record.posterior.coef_mean)] + [len(answer.delta_features) for answer in record.answers]
    widths += [len(edit.direction) for edit in record.edits]
    if set(widths) != {num_basis}:
        wrong = next(width for width in widths if width != num_basis)
        raise UserError(
            f"{path}: {wrong} coefficients or features, the basis has {num_basis}; restore the record"
        )
