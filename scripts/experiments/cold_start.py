"""How many questions does a new person need, by rule; and do the error bars hold?

    python -m scripts.experiments.cold_start [--seeds 3] [--people 200] [--out docs/results/cold_start]

The basis is known: six Gaussian features with spreads 1.5 … 0.5, coefficients N(0.6, s² I) with s = 1 (diverse
people) or 0.3 (similar people), a pool of 500 pairs a person, Bradley–Terry answers, AUC on 1,000 fresh pairs. So
this is an upper bound: a real basis is learned. Writes OUT.json and OUT.md; about two minutes on two cores.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from rewards import files
from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.people import acquisition, calibration, questions
from rewards.people.acquisition import AnswerModel
from scripts import pages

NUM_BASIS, POOL, FRESH = 6, 500, 1000
SPREADS = np.linspace(1.5, 0.5, NUM_BASIS).astype(np.float32)
MEAN = 0.6
POPULATIONS = {"diverse": 1.0, "similar": 0.3}
COUNTS = (0, 1, 2, 5, 10, 20, 40)
RIDGE = (
    0.1  # of the estimator without a population: weak, only there because separable answers have no maximum
)
# name: (rule, whether the estimator knows the population)
ARMS = {
    "random, ridge-MLE": ("random", False),
    "random, MAP": ("random", True),
    "PReF rule, ridge-MLE": ("pref", False),
    "D-optimal, MAP": ("d-optimal", True),
    "information gain, MAP": ("information", True),
}
# Measured once by an independent implementation; the target of this one is ±.02.
REFERENCE = {
    "diverse": {
        "random, ridge-MLE": (0.500, 0.654, 0.703, 0.781, 0.828, 0.873, 0.901),
        "random, MAP": (0.712, 0.728, 0.757, 0.812, 0.850, 0.886, 0.906),
        "PReF rule, ridge-MLE": (0.500, 0.654, 0.732, 0.825, 0.875, 0.908, 0.919),
        "D-optimal, MAP": (0.712, 0.748, 0.775, 0.836, 0.888, 0.915, 0.925),
        "information gain, MAP": (0.712, 0.749, 0.781, 0.850, 0.893, 0.916, 0.926),
    },
    "similar": {
        "PReF rule, ridge-MLE": (0.500, 0.650, 0.736, 0.792, 0.821, 0.846, 0.861),
        "information gain, MAP": (0.853, 0.854, 0.855, 0.859, 0.868, 0.873, 0.877),
    },
}


@functools.partial(jax.jit, static_argnames=("rule", "steps"))
def replay(mean, precision, pool, likes, keys, *, rule, steps):
    """Beliefs after 0 … steps questions of every person: mean[U, S+1, K], precision[U, S+1, K, K], and the
    questions with their answers, [U, S, K] and [U, S]."""
    model = AnswerModel.lapsing(jnp.float32(0.0))

    start = Belief.from_precision(mean, precision)

    def person(pool, likes, key):
        def ask(carry, _):
            asked, count, delta, outcome, belief = carry
            index = questions.best(
                acquisition.RULES[rule](belief, pool, model, jax.random.fold_in(key, count), start), ~asked
            )
            delta, outcome = delta.at[count].set(pool[index]), outcome.at[count].set(likes[index])
            weight = (jnp.arange(steps) <= count).astype(jnp.float32)
            coef, hessian = users.newton(mean, precision, delta, outcome, weight, jnp.float32(0.0))
            belief = Belief.from_precision(coef, hessian)
            return (asked.at[index].set(True), count + 1, delta, outcome, belief), (coef, hessian)

        empty = (jnp.zeros((steps, pool.shape[1])), jnp.zeros(steps))
        carry = (jnp.zeros(len(pool), bool), 0, *empty, start)
        (_, _, delta, outcome, _), (coefs, hessians) = jax.lax.scan(ask, carry, None, length=steps)
        return (
            jnp.concatenate([mean[None], coefs]),
            jnp.concatenate([precision[None], hessians]),
            delta,
            outcome,
        )

    return jax.vmap(person)(pool, likes, keys)


def make_world(seed: int, people: int, deviation: float) -> dict[str, np.ndarray]:
    """Coefficients, pools, and fresh pairs with the answers given to both."""
    rng = np.random.default_rng([seed, int(100 * deviation)])
    coef = MEAN + deviation * rng.normal(size=(people, NUM_BASIS))
    delta = np.sqrt(2) * SPREADS * rng.normal(size=(people, POOL + FRESH, NUM_BASIS))
    likes = rng.random((people, POOL + FRESH)) < 1 / (1 + np.exp(-np.einsum("upk,uk->up", delta, coef)))
    return {
        "coef": coef.astype(np.float32),
        "pool": delta[:, :POOL].astype(np.float32),
        "likes": likes[:, :POOL].astype(np.float32),
        "fresh": delta[:, POOL:].astype(np.float32),
        "fresh_likes": likes[:, POOL:],
    }


def auc(margin: np.ndarray, likes: np.ndarray) -> float:
    """Mean over people of the area under the ROC curve, ties half."""
    ranks, ups = rankdata(margin, axis=1), likes.sum(axis=1)
    area = (np.sum(ranks * likes, axis=1) - ups * (ups + 1) / 2) / (ups * (likes.shape[1] - ups))
    return float(area.mean())


def prior_of(deviation: float, knows_population: bool) -> tuple[np.ndarray, np.ndarray]:
    identity = np.eye(NUM_BASIS, dtype=np.float32)
    if not knows_population:
        return np.zeros(NUM_BASIS, np.float32), RIDGE * identity
    return np.full(NUM_BASIS, MEAN, np.float32), identity / np.float32(deviation**2)


def run_arm(world: dict[str, np.ndarray], deviation: float, rule: str, knows: bool, seed: int, steps: int):
    mean, precision = prior_of(deviation, knows)
    keys = jax.random.split(jax.random.key(seed), len(world["coef"]))
    beliefs = replay(mean, precision, world["pool"], world["likes"], keys, rule=rule, steps=steps)
    return [np.asarray(part) for part in beliefs]


def curve(world: dict[str, np.ndarray], coef: np.ndarray, counts: tuple[int, ...]) -> list[float]:
    """AUC after each of `counts` questions. An estimate of exactly 0 ranks nothing: one half."""
    return [
        auc(np.einsum("upk,uk->up", world["fresh"], coef[:, count]), world["fresh_likes"]) for count in counts
    ]


def cover(seed: int, people: int, deviation: float, counts: tuple[int, ...]) -> dict[str, dict]:
    """Coverage of 95 % regions of all coefficients and of single margins: raw, scaled, sampled.

    The questions are those information gain asks; the scales come from other people, drawn from the population.
    """
    counts = tuple(count for count in counts if count)
    normal = np.random.default_rng(0).normal(size=(100, NUM_BASIS))
    margins = np.asarray(np.sqrt(2) * SPREADS * normal, np.float32)
    mean, precision = prior_of(deviation, True)
    # Three times as many to fit the scales on: the noise of a quantile would count twice otherwise.
    worlds = [make_world(1000 * (part + 1) + seed, people * (3, 1)[part], deviation) for part in range(2)]
    (train, test), arms = (
        worlds,
        [run_arm(w, deviation, "information", True, seed, max(counts)) for w in worlds],
    )
    out: dict[str, dict] = {}
    for count in counts:
        parts = [(arm[0][:, count], arm[1][:, count]) for arm in arms]
        scales = calibration.scale_of(train["coef"], *parts[0], margins)
        raw = calibration.coverage(test["coef"], *parts[1], margins)
        scaled = {
            of: calibration.coverage(test["coef"], parts[1][0], parts[1][1] / scale, margins)[of]
            for of, scale in zip(("region", "margin"), scales, strict=True)
        }
        weight = np.broadcast_to(np.arange(max(counts)) < count, arms[1][3].shape).astype(np.float32)
        samples = calibration.sample(
            mean, precision, arms[1][2], arms[1][3], weight, np.float32(0), jax.random.key(seed)
        )
        sampled = calibration.sampled_coverage(test["coef"], np.asarray(samples), margins)
        out[str(count)] = {"scale": scales, "raw": raw, "scaled": scaled, "sampled": sampled}
    return out


def experiment(seeds: int, people: int, counts: tuple[int, ...]) -> dict:
    """All arms, both populations, `seeds` seeds; AUC as mean and standard deviation over seeds."""
    result: dict = {"seeds": list(range(seeds)), "people": people, "counts": list(counts), "auc": {}}
    for population, deviation in POPULATIONS.items():
        worlds = [make_world(seed, people, deviation) for seed in range(seeds)]
        table = {}
        for name, (rule, knows) in ARMS.items():
            curves = [
                curve(world, run_arm(world, deviation, rule, knows, seed, max(counts))[0], counts)
                for seed, world in enumerate(worlds)
            ]
            spread = np.std(curves, axis=0, ddof=1) if seeds > 1 else np.zeros(len(counts))
            table[name] = {"mean": np.mean(curves, axis=0).tolist(), "sd": spread.tolist()}
        result["auc"][population] = table
    result["coverage"] = cover(0, 4 * people, POPULATIONS["diverse"], counts)
    result["coverage_people"] = 4 * people
    result["largest_sd"] = max(max(row["sd"]) for table in result["auc"].values() for row in table.values())
    return result


def markdown(result: dict) -> str:
    """The tables of docs/results/cold_start.md."""
    counts = result["counts"]
    lines = [
        "# Cold start: questions, rules, error bars",
        "",
        f"`python -m scripts.experiments.cold_start --seeds {len(result['seeds'])} --people {result['people']}` "
        f"({result['seconds']:.0f} s). Known basis, K = {NUM_BASIS}, pool of {POOL} pairs a person, AUC on "
        f"{FRESH} fresh pairs, mean over seeds {', '.join(map(str, result['seeds']))} "
        f"(largest standard deviation over seeds {result['largest_sd']:.3f}).",
        "",
    ]
    for population, table in result["auc"].items():
        title = f"{population} people (prior sd {POPULATIONS[population]})"
        lines += [
            f"| {title}, questions | " + " | ".join(map(str, counts)) + " |",
            "|---" * (len(counts) + 1) + "|",
        ]
        lines += [
            f"| {name} | " + " | ".join(f"{value:.3f}" for value in row["mean"]) + " |"
            for name, row in table.items()
        ]
        lines.append("")
    far = sorted(
        (
            (abs(value - result["auc"][population][name]["mean"][i]), population, name, counts[i])
            for population, rows in REFERENCE.items()
            for name, values in rows.items()
            for i, value in enumerate(values)
        ),
        reverse=True,
    )
    beyond = [entry for entry in far if entry[0] > 0.02]
    lines += [
        f"Against an independent implementation of the same table ({len(far)} cells): mean difference "
        f"{np.mean([entry[0] for entry in far]):.3f}, largest {far[0][0]:.3f}; beyond .02: "
        + ("none" if not beyond else "; ".join(f"{n}, {p}, {c} questions ({d:.3f})" for d, p, n, c in beyond))
        + ".",
        "",
        f"Coverage of 95 % regions (all coefficients / single margins), {result['coverage_people']} diverse people asked "
        "by information gain; scales fitted on three times as many others:",
        "",
        "| answers | Laplace | scaled | sampled | scales |",
        "|---|---|---|---|---|",
    ]
    for count, row in result["coverage"].items():
        cells = [
            f"{row[kind]['region']:.3f} / {row[kind]['margin']:.3f}" for kind in ("raw", "scaled", "sampled")
        ]
        scale = " / ".join(f"{value:.2f}" for value in row["scale"])
        lines.append(f"| {count} | " + " | ".join(cells) + f" | {scale} |")
    error = np.sqrt(0.95 * 0.05 / result["coverage_people"])
    lines += ["", f"Standard error of a region's coverage: {error:.3f}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = pages.options(__doc__, "cold_start", seeds=3)
    parser.add_argument("--people", type=int, default=200)
    args = parser.parse_args()
    result = pages.obtain(args, lambda: experiment(args.seeds, args.people, COUNTS))
    files.write_text(Path(f"{args.out}.md"), markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
