"""Reward models as a configuration names them, and the table of items they are fitted on."""

import dataclasses
import inspect

import numpy as np

from rewards import methods as models
from rewards.annotation.basis import fit_basis_mixture
from rewards.basis.fit import FitConfig
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods.auto import Auto
from rewards.methods.base import ItemTable, RewardModel
from rewards.methods.crossed import Crossed
from rewards.methods.training import CHUNK_STEPS
from rewards.methods.weighting import TrainingAnswers
from rewards.types import Preferences
from rlhf.phi import encoder
from rlhf.phi.config import RewardsConfig

HOUSE = "house"
AUTO = models.AUTO
SHARED = ("num_basis", "dims", "whitening", "lapse", "seed")
"""Keys of `fit` that another model than house takes over, where it has such a setting."""


def model_names() -> tuple[str, ...]:
    return tuple(models.MODELS)


def make_model(config: RewardsConfig, name: str) -> RewardModel:
    """The estimator `name` with the settings of `config`: the house model's from `fit`; another one's shared
    ones from `fit` (of a list the largest), then `fit.settings` if it is the fitted one and has any, else
    `evaluation.settings`.

    Raises:
      UserError: an unknown model or setting.
    """
    house = dataclasses.asdict(config.fit.house())
    own = config.fit.settings if name == config.fit.model else {}
    own = own or config.evaluation.settings.get(name, {})
    if name in (AUTO, HOUSE):
        return models.make(name, house | own)
    if config.fit.model == AUTO and name == Crossed.kind and not own:
        return Auto(**house).crossed()
    known = set(inspect.signature(models.estimator(name)).parameters)
    shared = {key: _largest(house[key]) for key in SHARED if key in known}
    return models.make(name, shared | own)


def check_names(config: RewardsConfig) -> None:
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
    model = config.fit.model
    inside = model in (AUTO, HOUSE)
    for fitted in (HOUSE, Crossed.kind) if model == AUTO else (model,):
        if fitted in config.evaluation.settings and (inside or config.fit.settings):
            place = "fit itself" if inside else "fit.settings"
            which = f"{fitted} is fit.model" if model == fitted else f"fit.model {model} may fit {fitted}"
            raise UserError(
                f"evaluation.settings.{fitted}: {which}, whose settings stand in {place}; move them there"
            )


def unread_settings(config: RewardsConfig) -> str | None:
    """One line about settings that only the house model reads, when another one is fitted without a mixture."""
    fit, plain = config.fit, FitConfig()
    if fit.model in (AUTO, HOUSE) or fit.annotation != "none":
        return None
    names = [field.name for field in dataclasses.fields(FitConfig) if field.name not in SHARED]
    unread = [f"fit.{name}" for name in names if getattr(fit, name) != getattr(plain, name)]
    return (
        f"note: {fit.model} does not read {', '.join(unread)}; its own stand in fit.settings"
        if unread
        else None
    )


def training_answers(
    config: RewardsConfig, table: ItemTable, train: Preferences
) -> tuple[TrainingAnswers, JSONObject | None]:
    """What a fit counts, and what the mixture of kinds of answer found; the answers as they are without one."""
    if config.fit.annotation == "none":
        return TrainingAnswers(train), None
    _, mixture = fit_basis_mixture(train, table.embeddings, config.fit.house(), encoder=table.encoder)
    found = mixture.record()
    soft = dataclasses.replace(train, outcome=mixture.attitude)
    return TrainingAnswers(soft, mixture.weight, 1.0 - found["genuine"]), found


def num_rounds(estimator: RewardModel) -> int:
    """How often a fit reports its progress, at most; 0 where it does not."""
    rounds = getattr(estimator, "rounds", None)
    if rounds is not None:
        return rounds
    return -(-getattr(estimator, "steps", 0) // CHUNK_STEPS)


def _largest(value: object) -> object:
    return max(value) if isinstance(value, (tuple, list)) else value


def item_table(prefs: Preferences, embeddings: np.ndarray, settings: JSONObject) -> ItemTable:
    """All items with their embeddings, and with a language model the means to embed any text (cached on disk)."""
    return ItemTable.of(prefs, embeddings, settings, encoder.embed_items)
