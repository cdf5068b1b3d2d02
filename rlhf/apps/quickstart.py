"""`chorus quickstart`: the whole story on real data, offline, resumable stage by stage.

model → data → reward basis → held-out people's recorded answers → supervised start → one conditioned policy →
two people with opposite taste ask the same question. Each stage is the ordinary job with a shipped configuration,
in a run directory of its own, so every part can be looked at, changed and run again.
"""

import dataclasses
import textwrap
import time
from pathlib import Path
from typing import TypeVar

import numpy as np

from rewards.basis.store import RewardRun, load_reward_run
from rewards.comparison.replay import ColdStart
from rewards.data import check, leak, stated_choice
from rewards.data.read import read_preferences
from rewards.files import JSONObject
from rewards.people import records
from rewards.types import Preferences
from rlhf.evaluation import policy as evaluate
from rlhf.evaluation.config import EvaluateConfig
from rlhf.models import fetch
from rlhf.phi import encoder
from rlhf.phi import fit as rewards_job
from rlhf.phi.config import RewardsConfig
from rlhf.phi.evaluate import evaluate_rewards
from rlhf.policy import store as policy_store
from rlhf.policy.generation import Drawing, complete
from rlhf.report import console_table
from rlhf.run.config.common import RunConfig
from rlhf.run.config.load import load
from rlhf.run.config.shipped import shipped
from rlhf.train import dpo, sft
from rlhf.train.config import DPOConfig, SFTConfig

T = TypeVar("T", bound=RunConfig)

QUESTION = "Which electricity supplier should I pick?"
COUNTS = (0, 3, 5, 10)


def run(output_dir: str, *, seed: int = 0) -> JSONObject:
    """Run every stage that is not finished yet and tell the story; returns the figures `--json` prints."""
    began = time.perf_counter()
    root = Path(output_dir)
    _say("1/7", "the language model")
    print(f"      SmolLM2-135M-Instruct in {fetch.fetch('smollm2-135m')}")
    _say("2/7", "the data: 361 people choosing electricity contracts")
    prefs = _check_data()
    _say("3/7", "reward basis and population, from the training people")
    config = _config("rewards", RewardsConfig, root, seed, [])
    rewards_job.fit(config)
    _say(
        "4/7", "people never seen: a few of their own recorded answers, then their last choices are predicted"
    )
    replay = evaluate_rewards(config)["evaluation"]
    _show_replay(replay)
    _say("5/7", "supervised start: the model learns to answer with a contract; this is π_ref")
    sft.run(_config("sft", SFTConfig, root, seed, []))
    _say("6/7", "one policy for everybody, conditioned on coefficients")
    dpo.run(
        _config("dpo", DPOConfig, root, seed, [f"rewards={root / 'rewards'}", f"model.name={root / 'sft'}"])
    )
    _say("7/7", "does each person get the answers that suit them?")
    links = [f"rewards={root / 'rewards'}", f"policy={root / 'policy'}", f"model.name={root / 'sft'}"]
    evaluation_config = _config("evaluate", EvaluateConfig, root, seed, links)
    result = evaluate.run(evaluation_config)
    _show_evaluation(result["enumerated"], result["sampled"])
    pair = two_people(evaluation_config, prefs, seed)
    _show_pair(pair)
    seconds = time.perf_counter() - began
    _show_places(root, pair, seconds)
    return {
        "run_dir": str(root),
        "seconds": seconds,
        "pooled_accuracy": replay["pooled_accuracy"]["mean"],
        "accuracy": {str(n): replay["accuracy"][str(n)]["mean"] for n in COUNTS},
        "accuracy_random": {str(n): replay["accuracy_random"][str(n)]["mean"] for n in COUNTS},
        "swapped_accuracy": replay["swap"]["swapped"]["mean"],
        "diagonal_dominance": result["enumerated"]["diagonal_dominance"],
        "own_beats_aggregate": result["enumerated"]["own_beats_aggregate"],
        "kl_to_optimum": result["enumerated"]["kl_to_optimum"],
        "valid_answers": result["sampled"]["valid_answers"],
        "people": list(pair.people),
        "answers": dict(zip(pair.people, pair.answers, strict=True)),
    }


def _config(name: str, schema: type[T], root: Path, seed: int, overrides: list[str]) -> T:
    folder = {"dpo": "policy", "evaluate": "evaluation"}.get(name, name)
    given = [f"output_dir={root / folder}", f"seed={seed}", *overrides]
    return load(shipped(f"quickstart/{name}.yaml"), given, schema)


def _say(number: str, text: str) -> None:
    print(f"\n[{number}] {text}", flush=True)


def _check_data() -> Preferences:
    prefs = read_preferences(str(stated_choice.fetch("electricity")))
    facts, leaked = check.describe(prefs), leak.leak_check(prefs)
    agreement = facts["agreement"]["rate"]
    print(
        f"      {prefs.num_comparisons} comparisons by {prefs.num_users} people over {prefs.num_items} contracts; "
        f"two people agree on a pair {agreement:.0%} of the time"
    )
    print(f"      leak check: {'ALARM: ' if leaked['alarm'] else 'silent: '}{leaked['message']}")
    return prefs


def _show_replay(replay: JSONObject) -> None:
    rows = [
        [str(n), _interval(replay["accuracy"][str(n)]), _interval(replay["accuracy_random"][str(n)])]
        for n in COUNTS
    ]
    console_table(
        f"accuracy on the last choices of {replay['people']} people never seen",
        ["answers", "chosen questions", "random questions"],
        rows,
    )
    swap = replay["swap"]
    print(f"      one model for everybody             {_interval(replay['pooled_accuracy'])}")
    print(f"      somebody else's coefficients (control) {_interval(swap['swapped'])}")


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.1%}  [{value['low']:.1%}, {value['high']:.1%}]"


def _show_evaluation(exact: JSONObject, sampled: JSONObject) -> None:
    lines = [
        ("own policy better than another person's", f"{exact['diagonal_dominance']:.1%} of pairs of people"),
        ("own policy better than the aggregate's", f"{exact['own_beats_aggregate']:.1%} of people"),
        (
            "mean reward: own / aggregate / another's / π_ref",
            " / ".join(
                f"{exact[name]:.2f}"
                for name in ("own_reward", "aggregate_reward", "swapped_reward", "reference_reward")
            ),
        ),
        (
            "KL to the best possible policy",
            f"{exact['kl_to_optimum']:.3f} nats (π_ref: {exact['kl_of_reference_to_optimum']:.2f})",
        ),
        (
            "KL to π_ref / to the aggregate policy",
            f"{exact['kl_to_reference']:.2f} / {exact['kl_to_aggregate']:.2f} nats",
        ),
        ("freely sampled answers that are real contracts", f"{sampled['valid_answers']:.1%}"),
    ]
    console_table(
        "one policy, exactly, over all 35 contracts", ["", "held-out people"], [list(line) for line in lines]
    )


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two people, what each is told, and what either answer is worth to both (nats, rows: whose taste)."""

    people: tuple[str, str]
    answers: tuple[str, str]
    worth: np.ndarray
    reasons: tuple[str, str]


def two_people(config: EvaluateConfig, prefs: Preferences, seed: int) -> Pair:
    """The two held-out people whose tastes are most opposed, their records, and the policy's answer to each.

    Opposed: the smallest inner product of z, the coefficients in units of the population's spread.
    """
    rewards = load_reward_run(config.rewards)
    policy = policy_store.load_policy(config.policy)
    phi = encoder.items_phi(rewards.basis, prefs)
    people, replayed = evaluate.held_out_people(config, prefs, rewards, policy, phi)
    first, second = sorted(np.unravel_index(np.argmin(people.z @ people.z.T), (len(people.z),) * 2))
    chosen = [int(first), int(second)]
    for index in chosen:
        remember(rewards, prefs, phi, replayed, index, people.user_ids[index])
    texts = [
        completion.text.strip()
        for completion in complete(
            policy, [QUESTION] * 2, people.z[chosen], Drawing(48, temperature=0.0), seed=seed
        )
    ]
    worth, reasons = _worth(prefs, rewards, people.coef[chosen], phi, texts)
    names = (people.user_ids[chosen[0]], people.user_ids[chosen[1]])
    return Pair(names, (texts[0], texts[1]), worth, reasons)


def remember(
    rewards: RewardRun, prefs: Preferences, phi: np.ndarray, replayed: ColdStart, index: int, user_id: str
) -> None:
    """Write a held-out person's record from the answers that were replayed, so that `chorus users show` knows them."""
    if records.exists(rewards.users, user_id):
        return
    asked = [int(row) for row in replayed.questions[index] if row >= 0]
    answers = [records.answer_of(prefs, phi, row) for row in asked]
    records.append(rewards.users, rewards, user_id, answers)


def _worth(
    prefs: Preferences, rewards: RewardRun, coef: np.ndarray, phi: np.ndarray, texts: list[str]
) -> tuple[np.ndarray, tuple[str, str]]:
    """What each answer is worth to each person, and which axes make the difference."""
    items = [prefs.item_text.index(text) if text in prefs.item_text else -1 for text in texts]
    if min(items) < 0:
        unknown = "the answer is no known contract"
        return np.full((2, 2), np.nan), (unknown, unknown)
    worth = coef @ phi[items].T
    delta = phi[items[0]] - phi[items[1]]
    names = rewards.basis.gauge.names
    reasons = []
    for person, sign in ((0, 1.0), (1, -1.0)):
        parts = sign * coef[person] * delta
        top = np.argsort(-parts)[:2]
        reasons.append(", ".join(f"{names[k]} {parts[k]:+.2f}" for k in top if parts[k] > 0))
    return worth, (reasons[0], reasons[1])


def _show_pair(pair: Pair) -> None:
    print(f"\n      The same question, greedily answered: {QUESTION}")
    for index, (person, answer) in enumerate(zip(pair.people, pair.answers, strict=True)):
        print(f"\n      {person}:")
        print(textwrap.fill(answer, 96, initial_indent="        ", subsequent_indent="        "))
        gain = pair.worth[index, index] - pair.worth[index, 1 - index]
        print(
            f"        worth {gain:+.2f} nats more to {person} than the other answer, by {pair.reasons[index]}"
        )


def _show_places(root: Path, pair: Pair, seconds: float) -> None:
    print(
        f"""
      {seconds:.0f} seconds. Everything lies in {root}:
        rewards/     basis, gauge record, population, users      rewards/report.html
        sft/         the supervised start, π_ref                 sft/report.html
        policy/      the policy                                  policy/report.html
        evaluation/  matrix of people by people, all figures     evaluation/report.html

      Next:
        chorus users show {pair.people[0]} --rewards {root / "rewards"}
        chorus users ask me --rewards {root / "rewards"}
        chorus generate --policy {root / "policy"} --user me --prompt "{QUESTION}"
        chorus export --policy {root / "policy"} --user {pair.people[0]} --output exported"""
    )
