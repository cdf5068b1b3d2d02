"""Configurations of a sweep over their seeds: which is best by its mean, and how far seeds alone move it."""

import json
import statistics
from typing import NamedTuple

from rewards.files import JSONObject
from rlhf.report import page

SEED = "seed"


class OverSeeds(NamedTuple):
    """One configuration: what was tried besides the seed, the seeds, and the value of each."""

    params: JSONObject
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def over_seeds(rows: list[JSONObject], name: str, direction: str) -> list[OverSeeds]:
    """Configurations with as many seeds as any has, the best mean first; none where seeds were not tried.

    Args:
      rows: trials, of which the complete ones that keep their constraints count. name, direction: of the first objective.
    """
    groups: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["state"] != "complete" or row["feasible"] is False or SEED not in row["params"]:
            continue
        rest = {key: value for key, value in row["params"].items() if key != SEED}
        groups.setdefault(json.dumps(rest, sort_keys=True), {})[row["params"][SEED]] = row["values"][name]
    most = max(map(len, groups.values()), default=0)
    if most < 2:
        return []
    found = [
        OverSeeds(json.loads(text), *zip(*sorted(values.items()), strict=True))
        for text, values in groups.items()
        if len(values) == most
    ]
    return sorted(found, key=lambda one: one.mean if direction == "minimize" else -one.mean)


def sentence(found: list[OverSeeds], name: str) -> str:
    """The best configuration, its mean and how far it lies from the next; empty where seeds were not tried."""
    if not found:
        return ""
    best = found[0]
    params = ", ".join(f"{key} {_value(value)}" for key, value in best.params.items()) or "the base"
    low, high = page.number(min(best.values)), page.number(max(best.values))
    text = (
        f" Over seeds {', '.join(map(str, best.seeds))} the best configuration is {params}: mean {name} "
        f"{page.number(best.mean)} ({low} to {high})"
    )
    return f"{text}; the next has {page.number(found[1].mean)}." if len(found) > 1 else f"{text}."


def section(found: list[OverSeeds], name: str) -> str:
    """A table of all of them."""
    if not found:
        return ""
    keys = list(found[0].params)
    cells = [
        [
            *(_value(one.params[key]) for key in keys),
            page.number(one.mean),
            page.number(min(one.values)),
            page.number(max(one.values)),
            ", ".join(map(str, one.seeds)),
        ]
        for one in found
    ]
    head = [*keys, f"mean {name}", "least", "most", "seeds"]
    return page.section("Configurations over seeds", page.table(head, cells))


def _value(value: object) -> str:
    return page.number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
