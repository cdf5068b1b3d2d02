"""Page and picture of the film-review benchmark, from docs/results/sentiment.json alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pages import half_width, save

PANELS = (
    ("reward", "reward, nats"),
    ("kl", "KL(π ‖ π_ref), nats a completion"),
    ("beta", "β, price of a nat"),
)
JUDGES = {"sentences": "other sentences", "reviews": "whole reviews"}


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± half of the 95 % interval over seeds."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.{digits}f}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Reward, KL and β over completions sampled: a thin line a seed, a thick one their mean."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    seeds = results["policy"]
    shortest = min((len(run["curve"]["reward"]) for run in seeds.values()), default=0)
    for axes, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for number, (seed, run) in enumerate(seeds.items()):
            values = run["curve"][name]
            episodes = run["rows"] * np.arange(1, len(values) + 1)
            axes.plot(episodes, values, color=f"C{number}", linewidth=0.9, alpha=0.6, label=f"seed {seed}")
        if shortest:
            mean = np.mean([run["curve"][name][:shortest] for run in seeds.values()], axis=0)
            rows = next(iter(seeds.values()))["rows"]
            axes.plot(rows * np.arange(1, shortest + 1), mean, color="black", linewidth=2, label="mean")
        axes.set(xlabel="episodes (completions sampled)", title=label)
        axes.grid(alpha=0.25)
    if "setting" in results:
        target = results["setting"]["target_nats"]
        figure.axes[1].axhline(target, color="black", linestyle=":", linewidth=1, label="target")
    figure.axes[1].legend(fontsize=8)
    save(figure, path, dpi=120)


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Film reviews by PPO: the classic small benchmark",
        "",
        "A 135M language model continues film reviews and learns to continue them favourably, with a fitted reward, PPO and an",
        "adaptive price of the KL. One policy for all: K = 1 and nobody conditioned is ordinary RLHF.",
        "",
        f"{results['made']}; {results['versions']}; {results['machine']}. ± is half of the 95 % interval over seeds",
        "(Student's t).",
        "",
        "    python scripts/sentiment_data.py --zips DIR",
        "    python scripts/results_sentiment.py reward",
        f"    python scripts/results_sentiment.py policy --seeds {max(len(results['policy']), 1)}",
        "",
        "`DIR` holds two zips of nltk_data, `movie_reviews` (2,000 reviews) and `sentence_polarity` (10,662 sentences): Pang and",
        "Lee 2004 and 2005, CC BY 4.0. Neither they nor text made from them is part of this repository, apart from the openings",
        "of a few words below.",
        "",
    ]
    if "reward" in results:
        lines += reward_lines(results["reward"])
    if "judges" in results:
        lines += judge_lines(results["judges"])
    if "start" in results:
        lines += start_lines(results["start"])
    if results["policy"]:
        lines += policy_lines(results)
    return "\n".join(lines).rstrip("\n") + "\n"


def reward_lines(reward: dict[str, Any]) -> list[str]:
    accuracy, check, pairs = reward["accuracy"], reward["logistic_regression"], reward["pairs"]
    return [
        "## The reward",
        "",
        "Bradley–Terry on pairs of a positive and a negative sentence, over the mean hidden state of layer "
        f"{reward['layer']} of 30.",
        "Each sentence is in one pair; a fifth of the pairs is held out, and settings were chosen without it.",
        "",
        "| | training pairs | held-out pairs |",
        "| --- | --- | --- |",
        f"| number | {pairs['training']} | {pairs['held_out']} |",
        f"| the reward orders right | {accuracy['training']:.3f} | {accuracy['held_out']:.3f} ± "
        f"{1.96 * reward['accuracy_se']:.3f} (over pairs) |",
        f"| scikit-learn's logistic regression, same embeddings | | {check['held_out']:.3f} |",
        "",
        f"The check is fitted on single sentences and calls {check['single']:.3f} of the held-out ones right. It orders",
        f"{reward['agreement']:.1%} of the held-out pairs as the reward does. One standard deviation of the reward over the",
        f"sentences is {reward['nats_a_sd']:.2f} nats.",
        "",
    ]


def judge_lines(judges: dict[str, Any]) -> list[str]:
    lines = [
        "## Judges",
        "",
        "Did the reviews become favourable, or did the policy find what the reward mistakes for favour? Two classifiers of words",
        "and word pairs (scikit-learn) say. They have seen no sentence of a pair, no review of a prompt and no hidden state.",
        "",
        "| judge learnt from | texts | right on the pairs' sentences | orders pairs right |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {JUDGES[name]} | {facts['texts']} | {facts['accuracy']:.3f} | {facts['pairs']:.3f} |"
        for name, facts in judges.items()
    ]
    return [*lines, ""]


def start_lines(start: dict[str, float]) -> list[str]:
    return [
        "## The supervised start",
        "",
        "As it comes, the model answers the openings with text of every kind, little of it about films. So it first learns to",
        "write a quarter of the paired sentences, favourable and not in equal numbers (`configs/sentiment/sft.yaml`; loss",
        f"{start['loss_first']:.2f} → {start['loss_last']:.2f} nats a token). This model is π_ref, the untuned model below,",
        "the same for all seeds.",
        "",
    ]


def policy_lines(results: dict[str, Any]) -> list[str]:
    """Curves, before and after, what the judges say, samples, limits."""
    runs, own = list(results["policy"].values()), results["setting"]
    number = f"{len(runs)} seed" + ("s" if len(runs) > 1 else "")
    episodes = own["steps"] * own["rows"]
    lines = [
        f"## Reward and KL over training ({number})",
        "",
        "![Reward, KL and β over episodes, a line a seed and their mean](sentiment.png)",
        "",
        f"`configs/sentiment/ppo.yaml`: {own['steps']} iterations of {own['rows']} completions of {own['tokens']} tokens, "
        f"{episodes:,} episodes a seed.",
        *(
            [f"Changed for this page: {', '.join(f'`{one}`' for one in own['overrides'])}."]
            if own["overrides"]
            else []
        ),
        f"β starts at {own['beta']:g} and seeks a KL of {own['target_nats']:g} nats a completion. The last five iterations",
        "against the first:",
        "",
        "| seed | reward, first | reward, last five | KL, last five | largest KL | β at the end | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for seed, run in results["policy"].items():
        curve = run["curve"]
        lines.append(
            f"| {seed} | {curve['reward'][0]:+.2f} | {np.mean(curve['reward'][-5:]):+.2f} | {np.mean(curve['kl'][-5:]):.2f} | "
            f"{max(curve['kl']):.2f} | {curve['beta'][-1]:.3f} | {sum(curve['seconds']) / 60:.1f} |"
        )
    lines += [
        "",
        *before_after(runs, own),
        *verdict(runs, own),
        *sample_lines(results["policy"]),
        *limits(own, results.get("trials", [])),
    ]
    return lines


def before_after(runs: list[dict[str, Any]], own: dict[str, Any]) -> list[str]:
    """One row a figure: the model as it was, after training, and the difference seed by seed."""
    rows = [
        ("reward, nats", lambda part: part["reward"], 2),
        ("its standard deviation", lambda part: part["reward_sd"], 2),
        *(
            (f"called positive, judge of {JUDGES[name]}", lambda part, n=name: part["positive"][n], 3)
            for name in runs[0]["before"]["positive"]
        ),
        *(
            (
                f"rank correlation of reward and judge of {JUDGES[name]}",
                lambda part, n=name: part["correlation"][n],
                3,
            )
            for name in runs[0]["before"]["correlation"]
        ),
        ("KL to the model as it was, nats a completion", lambda part: part["kl"], 2),
        ("perplexity under the model as it was", lambda part: part["perplexity"], 1),
        ("distinct word pairs", lambda part: part["distinct_2"], 3),
        ("words that repeat inside a completion", lambda part: part["repeated_words"], 3),
        ("ended by itself", lambda part: part["ended"], 3),
        ("tokens", lambda part: part["tokens"], 1),
    ]
    lines = [
        "## Before and after, on reviews never prompted with",
        "",
        f"{own['held_prompts']} held-out openings, {own['samples']} completions each, temperature 1.",
        "",
        "| figure | before | after | difference |",
        "| --- | --- | --- | --- |",
    ]
    for label, pick, digits in rows:
        before, after = ([pick(run[part]) for run in runs] for part in ("before", "after"))
        change = [b - a for a, b in zip(before, after, strict=True)]
        lines.append(
            f"| {label} | {spread(before, digits)} | {spread(after, digits)} | {np.mean(change):+.{digits}f}"
            + (f" ± {half_width(change):.{digits}f} |" if len(change) > 1 else " |")
        )
    return [*lines, ""]


def verdict(runs: list[dict[str, Any]], own: dict[str, Any]) -> list[str]:
    """Sentences that follow from the numbers, whichever way they fall."""
    gain = [run["after"]["reward"] - run["before"]["reward"] for run in runs]
    kl = [run["after"]["kl"] for run in runs]
    said = [
        f"- The reward rose in {sum(g > 0 for g in gain)} of {len(runs)} seeds, by {np.mean(gain):+.2f} nats on average, "
        f"{np.mean(gain) / np.mean([run['before']['reward_sd'] for run in runs]):+.2f} standard deviations of the untuned "
        "model's."
    ]
    for name in runs[0]["before"]["positive"]:
        change = [run["after"]["positive"][name] - run["before"]["positive"][name] for run in runs]
        low, high = np.mean(change) - half_width(change), np.mean(change) + half_width(change)
        if len(runs) < 2:
            agrees = "one seed has no interval, so this settles nothing"
        elif low > 0:
            agrees = "it agrees that they became more favourable"
        elif high < 0:
            agrees = "**it says the opposite: the reward was exploited**"
        else:
            agrees = "**its interval holds zero: this judge does not confirm the gain**"
        said.append(
            f"- Called positive by the judge of {JUDGES[name]}: {100 * np.mean(change):+.1f} percentage points; {agrees}."
        )
    above = sum(value > own["target_nats"] for value in kl)
    said.append(
        f"- The KL on held-out prompts is {spread(kl)} nats a completion; {above} of {len(runs)} seeds end above the target of "
        f"{own['target_nats']:g}."
    )
    diversity = [run["after"]["distinct_2"] / max(run["before"]["distinct_2"], 1e-9) for run in runs]
    fluency = [run["after"]["perplexity"] / run["before"]["perplexity"] for run in runs]
    said.append(
        f"- Distinct word pairs are {np.mean(diversity):.0%} of what they were, perplexity is {np.mean(fluency):.0%}. Fewer "
        "pairs and a low perplexity together mean set phrases; a high perplexity means text that the untuned model would not "
        "write."
    )
    return [*said, ""]


def sample_lines(policy: dict[str, Any]) -> list[str]:
    """Samples of the first seed: what the numbers are about."""
    seed, run = next(iter(policy.items()))
    lines = [f"## Samples (seed {seed}, the first held-out openings, not chosen)", ""]
    lines += ["| opening | before | after |", "| --- | --- | --- |"]
    lines += [
        "| " + " | ".join(cell(sample[name]) for name in ("prompt", "before", "after")) + " |"
        for sample in run["samples"]
    ]
    return [*lines, ""]


def cell(text: str) -> str:
    """Sampled text inside a table: one line, nothing that markdown would read."""
    line = " ".join(text.split())
    for sign in "\\|*_`<>[]":
        line = line.replace(sign, f"\\{sign}")
    return line


def limits(own: dict[str, Any], trials: list[dict[str, Any]]) -> list[str]:
    return [
        "## The published setting, and limits",
        "",
        "The published curves (Ziegler et al. 2019; reproduced by Huang et al. 2023) are of GPT-2 124M, a reward model",
        "fine-tuned on 5,000 human labels, and a million episodes of full fine-tuning at learning rate 1e-5, with β = 0.15,",
        "adaptive with a target of 6 nats over 24 tokens, γ = 1, λ = 0.95 and whitened advantages. Kept: the size of the model,",
        "24 tokens, the target of β and its controller, γ, whitening, one completion a prompt, a critic on the policy's body.",
        "Different:",
        "",
        f"- {own['steps'] * own['rows']:,} episodes instead of a million, by adapters in the top third of the layers at learning "
        f"rate {own['learning_rate']:g};",
        f"  the controller's horizon is therefore {own['horizon']:g} completions instead of 10,000.",
        f"- β starts at {own['beta']:g}: rewards here have a deviation of about 1.9 at the start, theirs of 1.",
        *(
            f"  With {trial['beta']:g} and a horizon of {trial['horizon']:g} completions a trial (seed {trial['seed']}) "
            f"was at a KL of {trial['kl'][-1]:.0f} nats after {len(trial['kl'])} iterations."
            for trial in trials
        ),
        *(
            [
                "  What the reward pays for a nat hardly falls with the distance, so whatever β allows is taken."
            ]
            if trials
            else []
        ),
        f"- λ = {own['gae_lambda']:g}. Below 1 a token's own KL is charged in full, the reward at the end is not (`docs/rl.md`).",
        "- The reward is one linear direction over frozen hidden states, in nats of Bradley–Terry; theirs is a whole fine-tuned",
        "  model, scaled to variance 1 over samples. The same β is therefore another price.",
        "- The start is taught to write sentences of reviews; the published one is GPT-2 as it comes.",
        "- Labels are of published reviews, not of the model's own continuations; openings are of film reviews, not of books;",
        "  sampling is at temperature 1, not 0.7; the stop token may be sampled and ends a completion early.",
        "- So the shape of the curves can be compared with the published ones, their heights cannot.",
        "- Both judges count words and were taught on human text; how often they are wrong even there stands above. They are not",
        "  people, and nobody read the samples for a score.",
        "- An interval over a few seeds covers training and sampling, not another split of the data: pairs, judges and openings",
        "  are the same for all seeds.",
    ]
