"""Preferences → a reward for every person.

    prefs = rewards.read("electricity")
    fitted = rewards.fit(prefs.training, encoder=rlhf.encoder("smollm2-135m"))
    ada = fitted.person("ada")
    ada.answer(ada.ask(), "first")

Names are imported when they are used, so importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewards.api.encoders import Encoder
    from rewards.api.fitted import FittedRewards, load
    from rewards.api.fitting import fit
    from rewards.api.person import Person
    from rewards.api.reading import PreferenceSet, read
    from rewards.errors import UserError
    from rewards.people.pool import Question
    from rewards.types import Preferences

__all__ = [
    "Encoder",
    "FittedRewards",
    "Person",
    "PreferenceSet",
    "Preferences",
    "Question",
    "UserError",
    "fit",
    "load",
    "read",
]
_HOMES = {
    "Encoder": "rewards.api.encoders",
    "FittedRewards": "rewards.api.fitted",
    "Person": "rewards.api.person",
    "PreferenceSet": "rewards.api.reading",
    "Preferences": "rewards.types",
    "Question": "rewards.people.pool",
    "UserError": "rewards.errors",
    "fit": "rewards.api.fitting",
    "load": "rewards.api.fitted",
    "read": "rewards.api.reading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}; public are {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
