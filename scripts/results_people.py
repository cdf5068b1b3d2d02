"""One table: every reward model on every set of real people, with controls (`python scripts/results.py people`).

Every set × division of people is stored by itself in docs/results/people.json.gz and never computed twice, so the
command may be stopped and continued; `--models` adds single models to divisions that are there.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pages

from rewards.data.leak import leak_check
from rlhf.phi import fit as rewards_job
from rlhf.phi.config import RewardsConfig
from rlhf.phi.evaluate import compare_models, compared_models
from rlhf.phi.methods import item_table, model_names
from rlhf.run.config.load import load
from rlhf.run.directory import plain

ROOT = Path(__file__).parents[1]
SETS = {
    "electricity": "Electricity contracts",
    "train_trips": "Train trips",
    "jester": "Jester",
    "ukpconvarg1": "UKPConvArg1",
    "polis": "Polis",
    "remesh": "Remesh",
}
FILES = {
    "jester": "jester5k/pairs.jsonl.gz",
    "ukpconvarg1": "ukpconvarg1/pairs.jsonl.gz",
    "polis": "polis_english/pairs.jsonl.gz",
    "remesh": "remesh_opinions/pairs.jsonl.gz",
}
HOUSE, AGGREGATE = "house", "aggregate"
JUDGED = HOUSE
MODEL_KEYS = (
    "own_minus_swapped",
    "judged_minus",
    "swap_change",
    "ignores_user",
    "worst_decile",
    "worst_decile_aggregate",
    "gaining",
    "losing",
    "enough_answers",
    "controls",
    "fit_seconds",
)


def config_of(name: str, seed: int, data: Path, models: list[str], draws: int) -> Any:
    """The shipped configuration of a set with another division of people; controls with the first only."""
    controls = seed == 0
    overrides = [f"data.split_seed={seed}", f"seed={seed}", f"evaluation.controls={str(controls).lower()}"]
    overrides += [f"evaluation.models=[{', '.join(models)}]"]
    overrides.append(f"evaluation.seeds={draws}")
    if (
        models == ["card"] and name in FILES
    ):  # a pass of the language model for every person and number of answers
        overrides.append("evaluation.counts=[0, 10]")
    if name in FILES:
        overrides.append(f"data.path={data / FILES[name]}")
    return load(ROOT / "configs" / name / "rewards.yaml", overrides, RewardsConfig)


def run_division(name: str, seed: int, data: Path, models: list[str], draws: int) -> dict[str, Any]:
    """The scoreboard of one set and division; controls and leak check with the first division only."""
    began = time.perf_counter()
    config = config_of(name, seed, data, models, draws)
    prefs, _, _ = rewards_job.divided(config)
    embeddings, settings = rewards_job.embedded(config, prefs)
    board = compare_models(
        config, compared_models(config, JUDGED), item_table(prefs, embeddings, settings), JUDGED
    )
    leak = leak_check(prefs)["message"] if seed == 0 else None
    return compact(plain(board | {"leak": leak, "seconds": time.perf_counter() - began}))


def run(results: dict[str, Any], store: Path, args: argparse.Namespace) -> None:
    """Every missing set × division × model, by division first, so that all sets have the same divisions early."""
    for seed in range(args.seeds):
        for name in args.sets:
            divisions = results.setdefault(name, {})
            known = divisions.get(str(seed), {})
            done = set(known.get("models", {})) | set(known.get("unavailable", {}))
            missing = [model for model in args.models if model not in done]
            if not missing:
                continue
            print(f"{name}, division {seed}: {', '.join(missing)}", file=sys.stderr, flush=True)
            board = run_division(name, seed, args.data, missing, args.draws)
            divisions[str(seed)] = merged(known, board) if known else board
            pages.write_numbers(store, results, tuple(SETS))
            # Every division has shapes of its own, and a process runs out of memory maps for programs.
            jax.clear_caches()


def merged(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Models of `new` added to the board that is there; the fits that both have are the same computation."""
    models = new["models"] | known["models"]
    answers = str(known["answers"])
    best = max(models, key=lambda name: models[name]["accuracy"][answers]["mean"])
    return known | {
        "models": models,
        "unavailable": known["unavailable"] | new["unavailable"],
        "best": best,
        "seconds": known["seconds"] + new["seconds"],
    }


def compact(board: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of a scoreboard, five decimals: the rest is one command away."""
    answers = str(board["answers"])
    models = {}
    for name, model in board["models"].items():
        kept = {key: model[key] for key in MODEL_KEYS if key in model}
        for key in ("swapped", "label_flip_rate", "swap_flip_rate"):
            kept[key] = {"mean": model[key]["mean"]}
        kept["accuracy"] = {n: {"mean": value["mean"]} for n, value in model["accuracy"].items()}
        kept["gain"] = {answers: model["gain"][answers]}
        kept["cells"] = {
            cell: {"accuracy": {"mean": value["accuracy"]["mean"]}, "people": value["people"]}
            for cell, value in model["cells"].items()
        }
        if name == AGGREGATE:  # what the controls compare with
            kept.pop("controls", None)
        if "accuracy_chosen" in model:
            kept["accuracy_chosen"] = {answers: {"mean": model["accuracy_chosen"][answers]["mean"]}}
        models[name] = kept
    return rounded(board | {"models": models})


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def over_divisions(values: list[dict[str, float]]) -> tuple[float, float, float]:
    """Mean and 95 % interval: over divisions of people when there are several, else over people."""
    means = np.array([value["mean"] for value in values])
    if len(means) == 1:
        return values[0]["mean"], values[0]["low"], values[0]["high"]
    # Divisions overlap in people, so their spread alone is too small: never narrower than people allow.
    half = max(
        float(1.96 * means.std(ddof=1) / np.sqrt(len(means))),
        float(np.mean([value["high"] - value["low"] for value in values])) / 2 / np.sqrt(len(means)),
    )
    return float(means.mean()), float(means.mean()) - half, float(means.mean()) + half


def page(results: dict[str, Any], head: str) -> str:
    lines = [
        "# Real people: every reward model on six sets",
        "",
        head,
        "",
        "    python scripts/results.py people --data DIR --seeds 5",
        "",
        "`DIR` holds the four sets that are not shipped, as `configs/*/rewards.yaml` describe them. Each model is fitted on",
        "80 % of the people and asked to predict the last choices of the others after so many random questions, the same for",
        "every model. Gain: minus the aggregate (Bradley–Terry) model, person by person. Intervals are 95 %, over people with",
        "one division and over divisions of people with more. `columns` needs named rewards, which these sets do not have;",
        "`card` reads a text for every person and number of answers with the language model: on the electricity contracts a",
        "list of directions, on the others quotations of four answers, after 0 and 10 answers only, one order of questions a",
        "division (`--draws 1`) and 100 people in the fit. A dash: not fitted there (below), or not run so far.",
        "",
        "## Accuracy on people never seen",
        "",
    ]
    sets = [name for name in SETS if results.get(name)]
    kinds = [kind for kind in model_names() if any(kind in kinds_of(results[name]) for name in sets)]
    lines += ["| model | " + " | ".join(SETS[name] for name in sets) + " |", "| --- |" + " --- |" * len(sets)]
    facts = [
        f"{len(results[name])} × {first(results[name])['people']} people, n = {first(results[name])['answers']}"
        for name in sets
    ]
    lines.append("| divisions | " + " | ".join(facts) + " |")
    for kind in kinds:
        lines.append(f"| {kind} | " + " | ".join(accuracy_cell(results[name], kind) for name in sets) + " |")
    for base in ("length", "item mean"):
        cells = [
            f"{np.mean([d['base_rewards'][base]['accuracy']['mean'] for d in results[name].values()]):.3f}"
            for name in sets
        ]
        lines.append(f"| base reward: {base} | " + " | ".join(cells) + " |")
    lines += ["", counted_lines(results, sets, kinds)]
    for name in sets:
        lines += ["", *set_lines(name, results[name], kinds)]
    return "\n".join(lines) + "\n"


def counted_lines(results: dict[str, Any], sets: list[str], kinds: list[str]) -> str:
    """Where counting how often a text wins, with nothing personal, predicts as well as the best model."""
    above = []
    for name in sets:
        answers = str(first(results[name])["answers"])
        item = np.mean([d["base_rewards"]["item mean"]["accuracy"]["mean"] for d in results[name].values()])
        best, kind = max(
            (float(np.mean([model["accuracy"][answers]["mean"] for model in found])), kind)
            for kind in kinds
            if (found := of_model(results[name], kind))
        )
        if item >= best:
            above.append(f"{SETS[name]} ({item:.3f}; the best model, {kind}, {best:.3f})")
    if not above:
        return "No set has a share of comparisons won, with nothing personal, that predicts as well as the best model."
    return (
        f"How often each text won, with nothing personal, predicts at least as well as every model on {', '.join(above)}. A lead "
        "over the aggregate model there is about the texts: read as a gain of personalisation it is withdrawn. Comparisons now "
        "hold item Bradley–Terry, with and without the text, beside every model, and a win has to stand against it; these "
        "divisions were measured before they did, and hold out texts only where a cell says so."
    )


def kinds_of(divisions: dict[str, Any]) -> set[str]:
    return set().union(*(division["models"] for division in divisions.values()))


def first(divisions: dict[str, Any]) -> dict[str, Any]:
    return next(iter(divisions.values()))


def of_model(divisions: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [division["models"][kind] for division in divisions.values() if kind in division["models"]]


def accuracy_cell(divisions: dict[str, Any], kind: str) -> str:
    found, answers = of_model(divisions, kind), str(first(divisions)["answers"])
    if not found:
        return "–"
    accuracy = np.mean([model["accuracy"][answers]["mean"] for model in found])
    mean, low, high = over_divisions([model["gain"][answers] for model in found])
    gain = "" if kind == AGGREGATE else f" ({mean:+.3f}, {low:+.3f} to {high:+.3f})"
    return f"{accuracy:.3f}{gain}"


def set_lines(name: str, divisions: dict[str, Any], kinds: list[str]) -> list[str]:
    """One set: curve, cells and controls of every model, who wins, and the sentences of the divisions."""
    board = first(divisions)
    answers, counts = str(board["answers"]), list(board["models"][AGGREGATE]["accuracy"])
    cells = [
        cell
        for cell in ("seen_seen", "seen_unseen", "unseen_unseen")
        if cell in board["models"][AGGREGATE]["cells"]
    ]
    lines = [
        f"## {SETS[name]}",
        "",
        winner(divisions, kinds),
        "",
        f"Leak check: {board['leak']}." if board["leak"] else "",
        *(f"Cell {cell}: not available, {reason}." for cell, reason in board["missing_cells"].items()),
        *(f"Not fitted: {kind}: {reason}." for kind, reason in board["unavailable"].items()),
        "",
        "| model | "
        + " | ".join(f"n = {n}" for n in counts)
        + f" | chosen, n = {answers} | swapped | label flips | "
        "worst tenth | gain / lose | identical people | planted tastes | "
        + " | ".join(cells)
        + " | fit (s) |",
        "| --- |" + " --- |" * (len(counts) + 8 + len(cells)),
    ]
    for kind in kinds:
        found = of_model(divisions, kind)
        if not found:
            continue

        def mean(pick: Any, found: list[dict[str, Any]] = found) -> str:
            return f"{np.mean([pick(model) for model in found]):.3f}"

        row = [
            mean(lambda m, n=n: m["accuracy"][n]["mean"]) if n in found[0]["accuracy"] else "–"
            for n in counts
        ]
        chosen = "accuracy_chosen" in found[0]
        row.append(mean(lambda m: m["accuracy_chosen"][answers]["mean"]) if chosen else "–")
        row += [mean(lambda m: m["swapped"]["mean"]), mean(lambda m: m["label_flip_rate"]["mean"])]
        row += [mean(lambda m: m["worst_decile"])]
        row += [f"{np.mean([m['gaining'] for m in found]):.0%} / {np.mean([m['losing'] for m in found]):.0%}"]
        row += [control(found, "identical_people"), control(found, "planted_tastes")]
        row += [mean(lambda m, c=c: m["cells"][c]["accuracy"]["mean"]) for c in cells]
        row += [f"{np.mean([m['fit_seconds'] for m in found]):.0f}"]
        ignoring = (
            " (ignores the user)" if kind != AGGREGATE and all(m["ignores_user"] for m in found) else ""
        )
        lines.append(f"| {kind}{ignoring} | " + " | ".join(row) + " |")
    sentences = [f"{seed}. {division['sentence']}" for seed, division in divisions.items()]
    return [*lines, "", "By division:", "", *sentences]


def control(found: list[dict[str, Any]], world: str) -> str:
    values = [model["controls"][world] for model in found if "controls" in model]
    if not values or "gain" not in values[0]:
        return "–"
    return f"{values[0]['gain']['mean']:+.3f} {'passed' if values[0]['passed'] else 'FAILED'}"


def winner(divisions: dict[str, Any], kinds: list[str]) -> str:
    """Whether house ties the best other model within the interval of their paired difference; else who wins."""
    answers = str(first(divisions)["answers"])
    accuracy = {
        kind: np.mean([model["accuracy"][answers]["mean"] for model in of_model(divisions, kind)])
        for kind in kinds
        if of_model(divisions, kind)
    }
    other = max((kind for kind in accuracy if kind != HOUSE), key=accuracy.__getitem__)
    mean, low, high = over_divisions([model["judged_minus"] for model in of_model(divisions, other)])
    said = f"house minus {other}, the best other model: {mean:+.3f}, 95 % {low:+.3f} to {high:+.3f}"
    verdict = "house loses" if high < 0 else "house wins" if low > 0 else "house ties the best other model"
    return f"After {answers} answers {verdict} ({said})." + (why(divisions, other) if high < 0 else "")


def why(divisions: dict[str, Any], other: str) -> str:
    """Where a winner's lead comes from: it is there before any answer, or answers bring more than house's do."""
    answers = str(first(divisions)["answers"])

    def mean(kind: str, n: str) -> float:
        return float(np.mean([model["accuracy"][n]["mean"] for model in of_model(divisions, kind)]))

    start = mean(other, "0") - mean(HOUSE, "0")
    learned = {kind: mean(kind, answers) - mean(kind, "0") for kind in (other, HOUSE)}
    flips = np.mean([model["label_flip_rate"]["mean"] for model in of_model(divisions, other)])
    source = (
        "a better reward for everybody, not for the person"
        if start > learned[other] - learned[HOUSE]
        else "its answers bring more"
    )
    return (
        f" Why: {source}. Before any answer {other} leads by {start:+.3f}; {answers} answers bring {other} "
        f"{learned[other]:+.3f} and house {learned[HOUSE]:+.3f}; {flips:.0%} of {other}'s predictions turn when all of a "
        "person's answers are turned."
    )


def enable_compile_cache(directory: Path) -> None:
    """Compiled programs are kept, since every set and division needs the same ones."""
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
