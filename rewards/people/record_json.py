"""A person's record as JSON, checked value by value when it is read."""

from pathlib import Path
from typing import Any

import numpy as np

from rewards import jsonl
from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import edits as edits_module
from rewards.people.answers import Answer, UserRecord
from rewards.people.edits import Edit
from rewards.types import MESSAGE_KEYS, message_of

KEYS = ("user_id", "basis", "coef_mean", "coef_precision", "answers")
ANSWER_KEYS = ("prompt", "chosen", "rejected", "outcome", "time", "delta_features")
EDIT_KEYS = ("name", "text", "direction", "value", "sd", "time")
OPTIONAL_KEYS = ("edits", "skipped")  # written when there are any


def to_json(record: UserRecord) -> JSONObject:
    """The record as in the file."""
    events: JSONObject = {}
    if record.edits:
        events["edits"] = [edits_module.to_json(edit) for edit in record.edits]
    if record.skipped:
        events["skipped"] = list(record.skipped)
    return {
        "user_id": record.user_id,
        "basis": record.basis,
        "coef_mean": np.asarray(record.posterior.mean, np.float64).tolist(),
        "coef_precision": np.asarray(record.posterior.precision, np.float64).tolist(),
        "answers": [
            {
                "prompt": jsonl.prompt_value(answer.prompt),
                "chosen": answer.chosen,
                "rejected": answer.rejected,
                "outcome": answer.outcome,
                "time": answer.time,
                "delta_features": list(answer.delta_features),
            }
            | ({"timed": True} if answer.timed else {})
            for answer in record.answers
        ],
    } | events


def parse(path: Path, value: Any) -> UserRecord:
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
    posterior = Belief.from_precision(mean, precision, len(answers))
    edits, skipped = _parse_events(path, value)
    return UserRecord(value["user_id"], value["basis"], posterior, answers, edits, skipped)


def _parse_events(path: Path, value: JSONObject) -> tuple[tuple[Edit, ...], tuple[str, ...]]:
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
    _check_keys(path, place, value, ANSWER_KEYS, ("timed",))
    prompt = value["prompt"]
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and prompt):
        raise UserError(
            f"{path}: {place}.prompt is {prompt!r}, expected text or a list of messages; restore the record"
        )
    if isinstance(prompt, list):
        for message in prompt:
            _check_keys(path, f"{place}.prompt", message, ("role", "content"), MESSAGE_KEYS)
        prompt = tuple(map(message_of, prompt))
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
    outcome, timed = float(value["outcome"]), value.get("timed", False)
    if not isinstance(timed, bool):
        raise UserError(f"{path}: {place}.timed is {timed!r}, expected true or false; restore the record")
    texts = value["chosen"], value["rejected"]
    return Answer(prompt, *texts, outcome, tuple(map(float, delta)), value["time"], timed)


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


def check_widths(path: Path, record: UserRecord, num_basis: int) -> None:
    widths = [len(record.posterior.mean)] + [len(answer.delta_features) for answer in record.answers]
    widths += [len(edit.direction) for edit in record.edits]
    if set(widths) != {num_basis}:
        wrong = next(width for width in widths if width != num_basis)
        raise UserError(
            f"{path}: {wrong} coefficients or features, the basis has {num_basis}; restore the record"
        )
