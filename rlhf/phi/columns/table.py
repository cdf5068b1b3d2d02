"""A set of named columns as an encoder: e(x, y) ∈ R^C, raw rewards, float64.

A column that fails its own check (a judge that reads the order, votes that are mostly wrong) is *off*: it is not
part of e, and the stored settings say why. A column with a gate is not part of e either; it says which
completions are accepted. An item about which a column says nothing gets the column's mean over the items of the
fit, which is stored, so that an embedding depends on no other row.

Letters in shapes: I items, C columns.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rewards.errors import UserError
from rewards.files import JSONObject, sha256_json
from rewards.methods.columns import check_spread, moments
from rewards.types import Preferences
from rlhf.phi.columns.classifier import ClassifierColumn
from rlhf.phi.columns.config import KEYS, ColumnConfig, plain
from rlhf.phi.columns.functions import FunctionColumn
from rlhf.phi.columns.items import Column, Measured
from rlhf.phi.columns.jit import JitColumn
from rlhf.phi.columns.judge import JudgeColumn
from rlhf.phi.columns.reference import ReferenceColumn
from rlhf.phi.columns.votes import VotesColumn

KINDS: dict[str, type] = {
    "function": FunctionColumn,
    "jit": JitColumn,
    "classifier": ClassifierColumn,
    "judge": JudgeColumn,
    "votes": VotesColumn,
    "reference": ReferenceColumn,
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns over items.

    Attributes:
      names: C labels.
      values: float64[I, C] with the stored mean where a column says nothing.
      raw: float64[I, C], NaN there.
      gates: bool[I] by name: whether a completion passes.
      report: what the columns say about themselves on these items, by name.
    """

    names: tuple[str, ...]
    values: np.ndarray
    raw: np.ndarray
    gates: dict[str, np.ndarray]
    report: JSONObject


def make(settings: JSONObject) -> Column:
    """The column of `rlhf.phi.columns.config.plain` settings."""
    kind = settings["kind"]
    fields = {"function": "spec"} if kind in ("function", "jit") else {}
    own = {fields.get(key, key): settings[key] for key in KEYS[kind] if key in settings}
    return KINDS[kind](name=settings["name"], **own)


def made_of(columns: Sequence[ColumnConfig]) -> dict[str, dict[str, str]]:
    """By column, hashes of what it is made of: sources of functions, weights of classifiers, settings of judges."""
    return {f"column {config.name!r}": make(plain(config)).parts() for config in columns}


def prepare(prefs: Preferences, configs: Sequence[ColumnConfig]) -> tuple[np.ndarray, JSONObject]:
    """Measure new columns; returns float64[I, C] and the settings that rebuild them.

    Raises:
      UserError: no columns, two of one name, all of them off, or a column that cannot be computed.
    """
    if not configs:
        raise UserError("encoder.columns: empty, which encoder.kind columns needs; name at least one column")
    kept: list[JSONObject] = []
    dropped: list[JSONObject] = []
    parts: list[np.ndarray] = []
    for config in configs:
        settings = plain(config)
        column = make(settings)
        identity = column.identity()  # before anything runs
        measured = column.measure(prefs, fitting=True)
        if measured.off is not None:
            dropped.append({"name": config.name, "reason": measured.off, "report": measured.report})
            continue
        fill = _means(measured, prefs)
        names = list(measured.names)
        kept.append(
            {
                "settings": settings,
                "identity": identity,
                "names": names,
                "fill": fill.tolist(),
                "report": measured.report,
            }
        )
        if config.gate is None:
            parts.append(np.where(np.isnan(measured.values), fill, measured.values))
        elif len(names) > 1:
            raise UserError(f"column {config.name!r}: {len(names)} outputs cannot be one gate; remove gate")
    names = [name for entry in kept for name in entry["names"]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"encoder.columns: two columns are called {repeated[0]!r}; rename one")
    if not parts:
        why = f" ({dropped[0]['name']}: {dropped[0]['reason']})" if dropped else " (gates only)"
        raise UserError(f"encoder.columns: no column is left to make rewards from{why}; add another one")
    fingerprint = sha256_json([[entry["settings"]["name"], entry["identity"]] for entry in kept])
    settings = {"kind": "columns", "model": None, "layer": 0, "pool": "none", "fingerprint": fingerprint}
    settings |= {"columns": kept, "dropped": dropped}
    return np.concatenate(parts, axis=1), settings | {"names": list(column_names(settings))}


def as_they_are(columns: Sequence[ColumnConfig]) -> JSONObject:
    """Stored settings of columns that are neither fitted nor standardised; what says nothing counts 0, as in TRL."""
    entries = []
    for config in columns:
        settings = plain(config)
        column = make(settings)
        names = list(column.outputs())
        entry = {"settings": settings, "identity": column.identity(), "names": names}
        entries.append(entry | {"fill": [0.0] * len(names), "report": {}})
    settings = {"kind": "columns", "model": None, "columns": entries, "dropped": []}
    return settings | {"names": list(column_names(settings))}


def evaluate(prefs: Preferences, settings: JSONObject, *, gates: bool = True) -> Table:
    """Measure stored columns on other items; those that are off stay off.

    Args:
      gates: also the columns that are gates.
    Raises:
      UserError: a column is not what it was at the fit, or cannot be computed.
    """
    opened = open_columns(settings, gates=gates)
    return combine([(entry, column.measure(prefs, fitting=False)) for entry, column in opened])


def open_columns(settings: JSONObject, *, gates: bool) -> list[tuple[JSONObject, Column]]:
    """Stored entries with their columns, ready to measure.

    Raises:
      UserError: a column is not what it was at the fit.
    """
    opened = []
    for entry in settings["columns"]:
        own = entry["settings"]
        if own["gate"] is not None and not gates:
            continue
        column = make(own)
        if entry["identity"] != column.identity() and entry["identity"] not in _former(column):
            raise UserError(
                f"column {own['name']!r}: {_subject(own)} is not what the rewards were fitted with (sha256 "
                "differs); restore it or fit again"
            )
        opened.append((entry, column))
    return opened


def _former(column: Column) -> tuple[str, ...]:
    """Identities that the same column had in older versions."""
    return getattr(column, "former_identities", tuple)()


def combine(parts: Sequence[tuple[JSONObject, Measured]]) -> Table:
    """Stored entries and what their columns measured, as one table."""
    raw, filled, names = [], [], []
    passed, report = {}, {}
    for entry, measured in parts:
        own = entry["settings"]
        report[own["name"]] = measured.report | ({"warning": measured.off} if measured.off else {})
        if own["gate"] is not None:
            # Nothing known about a completion: it does not pass.
            passed[own["name"]] = np.nan_to_num(measured.values[:, 0], nan=-np.inf) >= own["gate"]
            continue
        names += entry["names"]
        raw.append(measured.values)
        filled.append(np.where(np.isnan(measured.values), np.array(entry["fill"]), measured.values))
    return Table(tuple(names), np.concatenate(filled, axis=1), np.concatenate(raw, axis=1), passed, report)


def standardise_on(settings: JSONObject, samples: Preferences) -> JSONObject:
    """`settings` with mean and standard deviation (within prompts) of every column over samples of π_ref.

    Raises:
      UserError: a column tells no two samples of a prompt apart.
    """
    values = evaluate(samples, settings, gates=False).values
    mean, spread = moments(values, samples.item_prompt)
    check_spread(spread, mean, tuple(settings["names"]), samples.source)
    reference = {"source": samples.source, "items": len(values), "mean": mean.tolist(), "sd": spread.tolist()}
    return settings | {"reference": reference}


def column_names(settings: JSONObject) -> tuple[str, ...]:
    """Names of the columns that make up e, in order."""
    return tuple(
        name for entry in settings["columns"] if entry["settings"]["gate"] is None for name in entry["names"]
    )


def summary(settings: JSONObject) -> JSONObject:
    """What a report says: columns used with what they say about themselves, and those switched off, with the reason."""
    return {
        "used": {
            entry["settings"]["name"]: {"kind": entry["settings"]["kind"]}
            | ({"gate": entry["settings"]["gate"]} if entry["settings"]["gate"] is not None else {})
            | entry["report"]
            for entry in settings["columns"]
        },
        "off": {entry["name"]: entry["reason"] for entry in settings["dropped"]},
    }


def _means(measured: Measured, prefs: Preferences) -> np.ndarray:
    known = ~np.isnan(measured.values)
    empty = [
        name
        for name, any_known in zip(measured.names, np.asarray(known.any(axis=0)), strict=True)
        if not any_known
    ]
    if empty:
        raise UserError(
            f"column {empty[0]!r}: says nothing about any completion of {prefs.source}; remove it"
        )
    return np.nanmean(measured.values, axis=0)


def _subject(settings: JSONObject) -> str:
    keys = {
        "function": "function",
        "jit": "function",
        "classifier": "model",
        "reference": "model",
        "judge": "model",
    }
    key = keys.get(settings["kind"])
    return str(settings[key]) if key else f"its {settings['kind']} rule"
