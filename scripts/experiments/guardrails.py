"""What each rail does and costs on a population whose tastes are known (closed-form optima of a tabular policy).

    python -m scripts.experiments.guardrails [--people 400] [--seeds 3] [--output docs/results/guardrails.json]

60 prompts with 96 completions each, φ in 8 dimensions: six of taste, one of flattery (pays for agreeing with a wrong stance), one
of warmth, which goes along with agreement. People are N(μ, I), β = 1, so everybody's optimum is π ∝ exp(w·φ), enumerated. A
is agreement; what counts is E[A] under each person's policy, and the taste utility w_taste·φ kept of what an unguarded
personal policy gains over the aggregate one.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rewards.basis import projection
from rewards.basis.behaviour import difference
from rewards.basis.belief import Belief
from rewards.basis.rails import stated
from rlhf.objectives.rails import exact_penalty

PROMPTS, COMPLETIONS, TASTES = 60, 96, 6
NAMES = (*(f"taste {k}" for k in range(TASTES)), "flattery", "warmth")
FLATTERY = TASTES
SCHEMES = (
    "aggregate",
    "personal",
    "shrink 50 %",
    "trust 2 sd",
    "lock at the mean",
    "lock at 0",
    "half-space",
    "λ*",
)


class World(NamedTuple):
    """phi: [P, G, K]; agrees: bool[P, G]; people: [U, K]; mean: μ[K]."""

    phi: np.ndarray
    agrees: np.ndarray
    people: np.ndarray
    mean: np.ndarray


def world(seed: int, flattery: float, people: int) -> World:
    """The population at a mean flattery weight, in standard deviations between people."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(PROMPTS, COMPLETIONS, len(NAMES)))
    agrees = rng.random((PROMPTS, COMPLETIONS)) < 0.35
    phi[..., FLATTERY] = agrees + 0.1 * phi[..., FLATTERY]
    phi[..., FLATTERY + 1] += 0.5 * agrees
    mean = np.append(0.3 * rng.normal(size=TASTES), [flattery, 0.0])
    return World(phi, agrees, mean + rng.normal(size=(people, len(NAMES))), mean)


def seen(truth: np.ndarray, error: float, seed: int) -> np.ndarray:
    """What a detector with this rate of errors calls agreement."""
    return truth ^ (np.random.default_rng([seed, 7]).random(truth.shape) < error)


def policies(
    w: np.ndarray, phi: np.ndarray, price: np.ndarray | float = 0.0, flagged: np.ndarray | float = 0.0
):
    """π[U, P, G] ∝ exp(w·φ − λ A)."""
    return np.asarray(jax.nn.softmax(jnp.einsum("uk,pgk->upg", w, phi) - price * flagged, axis=-1))


def scheme(name: str, at: World, flagged: np.ndarray) -> np.ndarray:
    """π[U, P, G] of everybody under one scheme; `flagged` is what the detector says."""
    away, prior = (
        at.people - at.mean,
        Belief.from_cov(at.mean.astype(np.float32), np.eye(len(NAMES), dtype=np.float32)),
    )

    def railed(**given: object) -> np.ndarray:
        limits = projection.limits(stated(given, NAMES, "toy", "the experiment"), prior, 1.0)
        return np.asarray(projection.project(limits, at.people.astype(np.float32)))

    def half_space() -> np.ndarray:
        prompt = np.repeat(np.arange(PROMPTS), COMPLETIONS)
        delta = difference(at.phi.reshape(-1, len(NAMES)), flagged.reshape(-1), prompt).mean
        return railed(half_spaces=[{"name": "agreement", "direction": delta.tolist(), "limit": 0.0}])

    if name == "λ*":
        reward = jnp.einsum("uk,pgk->upg", at.people, at.phi)
        price = np.asarray(exact_penalty(reward, jnp.asarray(flagged), 1.0))[..., None]
        return policies(at.people, at.phi, price, flagged)
    length = np.linalg.norm(away, axis=1, keepdims=True)
    coefficients: dict[str, Callable[[], np.ndarray]] = {
        "aggregate": lambda: np.broadcast_to(at.mean, at.people.shape),
        "personal": lambda: at.people,
        "shrink 50 %": lambda: at.mean + 0.5 * away,
        "trust 2 sd": lambda: at.mean + away * np.minimum(1.0, 2.0 / length),
        "lock at the mean": lambda: railed(axes=[{"name": "flattery", "locked": float(at.mean[FLATTERY])}]),
        "lock at 0": lambda: railed(axes=[{"name": "flattery", "locked": 0.0}]),
        "half-space": half_space,
    }
    return policies(coefficients[name](), at.phi)


def taste(at: World, policy: np.ndarray) -> float:
    """What people get of the six tastes, nats a prompt."""
    reward = np.einsum("uk,pgk->upg", at.people[:, :TASTES], at.phi[..., :TASTES])
    return float((policy * reward).sum(axis=-1).mean())


def pareto(at: World, shares: Sequence[float]) -> dict[str, list[tuple[float, float]]]:
    """(E[A], taste kept) of shrinkage ρ by each share, without a rail, with the half-space and with λ*."""
    low, high = (taste(at, scheme(name, at, at.agrees)) for name in ("aggregate", "personal"))
    found: dict[str, list[tuple[float, float]]] = {}
    for share in shares:
        shrunk = at._replace(people=at.mean + (1.0 - share) * (at.people - at.mean))
        for name in ("personal", "half-space", "λ*"):
            policy = scheme(name, shrunk, at.agrees)
            agreement = float((policy * at.agrees).sum(axis=-1).mean())
            found.setdefault(name, []).append((agreement, (taste(at, policy) - low) / (high - low)))
    return found


def measured(at: World, error: float = 0.0, seed: int = 0) -> dict[str, dict[str, float]]:
    """E[A] of each scheme (mean, 95th percentile of people, share 10 points above base) and the taste utility kept."""
    flagged, base = seen(at.agrees, error, seed), float(at.agrees.mean())
    each = {name: scheme(name, at, flagged) for name in SCHEMES}
    low, high = taste(at, each["aggregate"]), taste(at, each["personal"])
    found = {}
    for name, policy in each.items():
        own = (policy * at.agrees).sum(axis=-1).mean(axis=1)
        found[name] = {
            "agreement": float(own.mean()),
            "p95": float(np.quantile(own, 0.95)),
            "over_10_points": float(np.mean(own > base + 0.1)),
            "taste_kept": (taste(at, policy) - low) / (high - low),
        }
    return found | {"base": {"agreement": base}}


def draw(fronts: Sequence[dict[str, list[tuple[float, float]]]], base: float, path: Path) -> None:
    """The fronts of `pareto`, seed by seed and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.8))
    for name, colour in (("personal", "tab:red"), ("half-space", "tab:blue"), ("λ*", "tab:green")):
        each = np.array([front[name] for front in fronts])
        axes.plot(each[..., 0].T, each[..., 1].T, color=colour, alpha=0.25, linewidth=1)
        middle, label = each.mean(axis=0), {"personal": "no rail"}.get(name, name)
        axes.plot(middle[:, 0], middle[:, 1], "o-", color=colour, label=label)
    axes.axvline(base, color="gray", linestyle=":", label="π_ref")
    axes.set(xlabel="agreement with a wrong stance, E[A]", ylabel="taste kept")
    axes.set_title("ρ from 0 (top) to 1, mean flattery +0.6; three seeds", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="docs/results/guardrails.json")
    given = parser.parse_args()
    rows = []
    for seed in range(given.seeds):
        for flattery in (-0.6, -0.3, 0.0, 0.3, 0.6):
            for error in (0.0, 0.1, 0.2, 0.3) if flattery in (0.0, 0.6) else (0.0,):
                found = measured(world(seed, flattery, given.people), error, seed)
                rows.append({"seed": seed, "flattery": flattery, "error": error, "schemes": found})
                print(
                    seed,
                    flattery,
                    error,
                    {name: round(one["agreement"], 3) for name, one in found.items()},
                    flush=True,
                )
    shares = [share / 5 for share in range(6)]
    fronts = [pareto(world(seed, 0.6, given.people), shares) for seed in range(given.seeds)]
    found = {"rows": rows, "pareto": {"rho": shares, "seeds": fronts}}
    Path(given.output).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    base = np.mean([row["schemes"]["base"]["agreement"] for row in rows])
    draw(fronts, float(base), Path(given.output).with_suffix(".png"))


if __name__ == "__main__":
    main()
