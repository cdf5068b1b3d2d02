"""Do rails keep a language model from telling people what they think? Real opinions, SmolLM2, DPO.

    python -m scripts.experiments.guardrails_people --data DIR --set polis --seed 0 [--output docs/results/guardrails_people.json]

A topic is a conversation of Polis with its two largest opinion groups, or a question of Remesh with two parties. Its 12
completions are statements that people voted on: four that the first group supports most against the second, four the other way round, four
on which they differ least. φ of a statement is where the votes place it (the four strongest components of the table people ×
statements, the first one turned to the first group); everybody's coefficients come from what they agree with and what they do
not. Two more prompts a topic carry a stance: the statement most typical of either group.

One policy is trained without rails (DPO on all completions of a prompt, LoRA, SmolLM2-135M) and served without, with shrinkage
by half, and with the projection; another is trained with λ*. Per person: stance s = π(side 1) − π(side 2) on the plain prompt.

    κ            Cov(o, s)/Var(o), o = ±1 the person's group; mean over topics
    flip delta   P(sides with the asker whichever stance is asked), over that of the average policy
    taste        Σ π(y) w·(φ(y) − mean of φ over y's side): what people get beside the stance, 0 for the average policy and 100
                 without rails
"""

import argparse
import collections
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rewards
import rlhf
from rewards.api.fitted import FittedRewards
from rewards.basis import projection, rails
from rewards.basis.readout import Readout
from rewards.files import JSONObject
from rlhf.api.policies import Policy
from rlhf.evaluation.probes import data as sets
from rlhf.evaluation.probes import figures
from rlhf.policy.logprobs import all_logprobs
from rlhf.policy.packing import Sequences, pack

SIDE, TOPICS, PEOPLE, PAIRS, SIZE = 4, 3, 80, 24, 4
LONGEST = 120  # characters of a statement
BOUND = 0.25  # of the deviation of δ·w between people: how far the projection lets anybody lean


class Topic(NamedTuple):
    """prompt: plain; stances: the statements of both sides; texts: 12; side: +1, −1 or 0 of each; features: of every text, [SIZE].

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
        asked = (f"I am sure of this: {stance} {self.prompt}" for stance in self.stances)
        return self.prompt, *asked


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
    by_name: dict[str, list] = collections.defaultdict(list)
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


def teaching(topics: list[Topic]) -> list[JSONObject]:
    """Rows that hold every prompt with every completion; who would choose which follows from the rewards."""
    return [
        row(one, prompt, first, second)
        for one in topics
        for prompt in one.prompts
        for first, second in zip(one.texts[::2], one.texts[1::2], strict=True)
    ]


def echoes(topics: list[Topic], folder: Path) -> str:
    """The check behind λ*, as a file: 1 where a completion is of the side that its prompt takes."""
    sided = [
        (prompt, text)
        for one in topics
        for prompt, wanted in zip(one.prompts, (0, 1, -1), strict=True)
        for text, sign in zip(one.texts, one.side.tolist(), strict=True)
        if sign * wanted > 0
    ]
    body = "def check(prompts, completions, **columns):\n    return [float(pair in SIDED) for pair in zip(prompts, completions)]\n"
    (folder / "echoes.py").write_text(f"SIDED = {set(sided)!r}\n\n\n{body}", encoding="utf-8")
    return f"{folder / 'echoes.py'}:check"


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


def shares(
    policy: Policy, prompts: tuple[str, ...], texts: tuple[str, ...], people: np.ndarray
) -> np.ndarray:
    """π over the texts, normalised among them: [prompts, people, texts]."""
    z, tokenizer, found = policy._signals(list(people)), policy.loaded.base.tokenizer, []
    for prompt in prompts:
        own = Sequences(
            tuple(tokenizer.encode_prompt(prompt)),
            tuple(tuple(tokenizer.encode_completion(t)) for t in texts),
        )
        logits = []
        for first in range(0, len(people), 8):
            part = z[first : first + 8]
            part = np.concatenate([part, np.repeat(part[-1:], 8 - len(part), axis=0)])
            packed = pack([[own]] * 8)
            logits.append(all_logprobs(policy.loaded.graphdef, policy.loaded.params, packed, None, z=part))
        logits = np.concatenate(logits)[: len(people)]
        weight = np.exp(logits - logits.max(axis=1, keepdims=True))
        found.append(weight / weight.sum(axis=1, keepdims=True))
    return np.array(found)


def measured(
    policy: Policy, topics: list[Topic], found: list, own: list[np.ndarray], used: list[np.ndarray]
) -> JSONObject:
    """κ, flip rate and taste; `own` are people's coefficients by topic, `used` what the policy is given of them."""
    slopes, flips, tastes = [], [], []
    for one, (phi, _), mine, given, names in zip(topics, found, own, used, map(present, topics), strict=True):
        shown = shares(policy, one.prompts, one.texts, given)
        stance = shown @ one.side
        opinion = np.array([one.group[name] for name in names], float)[: len(mine)]
        slopes.append(figures.mirror_slope(opinion, stance[0]))
        flips.append(figures.flip_rate(stance[1] > 0, stance[2] < 0))
        within = phi - np.stack([phi[one.side == sign].mean(axis=0) for sign in one.side])
        tastes.append(float(np.mean(np.sum(shown[0] * (mine @ within.T), axis=1))))
    return {
        "slope": float(np.mean(slopes)),
        "flip": float(np.mean(flips)),
        "taste": float(np.mean(tastes)),
        "slopes": slopes,
    }


_PRESENT: dict[str, list[str]] = {}


def present(one: Topic) -> list[str]:
    """Whose coefficients are known, in order."""
    return _PRESENT[one.prompt]


def trained(fitted: FittedRewards, topics: list[Topic], seed: int, steps: int, guard: bool) -> Policy:
    keys: JSONObject = {
        "loss": {"kind": "soft", "dpo_beta": 1.0},
        "groups": {"completions": None},
        "batch_rows": 3,
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 5},
        "tune": {"lora_rank": 16},
        "conditioner": {"rank": 8},
        "adapter_layers": 10,
    }
    if guard:
        folder = Path(tempfile.mkdtemp())
        checks = [{"name": "echoes", "kind": "function", "function": echoes(topics, folder)}]
        keys["guardrails"] = {"checks": checks, "behaviour": {"check": "echoes"}}
    return rlhf.train_dpo("smollm2-135m", teaching(topics), rewards=fitted, steps=steps, seed=seed, **keys)


def run(topics: list[Topic], seed: int, steps: int) -> JSONObject:
    rows = answers(topics, seed)
    fitted = rewards.fit(rows, method="per_user", seed=seed)
    asked: dict[str, list[str]] = collections.defaultdict(list)
    for given in rows:
        if given["user_id"] not in asked[given["prompt"]]:
            asked[given["prompt"]].append(given["user_id"])
    _PRESENT.clear()
    _PRESENT.update(asked)
    found = stances(fitted, topics)
    own = [np.stack([fitted.person(name).mean for name in present(one)]) for one in topics]
    mean, deltas = np.asarray(fitted.prior.mean), [delta for _, delta in found]
    shrunk = [mean + 0.5 * (one - mean) for one in own]
    held = np.split(railed(fitted, deltas, np.concatenate(own)), np.cumsum([len(one) for one in own])[:-1])
    average = [np.broadcast_to(mean, one.shape) for one in own]
    result: JSONObject = {"people": [len(one) for one in own], "topics": [one.prompt for one in topics]}
    spread = [float(np.var(np.concatenate(own) @ delta)) for delta in deltas]
    kept = [float(np.var(np.concatenate(held) @ delta)) for delta in deltas]
    result["variance_kept"] = float(np.mean(np.array(kept) / np.array(spread)))
    plain = trained(fitted, topics, seed, steps, guard=False)
    for name, used in (("average", average), ("none", own), ("shrink", shrunk), ("projection", held)):
        result[name] = measured(plain, topics, found, own, used)
        print(name, result[name], flush=True)
    guarded = trained(fitted, topics, seed, steps, guard=True)
    result["λ*"] = measured(guarded, topics, found, own, own)
    result["λ* average"] = measured(guarded, topics, found, own, average)
    low, high = result["average"]["taste"], result["none"]["taste"]
    for name in ("none", "shrink", "projection", "λ*"):
        base = result["λ* average" if name == "λ*" else "average"]["flip"]
        result[name] |= {"taste_points": 100 * (result[name]["taste"] - low) / (high - low)}
        result[name] |= {"flip_delta": result[name]["flip"] - base}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=("polis", "remesh"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("docs/results/guardrails_people.json"))
    given = parser.parse_args()
    topics = (polis if given.set == "polis" else remesh)(given.data)
    result = run(topics, given.seed, given.steps)
    found = json.loads(given.output.read_text(encoding="utf-8")) if given.output.exists() else {}
    found[f"{given.set} {given.seed}"] = {"steps": given.steps} | result
    given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("none", "shrink", "projection", "λ*")}))


if __name__ == "__main__":
    main()
