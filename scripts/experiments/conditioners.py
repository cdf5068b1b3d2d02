"""Which conditioner serves people best, and at what price?

    python -m scripts.experiments.conditioners probe [--seeds 5]
    python -m scripts.experiments.conditioners electricity --sft RUN --rewards RUN --runs DIR [--steps 40]
    python -m scripts.experiments.conditioners style --runs DIR [--steps 12]

probe: a random two-layer model, two prompts of six answers, two basis outputs. Training sees two opposite people,
draws from the prior, and its mean; what counts is the distance of people never seen to the optimum π_ref·exp(w·φ/β). The
learning rate of each kind is the best of four on seed 0, which is not one of the seeds reported. About an hour on
two cores.

electricity: SmolLM2-135M on the 35 contracts with the settings of configs/electricity/dpo.yaml, shortened, then
`chorus evaluate` on the 72 held-out people.

style: SmolLM2-135M with configs/style/grpo.yaml, shortened: open-ended answers to real prompts, five tastes. No prompt comes
twice and people are drawn anew, so the reward of an iteration is that of people and prompts never seen.

`conditioner_runs` has the last two. A finished run is taken as it is, so a command can be repeated. Each part writes its
share of OUT.json and then OUT.md.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rewards import files
from rewards.basis.belief import Belief
from rlhf.models.adapters import AdapterSpec, Words
from rlhf.policy.batches import PairRows, microbatches
from rlhf.policy.conditioning import Gate, Population, UserShares, UsersMixConfig
from rlhf.policy.logprobs import all_logprobs, init_adapters
from rlhf.policy.packing import Sequences, pack
from rlhf.report import figures as evaluate
from rlhf.train import dpo_step as dpo
from rlhf.train import optim
from scripts import pages
from scripts.experiments.conditioner_runs import STYLE, cost_of, run_electricity, run_style
from tests.rlhf import tiny
from tests.rlhf.train import steps

BETA, STEPS, BATCH, NUM_PROMPTS, TIMED = 0.5, 300, 8, 2, 25
RATES = (0.003, 0.01, 0.03, 0.1)
ANSWERS = ((8, 9, 2), (8, 10, 2), (8, 2), (11, 12, 2), (11, 2), (13, 2))
LORA = {"lora_rank": 4, "lora_alpha": 4.0, "num_basis": 2}
WORDS = Words(tuple(tuple((20 + 6 * k + i,) if i != 3 else () for i in range(7)) for k in range(2)), (1,))
LOW_RANK = AdapterSpec(**LORA, basis_rank=4)
# name: adapters, and whether training draws people at axis extremes only, so that no two axes are learned together
ARMS = {
    "low_rank, r = 4": (LOW_RANK, False),
    "low_rank, r = 1": (AdapterSpec(**LORA, basis_rank=1), False),
    "film": (AdapterSpec(**LORA, kind="film"), False),
    "film without shift": (AdapterSpec(**LORA, kind="film", shift=False), False),
    "prefix, 8 slots": (AdapterSpec(**LORA, kind="prefix", slots=8), False),
    "logit_heads, r = 4": (AdapterSpec(**LORA, kind="logit_heads", basis_rank=4), False),
    "logit_heads, one axis at a time": (AdapterSpec(**LORA, kind="logit_heads", basis_rank=4), True),
    "text": (AdapterSpec(**LORA, kind="text", words=WORDS), False),
    "nobody addressed": (AdapterSpec(lora_rank=4, lora_alpha=4.0), False),
}
MIX = UsersMixConfig(posterior=0.4, prior=0.3, extremes=0.1, generic=0.2)
ONE = UsersMixConfig(posterior=0.0, prior=0.0, extremes=0.9, generic=0.1)  # for an arm with one direction


class Task(NamedTuple):
    """phi: [P, 6, 2] of the answers of both prompts; people: [U, 2] who are never trained on."""

    rows: PairRows
    phi: np.ndarray
    population: Population
    people: np.ndarray


def make_task(seed: int) -> Task:
    rng = np.random.default_rng([seed, 11])
    packed = pack([[Sequences((1, 5 + prompt, 6), ANSWERS)] for prompt in range(NUM_PROMPTS)])
    count = len(ANSWERS)
    pairs = np.tile(np.array(list(itertools.combinations(range(count), 2)), np.int32), (NUM_PROMPTS, 1, 1))
    ones = np.ones(pairs.shape[:2], np.float32)
    item = np.arange(NUM_PROMPTS * count, dtype=np.int32).reshape(NUM_PROMPTS, count)
    rows = PairRows(packed, item, pairs, ones, ones, np.full(NUM_PROMPTS, -1, np.int32))
    phi = rng.normal(size=(NUM_PROMPTS, count, 2)).astype(np.float32)
    phi -= phi.mean(axis=1, keepdims=True)
    prior = Belief.from_cov(np.array([0.3, 0.0], np.float32), np.diag([0.8, 0.5]).astype(np.float32))
    opposite = [
        Belief.from_precision(np.array([s, -s], np.float32), (25 * np.eye(2)).astype(np.float32), 9)
        for s in (1.0, -1.0)
    ]
    people = prior.mean + rng.normal(size=(32, 2)) @ np.sqrt(prior.cov)
    return Task(rows, phi, Population.from_posteriors(prior, opposite, 1.5), people.astype(np.float32))


def train(task: Task, spec: AdapterSpec, single: bool, rate: float, seed: int):
    """Train one arm; log-probs of every unseen person, [U, P, 6], the reference's [P, 6], loss, seconds a step."""
    base = tiny.make_base(tiny.make_config(num_hidden_layers=2), seed=seed)
    policy = tiny.make_policy(base, spec)
    lora, conditioner = init_adapters(policy.graphdef, policy.params, jax.random.key(seed))
    params = policy.params._replace(lora=lora, conditioner=conditioner)
    reference = all_logprobs(policy.graphdef, params, task.rows.packed, None)
    shares = UserShares.of(ONE if single else MIX)
    optimizer = {"learning_rate": rate, "schedule": "cosine", "weight_decay": 0.0}
    settings = steps.make_settings("soft", optimizer=optimizer, num_steps=STEPS, dpo_beta=BETA, nll_coef=0.1)
    program = dpo.DPOProgram(policy.graphdef, shares, with_nll=True)
    trained = {"lora": lora} | ({"conditioner": conditioner} if jax.tree.leaves(conditioner) else {})
    frozen = jax.tree.map(jnp.array, params)
    state = optim.init_state(trained, settings.optimizer, jax.random.key(seed + 1))
    batch = dpo.DPOBatch(
        *microbatches((task.rows, reference, task.phi, None), np.resize(np.arange(NUM_PROMPTS), BATCH), 1)
    )
    totals, times = [], []
    for step in range(STEPS):
        state, metrics = dpo.step(state, batch, frozen, task.population, settings, program=program)
        totals.append(metrics["train/loss/total"])
        if step % TIMED == TIMED - 1:
            jax.block_until_ready(state)
            times.append(time.perf_counter())
    seconds = float(np.min(np.diff(times))) / TIMED  # the fastest stretch; the first includes compilation
    params = params._replace(**state.params)
    z = np.asarray(Gate(task.population.conditioning, 1.0, 0.0)(task.people))
    logprobs = [
        all_logprobs(
            policy.graphdef, params, task.rows.packed.take(np.full(len(z), prompt)), None, z=z, chunk=len(z)
        )
        for prompt in range(NUM_PROMPTS)
    ]
    aggregate = all_logprobs(policy.graphdef, params, task.rows.packed, None)
    final = float(np.mean([float(value) for value in totals[-50:]]))
    return np.stack(logprobs, axis=1), aggregate, reference, final, seconds


def judge(task: Task, logprobs: np.ndarray, aggregate: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Means over the two prompts for the unseen people."""
    rows = []
    for prompt in range(NUM_PROMPTS):
        answers = evaluate.Enumerated(logprobs[:, prompt], aggregate[prompt], reference[prompt])
        rows.append(
            evaluate.summarise_enumerated(answers, task.phi[prompt], task.people, task.people, BETA)[0]
        )
    wanted = (
        "kl_to_optimum",
        "kl_to_optimum_worst_decile",
        "own_beats_aggregate",
        "diagonal_dominance",
        "kl_of_reference_to_optimum",
    )
    return {name: float(np.mean([row[name] for row in rows])) for name in wanted}


def run_probe(num_seeds: int) -> dict[str, Any]:
    """Every arm: the best learning rate by the unseen people's KL on seed 0, then seeds 1 … num_seeds."""
    config, tuning, out = tiny.make_config(num_hidden_layers=2), make_task(0), {}
    for name, (spec, single) in ARMS.items():
        tried = {}
        for rate in RATES:
            logprobs, aggregate, reference, _, _ = train(tuning, spec, single, rate, 0)
            tried[rate] = judge(tuning, logprobs, aggregate, reference)["kl_to_optimum"]
        rate, rows, seconds = min(tried, key=lambda rate: tried[rate]), [], []
        for seed in range(1, num_seeds + 1):
            task = make_task(seed)
            logprobs, aggregate, reference, _, step = train(task, spec, single, rate, seed)
            rows.append(judge(task, logprobs, aggregate, reference))
            seconds.append(step)
        cost = cost_of(spec, config, 2)
        out[name] = {
            "learning_rate": rate,
            "tried": {str(key): value for key, value in tried.items()},
            "parameters": cost.parameters,
            "flops_per_token": cost.per_token,
            "seconds_per_step": min(seconds),
            **{key: [row[key] for row in rows] for key in rows[0]},
        }
        print(name, rate, f"{np.mean(out[name]['kl_to_optimum']):.3f}", flush=True)
    return {"seeds": num_seeds, "steps": STEPS, "arms": out}


def table(arms: dict[str, Any], timed: bool) -> list[str]:
    """Rows of figures; steps of a tiny model last a millisecond and are not `timed`."""
    lines = [
        "| conditioner | KL to the optimum, nats | worst tenth | own > aggregate | dominance | parameters "
        "| FLOPs a token |" + (" seconds a step |" if timed else ""),
        "|---" * (7 + timed) + "|",
    ]
    for name, row in arms.items():
        cells = []
        for key in (
            "kl_to_optimum",
            "kl_to_optimum_worst_decile",
            "own_beats_aggregate",
            "diagonal_dominance",
        ):
            values = np.atleast_1d(row[key])
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        cells += [f"{row['parameters']:,}", f"{row['flops_per_token']:,}"]
        cells += [f"{row['seconds_per_step']:.1f}"] if timed else []
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def markdown(result: dict[str, Any]) -> str:
    lines = ["# Conditioners compared", "", "Made by `scripts/experiments/conditioners.py`.", ""]
    if "probe" in result:
        probe = result["probe"]
        first = next(iter(probe["arms"].values()))
        lines += [
            f"## Probe: two opposite people, {probe['seeds']} seeds",
            "",
            f"A random two-layer model, two prompts of six answers, {probe['steps']} steps of soft DPO; 32 people who were "
            "never trained on. Mean ± standard deviation over seeds. The untrained policy is "
            f"{np.mean(first['kl_of_reference_to_optimum']):.2f} nats from the optimum. Learning rate: best of "
            f"{', '.join(map(str, RATES))} on another seed, for each row by itself.",
            "",
            *table(probe["arms"], timed=False),
            "",
        ]
    if "electricity" in result:
        electricity = result["electricity"]
        first = next(iter(electricity["arms"].values()))
        lines += [
            "## Electricity: SmolLM2-135M, 35 contracts, 72 held-out people",
            "",
            f"{electricity['steps']} steps of `configs/electricity/dpo.yaml`, one seed, one learning rate for all; π_ref is "
            f"{first['kl_of_reference_to_optimum']:.2f} nats from the optimum. Seconds are the fastest logged step's, on a "
            "shared machine. Text carries LoRA in all 30 layers and recomputes them in the backward pass; the others have it "
            "in the top 10, over cached activations.",
            "",
            *table(electricity["arms"], timed=True),
            "",
        ]
    if "style" in result:
        lines += style_lines(result["style"])
    return "\n".join(lines)


def style_lines(style: dict[str, Any]) -> list[str]:
    lines = [
        "## Style: open-ended answers, five tastes, SmolLM2-135M",
        "",
        f"{style['steps']} iterations of `configs/style/grpo.yaml` with {style['rows']} completions each and β fixed at "
        f"{style['beta']:g}, seed 0, one learning rate for all. Reward w·φ of people drawn anew on prompts never seen; who is "
        f"not told apart gets 0 on average. Mean of the last {style['window']} iterations ± half of their 95 % interval "
        "(Student's t; one run each, so it covers people and prompts, not training). Seconds are the fastest iteration's. "
        f"Changed besides: {', '.join(f'`{word}`' for word in STYLE)}. Text carries LoRA in all 30 layers and recomputes them "
        "in the backward pass; the others have it in the top 10. Parameters are the conditioner's.",
        "",
        "| conditioner | reward, first | reward, last | KL to π_ref, nats | reward − β·KL | parameters | seconds |",
        "|---" * 7 + "|",
    ]
    for name, row in style["arms"].items():
        reward, kl = np.array(row["reward"]), np.array(row["kl"])
        last = slice(-style["window"], None)
        net = reward[last].mean() - style["beta"] * kl[last].mean()
        lines.append(
            f"| {name} | {reward[0]:+.2f} | {reward[last].mean():+.2f} ± {pages.half_width(reward[last]):.2f} | "
            f"{kl[last].mean():.2f} | {net:+.2f} | {row['parameters']:,} | {row['seconds']:.0f} |"
        )
    above = [
        name for name, row in style["arms"].items() if _surely_positive(row["reward"][-style["window"] :])
    ]
    lines += [
        "",
        f"Above 0 with the whole interval: {', '.join(above) or 'none'}. So few iterations show what moves first, not what ends "
        "best, and nothing here ranks them; low_rank after 45 iterations of 64 completions: [style.md](style.md).",
    ]
    return [*lines, ""]


def _surely_positive(values: list[float]) -> bool:
    return float(np.mean(values)) > pages.half_width(values)


def run_part(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    if args.part == "probe":
        return run_probe(args.seeds)
    if args.runs is None or (args.part == "electricity" and None in (args.sft, args.rewards)):
        parser.error(
            f"{args.part} needs --runs" + (", --sft and --rewards" if args.part == "electricity" else "")
        )
    if args.part == "style":
        return run_style(args.runs, args.steps or 12, args.only)
    return run_electricity(args.sft, args.rewards, args.runs, args.steps or 40, args.only)


def main() -> None:
    parser = pages.options(__doc__, "conditioners")
    parser.add_argument("part", nargs="?", choices=("probe", "electricity", "style"))
    parser.add_argument("--sft", help="SFT run that all start from")
    parser.add_argument("--rewards", help="reward run")
    parser.add_argument("--runs", type=Path, help="where the policies go")
    parser.add_argument("--steps", type=int, help="default: 40 of electricity, 12 of style")
    parser.add_argument("--only", nargs="*", default=[], help="kinds of conditioner; all without")
    args = parser.parse_args()
    if bool(args.part) == args.write:
        parser.error("give a part, or --write alone")
    part = {} if args.write else {args.part: run_part(parser, args)}
    path = Path(f"{args.out}.json")
    result = pages.read_numbers(path) if path.is_file() else {}
    result |= part
    if part:
        pages.write_numbers(path, result)
    files.write_text(Path(f"{args.out}.md"), markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
