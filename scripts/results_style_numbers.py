"""Figures of docs/results/style.md from what was measured on every completion; no model, so a page can be written again.

People stand in pairs: row 2i has coefficients w, row 2i+1 has −w (`people_of`).

Shapes: U people, H held-out prompts, n completions of a prompt, K columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf.report import figures as evaluate

BOOTSTRAP = 2000
EXTREME_SD = 2.0  # where the people of one taste alone stand


def people_of(names: Sequence[str], sd: np.ndarray, draws: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Labels and coefficients[U, K]: ±2 sd along each axis, then `draws` people of N(0, sd²), each with its negation."""
    axes = EXTREME_SD * np.diag(sd)
    drawn = np.random.default_rng(seed).normal(size=(draws, len(names))) * sd
    half = np.concatenate([axes, drawn])
    labels = [*names, *(f"drawn {number}" for number in range(1, draws + 1))]
    coef = np.stack([half, -half], axis=1).reshape(-1, len(names))
    return [f"{label} {sign}" for label in labels for sign in "+−"], coef


def matrix(coef: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """M[u, v] = mean of w_u·φ(y) over the completions for v, nats: coef[U, K], phi[U, H, n, K] → [U, U]."""
    return coef @ phi.mean(axis=(1, 2)).T


def own_is_best(table: np.ndarray) -> float:
    """Share of people u whose own completions are worth most to them, among those for all people."""
    return float(np.mean(table.argmax(axis=1) == np.arange(len(table))))


def flips(phi_plus: np.ndarray, phi_minus: np.ndarray, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By prompt: share of pairs (completion for w, completion for −w) of which w prefers the first, and share of ties.

    Pairs are all n × n of a prompt; a tie counts half. Chance is 0.5. phi [H, n, K], coef[K] → float64[H] twice.
    """
    plus, minus = phi_plus @ coef, phi_minus @ coef
    difference = plus[:, :, None] - minus[:, None, :]
    ties = np.abs(difference) < 1e-6
    share = np.where(ties, 0.5, difference > 0)
    return share.mean(axis=(1, 2)), ties.mean(axis=(1, 2))


def pair_flips(phi: np.ndarray, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`flips` of every pair of people, [U/2, H] twice; judged by other coefficients if `coef` is not the people's own."""
    found = [flips(phi[u], phi[u + 1], coef[u]) for u in range(0, len(phi), 2)]
    return np.stack([share for share, _ in found]), np.stack([ties for _, ties in found])


def shuffled(coef: np.ndarray) -> np.ndarray:
    """Everybody gets the coefficients of the next pair."""
    return np.roll(coef, -2, axis=0)


def interval(statistic: Callable[[np.ndarray], float], num_prompts: int, seed: int = 0) -> tuple[float, ...]:
    """Value and 95 % bootstrap interval over prompts of `statistic(index of prompts)`."""
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(num_prompts, size=num_prompts)) for _ in range(BOOTSTRAP)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(statistic(np.arange(num_prompts))), float(low), float(high)


def axis_shifts(phi: np.ndarray, num_axes: int) -> np.ndarray:
    """S[k, j]: half the distance in column j between the people of axis k, (φ_j for +2 sd − φ_j for −2 sd)/2."""
    mean = phi.mean(axis=(1, 2))
    return (mean[0 : 2 * num_axes : 2] - mean[1 : 2 * num_axes : 2]) / 2


def quality(arm: dict[str, Any]) -> dict[str, float]:
    """KL, perplexity, diversity and length of one person's completions.

    KL = mean over completions of Σ_t (log π − log π_ref), nats;  perplexity = exp(−Σ log π_ref / Σ tokens)
    """
    logprob, reference = np.array(arm["logprob"]), np.array(arm["ref_logprob"])
    return {
        "kl": float(np.mean(logprob - reference)),
        "perplexity": float(np.exp(-reference.sum() / np.sum(arm["tokens"]))),
        "distinct_1": arm["distinct"][0],
        "distinct_2": arm["distinct"][1],
        "distinct_3": arm["distinct"][2],
        "ended": float(np.mean(arm["finished"])),
        "tokens": float(np.mean(arm["tokens"])),
    }


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Everything the page says, from the stored measurements."""
    coef, names = np.array(results["coef"]), results["names"]
    arms = results["arms"]
    phi = np.array([arms[label]["phi"] for label in results["people"]])
    prompts, count = phi.shape[1], phi.shape[2]
    reference = np.array(arms["reference"]["phi"])
    table = matrix(coef, phi)
    share, ties = pair_flips(phi, coef)
    untrained = np.stack([flips(reference[:, :count], reference[:, count:], w)[0] for w in coef[::2]])
    other = pair_flips(phi, shuffled(coef))[0]
    people = {label: quality(arms[label]) for label in results["people"]}

    def over_prompts(values: np.ndarray) -> tuple[float, ...]:
        return interval(lambda index: values[..., index].mean(), prompts)

    return {
        "matrix": table,
        "pairwise": interval(lambda i: evaluate.dominance(matrix(coef, phi[:, i])), prompts),
        "own_is_best": interval(lambda i: own_is_best(matrix(coef, phi[:, i])), prompts),
        "flip": over_prompts(share),
        "flip_axes": over_prompts(share[: len(names)]),
        "flip_drawn": over_prompts(share[len(names) :]) if len(share) > len(names) else None,
        "flip_by_pair": [over_prompts(row) for row in share],
        "ties_by_pair": ties.mean(axis=1),
        "flip_untrained": over_prompts(untrained),
        "flip_shuffled": over_prompts(other),
        "shifts": axis_shifts(phi, len(names)),
        "people": people,
        "generic": quality(arms["generic"]),
        "reference": quality(arms["reference"]),
        "kl": float(np.mean([person["kl"] for person in people.values()])),
        "kl_worst": max(people, key=lambda label: people[label]["kl"]),
        "prompts": prompts,
        "completions": count,
    }
