"""Typed reading of a Hugging Face `config.json`: every method returns a value in its range, or names key and value."""

from collections.abc import Mapping

from rewards.errors import UserError
from rlhf.models.families import COMPUTED, COMPUTED_OF_FAMILY, DEFAULTS, MAX_SIZE, NEUTRAL, NO_EFFECT


class Values:
    """Typed reading of one configuration: each method returns a value in its range or names key and value."""

    def __init__(self, raw: Mapping[str, object], family: str, source: str):
        self.raw, self.family, self.source = raw, family, source
        self.defaults = DEFAULTS.get(family, {})

    def get(self, key: str, default: object = None) -> object:
        """The value; where the file leaves the key out, the family's default. null stays null."""
        return self.raw[key] if key in self.raw else self.defaults.get(key, default)

    def refuse(self, key: str, reason: str) -> UserError:
        return UserError(f"{self.source}: {key}: {reason}")

    def check_keys(self) -> None:
        """Refuse what would change the computation without this decoder knowing it."""
        known = COMPUTED | COMPUTED_OF_FAMILY[self.family] | NO_EFFECT
        for key, value in self.raw.items():
            if key in known or value is None or key.startswith("unsloth_"):
                continue
            if key in NEUTRAL:
                if value in NEUTRAL[key]:
                    continue
                allowed = " or ".join(repr(allowed) for allowed in NEUTRAL[key]) or "null"
                raise self.refuse(key, f"{cut(value)} is not supported, only {allowed}; use another model")
            if key.startswith("_"):  # what libraries write for themselves
                continue
            raise self.refuse(
                key,
                f"{cut(value)}: a key that this decoder does not know for {self.family}; if it changes nothing "
                "that the model computes, remove it, otherwise use another model",
            )

    def integer(self, key: str, low: int = 1, high: int = MAX_SIZE, default: object = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise self.refuse(key, "missing; take the file that came with the weights")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"must be a whole number from {low} to {high}, not {cut(value)}")
        return value

    def number(self, key: str, default: object = None, where: Mapping[str, object] | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key, default) if where is None else where.get(key, default)
        if value is None:
            raise self.refuse(key, "missing; take the file that came with the weights")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.refuse(key, f"must be a number above 0, not {cut(value)}")
        return float(value)

    def optional(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(key, f"must be true or false, not {cut(value)}")
        return value

    def section(self, key: str) -> Mapping[str, object]:
        value = self.raw.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.refuse(key, f"must be a section or null, not {cut(value)}")
        return value


def cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
