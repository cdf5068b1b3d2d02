"""What two sets of 16 and 13 people can show, and what is said of them: docs/results/small_sets.md

    python scripts/results_small_sets.py DATA [--encoder lm|sentence] [--only NAME]

DATA holds tulu_human_eval/pairs.jsonl.gz and writing_pref/pairs.jsonl.gz (rows of prompt, chosen, rejected, user_id). Fits
and judges
each as a stranger would, `chorus rewards fit --model NAME --data FILE` and then `evaluate`. Figures are kept from run to run.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

REPO = Path(__file__).parents[1]
sys.path[:0] = [str(REPO)]

from rewards.comparison.judging import points  # noqa: E402
from rewards.comparison.measures import FEW, bootstrap  # noqa: E402
from rewards.files import JSONObject, read_json, write_json, write_text  # noqa: E402

PAGE = REPO / "docs" / "results" / "small_sets.md"
RECORD = PAGE.with_suffix(".json")
SETS = {
    "tulu_human_eval": "16 evaluators of answers of four models (Wang et al. 2023, arXiv 2306.04751; Apache-2.0), ties left out",
    "writing_pref": "13 writers rank three versions of a paragraph (Chakrabarty et al. 2024; BSD-3-Clause)",
}
MODELS = {"lm": "smollm2-135m", "sentence": "all-minilm-l6-v2"}
WORLDS = 4000


def judged(data: Path, kind: str, folder: Path) -> JSONObject:
    """Fit and evaluate; what the page shows."""
    from rlhf.apps.defaults import resolved
    from rlhf.phi.evaluate import evaluate_rewards
    from rlhf.phi.fit import fit

    options = {"model.name": MODELS[kind], "data.path": str(data), "output_dir": str(folder)}
    config, _ = resolved("rewards", options, [f"encoder.kind={kind}"])
    fit(config)
    result = evaluate_rewards(config)
    board = result["evaluation"]["comparison"]
    own, answers = board["models"][board["judged"]], board["answers"]
    return {
        "verdict": result["verdict"],
        "people": board["people"],
        "folds": board.get("folds", 1),
        "choices": board["tested_choices"],
        "answers": answers,
        "accuracy": own["accuracy"][answers],
        "aggregate": board["models"]["aggregate"]["accuracy"][answers],
        "gain": own["gain"][answers],
        "power": board["power"],
        "planted": board.get("planted"),
    }


def coverage(people: int) -> tuple[float, float]:
    """How often 95 % intervals of `people` accuracies on six choices each hold the truth: percentiles, and those in use."""
    rng = np.random.default_rng(people)
    shares = rng.binomial(6, rng.beta(4, 3, (WORLDS, people))) / 6
    weights = rng.multinomial(people, np.full(people, 1 / people), 1000) / people
    low, high = np.quantile(shares @ weights.T, (0.025, 0.975), axis=1)
    found = [bootstrap(row, jax.random.key(0), draws=400) for row in shares]
    ours = np.array([(one.low, one.high) for one in found])
    held = [
        np.mean((below <= 4 / 7) & (4 / 7 <= above))
        for below, above in ((low, high), (ours[:, 0], ours[:, 1]))
    ]
    return float(held[0]), float(held[1])


def _sets(record: JSONObject) -> list[str]:
    """What was found on each set."""
    lines = [
        "",
        "`python scripts/results_small_sets.py DATA`. Two sets of choices by few people, fitted and judged with nothing"
        " set but the "
        "model and the file. Below 50 people each is held out once, in folds, and predicted on half of what they chose."
        " `lm`: hidden "
        f"states of {MODELS['lm']}; `sentence`: {MODELS['sentence']}.",
        "",
        "| set | encoder | people | tested choices | one model for all | after the answers | gain | least that would "
        "show | planted and found |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, one in sorted(record["sets"].items()):
        name, kind = key.split("/")
        least = one["power"]["detectable"]
        planted = (
            ", ".join(
                f"{size['points']:g}: {'yes' if size['found'] else 'no'}" for size in one["planted"] or []
            )
            or "–"
        )
        lines.append(
            f"| {name} | {kind} | {one['people']} | {one['choices']} | {one['aggregate']['mean']:.1%} | "
            f"{one['accuracy']['mean']:.1%} after {one['answers']} | {points(one['gain'])} | "
            f"{'–' if least is None else f'{100 * least:.0f} points'} | {planted} |"
        )
    lines += ["", "What the first line of each report says:", ""]
    lines += [
        f"- **{key}** ({one['verdict']['status']}): {one['verdict']['text']}"
        for key, one in sorted(record["sets"].items())
    ]
    lines += ["", *(f"{name}: {what}." for name, what in SETS.items())]
    return lines


def page(record: JSONObject) -> str:
    """The page."""
    lines = ["# What small sets can show", *(_sets(record) if record["sets"] else [])]
    lines += [
        "",
        "## Intervals",
        "",
        "Percentiles over resampled people are too narrow where people are few: resampling sees √((U−1)/U) of the "
        "spread, and uses the "
        "normal quantile where Student's is due (Hesterberg 2015, The American Statistician 69, §3.2). Below "
        f"{FEW} people intervals are therefore Student's, t(0.975, U−1) · s/√U, cut to 0 … 1 for shares; powers are of"
        f" the same test. How "
        f"often a 95 % interval holds the truth, of {WORLDS:,} worlds in which people differ (accuracies by Beta(4, "
        f"3)) and are tested on "
        "six choices each:",
        "",
        "| people | percentiles | in use |",
        "|---|---|---|",
    ]
    lines += [
        f"| {people} | {old:.1%} | {new:.1%} |" for people, (old, new) in record.get("coverage", {}).items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", nargs="?", help="folder; none: the page alone")
    parser.add_argument("--encoder", choices=MODELS, help="this one alone")
    parser.add_argument("--only", choices=SETS, help="this set alone")
    args = parser.parse_args()
    record = read_json(RECORD) if RECORD.is_file() else {"sets": {}}
    if "coverage" not in record:
        record["coverage"] = {str(people): coverage(people) for people in (4, 8, 13, 16, 29, 60)}
        write_json(RECORD, record)
    for kind in [args.encoder] if args.encoder else MODELS:
        for name in [args.only] if args.only else SETS:
            if args.data is not None:
                with tempfile.TemporaryDirectory() as folder:
                    found = judged(args.data / name / "pairs.jsonl.gz", kind, Path(folder) / "run")
                record["sets"][f"{name}/{kind}"] = found
                write_json(RECORD, record)
    write_text(PAGE, page(record))


if __name__ == "__main__":
    main()
