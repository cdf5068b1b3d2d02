"""The one-dimensional task of neural preference processes: how much do 0, 1, 3, 5, 10 answers tell?

    python scripts/experiments/np_toy.py [--out docs/results/np_toy.json] [--seeds 3]

A completion is a number y ~ U(0, 1). Two kinds of people share the reward r(y) = y below ½; above it one kind has
2y, the other 1 − y; they always take the better one. Two numbers below ½ are ranked alike by both kinds, two above
always differently, and of mixed pairs half: without answers nobody can be right more than ¼ + ⅛ + ⅜ = 75 % of the
time, and n answers tell the kinds apart with probability 1 − 2⁻ⁿ, so the best accuracy is 1 − 2⁻ⁿ / 4.

Source: Kobalczyk et al. 2024, arXiv:2412.13998; their numbers are 76.4 for Bradley–Terry and 76.4, 86.6, 94.7, 97.4,
98.9 % with 0, 1, 3, 5, 10 answers.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from rewards.methods.base import Comparisons, ItemTable
from rewards.methods.variational import SPL, VPL, VPLFitted
from rewards.types import Preferences
from scripts import pages

CONTEXT = (0, 1, 3, 5, 10)
# The answers are without noise and there are plenty of them: less shrinkage than for real people.
SETTINGS = {"max_context": 10, "rounds": 10, "learning_rate": 2e-3, "weight_decay": 0.01}
PUBLISHED = {"btl": 0.764, "np": [0.764, 0.866, 0.947, 0.974, 0.989]}


def utility(y: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """r(y) of a person of the given kind, 0 or 1."""
    return np.where(y < 0.5, y, np.where(kind == 0, 2 * y, 1 - y))


def make(seed: int, people: int, answers: int) -> Preferences:
    """`people` of both kinds with `answers` comparisons each, every one of two new numbers."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.integers(0, 2, people), answers)
    y = rng.random((people * answers, 2), np.float32)
    first_better = utility(y[:, 0], kind) > utility(y[:, 1], kind)
    first = 2 * np.arange(len(y), dtype=np.int32)
    return Preferences(
        prompts=("Which number?",),
        item_prompt=np.zeros(y.size, np.int32),
        item_text=tuple(f"{value:.4f}" for value in y.ravel()),
        item_features=y.reshape(-1, 1),
        user_ids=tuple(f"person {u}" for u in range(people)),
        user_index=np.repeat(np.arange(people, dtype=np.int32), answers),
        chosen=np.where(first_better, first, first + 1).astype(np.int32),
        rejected=np.where(first_better, first + 1, first).astype(np.int32),
        outcome=np.ones(len(y), np.float32),
        choice=np.tile(np.arange(answers, dtype=np.int32), people),
        row=np.arange(1, len(y) + 1, dtype=np.int32),
        columns={},
        source="np toy",
    )


def table_of(prefs: Preferences) -> ItemTable:
    assert prefs.item_features is not None
    return ItemTable(prefs, prefs.item_features, {"kind": "precomputed"})


def curve(model, prefs: Preferences, sizes: tuple[int, ...] = CONTEXT) -> list[float]:
    """Accuracy of new people's last answers, given their first `sizes` ones."""
    table, longest = table_of(prefs), max(sizes)
    rows = np.arange(prefs.num_comparisons).reshape(prefs.num_users, -1)
    answers, pairs = Comparisons.of(prefs, rows[:, :longest]), Comparisons.of(prefs, rows[:, longest:])
    scores = [model.score(table, model.adapt(table, answers.first(size)), pairs) for size in sizes]
    return [round(float(np.mean(score)), 4) for score in scores]


def one_seed(seed: int, people: int, answers: int) -> dict:
    """Fit Bradley–Terry, VPL and SPL to the same people; accuracy on the same 1,000 new ones."""
    train, test = make(2 * seed, people, answers), make(2 * seed + 1, 1000, 50)
    result: dict = {"seed": seed}
    estimators = {"btl": VPL(**SETTINGS | {"max_context": 0}, seed=seed), "vpl": VPL(**SETTINGS, seed=seed)}
    for name, estimator in (estimators | {"spl": SPL(**SETTINGS, seed=seed)}).items():
        start = time.perf_counter()
        model = estimator.fit(table_of(train), train)
        assert isinstance(model, VPLFitted)
        result[name] = {
            "accuracy": curve(model, test, (0,) if name == "btl" else CONTEXT),
            "fit_seconds": round(time.perf_counter() - start, 1),
            "report": model.report,
        }
        print(seed, name, result[name]["accuracy"], f"{result[name]['fit_seconds']} s", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/np_toy.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--answers", type=int, default=60)
    options = parser.parse_args()
    runs = [one_seed(seed, options.people, options.answers) for seed in range(options.seeds)]
    mean = {
        name: np.round(np.mean([run[name]["accuracy"] for run in runs], axis=0), 4).tolist()
        for name in ("btl", "vpl", "spl")
    }
    record = {
        "command": f"python scripts/experiments/np_toy.py --seeds {options.seeds} --people {options.people} "
        f"--answers {options.answers}",
        "context_answers": CONTEXT,
        "best_possible": [1 - 0.25 * 0.5**size for size in CONTEXT],
        "published": PUBLISHED,
        "mean_accuracy": mean,
        "settings": {
            "vpl": dataclasses.asdict(VPL(**SETTINGS)),
            "spl": dataclasses.asdict(SPL(**SETTINGS)),
        },
        "people": options.people,
        "answers_per_person": options.answers,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "runs": runs,
    }
    pages.write_numbers(options.out, record)
    print(mean)


if __name__ == "__main__":
    main()
