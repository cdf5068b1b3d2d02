"""Held-out data during training: what is held out, that the numbers are those of the policy, and which step is kept."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import rewards
import rlhf
from rlhf.run.metrics import read_metrics
from rlhf.train import dpo_step, held_out
from rlhf.train.optim import TrainState
from tests.rlhf import tiny

ROWS = [{"prompt": f"item {n} ?", "completion": f"item {(n + 3) % 8}"} for n in range(8)]
PAIRS = [
    {
        "prompt": f"item {p} ?",
        "chosen": f"item {p}",
        "rejected": f"item {(p + 1) % 8}",
        "user_id": f"u{u:02d}",
    }
    for p in range(4)
    for u in range(10)
]
FEW = {"learning_rate": 3e-2, "lora_rank": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


def measured(history, name):
    return {one.step: one[name] for one in history if name in one.metrics}


def test_who_and_what_is_held_out():
    people = [f"p{n % 10}" for n in range(40)]
    prompts = [f"q{n % 20}" for n in range(40)]
    by_person = held_out.divide(0.2, "data", people=people, prompts=prompts)
    assert len({people[n] for n in by_person.held_out}) == 2 and len(by_person.held_out) == 8
    assert not {people[n] for n in by_person.held_out} & {people[n] for n in by_person.train}
    # Too few people for a share: prompts; too few of these, too: rows.
    by_prompt = held_out.divide(0.06, "data", people=people, prompts=prompts)
    assert len({prompts[n] for n in by_prompt.held_out}) == 1 and len(by_prompt.held_out) == 2
    assert len(held_out.divide(0.03, "data", people=people, prompts=prompts).held_out) == 1
    # Names decide, not places.
    order = np.random.default_rng(0).permutation(40)
    moved = held_out.divide(0.2, "data", people=[people[n] for n in order], prompts=None)
    assert {people[n] for n in order[moved.held_out]} == {people[n] for n in by_person.held_out}
    with pytest.raises(rlhf.UserError, match="one row"):
        held_out.divide(0.5, "data", prompts=["q"])


def test_the_last_batch_is_filled_up_and_what_fills_it_does_not_count():
    batch, real = held_out.in_batches(np.arange(10.0), np.array([7, 2, 5]), 2)
    assert batch.tolist() == [[7.0, 2.0], [5.0, 7.0]] and real.tolist() == [[1, 1], [1, 0]]


def test_supervised_loss_on_held_out_rows_is_that_of_the_policy_that_is_kept(model):
    policy = rlhf.train_sft(
        model, ROWS, steps=6, evaluate_every=2, evaluate_share=0.4, keep_best="eval/loss/total",
        row_length=16, batch_rows=2, **FEW,
    )  # fmt: skip
    found = measured(policy.history, "eval/loss/total")
    assert sorted(found) == [2, 4, 6]
    best = min(found, key=found.get)
    assert policy.loaded.record["best"] == {
        "metric": "eval/loss/total", "step": best, "value": pytest.approx(found[best])
    }  # fmt: skip
    held = held_out.divide(0.4, "data", prompts=[row["prompt"] for row in ROWS]).held_out
    assert len(held) == 3
    rows = [ROWS[n] for n in held]
    nll = [-policy.logprobs(row["prompt"], row["completion"])[0, 0] for row in rows]
    tokens = [len(policy.loaded.base.tokenizer.encode_completion(row["completion"])) for row in rows]
    np.testing.assert_allclose(found[best], sum(nll) / sum(tokens), rtol=1e-4)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo") / "run"
    rlhf.train_dpo(model, PAIRS, steps=6, output_dir=folder, **DPO)
    return folder


DPO = FEW | {
    "checkpoint_every": 3, "evaluate_every": 2, "evaluate_share": 0.3, "keep_best": "eval/accuracy", "batch_rows": 4,
    "log_every": 5,
}  # fmt: skip


def curves(folder):
    rows = read_metrics(folder)
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]


def test_preferences_of_people_held_out(run):
    """The first of equally good steps is kept; its row is what metrics.json says, and lines between are written."""
    rows = {row["step"]: row for row in curves(run)}
    assert sorted(rows) == [1, 2, 4, 5, 6]
    found = {step: row["eval/accuracy"] for step, row in rows.items() if "eval/accuracy" in row}
    best = max(found, key=found.get)
    result = json.loads((run / "metrics.json").read_text())
    assert result["best"]["step"] == best and result["eval/accuracy"] == found[best] == 1.0
    assert result["step"] == best and result["num_rows"] == 28  # 3 of 10 people with 4 rows each
    assert "Held out" in (run / "report.html").read_text()


def test_a_run_that_fell_back_a_checkpoint_finds_the_same(model, run, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(run, folder)
    for part in ("policy", "checkpoints/00000006"):
        shutil.rmtree(folder / part)
    for part in ("metrics.json", "report.html"):
        (folder / part).unlink()
    rlhf.train_dpo(model, PAIRS, steps=6, output_dir=folder, **DPO)
    assert curves(folder) == curves(run)
    weights = "policy/weights.safetensors"
    assert (folder / weights).read_bytes() == (run / weights).read_bytes()


def test_measuring_compiles_once_and_changes_no_step(model):
    settings = {"steps": 4, "batch_rows": 4, **FEW}
    held = held_out.divide(0.3, "data", people=[row["user_id"] for row in PAIRS]).held_out
    rest = [row for n, row in enumerate(PAIRS) if n not in held]
    plain = rlhf.train_dpo(model, rest, **settings)
    before = dpo_step.evaluate._cache_size()
    watched = rlhf.train_dpo(model, PAIRS, evaluate_every=1, evaluate_share=0.3, **settings)
    assert dpo_step.evaluate._cache_size() <= before + 1
    for one, other in zip(plain.history, watched.history, strict=True):
        assert one["train/loss/total"] == pytest.approx(other["train/loss/total"], rel=1e-6)
    assert sorted(measured(watched.history, "eval/loss/pair")) == [1, 2, 3, 4]


@pytest.mark.parametrize("greedy", [False, True])
def test_prompts_held_out_of_reinforcement_learning(model, greedy):
    prompts = [{"prompt": f"item {n} ?", "wanted": n} for n in range(8)]
    calls = []

    def length(completions, wanted):
        calls.append((set(wanted), [0.5 * len(text.split()) for text in completions], list(completions)))
        return calls[-1][1]

    policy = rlhf.train_grpo(
        model, prompts, rewards=length, steps=4, evaluate_every=2, evaluate_share=0.25, evaluate_greedy=greedy,
        keep_best="eval/reward", prompts_per_step=4, rollout={"completions": 2}, max_new_tokens=4, **FEW,
    )  # fmt: skip
    held = held_out.divide(0.25, "data", prompts=[row["prompt"] for row in prompts]).held_out
    measurements = [call for call in calls if call[0] <= set(held)]
    assert len(measurements) == 2 and len(calls) == 6  # the batch is filled up with the first of the two
    assert all(not call[0] & set(held) for call in calls if call not in measurements)
    found = measured(policy.history, "eval/reward")
    assert list(found) == [2, 4]
    for value, (_, given, texts) in zip(found.values(), measurements, strict=True):
        assert value == pytest.approx(np.mean(given[:4]))
        if greedy:
            assert texts[0] == texts[1]
    assert policy.loaded.record["best"]["value"] == pytest.approx(max(found.values()))


def state(value):
    return TrainState(jnp.array(0), {"lora": jnp.array(value)}, (jnp.zeros(3),), jnp.array(1))


def test_the_best_of_an_earlier_session_counts_only_up_to_its_checkpoint(tmp_path):
    first = held_out.Best("eval/loss/total", tmp_path)
    for step, value in ((2, 0.9), (4, 0.5), (6, 0.7)):
        first.offer(step, state(float(step)), value)
    assert first.take(state(6.0)).params["lora"] == 4.0 and first.record()["step"] == 4
    later = held_out.Best("eval/loss/total", tmp_path)  # goes on from step 4
    later.offer(6, state(6.0), 0.6)
    assert later.take(state(6.0)).params["lora"] == 4.0
    earlier = held_out.Best("eval/loss/total", tmp_path)  # goes on from step 3
    earlier.offer(4, state(4.5), 0.5)
    assert earlier.take(state(6.0)).params["lora"] == 4.5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"keep_best": "eval/loss/total"}, "needs evaluate_every"),
        ({"evaluate_every": 2, "keep_best": "eval/accuracy"}, "eval/loss/total"),
    ],
)
def test_keys_that_make_no_sense_are_refused(model, keys, said):
    with pytest.raises(rewards.UserError, match=said):
        rlhf.train_sft(model, ROWS, steps=2, **keys)
