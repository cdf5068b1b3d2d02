"""Values to try for one key: `{log: [1e-5, 1e-3]}`, `{uniform: [0, 1]}`, `{int: [1, 8]}`, `{choice: [a, b]}`."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from rewards.errors import UserError, meant

if TYPE_CHECKING:
    from optuna.trial import Trial

KINDS = ("log", "uniform", "int", "log_int", "choice")
_MOST = 10_000  # values of a choice or of a grid


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of one key.

    Attributes:
      low, high, step: of numbers; step is None for numbers that are not whole.
      choices: of `choice`, as JSON: a value may be a list or a section.
      written: as it stands in the file. place: where.
    """

    key: str
    kind: str
    low: float
    high: float
    step: int | None
    choices: tuple[str, ...]
    written: Any
    place: str

    def suggest(self, trial: "Trial") -> object:
        """The value of a trial: chosen now, or the one chosen before when the trial is taken up again."""
        if self.kind == "choice":
            return json.loads(trial.suggest_categorical(self.key, self.choices))
        if self.step is not None:
            low, high = int(self.low), int(self.high)
            log = self.kind == "log_int"
            return trial.suggest_int(self.key, low, high, step=1 if log else self.step, log=log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.kind == "log")

    def plain(self, stored: Any) -> Any:
        """The value of the YAML file from the one in the record of trials."""
        return json.loads(stored) if self.kind == "choice" else stored

    def ends(self) -> list[Any]:
        """Values that must be valid for all to be."""
        if self.kind == "choice":
            return [json.loads(choice) for choice in self.choices]
        return [int(self.low), int(self.high)] if self.step is not None else [self.low, self.high]

    def grid(self) -> list[Any]:
        """Every value, as the record of trials has it."""
        return (
            list(self.choices)
            if self.kind == "choice"
            else list(range(int(self.low), int(self.high) + 1, self.step or 1))
        )


def range_of(key: str, value: object, place: str, otherwise: str) -> Range:
    """Read a range.

    Args:
      otherwise: what to do, for something that is no range at all.
    Raises:
      UserError: key, place, value and fix.
    """

    def refuse(problem: str) -> UserError:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        return UserError(
            f"sweep.{key} [{place}]: {problem} (got {shown if len(shown) <= 80 else shown[:77] + '...'})"
        )

    if not isinstance(value, dict):
        raise refuse(otherwise)
    if len(value) != 1:
        raise refuse(f"a range is one of {', '.join(KINDS)} with its list" if value else otherwise)
    [(kind, given)] = value.items()
    if kind not in KINDS:
        raise refuse(f"{kind!r} is no kind of range; {meant(kind, KINDS, 'known: ' + ', '.join(KINDS))}")
    if not isinstance(given, list):
        raise refuse(f"{kind} takes a list")
    if kind == "choice":
        choices = tuple(json.dumps(one, sort_keys=True) for one in given)
        if not 2 <= len(choices) <= _MOST:
            raise refuse(f"choice needs 2 to {_MOST} values; a single one belongs in the base configuration")
        if len(set(choices)) < len(choices):
            raise refuse("choice names a value twice; remove one")
        return Range(key, kind, 0, 0, None, choices, value, place)
    whole = kind in ("int", "log_int")
    if len(given) not in ((2, 3) if kind == "int" else (2,)):
        raise refuse(f"{kind} takes [low, high{', step' if kind == 'int' else ''}]")
    if any(isinstance(one, bool) or not isinstance(one, int if whole else (int, float)) for one in given):
        raise refuse(f"{kind} takes {'whole ' if whole else ''}numbers")
    low, high = given[0], given[1]
    if not low < high:
        raise refuse("an empty range; the low end must be below the high end")
    if kind.startswith("log") and low <= 0:
        raise refuse("a logarithmic range must begin above 0")
    if not -1e30 <= low <= high <= 1e30:
        raise refuse("its ends must be finite and at most 1e30")
    step = (given[2] if len(given) == 3 else 1) if whole else None
    if step is not None and (step < 1 or (high - low) % step):
        raise refuse("the step must be at least 1 and lead from the low end to the high one")
    if kind == "int" and (high - low) // (step or 1) >= _MOST:
        raise refuse(f"more than {_MOST} values; use a step, log_int or uniform")
    return Range(
        key, kind, low if whole else float(low), high if whole else float(high), step, (), value, place
    )
