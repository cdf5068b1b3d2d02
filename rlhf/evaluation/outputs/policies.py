"""The policies that are compared: named, identified by content, loaded one at a time.

[NAME=]SOURCE     SOURCE: a run of `chorus train`, RUN@aggregate, a model's directory or name, `reference`
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.files import JSONObject, sha256_json
from rewards.names import checked_name
from rewards.paths import expanded
from rlhf.evaluation.outputs.people import Person
from rlhf.policy import store as policy_store

REFERENCE, AGGREGATE = "reference", "@aggregate"


@dataclasses.dataclass(frozen=True)
class Source:
    """One policy.

    Attributes:
      name: in tables. place: run directory, or model directory or name. identity: sha256 of all that it is made of.
      personal: whether it answers each person in their own way.
      is_run: whether a training run made it.
    """

    name: str
    place: str
    identity: str
    personal: bool
    is_run: bool

    def load(self) -> policy_store.Policy:
        return (
            policy_store.load_policy(self.place) if self.is_run else policy_store.without_adapters(self.place)
        )

    def described(self) -> JSONObject:
        return {"source": self.place, "sha256": self.identity, "personal": self.personal}


def sources(texts: Sequence[str], reference: str | None, run: RewardRun | None) -> list[Source]:
    """What `policies` names, in order; nothing is loaded.

    Raises:
      UserError: two of one name, no such run, one without people as aggregate, or of another reward run.
    """
    found: list[Source] = []
    for text in texts:
        name, place = _parted(text)
        if any(one.name == name for one in found):
            raise UserError(f"policies: {name!r} twice; give them names, as in first={place}")
        found.append(_source(name, place, reference, run))
    return found


def reference_of(texts: Sequence[str], given: str | None) -> str | None:
    """π_ref: the one given, or the model under the first training run."""
    if given is not None:
        return given
    for text in texts:
        place = _parted(text)[1].removesuffix(AGGREGATE)
        if place != REFERENCE and policy_store.is_run(place):
            return policy_store.reference_of(place)
    return None


def model(name: str, place: str) -> Source:
    """A model or a run as a policy for everybody."""
    is_run = policy_store.is_run(place)
    return Source(name, place, sha256_json(policy_store.parts_of(place)), False, is_run)


def z_of(policy: policy_store.Policy, source: Source, people: Sequence[Person]) -> np.ndarray | None:
    """z float32[U, K] of everybody; None where the policy answers all alike."""
    if not source.personal:
        return None
    return np.stack([policy_store.coefficients_to_z(policy, _coef(person)) for person in people])


def _coef(person: Person) -> np.ndarray:
    assert person.coef is not None, "a reward run has people"
    return person.coef


def _source(name: str, place: str, reference: str | None, run: RewardRun | None) -> Source:
    if place == REFERENCE:
        if reference is None:
            raise UserError(
                "policies: reference: no policy here is a run, so nothing says what π_ref is; give reference"
            )
        return model(name, reference)
    everybody = place.endswith(AGGREGATE)
    place = place.removesuffix(AGGREGATE)
    if (Path(place) / "config.yaml").is_file():
        policy_store.require_run(place)
    if not policy_store.is_run(place):
        if everybody:
            raise UserError(
                f"policies: {place}{AGGREGATE}: is no policy run; {AGGREGATE} is for runs with people"
            )
        return model(name, place)
    record, parts = policy_store.record_of(place), policy_store.parts_of(place)
    basis = record.get("basis")
    personal = basis is not None
    if everybody and not personal:
        raise UserError(
            f"policies: {place}{AGGREGATE}: was trained without people; name it without {AGGREGATE}"
        )
    if run is None:
        personal = False
    elif basis is not None and basis != run.hash:
        raise UserError(
            f"rewards: {run.directory} has basis {run.hash[:12]}…, the policy {place} was trained with {basis[:12]}…; "
            "name the reward run of the policy"
        )
    return Source(name, place, sha256_json(parts), personal and not everybody, True)


def _parted(text: str) -> tuple[str, str]:
    """NAME and SOURCE; without a name the last parts of the path, for a path as a name says little."""
    name, mark, place = text.partition("=")
    if mark and not name:
        raise UserError(f"policies: {text!r} has an empty name; write NAME=RUN, or RUN alone")
    if not mark:
        name, place = "", text
    if not place:
        raise UserError(f"policies: {text!r} names no policy; write NAME=RUN, or RUN alone")
    if place != REFERENCE:
        place = expanded(place)
    return checked_name(name or _short(place), "policies: name"), place


def _short(place: str) -> str:
    parts = [part for part in place.rstrip("/").split("/") if part not in ("", ".", "..", "~")]
    return "-".join(parts[-2:]) if len(parts) > 1 else place.strip("/") or "policy"
