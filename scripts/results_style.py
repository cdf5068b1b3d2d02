"""Make docs/results/style.md, .json and pictures: one policy, five tastes, people it never met on prompts it never saw.

    python scripts/results_style.py prepare --data PROMPTS --output runs/style
    chorus train grpo configs/style/grpo.yaml
    python scripts/results_style.py measure --run runs/style/grpo --data runs/style/held.jsonl --source "where from"
    python scripts/results_style.py write

`prepare` divides a file of prompts by the hash of each prompt: a fifth goes to held.jsonl, which training does not see.
`measure` samples for everybody on the held-out prompts and stores what was measured; `write` makes the page of it.
"""

import argparse
import datetime
import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pages
import results_style_numbers as numbers
import results_style_page as page

from rewards import jsonl
from rewards.basis.readout import Readout
from rewards.basis.store import RewardRun, load_reward_run
from rewards.errors import UserError
from rlhf.phi import encoder
from rlhf.phi.reward import PromptRows
from rlhf.policy import store as policy_store
from rlhf.policy.generation import Completion, Drawing, complete, logprobs_of
from rlhf.run.config.load import load
from rlhf.run.metrics import read_metrics
from rlhf.train.rl.config import GRPOConfig
from rlhf.train.rl.prompts import read_prompts

STORE = Path(__file__).parents[1] / "docs" / "results" / "style.json"
HELD_OUT = 5  # one prompt in so many
CURVES = ("reward", "kl_ref_nats", "kl_coef", "token_entropy_nats", "completion_tokens", "eos_share")
GENERIC, REFERENCE = "generic", "reference"


def held_out(prompt: Any) -> bool:
    """Whether a prompt is kept from training: a function of its text alone, so that it holds across files."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_OUT == 0


def prepare(args: argparse.Namespace) -> None:
    """Write train.jsonl and held.jsonl: the single-turn prompts of a file, each once."""
    prompts = dict.fromkeys(prompt for prompt in read_prompts(args.data).prompts if isinstance(prompt, str))
    parts: dict[str, list[str]] = {"train": [], "held": []}
    for prompt in prompts:
        parts["held" if held_out(prompt) else "train"].append(prompt)
    for name, chosen in parts.items():
        if not chosen:
            raise UserError(f"{args.data}: no prompt falls into {name}.jsonl; give a file of more prompts")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, chosen in parts.items():
        jsonl.write(args.output / f"{name}.jsonl", ({"prompt": prompt} for prompt in chosen))
        print(f"{args.output / name}.jsonl: {len(chosen)} prompts")


def test_prompts(path: str, config: GRPOConfig, policy: policy_store.Policy, count: int) -> PromptRows:
    """The first `count` prompts that are as short as those of training.

    Raises:
      UserError: one of them was trained on, or there are too few.
    """
    rows = read_prompts(path)
    trained = set(read_prompts(config.data.path, config.data.split).prompts)
    for number, prompt in zip(rows.row, rows.prompts, strict=True):
        if prompt in trained:
            raise UserError(
                f"{path} row {number}: this prompt is in {config.data.path}, which the run was trained on; "
                "give the held.jsonl of the same `prepare`"
            )
    lengths = [len(policy.base.tokenizer.encode_prompt(prompt)) for prompt in rows.prompts]
    fits = [i for i, length in enumerate(lengths) if length <= config.rollout.max_prompt_tokens]
    if len(fits) < count:
        raise UserError(f"{path}: {len(fits)} prompts are short enough; --prompts must be at most that")
    return rows.take(np.array(fits[:count]))


def sample(
    policy: policy_store.Policy,
    rows: PromptRows,
    z: np.ndarray | None,
    count: int,
    config: GRPOConfig,
    seed: int,
) -> list[Completion]:
    """`count` completions of every prompt for everybody, in the order person, prompt, completion; z[U, K]."""
    prompts = [prompt for prompt in rows.prompts for _ in range(count)]
    people = 1 if z is None else len(z)
    return complete(
        policy,
        prompts * people,
        None if z is None else np.repeat(z, len(prompts), axis=0),
        Drawing(config.rollout.max_new_tokens, batch=64),
        seed=seed,
    )


def arms_of(
    labels: Sequence[str],
    completions: Sequence[Completion],
    rows: PromptRows,
    count: int,
    rewards: RewardRun,
    reference: policy_store.Policy,
) -> dict[str, dict[str, Any]]:
    """What is stored of everybody's completions: φ[H, n, K], log-probs, lengths, diversity."""
    texts = [completion.text for completion in completions]
    index = np.tile(np.repeat(np.arange(len(rows.prompts)), count), len(labels))
    items = rows.take(index).with_texts(texts)
    phi = Readout.of(rewards.basis).features(encoder.embed_items(items, rewards.basis.encoder))
    scores = logprobs_of(reference, [rows.prompts[i] for i in index], completions)
    size, arms = len(rows.prompts) * count, {}
    for number, label in enumerate(labels):
        part = slice(number * size, (number + 1) * size)
        own = completions[part]
        arms[label] = {
            "phi": np.round(phi[part].reshape(len(rows.prompts), count, -1), 4).tolist(),
            "logprob": [round(float(completion.logprob), 3) for completion in own],
            "ref_logprob": np.round(scores[part], 3).tolist(),
            "tokens": [completion.num_tokens for completion in own],
            "finished": [int(completion.finished) for completion in own],
            "distinct": [round(pages.distinct(texts[part], n), 4) for n in (1, 2, 3)],
        }
    return arms


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Sample for everybody on held-out prompts; the record that the page is written from."""
    config = load(args.run / "config.yaml", [], GRPOConfig)
    if not all(0 <= number < args.prompts for number in args.show):
        raise UserError(
            f"--show {args.show}: must be numbers from 0 to {args.prompts - 1} (--prompts {args.prompts})"
        )
    policy = policy_store.load_policy(args.run)
    rewards = load_reward_run(policy.record["rewards"])
    if rewards.hash != policy.record["basis"] or np.any(rewards.prior.mean):
        raise UserError(
            f"{args.run}: needs its own rewards and a population whose mean is 0, or −w would be nobody of it"
        )
    names, sd = list(rewards.basis.gauge.names), rewards.prior.sd
    people, coef = numbers.people_of(names, sd, args.draws, args.seed)
    rows = test_prompts(args.data, config, policy, args.prompts)
    reference = policy_store.without_adapters(policy.record["base"])
    z = policy_store.coefficients_to_z(policy, np.concatenate([coef, np.zeros((1, len(names)))]))
    spoken = sample(policy, rows, z, args.samples, config, args.seed)
    arms = arms_of([*people, GENERIC], spoken, rows, args.samples, rewards, reference)
    plain = sample(reference, rows, None, 2 * args.samples, config, args.seed + 1)
    arms |= arms_of([REFERENCE], plain, rows, 2 * args.samples, rewards, reference)
    first = [
        c.text
        for start in range(0, len(plain), 2 * args.samples)
        for c in plain[start : start + args.samples]
    ]
    # As many texts as everybody else: distinct-n falls with their number.
    arms[REFERENCE]["distinct"] = [round(pages.distinct(first, n), 4) for n in (1, 2, 3)]
    return {
        "made": str(datetime.date.today()),
        "versions": f"jax {version('jax')}, flax {version('flax')}, Python {platform.python_version()}",
        "machine": "2 CPU cores",
        "source": args.source,
        "config": settings_of(config, policy),
        "names": names,
        "column_sd": (1.0 / np.diag(rewards.basis.gauge.whitening)).tolist(),
        "column_mean": np.asarray(rewards.basis.gauge.mean).tolist(),
        "people": people,
        "coef": coef.tolist(),
        "curves": curves_of(args.run, names),
        "arms": arms,
        "shown": shown(args.show, rows, people, names, spoken, plain, args.samples),
    }


def settings_of(config: GRPOConfig, policy: policy_store.Policy) -> dict[str, Any]:
    """What the page says about the run."""
    assert policy.gate is not None
    return {
        "model": config.model.name,
        "seed": config.seed,
        "steps": config.train.steps,
        "rows": config.rows,
        "max_new_tokens": config.rollout.max_new_tokens,
        "max_prompt_tokens": config.rollout.max_prompt_tokens,
        "learning_rate": config.optimizer.learning_rate,
        "beta_start": config.kl.coef,
        "beta_end": policy.gate.beta,
        "controller": config.kl.controller,
        "target_nats": config.kl.target_nats,
    }


def curves_of(run: Path, names: Sequence[str]) -> dict[str, list[float | None]]:
    """Training curves: a list an entry of metrics.jsonl, and the seconds of all iterations."""
    rows = read_metrics(run)
    wanted = [f"train/{name}" for name in CURVES] + [f"train/reward_sd/{name}" for name in names]
    found = {name: [row.get(name) for row in rows] for name in ["step", *wanted, "perf/step_seconds"]}
    return {
        name: [value if value is None else round(value, 4) for value in values]
        for name, values in found.items()
    }


def shown(
    which: Sequence[int],
    rows: PromptRows,
    people: Sequence[str],
    names: Sequence[str],
    spoken: Sequence[Completion],
    plain: Sequence[Completion],
    count: int,
) -> list[dict[str, Any]]:
    """The first completion of a few prompts for the people of one taste alone, the generic one and π_ref."""
    labels, size = [*people, GENERIC], len(rows.prompts) * count
    chosen = [*people[: 2 * len(names)], GENERIC]
    examples = []
    for prompt in which:
        texts = {label: spoken[labels.index(label) * size + prompt * count].text for label in chosen}
        texts[REFERENCE] = plain[prompt * 2 * count].text
        examples.append({"prompt": rows.prompts[prompt], "completions": texts})
    return examples


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = made.add_subparsers(dest="part", required=True)
    part = parts.add_parser("prepare", help="divide a file of prompts")
    part.add_argument("--data", required=True, help="any file of prompts that chorus reads")
    part.add_argument("--output", type=Path, default=Path("runs/style"))
    part = parts.add_parser("measure", help="sample, measure, store, write")
    part.add_argument("--run", type=Path, default=Path("runs/style/grpo"))
    part.add_argument("--data", default="runs/style/held.jsonl", help="prompts that were not trained on")
    part.add_argument(
        "--source", required=True, help="where the prompts come from and their licence, for the page"
    )
    part.add_argument("--prompts", type=int, default=40)
    part.add_argument("--samples", type=int, default=2, help="completions of a prompt for everybody")
    part.add_argument(
        "--draws", type=int, default=4, help="people of the population besides those of one taste"
    )
    part.add_argument(
        "--show", type=int, nargs="+", default=[0, 1, 2], help="held-out prompts quoted on the page"
    )
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--store", type=Path, default=STORE)
    part = parts.add_parser("write", help="page and pictures from the stored numbers")
    part.add_argument("--store", type=Path, default=STORE)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.part == "prepare":
        return prepare(args)
    if args.part == "measure":
        pages.write_numbers(args.store, measure(args), raw=("arms",))
    page.write(pages.read_numbers(args.store), args.store)


if __name__ == "__main__":
    main()
