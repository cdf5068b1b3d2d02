"""Every personalised reward model by name; modules are imported when a model is asked for."""

import importlib

import pydantic

from rewards.errors import UserError, meant
from rewards.files import JSONObject
from rewards.methods.base import FittedModel, RewardModel

MODELS: dict[str, str] = {
    "aggregate": "rewards.methods.pooled:Aggregate",
    "per_user": "rewards.methods.pooled:PerUser",
    "pref": "rewards.methods.pref:PReF",
    "rfm": "rewards.methods.rfm:RFM",
    "lore": "rewards.methods.lore:LoRe",
    "pal_a": "rewards.methods.pal:PALA",
    "pal_b": "rewards.methods.pal:PALB",
    "offset": "rewards.methods.offset:Offset",
    "mixture": "rewards.methods.mixture:Mixture",
    "house": "rewards.methods.house:House",
    "columns": "rewards.methods.columns:Columns",
    "crossed": "rewards.methods.crossed:Crossed",
    "vpl": "rewards.methods.variational:VPL",
    "spl": "rewards.methods.variational:SPL",
    "card": "rewards.methods.card:Card",
}
"""Name → "module:class" of the estimator."""
AUTO, AUTO_CLASS = "auto", "rewards.methods.auto:Auto"
"""Not a model but the choice of one: what it fits is a house or a crossed model."""


def estimator(kind: str) -> type[RewardModel]:
    """The estimator class of a name.

    Raises:
      UserError: no such model; the line names the nearest one.
    """
    known = MODELS | {AUTO: AUTO_CLASS}
    if kind not in known:
        choice = f"choose one of {', '.join(sorted(known))}"
        raise UserError(f"model: {kind!r} is unknown; {meant(kind, known, choice)}")
    module, name = known[kind].split(":")
    return getattr(importlib.import_module(module), name)


def make(kind: str, settings: JSONObject | None = None) -> RewardModel:
    """An estimator with its settings checked.

    Raises:
      UserError: no such model, no such setting (the nearest is named), or a value it cannot have.
    """
    model, given = estimator(kind), settings or {}
    known = [name for name in pydantic.TypeAdapter(model).json_schema()["properties"]]
    for name in given:
        if name not in known:
            choice = f"choose one of {', '.join(sorted(known))}"
            raise UserError(f"{kind}.{name}: no such setting; {meant(name, known, choice)}")
    try:
        # Lists stand for tuples in YAML; the strict mode of the settings refuses them otherwise.
        return model(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (kind, *first["loc"][:1]))
        raise UserError(f"{place}: {first['input']!r}: {first['msg']}") from None


def fitted_type(kind: str) -> type[FittedModel]:
    """The class of a fitted model of this kind: the estimator's `fitted`, by default the linear record."""
    from rewards.methods.linear import LinearFitted

    return getattr(estimator(kind), "fitted", LinearFitted)
