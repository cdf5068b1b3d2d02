"""Make docs/results/NAME.md and .json: every figure with its seeds, from the shipped configurations.

    python scripts/results.py electricity rewards --seeds 5
    python scripts/results.py electricity policy --seeds 3
    python scripts/results.py train_trips rewards --seeds 5
    python scripts/results.py electricity write
    python scripts/results.py people --data DIR --seeds 5

Reward seeds change who is held out (data.split_seed) and the random orders; policy seeds change initialisation,
sampled coefficients and data order. Each part adds to the JSON file, so seeds may be run apart. `people` compares
every reward model on every set of real people; sets that are not shipped are read from DIR.
"""

import argparse
import datetime
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pages
import results_people

from rewards.files import write_text
from rlhf.evaluation import policy as evaluate
from rlhf.evaluation.config import EvaluateConfig
from rlhf.phi import fit as rewards_job
from rlhf.phi.config import RewardsConfig
from rlhf.phi.evaluate import evaluate_rewards
from rlhf.phi.methods import model_names
from rlhf.run.config.load import load
from rlhf.train import dpo, sft
from rlhf.train.config import DPOConfig, SFTConfig

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "electricity": "electricity/rewards.yaml",
    "train_trips": "train_trips/rewards.yaml",
    "train_trips_text": "train_trips/rewards_text.yaml",
}
TITLES = {
    "electricity": "Electricity contracts",
    "train_trips": "Train trips",
    "train_trips_text": "Train trips, from text alone",
}
EXACT = (
    "kl_to_optimum",
    "kl_to_optimum_worst_decile",
    "kl_of_reference_to_optimum",
    "diagonal_dominance",
    "own_beats_aggregate",
    "own_reward",
    "aggregate_reward",
    "swapped_reward",
    "best_reward",
    "kl_to_reference",
    "kl_to_aggregate",
    "valid_mass",
)


def run_rewards(name: str, seed: int, runs: Path) -> dict:
    """Fit and replay with another division of people."""
    began, overrides = (
        time.perf_counter(),
        [f"output_dir={runs}/{name}/rewards-{seed}", f"data.split_seed={seed}", "evaluation.models=[]"],
    )
    config = load(ROOT / "configs" / CONFIGS[name], overrides, RewardsConfig)
    fitted = rewards_job.fit(config)
    replay = evaluate_rewards(config)["evaluation"]
    return {
        "num_basis": fitted["num_basis"],
        "pooled": replay["pooled_accuracy"]["mean"],
        "chosen": {n: value["mean"] for n, value in replay["accuracy"].items()},
        "random": {n: value["mean"] for n, value in replay["accuracy_random"].items()},
        "swapped": replay["swap"]["swapped"]["mean"],
        "own": replay["swap"]["own"]["mean"],
        "people": replay["people"],
        "seconds": time.perf_counter() - began,
    }


def run_policy(name: str, seed: int, runs: Path) -> dict:
    """Supervised start, policy and evaluation of the full configuration, on the division of the shipped one."""
    configs = ROOT / "configs" / name
    began, root = time.perf_counter(), runs / name / f"policy-{seed}"
    rewards_job.fit(load(configs / "rewards.yaml", [f"output_dir={root}/rewards"], RewardsConfig))
    seeded = [f"seed={seed}"]
    sft.run(load(configs / "sft.yaml", [f"output_dir={root}/sft", *seeded], SFTConfig))
    links = [f"rewards={root}/rewards", f"model.name={root}/sft", *seeded]
    dpo.run(load(configs / "dpo.yaml", [f"output_dir={root}/policy", *links], DPOConfig))
    places = [f"output_dir={root}/evaluation", f"policy={root}/policy", *links]
    result = evaluate.run(load(configs / "evaluate.yaml", places, EvaluateConfig))
    exact, sampled = result["enumerated"], result["sampled"]
    return {name: exact[name] for name in EXACT} | {
        "valid_answers": sampled["valid_answers"],
        "sampled_dominance": sampled["diagonal_dominance"],
        "seconds": time.perf_counter() - began,
    }


def store_of(name: str) -> Path:
    return ROOT / "docs" / "results" / f"{name}.json"


def stored(name: str) -> dict:
    path = store_of(name)
    return pages.read_numbers(path) if path.is_file() else {"rewards": {}, "policy": {}}


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def write_page(name: str, results: dict) -> None:
    rewards, policy = list(results["rewards"].values()), list(results["policy"].values())
    counts = list(rewards[0]["chosen"])
    most = counts[-1]
    gains = np.array([r["chosen"][most] - r["pooled"] for r in rewards])
    half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
    lines = [
        f"# {TITLES[name]}: results",
        "",
        "Made by `scripts/results.py`; numbers are mean ± standard deviation over seeds.",
        f"{results['made']}; {results['versions']}; {results['machine']}.",
        "",
        f"## People never seen ({len(rewards)} divisions of people, {rewards[0]['people']} held out in each)",
        "",
        "Accuracy on each person's last three choices, after n of their own recorded answers.",
        "",
        "| n | questions chosen by information gain | random questions |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {n} | {spread([r['chosen'][n] for r in rewards])} | {spread([r['random'][n] for r in rewards])} |"
        for n in counts
    ]
    lines += [
        "",
        f"One model for everybody: {spread([r['pooled'] for r in rewards])}. "
        f"Somebody else's coefficients after as many answers (ten at most): {spread([r['swapped'] for r in rewards])} "
        f"(own: {spread([r['own'] for r in rewards])}).",
        "",
        f"Own coefficients after {most} answers minus one model for everybody: {gains.mean():+.3f}, "
        f"95 % interval over divisions [{gains.mean() - half:+.3f}, {gains.mean() + half:+.3f}].",
        "",
        "By division of people (`data.split_seed`), chosen questions:",
        "",
        "| split_seed | pooled | " + " | ".join(f"n = {n}" for n in counts) + " | swapped | seconds |",
        "| --- |" + " --- |" * (len(counts) + 3),
    ]
    lines += [
        f"| {seed} | {r['pooled']:.3f} | "
        + " | ".join(f"{r['chosen'][n]:.3f}" for n in counts)
        + f" | {r['swapped']:.3f} | {r['seconds']:.0f} |"
        for seed, r in results["rewards"].items()
    ]
    if policy:
        lines += [
            "",
            f"## The policy, full configuration ({len(policy)} seeds)",
            "",
            "`configs/electricity/{rewards,sft,dpo,evaluate}.yaml`, 72 held-out people, ten chosen answers each; exact over",
            "the 35 contracts unless it says sampled.",
            "",
            "| figure | mean ± sd over seeds | " + " | ".join(f"seed {s}" for s in results["policy"]) + " |",
            "| --- | --- |" + " --- |" * len(policy),
        ]
        lines += [
            f"| `{name}` | {spread([p[name] for p in policy])} | "
            + " | ".join(f"{p[name]:.3f}" for p in policy)
            + " |"
            for name in policy[0]
        ]
    write_text(store_of(name).with_suffix(".md"), "\n".join(lines) + "\n")


def made() -> dict[str, str]:
    return {
        "made": str(datetime.date.today()),
        "versions": f"jax {version('jax')}, flax {version('flax')}, Python {platform.python_version()}",
        "machine": "2 CPU cores",
    }


def people(args: argparse.Namespace) -> None:
    """The comparison of reward models on real people."""
    store = store_of("people")
    results = pages.read_numbers(store) if store.is_file() else {}
    if args.part != "write":
        results_people.enable_compile_cache(args.runs / "compiled")
        results |= made()
        results_people.run(results, store, args)
    for name in results_people.SETS:
        results[name] = {seed: results_people.compact(board) for seed, board in results.get(name, {}).items()}
    pages.write_numbers(store, results, tuple(results_people.SETS))
    head = f"{results['made']}; {results['versions']}; {results['machine']}."
    write_text(store.with_suffix(".md"), results_people.page(results, head))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=(*TITLES, "people"))
    parser.add_argument("part", choices=("rewards", "policy", "write"), nargs="?", default="rewards")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the sets for people")
    parser.add_argument(
        "--sets", nargs="+", choices=tuple(results_people.SETS), default=list(results_people.SETS)
    )
    parser.add_argument(
        "--draws", type=int, default=5, help="random orders of questions a division, for people"
    )
    parser.add_argument("--models", nargs="+", choices=model_names(), default=list(model_names()))
    args = parser.parse_args()
    if args.name == "people":
        return people(args)
    results = stored(args.name)
    if args.part != "write":
        for seed in range(args.seeds):
            if str(seed) not in results[args.part]:
                run = run_rewards if args.part == "rewards" else run_policy
                results[args.part][str(seed)] = run(args.name, seed, args.runs)
                results |= made()
                pages.write_numbers(store_of(args.name), results)
    write_page(args.name, results)


if __name__ == "__main__":
    main()
