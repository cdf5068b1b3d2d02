"""Does it pay to lead people? Dialogues of ten questions on a real pool, trained on six rewards, under two beliefs.

    python -m scripts.experiments.curiosity --rewards runs/electricity/rewards [--seeds 5] [--out docs/results/curiosity]

The pool, the prior and the people are those of a fitted reward run (`chorus rewards fit configs/electricity/rewards.yaml`):
the true coefficients of a simulated person are a real person's posterior mean. Policies learn on half of the people and
are judged on the other half, and by pairs that are never asked. Every question can be put neutrally (answers genuine but
for the lapse) or leadingly (95 of 100 answers say what the question suggests). The informed belief knows that, the naive
one takes every answer at face value. Policies choose among eight pairs of texts a turn; no language model writes anything.

Writes OUT.json (curves in OUT.json.gz) and OUT.md. About ten minutes on two cores.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rewards import files
from rewards.basis.belief import Belief
from rewards.basis.store import load_reward_run
from rewards.people import acquisition
from rewards.people.acquisition import AnswerModel
from rewards.people.population import load_people
from rlhf.run.record import traced
from rlhf.train import optim
from scripts import pages
from scripts.experiments import dialogue, dialogue_ppo
from scripts.experiments import potentials as curiosity
from scripts.experiments.dialogue import DialogueProgram, Offer, World
from scripts.experiments.dialogue_ppo import DialogueNumbers

LAPSE = 0.1
LEADING = (0.05, 0.0, 0.95, 4.0)  # genuine, coin, framed, pull: 95 of 100 say yes
TURNS, OFFERED, DIALOGUES, ITERATIONS, JUDGED = 10, 8, 128, 120, 2000
LEARNING_RATE = 0.02


def log_accuracy(beliefs: Belief, coef: jax.Array, pairs: jax.Array) -> jax.Array:
    return curiosity.log_accuracy(beliefs, coef)


def expected_regret(beliefs: Belief, coef: jax.Array, pairs: jax.Array) -> jax.Array:
    return curiosity.expected_regret(beliefs, pairs)


def minus_entropy(beliefs: Belief, coef: jax.Array, pairs: jax.Array) -> jax.Array:
    """What must not be paid; here to show why."""
    return -dialogue.entropy(beliefs)


# name: (potential, closed, weight of curiosity, weight of the outcome)
REWARDS = {
    "outcome": (None, True, 0.0, 1.0),
    "outcome, shaped by log-accuracy": (log_accuracy, True, 0.05, 1.0),
    "outcome, shaped by regret": (expected_regret, True, 1.0, 1.0),
    "log-accuracy": (log_accuracy, False, 1.0, 0.0),
    "expected regret": (expected_regret, False, 1.0, 0.0),
    "raw entropy": (minus_entropy, False, 1.0, 0.0),
}


def gains(offer: Offer, way: int) -> jax.Array:
    """Expected information of every pair put in one way, as the belief reckons, [B, C]."""
    model = AnswerModel(*(jnp.asarray(part)[way] for part in offer.assumed))
    return jax.vmap(acquisition.information, (0, 0, None))(offer.belief, offer.questions, model)


def most_information(params, offer: Offer, key: jax.Array) -> jax.Array:
    both = jnp.stack([gains(offer, way) for way in (0, 1)], axis=-1)
    return jnp.argmax(both.reshape(len(both), -1), axis=-1)


def leading(params, offer: Offer, key: jax.Array) -> jax.Array:
    """The question about which the belief is least sure, always put leadingly."""
    spread = jnp.einsum("bck,bkl,bcl->bc", offer.questions, offer.belief.cov, offer.questions)
    return 2 * jnp.argmax(spread, axis=-1) + 1


def random_neutral(params, offer: Offer, key: jax.Array) -> jax.Array:
    batch, num_offered, _ = offer.questions.shape
    return 2 * jax.random.randint(key, (batch,), 0, num_offered)


FIXED = {"random": random_neutral, "information gain": most_information, "leading": leading}


def make_worlds(run_dir: str, seed: int, informed: bool) -> tuple[World, World]:
    """Worlds to learn in and to be judged in: other people, the same pool."""
    run = load_reward_run(run_dir)
    questions = files.read_json(run.directory / "questions.json")["questions"]
    delta = np.array([question["delta_features"] for question in questions], np.float32)
    people = np.stack([posterior.mean for posterior in load_people(run).posteriors])
    rng = np.random.default_rng(seed)
    delta, people = rng.permutation(delta), rng.permutation(people)
    neutral = (1.0 - LAPSE, LAPSE, 0.0, 0.0)
    actual = AnswerModel(*(jnp.asarray(pair, jnp.float32) for pair in zip(neutral, LEADING, strict=True)))
    assumed = actual if informed else AnswerModel(*(jnp.repeat(jnp.asarray(part)[:1], 2) for part in actual))
    prior = Belief.from_cov(jnp.asarray(run.prior.mean, jnp.float32), jnp.asarray(run.prior.cov, jnp.float32))
    asked = 2 * len(delta) // 3
    half = len(people) // 2
    shared = (prior, jnp.asarray(delta[:asked]), jnp.asarray(delta[asked:]))
    first, second = (
        World(*shared, jnp.asarray(part), actual, assumed) for part in (people[:half], people[half:])
    )
    return first, second


def judge(params, world: World, seed: int, chooser) -> dict[str, float]:
    """A policy on people it has not learned from."""
    static = DialogueProgram(JUDGED, TURNS, OFFERED, None, False)
    talks = dialogue.converse(params, world, jax.random.key(10_000 + seed), static=static, chooser=chooser)
    return {name: float(value) for name, value in dialogue.summary(talks).items()}


def train(
    world: World, judged: World, reward: str, seed: int, iterations: int
) -> tuple[dict[str, float], list[float]]:
    """PPO on one reward: how it ends on the other half of the people, and regret along the way."""
    potential, closed, curious, outcome = REWARDS[reward]
    static = DialogueProgram(DIALOGUES, TURNS, OFFERED, potential, closed)
    params = dialogue_ppo.init_params(jax.random.key(seed), world.pool.shape[1])
    rates = traced(
        optim.OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant", beta2=0.99, eps=1e-6)
    )
    hyper = (rates, DialogueNumbers.of(curious=curious, outcome=outcome))
    state = optim.init_state(params, rates, jax.random.key(100 + seed))
    rows = []
    for _ in range(iterations):
        state, metrics = dialogue_ppo.iterate(state, world, hyper, static=static)
        rows.append(metrics)
    curve = [float(row["regret"]) for row in rows]
    return judge(state.params, judged, seed, dialogue.sampled_action), curve


def experiment(run_dir: str, seeds: int, iterations: int) -> dict:
    result: dict = {"seeds": seeds, "iterations": iterations, "policies": {}, "curves": {}}
    for informed in (False, True):
        belief = "informed" if informed else "naive"
        for name in [*FIXED, *REWARDS]:
            runs, curves = [], []
            for seed in range(seeds):
                world, judged = make_worlds(run_dir, seed, informed)
                if name in FIXED:
                    runs.append(judge({}, judged, seed, FIXED[name]))
                else:
                    run, curve = train(world, judged, name, seed, iterations)
                    runs.append(run)
                    curves.append(curve)
            result["policies"][f"{belief}: {name}"] = runs
            if curves:
                result["curves"][f"{belief}: {name}"] = curves
            print(f"{belief}: {name}: " + _line(runs), flush=True)
    return result


FIGURES = ("log_accuracy_gain", "entropy_drop", "accuracy", "regret", "leading_share")


def _line(runs: list[dict]) -> str:
    return " | ".join(
        f"{np.mean([r[f] for r in runs]):+.3f} ± {pages.half_width([r[f] for r in runs]):.3f}"
        for f in FIGURES
    )


def difference(result: dict, first: str, second: str, figure: str) -> tuple[float, float]:
    """Mean over seeds of first − second (the same people and pools), and half of its 95 % interval."""
    values = [
        a[figure] - b[figure]
        for a, b in zip(result["policies"][first], result["policies"][second], strict=True)
    ]
    return float(np.mean(values)), pages.half_width(values)


def markdown(result: dict) -> str:
    """The page docs/results/curiosity.md."""
    policies, seeds = result["policies"], result["seeds"]
    lines = [
        "# Curiosity: what it pays to ask",
        "",
        f"`python -m scripts.experiments.curiosity --rewards runs/electricity/rewards --seeds {seeds}` "
        f"({result['seconds']:.0f} s on two shared cores). Ten questions about electricity contracts, eight pairs offered a "
        f"turn, {result['iterations']} iterations of PPO with {DIALOGUES} dialogues; judged on {JUDGED} dialogues with the other "
        f"half of the people. Means over {seeds} seeds (people, pairs, training) ± half of the 95 % interval.",
        "",
        "- **log-accuracy**: log N(w*; m, S), gained in ten turns, nats. **sureness**: fall of the belief's entropy, nats.",
        "- **accuracy**: share of never asked pairs where the belief's choice is the person's. **regret**: what its choices "
        "lose, in units of reward a pair. **leading**: share of questions put leadingly.",
        "",
    ]
    for belief, says in (
        ("naive", "takes every answer at face value"),
        ("informed", "knows that leading answers are made up"),
    ):
        lines += [
            f"## A belief that {says}",
            "",
            "| policy | log-accuracy | sureness | accuracy | regret | leading |",
            "|---|---|---|---|---|---|",
        ]
        for name, runs in policies.items():
            if name.startswith(f"{belief}: "):
                label = name.removeprefix(f"{belief}: ")
                kind = label if label in FIXED else f"PPO on {label}"
                lines.append(f"| {kind} | " + _line(runs) + " |")
        lines.append("")
    lines += ["## What follows", ""]
    claims = (
        ("naive: leading", "naive: information gain", "leading minus information gain, naive belief"),
        (
            "informed: leading",
            "informed: information gain",
            "leading minus information gain, informed belief",
        ),
        (
            "naive: raw entropy",
            "naive: log-accuracy",
            "paid by raw entropy minus paid by log-accuracy, naive belief",
        ),
        ("informed: log-accuracy", "informed: random", "PPO on log-accuracy minus random, informed belief"),
        ("informed: information gain", "informed: random", "information gain minus random, informed belief"),
        (
            "informed: outcome, shaped by log-accuracy",
            "informed: outcome",
            "outcome with shaping minus outcome alone, informed belief",
        ),
    )
    lines += ["| paired difference over seeds | log-accuracy | accuracy | regret |", "|---|---|---|---|"]
    for first, second, label in claims:
        cells = []
        for figure in ("log_accuracy_gain", "accuracy", "regret"):
            mean, half = difference(result, first, second, figure)
            cells.append(f"{mean:+.3f} ± {half:.3f}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Regret in training, mean of {WINDOW} iterations, informed belief:",
        "",
        "| reward | " + " | ".join(f"iteration {at}" for at in _marks(result)) + " |",
        "|---" * (len(_marks(result)) + 1) + "|",
    ]
    for name in REWARDS:
        curves = np.mean(result["curves"][f"informed: {name}"], axis=0)
        means = [f"{np.mean(curves[max(0, at - WINDOW) : at]):.3f}" for at in _marks(result)]
        lines.append(f"| {name} | " + " | ".join(means) + " |")
    return "\n".join([*lines, "", *NOTES, ""])


WINDOW = 10
NOTES = (
    "Leading pays under no reward that knows the true person, and under none at all once the belief knows that leading answers "
    "are made up. Under a naive belief it pays for entropy and for expected regret, whose judge is the belief itself.",
    "",
    "Closed shaping (Φ = 0 at the end) adds the same constant to the return of every policy; "
    "`tests/scripts/test_curiosity.py` enumerates all 27 policies of a small dialogue to show it.",
    "",
    "Limits: the people are simulated from real people's posterior means and answer by the model that the informed belief "
    "assumes; the questions are pairs of a written pool, chosen by a small network. No language model asks anything here, and "
    "nothing is said about people's reaction to being asked.",
)


def _marks(result: dict) -> list[int]:
    return [round(share * result["iterations"]) for share in (1 / 12, 1 / 4, 1 / 2, 1)]


def main() -> None:
    parser = pages.options(__doc__, "curiosity", iterations=ITERATIONS)
    parser.add_argument("--rewards", help="a fitted reward run")
    args = parser.parse_args()
    if not args.write and args.rewards is None:
        parser.error("--rewards is missing")
    make = functools.partial(experiment, args.rewards, args.seeds, args.iterations)
    result = pages.obtain(args, make, raw=("curves",))
    files.write_text(Path(f"{args.out}.md"), markdown(result))


if __name__ == "__main__":
    main()
