"""What the checks of guardrails say of the items of a data set; samples are checked as they are rewarded (`rl.sources`).

Letters in shapes: I items, Q checks; R rows of C completions.
"""

import numpy as np
from jaxtyping import Float, Int

from rewards.types import Preferences
from rlhf.phi.columns import table
from rlhf.train.guardrails.config import GuardrailsConfig, measured_columns


def of_items(config: GuardrailsConfig, prefs: Preferences) -> Float[np.ndarray, "I Q"]:
    """What the checks say of every item; 0 where one says nothing.

    Raises:
      UserError: a check raises, or returns something else than finite numbers.
    """
    if not config.checks:
        return np.zeros((len(prefs.item_text), 0), np.float32)
    return table.evaluate(prefs, table.as_they_are(measured_columns(config))).values.astype(np.float32)


def of_rows(
    config: GuardrailsConfig, prefs: Preferences, item: Int[np.ndarray, "R C"]
) -> Float[np.ndarray, "R C Q"]:
    """What the checks say of every row's completions (`item` −1 is padding); 0 on padding."""
    values = of_items(config, prefs)
    return np.where((item >= 0)[:, :, None], values[item], 0.0).astype(np.float32)
