"""The page of `scripts/results_style.py`, from the stored numbers alone."""

from pathlib import Path
from typing import Any

import numpy as np
import results_style_figures as figures
import results_style_numbers as numbers
from pages import read_numbers, save

from rewards.files import write_text

FLIP, DOMINANCE, PERPLEXITY, DISTINCT, MINUTES = 0.75, 0.9, 2.0, 0.75, 60  # asked for: see `verdicts`
MEANING = {  # what the ends of an axis look like, in words
    "length": "short answers / long ones",
    "structure": "running text / lists and headings",
    "formality": "contractions and exclamation marks / formal connectives",
    "warmth": "matter-of-fact / thanks, please, hope, glad",
    "certainty": "might, may, often / must, always, never",
}
EXCERPT = 330  # characters of an example


def write(results: dict[str, Any], store: Path) -> None:
    """STORE.md, STORE_curves.png and STORE_matrix.png beside the stored numbers; other runs are STORE_*.json."""
    found = numbers.summary(results)
    save(figures.curves(results), picture(store, "curves"))
    save(figures.heat_map(results["people"], found["matrix"]), picture(store, "matrix"))
    write_text(store.with_suffix(".md"), markdown(results, found, store))


def picture(store: Path, name: str) -> Path:
    return store.with_name(f"{store.stem}_{name}.png")


def minutes(results: dict[str, Any]) -> float:
    """Wall time of all iterations."""
    return sum(value or 0.0 for value in results["curves"]["perf/step_seconds"]) / 60


def other_runs(store: Path) -> list[str]:
    """A line a run whose numbers lie beside these as STORE_*.json."""
    lines = []
    for path in sorted(store.parent.glob(f"{store.stem}_*.json")):
        results = read_numbers(path)
        found, config = numbers.summary(results), results["config"]
        lines.append(
            f"- [{path.stem}]({path.stem}.md): seed {config['seed']}, {config['steps']} iterations, "
            f"{minutes(results):.0f} minutes: "
            f"w over −w {percent(found['flip'])}, dominance {percent(found['pairwise'])}, KL {found['kl']:.1f} nats."
        )
    return ["", "Other runs:", "", *lines] if lines else []


def verdicts(results: dict[str, Any], found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, what was asked for, what was measured, whether it is met)."""
    target, before = results["config"]["target_nats"], found["reference"]
    people = found["people"]
    perplexity = {label: person["perplexity"] / before["perplexity"] for label, person in people.items()}
    worst = max(perplexity, key=lambda label: abs(np.log(perplexity[label])))
    distinct = {label: person["distinct_2"] / before["distinct_2"] for label, person in people.items()}
    poorest = min(distinct, key=distinct.__getitem__)
    return [
        (
            "the completion for w is worth more to w than that for −w",
            f"≥ {FLIP:.0%} (chance 50 %)",
            percent(found["flip"]),
            found["flip"][0] >= FLIP,
        ),
        (
            "people get more from their own completions than from another's (pairs of people)",
            f"≥ {DOMINANCE:.0%} (chance 50 %)",
            percent(found["pairwise"]),
            found["pairwise"][0] >= DOMINANCE,
        ),
        (
            "KL to the model before, mean over people",
            f"≤ {target:g} nats",
            f"{found['kl']:.1f} nats",
            found["kl"] <= target,
        ),
        (
            "perplexity under the model before, person furthest from its own samples",
            f"within a factor of {PERPLEXITY:g}",
            f"× {perplexity[worst]:.2f} ({worst})",
            1 / PERPLEXITY <= perplexity[worst] <= PERPLEXITY,
        ),
        (
            "distinct-2, person with the least",
            f"≥ {DISTINCT:.0%} of the model before",
            f"{distinct[poorest]:.0%} ({poorest})",
            distinct[poorest] >= DISTINCT,
        ),
        (
            "time of training on CPU",
            f"≤ {MINUTES:g} minutes",
            f"{minutes(results):.0f} minutes",
            minutes(results) <= MINUTES,
        ),
    ]


def markdown(results: dict[str, Any], found: dict[str, Any], store: Path) -> str:
    rows = verdicts(results, found)
    missed = [what for what, _, _, met in rows if not met]
    parts = [
        "# Five tastes on real prompts: one small model, many styles",
        "",
        f"Made by `scripts/results_style.py`. {results['made']}; {results['versions']}; {results['machine']}.",
        "",
        *opening(results, found, store),
        "",
        "| | asked for | measured | |",
        "| --- | --- | --- | --- |",
        *(
            f"| {what} | {asked} | {got} | {'met' if met else '**missed**'} |"
            for what, asked, got, met in rows
        ),
        "",
        ("Everything asked for is met." if not missed else "**Missed:** " + "; ".join(missed) + "."),
        "Brackets are 95 % bootstrap intervals over held-out prompts; they say nothing about another training seed.",
        *other_runs(store),
        "",
        "## Training",
        "",
        f"![Reward, KL and spread over training]({picture(store, 'curves').name})",
        "",
        *training(results),
        "",
        "## Is the answer for w better for w than the answer for −w?",
        "",
        *flip_section(results, found),
        "",
        "## Whose completions for whom",
        "",
        f"![Reward of every person from everybody's completions]({picture(store, 'matrix').name})",
        "",
        f"M[u, v] = mean of w_u·φ over the completions written for v. Own is larger in {percent(found['pairwise'])} of the "
        f"ordered pairs of people; own is the best of all {len(results['people'])} in {percent(found['own_is_best'])} of "
        "the rows.",
        "",
        "## What each taste moves",
        "",
        *shift_section(results, found),
        "",
        "## Quality",
        "",
        *quality_section(results, found),
        "",
        "## Examples",
        "",
        *example_section(results),
        "## Limits",
        "",
        *limits(results, found),
    ]
    return "\n".join(parts) + "\n"


def opening(results: dict[str, Any], found: dict[str, Any], store: Path) -> list[str]:
    config, names = results["config"], results["names"]
    drawn = len(results["people"]) - 2 * len(names)
    return [
        f"`{config['model']}` learns with `configs/style/grpo.yaml` to write for people who differ in {len(names)} tastes: "
        f"{', '.join(names)}. The rewards are functions that count words (`configs/style/rewards.py`); people are",
        "coefficients w of them, drawn anew for every group of completions. Then it writes for "
        f"{len(results['people'])} people on {found['prompts']} prompts that training did not see, "
        f"{found['completions']} completions each, at temperature 1: people of one taste alone (w = ±2 sd) and {drawn} drawn "
        "from the population, each with the person who wants the opposite.",
        "",
        f"Prompts: {results['source']} The set is not part of this repository. `prepare` keeps a fifth of the prompts, chosen "
        "by a hash of their text, out of training.",
        "",
        "```sh",
        "python scripts/results_style.py prepare --data PROMPTS --output runs/style",
        f"chorus train grpo configs/style/grpo.yaml seed={config['seed']} train.steps={config['steps']}",
        'python scripts/results_style.py measure --run runs/style/grpo --data runs/style/held.jsonl --source "..." '
        f"--store docs/results/{store.name}",
        "```",
    ]


def training(results: dict[str, Any]) -> list[str]:
    config, record = results["config"], results["curves"]
    seconds = [value for value in record["perf/step_seconds"] if value is not None]
    ends = max(1, len(record["step"]) // 8)

    def end(name: str, part: slice) -> float:
        return float(np.mean(record[f"train/{name}"][part]))

    first, last = slice(0, ends), slice(-ends, None)
    return [
        f"{config['steps']} iterations of {config['rows']} completions of at most {config['max_new_tokens']} tokens, seed "
        f"{config['seed']}, learning rate {config['learning_rate']:g}: {minutes(results):.0f} minutes, median "
        f"{np.median(seconds):.0f} s an iteration. Mean of the first {ends} and the last {ends} iterations: reward "
        f"{end('reward', first):.2f} → {end('reward', last):.2f} nats, KL {end('kl_ref_nats', first):.2f} → "
        f"{end('kl_ref_nats', last):.2f} nats, entropy {end('token_entropy_nats', first):.2f} → "
        f"{end('token_entropy_nats', last):.2f} nats a token. β moved from {config['beta_start']:g} to "
        f"{config['beta_end']:.3g} ({config['controller']}, target {config['target_nats']:g} nats a completion). The spread of "
        "a column grows as people come to be answered differently.",
    ]


def flip_section(results: dict[str, Any], found: dict[str, Any]) -> list[str]:
    pairs = [label.rsplit(" ", 1)[0] for label in results["people"][::2]]
    lines = [
        "All pairs of a completion for w and one for −w to the same prompt; a tie counts half.",
        "",
        "| people | w preferred to −w | ties |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {pair} | {percent(flip)} | {ties:.0%} |"
        for pair, flip, ties in zip(pairs, found["flip_by_pair"], found["ties_by_pair"], strict=True)
    ]
    lines += [f"| **one taste alone** | {percent(found['flip_axes'])} | |"]
    if found["flip_drawn"] is not None:
        lines += [f"| **drawn from the population** | {percent(found['flip_drawn'])} | |"]
    return [
        *lines,
        f"| **all** | {percent(found['flip'])} | |",
        f"| control: the untrained model for both | {percent(found['flip_untrained'])} | |",
        f"| control: judged by another pair's w | {percent(found['flip_shuffled'])} | |",
    ]


def shift_section(results: dict[str, Any], found: dict[str, Any]) -> list[str]:
    names = results["names"]
    off = found["shifts"][~np.eye(len(names), dtype=bool)]
    lines = [
        "Half the distance between the people at +2 and −2 sd of a taste, in standard deviations of the column within "
        "prompts of the untrained model. The diagonal should be large, the rest near 0.",
        "",
        "| taste | − / + | " + " | ".join(names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for k, name in enumerate(names):
        cells = [f"**{v:+.2f}**" if j == k else f"{v:+.2f}" for j, v in enumerate(found["shifts"][k])]
        lines.append(f"| {name} | {MEANING.get(name, '')} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        f"Mean size on the diagonal {np.abs(np.diag(found['shifts'])).mean():.2f}, off it {np.abs(off).mean():.2f}.",
    ]


def quality_section(results: dict[str, Any], found: dict[str, Any]) -> list[str]:
    lines = [
        "KL = Σ (log π − log π_ref) over the sampled tokens of a completion, mean. Perplexity is that of the completions under "
        "the untrained model; distinct-n the share of different n-grams of words, over equally many completions.",
        "",
        "| written for | KL, nats | perplexity | distinct-1 | distinct-2 | distinct-3 | ended | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    everyone = {"mean over people": mean_of(list(found["people"].values())), **found["people"]}
    everyone |= {"nobody in particular (w = 0)": found["generic"], "untrained model": found["reference"]}
    for label, one in everyone.items():
        distinct = " | ".join(f"{one[f'distinct_{size}']:.2f}" for size in (1, 2, 3))
        lines.append(
            f"| {label} | {one['kl']:.1f} | {one['perplexity']:.1f} | {distinct} | {one['ended']:.0%} | {one['tokens']:.0f} |"
        )
    return lines


def mean_of(people: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([person[name] for person in people])) for name in people[0]}


def example_section(results: dict[str, Any]) -> list[str]:
    """Quoted as sampled; long ones are cut here."""
    lines = [
        "The first completion of each, as sampled (temperature 1), under the token limit of training.",
        "",
    ]
    for example in results["shown"]:
        lines += [f"**{inline(example['prompt'])}**", "", "| written for | |", "| --- | --- |"]
        for label, text in example["completions"].items():
            label = {"reference": "untrained model", "generic": "nobody in particular"}.get(label, label)
            lines.append(f"| {label} | {inline(text)} |")
        lines.append("")
    return lines


def inline(text: str) -> str:
    """A text within one cell of a table, its lines marked by ⏎, nothing of it read as Markdown."""
    text = " ⏎ ".join(line.strip() for line in text.strip().splitlines() if line.strip())
    text = text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
    for sign in "\\`*_[]<|#":
        text = text.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return text or "(nothing)"


def limits(results: dict[str, Any], found: dict[str, Any]) -> list[str]:
    config, worst = results["config"], found["kl_worst"]
    below = [
        f"{label.rsplit(' ', 1)[0]} ({flip[0]:.0%})"
        for label, flip in zip(results["people"][::2], found["flip_by_pair"], strict=True)
        if flip[0] < FLIP
    ]
    weakest = (
        f"- Below {FLIP:.0%} by themselves: {', '.join(below)}."
        if below
        else f"- No pair of people is below {FLIP:.0%} by itself."
    )
    return [
        weakest,
        f"- The person furthest from the untrained model, {worst}, is {found['people'][worst]['kl']:.1f} nats away "
        f"(target for the mean: {config['target_nats']:g}).",
        "- One training run, one seed. Intervals are over prompts alone.",
        "- The rewards count surface markers. Warm words are not warmth; what is shown is that one policy serves opposite "
        "coefficients, not that people would like the answers.",
        "- The markers are bounded (`configs/style/rewards.py`): without bounds two warm words alone would earn some fifty "
        "standard deviations.",
        f"- Completions end at {config['max_new_tokens']} tokens, so a long answer is one that is not over, and hardly longer "
        "than most of the untrained model.",
        "- A model of 135 million parameters, sampled at temperature 1, often makes little sense before training as well; "
        "nothing here makes its answers truer.",
        "- Perplexity and distinct-n notice collapse, not a loss of sense.",
    ]


def percent(value: tuple[float, ...]) -> str:
    mean, low, high = value
    return f"{mean:.0%} [{low:.0%}, {high:.0%}]"
