"""Numbers that come with the data, in the place of an encoder: features of every side, or attributes.

Shapes: I items, D numbers.
"""

import dataclasses
from typing import Literal

import numpy as np

from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences


@dataclasses.dataclass(frozen=True)
class DataEncoder:
    """`precomputed`: chosen_features and rejected_features; `attributes`: the numbers of the attributes column."""

    kind: Literal["precomputed", "attributes"]

    def prepare(self, prefs: Preferences) -> tuple[np.ndarray, JSONObject]:
        """Embeddings of every item, float32[I, D], and the settings to store with a basis."""
        settings = {"kind": self.kind, "model": None, "layer": 0, "pool": "none", "fingerprint": ""}
        return self.embed(prefs, settings), settings

    def embed(self, prefs: Preferences, settings: JSONObject) -> np.ndarray:
        return precomputed_features(prefs) if self.kind == "precomputed" else attribute_features(prefs)


def encoder_of(prefs: Preferences) -> DataEncoder | None:
    """What the data bring themselves: features first, then attributes; None for texts alone."""
    if prefs.item_features is not None:
        return DataEncoder("precomputed")
    first = next(iter(prefs.columns.get("attributes", ())), None)
    return DataEncoder("attributes") if (first or {}).get("feature_names") else None


def precomputed_features(prefs: Preferences) -> np.ndarray:
    """The features that came with the rows.

    Raises:
      UserError: there are none.
    """
    if prefs.item_features is None:
        raise UserError(
            f"{prefs.source}: no chosen_features/rejected_features, which encoder.kind precomputed needs; "
            "add them or set encoder.kind=lm"
        )
    return prefs.item_features


def attribute_features(prefs: Preferences) -> np.ndarray:
    """The numbers of the `attributes` column, float32[I, D]; items of no comparison hold zeros.

    Raises:
      UserError: a row without attributes, or with another set of them than the first row.
    """
    column = prefs.columns.get("attributes")
    if column is None:
        raise UserError(
            f"{prefs.source}: no attributes column, which encoder.kind attributes needs; add it or set encoder.kind=lm"
        )
    names = (column[0] or {}).get("feature_names")
    out = np.zeros((prefs.num_items, len(names or ())), np.float32)
    for row, chosen, rejected, value in zip(prefs.row, prefs.chosen, prefs.rejected, column, strict=True):
        if not names or (value or {}).get("feature_names") != names:
            raise UserError(
                f"{prefs.source} row {row}: attributes: feature_names must be the same list in every row; "
                "mend it or set encoder.kind=lm"
            )
        # As many finite numbers as names: the reader has checked that.
        out[chosen], out[rejected] = value["chosen"], value["rejected"]
    return out
