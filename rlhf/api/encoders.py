"""`rlhf.encoder`: a language model that turns completions into vectors for `rewards.fit`."""

import dataclasses
from typing import Literal

import numpy as np

from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.phi import encoder as phi


@dataclasses.dataclass(frozen=True)
class LanguageModelEncoder:
    """Hidden states of a completion after its prompt, pooled; computed once and kept in the cache folder.

    Attributes:
      model, layer, pool: see `encoder`.
    """

    model: str
    layer: int = -1
    pool: Literal["mean", "last"] = "mean"

    def prepare(self, prefs: Preferences) -> tuple[np.ndarray, JSONObject]:
        """Embeddings float32[I, D] of every item, and the settings to store with a basis."""
        return phi.prepare(prefs, "lm", self.model, self.layer, self.pool)

    def embed(self, prefs: Preferences, settings: JSONObject) -> np.ndarray:
        """Embeddings float32[I, D] under stored settings.

        Raises:
          UserError: the model has other weights than at the fit.
        """
        return phi.embed_items(prefs, settings)


def encoder(model: str, *, layer: int = -1, pool: Literal["mean", "last"] = "mean") -> LanguageModelEncoder:
    """An encoder for `rewards.fit` and `rewards.load`.

    Args:
      model: short name ("smollm2-135m"), local directory, .gguf file or hub id.
      layer: whose output is read; negative counts from the end, 0 is the token embedding.
      pool: mean over the completion's tokens, or its last token.
    """
    return LanguageModelEncoder(str(model), layer, pool)
