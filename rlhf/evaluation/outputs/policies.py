"""The policies that are compared: named, identified by content, loaded one at a time.

[NAME=]SOURCE[@PART…]
SOURCE     a run of `chorus train`, a model's directory or name, `reference`, or ADDRESS#MODEL (http://host:port/v1#name)
@STEP          a run's checkpoint after so many steps
@aggregate     a run's policy for everybody, π_agg (w = μ)
@in-context    asked with the person's own answers in the prompt
@best-of-N     of N completions the one that the person's own reward likes best
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards.basis.store import RewardRun
from rewards.errors import UserError, meant
from rewards.files import JSONObject, sha256_json
from rewards.names import checked_name
from rewards.paths import expanded
from rlhf.evaluation.outputs.people import Person
from rlhf.policy import store as policy_store
from rlhf.run.config.address import check_address
from rlhf.train.callbacks import CHECKPOINTS
from rlhf.train.checkpoint import Checkpointer
from rlhf.train.trained import load_checkpoint

REFERENCE = "reference"
PARTS = ("aggregate", "in-context", "best-of-N", "STEP")
MOST_OF = 1_000
_PART = re.compile(
    r"(?P<step>\d+)|(?P<aggregate>aggregate)|(?P<in_context>in-context)|best-of-(?P<best_of>\d+)"
)


@dataclasses.dataclass(frozen=True)
class Named:
    """One text of `policies`, taken apart; step: None is the finished run."""

    text: str
    name: str
    place: str
    step: int | None = None
    aggregate: bool = False
    in_context: bool = False
    best_of: int = 1

    @property
    def address(self) -> bool:
        return "://" in self.place


@dataclasses.dataclass(frozen=True)
class Source:
    """One policy.

    Attributes:
      name: in tables. place: run directory, model directory or name, or ADDRESS#MODEL. identity: sha256 of all that it is
        made of; store: of what decides a completion of given prompt and coefficients, the name under which those are kept.
      conditioned: whether it is given the person's coefficients. in_context: whether it is given the person's answers.
      best_of: completions of which the person's own reward picks one; 1 picks none.
      is_run: whether a training run made it, and after which step (None: as it was finished).
      has_people: whether that run has an aggregate policy beside the person's.
    """

    name: str
    place: str
    identity: str
    conditioned: bool
    is_run: bool
    store: str = ""
    step: int | None = None
    in_context: bool = False
    best_of: int = 1
    has_people: bool = False

    @property
    def personal(self) -> bool:
        """Whether people get completions of their own."""
        return self.asked_for_each or self.best_of > 1

    @property
    def asked_for_each(self) -> bool:
        """Whether it is asked anew for every person."""
        return self.conditioned or self.in_context

    @property
    def address(self) -> tuple[str, str] | None:
        """Address and model's name; None for one that is here."""
        if "://" not in self.place:
            return None
        url, _, served = self.place.partition("#")
        return url, served

    def load(self) -> policy_store.Policy:
        if not self.is_run:
            return policy_store.without_adapters(self.place)
        if self.step is not None:
            return load_checkpoint(self.place, self.step)
        return policy_store.load_policy(self.place)

    def described(self) -> JSONObject:
        found: JSONObject = {"source": self.place, "sha256": self.identity, "personal": self.personal}
        if self.step is not None:
            found["step"] = self.step
        if self.in_context:
            found["in_context"] = True
        if self.best_of > 1:
            found["best_of"] = self.best_of
        return found


def sources(texts: Sequence[str], reference: str | None, run: RewardRun | None) -> list[Source]:
    """What `policies` names, in order; nothing is loaded.

    Raises:
      UserError: two of one name or of one served model at two addresses, no such run or checkpoint, a part that means nothing
        there, or another reward run.
    """
    found: list[Source] = []
    for text in texts:
        named = parted(text)
        if any(one.name == named.name for one in found):
            raise UserError(
                f"policies: {named.name!r} twice; give them names, as in first={text.partition('=')[2] or text}"
            )
        found.append(_source(named, reference, run))
    _check_served(found)
    return found


def _check_served(found: Sequence[Source]) -> None:
    """What a served model wrote is kept by its name: two addresses of one name would be one policy."""
    served: dict[str, str] = {}
    for url, name in (one.address for one in found if one.address is not None):
        if served.setdefault(name, url) != url:
            raise UserError(
                f"policies: {served[name]} and {url} both name the model {name}, and what it wrote is kept by that name; "
                "serve them under different names"
            )


def reference_of(texts: Sequence[str], given: str | None) -> str | None:
    """π_ref: the one given, or the model under the first training run."""
    if given is not None:
        return given
    for named in map(parted, texts):
        if named.place != REFERENCE and not named.address and policy_store.is_run(named.place):
            return policy_store.reference_of(named.place)
    return None


def model(name: str, place: str) -> Source:
    """A model or a run as a policy for everybody."""
    is_run, identity = policy_store.is_run(place), sha256_json(policy_store.parts_of(place))
    return Source(name, place, identity, False, is_run, identity)


def z_of(policy: policy_store.Policy, source: Source, people: Sequence[Person]) -> np.ndarray | None:
    """z float32[U, K] of everybody; None where the policy is given no coefficients."""
    if not source.conditioned:
        return None
    return np.stack([policy_store.coefficients_to_z(policy, _coef(person)) for person in people])


def _coef(person: Person) -> np.ndarray:
    assert person.coef is not None, "a reward run has people"
    return person.coef


def _source(named: Named, reference: str | None, run: RewardRun | None) -> Source:
    for part, asked in (("in-context", named.in_context), (f"best-of-{named.best_of}", named.best_of > 1)):
        if asked and run is None:
            raise UserError(
                f"policies: {named.text}: @{part} is for people, who belong to a reward run; give rewards"
            )
    found = _at_address(named) if named.address else _here(named, reference, run)
    if not (named.in_context or named.best_of > 1):
        return found
    identity = sha256_json([found.identity, named.in_context, named.best_of])
    return dataclasses.replace(found, identity=identity, in_context=named.in_context, best_of=named.best_of)


def _at_address(named: Named) -> Source:
    if named.step is not None or named.aggregate:
        part = "aggregate" if named.aggregate else named.step
        raise UserError(f"policies: {named.text}: @{part} is for runs of chorus train; leave it out")
    url, mark, served = named.place.partition("#")
    if not mark or not served:
        raise UserError(
            f"policies: {named.text}: says no model; write ADDRESS#MODEL, as in http://localhost:8000/v1#{REFERENCE}"
        )
    try:
        check_address(url)
    except ValueError as error:
        raise UserError(f"policies: {error}; after the address stands #MODEL") from None
    identity = sha256_json(["address", served])  # servers move
    return Source(named.name, named.place, identity, False, False, identity)


def _here(named: Named, reference: str | None, run: RewardRun | None) -> Source:
    name, place = named.name, named.place
    if place == REFERENCE:
        if reference is None:
            raise UserError(
                "policies: reference: no policy here is a run, so nothing says what π_ref is; give reference"
            )
        place = reference
        if not (named.aggregate or named.step is not None):
            return model(name, place)
    if (Path(place) / "config.yaml").is_file():
        policy_store.require_run(place)
    if not policy_store.is_run(place):
        if named.aggregate or named.step is not None:
            part, of = ("aggregate", "with people") if named.aggregate else (named.step, "of chorus train")
            raise UserError(f"policies: {place}@{part}: is no policy run; @{part} is for runs {of}")
        _check_part(named)
        return model(name, place)
    record, parts = policy_store.record_of(place), policy_store.parts_of(place)
    basis = record.get("basis")
    personal = basis is not None
    if named.aggregate and not personal:
        raise UserError(
            f"policies: {place}@aggregate: was trained without people; name it without @aggregate"
        )
    if run is None:
        personal = False
    elif basis is not None and basis != run.hash:
        raise UserError(
            f"rewards: {run.directory} has basis {run.hash[:12]}…, the policy {place} was trained with {basis[:12]}…; "
            "name the reward run of the policy"
        )
    identity = sha256_json(parts)
    if named.step is not None:
        identity = sha256_json([identity, _checkpoint(place, named.step)])
    conditioned = personal and not named.aggregate
    return Source(
        name, place, identity, conditioned, True, identity, named.step, has_people=basis is not None
    )


def _checkpoint(run: str, step: int) -> str:
    kept = Checkpointer(Path(run) / CHECKPOINTS)
    if step not in (steps := kept.steps()):
        there = f"there: {', '.join(map(str, steps))}" if steps else "it keeps none"
        raise UserError(
            f"policies: {run}@{step}: no checkpoint of that step ({there}); train.keep_checkpoints says how many are kept"
        )
    return kept.identity(step)


def _check_part(named: Named) -> None:
    """A part that is misspelt stands in the place."""
    place, mark, part = named.place.rpartition("@")
    if mark and not Path(named.place).exists() and (policy_store.is_run(place) or Path(place).is_dir()):
        fix = meant(part, PARTS, f"use one of @{', @'.join(PARTS)}")
        raise UserError(f"policies: {named.text}: @{part} is unknown; {fix}")


def parted(text: str) -> Named:
    """NAME, SOURCE and parts; without a name the last parts of the path, for a path as a name says little.

    Raises:
      UserError: an empty name or source, or a part twice.
    """
    name, mark, place = text.partition("=")
    if "://" in name or not mark:  # no name: an address may hold the mark
        name, mark, place = "", "", text
    if mark and not name:
        raise UserError(f"policies: {text!r} has an empty name; write NAME=RUN, or RUN alone")
    found: JSONObject = {}
    while "@" in place and not Path(place).exists():
        before, _, part = place.rpartition("@")
        if not (fits := _PART.fullmatch(part)):
            break
        place = before
        for key, value in fits.groupdict().items():
            if value is not None:
                if key in found:
                    raise UserError(f"policies: {text!r} says @{part} and another of its kind; leave one out")
                found[key] = int(value) if value.isdigit() else True
    if not place:
        raise UserError(f"policies: {text!r} names no policy; write NAME=RUN, or RUN alone")
    if not 1 <= found.get("best_of", 1) <= MOST_OF:
        raise UserError(f"policies: {text!r}: best of {found['best_of']}; give a number from 1 to {MOST_OF}")
    source = place
    if place != REFERENCE and "://" not in place:
        place = expanded(place)
    return Named(text, checked_name(name or _short(text, source, place), "policies: name"), place, **found)


def _short(text: str, source: str, place: str) -> str:
    """A name for tables: the end of the path, or the model at an address, with the parts."""
    parts = text[len(source) :]
    if "#" in place and "://" in place:
        return place.partition("#")[2] + parts
    words = [part for part in place.rstrip("/").split("/") if part not in ("", ".", "..", "~")]
    return ("-".join(words[-2:]) if len(words) > 1 else place.strip("/") or "policy") + parts
