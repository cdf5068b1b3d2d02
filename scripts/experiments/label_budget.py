"""More raters or more labels each? A fixed budget of labels spread over m raters, for several reward models.

    python scripts/experiments/label_budget.py [--seeds 3] [--output docs/results/label_budget.json]

The world is planted: E = 32 embedding dimensions, K = 4 reward directions, w ~ N(mean, I), Bradley–Terry answers.
m raters share 6,000 labels; 100 people who were not raters then answer 40 pairs and are predicted on 100 others.
`oracle` is told the true directions and the true population. The law: joint point estimates have a flat optimum
at 30 to 150 raters and fall off when a rater gives fewer than about ten labels; averaging the coefficients out
(`house`) moves the optimum to more raters.

Hardware: 2 CPU cores, 2 GB; about ten minutes. Source of the law: Barreto et al. 2025, arXiv:2503.17338.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rewards import methods as models
from rewards.methods.base import Comparisons, ItemTable
from rewards.methods.rules import GaussianRule
from rewards.types import Preferences
from scripts.pages import write_numbers

BUDGET, WIDTH, NUM_BASIS, NEW, ASKED, TESTED, ITEMS = 6000, 32, 4, 100, 40, 100, 4000
RATERS = (6, 15, 30, 60, 150, 600, 2000)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "house": ("house", {"num_basis": NUM_BASIS, "dims": WIDTH, "ridge": 1.0}),
    "house, joint MAP": (
        "house",
        {"num_basis": NUM_BASIS, "dims": WIDTH, "ridge": 1.0, "marginalised": False},
    ),
    "rfm": ("rfm", {"num_basis": NUM_BASIS, "dims": WIDTH}),
    "pref": ("pref", {"num_basis": NUM_BASIS, "dims": WIDTH}),
}


def world(seed: int, raters: int) -> tuple[ItemTable, np.ndarray, np.ndarray]:
    """Table of m raters and 100 new people, true directions[E, K] and the population's mean[K]."""
    rng = np.random.default_rng([seed, raters])
    directions = np.linalg.qr(rng.normal(size=(WIDTH, NUM_BASIS)))[0]
    mean = 0.5 * rng.normal(size=NUM_BASIS)
    counts = np.concatenate([np.full(raters, BUDGET // raters), np.full(NEW, ASKED + TESTED)])
    user = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    coef = mean + rng.normal(size=(len(counts), NUM_BASIS))
    embeddings = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    first = rng.integers(0, ITEMS, len(user))
    second = (first + rng.integers(1, ITEMS, len(user))) % ITEMS
    margin = np.sum(coef[user] * ((embeddings[first] - embeddings[second]) @ directions), axis=1)
    prefers = rng.random(len(user)) < 1 / (1 + np.exp(-margin))
    prefs = Preferences(
        prompts=("Which one?",),
        item_prompt=np.zeros(ITEMS, np.int32),
        item_text=tuple(map(str, range(ITEMS))),
        item_features=embeddings,
        user_ids=tuple(map(str, range(len(counts)))),
        user_index=user,
        chosen=np.where(prefers, first, second).astype(np.int32),
        rejected=np.where(prefers, second, first).astype(np.int32),
        outcome=np.ones(len(user), np.float32),
        choice=(np.arange(len(user)) - (np.cumsum(counts) - counts)[user]).astype(np.int32),
        row=np.arange(1, len(user) + 1, dtype=np.int32),
        columns={},
        source="planted world",
    )
    return ItemTable(prefs, embeddings, {"kind": "precomputed"}), directions, mean


def accuracies(seed: int, raters: int) -> dict[str, float]:
    """Accuracy on new people of every model, and of the oracle, for one world."""
    table, directions, mean = world(seed, raters)
    prefs = table.prefs
    rows = np.flatnonzero(prefs.user_index >= raters).reshape(NEW, ASKED + TESTED)
    asked, tested = Comparisons.of(prefs, rows[:, :ASKED]), Comparisons.of(prefs, rows[:, ASKED:])
    training = prefs.select(prefs.user_index < raters)
    phi = table.embeddings @ directions
    rule = GaussianRule(mean, np.eye(NUM_BASIS))
    coef, _ = rule(phi[asked.chosen] - phi[asked.rejected], asked.outcome, asked.weight)
    margins = np.einsum("utk,uk->ut", phi[tested.chosen] - phi[tested.rejected], coef)
    result = {"oracle": float(np.mean(margins > 0))}
    for name, (kind, settings) in MODELS.items():
        fitted = models.make(kind, settings).fit(table, training)
        people = fitted.adapt(table, asked)
        result[name] = float(fitted.score(table, people, tested).mean())
    return result


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/results/label_budget.json"))
    options = parser.parse_args(arguments)
    start = time.monotonic()
    table = []
    for raters in RATERS:
        runs = [accuracies(seed, raters) for seed in range(options.seeds)]
        mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        sd = {name: float(np.std([run[name] for run in runs])) for name in runs[0]}
        table.append(
            {"raters": raters, "labels_each": BUDGET // raters, "accuracy": mean, "sd_over_seeds": sd}
        )
        print(
            f"{raters:5d} raters  " + "  ".join(f"{name} {value:.3f}" for name, value in mean.items()),
            flush=True,
        )
    write_numbers(
        options.output,
        {
            "command": "python scripts/experiments/label_budget.py",
            "budget_labels": BUDGET,
            "seeds": list(range(options.seeds)),
            "settings": {
                name: {"kind": kind} | dataclasses.asdict(models.make(kind, settings))
                for name, (kind, settings) in MODELS.items()
            },
            "jax": jax.__version__,
            "seconds": round(time.monotonic() - start, 1),
            "table": table,
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
