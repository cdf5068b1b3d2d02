"""Who is held out: a share of the people once, or where they are few each of them once."""

import numpy as np

from rewards.data.division import Division, divide, divide_in_folds
from rewards.data.split import check_folds
from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.phi.config import RewardsConfig

SMALL, FOLDS = 50, 5
"""A fifth of fewer people than SMALL can show nothing."""


def divisions_of(config: RewardsConfig, prefs: Preferences) -> tuple[Division, ...]:
    """The division of `config`, or its folds of people (`folds_of`), tested on half of their choices at least."""
    settings, folds = config.evaluation, folds_of(config, prefs)
    common: JSONObject = {
        "held_out_prompts": settings.held_out_prompts,
        "held_out_texts": settings.held_out_texts,
        "split_seed": config.data.split_seed,
        "distinct_texts": settings.distinct_texts,
    }
    last = tested_choices(config, prefs)
    if folds == 1:
        return (divide(prefs, held_out_people=config.data.held_out_people, last=last, **common),)
    return divide_in_folds(prefs, folds, last=last, **common)


def folds_of(config: RewardsConfig, prefs: Preferences) -> int:
    """`evaluation.folds`, or where it is null FOLDS for fewer than SMALL people, two people each at least, else 1.

    Raises:
      UserError: more folds given than pairs of people.
    """
    people = len(np.unique(prefs.user_index))
    if config.evaluation.folds is not None:
        if config.evaluation.folds > 1:
            check_folds(prefs, config.evaluation.folds)
        return config.evaluation.folds
    return min(FOLDS, people // 2) if 4 <= people < SMALL else 1


def tested_choices(config: RewardsConfig, prefs: Preferences) -> int:
    """`data.last_choices`, and where small sets are folded by themselves half of what all but a tenth of the people chose."""
    last = config.data.last_choices
    if config.evaluation.folds is not None or folds_of(config, prefs) == 1:
        return last
    person = np.unique(np.stack([prefs.user_index, prefs.choice]), axis=1)[0]
    return max(last, int(np.quantile(np.unique(person, return_counts=True)[1], 0.1)) // 2)


def judged_on(config: RewardsConfig, prefs: Preferences, held_out: np.ndarray) -> JSONObject:
    """By how many people, tested choices of each, and folds `chorus rewards evaluate` will judge."""
    folds = folds_of(config, prefs)
    people = prefs.user_index if folds > 1 else prefs.user_index[held_out]
    return {"people": len(np.unique(people)), "choices": tested_choices(config, prefs), "folds": folds}
