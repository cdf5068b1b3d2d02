"""The Pareto figure: taste kept against flattery, for every amount of shrinkage, on real tastes of electricity contracts.

    python -m scripts.experiments.guardrails_pareto [--data electricity] [--output docs/results/guardrails_pareto.json]

Everybody's tastes are their posteriors over the six attributes of the contracts (289 people, in the canonical gauge). One axis is
planted: each contract is offered plainly and in words that flatter whoever asks and agree with the wrong stance which they came
with (A = 1), and people's liking of that is N(m, 1) in deviations between people. Flattering versions read a little warmer, and
warmth goes along with one real taste, so that a lock of the planted axis alone does not catch everything. Policies are the
optima π ∝ π_ref exp(w·φ/β) over the 70 answers, enumerated: π_ref is uniform, β = 1.

ρ is the share of shrinkage towards the mean: w_ρ = (1 − ρ) w + ρ μ. Intervals are the bootstrap's over people, 95 %.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import rewards
from rewards.basis import projection
from rewards.basis.belief import Belief
from rewards.basis.rails import stated
from rewards.files import JSONObject
from rlhf.objectives.rails import exact_penalty

SCHEMES = ("no rail", "projection", "λ*")
SHARES = tuple(np.linspace(0.0, 1.0, 11))
WARMER = 0.5
"""By how much a flattering version is higher on the first real taste, in its deviations."""


class World(NamedTuple):
    """phi: [G, K], the planted axis last; flatters: bool[G]; people: [U, K]; prior: of them."""

    phi: np.ndarray
    flatters: np.ndarray
    people: np.ndarray
    prior: Belief


def world(features: np.ndarray, tastes: np.ndarray, mean: float, seed: int) -> World:
    """Contracts [C, K−1] and people's tastes [U, K−1], with the planted axis."""
    rng = np.random.default_rng(seed)
    plain = np.column_stack([features, np.zeros(len(features))])
    warm = plain.copy()
    warm[:, 0] += WARMER * features[:, 0].std()
    warm[:, -1] = 1.0
    people = np.column_stack([tastes, mean + rng.normal(size=len(tastes))])
    cov = np.cov(people.T) + 1e-6 * np.eye(people.shape[1])
    prior = Belief.from_cov(people.mean(axis=0).astype(np.float32), cov.astype(np.float32))
    return World(np.concatenate([plain, warm]), np.repeat([False, True], len(features)), people, prior)


def policy(at: World, people: np.ndarray, price: np.ndarray | float = 0.0) -> np.ndarray:
    """π[U, G] ∝ exp(w·φ − λ A)."""
    logits = people @ at.phi.T - price * at.flatters
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def served(at: World, scheme: str, share: float) -> np.ndarray:
    """π[U, G] of everybody under one scheme with this much shrinkage."""
    mean = np.asarray(at.prior.mean, np.float64)
    people = at.people + share * (mean - at.people)
    if scheme == "projection":
        delta = at.phi[at.flatters].mean(axis=0) - at.phi[~at.flatters].mean(axis=0)
        half = {"name": "flattery", "direction": delta.tolist(), "limit": 0.0}
        names = tuple(f"axis {k}" for k in range(len(mean)))
        limits = projection.limits(
            stated({"half_spaces": [half]}, names, "", "the experiment"), at.prior, 1.0
        )
        return policy(at, np.asarray(projection.project(limits, people.astype(np.float32)), np.float64))
    if scheme == "λ*":
        reward = jnp.asarray(people @ at.phi.T, jnp.float32)
        price = np.asarray(exact_penalty(reward, jnp.broadcast_to(at.flatters, reward.shape), 1.0))
        return policy(at, people, price[:, None])
    return policy(at, people)


def front(at: World, draws: int = 200, seed: int = 0) -> JSONObject:
    """By scheme, for every ρ: flattery and taste kept, each with an interval over people."""
    pick = np.random.default_rng(seed).integers(0, len(at.people), (draws, len(at.people)))
    tastes = at.people[:, :-1] @ at.phi[:, :-1].T

    def of(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E[A] and taste of each person."""
        return shares @ at.flatters, np.sum(shares * tastes, axis=1)

    low, high = (of(served(at, "no rail", share))[1] for share in (1.0, 0.0))
    found: JSONObject = {}
    for scheme in SCHEMES:
        points = []
        for share in SHARES:
            flattery, taste = of(served(at, scheme, share))
            kept = ((taste - low)[pick].mean(axis=1)) / ((high - low)[pick].mean(axis=1))
            points.append(
                {
                    "rho": float(share),
                    "flattery": float(flattery.mean()),
                    "flattery_interval": np.quantile(flattery[pick].mean(axis=1), [0.025, 0.975]).tolist(),
                    "p95": float(np.quantile(flattery, 0.95)),
                    "kept": float((taste - low).mean() / (high - low).mean()),
                    "kept_interval": np.quantile(kept, [0.025, 0.975]).tolist(),
                }
            )
        found[scheme] = points
    return found


def draw(fronts: dict[str, JSONObject], path: Path) -> None:
    """One panel a mean flattery: flattery to the right, taste upwards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(fronts), figsize=(3.4 * len(fronts), 3.5), sharey=True, squeeze=False
    )
    for axes, (mean, found) in zip(panels[0], fronts.items(), strict=True):
        axes.axvline(0.5, color="gray", linestyle=":", linewidth=1)
        looks = (
            ("tab:red", "o-"),
            ("tab:blue", "o-"),
            ("tab:green", "s--"),
        )  # two of them may lie on each other
        for scheme, (colour, look) in zip(SCHEMES, looks, strict=True):
            points = found[scheme]
            x, y = (np.array([point[key] for point in points]) for key in ("flattery", "kept"))
            spread = [
                np.array([point[f"{key}_interval"] for point in points]).T for key in ("flattery", "kept")
            ]
            square = "s" in look
            axes.errorbar(
                x, y, xerr=np.abs(spread[0] - x), yerr=np.abs(spread[1] - y), fmt=look, color=colour, label=scheme,
                markersize=6 if square else 3.5, markerfacecolor="none" if square else colour, linewidth=1.3, elinewidth=0.7,
            )  # fmt: skip
        axes.set_title(f"mean liking of flattery {float(mean):+g} sd", fontsize=9)
        axes.set_xlabel("share of flattering answers")
        axes.text(0.5, 0.02, " π_ref", transform=axes.get_xaxis_transform(), color="gray", fontsize=8)
    panels[0][0].set_ylabel("taste kept (1: personal, no rail)")
    panels[0][0].legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.6, 0.5))
    figure.suptitle("Shrinkage ρ from 0 (top) to 1 (bottom); 289 people, bars: 95 %", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="electricity")
    parser.add_argument("--output", type=Path, default=Path("docs/results/guardrails_pareto.json"))
    given = parser.parse_args()
    fitted = rewards.fit(rewards.read(given.data).training, method="per_user")
    assert fitted.fit is not None, "just fitted"
    used = np.unique(fitted.fit.table.item_text, return_index=True)[1]
    tastes = np.stack([fitted.person(name).mean for name in fitted.people]).astype(np.float64)
    fronts = {
        str(mean): front(world(fitted.fit.phi[used].astype(np.float64), tastes, mean, 0))
        for mean in (0.0, 0.6)
    }
    found = {"people": len(tastes), "contracts": len(used), "means": fronts}
    given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(fronts, given.output.with_suffix(".png"))
    for mean, schemes in fronts.items():
        for scheme, points in schemes.items():
            print(mean, scheme, [(round(point["flattery"], 3), round(point["kept"], 2)) for point in points])


if __name__ == "__main__":
    main()
