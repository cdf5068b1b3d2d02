"""The pictures of docs/results/style.md: training curves, and everybody's reward from everybody's completions."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def curves(results: dict[str, Any]) -> Figure:
    """Reward, KL with its target, and the spread of every column, against the iteration."""
    record = results["curves"]
    figure = Figure(figsize=(11, 3.4), dpi=100, layout="constrained")
    reward, kl, spread = figure.subplots(1, 3)
    steps = record["step"]
    for axes, name in ((reward, "reward"), (kl, "kl_ref_nats")):
        values = np.array(record[f"train/{name}"], float)
        axes.plot(steps, values, color="C0", alpha=0.35)
        axes.plot(steps, smooth(values), color="C0")
    reward.axhline(0, color="0.6", lw=0.8)
    reward.set(title="Reward w·φ, nats", xlabel="iteration")
    kl.axhline(results["config"]["target_nats"], color="C3", ls="--", label="target")
    kl.legend(fontsize=8)
    kl.set(title="KL, nats a completion", xlabel="iteration")
    for name in results["names"]:
        spread.plot(steps, smooth(np.array(record[f"train/reward_sd/{name}"], float)), label=name)
    spread.legend(fontsize=8)
    spread.set(title="Spread of a column, sd", xlabel="iteration")
    return figure


def smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Centred running mean, over fewer values at both ends."""
    half = width // 2
    return np.array([np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def heat_map(people: list[str], table: np.ndarray) -> Figure:
    """Rows on one scale each: what matters is where in its row a person does best."""
    centred = table - table.mean(axis=1, keepdims=True)
    bound = np.abs(centred).max()
    figure = Figure(figsize=(7.2, 6.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(centred, cmap="RdBu", vmin=-bound, vmax=bound)
    axes.set_xticks(range(len(people)), people, rotation=90, fontsize=8)
    axes.set_yticks(range(len(people)), people, fontsize=8)
    axes.set(xlabel="for whom it was written", ylabel="whose taste judges")
    best = centred.argmax(axis=1)
    axes.plot(best, range(len(people)), "k.", markersize=5)
    figure.colorbar(image, ax=axes, label="reward above the row's mean, nats (dot: best of the row)")
    return figure
