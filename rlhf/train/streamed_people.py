"""People in a stream of preferences: φ of the completions of a step, and whose comparison each row is.

Shapes: N rows of the stream, M of them kept, I items, K basis outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rewards.basis.store import FittedBasis
from rewards.data.stream import Stream
from rewards.errors import UserError
from rewards.people.population import People
from rewards.types import Preferences
from rlhf.mesh.devices import apart
from rlhf.phi import encoder, on_host
from rlhf.run import processes

ItemFeatures = Callable[[Preferences], np.ndarray]
"""Items → φ float32[I, K]."""


class Own(NamedTuple):
    """Rows of people that the rewards know. row: int64[M], ascending; user: int32[N], index of the person, or −1."""

    row: np.ndarray
    user: np.ndarray


def own_rows(stream: Stream, people: People) -> Own:
    """One pass over who chose, for labels of people's own; 4 to 12 bytes a row are kept.

    Raises:
      UserError: a row does not say who chose, or nobody of the fit is among them.
    """
    index = {user_id: place for place, user_id in enumerate(people.user_ids)}
    user = np.fromiter((index.get(one, -1) for one in stream.people()), np.int32, len(stream))
    row = np.flatnonzero(user >= 0)
    if not len(row):
        raise UserError(
            f"{stream.source}: none of its people was in the fit of the reward run; fit the rewards on this data or choose "
            "loss.kind=soft"
        )
    return Own(row, user)


def features_of(rewards: FittedBasis) -> ItemFeatures:
    """φ as `encoder.items_phi` has it, up to a shift per prompt, by a model that stays loaded; nothing is kept on disk."""
    basis = rewards.basis
    if basis.encoder["kind"] not in encoder.READ_NEW_TEXTS:
        return lambda items: encoder.items_phi(basis, items)
    with apart():
        features = on_host.loaded(basis)

    def phi(items: Preferences) -> list[list[float]]:
        with apart():
            return np.asarray(features(items, 1).phi, np.float32).tolist()

    # By one for all: a judge may answer twice in two ways.
    return lambda items: np.array(processes.from_writer(lambda: phi(items)), np.float32)
