"""The table of Flattery, Fluff, and Fog (arXiv:2506.05339) again, from its released judgements and scores.

    python -m scripts.experiments.bias_table --data DIR [--scores DIR] [--output docs/results/bias_table.json]

DIR of `--data` holds `bias_probes/fff_human` and `bias_probes/fff_annotators` as `chorus probe` reads them; DIR of `--scores`
is `data/fine_tuned_model_scores` of a checkout of the paper's repository, which states no licence, so that nothing of it is
kept here. Per bias, over the pairs in which the majority of three people is no tie:

    skew             share of pairs in which the biased answer is preferred
    miscalibration   share of pairs in which a reward model's choice is not the majority's
    agreement        share of pairs of votes on one item, ties left out, that are the same

All in points of 100 but the agreement. No model is run.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rewards import jsonl
from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.evaluation.probes import figures
from rlhf.evaluation.probes.data import BIASES, rows

SIZES = ("2B", "3B", "8B", "27B")
AFTER = {
    "length": "1000_3",
    "structure": "750_3",
    "jargon": "750_3",
    "vagueness": "750_3",
    "sycophancy": "500_3",
}
"""Which augmented model of each bias: the amount of augmented pairs that was released in all four sizes."""


class Figures(NamedTuple):
    """Skew and miscalibration in points, over `pairs` pairs."""

    skew: float
    miscalibration: float
    pairs: int


def judged(own: Sequence[bool], human: Sequence[bool]) -> Figures:
    choice, people = np.asarray(own, bool), np.asarray(human, bool)
    return Figures(100 * figures.share(choice), 100 * figures.miscalibration(choice, people), len(choice))


def agreement(items: Sequence[JSONObject]) -> float:
    """How often two people who voted on one item and did not tie agree."""
    same = total = 0
    for item in items:
        votes = [str(vote["preference"]).strip().lower().replace(" ", "_") for vote in item["annotators"]]
        kept = [vote for vote in votes if vote in ("response_1", "response_2")]
        for one, other in itertools.combinations(kept, 2):
            same, total = same + (one == other), total + 1
    if not total:
        raise UserError(
            "agreement: no item has two votes that are no ties; restore bias_probes/fff_annotators"
        )
    return same / total


def scored(path: Path, majority: dict[str, bool]) -> Figures | None:
    """One file of released scores, over the prompts that have a majority; None where there is no such file."""
    if not path.is_file():
        return None
    found = [
        (row["perturbed_score"] > row["base_score"], majority[row["query"]])
        for row in jsonl.rows(path, "restore it from the paper's repository")
        if row["query"] in majority
    ]
    if not found:
        raise UserError(
            f"{path}: no query of it has a majority of people; give the scores of {path.parent.name}"
        )
    return judged(*zip(*found, strict=True))


def of_models(folder: Path, bias: str, majority: dict[str, bool]) -> JSONObject:
    """Means over the reward models whose scores are there, before and after counterfactual augmentation."""
    found: JSONObject = {}
    for name, stem in (
        ("before", "{bias}_scored_{size}"),
        ("after", "{bias}_scored_fine_tuned_{size}_{after}"),
    ):
        each = []
        for size in SIZES:
            file = stem.format(bias=bias, size=size, after=AFTER[bias]) + ".jsonl"
            each.append(scored(folder / bias / file, majority))
        known = [one for one in each if one is not None]
        if known:
            found[name] = {
                "models": len(known),
                "skew": float(np.mean([one.skew for one in known])),
                "miscalibration": float(np.mean([one.miscalibration for one in known])),
            }
    return found


def table(data: Path, scores: Path | None = None) -> dict[str, JSONObject]:
    """A row for each bias."""
    folder = data / "bias_probes"
    pairs, votes = rows(folder, "fff_human"), rows(folder, "fff_annotators")
    found = {}
    for bias in BIASES:
        own = [row for row in pairs if row["bias"] == bias]
        people = [bool(row["human_prefers_biased"]) for row in own]
        released = judged([bool(row["reward_model_prefers_biased"]) for row in own], people)
        found[bias] = {
            "pairs": len(own),
            "human_skew": 100 * figures.share(np.asarray(people)),
            "model_skew": released.skew,
            "model_miscalibration": released.miscalibration,
            "agreement": agreement([row for row in votes if row["bias"] == bias]),
        }
        if scores is not None:
            majority = {row["prompt"]: bool(row["human_prefers_biased"]) for row in own}
            found[bias] |= of_models(scores, bias, majority)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/results/bias_table.json"))
    given = parser.parse_args()
    found = table(given.data, given.scores)
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for bias, row in found.items():
        print(
            f"{bias:11}",
            {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
        )


if __name__ == "__main__":
    main()
