"""`scripts/results_style.py`: the division of prompts, every figure against a slow twin, and the page on a tiny run."""

import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import results_style
import results_style_numbers as numbers
import results_style_page as page
import yaml
from pages import distinct, read_numbers

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.phi.columns import style
from rlhf.phi.columns.functions import load_function
from rlhf.policy import store as policy_store
from rlhf.policy.generation import logprobs_of
from tests.rlhf.tiny import causal_logits, write_model

ROOT = Path(__file__).parents[2]

NAMES, HELD, COUNT = ("items", "words"), 3, 2
FUNCTIONS = """
def items(completions):
    return [float(text.split().count("item")) for text in completions]

def words(completions):
    return [0.3 * len(text.split()) for text in completions]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prompts divided by the script, and a short run on them."""
    root = tmp_path_factory.mktemp("style")
    write_model(root / "model")
    rows = [{"prompt": f"item {number} ?", "wanted": 0} for number in range(40)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "functions.py").write_text(FUNCTIONS)
    results_style.main(["prepare", "--data", str(root / "prompts.jsonl"), "--output", str(root)])
    columns = [
        {"name": name, "kind": "function", "function": f"{root / 'functions.py'}:{name}"} for name in NAMES
    ]
    config = {
        "seed": 0,
        "output_dir": str(root / "run"),
        "data": {"path": str(root / "train.jsonl")},
        "columns": columns,
        "population": {"mean": [0.0, 0.0], "sd": [1.0, 2.0], "prompts": 8},
        "model": {"name": str(root / "model"), "adapter_layers": 1},
        "tune": {"lora_rank": 2},
        "conditioner": {"rank": 2},
        "rollout": {"prompts_per_step": 4, "completions": 4, "max_new_tokens": 6},
        "kl": {"coef": 0.3, "target_nats": 4.0},
        "optimizer": {"learning_rate": 3e-2},
        "train": {"steps": 3},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["train", "grpo", str(root / "run.yaml")]) == 0
    return root


@pytest.fixture(scope="module")
def store(world):
    command = ["measure", "--run", world / "run", "--data", world / "held.jsonl", "--source", "Made up."]
    sizes = [
        "--prompts",
        HELD,
        "--samples",
        COUNT,
        "--draws",
        1,
        "--show",
        1,
        "--store",
        world / "style.json",
    ]
    results_style.main([str(word) for word in command + sizes])
    return world / "style.json"


def test_prompts_are_divided_by_their_text_alone(world, tmp_path):
    train, held = (
        [json.loads(line)["prompt"] for line in (world / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held")
    )
    assert len(train) + len(held) == 40 and not set(train) & set(held) and 3 <= len(held) <= 15
    turned = [json.dumps({"prompt": prompt}) + "\n" for prompt in reversed(train[:20] + held)]
    (tmp_path / "turned.jsonl").write_text("".join(turned))
    results_style.main(["prepare", "--data", str(tmp_path / "turned.jsonl"), "--output", str(tmp_path)])
    again = [json.loads(line)["prompt"] for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    assert sorted(again) == sorted(held)


def test_prompts_of_training_are_refused(world):
    places = ["--run", world / "run", "--data", world / "train.jsonl", "--source", "-"]
    command = ["measure", *places, "--prompts", 2, "--show", 1]
    with pytest.raises(UserError, match="row 1: this prompt is in .*train.jsonl"):
        results_style.main([str(word) for word in command])


def test_a_prompt_that_is_not_measured_cannot_be_quoted(world):
    command = ["measure", "--run", world / "run", "--source", "-", "--prompts", 2, "--show", 0, 2]
    with pytest.raises(UserError, match=r"--show \[0, 2\]: must be numbers from 0 to 1"):
        results_style.main([str(word) for word in command])


def test_people_and_what_is_stored_of_them(world, store):
    results = read_numbers(store)
    coef = np.array(results["coef"])
    assert results["people"][:4] == ["items +", "items −", "words +", "words −"] and len(coef) == 6
    np.testing.assert_allclose(coef[:4], [[2, 0], [-2, 0], [0, 4], [0, -4]], atol=1e-5)
    np.testing.assert_allclose(coef[1::2], -coef[::2])
    assert set(results["arms"]) == {*results["people"], "generic", "reference"}
    for label, arm in results["arms"].items():
        count = COUNT * (2 if label == "reference" else 1)
        assert np.shape(arm["phi"]) == (HELD, count, 2) and len(arm["ref_logprob"]) == HELD * count
    # The untrained model scored by itself: sampler and scorer agree token by token.
    plain = results["arms"]["reference"]
    np.testing.assert_allclose(plain["logprob"], plain["ref_logprob"], atol=2e-3)
    assert numbers.quality(plain)["kl"] == pytest.approx(0.0, abs=2e-3)
    moved = results["arms"]["words +"]
    assert np.abs(np.subtract(moved["logprob"], moved["ref_logprob"])).max() > 0.05


def test_phi_is_that_of_the_quoted_text_and_its_person(world, store):
    results = read_numbers(store)
    [example] = results["shown"]
    for label in ("items +", "words −", "generic", "reference"):
        text = example["completions"][label]
        raw = [float(text.split().count("item")), 0.3 * len(text.split())]
        expected = (np.array(raw) - results["column_mean"]) / results["column_sd"]
        np.testing.assert_allclose(results["arms"][label]["phi"][1][0], expected, atol=2e-3)


def test_reference_logprobs_against_a_plain_forward_pass(world):
    base = policy_store.load_base(world / "model", adapter_layers=None, dtype="float32")
    reference = policy_store.without_adapters(world / "model")
    rows = results_style.read_prompts(str(world / "held.jsonl")).take(np.arange(2))
    config = results_style.load(world / "run.yaml", [], results_style.GRPOConfig)
    spoken = results_style.sample(reference, rows, None, 2, config, seed=5)
    found = logprobs_of(reference, np.repeat(rows.prompts, 2).tolist(), spoken)
    graphdef, params, _ = policy_store.base_state(base, None, "float32", False)
    for number, completion in enumerate(spoken):
        prompt = base.tokenizer.encode_prompt(rows.prompts[number // 2])
        tokens = np.array([[*prompt, *completion.tokens]])
        logprobs = jax.nn.log_softmax(causal_logits(graphdef, params, tokens, None))[0, len(prompt) - 1 : -1]
        taken = np.asarray(logprobs)[np.arange(len(completion.tokens)), completion.tokens]
        assert found[number] == pytest.approx(taken.sum(), abs=1e-3)


def test_flips_and_matrix_against_loops():
    rng = np.random.default_rng(3)
    phi = rng.normal(size=(6, 4, 3, 2)).round(1)
    coef = np.repeat(rng.normal(size=(3, 2)), 2, axis=0) * np.array([1, -1] * 3)[:, None]
    phi[1, 0] = phi[0, 0]  # some ties
    share, ties = numbers.pair_flips(phi, coef)
    for pair, prompt in itertools.product(range(3), range(4)):
        won, tied = 0.0, 0
        for a, b in itertools.product(range(3), range(3)):
            plus, minus = (
                phi[2 * pair, prompt, a] @ coef[2 * pair],
                phi[2 * pair + 1, prompt, b] @ coef[2 * pair],
            )
            tied += math.isclose(plus, minus, abs_tol=1e-9)
            won += 0.5 if math.isclose(plus, minus, abs_tol=1e-9) else float(plus > minus)
        assert share[pair, prompt] == pytest.approx(won / 9) and ties[pair, prompt] == pytest.approx(tied / 9)
    table = numbers.matrix(coef, phi)
    for u, v in itertools.product(range(6), range(6)):
        assert table[u, v] == pytest.approx(np.mean([coef[u] @ one for one in phi[v].reshape(-1, 2)]))
    assert numbers.own_is_best(np.array([[3.0, 1.0], [2.0, 1.0]])) == 0.5
    np.testing.assert_allclose(numbers.shuffled(coef)[:2], coef[2:4])


def test_a_planted_effect_is_found_and_none_is_at_chance():
    rng = np.random.default_rng(0)
    coef = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    noise = rng.normal(size=(4, 400, 2, 2))
    assert numbers.pair_flips(noise, coef)[0].mean() == pytest.approx(0.5, abs=0.05)
    shifted = noise + 0.5 * coef[:, None, None, :]  # people one standard deviation to either side
    share = numbers.pair_flips(shifted, coef)[0].mean()
    assert share == pytest.approx(0.5 * (1 + math.erf(2 / math.sqrt(2) / math.sqrt(2))), abs=0.03)  # Φ(2/√2)
    np.testing.assert_allclose(numbers.axis_shifts(shifted, 2), np.eye(2), atol=0.1)
    assert numbers.pair_flips(shifted, numbers.shuffled(coef))[0].mean() == pytest.approx(0.5, abs=0.05)


def test_interval_of_a_mean_is_that_of_the_normal():
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high = numbers.interval(lambda index: values[index].mean(), 400)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.12), pytest.approx(half, rel=0.12))


def test_quality_by_hand():
    arm = {"logprob": [-3.0, -5.0], "ref_logprob": [-4.0, -8.0], "tokens": [2, 4], "finished": [1, 0]}
    found = numbers.quality(arm | {"distinct": [0.1, 0.2, 0.3]})
    assert (
        found["kl"] == 2.0 and found["perplexity"] == pytest.approx(math.exp(2.0)) and found["ended"] == 0.5
    )
    assert distinct(["a b a", "A b"], 1) == 2 / 5 and distinct(["a b a", "A b"], 2) == 2 / 3
    assert distinct(["a"], 2) == 0.0


def test_the_page_is_written_from_the_stored_numbers_alone(store):
    text = store.with_suffix(".md").read_text()
    results = read_numbers(store)
    found = numbers.summary(results)
    assert f"{found['flip'][0]:.0%}" in text and "style_matrix.png" in text
    for _, _, _, met in page.verdicts(results, found):
        assert ("**missed**" in text) >= (not met)
    pictures = {path: path.read_bytes() for path in store.parent.glob("style_*.png")}
    assert len(pictures) == 2
    results_style.main(["write", "--store", str(store)])
    assert store.with_suffix(".md").read_text() == text
    assert {path: path.read_bytes() for path in pictures} == pictures


def test_quoted_text_stays_in_its_cell():
    assert page.inline("- *a* | b\n\n# <c>") == r"- \*a\* \| b ⏎ \# &lt;c>"
    assert page.inline(" \n") == "(nothing)" and len(page.inline("x" * 900)) == page.EXCERPT


@pytest.mark.parametrize(
    "committed", sorted(results_style.STORE.parent.glob("style*.json")), ids=lambda path: path.stem
)
def test_the_committed_pages_are_current(committed):
    results = read_numbers(committed)
    found = numbers.summary(results)
    assert committed.with_suffix(".md").read_text() == page.markdown(results, found, committed)


@pytest.mark.parametrize("name", ["formality", "warmth", "certainty"])
def test_rates_of_the_configuration_are_bounded_and_agree_on_ordinary_text(name):
    bounded = load_function(f"{ROOT}/configs/style/rewards.py:{name}")
    raw = getattr(style, name)
    ordinary = " ".join(["however you must never thank an engine that runs on plain oil and water"] * 4)
    filler = ordinary + " engine" * 120
    assert bounded([filler]) == raw([filler]) and raw([filler]) != [0.0]
    short = {"formality": "It's cool!", "warmth": "Thank you.", "certainty": "Certainly never."}[name]
    assert abs(raw([short])[0]) > 25 and abs(bounded([short])[0]) <= 6
    words = style.length_words([short])[0]
    assert bounded([short])[0] == pytest.approx(np.clip(raw([short])[0] * words / 30, -6, 6))


def test_length_of_the_configuration_pays_nothing_for_silence():
    length = load_function(f"{ROOT}/configs/style/rewards.py:length_words")
    assert length(["", "one two", "word " * 30]) == [12.0, 12.0, 30.0]
