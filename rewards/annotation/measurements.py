"""Comparisons as repeated measurements: which rows put the same question to the same person, under which cues.

A *cue* is a recorded condition that may push an answer: what stood first, or a frame. Its direction is +1
when it pushes towards the row's `chosen`, −1 towards `rejected`, 0 when it was not recorded.

    order      column `shown_first`
    frame F    column `frame` holding F, the name of a feature in the row's `attributes.feature_names` (a
               question put so as to favour more of F; "-F" favours less); "chosen" or "rejected" name the
               favoured side directly. Any other frame is a condition without a known direction.

Letters in shapes: N comparisons, Q questions, F kinds of cue.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rewards.data.check import duplicates
from rewards.types import Preferences

SIDES = {"chosen": 1.0, "rejected": -1.0}
ORDER = "order"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """How the rows of a preference set measure questions.

    Attributes:
      question: int[N], index of the row's question; one question is one pair of items put to one person.
      turned: bool[N], the row's `chosen` is the question's second side.
      copy: bool[N], exact copies of an earlier row, which are no second answer.
      measured: bool[N], neither tie nor copy.
      cue: float32[N, F], direction of each kind of cue; `kinds` names them.
      condition: int[N], rows with equal numbers were asked in the same condition (what stood first, frame).
      user: int[Q].
      num_answers: int[Q], measured rows.
    """

    question: Int[np.ndarray, " N"]
    turned: Bool[np.ndarray, " N"]
    copy: Bool[np.ndarray, " N"]
    measured: Bool[np.ndarray, " N"]
    cue: Float[np.ndarray, "N F"]
    kinds: tuple[str, ...]
    condition: Int[np.ndarray, " N"]
    user: Int[np.ndarray, " Q"]
    num_answers: Int[np.ndarray, " Q"]


def measure(prefs: Preferences) -> Measurements:
    """Group the rows of `prefs` into questions.

    Rows of one person are one question when they compare the same two items, or when `repeat_of` names the
    `item_id` of another row of theirs and `chosen_id`, `rejected_id` say which side is which.
    """
    low, high = np.minimum(prefs.chosen, prefs.rejected), np.maximum(prefs.chosen, prefs.rejected)
    turned = prefs.chosen != low
    keys = np.stack([prefs.user_index, low, high], axis=1)
    _, question = np.unique(keys, axis=0, return_inverse=True)
    question, turned = _join_repeats(prefs, question.reshape(-1), turned)
    _, first, question = np.unique(question, return_index=True, return_inverse=True)
    copy = duplicates(prefs)
    measured = (prefs.outcome != 0.5) & ~copy
    kinds, cue = cues(prefs)
    return Measurements(
        question=question,
        turned=turned,
        copy=copy,
        measured=measured,
        cue=cue,
        kinds=kinds,
        condition=_conditions(prefs, turned),
        user=prefs.user_index[first],
        num_answers=np.bincount(question, measured, len(first)).astype(np.int64),
    )


def cues(prefs: Preferences) -> tuple[tuple[str, ...], Float[np.ndarray, "N F"]]:
    """Names and directions of the cues recorded in `prefs`; a kind that never varies from 0 is left out."""
    columns: dict[str, np.ndarray] = {}
    places = prefs.columns.get("shown_first")
    if places is not None:
        columns[ORDER] = np.array([SIDES.get(place, 0.0) for place in places], np.float32)
    frames = prefs.columns.get("frame", [None] * prefs.num_comparisons)
    attributes = prefs.columns.get("attributes", [None] * prefs.num_comparisons)
    for row, (frame, values) in enumerate(zip(frames, attributes, strict=True)):
        direction = _frame_direction(frame, values)
        if direction:
            name = "frame" if frame in SIDES else f"frame {frame.removeprefix('-')}"
            columns.setdefault(name, np.zeros(prefs.num_comparisons, np.float32))[row] = direction
    columns = {name: values for name, values in columns.items() if np.any(values)}
    table = np.stack(list(columns.values()), axis=1) if columns else np.zeros((prefs.num_comparisons, 0))
    return tuple(columns), table.astype(np.float32)


def _frame_direction(frame: str | None, attributes: Any) -> float:
    if frame is None or frame in SIDES:
        return SIDES.get(frame, 0.0) if frame else 0.0
    names = (attributes or {}).get("feature_names") or []
    feature, sign = (frame[1:], -1.0) if frame.startswith("-") else (frame, 1.0)
    if feature not in names:
        return 0.0
    place = names.index(feature)
    return sign * float(np.sign(attributes["chosen"][place] - attributes["rejected"][place]))


def _join_repeats(
    prefs: Preferences, question: np.ndarray, turned: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Questions after following `repeat_of` to rewordings, whose texts differ."""
    wanted = ("repeat_of", "item_id", "chosen_id", "rejected_id")
    if not all(name in prefs.columns for name in wanted):
        return question, turned
    repeat_of, item_id, chosen_id, rejected_id = (prefs.columns[name] for name in wanted)
    question, turned = question.copy(), turned.copy()
    original = {
        (int(prefs.user_index[n]), item_id[n]): n
        for n in range(prefs.num_comparisons - 1, -1, -1)
        if item_id[n] is not None and repeat_of[n] is None
    }
    for n, name in enumerate(repeat_of):
        source = original.get((int(prefs.user_index[n]), name)) if name is not None else None
        if source is None or question[source] == question[n]:
            continue
        here, there = (chosen_id[n], rejected_id[n]), (chosen_id[source], rejected_id[source])
        if None not in here and here in (there, there[::-1]):
            question[n] = question[source]
            turned[n] = turned[source] ^ (here != there)
    return question, turned


def same_cue(data: Measurements) -> Int[np.ndarray, " F"]:
    """Questions that were put at least twice while each kind of cue pointed to the same side."""
    side = data.cue * np.where(data.turned, -1.0, 1.0)[:, None]
    found = np.zeros((len(data.user), len(data.kinds)), bool)
    for kind in range(len(data.kinds)):
        for direction in (1.0, -1.0):
            rows = data.measured & (side[:, kind] == direction)
            found[:, kind] |= np.bincount(data.question[rows], minlength=len(data.user)) > 1
    return found.sum(axis=0)


def _conditions(prefs: Preferences, turned: np.ndarray) -> np.ndarray:
    """Equal where the same side of the question stood first and the frame was the same."""
    places = prefs.columns.get("shown_first", [None] * prefs.num_comparisons)
    frames = prefs.columns.get("frame", [None] * prefs.num_comparisons)
    first = [
        None if place is None else (place == "chosen") ^ bool(t)
        for place, t in zip(places, turned, strict=True)
    ]
    # A frame that names a side means that side of the question, whichever was chosen.
    framed = [
        (frame == "chosen") ^ bool(t) if frame in SIDES else frame
        for frame, t in zip(frames, turned, strict=True)
    ]
    table: dict[Any, int] = {}
    return np.array([table.setdefault(key, len(table)) for key in zip(first, framed, strict=True)], np.int64)
