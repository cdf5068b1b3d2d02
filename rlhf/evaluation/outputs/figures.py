"""From completions and their worth to the numbers of metrics.json.

policies      by name: mean worth by judge, worst tenth of people, own minus other people's answers, quality, likeness
comparisons   of any two policies by each judge: win rate and mean difference with intervals over people and prompts,
              the win rate at equal length, the people who gain, and how many prompts a real difference needs
"""

from collections.abc import Sequence

import numpy as np

from rewards.files import JSONObject
from rewards.types import Prompt
from rlhf.evaluation.outputs import statistics, texts
from rlhf.evaluation.outputs.judging import OWN, Judged
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.samples import Written

REAL = 0.02
"""A difference in win rate that a comparison is asked to find: two points."""
FEWEST = 6
"""People or prompts without which nothing is called a difference: five that all agree do so by chance once in 16 times."""


def figures(
    written: Sequence[Written],
    judged: Judged,
    people: Sequence[Person],
    prompts: Sequence[Prompt],
    untouched: bool,
) -> JSONObject:
    """`policies` and `comparisons`."""
    names = [one.source.name for one in written]
    qualities = texts.qualities(written, prompts, untouched)
    return {
        "policies": {
            name: _policy(number, written[number], judged, people, qualities[number])
            for number, name in enumerate(names)
        },
        "comparisons": [
            comparison(judge, (names[a], names[b]), (values[a], values[b]), (written[a], written[b]))
            for judge, values in judged.values.items()
            for a in range(len(names))
            for b in range(a + 1, len(names))
            if judged.counts(judge, a, b)
        ],
    }


def _policy(
    number: int, written: Written, judged: Judged, people: Sequence[Person], quality: JSONObject
) -> JSONObject:
    worth: JSONObject = {}
    for judge, values in judged.values.items():
        each = _known_mean(values[number])
        own = each.mean(axis=1)
        worth[judge] = {
            "mean": interval(each),
            "worst_tenth": statistics.worst(own),
            "per_person": own.tolist(),
            "by_group": {
                group: float(own[[one.group == group for one in people]].mean())
                for group in dict.fromkeys(one.group for one in people)
            },
        }
    found: JSONObject = {
        **written.source.described(),
        "worth": worth,
        "quality": quality,
        "likeness": texts.likeness(written),
    }
    if (gains := judged.gains[number]) is not None:
        found["own_minus_other"] = interval(gains)
        found["prefer_own"] = float(np.mean(gains.mean(axis=1) > 0))
    return found


def comparison(
    judge: str,
    names: tuple[str, str],
    values: tuple[np.ndarray, np.ndarray],
    written: tuple[Written, Written],
) -> JSONObject:
    """One pair by one judge; `values` float64[U, P, n] of each."""
    a, b = values
    won = statistics.wins(a, b)
    known = np.isfinite(won)
    if not known.all():  # a judge that says nothing of a completion: neither won nor lost
        won = np.where(known, won, 0.5)
    difference = _known_mean(a) - _known_mean(b)
    lengths = [np.vectorize(len, otypes=[float])(one.array("text")).mean(axis=2) for one in written]
    longer = np.broadcast_to(lengths[0], won.shape) - np.broadcast_to(lengths[1], won.shape)
    even = statistics.length_controlled(won, longer)
    rate = statistics.interval(won)
    per_person = won.mean(axis=1)
    return {
        "judge": judge,
        "policies": list(names),
        "win_rate": interval(won, within=(0.0, 1.0)),
        "length_controlled": even if np.isfinite(even) else None,
        "difference": interval(difference),
        "people_who_gain": float(np.mean(difference.mean(axis=1) > 0)),
        "worst_tenth": statistics.worst(per_person),
        "per_person": per_person.tolist(),
        "detectable": statistics.detectable(won),
        "prompts_needed": statistics.prompts_needed(won, REAL),
        "judged": float(known.mean()),
        "outcome": _outcome(rate, _clusters(known, written)),
    }


def _clusters(known: np.ndarray, written: tuple[Written, Written]) -> int:
    """What was drawn independently: people or prompts. Where a policy answers all alike, its texts are the same for all
    people, so that many people do not make up for few prompts: which texts were drawn is one accident for all of them."""
    people, prompts = known.any(axis=1).sum(), known.any(axis=0).sum()
    return int(prompts if 1 in (one.shape[0] for one in written) else max(people, prompts))


def _outcome(rate: statistics.Interval, clusters: int) -> str:
    if clusters < FEWEST:
        return TOO_FEW
    return "better" if rate.low > 0.5 else "worse" if rate.high < 0.5 else NOT_SHOWN


def interval(values: np.ndarray, within: tuple[float, float] | None = None) -> JSONObject:
    """As records hold it, cut to the numbers that there are; an end of which nothing is known is null."""
    mean, low, high = statistics.interval(values)
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    found = {"mean": mean, "low": low, "high": high}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over samples [U, P], of those that were judged; 0 where none was."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(axis=2) / np.maximum(known.sum(axis=2), 1)


def headline(result: JSONObject) -> tuple[str, str]:
    """Status and first line: the first policy against the second, by people's own rewards where there are any."""
    if not result["comparisons"]:
        names = ", ".join(result["policies"])
        why = (
            "there is no other policy to compare it with"
            if len(result["policies"]) == 1
            else "no judge counts"
            if result["judge_checks"]
            else "nothing judges them; give rewards or judges"
        )
        return "unknown", f"{names}: sampled; {why}."
    judges = [one["judge"] for one in result["comparisons"]]
    judge = OWN if OWN in judges else judges[0]
    first = next(one for one in result["comparisons"] if one["judge"] == judge)
    return STATUS[first["outcome"]], sentence(first, result["people"], result["prompts"])


NOT_SHOWN, TOO_FEW = "no difference shown", "too few to say"
STATUS = {"better": "won", "worse": "lost", NOT_SHOWN: "unknown", TOO_FEW: "unknown"}


def sentence(found: JSONObject, people: int, prompts: int) -> str:
    """One comparison in words."""
    a, b = found["policies"]
    rate = found["win_rate"]
    by = "by people's own rewards" if found["judge"] == OWN else f"by {found['judge']}"
    span = (
        f"wins {rate['mean']:.1%} of comparisons ({rate['low']:.1%} to {rate['high']:.1%})"
        if rate["low"] is not None
        else f"wins {rate['mean']:.1%} of comparisons"
    )
    who = f"{people} {'person' if people == 1 else 'people'}, {prompts} {'prompt' if prompts == 1 else 'prompts'}"
    if found["outcome"] == TOO_FEW:
        more = " prompts" if people >= FEWEST else ""
        return f"Too few people and prompts to compare {a} and {b} {by}: the first {span} ({who}); give at least {FEWEST}{more}."
    if found["outcome"] != NOT_SHOWN:
        word = "better" if found["outcome"] == "better" else "worse"
        gain = f"; {found['people_who_gain']:.0%} of people gain" if people > 1 else ""
        return f"{a} is {word} than {b} {by}: it {span}{gain} ({who})."
    needed = found["prompts_needed"]
    more = (
        f"{needed:,} prompts would find a difference of two points"
        if needed is not None
        else "with so few people no number of prompts finds a difference of two points"
    )
    return (
        f"No difference shown between {a} and {b} {by}: the first {span}; so few answers miss differences below "
        f"{100 * found['detectable']:.1f} points, {more} ({who})."
    )
