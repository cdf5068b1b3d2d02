"""What a person says about their own taste, in numbers or in words, as a pseudo-observation of w.

An edit is the statement a·w = v ± s about one direction a[K] of coefficients. It is exact for a Gaussian prior:

    Σ′⁻¹ = Σ⁻¹ + Σ_e a_e a_eᵀ / s_e²,      Σ′⁻¹ μ′ = Σ⁻¹ μ + Σ_e a_e v_e / s_e²

and answers then update N(μ′, Σ′) as they update the population, so the posterior follows from prior, edits and
answers, in any order. Edits are events that are only appended; a later one of the same name replaces an earlier
one in the computation.

Numbers set one axis of the basis. Words ("shorter, cheaper, please") are read against the names of the axes and
of the encoder's columns and attributes; nothing is guessed for a basis whose axes have no names of their own.

Letters in shapes: K basis outputs, D embedding width.
"""

import dataclasses
import datetime
import logging
import math
import re

import numpy as np

from rewards.basis.belief import Belief
from rewards.basis.readout import Readout
from rewards.basis.store import FittedBasis, RewardRun
from rewards.errors import UserError, meant
from rewards.files import JSONObject

_LOG = logging.getLogger("chorus")
FIRM = 0.1  # s of a number, in population standard deviations of a·w: worth about a hundred answers
SOFT = 0.4  # s of words
STEP = 1.0  # how far "more" moves a·w, in the same unit
REACH = 4.0  # how far from the population an edit may go
STRENGTH = {"much": 2.0, "far": 2.0, "lot": 2.0, "slightly": 0.5, "bit": 0.5, "little": 0.5, "somewhat": 0.5}
FILLERS = frozenset(
    "please a an the it be is are i want like would prefer make answers answer texts text ones to of in with "
    "and but more less fewer much far lot slightly bit little somewhat thanks keep them should".split()
)
# A comparative names a concept and a side; a concept is matched by any of its words in a name.
CONCEPTS: dict[str, frozenset[str]] = {
    "length": frozenset({"length", "words", "characters", "tokens", "verbosity", "long"}),
    "price": frozenset({"price", "cost", "costs", "fare", "rate", "expense", "money"}),
    "cheapness": frozenset({"cheapness", "cheap", "affordability", "affordable", "savings"}),
    "time": frozenset({"time", "duration", "hours", "minutes"}),
    "formality": frozenset({"formality", "formal"}),
    "warmth": frozenset({"warmth", "warm", "politeness", "empathy", "friendly", "friendliness"}),
    "certainty": frozenset({"certainty", "confidence", "confident"}),
    "simplicity": frozenset({"simplicity", "simple", "readability"}),
    "complexity": frozenset({"complexity", "jargon", "difficulty"}),
    "comfort": frozenset({"comfort", "comfortable"}),
}
COMPARATIVES: dict[str, tuple[tuple[str, float], ...]] = {
    "shorter": (("length", -1.0),),
    "briefer": (("length", -1.0),),
    "longer": (("length", 1.0),),
    "cheaper": (("price", -1.0), ("cheapness", 1.0)),
    "dearer": (("price", 1.0), ("cheapness", -1.0)),
    "faster": (("time", -1.0),),
    "quicker": (("time", -1.0),),
    "slower": (("time", 1.0),),
    "warmer": (("warmth", 1.0),),
    "friendlier": (("warmth", 1.0),),
    "cooler": (("warmth", -1.0),),
    "simpler": (("simplicity", 1.0), ("complexity", -1.0)),
    "plainer": (("simplicity", 1.0), ("complexity", -1.0)),
}


@dataclasses.dataclass(frozen=True)
class Edit:
    """One statement: direction·w = value ± sd.

    Attributes:
      name: the axis, column or attribute meant; the latest edit of a name counts.
      text: what the person wrote.
      direction: K floats, in the gauge of the record's basis.
      time: ISO 8601, UTC.
    """

    name: str
    text: str
    direction: tuple[float, ...]
    value: float
    sd: float
    time: str


def apply(prior: Belief, edits: tuple[Edit, ...]) -> Belief:
    """The population as this person's starting point: N(μ′, Σ′) above. Without edits the prior itself."""
    latest = {edit.name: edit for edit in edits}.values()
    if not latest:
        return prior
    precision = prior.precision.astype(np.float64)
    pull = precision @ np.asarray(prior.mean, np.float64)
    for edit in latest:
        direction = np.array(edit.direction, np.float64)
        precision = precision + np.outer(direction, direction) / edit.sd**2
        pull = pull + direction * edit.value / edit.sd**2
    cov = np.linalg.inv(precision)
    return Belief.from_cov((cov @ pull).astype(np.float32), (0.5 * (cov + cov.T)).astype(np.float32))


def from_axis(run: RewardRun, text: str) -> Edit:
    """An edit from "NAME=NUMBER": the coefficient of one axis, in the unit `chorus users show` prints.

    Raises:
      UserError: no such axis, not a number, a locked axis, or a value far outside the population.
    """
    name, equals, number = text.rpartition("=")
    name = name.strip()
    if not equals:
        raise UserError(
            f"--axis {text!r}: write NAME=NUMBER, for instance {run.basis.gauge.names[-1]!r}=+1.5"
        )
    names = run.basis.gauge.names
    if name not in names:
        known = f"the axes are {', '.join(names)}"
        raise UserError(f"--axis {text!r}: no axis {name!r}; {meant(name, names, known)}")
    _check_free(run, name)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    k = names.index(name)
    rail = None if run.rails is None else run.rails.axis(name)
    if rail is not None and not rail.low <= value <= rail.high:
        raise UserError(
            f"--axis {text!r}: {name!r} is {rail} in {run.directory}, for everybody; give a number within"
        )
    mean, sd = float(run.prior.mean[k]), float(run.prior.sd[k])
    low, high = mean - REACH * sd, mean + REACH * sd
    if not low <= value <= high:
        raise UserError(
            f"--axis {text!r}: {number.strip()!r} is not a number from {low:+.2f} to {high:+.2f} "
            f"({REACH:g} standard deviations around the population)"
        )
    direction = np.zeros(len(names))
    direction[k] = 1.0
    return _edit(name, text, direction, value, FIRM * sd)


def from_words(run: RewardRun, posterior: Belief, text: str) -> list[Edit]:
    """Edits from words: "shorter", "more formality", "a bit less price", joined by commas or "and".

    Each moves a·w from the present belief by one population standard deviation (half for "slightly", two for
    "much"), held softly, so that answers can still correct it.

    Raises:
      UserError: a part that names no axis, column or attribute of this run, or a locked one.
    """
    directions = named_directions(run)
    edits = []
    for clause in re.split(r"[,;.!]|\band\b|\bbut\b", text.lower()):
        words = re.findall(r"[a-z0-9_'-]+", clause)
        if words and not set(words) <= FILLERS - {"more", "less", "fewer"}:
            name, sign = _meaning(clause.strip(), words, directions)
            _check_free(run, name)
            edits.append(_word_edit(run, posterior, name, directions[name], sign, clause.strip(), words))
    if not edits:
        raise UserError(f"--text {text!r}: says nothing to change; {_readable(directions)}")
    return edits


def named_directions(run: RewardRun) -> dict[str, np.ndarray]:
    """Names that words may mean, with the direction a[K] of each.

    An axis is itself. A column or attribute of the encoder is the change of φ when that one number rises by 1, all
    else equal: a·w is then how much the person likes more of it.
    """
    names = run.basis.gauge.names
    directions = {name: np.eye(len(names))[k] for k, name in enumerate(names)}
    inputs = run.basis.encoder.get("names") or ()
    head = np.asarray(run.basis.head, np.float64)
    if len(inputs) == len(head):
        slopes = head @ Readout.of(run.basis).change.T
        directions |= {
            name: slope
            for name, slope in zip(inputs, slopes, strict=True)
            if name not in directions and np.linalg.norm(slope) > 0
        }
    return directions


def locked(run: FittedBasis) -> list[str]:
    """Names nobody may edit or is asked about: what the rails lock, and `locked` in what the run stores beside its basis."""
    own = () if run.rails is None else run.rails.locked
    return [*own, *(name for name in run.extra.get("locked", ()) if name not in own)]


def to_json(edit: Edit) -> JSONObject:
    return dataclasses.asdict(edit) | {"direction": list(edit.direction)}


def _word_edit(
    run: RewardRun,
    posterior: Belief,
    name: str,
    direction: np.ndarray,
    sign: float,
    text: str,
    words: list[str],
) -> Edit:
    held = [k for k, axis in enumerate(run.basis.gauge.names) if axis in locked(run)]
    free = direction.copy()
    free[held] = 0.0  # words about a column do not move what is locked
    if np.linalg.norm(free) < 1e-3 * np.linalg.norm(direction):
        raise UserError(f"--text {text!r}: {name!r} lies on locked axes of this run; it cannot be edited")
    sd = float(np.sqrt(free @ np.asarray(run.prior.cov, np.float64) @ free))
    center, now = float(free @ run.prior.mean), float(free @ posterior.mean)
    step = sign * STEP * sd * max((STRENGTH[word] for word in words if word in STRENGTH), default=1.0)
    value = min(max(now + step, center - REACH * sd), center + REACH * sd)
    rail = None if run.rails is None else run.rails.axis(name)
    if rail is not None and not rail.low <= value <= rail.high:
        value = min(max(value, rail.low), rail.high)
        _LOG.warning(f"--text {text!r}: {name!r} is {rail} for everybody; taken as {value:+.3g}")
    return _edit(name, text, free, value, SOFT * sd)


def _meaning(clause: str, words: list[str], directions: dict[str, np.ndarray]) -> tuple[str, float]:
    """(name, +1 or −1) of one clause."""
    if {"not", "no", "never", "don't", "without"} & set(words):
        raise UserError(f"--text {clause!r}: say what there should be more or less of, without 'not' or 'no'")
    candidates = {
        (name, sign)
        for word in words
        for concept, sign in COMPARATIVES.get(word, ())
        for name in directions
        if _tokens(name) & CONCEPTS[concept]
    }
    if {"more", "less", "fewer"} & set(words) and not candidates:
        sign = 1.0 if "more" in words else -1.0
        about = [word for word in words if word not in FILLERS]
        exact = [name for name in directions if " ".join(about) == name.lower()]
        candidates = {(name, sign) for name in exact} or {
            (name, sign) for name in directions if _said(set(about), _tokens(name))
        }
    if len(candidates) != 1:
        which = ", ".join(sorted(repr(name) for name, _ in candidates))
        problem = f"may mean {which}" if candidates else "names nothing of this run"
        raise UserError(f"--text {clause!r}: {problem}; {_readable(directions)}")
    return candidates.pop()


def _said(about: set[str], tokens: set[str]) -> bool:
    """Whether a name is meant: one of its words was said, or a word of the same concept."""
    related = [group for group in CONCEPTS.values() if group & about]
    return bool(about & tokens) or any(group & tokens for group in related)


def _tokens(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower().replace("_", " ")))


def _readable(directions: dict[str, np.ndarray]) -> str:
    shown = list(directions)[:20]
    return f"write 'more' or 'less' of one of {', '.join(shown)}, or use --axis NAME=NUMBER"


def _check_free(run: RewardRun, name: str) -> None:
    if name in locked(run):
        raise UserError(
            f"{name!r} is locked in {run.directory}: nobody's coefficients move there; edit another axis"
        )


def _edit(name: str, text: str, direction: np.ndarray, value: float, sd: float) -> Edit:
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Edit(name, text, tuple(map(float, direction)), float(value), float(sd), time)
