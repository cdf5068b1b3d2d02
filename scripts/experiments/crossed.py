"""Crossed effects on real people who judged texts: known and new texts, people never seen, loss beside accuracy.

    python scripts/experiments/crossed.py --data DIR [--sets jester …] [--seeds 3]

Every set × division is stored in docs/results/crossed.json and never computed twice; the page is made from it.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rewards.comparison.compare import Protocol, Scores, score_model
from rewards.data.division import MAIN, divide
from rewards.files import write_text
from rewards.methods.crossed import CrossedFitted
from rlhf.phi import fit as job
from rlhf.phi.config import RewardsConfig
from rlhf.phi.methods import item_table, make_model
from rlhf.run.config.load import load

ROOT = Path(__file__).parents[2]
STORE, PAGE = (ROOT / "docs" / "results" / f"crossed.{suffix}" for suffix in ("json", "md"))
FILES = {
    "ukpconvarg1": "ukpconvarg1/pairs.jsonl.gz",
    "jester": "jester5k/pairs.jsonl.gz",
    "remesh": "remesh_opinions/pairs.jsonl.gz",
    "polis": "polis_english/pairs.jsonl.gz",
}
MODELS = ("aggregate", "crossed")
NONE, ASKED = 0, 10
RESAMPLES = 2000


def run(name: str, seed: int, data: Path) -> dict[str, Any]:
    """Aggregate and crossed model on one division; the crossed one also with every text taken for new."""
    overrides = [f"data.split_seed={seed}", f"seed={seed}", f"data.path={data / FILES[name]}"]
    config = load(ROOT / "configs" / name / "rewards.yaml", overrides, RewardsConfig)
    prefs, _, _ = job.divided(config)
    table = item_table(prefs, *job.embedded(config, prefs))
    settings = config.evaluation
    division = divide(
        prefs,
        held_out_people=config.data.held_out_people,
        held_out_prompts=settings.held_out_prompts,
        split_seed=seed,
        last=config.data.last_choices,
        distinct_texts=settings.distinct_texts,
    )
    protocol = Protocol.build(prefs, division, (NONE, ASKED), 3, seed)
    found: dict[str, Any] = {"people": len(protocol.people), "models": {}}
    training = prefs.select(division.training)
    aggregate = None
    for kind in MODELS:
        began = time.perf_counter()
        fitted = make_model(config, kind).fit(table, training)
        seconds = time.perf_counter() - began
        scores = score_model(fitted, table, protocol)
        aggregate = aggregate or scores
        found["models"][kind] = summary(scores, aggregate) | {"seconds": seconds}
        if isinstance(fitted, CrossedFitted):
            found["chosen"] = {
                key: fitted.report[key] for key in ("scale", "spread", "base_ridge", "base_variance")
            }
            written = score_model(fitted.as_written(), table, protocol)
            found["models"]["crossed, texts as new"] = summary(written, aggregate)
    return found


def summary(scores: Scores, aggregate: Scores) -> dict[str, Any]:
    """Means over people; what is compared with resampled people: with the aggregate model, and with no answers."""
    differences = {
        "gain": scores.accuracy[ASKED] - aggregate.accuracy[ASKED],
        "loss_saved": aggregate.loss[ASKED] - scores.loss[ASKED],
        "answers_save": scores.loss[NONE] - scores.loss[ASKED],
    }
    cells = {cell: float(np.nanmean(values)) for cell, values in scores.cells.items()}
    new = "unseen_unseen"
    if new in scores.cells:
        differences["gain_new"] = scores.cells[new] - aggregate.cells[new]
    return {
        "accuracy": {n: float(np.nanmean(scores.accuracy[n])) for n in (NONE, ASKED)},
        "loss": {n: float(np.nanmean(scores.loss[n])) for n in (NONE, ASKED)},
        "cells": cells,
    } | {name: interval(values) for name, values in differences.items()}


def interval(values: np.ndarray) -> list[float]:
    """Mean and 95 % interval over resampled people."""
    values = values[~np.isnan(values)]
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    return [float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5]))]


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Crossed effects on real people",
        "",
        "<!-- Made by scripts/experiments/crossed.py. -->",
        "",
        "    python scripts/experiments/crossed.py --data DIR",
        "",
        "Each line is one division: models are fitted on 80 % of the people and predict the last choices of the others after ten",
        "random answers, as in [the table of all models](people.md). *New*: prompts of which the fit saw no text (a dash where",
        "none are held out). *Texts as new*: judged texts without their own strength and loadings, which is all that a policy's",
        "own texts have. In brackets, the difference to the aggregate model with its 95 % interval over people. *Answers*: log",
        "loss that ten answers save over none, nats. c and s are the scale of tastes and the spread of sharpness that people",
        "left out gave; c = 0: no personal taste was found, and everybody gets the same ordering.",
        "",
    ]
    lines += ["## Where it falls short", "", *shortcomings(results), ""]
    for name, divisions in results.items():
        if not divisions:
            continue
        lines += [
            f"## {name}",
            "",
            "| division | model | known texts | log loss | new texts | answers | c, s |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for seed, found in divisions.items():
            for kind, model in found["models"].items():
                lines.append(row(seed, found, kind, model))
        lines.append("")
    return "\n".join(lines)


def shortcomings(results: dict[str, Any]) -> list[str]:
    """What the numbers do not show, one line each."""
    lines = []
    for name, divisions in results.items():
        own = [found["models"]["crossed"] for found in divisions.values()]
        if not own:
            continue
        new = [model["gain_new"][0] for model in own if "gain_new" in model]
        if new and np.mean(new) < -0.005:
            lines.append(f"- {name}: on new texts it loses {-np.mean(new):.3f} to the aggregate model.")
        if any(model["gain"][1] <= 0 for model in own):
            lines.append(
                f"- {name}: on known texts a gain over the aggregate model is not shown in every division."
            )
        if not any(model["answers_save"][1] > 0 for model in own):
            lines.append(f"- {name}: ten answers are not shown to save anything over none.")
    few = [name for name, divisions in results.items() if 0 < len(divisions) < 3]
    if few:
        lines.append(f"- Fewer than three divisions so far: {', '.join(few)}.")
    if missing := [name for name in FILES if not results.get(name)]:
        lines.append(f"- Not run so far: {', '.join(missing)}.")
    return lines


def row(seed: str, found: dict[str, Any], kind: str, model: dict[str, Any]) -> str:
    plain = kind == "aggregate"
    known = f"{model['cells'][MAIN]:.3f}" + ("" if plain else shown(model["gain"]))
    loss = f"{model['loss'][str(ASKED)]:.3f}"
    new = "–"
    if "gain_new" in model:
        new = f"{model['cells']['unseen_unseen']:.3f}" + ("" if plain else shown(model["gain_new"]))
    answers = "" if plain else shown(model["answers_save"]).strip(" ()")
    scale = f"{found['chosen']['scale']:g}, {found['chosen']['spread']:g}" if kind == "crossed" else ""
    return f"| {seed} ({found['people']} people) | {kind} | {known} | {loss} | {new} | {answers} | {scale} |"


def shown(value: list[float]) -> str:
    return f" ({value[0]:+.3f}, {value[1]:+.3f} to {value[2]:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(STORE.read_text()) if STORE.is_file() else {}
    for seed in range(args.seeds):
        for name in args.sets:
            divisions = results.setdefault(name, {})
            if str(seed) not in divisions:
                print(f"{name}, division {seed}", file=sys.stderr, flush=True)
                divisions[str(seed)] = json.loads(json.dumps(run(name, seed, args.data)))
                write_text(STORE, json.dumps(rounded(results), indent=1) + "\n")
                write_text(PAGE, page(results))
    write_text(PAGE, page(results))


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
