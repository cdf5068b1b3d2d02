"""What completions are worth: by each person's own reward, and by judges that are the same for everybody.

A judge gives every policy's completions numbers [U, P, n], for U people: person u judges what was written for u. Only
differences between completions of one prompt mean something.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rewards.basis.readout import Readout
from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.types import Preferences
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.samples import Written
from rlhf.phi import encoder, on_host
from rlhf.phi.columns import table
from rlhf.phi.reward import PromptRows

OWN = "own reward"
"""Name of the judge w_u · φ."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """values: by judge and policy float64[U, P, n]. matrices: by policy float64[U, U], what row u gets, by u's own taste, from
    what was written for column v, and gains float64[U, P], own minus the mean of other people's; None for policies that
    answer all alike. left_out: judges that judge nothing, and why.
    """

    values: dict[str, list[np.ndarray]]
    matrices: list[np.ndarray | None]
    gains: list[np.ndarray | None]
    left_out: dict[str, str]


def judge(
    config: OutputsConfig,
    written: Sequence[Written],
    run: RewardRun | None,
    asked: PromptRows,
    people: Sequence[Person],
) -> Judged:
    """All judges on all completions; each distinct pair of prompt and text is judged once.

    Raises:
      UserError: a reward run that says nothing about new texts, or a judge that fails.
    """
    keys = [_keys(one) for one in written]
    distinct = sorted({key for own in keys for key in own})
    place = {key: index for index, key in enumerate(distinct)}
    index = [
        np.array([place[key] for key in own]).reshape(one.shape)
        for own, one in zip(keys, written, strict=True)
    ]
    items = _items(asked, distinct)
    values: dict[str, list[np.ndarray]] = {}
    matrices: list[np.ndarray | None] = [None] * len(written)
    gains: list[np.ndarray | None] = [None] * len(written)
    left_out: dict[str, str] = {}
    if run is not None:
        coef = np.stack([np.asarray(person.coef) for person in people])
        worth = (features(run, items).astype(np.float64) @ coef.T).T  # [U, I]
        values[OWN] = [_own(worth, at) for at in index]
        for number, one in enumerate(written):
            if one.source.personal and len(people) > 1:
                matrices[number], gains[number] = _swapped(worth, index[number])
    if config.judges:
        raw, names, left_out = _columns(config, items)
        for column, name in enumerate(names):
            values[name] = [np.broadcast_to(raw[:, column][at], (len(people), *at.shape[1:])) for at in index]
    return Judged(values, matrices, gains, left_out)


def features(run: RewardRun, items: Preferences) -> np.ndarray:
    """φ float32[I, K] of new texts."""
    kind = run.basis.encoder["kind"]
    if kind not in ("lm", "columns"):
        raise UserError(
            f"rewards: {run.directory} has encoder.kind {kind}, which gives no features for new texts; "
            "fit the rewards with encoder.kind=lm or columns"
        )
    return Readout.of(run.basis).features(encoder.embed_items(items, run.basis.encoder))


def _own(worth: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Worth [U, I] of what was written for each: at int[U or 1, P, n] → [U, P, n]."""
    at = np.broadcast_to(at, (len(worth), *at.shape[1:]))
    return np.take_along_axis(worth, at.reshape(len(worth), -1), axis=1).reshape(at.shape)


def _swapped(worth: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matrix [U, U] and the gains [U, P], person by person: all at once would be U × U × P × n numbers."""
    matrix, gains = np.empty((len(worth), len(worth))), np.empty(at.shape[:2])
    for person, own in enumerate(worth):
        got = own[at].mean(axis=2)
        matrix[person] = got.mean(axis=1)
        gains[person] = got[person] - (got.sum(axis=0) - got[person]) / (len(worth) - 1)
    return matrix, gains


def _columns(config: OutputsConfig, items: Preferences) -> tuple[np.ndarray, tuple[str, ...], dict[str, str]]:
    """Raw numbers [I, C] of the further judges, NaN where one says nothing."""
    settings = table.as_they_are(config.judges)
    opened = table.open_columns(settings, gates=False)
    jobs = [
        (entry["settings"]["name"], lambda column=column: column.measure(items, fitting=False))
        for entry, column in opened
    ]
    measured = on_host.side_by_side(jobs, config.host)
    entries = [entry for entry, _ in opened]
    found = table.combine(list(zip(entries, measured, strict=True)))
    off = {
        entry["settings"]["name"]: one.off for entry, one in zip(entries, measured, strict=True) if one.off
    }
    kept = [column for column, name in enumerate(found.names) if name not in off]
    return found.raw[:, kept], tuple(found.names[column] for column in kept), off


def _keys(written: Written) -> list[tuple[int, str]]:
    people, prompts, number = written.shape
    places = np.tile(np.repeat(np.arange(prompts), number), people)
    return [(int(place), one.text or " ") for place, one in zip(places, written.flat(), strict=True)]


def _items(asked: PromptRows, distinct: Sequence[tuple[int, str]]) -> Preferences:
    """Prompts with their texts as items; functions see the other columns of each prompt's row."""
    places = np.array([place for place, _ in distinct], np.int64)
    return asked.take(places).with_texts([text for _, text in distinct])
