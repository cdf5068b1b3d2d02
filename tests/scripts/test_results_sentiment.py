"""`scripts/results_sentiment.py`: figures against slow twins, and both parts and the page on a tiny model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import results_sentiment
import results_sentiment_measure as measure
import results_sentiment_page as page
import yaml
from pages import read_numbers
from scipy.stats import ttest_1samp

from rewards.errors import UserError
from rewards.types import Preferences
from rlhf.api.policies import plain_model
from rlhf.models.adapters import AdapterSpec
from rlhf.phi import encoder
from rlhf.policy import store as policy_store
from rlhf.policy.generation import Completion, logprobs_of
from tests.rlhf.tiny import make_policy, separate_logprobs, separate_rows, write_model
from tests.rlhf.train.rl.reward_runs import make_run

ROOT = Path(__file__).parents[2]

PROMPTS = ["Which item ?", "item 7"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("sentiment") / "model")


@pytest.fixture(scope="module")
def reference(model):
    return plain_model(model).loaded


def completion(policy, text: str, finished: bool) -> Completion:
    tokens = tuple(policy.base.tokenizer.encode_completion(text))
    tokens = tokens if finished else tokens[:-1]
    return Completion(text, len(tokens), 0.0, finished, tokens)


def test_reward_is_that_of_the_text_however_it_ended(reference, model, tmp_path):
    base = policy_store.load_base(model, adapter_layers=None, dtype="float32")
    run = make_run(base, tmp_path / "run", layer=1, num_basis=1)
    texts = ["item 3", "Which 5 6", "9", "item item 11"]
    samples = [completion(reference, text, number % 2 == 0) for number, text in enumerate(texts)]
    found = measure.rewards(reference, run, PROMPTS, samples)
    nothing = np.zeros(0, np.int32)
    items = Preferences(
        *(
            tuple(PROMPTS),
            np.array([0, 0, 1, 1], np.int32),
            tuple(texts),
            None,
            (),
            nothing,
            nothing,
            nothing,
        ),
        *(np.zeros(0, np.float32), nothing, nothing, {}, "texts"),
    )
    expected = measure.utility(run, encoder.embed_items(items, run.basis.encoder))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(found) > 0.1


def test_reference_logprobs_and_kl_against_a_pass_for_each(reference, model, tmp_path):
    base = policy_store.load_base(model, adapter_layers=None, dtype="float32")
    policy = make_policy(base, AdapterSpec(lora_rank=2, lora_alpha=2.0), scale=0.4)
    run = make_run(base, tmp_path / "run", layer=1, num_basis=1)
    settings = type("Rollout", (), {"max_new_tokens": 6, "temperature": 1.0})
    samples = measure.sampled(policy, PROMPTS, 5, settings, seed=3)
    assert len(samples) == 10
    prompts = [base.tokenizer.encode_prompt(prompt) for prompt in PROMPTS for _ in range(5)]
    rows = separate_rows(prompts, [list(one.tokens) for one in samples])
    ref, own = (np.asarray(separate_logprobs(p.graphdef, p.params, rows)) for p in (reference, policy))
    np.testing.assert_allclose(
        logprobs_of(reference, measure._asked(PROMPTS, samples), samples), ref, atol=2e-3
    )
    figures = measure.measured(reference, run, {"words": Judge()}, PROMPTS, samples)
    assert figures["kl"] == pytest.approx(np.mean(own - ref), abs=2e-3) and abs(figures["kl"]) > 0.01
    tokens = sum(len(one.tokens) for one in samples)
    assert figures["perplexity"] == pytest.approx(math.exp(-ref.sum() / tokens), rel=1e-3)
    assert figures["positive"]["words"] == np.mean([len(one.text) > 8 for one in samples])
    plain = measure.sampled(reference, PROMPTS, 5, settings, seed=3)
    assert measure.measured(reference, run, {"words": Judge()}, PROMPTS, plain)["kl"] == pytest.approx(
        0, abs=2e-3
    )


class Judge:
    def decision_function(self, texts):
        return np.array([len(text) - 8.5 for text in texts])


def test_variety_by_hand():
    assert measure.distinct(["a b c", "a b d"], 2) == 3 / 4
    assert measure.distinct(["a", ""], 2) == 0
    assert measure.repeated("so so good") == pytest.approx(1 / 3) and measure.repeated("") == 0


def test_judges_learn_from_their_own_corpus_and_are_tested_on_the_pairs(tmp_path):
    rows = [
        {"text": f"{word} film {number}", "label": label, "corpus": corpus}
        for corpus, good, bad in (("sentences", "fine", "dull"), ("reviews", "dull", "fine"))
        for word, label in ((good, 1), (bad, 0))
        for number in range(20)
    ]
    pairs = [{"chosen": f" fine {n}", "rejected": f" dull {n}"} for n in range(8)]
    for name, content in (("judge", rows), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    made, facts = measure.judges(tmp_path)
    assert facts["sentences"] == {"texts": 40, "accuracy": 1.0, "pairs": 1.0}
    assert facts["reviews"] == {"texts": 40, "accuracy": 0.0, "pairs": 0.0}
    assert made["sentences"].decision_function(["a fine one"])[0] > 0


def figures(reward: float, positive: float) -> dict:
    return {
        **{
            "reward": reward,
            "reward_sd": 2.0,
            "kl": 3.0,
            "kl_se": 0.1,
            "perplexity": 40.0,
            "distinct_2": 0.9,
        },
        **{"repeated_words": 0.1, "ended": 0.0, "tokens": 24.0},
        **{"positive": {"sentences": positive}, "correlation": {"sentences": 0.3}},
    }


def stored(gains: list[float], shifts: list[float]) -> dict:
    curve = {name: [0.0, 0.5, 1.0] for name in results_sentiment.CURVES}
    own = {"steps": 3, "rows": 4, "tokens": 24, "target_nats": 6.0, "beta": 0.15, "horizon": 640.0}
    own |= {"learning_rate": 1e-3, "gae_lambda": 1.0, "held_prompts": 2, "samples": 1, "overrides": []}
    return {
        **{"made": "2026-01-01", "versions": "jax", "machine": "2 CPU cores", "setting": own},
        "policy": {
            str(seed): {
                **{"before": figures(0.0, 0.5), "after": figures(gain, 0.5 + shift)},
                **{"curve": curve, "rows": 4},
                "samples": [{"prompt": "film | x", "before": "a\nb *c*", "after": "<b>"}],
            }
            for seed, (gain, shift) in enumerate(zip(gains, shifts, strict=True))
        },
    }


@pytest.mark.parametrize(
    ("shifts", "said"),
    [
        ([0.2, 0.25, 0.22], "it agrees"),
        ([-0.2, -0.25, -0.22], "says the opposite"),
        ([0.2, -0.1, 0.05], "does not confirm"),
        ([0.3], "settles nothing"),
    ],
)
def test_the_page_says_what_the_judges_say(shifts, said):
    text = page.page(stored([1.0] * len(shifts), shifts))
    sayings = ("it agrees", "says the opposite", "does not confirm", "settles nothing")
    assert [one for one in sayings if one in text] == [said]
    assert "| film \\| x | a b \\*c\\* | \\<b\\> |" in text


def test_intervals_are_those_of_a_t_test():
    values = [0.3, 0.9, 0.4, 0.8]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert page.half_width(values) == pytest.approx((high - low) / 2)
    assert math.isnan(page.half_width([1.0])) and page.spread([1.0]) == "1.00"


def write_files(folder: Path, model: Path) -> None:
    """Pairs of low over high numbers, openings, and judges' texts, in words that the tiny tokenizer knows."""
    rng = np.random.default_rng(0)
    low, high = (
        [" ".join(f"item {n}" for n in rng.integers(start, start + 10, 3)) for _ in range(80)]
        for start in (0, 20)
    )
    files = {
        "pairs": [
            {"prompt": "Which", "chosen": f" {a}", "rejected": f" {b}", "user_id": f"fold{i % 10}"}
            for i, (a, b) in enumerate(zip(low, high, strict=True))
        ],
        "prompts": [{"prompt": f"Which item {n} ?"} for n in range(12)],
        "held": [{"prompt": f"Which {n} ?"} for n in range(8)],
        "judge": [
            {"text": text, "label": label, "corpus": corpus}
            for corpus in ("sentences", "reviews")
            for label, texts in ((1, low), (0, high))
            for text in texts
        ],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards = yaml.safe_load((ROOT / "configs/sentiment/rewards.yaml").read_text())
    rewards["data"]["path"], rewards["model"]["name"] = str(folder / "pairs.jsonl"), str(model)
    rewards["encoder"]["layer"], rewards["fit"]["dims"] = 1, 6
    ppo = yaml.safe_load((ROOT / "configs/sentiment/ppo.yaml").read_text())
    ppo["data"]["path"] = str(folder / "prompts.jsonl")
    ppo["model"] = {"name": str(model), "adapter_layers": 1}
    ppo["rollout"] |= {"prompts_per_step": 8, "max_new_tokens": 4}
    ppo["train"] |= {"steps": 3}
    ppo["optimizer"]["warmup_steps"] = 2
    start = yaml.safe_load((ROOT / "configs/sentiment/sft.yaml").read_text())
    start["data"]["path"], start["model"] = (
        str(folder / "pairs.jsonl"),
        {"name": str(model), "adapter_layers": 1},
    )
    start["train"] |= {"steps": 6, "row_length": 32}
    for name, config in (("rewards", rewards), ("ppo", ppo), ("sft", start)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def test_both_parts_and_the_page_on_a_tiny_model(model, tmp_path, monkeypatch, capsys):
    write_files(tmp_path, model)
    monkeypatch.setattr(results_sentiment, "CONFIGS", tmp_path)
    places = ["--runs", tmp_path / "runs", "--data", tmp_path, "--store", tmp_path / "sentiment.json"]

    def main(*words) -> dict:
        results_sentiment.main([str(word) for word in (*words, *places)])
        return read_numbers(tmp_path / "sentiment.json")

    reward = main("reward")["reward"]
    assert reward["pairs"] == {"training": 64, "held_out": 16}
    assert reward["accuracy"]["held_out"] > 0.9 and reward["logistic_regression"]["held_out"] > 0.9
    results = main("policy", "--only", 0, "--prompts", 3)
    [run] = results["policy"].values()
    assert run["rows"] == 8 and all(len(values) == 3 for values in run["curve"].values())
    # The shipped configuration conditions on nobody, starts at its β, and the first iteration is still π_ref.
    record = json.loads((tmp_path / "runs/ppo-0/samples.jsonl").read_text().splitlines()[0])
    assert np.abs(record["z"]).max() < 1e-3
    assert run["curve"]["beta"][0] == 0.4 and run["curve"]["kl"][0] == pytest.approx(0, abs=1e-3)
    assert results["start"]["loss_last"] < results["start"]["loss_first"]
    assert run["before"]["kl"] == pytest.approx(0, abs=2e-3)
    assert len(run["samples"]) == 3 and set(run["samples"][0]) == {"prompt", "before", "after"}
    assert (tmp_path / "sentiment.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "sentiment.md").read_text()
    assert "## The reward" in text and "## Judges" in text and "1 seed)" in text
    (tmp_path / "sentiment.md").unlink()
    main("write")
    assert (tmp_path / "sentiment.md").read_text() == text
    with pytest.raises(SystemExit, match="2"):
        main("policy", "--only", 1, "--prompts", 4)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="judge.jsonl: no such file; run scripts/sentiment_data.py"):
        measure.judges(tmp_path)
