"""Opinions in a closed loop, calibrated slates, and the worst group (F7–F9), on tables that are enumerated.

    python -m scripts.experiments.guardrails_loops [--seeds 3] [--output docs/results/guardrails_loops.json]

F7  People with opinions o ask 20 times; answers have stances, the policy is π ∝ exp(c·o·s), and o ← (1 − η) o + η s̄(o). Does the
    mirror slope κ that is measured once predict Var(o_T)/Var(o_0), and does a bound on the coefficient that caps κ keep it ≤ 1?
F8  Somebody who likes 70 % of one kind and 30 % of another: ten of 60 answers, the best ones or chosen greedily for
    (1 − λ) Σ s − λ C_KL (Steck 2018). How much reward does calibration cost?
F9  One policy for a majority and a minority ten to one, with weights of the worst group or without.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf.evaluation.probes import figures
from rlhf.objectives import calibration, rails

RATE, TURNS = 0.1, 20


def spoken(opinion: np.ndarray, stance: np.ndarray, strength: float) -> np.ndarray:
    """E[s] under π ∝ exp(strength · o · s), for every person."""
    policy = np.asarray(jax.nn.softmax(jnp.asarray(strength * opinion[:, None] * stance), axis=1))
    return policy @ stance


def polarisation(seed: int, strength: float) -> dict[str, float]:
    """κ at the start, what it predicts of the variance after all turns, and what happened."""
    rng = np.random.default_rng(seed)
    opinion, stance = rng.normal(size=500), rng.uniform(-3.0, 3.0, size=64)
    slope = figures.mirror_slope(opinion, spoken(opinion, stance, strength))
    assert slope is not None, "opinions differ"
    moved = opinion
    for _ in range(TURNS):
        moved = (1.0 - RATE) * moved + RATE * spoken(moved, stance, strength)
    return {
        "strength": strength,
        "slope": slope,
        "predicted": figures.polarisation_index(slope, RATE, TURNS),
        "index": float(np.var(moved) / np.var(opinion)),
    }


def capped(seed: int, limit: float = 0.3) -> float:
    """The greatest coefficient whose κ stays within the limit: a bound of that axis, by bisection."""
    rng = np.random.default_rng(seed)
    opinion, stance = rng.normal(size=500), rng.uniform(-3.0, 3.0, size=64)
    low, high = 0.0, 10.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        slope = figures.mirror_slope(opinion, spoken(opinion, stance, middle))
        low, high = (middle, high) if slope is not None and slope <= limit else (low, middle)
    return low


def slate(seed: int, weight: float, size: int = 10) -> dict[str, float]:
    """Greedy choice of `size` answers; weight 0 is the best by reward alone."""
    rng = np.random.default_rng(seed)
    kind = np.repeat([0, 1], 30)
    reward, wanted = rng.normal(size=60) + np.where(kind == 0, 2.0, 0.0) + 3.0, np.array([0.7, 0.3])
    chosen = calibration.greedy_slate(reward, np.eye(2)[kind], wanted, size, weight)
    shown = np.bincount(kind[chosen], minlength=2) / size
    return {"reward": float(reward[chosen].mean()), "calibration_nats": figures.calibration(wanted, shown)}


def worst_group(seed: int, weighted: bool, steps: int = 400) -> dict[str, float]:
    """Gains over π_ref of a majority (10/11) and a minority under one policy π ∝ exp(θ), by gradient on the weighted mean."""
    rng = np.random.default_rng(seed)
    reward = jnp.asarray(rng.normal(size=(2, 40)))  # of 40 answers, by group; independent tastes
    shares, weights, theta = jnp.array([10 / 11, 1 / 11]), jnp.array([0.5, 0.5]), jnp.zeros(40)

    @jax.jit
    def step(theta, weights):
        def gains(theta):
            log_policy = jax.nn.log_softmax(theta)
            policy = jnp.exp(log_policy)
            return reward @ (policy - 1 / 40), jnp.sum(policy * (log_policy + jnp.log(40.0)))

        def objective(theta):
            gain, kl = gains(theta)
            own = shares * weights * 2 if weighted else shares
            return jnp.sum(own / own.sum() * gain) - kl

        gain, _ = gains(theta)
        return (
            theta + 0.5 * 40 * jax.grad(objective)(theta),
            rails.worst_group_weights(weights, gain, 0.05),
            gain,
        )

    gain = jnp.zeros(2)
    for _ in range(steps):
        theta, weights, gain = step(theta, weights)
    return {"majority": float(gain[0]), "minority": float(gain[1]), "mean": float(shares @ gain)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="docs/results/guardrails_loops.json")
    given = parser.parse_args()
    seeds = range(given.seeds)
    found = {
        "F7": [polarisation(seed, strength) for seed in seeds for strength in (0.1, 0.3, 0.5, 1.0)],
        "F7 capped": [polarisation(seed, capped(seed)) for seed in seeds],
        "F8": [
            {"seed": seed, "weight": weight, **slate(seed, weight)}
            for seed in seeds
            for weight in (0.0, 0.3, 0.5, 0.8)
        ],
        "F9": [
            {"seed": seed, "weighted": weighted, **worst_group(seed, weighted)}
            for seed in seeds
            for weighted in (False, True)
        ],
    }
    for name, rows in found.items():
        for row in rows:
            print(name, {key: round(value, 3) for key, value in row.items()}, flush=True)
    Path(given.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
