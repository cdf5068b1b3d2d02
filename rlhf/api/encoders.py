"""`rlhf.encoder`: a language model or a sentence encoder that turns completions into vectors for `rewards.fit`."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.models import fetch, sentence
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


@dataclasses.dataclass(frozen=True)
class SentenceVectors:
    """The sentence vector of a completion, whatever its prompt; computed once and kept in the cache folder."""

    model: str

    def prepare(self, prefs: Preferences) -> tuple[np.ndarray, JSONObject]:
        """Embeddings float32[I, D] of every item, and the settings to store with a basis."""
        return phi.prepare(prefs, "sentence", self.model, -1, "mean")

    def embed(self, prefs: Preferences, settings: JSONObject) -> np.ndarray:
        """Embeddings float32[I, D] under stored settings; errors as of `LanguageModelEncoder`."""
        return phi.embed_items(prefs, settings)


def encoder(
    model: str,
    *,
    layer: int = -1,
    pool: Literal["mean", "last"] = "mean",
    kind: Literal["lm", "sentence"] | None = None,
) -> LanguageModelEncoder | SentenceVectors:
    """An encoder for `rewards.fit` and `rewards.load`.

    Args:
      model: short name ("smollm2-135m", "all-minilm-l6-v2"), local directory, .gguf file or hub id.
      layer: whose output is read; negative counts from the end, 0 is the token embedding. Language models only.
      pool: mean over the completion's tokens, or its last token. Language models only.
      kind: "sentence" for a sentence encoder, whose files say how it pools and which reads the completion alone. None: a
        short name or a directory says itself what it is, a hub id is a language model.
    Raises:
      UserError: layer or pool of a sentence encoder.
    """
    name = str(model)
    if kind is None:
        known = fetch.KNOWN.get(name)
        folder = sentence.is_one(Path(name).expanduser()) if known is None else known.folder
        kind = "sentence" if folder else "lm"
    if kind == "lm":
        return LanguageModelEncoder(name, layer, pool)
    if kind != "sentence":
        raise UserError(f"encoder: kind {kind!r}: use lm, sentence or None")
    if (layer, pool) != (-1, "mean"):
        raise UserError(
            f"encoder: layer and pool are for language models, and {name} is a sentence encoder, whose files say how it "
            "pools; leave them out"
        )
    return SentenceVectors(name)
