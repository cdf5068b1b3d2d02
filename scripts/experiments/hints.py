"""Is a hint learned from fewer interactions than a rating, and does it stay with the person who gave it?

    python -m scripts.experiments.hints [--seeds 5] [--iterations 40] [--out docs/results/hints]

A two-layer decoder of 32 tokens is first taught a small language: a topic is answered by a chain of words, six to ten of
them but for a share of 3 (or 30) in 1000 answers of two; after the token for "shorter, please" nearly always two. Then one
person, A, is served.
A wants two or three right words. A sees eight completions an iteration and reacts to each: with a thumb (content or not),
with a grade (0 for wrong words or fewer than two, else the higher the shorter), with the hint (on every completion of more
than three words), or with grades and hints. What A reacts to is counted in completions, for all alike. The teacher is the
policy from before the first hint; one arm lets it follow the policy, by an exponential average.

Afterwards: how far have the policies of others moved, as a share of A's own shift? Other people are draws from N(0, I) over
four coefficients, as A is. And the coefficient side: ratings, directives and both as observations about w_u.

This is a small model on an artificial language; it says how the mechanisms compare, not how large they are on a large
model. Writes OUT.json (curves in OUT.json.gz), OUT.md and OUT.png; about ten minutes on two idle cores.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rewards import files
from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.people import edits
from rlhf.policy.logprobs import PolicyParams
from rlhf.train.hints import loss as hints
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl.update import init_state, update
from scripts import pages
from scripts.experiments.hints_page import markdown, plot
from scripts.experiments.hints_world import (
    JUDGED,
    ROWS,
    SHORT,
    K,
    World,
    draw,
    judge,
    make_settings,
    make_world,
    student_reading,
    teacher_reading,
)

AVERAGE = 0.05  # share of the policy that a following teacher takes in an iteration
SHARES = (0.003, 0.03)  # of short answers without a hint: a wish for something rare, and for something known
RATES = (0.002, 0.004)  # every arm is reported at the rate that is best for it
ANCHOR = 5.0


@dataclasses.dataclass(frozen=True)
class Arm:
    """What A reacts with, what it may change, and who is held."""

    rated: str | None
    hinted: bool
    moves: tuple[str, ...] = ("conditioner",)
    anchors: int = 0  # people whose policies are held; 0 for none
    kind: str = "forward"
    follows: bool = False  # whether the teacher follows the policy


ARMS = {
    "thumbs": Arm("thumbs", False),
    "grades": Arm("grades", False),
    "hints": Arm(None, True),
    "hints, reverse KL": Arm(None, True, kind="reverse"),
    "hints, teacher follows": Arm(None, True, follows=True),
    "grades and hints": Arm("grades", True),
}
ISOLATION = {
    "LoRA and conditioner": Arm(None, True, moves=("lora", "conditioner")),
    "conditioner": Arm(None, True),
    "conditioner, 3 people held": Arm(None, True, anchors=3),
    "conditioner, 16 people held": Arm(None, True, anchors=16),
}


def learn(world: World, arm: Arm, rate: float, seed: int, iterations: int) -> tuple[dict, dict]:
    """A's interactions under one arm: the trained parts, and the share of short completions by iteration."""
    term = dataclasses.replace(world.term, moves=arm.moves, kind=arm.kind)
    program = dataclasses.replace(world.program, extra=term)
    rng, key = np.random.default_rng([seed, 1]), jax.random.key(1000 + seed)
    z, others = rng.normal(size=K).astype(np.float32), rng.normal(size=(16, K)).astype(np.float32)
    start = {"lora": world.frozen.lora, "conditioner": world.frozen.conditioner}
    settings = make_settings(rate, iterations)
    state = init_state(jax.tree.map(jnp.copy, start), settings, jax.random.key(2000 + seed))
    first = draw(world, start, np.zeros(K), jax.random.fold_in(key, 10**6), JUDGED)  # everybody's, before
    short, words, average = [], [], start
    for step in range(iterations):
        key_step = jax.random.fold_in(key, step)
        rollout = draw(world, state.params, z, key_step, ROWS)
        length, grade, content = judge(rollout)
        rating = {"thumbs": content, "grades": grade, None: np.zeros(ROWS)}[arm.rated]
        short.append(float(np.mean(content)))
        words.append(float(np.mean(length)))
        rewards = jnp.zeros((ROWS, K)).at[:, 0].set(rating.astype(np.float32))
        if arm.follows:
            average = optax.incremental_update(state.params, average, AVERAGE)
        params = world.frozen._replace(**average)
        extra = None
        if arm.hinted:
            mask = rollout.mask & jnp.asarray(length > SHORT)[:, None]
            own = (student_reading(rollout), teacher_reading(rollout), mask, rollout.logprobs)
            extra = hints.hint_rows(params, *own, 1.0, key_step, term=term)
        if arm.anchors:
            pick = rng.integers(0, JUDGED, ROWS)
            held = others[rng.integers(0, arm.anchors, ROWS)]
            reading = hints.Reading(first.tokens[pick], first.starts[pick], jnp.asarray(held))
            before = world.frozen._replace(**start)
            rows = hints.anchor_rows(before, reading, first.mask[pick], ANCHOR, key_step, term=term)
            extra = rows if extra is None else hints.join([extra, rows])
        state, _ = update(state, rollout, rewards, world.frozen, settings, program=program, extra=extra)
    return state.params, {"short": short, "words": words, "z": z, "others": others, "first": first}


@functools.partial(jax.jit, static_argnames="term")
def _mean_divergence(params: PolicyParams, rows: hints.HintRows, *, term: hints.HintTerm) -> jax.Array:
    return term(params, rows)[1]["train/hint_kl_nats"]


def shift(world: World, trained: dict, z: np.ndarray, first: rollouts.Rollout) -> float:
    """KL(before ‖ after) at z on completions from before, mean nats a token."""
    reading = student_reading(first, np.broadcast_to(z, (JUDGED, K)).astype(np.float32))
    rows = hints.anchor_rows(world.frozen, reading, first.mask, 1.0, jax.random.key(0), term=world.term)
    return float(_mean_divergence(world.frozen._replace(**trained), rows, term=world.term))


def isolation(world: World, trained: dict, curve: dict, anchors: int, seed: int) -> dict:
    """Shifts of A, of nobody, of those held, and of people never held, each against |cos| with A."""
    z, others = curve["z"], curve["others"]
    unseen = np.random.default_rng([seed, 2]).normal(size=(8, K)).astype(np.float32)
    own = shift(world, trained, z, curve["first"])

    def share(people):
        return [shift(world, trained, other, curve["first"]) / own for other in people]

    return {
        "A_nats_a_token": own,
        "nobody": shift(world, trained, np.zeros(K, np.float32), curve["first"]) / own,
        "held": share(others[:anchors]) if anchors else [],
        "unseen": share(unseen),
        "cosine": (unseen @ z / np.linalg.norm(unseen, axis=1) / np.linalg.norm(z)).tolist(),
        "short_at_end": float(np.mean(curve["short"][-5:])),
    }


def until(short: list[float], level: float = 0.8, window: int = 4) -> float | None:
    """Completions A reacted to until `level` of the last 32 are; None when it does not come to that."""
    means = np.convolve(short, np.ones(window) / window, mode="valid")
    reached = np.flatnonzero(means >= level)
    return float((reached[0] + window) * ROWS) if len(reached) else None


def coefficients(seed: int, people: int = 100, size: int = 6) -> dict[str, list[float]]:
    """Accuracy on fresh pairs after 0, 3, 6 and 12 reactions: answers to comparisons, directives, or both.

    A directive names the axis on which the belief is furthest from the person, and the side; it becomes the statement
    that `users edit` makes of words: one standard deviation towards that side, held softly.
    """
    rng = np.random.default_rng([seed, 3])
    prior = Belief.from_cov(np.full(size, 0.3, np.float32), np.eye(size, dtype=np.float32))
    counts, out = (0, 3, 6, 12), {"ratings": [], "directives": [], "both": []}
    hits = {name: np.zeros((people, len(counts))) for name in out}
    for person in range(people):
        coef = prior.mean + rng.normal(size=size)
        fresh, pairs = rng.normal(size=(400, size)), rng.normal(size=(max(counts), size))
        answers = (rng.random(len(pairs)) < 1 / (1 + np.exp(-pairs @ coef))).astype(np.float32)
        for name in out:
            said: list[edits.Edit] = []
            for step in range(max(counts) + 1):
                used = 0 if name == "directives" else step
                belief = users.posterior(edits.apply(prior, tuple(said)), pairs[:used], answers[:used])
                if step in counts:
                    right = np.mean((fresh @ coef > 0) == (fresh @ belief.mean > 0))
                    hits[name][person, counts.index(step)] = right
                if name != "ratings":
                    gap = coef - belief.mean
                    axis = int(np.argmax(np.abs(gap)))
                    value = float(belief.mean[axis] + np.sign(gap[axis]) * edits.STEP)
                    direction = tuple(np.eye(size)[axis].tolist())
                    said.append(edits.Edit(f"axis {axis}", "", direction, value, edits.SOFT, ""))
    return {name: hits[name].mean(axis=0).tolist() for name in out}


def experiment(seeds: int, iterations: int) -> Iterator[dict]:
    """Everything, seed by seed: what is known after each."""
    result: dict = {"seeds": 0, "iterations": iterations, "language_loss": [], "coefficients": []}
    result |= {"learning": {str(share): {} for share in SHARES}, "isolation": {}}
    for seed in range(seeds):
        for share in SHARES:
            world, loss = make_world(seed, share)
            result["language_loss"].append(loss)
            for (name, arm), rate in itertools.product(ARMS.items(), RATES):
                _, curve = learn(world, arm, rate, seed, iterations)
                row = {"short": curve["short"], "words": curve["words"], "until": until(curve["short"])}
                result["learning"][str(share)].setdefault(name, {}).setdefault(str(rate), []).append(row)
                end = f"{np.mean(row['short'][-5:]):.2f} {np.mean(row['words'][-5:]):.1f} words"
                print(seed, share, name, rate, row["until"], end, f"{time.process_time():.0f} s", flush=True)
        for name, arm in ISOLATION.items():
            trained, curve = learn(world, arm, RATES[-1], seed, iterations)
            row = isolation(world, trained, curve, arm.anchors, seed)
            result["isolation"].setdefault(name, []).append(row)
            print(seed, name, {k: np.round(v, 3).tolist() for k, v in row.items()}, flush=True)
        result["coefficients"].append(coefficients(seed))
        result["seeds"] = seed + 1
        yield result


def write(result: dict, store: Path) -> None:
    files.write_text(store.with_suffix(".md"), markdown(result))
    plot(result, store.with_suffix(".png"))


def main() -> None:
    args = pages.options(__doc__, "hints", iterations=40).parse_args()
    path, start = Path(f"{args.out}.json"), time.perf_counter()
    if args.write:
        return write(pages.read_numbers(path), path)
    for result in experiment(args.seeds, args.iterations):
        result["seconds"] = time.perf_counter() - start
        pages.write_numbers(path, result, raw=("learning",))
        write(result, path)


if __name__ == "__main__":
    main()
