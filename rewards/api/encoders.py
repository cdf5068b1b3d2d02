"""What a fit needs of an encoder; `rlhf.encoder` makes one of a language model."""

from typing import Protocol, runtime_checkable

import numpy as np

from rewards.data.features import encoder_of
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences


@runtime_checkable
class Encoder(Protocol):
    """Turns items (a prompt with a completion) into vectors, float[I, D]."""

    def prepare(self, prefs: Preferences) -> tuple[np.ndarray, JSONObject]:
        """Embeddings of every item, and JSON settings that are stored with the basis."""
        ...

    def embed(self, prefs: Preferences, settings: JSONObject) -> np.ndarray:
        """Embeddings of every item under settings that `prepare` gave; refuses those of another encoder."""
        ...


def encoder_for(prefs: Preferences, given: Encoder | None) -> Encoder:
    """The encoder given, else what the data bring themselves.

    Raises:
      UserError: neither is there.
    """
    if given is not None:
        if not isinstance(given, Encoder):
            raise UserError(
                f"encoder: {given!r} is no encoder; pass encoder=rlhf.encoder('smollm2-135m') or another model"
            )
        return given
    own = encoder_of(prefs)
    if own is None:
        raise UserError(
            f"{prefs.source}: holds texts without features or attributes; pass an encoder that reads them, "
            "encoder=rlhf.encoder('smollm2-135m')"
        )
    return own
