"""Sentence encoders behind rewards: e(x, y) is the sentence vector of the completion y alone, whatever the prompt.

What identifies one are its weights, its tokenizer and how it pools; texts longer than it reads are cut.
Shapes: I items, D width, K outputs.
"""

from pathlib import Path

import numpy as np

from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences, RewardBasis
from rlhf.models import sentence
from rlhf.models.load import resolve_model
from rlhf.phi.reward import Rewards
from rlhf.policy import store as policy_store
from rlhf.run import inputs

KIND = "sentence"


def resolve(name: str | Path) -> Path:
    """The model directory of a sentence encoder by name, path or hub id."""
    return resolve_model(name, folders=True)


def files_now(name: str | Path) -> dict[str, str]:
    """sha256 by name of what decides the vectors besides the weights."""
    return policy_store.files_of(resolve(name), sentence.FILES)


def parts_of(name: str) -> dict[str, str]:
    """What a fit reads of a sentence encoder: weights, tokenizer, pooling."""
    return {"weights": policy_store.fingerprint(resolve(name)), **files_now(name)}


def settings_of(encoder: sentence.SentenceEncoder, name: str) -> JSONObject:
    """What a basis stores to rebuild its embeddings."""
    return {
        "kind": KIND,
        "model": name,
        "pool": encoder.pooling.name,
        "max_tokens": encoder.max_tokens,
        "fingerprint": policy_store.fingerprint(encoder.directory),
        "files": policy_store.files_of(encoder.directory, sentence.FILES),
    }


def opened(settings: JSONObject) -> sentence.SentenceEncoder:
    """The sentence encoder of a stored basis.

    Raises:
      UserError: it cannot be loaded, or is another than at the fit.
    """
    check(settings, resolve(settings["model"]))
    return sentence.SentenceEncoder(resolve(settings["model"]))


def check(settings: JSONObject, directory: Path) -> None:
    """Refuse another encoder than that of the fit; a UserError says what changed."""
    if policy_store.fingerprint(directory) != settings["fingerprint"]:
        raise UserError(
            f"{settings['model']}: weights differ from those the reward basis was fitted with; restore them or "
            "fit again"
        )
    if changed := inputs.change(settings["files"], policy_store.files_of(directory, sentence.FILES)):
        raise UserError(
            f"{settings['model']}: {changed} since the rewards were fitted; restore it or fit again"
        )


class SentenceFeatures:
    """φ of items from a sentence encoder that stays loaded, for the rewards of a policy (`on_host.Features`)."""

    def __init__(self, basis: RewardBasis):
        self._encoder = opened(basis.encoder)
        self._readout = Readout.of(basis)
        self._readout.folded()  # refuses a basis that depends on the prompt

    def __call__(self, items: Preferences, group_size: int = 1) -> Rewards:
        values: np.ndarray = self._encoder.embed(items.item_text)
        return Rewards(self._readout.features(values), {})
