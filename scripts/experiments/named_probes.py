"""Which named probes a fitted basis shows, and whether turning it makes them explicit: real choices of electricity contracts.

    python -m scripts.experiments.named_probes [--data electricity] [--output docs/results/named_probes.json]

Bases of 2 to 6 axes are learned (PReF's estimator over the contracts' attributes) and turned (`rewards.basis.named`). Probes read
the texts. R² is measured on the half of the contracts that the turn has not seen.
"""

import argparse
import json
import re
from pathlib import Path

import rewards
from rewards.api.fitted import FittedRewards
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.phi.columns import bank


def contract_years(completions: list[str], **columns: object) -> list[float]:
    """Years of a contract; 0 without one."""
    found = [re.search(r"(\d+)-year", text) for text in completions]
    return [float(match.group(1)) if match else 0.0 for match in found]


def mentions(words: str):
    """1 where a text has these words."""

    def probe(completions: list[str], **columns: object) -> list[float]:
        return [float(words in text) for text in completions]

    return probe


PROBES = {
    "contract": contract_years,
    "fixed price": mentions("fixed price"),
    "local": mentions("local utility"),
    "well known": mentions("well-known"),
    "length": bank.length,
}


def turned(prefs: Preferences, size: int, method: str = "pref") -> FittedRewards:
    """Rewards of `size` axes, as many of them named as the basis shows."""
    if method == "pref":
        return rewards.fit(prefs, method=method, probes=PROBES, num_basis=size)
    return rewards.fit(prefs, method=method, probes=PROBES)


def row(fitted: FittedRewards) -> JSONObject:
    report = fitted.basis.extra["probes"]
    return {
        "axes": list(fitted.axes),
        "mean": [float(value) for value in fitted.prior.mean],
        "probes": report,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="electricity")
    parser.add_argument("--output", type=Path, default=Path("docs/results/named_probes.json"))
    given = parser.parse_args()
    prefs, found = rewards.read(given.data).training, {}
    for size in (2, 3, 4, 5, 6):
        try:
            found[str(size)] = row(turned(prefs, size))
        except UserError as error:
            found[str(size)] = {"refused": str(error)}
        print(size, found[str(size)], flush=True)
    given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
