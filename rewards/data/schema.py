"""One row of a preference file: what each column may hold, and what is wrong with a row.

Text rows follow TRL's conventions: `prompt`, `chosen`, `rejected` are strings or chat message lists; with
message lists the prompt may stand inside `chosen` and `rejected` (implicit prompt). Beyond TRL: `user_id`,
and the optional columns below. Empty optional values (null) mean "not recorded".
"""

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Mapping
from typing import TypeGuard

import numpy as np

from rewards.data.columns import OWN
from rewards.errors import UserError, meant
from rewards.files import JSONObject
from rewards.names import no_name
from rewards.types import MESSAGE_KEYS, NOBODY, Message, Prompt

ROLES = ("system", "developer", "user", "assistant", "tool")


class RowError(ValueError):
    """`str(error)` is "field 'x': what is wrong and the fix"; the reader adds file and row."""

    def __init__(self, field: str, message: str):
        super().__init__(f"field {field!r}: {message}")


def raise_first(path: str, problems: list[tuple[int, RowError]]) -> None:
    """The first bad row as a UserError, with how many more there are; nothing without any."""
    if problems:
        number, error = problems[0]
        more = f" ({len(problems) - 1} more bad rows)" if len(problems) > 1 else ""
        raise UserError(f"{path}: row {number}: {error}{more}")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A checked comparison. Features are float32[D] or None; `optional` holds every column that is not in
    `OWN`.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    user_id: str
    outcome: float
    chosen_features: np.ndarray | None
    rejected_features: np.ndarray | None
    optional: JSONObject


def show(value: object) -> str:
    """The value as it may stand in a one-line message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def row_object(record: object) -> Mapping[str, object]:
    """The record, when it is a JSON object.

    Raises:
      RowError: it is none, or could not be read (then it is the error itself).
    """
    if isinstance(record, RowError):
        raise record
    if not isinstance(record, Mapping):
        raise RowError("row", f"must be a JSON object with named fields, not {show(record)}")
    return record


def parse_row(record: object, user_column: str | None = "user_id") -> Row:
    """Check one record (a JSON object) and bring it into one shape; without a `user_column` nobody in particular chose.

    With message lists the text of the final assistant message becomes the completion and the rest the prompt.

    Raises:
      RowError: names the field, the value and the fix.
    """
    record = row_object(record)
    prompt, chosen, rejected = _texts(record)
    features = _features(record, "chosen_features"), _features(record, "rejected_features")
    first, second = features
    if first is None or second is None:
        if first is not second:
            lacking = "chosen_features" if first is None else "rejected_features"
            raise RowError(lacking, "is missing while the other side has features; give both or neither")
    elif len(first) != len(second):
        raise RowError("rejected_features", f"{len(second)} numbers, but chosen_features has {len(first)}")
    elif not chosen and np.array_equal(first, second):
        raise RowError("rejected_features", "equals chosen_features and there is no text; drop the row")
    optional = {
        name: _OPTIONAL_CHECKS[name](name, value) if name in _OPTIONAL_CHECKS and value is not None else value
        for name, value in record.items()
        if name not in OWN and name != user_column
    }
    user_id = NOBODY if user_column is None else identifier(user_column, record.get(user_column))
    return Row(prompt, chosen, rejected, user_id, _outcome(record.get("outcome")), *features, optional)


def parse_completions(
    record: object, *, texts: bool = False
) -> tuple[Prompt, dict[str, str], dict[str, np.ndarray]]:
    """Check a record whose completions are to be scored, whoever chose: one `completion`, or `chosen` and `rejected`.

    The completion may be text or messages; a record with only `messages` is a conversation whose last message is the
    completion. With `texts` a record with only `text` is a completion of nothing.

    Returns:
      the prompt, the text of every completion by field, and its features by field where the record has any.
    Raises:
      RowError: as `parse_row`.
    """
    record = row_object(record)
    pair = "chosen" in record or "rejected" in record or "chosen_features" in record
    fields = ("chosen", "rejected") if pair else ("completion",)
    found = {field: _features(record, f"{field}_features") for field in fields}
    features = {field: value for field, value in found.items() if value is not None}
    if pair:
        prompt, *sides = _texts(record)
        return prompt, dict(zip(fields, sides, strict=True)), features
    completion = record.get("completion")
    if completion is None and record.get("messages") is not None:
        if not isinstance(record["messages"], list):
            raise RowError("messages", f"is {show(record['messages'])}; it must be a list of messages")
        context, text = _conversation("messages", record["messages"])
        return _merged_prompt(None, context), {"completion": text}, features
    if completion is None and texts and record.get("text") is not None:
        return (), {"completion": parse_text("text", record["text"])}, features
    if completion is None and features:
        return "", {"completion": ""}, features
    if isinstance(completion, list):
        context, text = _conversation("completion", completion)
        return _merged_prompt(record.get("prompt"), context), {"completion": text}, features
    if isinstance(completion, str) and not completion.strip():
        text = completion  # a policy may have said nothing; that has rewards like anything else it says
    else:
        text = _text("completion", completion)
    return parse_prompt(record.get("prompt")), {"completion": text}, features


def _texts(record: Mapping[str, object]) -> tuple[Prompt, str, str]:
    prompt, chosen, rejected = record.get("prompt"), record.get("chosen"), record.get("rejected")
    if record.get("chosen_features") is not None and chosen is None and rejected is None:
        return ("" if prompt is None else parse_prompt(prompt)), "", ""  # features stand in for the text
    if isinstance(chosen, list) and isinstance(rejected, list):
        context, chosen = _conversation("chosen", chosen)
        other, rejected = _conversation("rejected", rejected)
        if context != other:
            raise RowError(
                "rejected", "differs from chosen before the last message; only the final answer may differ"
            )
        prompt = _merged_prompt(prompt, context)
    elif isinstance(chosen, list) or isinstance(rejected, list):
        kinds = f"chosen is {type(chosen).__name__}, rejected is {type(rejected).__name__}"
        raise RowError("rejected", f"{kinds}; write both as strings or both as message lists, rendered alike")
    else:
        chosen, rejected = _text("chosen", chosen), _text("rejected", rejected)
        prompt = parse_prompt(prompt)
    if chosen == rejected:
        raise RowError("rejected", f"is the same text as chosen ({show(chosen)}); drop the row")
    return prompt, chosen, rejected


def _merged_prompt(prompt: object, context: tuple[tuple[str, str], ...]) -> Prompt:
    """The prompt of a chat row: what `chosen` and `rejected` share, after the explicit prompt where they
    lack it.
    """
    if prompt is None or (isinstance(prompt, str) and context):
        if not context:
            raise RowError("prompt", "is missing and chosen holds nothing but the answer; add the prompt")
        return context
    explicit = parse_prompt(prompt)
    if isinstance(explicit, str):
        return (("user", explicit),)
    return context if context[: len(explicit)] == explicit else explicit + context


def parse_prompt(value: object) -> Prompt:
    """Check a prompt, text or a message list, and bring it into one shape; raises RowError."""
    return _messages("prompt", value) if isinstance(value, list) else _text("prompt", value)


def parse_text(field: str, value: object) -> str:
    """Check a field that holds one text and never messages; raises RowError."""
    if value is not None and not isinstance(value, str):
        raise RowError(field, f"is {type(value).__name__} {show(value)}; it must be a string")
    return _text(field, value)


def _conversation(field: str, value: list[object]) -> tuple[tuple[tuple[str, str], ...], str]:
    messages = _messages(field, value)
    if messages[-1][0] != "assistant":
        raise RowError(field, f"the last message has role {messages[-1][0]!r}; it must be the assistant's")
    if isinstance(messages[-1], Message) and "tool_calls" in json.loads(messages[-1].more):
        raise RowError(
            field,
            "the last message calls a tool; an answer is text, so end in one or write the call into the content",
        )
    return messages[:-1], messages[-1][1]


def _messages(field: str, value: list[object]) -> tuple[tuple[str, str], ...]:
    if not value:
        raise RowError(field, "is an empty list; give at least one message")
    messages = []
    for position, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise RowError(field, f"message {position} is {show(message)}, not {{'role': …, 'content': …}}")
        role = message.get("role")
        if role not in ROLES:
            hint = meant(str(role), ROLES, f"use one of {', '.join(ROLES)}")
            raise RowError(field, f"message {position} has role {show(role)}; {hint}")
        more = {
            key: part
            for key, part in message.items()
            if key not in ("role", "content")
            and part is not None
            and not (key in MESSAGE_KEYS and part in ("", []))
        }
        if extra := [key for key in more if key not in MESSAGE_KEYS]:
            raise RowError(
                field,
                f"message {position} has {extra[0]!r}; read are role, content, {', '.join(MESSAGE_KEYS)}; remove it",
            )
        place = f"message {position}: "
        content = _content(field, message.get("content"), place)
        silent = "tool_calls" in more and not content  # the call is what it says
        text = "" if silent else _text(field, content, place)
        messages.append(Message(role, text, _more(field, more, place)) if more else (role, text))
    return tuple(messages)


def _content(field: str, value: object, place: str) -> object:
    """The content of a message; of one in parts, their text."""
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return value
    for part in value:
        if part.get("type") != "text":
            raise RowError(field, f"{place}has a part of type {show(part.get('type'))}; only text is read")
    return "".join(str(part.get("text") or "") for part in value)


def _more(field: str, more: Mapping[str, object], place: str) -> str:
    for name in ("name", "tool_call_id"):
        if name in more and not isinstance(more[name], str):
            raise RowError(field, f"{place}{name} is {show(more[name])}; it must be a string")
    calls = more.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError(field, f"{place}tool_calls is {show(calls)}; it must be a list of calls")
    try:
        return json.dumps(_without_null(more), sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise RowError(field, f"{place}tool_calls is {show(calls)}; it must be plain JSON") from None


def _without_null(value: object) -> object:
    """Tables give every call the fields of all others, as null."""
    if isinstance(value, Mapping):
        return {str(key): _without_null(part) for key, part in value.items() if part is not None}
    return [_without_null(part) for part in value] if isinstance(value, list) else value


def _text(field: str, value: object, place: str = "") -> str:
    if value is None:
        raise RowError(field, f"{place}is missing; add the text")
    if not isinstance(value, str):
        raise RowError(
            field, f"{place}is {type(value).__name__} {show(value)}; it must be a string or a message list"
        )
    if not value.strip():
        raise RowError(field, f"{place}is empty ({show(value)}); drop the row or add the text")
    return _encodable(field, value, place)


def _encodable(field: str, value: str, place: str = "") -> str:
    """JSON may spell half a surrogate pair (a backslash-u escape), which no file or terminal can take."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                field, f"{place}holds half a surrogate pair at {error.start}; re-encode as UTF-8"
            ) from None
    return value


def identifier(field: str, value: object) -> str:
    """Ids are text; whole numbers are written in decimal, so 7 and "7" are one person."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError(
            field, "is missing; say who chose" if value is None else f"is {show(value)}; it must be a string"
        )
    if not value.strip():
        raise RowError(field, f"is empty ({show(value)}); say who chose")
    if wrong := no_name(value):
        raise RowError(field, f"{show(value)} {wrong}")
    return value


def _outcome(value: object) -> float:
    if value is None:
        return 1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in (1, 0.5):
        return float(value)
    raise RowError(
        "outcome", f"is {show(value)}; use 1 (chosen preferred) or 0.5 (tie), and swap the texts for 0"
    )


def _features(record: Mapping[str, object], field: str) -> np.ndarray | None:
    value = record.get(field)
    if value is None:
        return None
    if not isinstance(value, (list, np.ndarray)) or len(value) == 0:
        raise RowError(field, f"is {show(value)}; it must be a non-empty list of numbers")
    try:
        raw = np.asarray(value)
    except ValueError:  # ragged
        raise RowError(field, f"is {show(value)}; it must be a flat list of numbers") from None
    # A bool among numbers would become 0/1 in silence, so the elements are asked, not the array.
    if raw.ndim != 1 or raw.dtype.kind not in "iuf" or any(isinstance(part, bool) for part in value):
        raise RowError(field, f"is {show(value)}; it must be a flat list of numbers")
    with np.errstate(over="ignore"):
        features = raw.astype(np.float32)
    if not np.isfinite(features).all():
        position = int(np.flatnonzero(~np.isfinite(features))[0])
        raise RowError(field, f"number {position} is {value[position]}; it must be finite (float32)")
    return features


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number that a float64 can hold; JSON integers may have any size."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _optional_text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise RowError(field, f"is {show(value)}; it must be a string or null")
    return _encodable(field, value)


def _mapping(field: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise RowError(field, f"is {show(value)}; it must be an object with named values, or null")
    names = value.get("feature_names")
    if field == "attributes" and names is not None:
        if not isinstance(names, list):
            raise RowError(field, f"feature_names is {show(names)}; it must be a list of names")
        for name in names:
            if wrong := no_name(str(name)):
                raise RowError(field, f"feature_names: {show(name)} {wrong}")
        for side in ("chosen", "rejected"):
            numbers = value.get(side)
            if not isinstance(numbers, list) or len(numbers) != len(names):
                raise RowError(
                    field, f"{side} is {show(numbers)}; feature_names asks for {len(names)} numbers"
                )
            if not all(is_number(part) for part in numbers):
                raise RowError(field, f"{side} is {show(numbers)}; every number must be finite")
    return value


def parse_attributes(value: object) -> Mapping[str, object] | None:
    """Check the `attributes` of a row; raises RowError."""
    return None if value is None else _mapping("attributes", value)


def _shown_first(field: str, value: object) -> str:
    if isinstance(value, bool):
        return "chosen" if value else "rejected"
    if value not in ("chosen", "rejected"):
        raise RowError(field, f"is {show(value)}; use 'chosen' or 'rejected', whichever stood first")
    return value


def epoch_seconds(field: str, value: object) -> float:
    """A time as seconds since 1970; ISO 8601 text, a number of seconds or a datetime. Without a zone it is
    UTC.
    """
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise RowError(field, f"is {show(value)}; write ISO 8601, such as 2025-03-31T09:30:00Z") from None
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    if not is_number(value):
        raise RowError(field, f"is {show(value)}; write ISO 8601 or seconds since 1970")
    return float(value)


def _timestamp(field: str, value: object) -> object:
    epoch_seconds(field, value)
    return value


_OPTIONAL_CHECKS: dict[str, Callable[[str, object], object]] = {
    "item_id": identifier,
    "chosen_id": identifier,
    "rejected_id": identifier,
    "repeat_of": identifier,
    "shown_first": _shown_first,
    "frame": _optional_text,
    "reason": _optional_text,
    "hint": _optional_text,
    "attributes": _mapping,
    "choice_context": _mapping,
    "timestamp": _timestamp,
}
