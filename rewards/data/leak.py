"""Does the form of a text alone give away which one was chosen?

A published reward model once rendered rejected texts as Python lists and chosen ones as plain text; its 93 %
were 59 % after the repair. Such a leak is seen by no human and found by every model.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from rewards.data import surface
from rewards.files import JSONObject
from rewards.types import Preferences

MAX_COMPARISONS = 20_000  # beyond this a seeded sample: the question is whether, not how exactly
MIN_GROUPS = 10
# kind → (least share of pairs that differ, least lower bound of one-sidedness, least number of texts)
_RULES = {
    "hard": (0.002, 0.8, 5),
    "soft": (0.2, 0.95, 10),
}


def leak_check(prefs: Preferences, seed: int = 0) -> JSONObject:
    """Predict choices from surface form alone, and name traces of rendering that go with one side.

    The classifier is a logistic regression on feature(chosen) − feature(rejected), each pair turned at
    random (by `seed`), cross-validated with all pairs of a prompt in one fold; with fewer than ten prompts,
    all comparisons of one unordered pair of items. A high accuracy alone is *no* alarm, since people may
    like longer texts. The alarm is about artefacts: list syntax, special tokens, stray whitespace, broken
    encoding, … that differ between the two sides nearly always in the same direction, over many texts.

    Returns:
      accuracy, interval: of the classifier (95 %, bootstrap over groups); None when there are too few groups.
      grouped_by: "prompt" or "item pair"; num_groups; num_comparisons: used, without ties.
      strongest: the five features with the largest standardised weights (positive: goes with chosen).
      alarm: whether anything suspicious was found; suspicious: list of {feature, side, differs (share of
        pairs), one_sided (share of those), texts, example, explanation}; message: the result in one sentence.
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(prefs.outcome != 0.5)
    if len(rows) > MAX_COMPARISONS:
        rows = np.sort(rng.choice(rows, MAX_COMPARISONS, replace=False))
    chosen, rejected = prefs.chosen[rows], prefs.rejected[rows]
    if len(rows) == 0 or not any(prefs.item_text):
        reason = "every comparison is a tie" if any(prefs.item_text) else "there are no texts, only features"
        return _result(message=f"not checked: {reason}")
    used, index = np.unique(np.concatenate([chosen, rejected]), return_inverse=True)
    index = index.reshape(2, -1)
    texts = [prefs.item_text[item] for item in used]
    artefacts = _table(texts, surface.HARD_ARTEFACTS | surface.SOFT_ARTEFACTS)
    names = list(surface.TRAITS) + list(surface.HARD_ARTEFACTS) + list(surface.SOFT_ARTEFACTS)
    features = np.concatenate([_table(texts, surface.TRAITS), artefacts], axis=1)
    found = _suspicious(texts, artefacts, index)
    groups, grouped_by = _groups(prefs, chosen, rejected)
    accuracy, interval, strongest = _classify(features[index[0]] - features[index[1]], groups, names, rng)
    return _result(
        accuracy=accuracy,
        interval=interval,
        grouped_by=grouped_by,
        num_groups=len(np.unique(groups)),
        num_comparisons=len(rows),
        strongest=strongest,
        suspicious=found,
        alarm=bool(found),
        message=_message(accuracy, interval, found, strongest),
    )


def wilson_interval(successes: float, total: float, z: float = 1.96) -> list[float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927).

    [p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)] / (1 + z²/n); [0, 1] without observations.
    """
    if total == 0:
        return [0.0, 1.0]
    rate, weight = successes / total, z * z / total
    half = z * float(np.sqrt(rate * (1 - rate) / total + weight / (4 * total)))
    return [
        max(0.0, (rate + weight / 2 - half) / (1 + weight)),
        min(1.0, (rate + weight / 2 + half) / (1 + weight)),
    ]


def _result(**found: object) -> JSONObject:
    empty = {"accuracy": None, "interval": None, "grouped_by": None, "num_groups": 0, "num_comparisons": 0}
    return empty | {"strongest": [], "alarm": False, "suspicious": []} | found


def _table(texts: list[str], features: JSONObject) -> np.ndarray:
    """float64[texts, features]."""
    return np.array([[float(feature(text)) for feature in features.values()] for text in texts])


def _suspicious(texts: list[str], artefacts: np.ndarray, index: np.ndarray) -> list[JSONObject]:
    """Artefacts whose presence differs between the sides, nearly always in one direction.

    Texts are counted, not only pairs: one odd text that loses a hundred comparisons is no rendering fault.
    """
    found = []
    for column, name in enumerate(surface.HARD_ARTEFACTS | surface.SOFT_ARTEFACTS):
        kind = "hard" if name in surface.HARD_ARTEFACTS else "soft"
        least_share, least_bound, least_texts = _RULES[kind]
        present = artefacts[:, column].astype(bool)
        differs = present[index[0]] != present[index[1]]
        total, on_chosen = int(differs.sum()), int(present[index[0]][differs].sum())
        side = 0 if 2 * on_chosen > total else 1
        one_sided = max(on_chosen, total - on_chosen)
        carriers = np.unique(index[side][differs & present[index[side]]])
        bound = wilson_interval(one_sided, total)[0]
        # Ten of ten is as much as a small file can show, but its Wilson bound is only 0.72.
        clear = bound >= least_bound or (one_sided == total and kind == "hard")
        if total / len(differs) < least_share or len(carriers) < least_texts or not clear:
            continue
        where = ("chosen", "rejected")[side]
        found.append(
            {
                "feature": name,
                "side": where,
                "differs": total / len(differs),
                "one_sided": one_sided / total,
                "texts": len(carriers),
                "example": texts[carriers[0]][:80],
                "explanation": f"{name}: the sides differ in {total / len(differs):.0%} of the pairs, then "
                f"the {where} text has it in {one_sided / total:.0%}; render both sides alike",
            }
        )
    return found


def _groups(prefs: Preferences, chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, str]:
    prompts = prefs.item_prompt[chosen]
    if len(np.unique(prompts)) >= MIN_GROUPS:
        return prompts, "prompt"
    return np.minimum(chosen, rejected).astype(np.int64) * prefs.num_items + np.maximum(
        chosen, rejected
    ), "item pair"


def _classify(
    difference: np.ndarray, groups: np.ndarray, names: list[str], rng: np.random.Generator
) -> tuple[float | None, list[float] | None, list[JSONObject]]:
    _, group = np.unique(groups, return_inverse=True)
    num_groups = int(group.max()) + 1
    if num_groups < MIN_GROUPS:
        return None, None, []
    sign = rng.choice([-1.0, 1.0], len(difference))
    varying = np.flatnonzero(np.abs(difference).max(axis=0) > 0)
    if not len(varying):  # the two sides of every pair look alike
        return 0.5, [0.5, 0.5], []
    # Turning a pair over must flip the prediction: no intercept, and scaling without centring.
    inputs = StandardScaler(with_mean=False).fit_transform(difference[:, varying]) * sign[:, None]
    correct = np.zeros(len(sign))
    for train, test in GroupKFold(n_splits=5).split(inputs, groups=group):
        model = _fit(inputs[train], sign[train])
        correct[test] = model.predict(inputs[test]) == sign[test]
    weights = _fit(inputs, sign).coef_[0]
    top = np.argsort(-np.abs(weights))[:5]
    strongest = [{"feature": names[varying[i]], "weight": float(weights[i])} for i in top]
    hits, sizes = np.bincount(group, correct, num_groups), np.bincount(group, minlength=num_groups)
    draws = rng.integers(0, num_groups, (1000, num_groups)) if num_groups <= 2000 else None
    if draws is None:  # with so many groups the normal interval of a ratio of sums is as good, and small
        residual = hits - correct.mean() * sizes
        half = 1.96 * float(np.sqrt((residual**2).sum()) / sizes.sum())
        interval = [max(0.0, correct.mean() - half), min(1.0, correct.mean() + half)]
    else:
        interval = np.quantile(hits[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975]).tolist()
    return float(correct.mean()), [float(end) for end in interval], strongest


def _fit(inputs: np.ndarray, sign: np.ndarray) -> LogisticRegression:
    """Without an intercept a pair turned over says the same, so turning one supplies a second class where all
    signs happen to be equal."""
    turn = np.where((np.arange(len(sign)) == 0) & (sign == sign[0]).all(), -1.0, 1.0)
    return LogisticRegression(fit_intercept=False, max_iter=300).fit(inputs * turn[:, None], sign * turn)


def _message(
    accuracy: float | None,
    interval: list[float] | None,
    found: list[JSONObject],
    strongest: list[JSONObject],
) -> str:
    if found:
        return "ALARM: the rendering gives the choice away. " + "; ".join(one["explanation"] for one in found)
    if accuracy is None or interval is None:
        return f"no artefact found; too few groups (under {MIN_GROUPS}) for a classifier on surface form"
    range_text = f"{accuracy:.1%} ({interval[0]:.1%}–{interval[1]:.1%})"
    if interval[0] > 0.9:
        return (
            f"no artefact found, but surface form alone predicts {range_text} of the choices, mostly by "
            f"{strongest[0]['feature']}: is that what people were asked to judge?"
        )
    return f"no artefact found; surface form alone predicts {range_text} of the choices"
