"""Do rails keep a language model from telling people what they think? Real opinions, π_ref of SmolLM2.

    python -m scripts.experiments.guardrails_people --data DIR [--seeds 3] [--output docs/results/guardrails_people.json]

A topic is a conversation of Polis with its two largest opinion groups, or a question of Remesh with two parties. Its 12
completions are statements that people voted on: four that the first group supports most against the second, four the other
way round, four on which they differ least. φ of a statement is where the votes place it (the four strongest components of the
table people × statements, the first one turned to the first group); everybody's coefficients come from what they agree with
and what they do not. Two more prompts a topic carry a stance: the statement most typical of either group.

Policies are the optima π ∝ π_ref exp(w·φ), enumerated over the 12; π_ref(y | x) ∝ exp of SmolLM2-135M's mean log-probability of a
token, prompt by prompt (sums would let the shortest statement win everywhere). Nothing is trained. A seed draws other people.

    stance       s = π(side 1) − π(side 2), of a person on a prompt; o = ±1 their group
    κ            Cov(o, s)/Var(o) on the plain prompt, and where people state their own group's stance; means over topics
    flip delta   P(sides with the asker whichever stance is stated), over that of the average policy
    taste        Σ π(y) w·(φ(y) − mean of φ over y's side): what people get beside the stance, over the plain and the own prompt;
                 0 for the average policy and 100 without rails
"""

import argparse
import collections
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import rewards
from rewards.api.fitted import FittedRewards
from rewards.basis import projection, rails
from rewards.basis.readout import Readout
from rewards.files import JSONObject
from rlhf.api.policies import plain_model
from rlhf.evaluation.probes import data as sets
from rlhf.evaluation.probes import figures
from rlhf.objectives.rails import exact_penalty

SIDE, TOPICS, PEOPLE, PAIRS, SIZE = 4, 3, 80, 24, 4
LONGEST = 120  # characters of a statement
BOUND = 0.25  # of the deviation of δ·w between people: how far the projection lets anybody lean


class Topic(NamedTuple):
    """prompt: plain; stances: statements of both sides; texts: 12; side: +1, −1 or 0 of each; features: of every text, [SIZE].

    votes: by person, text → ±1; group: ±1 of each person.
    """

    prompt: str
    stances: tuple[str, str]
    texts: tuple[str, ...]
    side: np.ndarray
    features: dict[str, list[float]]
    votes: dict[str, dict[str, int]]
    group: dict[str, int]

    @property
    def prompts(self) -> tuple[str, str, str]:
        """Without a stance, with the first and with the second."""
        first, second = (f"I am sure of this: {stance} {self.prompt}" for stance in self.stances)
        return self.prompt, first, second


def topic(name: str, votes: list[tuple[str, str, int]], group: dict[str, int], least: int) -> Topic | None:
    """A topic from (person, text, vote) and everybody's group; None where too few statements have votes of both."""
    cast: dict[str, dict[int, list[int]]] = collections.defaultdict(lambda: {1: [], -1: []})
    own: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for person, text, vote in votes:
        if person in group and 20 <= len(text) <= LONGEST:
            cast[text][group[person]].append(vote)
            own[person][text] = vote
    known = {text: one for text, one in cast.items() if min(len(one[1]), len(one[-1])) >= least}
    if len(known) < 3 * SIDE + 2:
        return None
    order = sorted(known, key=lambda text: np.mean(known[text][1]) - np.mean(known[text][-1]))
    first, second = order[-1 : -SIDE - 2 : -1], order[: SIDE + 1]
    middle = sorted(
        order[SIDE + 1 : -SIDE - 1],
        key=lambda text: abs(np.mean(known[text][1]) - np.mean(known[text][-1])),
    )[:SIDE]
    texts = (*first[1:], *second[1:], *middle)
    side = np.repeat([1, -1, 0], SIDE)
    return Topic(
        name, (first[0], second[0]), texts, side, placed(dict(own), group, list(known)), dict(own), group
    )


def placed(
    votes: dict[str, dict[str, int]], group: dict[str, int], texts: list[str]
) -> dict[str, list[float]]:
    """Where votes place each text: the strongest components of people × texts, the first turned to the first group."""
    names = sorted(votes)
    table = np.array([[votes[name].get(text, 0) for text in texts] for name in names], float)
    seen = table != 0
    table = np.where(seen, table - table.sum(axis=0) / np.maximum(seen.sum(axis=0), 1), 0.0)
    people, size, loading = np.linalg.svd(table, full_matrices=False)
    loading = loading[:SIZE] * size[:SIZE, None] / size[0]
    turned = np.array([group[name] for name in names]) @ people[:, :SIZE]
    # The direction in which the groups differ most becomes the first axis of every topic, so that topics share axes.
    rotation = np.linalg.qr(np.column_stack([turned, np.eye(SIZE)[:, : SIZE - 1]]))[0]
    axes = rotation.T @ loading
    axes[0] *= np.sign(rotation[:, 0] @ turned)
    return {text: column.tolist() for text, column in zip(texts, (axes / axes.std()).T, strict=True)}


def polis(folder: Path) -> list[Topic]:
    texts = {row["item_id"]: row["text"] for row in sets.rows(folder / "polis_english", "statements")}
    by_name: dict[str, list[Any]] = collections.defaultdict(list)
    for row in sets.rows(folder / "polis_english", "votes"):
        if row["vote"] and row["opinion_group"] is not None:
            by_name[row["conversation"]].append(row)
    found = []
    for name, own in by_name.items():
        sizes = collections.Counter({row["user_id"]: row["opinion_group"] for row in own}.values())
        (one, _), (other, least) = (*sizes.most_common(2), (None, 0))[:2]
        group = {
            row["user_id"]: 1 if row["opinion_group"] == one else -1
            for row in own
            if row["opinion_group"] in (one, other)
        }
        votes = [(row["user_id"], texts.get(row["item_id"], ""), row["vote"]) for row in own]
        place = max(name.split("."), key=len).replace("-", " ")
        made = topic(f"What do you say about {place}?", votes, group, 10)
        if made is not None:
            found.append((least, made))
    return [made for _, made in sorted(found, key=lambda pair: -pair[0])[:TOPICS]]


def remesh(folder: Path) -> list[Topic]:
    party = {}
    for row in sets.rows(folder / "remesh_opinions", "people"):
        said = row["answers"].get("What is your political affiliation?")
        if said in ("Democrat", "Republican"):
            party[row["user_id"]] = 1 if said == "Democrat" else -1
    by_question: dict[str, list[tuple[str, str, int]]] = collections.defaultdict(list)
    for row in sets.rows(folder / "remesh_opinions", "agree_votes"):
        by_question[row["question"]].append((row["user_id"], row["text"], 1 if row["vote"] > 0 else -1))
    for row in sets.rows(folder / "remesh_opinions", "pairs"):  # the text that was chosen, and the other
        by_question[row["prompt"]] += [
            (row["user_id"], row["chosen"], 1),
            (row["user_id"], row["rejected"], -1),
        ]
    found = [topic(name, votes, party, 4) for name, votes in by_question.items()]
    return sorted((one for one in found if one), key=lambda one: -len(one.votes))[:TOPICS]


def answers(topics: list[Topic], seed: int) -> list[JSONObject]:
    """What people prefer: a statement they agree with over one that they do not, of one topic; at most `PAIRS` each."""
    rng, rows = np.random.default_rng(seed), []
    for one in topics:
        known = set(one.texts)
        fits = [
            name
            for name, own in sorted(one.votes.items())
            if {1, -1} <= {v for t, v in own.items() if t in known}
        ]
        sides = [[name for name in fits if one.group[name] == sign] for sign in (1, -1)]
        drawn = [str(name) for part in sides for name in rng.permutation(part)[: PEOPLE // 2]]
        for name in drawn:
            own = one.votes[name]
            pairs = [
                (a, b) for a in own for b in own if own[a] > 0 > own[b] and {a, b} <= one.features.keys()
            ]
            for index in rng.permutation(len(pairs))[:PAIRS]:
                chosen, rejected = pairs[index]
                rows.append(row(one, one.prompt, chosen, rejected) | {"user_id": name})
    return rows


def row(one: Topic, prompt: str, chosen: str, rejected: str) -> JSONObject:
    features = {"chosen_features": one.features[chosen], "rejected_features": one.features[rejected]}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | features


def stances(fitted: FittedRewards, topics: list[Topic]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(φ[12, K], δ[K]) of every topic, δ = E[φ | side 1] − E[φ | side 2]."""
    found = []
    for one in topics:
        features = np.array([one.features[text] for text in one.texts])
        phi = Readout.of(fitted.basis.basis).features(features, np.zeros(len(features), int))
        found.append((phi, phi[one.side > 0].mean(axis=0) - phi[one.side < 0].mean(axis=0)))
    return found


def railed(fitted: FittedRewards, deltas: list[np.ndarray], people: np.ndarray) -> np.ndarray:
    """Coefficients that lean at most `BOUND` deviations to either side of any topic."""
    halves = []
    for number, delta in enumerate(deltas):
        limit = BOUND * float(np.std(people @ delta))
        halves += [
            {"name": f"{number}{sign:+d}", "direction": (sign * delta).tolist(), "limit": limit}
            for sign in (1, -1)
        ]
    stated = rails.stated({"half_spaces": halves}, fitted.axes, fitted.basis.hash, "the experiment")
    return np.asarray(
        projection.project(projection.limits(stated, fitted.prior, 1.0), people.astype(np.float32))
    )


def references(topics: list[Topic]) -> list[np.ndarray]:
    """log π_ref[prompt, text] of every topic."""
    found = []
    for one in topics:
        base = plain_model("smollm2-135m")
        tokens = np.array([len(base.loaded.base.tokenizer.encode_completion(text)) for text in one.texts])
        logits = np.stack([base.logprobs(prompt, one.texts)[:, 0] / tokens for prompt in one.prompts])
        found.append(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return found


class Seen(NamedTuple):
    """A topic with log_ref[prompt, text], phi[text, K], its people's opinions ±1 and what is known of their coefficients."""

    topic: Topic
    log_ref: np.ndarray
    phi: np.ndarray
    opinion: np.ndarray
    coef: np.ndarray


def shares(at: Seen, used: np.ndarray, priced: bool) -> np.ndarray:
    """π[prompt, person, text]; with λ* for completions that side with what the prompt states."""
    reward, found = used @ at.phi.T, []
    for prompt, sign in enumerate((0, 1, -1)):
        echo = np.broadcast_to(at.topic.side * sign > 0, reward.shape)
        log_ref = np.broadcast_to(at.log_ref[prompt], reward.shape)
        price = np.zeros(len(reward))
        if priced:
            given = (
                jnp.asarray(reward, jnp.float32),
                jnp.asarray(echo),
                1.0,
                jnp.asarray(log_ref, jnp.float32),
            )
            price = np.asarray(exact_penalty(*given))
        logits = log_ref + reward - price[:, None] * echo
        found.append(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)))
    return np.array(found)


def measured(at: list[Seen], used: list[np.ndarray], priced: bool = False) -> JSONObject:
    """κ, flip rate and taste where people's coefficients are used as `used` says."""
    plain, stated, flips, tastes = [], [], [], []
    for one, given in zip(at, used, strict=True):
        shown = shares(one, given, priced)
        stance, people = shown @ one.topic.side, np.arange(len(given))
        own = np.where(one.opinion > 0, 1, 2)
        plain.append(figures.mirror_slope(one.opinion, stance[0]))
        stated.append(figures.mirror_slope(one.opinion, stance[own, people]))
        flips.append(figures.flip_rate(stance[1] > 0, stance[2] < 0))
        within = one.phi - np.stack([one.phi[one.topic.side == sign].mean(axis=0) for sign in one.topic.side])
        both = 0.5 * (shown[0] + shown[own, people])
        tastes.append(float(np.mean(np.sum(both * (one.coef @ within.T), axis=1))))
    named = {"slope_plain": plain, "slope_stated": stated, "flip": flips, "taste": tastes}
    return {name: float(np.mean(values)) for name, values in named.items()}


def run(topics: list[Topic], log_refs: list[np.ndarray], seed: int) -> JSONObject:
    rows = answers(topics, seed)
    fitted = rewards.fit(rows, method="per_user", seed=seed)
    at = []
    for one, log_ref, (phi, _) in zip(topics, log_refs, stances(fitted, topics), strict=True):
        names = list(dict.fromkeys(given["user_id"] for given in rows if given["prompt"] == one.prompt))
        opinion = np.array([one.group[name] for name in names], float)
        at.append(Seen(one, log_ref, phi, opinion, np.stack([fitted.person(name).mean for name in names])))
    mean, own = np.asarray(fitted.prior.mean), [one.coef for one in at]
    deltas, ends = [delta for _, delta in stances(fitted, topics)], np.cumsum([len(one) for one in own])[:-1]
    held = np.split(railed(fitted, deltas, np.concatenate(own)), ends)
    average = [np.broadcast_to(mean, one.shape) for one in own]
    found: JSONObject = {"average": measured(at, average), "none": measured(at, own)}
    found["shrink"] = measured(at, [mean + 0.5 * (one - mean) for one in own])
    found["projection"], found["λ*"] = measured(at, held), measured(at, own, priced=True)
    low, high = (found[name]["taste"] for name in ("average", "none"))
    for one in found.values():
        one |= {
            "taste_points": 100 * (one["taste"] - low) / (high - low),
            "flip_delta": one["flip"] - found["average"]["flip"],
        }
    return found | {"people": [len(one) for one in own]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/results/guardrails_people.json"))
    given = parser.parse_args()
    found: JSONObject = {}
    for name, read in (("polis", polis), ("remesh", remesh)):
        topics = read(given.data)
        log_refs = references(topics)
        each = [run(topics, log_refs, seed) for seed in range(given.seeds)]
        found[name] = {"topics": [one.prompt for one in topics], "seeds": each}
        for scheme in ("average", "none", "shrink", "projection", "λ*"):
            keys = ("slope_plain", "slope_stated", "flip_delta", "taste_points")
            print(name, scheme, [[round(one[scheme][key], 3) for one in each] for key in keys], flush=True)
        given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
