"""Reward models as a configuration names them, and the table of items they are fitted on."""

import dataclasses
from typing import Any

import numpy as np

from rewards import models
from rewards.errors import UserError
from rewards.models.base import EmbedTexts, ItemTable, RewardModel
from rewards.models.training import CHUNK_STEPS
from rewards.types import Preferences
from rlhf import encoder

HOUSE = "house"
SHARED = ("num_basis", "dims", "whitening", "lapse", "seed")
"""Keys of `fit` that another model than house takes over, where it has such a setting."""


def model_names() -> tuple[str, ...]:
    return tuple(models.MODELS)


def make_model(config: Any, name: str) -> RewardModel:
    """The estimator `name` with the settings of `config`: the house model's from `fit`; another one's shared
    ones from `fit` (of a list the largest), then `fit.settings` if it is the fitted one, else
    `evaluation.settings`.

    Raises:
      UserError: an unknown model or setting.
    """
    house = dataclasses.asdict(config.fit.house())
    own = config.fit.settings if name == config.fit.model else config.evaluation.settings.get(name, {})
    if name == HOUSE:
        return models.make(name, house | own)
    known = {field.name for field in dataclasses.fields(models.estimator(name))}
    shared = {key: _largest(house[key]) for key in SHARED if key in known}
    return models.make(name, shared | own)


def check_names(config: Any) -> None:
    """Refuse a model that does not exist, or settings that nobody would read, before anything is computed.

    Raises:
      UserError: in `evaluation.models` or `evaluation.settings`; the line names the nearest model.
    """
    chosen = config.evaluation.models
    named = {"models": chosen if isinstance(chosen, tuple) else (), "settings": config.evaluation.settings}
    for key, names in named.items():
        for name in names:
            try:
                models.estimator(name)
            except UserError as error:
                raise UserError(f"evaluation.{key}: {error}") from None
    if config.fit.model in config.evaluation.settings:
        place = "fit itself" if config.fit.model == HOUSE else "fit.settings"
        raise UserError(
            f"evaluation.settings.{config.fit.model}: {config.fit.model} is fit.model, whose settings stand in "
            f"{place}; move them there"
        )


def num_rounds(estimator: RewardModel) -> int:
    """How often a fit reports its progress, at most; 0 where it does not."""
    if hasattr(estimator, "rounds"):
        return estimator.rounds
    return -(-getattr(estimator, "steps", 0) // CHUNK_STEPS)


def _largest(value: Any) -> Any:
    return max(value) if isinstance(value, (tuple, list)) else value


def item_table(prefs: Preferences, embeddings: np.ndarray, settings: dict[str, Any]) -> ItemTable:
    """All items with their embeddings, and with a language model the means to embed any text.

    Prompts are left to the models, which take the mean of a prompt's items: it costs no forward pass.
    """
    embed = _text_embedder(settings) if settings["kind"] == "lm" else None
    return ItemTable(prefs, embeddings, settings, settings.get("fingerprint", ""), embed_texts=embed)


def _text_embedder(settings: dict[str, Any]) -> EmbedTexts:
    """Embeds texts as completions of an empty prompt; cached on disk like the items."""

    def embed(texts: list[str]) -> np.ndarray:
        nothing = np.zeros(0, np.int32)
        items = Preferences(
            prompts=("",),
            item_prompt=np.zeros(len(texts), np.int32),
            item_text=tuple(texts),
            item_features=None,
            user_ids=(),
            user_index=nothing,
            chosen=nothing,
            rejected=nothing,
            outcome=np.zeros(0, np.float32),
            choice=nothing,
            row=nothing,
            columns={},
            source="texts",
        )
        return encoder.embed_items(items, settings)

    return embed
