"""Rails of the rewards as a training run takes them: in force, or switched off for a stated reason.

A policy remembers which: `rails` in policy.json is the record itself, so a policy cannot be used without it; a policy
trained without the rails of its rewards says whose they were and why they were off.
"""

import dataclasses
import logging
from typing import TypeVar

from pydantic import Field

from rewards.basis.store import FittedBasis
from rewards.files import JSONObject
from rlhf.run.record import record

_LOG = logging.getLogger("chorus")


@record
class RailsConfig:
    """The rails of the reward run."""

    off: str | None = Field(
        default=None,
        min_length=1,
        description="Why this run trains without the rails of its rewards; null keeps them. Said, and kept in the policy.",
    )


Rewards = TypeVar("Rewards", bound=FittedBasis)


def in_force(config: RailsConfig, rewards: Rewards) -> Rewards:
    """The rewards with the rails that hold in this run; switching them off is said on the terminal."""
    if config.off is None or rewards.rails is None:
        return rewards
    _LOG.warning(f"rails.off: trained without the rails of the rewards ({rewards.rails}): {config.off}")
    return dataclasses.replace(rewards, rails=None)


def recorded(config: RailsConfig, rewards: FittedBasis) -> JSONObject:
    """What policy.json says of the rails of these rewards, as they were given to the run."""
    if rewards.rails is None:
        return {}
    if config.off is not None:
        return {"rails": None, "rails_off": {"hash": rewards.rails.hash, "reason": config.off}}
    return {"rails": rewards.rails.to_json(), "rails_hash": rewards.rails.hash}
