"""Make docs/results/sentiment.{json,md,png}: the film-review benchmark, PPO over seeds, judged by models it never saw.

    python scripts/sentiment_data.py --zips DIR
    python scripts/results_sentiment.py reward
    python scripts/results_sentiment.py policy --seeds 3
    python scripts/results_sentiment.py write

`reward` fits configs/sentiment/rewards.yaml and sets its accuracy on sentences of no training pair beside scikit-learn's
logistic regression on the same embeddings. `policy` trains configs/sentiment/sft.yaml once and ppo.yaml once a seed,
samples held-out prompts before and after, and measures. A finished run is not trained again, a measured seed not
measured again; `--only` is one seed, and one process after another may do them. Each part adds to the JSON file; `write`
makes page and picture of it.
"""

import argparse
import datetime
import math
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pages
import results_sentiment_measure as measure
import results_sentiment_page as sentiment_page
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rewards.files import write_text
from rewards.types import Preferences
from rlhf.api.policies import plain_model
from rlhf.phi import fit as rewards_job
from rlhf.phi.config import RewardsConfig
from rlhf.policy import store as policy_store
from rlhf.run.config.load import load
from rlhf.run.metrics import read_metrics
from rlhf.train import sft
from rlhf.train.config import SFTConfig
from rlhf.train.rl import trainer as rl
from rlhf.train.rl.config import PPOConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "sentiment"
STORE = ROOT / "docs" / "results" / "sentiment.json"
CURVES = {
    "reward": "train/reward",
    "reward_sd": "train/reward_sd",
    "kl": "train/kl_ref_nats",
    "beta": "train/kl_coef",
    "entropy": "train/token_entropy_nats",
    "seconds": "perf/step_seconds",
}
SHOWN = 6
"""Prompts whose samples are kept for the page."""


# The reward


def reward_part(config: RewardsConfig) -> dict[str, Any]:
    """Fit, and accuracy on held-out pairs beside an independent fit on the same embeddings."""
    rewards_job.fit(config)
    prefs, training, held = rewards_job.divided(config)
    embeddings, _ = rewards_job.embedded(config, prefs)
    run, share = load_reward_run(config.output_dir), measure.share
    value, score = measure.utility(run, embeddings), independent(prefs, embeddings, training)
    margin, other = (own[prefs.chosen] - own[prefs.rejected] for own in (value, score))
    return {
        "pairs": {"training": int(training.sum()), "held_out": int(held.sum())},
        "accuracy": {"training": share(margin[training] > 0), "held_out": share(margin[held] > 0)},
        "accuracy_se": float(np.std(margin[held] > 0) / math.sqrt(held.sum())),
        "logistic_regression": {
            "held_out": share(other[held] > 0),
            "single": (share(score[prefs.chosen[held]] > 0) + share(score[prefs.rejected[held]] < 0)) / 2,
        },
        "agreement": share((other > 0)[held] == (margin > 0)[held]),
        "nats_a_sd": float(run.prior.mean[0]),
        "layer": config.encoder.layer,
    }


def independent(prefs: Preferences, embeddings: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Log-odds of "positive" of every item by scikit-learn, fitted on single sentences of the training pairs.

    It knows neither pairs nor our reduction to principal components.
    """
    good, bad = (embeddings[side[training]] for side in (prefs.chosen, prefs.rejected))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(np.concatenate([good, bad]), np.repeat([1, 0], [len(good), len(bad)]))
    return model.decision_function(embeddings)


# Training, before and after


def policy_part(results: dict[str, Any], args: argparse.Namespace) -> None:
    """Every seed that is missing.

    Raises:
      UserError: the seeds that are there were made with other settings.
    """
    judged, results["judges"] = measure.judges(args.data)
    prompts = [row["prompt"] for row in measure.read_rows(args.data / "held.jsonl")[: args.prompts]]
    for seed in range(args.seeds) if args.only is None else [args.only]:
        if str(seed) in results["policy"]:
            continue
        overrides = [f"seed={seed}", f"output_dir={args.runs}/ppo-{seed}", f"rewards={args.runs}/rewards"]
        overrides.append(f"model.name={args.runs}/sft")
        config = load(CONFIGS / "ppo.yaml", [*overrides, *args.set], PPOConfig)
        wanted = setting(config, args, len(prompts))
        if results["policy"] and results["setting"] != wanted:
            different = next(key for key in wanted if results["setting"].get(key) != wanted[key])
            raise UserError(
                f"{args.store}: its seeds were made with {different} {results['setting'].get(different)}, not "
                f"{wanted[different]}; use that, or another --store"
            )
        results["setting"], results["start"] = wanted, rounded(start(args.runs))
        results["policy"][str(seed)] = rounded(one_seed(config, seed, judged, prompts, args.samples))
        pages.write_numbers(args.store, results | made())
        jax.clear_caches()


def start(runs: Path) -> dict[str, float | None]:
    """The supervised start, the same for all seeds: its last loss, nats a token."""
    directory = runs / "sft"
    sft.run(load(CONFIGS / "sft.yaml", [f"output_dir={directory}"], SFTConfig))
    rows = [row for row in read_metrics(directory) if "train/loss/total" in row]
    return {"loss_first": rows[0]["train/loss/total"], "loss_last": rows[-1]["train/loss/total"]}


def one_seed(
    config: PPOConfig, seed: int, judged: dict[str, Pipeline], prompts: list[str], count: int
) -> dict[str, Any]:
    """Train; then sample and measure held-out prompts before and after, before with the same random numbers."""
    rl.run(config)
    assert config.rewards is not None
    run, reference = load_reward_run(config.rewards), plain_model(config.model.name).loaded
    policies = {"before": reference, "after": policy_store.load_policy(config.output_dir)}
    samples = {
        name: measure.sampled(policy, prompts, count, config.rollout, 1000 + seed)
        for name, policy in policies.items()
    }
    figures = {name: measure.measured(reference, run, judged, prompts, own) for name, own in samples.items()}
    shown = [
        {"prompt": prompts[i]} | {name: own[i * count].text for name, own in samples.items()}
        for i in range(min(SHOWN, len(prompts)))
    ]
    return figures | {"curve": curve(Path(config.output_dir)), "rows": config.rows, "samples": shown}


def curve(run_dir: Path) -> dict[str, list[float | None]]:
    """One number an iteration of everything in CURVES, from the run's metrics.jsonl."""
    rows = read_metrics(run_dir)
    steps = [row for row in rows if CURVES["reward"] in row]
    return {name: [row[metric] for row in steps] for name, metric in CURVES.items()}


def setting(config: PPOConfig, args: argparse.Namespace, prompts: int) -> dict[str, Any]:
    """What the page says about the runs."""
    return {
        "steps": config.train.steps,
        "rows": config.rows,
        "tokens": config.rollout.max_new_tokens,
        "target_nats": config.kl.target_nats,
        "beta": config.kl.coef,
        "horizon": config.kl.horizon,
        "gae_lambda": config.algorithm.gae_lambda,
        "learning_rate": config.optimizer.learning_rate,
        "held_prompts": prompts,
        "samples": args.samples,
        "overrides": list(args.set),
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


def made() -> dict[str, str]:
    names = ("jax", "flax", "scikit-learn")
    return {
        "made": str(datetime.date.today()),
        "versions": ", ".join(f"{name} {version(name)}" for name in names)
        + f", Python {platform.python_version()}",
        "machine": f"{os.cpu_count()} CPU cores",
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("reward", "policy", "write"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int, help="this seed alone")
    parser.add_argument("--runs", type=Path, default=Path("runs/sentiment"))
    parser.add_argument("--data", type=Path, default=Path("runs/sentiment/data"))
    parser.add_argument(
        "--store", type=Path, default=STORE, help="the JSON file; page and picture lie beside it"
    )
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts, the first so many")
    parser.add_argument("--samples", type=int, default=2, help="completions of each, before and after")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of ppo.yaml")
    args = parser.parse_args(words)
    try:
        results = pages.read_numbers(args.store) if args.store.is_file() else {"policy": {}}
        if args.part == "reward":
            config = load(CONFIGS / "rewards.yaml", [f"output_dir={args.runs}/rewards"], RewardsConfig)
            results["reward"] = rounded(reward_part(config))
            pages.write_numbers(args.store, results | made())
        if args.part == "policy":
            policy_part(results, args)
        results = pages.read_numbers(args.store)
        if results["policy"]:
            sentiment_page.plot(results, args.store.with_suffix(".png"))
        write_text(args.store.with_suffix(".md"), sentiment_page.page(results))
    except UserError as error:
        print(f"results_sentiment: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
