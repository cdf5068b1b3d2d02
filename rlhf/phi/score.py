"""`chorus rewards score`: vector and scalar rewards of any completions, for the aggregate person or anybody.

    φ(x, y) as `rewards.basis.readout` reads it, reward = w · φ(x, y),   w = μ, a person's mean, or given

Rewards of two completions of one prompt may be compared; those of different prompts only up to a shift.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards import jsonl
from rewards.api.scoring import features_of
from rewards.basis import store
from rewards.basis.store import RewardRun
from rewards.data.completions import read_records
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import records
from rewards.types import Preferences
from rlhf.phi import encoder
from rlhf.phi.columns import table
from rlhf.run.directory import plain


def score(
    rewards: str,
    input: str,
    output: str,
    *,
    user: str | None = None,
    coefficients: Sequence[float] | None = None,
) -> JSONObject:
    """Write every row of `input` with its rewards to `output` (JSON lines, gzip by suffix) and return a summary.

    A row with `completion` gets `phi` (by name), `reward`, with off-the-shelf columns `raw` (their numbers, not
    normalised) and with gates `accepted`; a row of a preference file gets the same for both sides, with the prefix
    `chosen_` or `rejected_`.

    Raises:
      UserError: no reward run, a bad row, a field that would be overwritten, no such person, coefficients that do
        not fit.
    """
    run = _load(rewards)
    coef = _coefficients(run, user, coefficients)
    prefs, rows = read_records(input)
    phi, columns = _rewards(run, prefs)
    reward = phi.astype(np.float64) @ coef.astype(np.float64)
    accepted = np.all(list(columns.gates.values()), axis=0) if columns and columns.gates else None
    fields = [
        _fields(run.basis.gauge.names, phi[item], float(reward[item]), columns, item)
        for item in range(prefs.num_items)
    ]
    _check_free(input, prefs, rows, fields)
    path = Path(output)
    merged = (
        row | _named(fields, int(first), int(last))
        for row, first, last in zip(rows, prefs.chosen, prefs.rejected, strict=True)
    )
    jsonl.write(path, (_written(row) for row in merged))
    pairs = prefs.chosen != prefs.rejected
    margin = (reward[prefs.chosen] - reward[prefs.rejected])[pairs]
    result: JSONObject = {
        "path": str(path),
        "rows": len(rows),
        "completions": prefs.num_items,
        "user": user,
        "names": list(run.basis.gauge.names),
        "coefficients": coef,
        "reward_mean": float(reward.mean()),
        "reward_sd": float(reward.std()),
    }
    if pairs.any():  # a reward of exactly the same height is half right
        result["chosen_above_rejected"] = float(np.mean(np.where(margin == 0, 0.5, margin > 0)))
    if columns:
        result["columns"] = columns.report
    if accepted is not None:
        result["accepted"] = float(accepted.mean())
    return result


def _written(row: JSONObject) -> JSONObject:
    """A row as JSON has it: dates of a data set as text, numbers that are not finite as null."""
    return json.loads(json.dumps(plain(row), default=str))


def _load(rewards: str) -> RewardRun:
    directory = Path(rewards)
    if (directory / "model.json").is_file() and not (directory / store.RECORD).is_file():
        raise UserError(
            f"{rewards}: holds a reward model without a basis, which has no vector rewards; fit a linear one "
            "(fit.model=house)"
        )
    return store.load_reward_run(directory)


def _coefficients(run: RewardRun, user: str | None, given: Sequence[float] | None) -> np.ndarray:
    if user is not None:
        return np.asarray(records.load(run.users, user, run).posterior.mean)
    if given is None:
        return np.asarray(run.prior.mean)
    coef = np.asarray(given, np.float64)
    if coef.shape != run.prior.mean.shape or not np.isfinite(coef).all():
        raise UserError(
            f"--coefficients {coef.tolist()}: must be {len(run.prior.mean)} finite numbers, one for each of "
            f"{', '.join(run.basis.gauge.names)}"
        )
    return coef


def _rewards(run: RewardRun, prefs: Preferences) -> tuple[np.ndarray, table.Table | None]:
    """φ[I, K], and the raw columns behind it where there are any."""
    settings = run.basis.encoder
    columns = table.evaluate(prefs, settings) if settings["kind"] == "columns" else None
    embeddings = encoder.embed_items(prefs, settings) if columns is None else columns.values
    return features_of(run.basis, prefs, embeddings), columns


def _fields(
    names: tuple[str, ...], phi: np.ndarray, reward: float, columns: table.Table | None, item: int
) -> JSONObject:
    fields: JSONObject = {"phi": dict(zip(names, phi.tolist(), strict=True)), "reward": reward}
    if columns is not None:
        fields["raw"] = dict(zip(columns.names, columns.raw[item].tolist(), strict=True))
        if columns.gates:
            fields["accepted"] = all(bool(passed[item]) for passed in columns.gates.values())
    return fields


def _named(fields: list[JSONObject], first: int, last: int) -> JSONObject:
    if first == last:
        return fields[first]
    sides = (("chosen", fields[first]), ("rejected", fields[last]))
    return {f"{side}_{name}": value for side, own in sides for name, value in own.items()}


def _check_free(input: str, prefs: Preferences, rows: list[JSONObject], fields: list[JSONObject]) -> None:
    """Nothing of the user's may be overwritten."""
    for number, row, first, last in zip(prefs.row, rows, prefs.chosen, prefs.rejected, strict=True):
        taken = sorted(set(row) & set(_named(fields, int(first), int(last))))
        if taken:
            raise UserError(
                f"{input}: row {number}: field {taken[0]!r}: stands there already and would be overwritten; "
                "rename it, or score the file it came from"
            )
