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
from rewards.files import JSONObject
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
    checks: JSONObject


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
    checks: JSONObject = {}
    if run is not None:
        worth = _worths(run, asked, distinct, people)
        values[OWN] = [_own(worth, at) for at in index]
        for number, one in enumerate(written):
            if one.source.personal and len(people) > 1:
                matrices[number], gains[number] = _swapped(worth, index[number])
    if config.judges:
        raw, names, checks = _columns(config, items)
        for column, name in enumerate(names):
            values[name] = [np.broadcast_to(raw[:, column][at], (len(people), *at.shape[1:])) for at in index]
    return Judged(values, matrices, gains, checks)


def best(
    written: Sequence[Written], run: RewardRun | None, asked: PromptRows, people: Sequence[Person]
) -> list[Written]:
    """Of every N completions of a policy best-of-N the one that the person's own reward likes best; the others as they are."""
    found = []
    for one in written:
        number = one.source.best_of
        if number > 1:
            assert run is not None, "checked where policies are read"
            keys = _keys(one)
            distinct = sorted(set(keys))
            place = {key: index for index, key in enumerate(distinct)}
            at = np.array([place[key] for key in keys]).reshape(one.shape)
            own = _own(_worths(run, asked, distinct, people), at)  # [U, P, n · N]
            picked = own.reshape(*own.shape[:2], -1, number).argmax(axis=-1)
            completions = [
                [
                    [texts[number * group + place] for group, place in enumerate(places)]
                    for texts, places in zip(
                        one.completions[min(person, len(one.completions) - 1)], rows, strict=True
                    )
                ]
                for person, rows in enumerate(picked.tolist())
            ]
            one = dataclasses.replace(one, completions=completions)
        found.append(one)
    return found


def _worths(
    run: RewardRun, asked: PromptRows, distinct: Sequence[tuple[int, str]], people: Sequence[Person]
) -> np.ndarray:
    """w_u · φ of each distinct (prompt, text), float64[U, I]."""
    coef = np.stack([np.asarray(person.coef) for person in people])
    return (features(run, _items(asked, distinct)).astype(np.float64) @ coef.T).T


def features(run: RewardRun, items: Preferences) -> np.ndarray:
    """φ float32[I, K] of new texts."""
    kind = run.basis.encoder["kind"]
    if kind not in encoder.READ_NEW_TEXTS:
        raise UserError(
            f"rewards: {run.directory} has encoder.kind {kind}, which gives no features for new texts; "
            "fit the rewards with encoder.kind=lm, sentence or columns"
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


def _columns(config: OutputsConfig, items: Preferences) -> tuple[np.ndarray, tuple[str, ...], JSONObject]:
    """Raw numbers [I, C] of the further judges that count, NaN where one says nothing; and what was found of all."""
    settings = table.as_they_are(config.judges)
    opened = table.open_columns(settings, gates=False)
    jobs = [
        (entry["settings"]["name"], lambda column=column: column.measure(items, fitting=False))
        for entry, column in opened
    ]
    parts: list[np.ndarray] = []
    names: list[str] = []
    checks: JSONObject = {}
    for (entry, _), measured in zip(opened, on_host.side_by_side(jobs, config.host), strict=True):
        own = entry["settings"]
        longer, pairs = longer_preferred(measured.values[:, 0], items)
        off = measured.off
        if (
            off is None
            and own["kind"] in MODELS
            and pairs >= ENOUGH_PAIRS
            and abs(longer - 0.5) > BY_LENGTH - 0.5
        ):
            word = "longer" if longer > 0.5 else "shorter"
            share = max(longer, 1 - longer)
            off = f"it prefers the {word} text in {share:.1%} of {pairs} pairs of one prompt: it reads the length"
        checks[own["name"]] = {
            "kind": own["kind"],
            "longer_preferred": longer if pairs else None,
            "pairs": pairs,
            "consistency": measured.report.get("consistency"),
            "off": off,
        }
        if off is None:
            parts.append(measured.values)
            names += entry["names"]
    raw = np.concatenate(parts, axis=1) if parts else np.zeros((items.num_items, 0))
    return raw, tuple(names), checks


MODELS = ("judge", "classifier")
"""Judges that are meant to read; a function may count letters on purpose."""
BY_LENGTH, ENOUGH_PAIRS = 0.9, 30
MOST_ITEMS = 200  # of a prompt, whose pairs are compared


def longer_preferred(values: np.ndarray, items: Preferences) -> tuple[float, int]:
    """Share of pairs of one prompt, of different length and worth, in which the longer is worth more; and how many."""
    lengths = np.array([len(text) for text in items.item_text])
    agreed = pairs = 0
    for prompt in np.unique(items.item_prompt):
        place = np.flatnonzero((items.item_prompt == prompt) & np.isfinite(values))[:MOST_ITEMS]
        product = np.sign(np.subtract.outer(lengths[place], lengths[place]))
        product = product * np.sign(np.subtract.outer(values[place], values[place]))
        agreed, pairs = agreed + int((product > 0).sum()) // 2, pairs + int((product != 0).sum()) // 2
    return agreed / max(pairs, 1), pairs


def _keys(written: Written) -> list[tuple[int, str]]:
    people, prompts, number = written.shape
    places = np.tile(np.repeat(np.arange(prompts), number), people)
    return [(int(place), one.text or " ") for place, one in zip(places, written.flat(), strict=True)]


def _items(asked: PromptRows, distinct: Sequence[tuple[int, str]]) -> Preferences:
    """Prompts with their texts as items; functions see the other columns of each prompt's row."""
    places = np.array([place for place, _ in distinct], np.int64)
    return asked.take(places).with_texts([text for _, text in distinct])
