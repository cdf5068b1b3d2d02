"""What completions are worth: by each person's own reward, and by judges that are the same for everybody.

A judge gives every policy's completions numbers [U, P, n], for U people: person u judges what was written for u. Only
differences between completions of one prompt mean something.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards.basis import meaning
from rewards.basis.readout import Readout
from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.evaluation.outputs import statistics
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.samples import Written
from rlhf.phi import encoder, on_host
from rlhf.phi.columns import table
from rlhf.phi.columns.config import ColumnConfig
from rlhf.phi.reward import PromptRows

OWN = "own reward"
"""Name of the judge w_u · φ."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """values: by judge and policy float64[U, P, n]. matrices: by policy float64[U, U], what row u gets, by u's own taste, from
    what was written for column v, and gains float64[U, P], own minus the mean of other people's; None for policies that
    answer all alike. checks: what was found of every further judge, and why some judge nothing. partial: by judge the policies of
    its own model, where it prefers them; it does not compare those with others. axes: what the K axes of people's own rewards are
    called, and features: by policy φ float32[U, P, n, K] of every completion, U = 1 where all get the same; none without rewards.
    """

    values: dict[str, list[np.ndarray]]
    matrices: list[np.ndarray | None]
    gains: list[np.ndarray | None]
    checks: JSONObject
    partial: dict[str, set[int]] = dataclasses.field(default_factory=dict)
    axes: tuple[str, ...] = ()
    features: list[np.ndarray] = dataclasses.field(default_factory=list)

    def counts(self, judge: str, a: int, b: int) -> bool:
        """Whether a judge's comparison of policies a and b counts."""
        own = self.partial.get(judge, set())
        return (a in own) == (b in own)


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
    axes: tuple[str, ...] = ()
    phi = np.zeros((len(distinct), 0), np.float32)
    if run is not None:
        axes, phi = _axes(run), features(run, items)
        worth = _worths(phi, people)
        values[OWN] = [_own(worth, at) for at in index]
        for number, one in enumerate(written):
            if one.source.personal and len(people) > 1:
                matrices[number], gains[number] = _swapped(worth, index[number])
    if config.judges:
        raw, names, checks = _columns(config, items)
        for column, name in enumerate(names):
            values[name] = [np.broadcast_to(raw[:, column][at], (len(people), *at.shape[1:])) for at in index]
    partial: dict[str, set[int]] = {}
    for one in config.judges:
        if one.name in values and (own := of_its_model(one, written)):
            checks[one.name]["self"] = found = self_preference(one.name, values, own)
            checks[one.name]["self"]["policies"] = [written[number].source.name for number in sorted(own)]
            if found["partial"]:
                partial[one.name] = own
    return Judged(values, matrices, gains, checks, partial, axes, [phi[at] for at in index] if axes else [])


def of_its_model(judge: ColumnConfig, written: Sequence[Written]) -> set[int]:
    """Policies that are the model that judges, by its name at an address, in a directory or on a hub."""
    if judge.kind != "judge":
        return set()
    names = [(one.source.address or ("", one.source.place))[1] for one in written]
    return {number for number, name in enumerate(names) if judge.model in (name, Path(name).name)}


SELF, FEWEST = 0.1, 6
"""Excess over the other judges above which a judge is partial, and the clusters that it takes to say so."""


def self_preference(name: str, values: dict[str, list[np.ndarray]], own: set[int]) -> JSONObject:
    """How much more often a judge prefers its own model's texts than the other judges do.

        excess[u, p] = win rate of its own model's texts against the other policies', by the judge − by the others (mean)

    With no other judge the others' is ½: then nothing says whether the texts are better, and a judge is no witness in its own
    cause. Partial: the 95 % interval of the excess is above 0 and its mean above `SELF`.

    Source: Panickssery et al. 2024, LLM evaluators recognize and favor their own generations, arXiv:2404.13076.
    """
    others = [number for number in range(len(values[name])) if number not in own]
    if not others:
        return {"preferred": None, "others": None, "excess": None, "partial": None}

    def rate(judge: str) -> np.ndarray:
        rates = [statistics.wins(values[judge][a], values[judge][b]) for a in sorted(own) for b in others]
        won = np.mean(rates, axis=0)
        return np.where(np.isfinite(won), won, 0.5)

    preferred = rate(name)
    witnesses = [rate(judge) for judge in values if judge != name]
    expected = np.mean(witnesses, axis=0) if witnesses else np.full(preferred.shape, 0.5)
    excess = statistics.interval(preferred - expected)
    partial = None
    if max(preferred.shape) >= FEWEST and excess.mean > SELF and excess.low > 0:
        other = (
            f"the other judges in {expected.mean():.1%}"
            if witnesses
            else "and no other judge says that they are better"
        )
        partial = f"it prefers its own model's texts in {preferred.mean():.1%} of comparisons, {other}"
    return {
        "preferred": float(preferred.mean()),
        "others": float(expected.mean()) if witnesses else None,
        "excess": {
            key: float(value) if np.isfinite(value) else None for key, value in excess._asdict().items()
        },
        "partial": partial,
    }


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
            phi = features(run, _items(asked, distinct))
            own = _own(_worths(phi, people), at)  # [U, P, n · N]
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


def _worths(phi: np.ndarray, people: Sequence[Person]) -> np.ndarray:
    """w_u · φ of each distinct (prompt, text), float64[U, I]."""
    coef = np.stack([np.asarray(person.coef) for person in people])
    return (phi.astype(np.float64) @ coef.T).T


def _axes(run: RewardRun) -> tuple[str, ...]:
    """Names of the axes with what goes with each, as far as that was measured."""
    return tuple(found.label(name) for name, found in meaning.read(run).items())


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
