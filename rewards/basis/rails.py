"""Rails: which coefficients may be personal, and how far. A record beside a reward run, tied to its basis.

    locked      w_k = ℓ_k                a stated number, the same for everybody; never the population's mean by default
    bounded     a_k ≤ w_k ≤ b_k
    free        whatever the person's answers say
    half-space  d·w ≤ b                  d = E[φ | behaviour] − E[φ | none] under π_ref: with b = 0 no person's reward pays
                                         for the behaviour, to first order (arXiv:2602.01002, specialised to w·φ)
    trust       ½ (w̃−μ̃)ᵀ C (w̃−μ̃)/β² ≤ κ  nats of KL from the aggregate policy, to second order

`rewards.basis.projection` moves coefficients there. Everything is in the units that `chorus users show` prints: nats a
unit of φ, in the canonical gauge, so rails of one basis say nothing about another and are refused by it.

    rails.json    the record, with the hash of its content and of its basis
    rails.jsonl   what was set and switched off, when and why; only appended

Letters in shapes: K basis outputs, R half-spaces.
"""

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rewards import files, hashed, jsonl
from rewards.errors import UserError, meant
from rewards.files import JSONObject

FORMAT = "chorus-rails-1"
RECORD, HISTORY = "rails.json", "rails.jsonl"
KEYS = ("axes", "half_spaces", "trust_nats")
AGAIN = "restore it, or set the rails again (chorus rewards rails)"
Kind = Literal["locked", "bounded", "free"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis that is not free.

    Attributes:
      name: of the axis. low, high: what its coefficient may be; equal where it is locked.
    """

    name: str
    low: float
    high: float

    @property
    def kind(self) -> Kind:
        return "locked" if self.low == self.high else "bounded"

    def __str__(self) -> str:
        if self.kind == "locked":
            return f"locked at {self.low:+g}"
        return f"bounded to [{self.low:+g}, {self.high:+g}]"


@dataclasses.dataclass(frozen=True)
class HalfSpace:
    """direction·w ≤ limit.

    Attributes:
      name: of what it keeps people from being paid for. direction: K numbers.
    """

    name: str
    direction: tuple[float, ...]
    limit: float

    def __str__(self) -> str:
        return f"half-space {self.name!r} ≤ {self.limit:+g}"


@dataclasses.dataclass(frozen=True)
class Rails:
    """The rails of one basis.

    Attributes:
      basis: its hash. names: of its K axes.
      axes: those that are locked or bounded. half_spaces: further limits.
      trust_nats: κ; infinite for no trust region.
    """

    basis: str
    names: tuple[str, ...]
    axes: tuple[Axis, ...] = ()
    half_spaces: tuple[HalfSpace, ...] = ()
    trust_nats: float = math.inf

    @property
    def locked(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes if axis.kind == "locked")

    @property
    def hash(self) -> str:
        """sha256 of the record."""
        return files.sha256_json(self.to_json())

    def axis(self, name: str) -> Axis | None:
        """The rail of an axis; None for a free one."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def of_axis(self, name: str) -> str:
        """ "locked at +0", "bounded to [-1, +1]" or "free"."""
        axis = self.axis(name)
        return "free" if axis is None else str(axis)

    def to_json(self) -> JSONObject:
        return {
            "format": FORMAT,
            "basis": self.basis,
            "names": list(self.names),
            "axes": [dataclasses.asdict(axis) for axis in self.axes],
            "half_spaces": [
                {"name": one.name, "direction": list(one.direction), "limit": one.limit}
                for one in self.half_spaces
            ],
            "trust_nats": None if math.isinf(self.trust_nats) else self.trust_nats,
        }

    def __str__(self) -> str:
        parts = [f"{axis.name}: {axis}" for axis in self.axes] + [str(one) for one in self.half_spaces]
        if math.isfinite(self.trust_nats):
            parts.append(f"at most {self.trust_nats:g} nats from the aggregate policy")
        return "; ".join(parts)


def stated(given: Mapping[str, Any], names: Sequence[str], basis: str, place: str) -> Rails:
    """Rails as somebody writes them.

        axes:
          - {name: flattery, locked: 0}
          - {name: warmth, low: -0.5, high: 0.5}
        half_spaces:
          - {name: agreement, direction: {flattery: 1.0, warmth: 0.4}, limit: 0}     # or a list of K numbers
        trust_nats: 2

    Args:
      names, basis: of the basis they are for. place: where they stand, for messages.
    Raises:
      UserError: what is wrong and where; or limits that no coefficients can meet.
    """
    _only(given, KEYS, place)
    axes = tuple(
        _axis(one, names, f"{place}: axes[{i}]") for i, one in enumerate(_list(given, "axes", place))
    )
    for axis in axes:
        if sum(other.name == axis.name for other in axes) > 1:
            raise UserError(f"{place}: axes: {axis.name!r} is there twice; keep one")
    halves = tuple(
        _half_space(one, names, f"{place}: half_spaces[{i}]")
        for i, one in enumerate(_list(given, "half_spaces", place))
    )
    for half in halves:
        if sum(other.name == half.name for other in halves) > 1:
            raise UserError(
                f"{place}: half_spaces: {half.name!r} is there twice; give each a name of its own"
            )
    trust = given.get("trust_nats")
    nats = math.inf if trust is None else _number(trust, f"{place}: trust_nats")
    if nats <= 0:
        raise UserError(
            f"{place}: trust_nats is {trust!r}, must be above 0; leave it out for no trust region"
        )
    if not axes and not halves and math.isinf(nats):
        raise UserError(f"{place}: holds no rail; give axes, half_spaces or trust_nats")
    return Rails(basis, tuple(names), axes, halves, nats)


def from_json(body: Any, place: str) -> Rails:
    """The inverse of `Rails.to_json`.

    Raises:
      UserError: not such a record.
    """
    try:
        if body["format"] != FORMAT:
            raise UserError(f"{place}: format {body['format']!r}, this version reads {FORMAT!r}; {AGAIN}")
        names = tuple(map(str, body["names"]))
        given: JSONObject = {
            "axes": [
                {"name": axis["name"], "locked": axis["low"]} if axis["low"] == axis["high"] else axis
                for axis in body["axes"]
            ],
            "half_spaces": body["half_spaces"],
            "trust_nats": body["trust_nats"],
        }
        basis = str(body["basis"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}: damaged ({type(error).__name__}: {error}); {AGAIN}") from None
    return stated(given, names, basis, place)


def check_basis(rails: Rails, basis: str, names: Sequence[str], place: str) -> None:
    """Rails bind the coefficients of one basis alone.

    Raises:
      UserError: they belong to another.
    """
    if rails.basis != basis or rails.names != tuple(names):
        raise UserError(
            f"{place}: rails of basis {rails.basis[:12]}…, but this is {basis[:12]}…; coefficients of another basis mean "
            "something else, state the rails anew (chorus rewards rails)"
        )


def read(directory: Path, basis: str, names: Sequence[str]) -> Rails | None:
    """Rails of a reward run; None where none were ever set, or they were switched off.

    Raises:
      UserError: damaged, of another basis, or not what the history says was set last.
    """
    path, last = directory / RECORD, _last(directory)
    if not path.is_file():
        if last is not None and last["rails"] is not None:
            raise UserError(
                f"{path}: missing, but {HISTORY} says that rails {last['rails'][:12]}… are set; {AGAIN}, or switch them off"
            )
        return None
    rails = hashed.parse_record(path, AGAIN, lambda body: from_json(body, str(path)))
    check_basis(rails, basis, names, str(path))
    if last is None or last["rails"] != rails.hash:
        raise UserError(f"{path}: is not what {HISTORY} says was set last; {AGAIN}")
    return rails


def write(directory: Path, rails: Rails | None, reason: str | None = None) -> None:
    """Set the rails of a reward run, or switch them off (None), which needs a reason; either is put down in the history."""
    if rails is None and not (reason or "").strip():
        raise UserError("rails: switching them off needs a reason, which is kept; say why")
    with files.locked(directory):
        before = _last(directory)
        row = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "rails": None if rails is None else rails.hash,
            "before": None if before is None else before["rails"],
            "reason": reason,
        }
        if rails is not None:
            hashed.write_record(directory / RECORD, rails.to_json())
        jsonl.write(directory / HISTORY, [*history(directory), hashed.with_hash(row)])
        if rails is None:
            (directory / RECORD).unlink(missing_ok=True)


def history(directory: Path) -> list[JSONObject]:
    """What was set and switched off, oldest first."""
    path = directory / HISTORY
    return jsonl.rows(path, AGAIN) if path.is_file() else []


def _last(directory: Path) -> JSONObject | None:
    rows = history(directory)
    try:
        return hashed.checked_row(rows[-1]) if rows else None
    except ValueError as error:
        raise UserError(f"{directory / HISTORY}: last line: {error}; {AGAIN}") from None


def _axis(given: Any, names: Sequence[str], place: str) -> Axis:
    _only(given, ("name", "locked", "low", "high"), place)
    name = given.get("name")
    if name not in names:
        known = f"the axes are {', '.join(names)}"
        raise UserError(f"{place}: no axis {name!r}; {meant(str(name), names, known)}")
    if "locked" in given:
        if "low" in given or "high" in given:
            raise UserError(f"{place}: {name!r} is locked and bounded; keep one of the two")
        value = _number(given["locked"], f"{place}: locked")
        return Axis(name, value, value)
    low, high = (_number(given.get(side), f"{place}: {side}") for side in ("low", "high"))
    if not low < high:
        raise UserError(f"{place}: low {low:g} is not below high {high:g}; for one value write locked")
    return Axis(name, low, high)


def _half_space(given: Any, names: Sequence[str], place: str) -> HalfSpace:
    _only(given, ("name", "direction", "limit"), place)
    name, direction = given.get("name"), given.get("direction")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{place}: name is {name!r}; name what nobody is to be paid for")
    if isinstance(direction, Mapping):
        for axis in (axis for axis in direction if axis not in names):
            known = f"the axes are {', '.join(names)}"
            raise UserError(f"{place}: direction: no axis {axis!r}; {meant(str(axis), names, known)}")
        direction = [direction.get(axis, 0.0) for axis in names]
    if not isinstance(direction, list) or len(direction) != len(names):
        raise UserError(f"{place}: direction must be {len(names)} numbers, or numbers by name of an axis")
    numbers = tuple(_number(part, f"{place}: direction") for part in direction)
    if not any(numbers):
        raise UserError(f"{place}: direction is 0 on every axis, which limits nothing; remove it")
    return HalfSpace(name.strip(), numbers, _number(given.get("limit"), f"{place}: limit"))


def _list(given: Mapping[str, Any], key: str, place: str) -> list[Any]:
    value = given.get(key) or []
    if not isinstance(value, list | tuple):
        raise UserError(f"{place}: {key} must be a list, not {type(value).__name__}")
    return list(value)


def _only(given: Any, keys: Sequence[str], place: str) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"{place}: must be a section of {', '.join(keys)}, not {given!r}")
    for key in (key for key in given if key not in keys):
        known = f"there are {', '.join(keys)}"
        raise UserError(f"{place}: no key {key!r}; {meant(str(key), keys, known)}")


def _number(value: Any, place: str) -> float:
    largest = float(np.finfo(np.float32).max)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        raise UserError(f"{place} is {value!r}, must be a finite number")
    return float(value)
