"""φ of completions that are scored by themselves: a row depends on no other row."""

import numpy as np
from jaxtyping import Float

from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.types import Preferences, RewardBasis


def features_of(
    basis: RewardBasis, items: Preferences, embeddings: Float[np.ndarray, "I D"]
) -> Float[np.ndarray, "I K"]:
    """φ of every item.

    Raises:
      UserError: prototypes depend on the prompt, and a prompt has one completion alone.
    """
    # Prototypes that depend on the prompt need to know it; otherwise a row depends on no other row.
    own_prompt = basis.quadratic is not None and basis.quadratic.prompt is not None
    if own_prompt:
        _check_company(items)
    return Readout.of(basis).features(embeddings, items.item_prompt if own_prompt else None)


def _check_company(prefs: Preferences) -> None:
    """A prompt that is read off its completions needs two of them: one alone has every feature 0."""
    texts: dict[int, set[str]] = {}
    for prompt, text in zip(prefs.item_prompt.tolist(), prefs.item_text, strict=True):
        texts.setdefault(prompt, set()).add(text)
    for number, item in zip(prefs.row, prefs.chosen, strict=True):
        if len(texts[int(prefs.item_prompt[item])]) < 2:
            raise UserError(
                f"{prefs.source}: row {number}: the only completion of its prompt, but the prototypes of pal_b depend "
                "on a prompt's completions; give every prompt two or more, or fit pal_a"
            )
