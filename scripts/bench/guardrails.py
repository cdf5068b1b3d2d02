"""What rails and guardrails cost: a DPO step and a GRPO iteration with and without, side by side in one process.

    python -m scripts.bench.guardrails [--model smollm2-135m] [--rounds 5] [--output scripts/bench/results/guardrails.json]

K = 8 basis outputs, 32 half-spaces, all guardrails (a behaviour, a gate, truth, a floor, four kinds of people). Sides take turns
within each round, and CPU seconds of the process are counted, so that what else the machine does matters little; the ratio is
the median over rounds. Checks are numbers that are
there already: what a check itself costs is the check's.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rewards.basis.belief import Belief
from rewards.basis.rails import stated
from rlhf.models.adapters import AdapterSpec
from rlhf.objectives.advantages import GRPOAlgorithmConfig
from rlhf.objectives.kl_control import KLConfig
from rlhf.objectives.preference import PreferenceLossConfig
from rlhf.phi.columns.config import ColumnConfig
from rlhf.policy import store as policy_store
from rlhf.policy.batches import PairRows
from rlhf.policy.conditioning import Population, UserShares
from rlhf.policy.logprobs import all_logprobs, init_adapters, structure
from rlhf.policy.packing import Sequences, pack
from rlhf.policy.sampling import SamplingSettings, left_pad
from rlhf.run.record import traced
from rlhf.train import dpo_step as dpo
from rlhf.train import optim
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.guardrails.config import (
    BehaviourConfig,
    FloorConfig,
    GuardrailsConfig,
    TruthConfig,
    WorstConfig,
)
from rlhf.train.optim import OptimizerConfig
from rlhf.train.rl import update as updates
from rlhf.train.rl.rollout import Prompts
from rlhf.train.rl.settings import RLProgram, RLSettings, RolloutConfig

K, RAILS, ROWS, TOKENS, NEW, GROUP = 8, 32, 4, 32, 16, 4
DTYPE = "float32"


def guardrails() -> GuardrailsConfig:
    checks = [
        ColumnConfig(name=name, kind="function", function="bench.py:check") for name in ("agrees", "right")
    ]
    gate = ColumnConfig(name="safe", kind="function", function="bench.py:check", gate=0.5)
    return GuardrailsConfig(
        checks=(*checks, gate),
        behaviour=BehaviourConfig(check="agrees", penalty="both"),
        truth=TruthConfig(check="right"),
        floor=FloorConfig(),
        worst=WorstConfig(),
    )


def population(railed: bool) -> Population:
    rng = np.random.default_rng(0)
    prior = Belief.from_cov(np.full(K, 0.1, np.float32), np.eye(K, dtype=np.float32))
    people = [
        Belief.from_precision(rng.normal(size=K).astype(np.float32), 4 * np.eye(K, dtype=np.float32), 5)
        for _ in range(64)
    ]
    names = tuple(f"taste {k + 1}" for k in range(K))
    halves = [
        {"name": f"rail {number}", "direction": rng.normal(size=K).tolist(), "limit": 0.5}
        for number in range(RAILS)
    ]
    rails = stated({"half_spaces": halves}, names, "bench", "the benchmark") if railed else None
    return Population.from_posteriors(prior, people, 2.0, rails, 1.0)


class Model:
    def __init__(self, name: str):
        self.base = policy_store.load_base(name, adapter_layers=10, dtype=DTYPE)
        self.graphdef, params, shapes = policy_store.base_state(
            self.base, AdapterSpec(16, 32.0, K, 8), DTYPE, False
        )
        lora, conditioner = init_adapters(self.graphdef, shapes, jax.random.key(0))
        self.params = params._replace(lora=lora, conditioner=conditioner)

    def trained(self):
        return jax.tree.map(jnp.copy, {"lora": self.params.lora, "conditioner": self.params.conditioner})


def optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-5, schedule="constant")


def dpo_side(model: Model, railed: bool) -> Callable[[], None]:
    rng, people = np.random.default_rng(0), population(railed)
    tokens = rng.integers(100, 20_000, (ROWS, 3, TOKENS)).tolist()
    packed = pack([[Sequences(tuple(row[0]), tuple(map(tuple, row[1:])))] for row in tokens])
    item = np.arange(2 * ROWS, dtype=np.int32).reshape(ROWS, 2)
    ones = np.ones((ROWS, 1), np.float32)
    rows = PairRows(
        packed,
        item,
        np.tile(np.array([[[0, 1]]], np.int32), (ROWS, 1, 1)),
        ones,
        ones,
        np.zeros(ROWS, np.int32),
    )
    reference = all_logprobs(model.graphdef, model.params, packed, None)
    checks = rng.integers(0, 2, (ROWS, 2, 3)).astype(np.float32) if railed else None
    data = dpo.DPOBatch(rows, reference, rng.normal(size=(ROWS, 2, K)).astype(np.float32), None, checks)
    data = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[None], data))
    guard = guardrails() if railed else None
    settings = traced(
        dpo.DPOSettings(loss=PreferenceLossConfig(), guardrails=guard, optimizer=optimizer(), num_steps=100)
    )
    program = dpo.DPOProgram(model.graphdef, shares=UserShares(0.5, 0.3, 0.1, 0.1))
    state = optim.init_state(model.trained(), settings.optimizer, jax.random.key(0))
    held = [state if guard is None else state._replace(guard=GuardState.start(guard, people))]

    def step() -> None:
        held[0], metrics = dpo.step(held[0], data, model.params, people, settings, program=program)
        jax.block_until_ready(metrics)

    return step


def grpo_side(model: Model, railed: bool) -> Callable[[], None]:
    rng, people = np.random.default_rng(0), population(railed)
    guard = guardrails() if railed else None
    settings = traced(
        RLSettings(
            algorithm=GRPOAlgorithmConfig(),
            rollout=RolloutConfig(completions=GROUP, users_per_prompt=2, max_new_tokens=NEW),
            kl=KLConfig(coef=0.1),
            guardrails=guard,
            optimizer=optimizer(),
            num_steps=100,
        )
    )
    reference = structure(model.base.config, model.base.stages, None, DTYPE, False)[0]
    program = RLProgram(model.graphdef, reference, UserShares(0.5, 0.3, 0.1, 0.1))
    start = None if guard is None else GuardState.start(guard, people)
    held = [updates.init_state(model.trained(), settings, jax.random.key(0), guard=start)]
    prompts = rng.integers(100, 20_000, (2, TOKENS)).tolist()
    tokens, starts = left_pad([prompts[row // (2 * GROUP)] for row in range(4 * GROUP)])
    given, size = Prompts(jnp.asarray(tokens), jnp.asarray(starts)), 4 * GROUP
    rewards = jnp.asarray(rng.normal(size=(size, K)), jnp.float32)
    checks = jnp.asarray(rng.integers(0, 2, (size, 3)), jnp.float32) if railed else None
    frozen, stop = model.params, jnp.array([-1], jnp.int32)

    def step() -> None:
        shared = (given, people, frozen, SamplingSettings.of(size), stop, settings)
        rollout = updates.draw(held[0], *shared, program=program)
        held[0], metrics = updates.update(
            held[0], rollout, rewards, frozen, settings, program=program, people=people, checks=checks
        )
        jax.block_until_ready(metrics)

    return step


def timed(step: Callable[[], None]) -> float:
    began = time.process_time()  # of all threads: another process on the machine does not count
    step()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="scripts/bench/results/guardrails.json")
    given = parser.parse_args()
    model, found = Model(given.model), {}
    for name, side in (("dpo step", dpo_side), ("grpo iteration", grpo_side)):
        off, on = side(model, False), side(model, True)
        for step in (off, on):
            step()  # compiles
        pairs = []
        for number in range(given.rounds):
            order = (off, on) if number % 2 else (on, off)
            seconds = {step: timed(step) for step in order}
            pairs.append((seconds[off], seconds[on]))
            print(name, number, *(round(s, 3) for s in pairs[-1]), flush=True)
        ratios = [on / off for off, on in pairs]
        found[name] = {
            "seconds_off": [off for off, _ in pairs],
            "seconds_on": [on for _, on in pairs],
            "ratio": float(np.median(ratios)),
            "least": min(ratios),
            "greatest": max(ratios),
        }
        print(name, {key: found[name][key] for key in ("ratio", "least", "greatest")}, flush=True)
    result = {"model": given.model, "basis_outputs": K, "rails": RAILS, "rounds": given.rounds, **found}
    Path(given.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
