"""`chorus train ppo` and `chorus train grpo` through the command line, on a tiny random model."""

import json
import re
import shutil
import types

import jax
import numpy as np
import pytest
import yaml

from rewards import hashed
from rewards.basis.readout import Readout
from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rewards.files import write_json
from rlhf.apps import cli
from rlhf.policy import store as policy_store
from rlhf.run.config.load import load
from rlhf.run.metrics import read_metrics
from rlhf.train.rl import critic_store as rl_critic
from rlhf.train.rl import prompts as rl_data
from rlhf.train.rl import sources as rl_rewards
from rlhf.train.rl.config import GRPOConfig, PPOConfig
from rlhf.train.rl.critic import CriticConfig, init_critic
from tests.rlhf.tiny import write_model
from tests.rlhf.train.rl.reward_runs import make_run

FUNCTIONS = """
import jax.numpy as jnp

def exact(prompts, completions, wanted):
    assert all(prompt == f"item {number} ?" for prompt, number in zip(prompts, wanted)), (prompts, wanted)
    return [0.7 if "item" in text.split() else -1.9 for text in completions]

def words(completions):
    return [0.25 * len(text.split()) for text in completions]

def marks(completions):
    return [float(text.count("<")) for text in completions]

def length(completion_mask):
    return completion_mask.sum(axis=1)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("rl")
    model = write_model(root / "model")
    rows = [{"prompt": f"item {number} ?", "wanted": number} for number in range(5)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "functions.py").write_text(FUNCTIONS)
    make_run(policy_store.load_base(model, adapter_layers=1, dtype="float32"), root / "rewards")
    return root


def column(root, name, kind="function"):
    return {"name": name, "kind": kind, "function": f"{root / 'functions.py'}:{name}"}


def write(root, name, **changes):
    config = {
        "seed": 0,
        "output_dir": str(root / name),
        "data": {"path": str(root / "prompts.jsonl")},
        "model": {"name": str(root / "model"), "adapter_layers": 1},
        "tune": {"lora_rank": 2},
        "conditioner": {"rank": 2},
        "rollout": {"prompts_per_step": 2, "users_per_prompt": 2, "completions": 4, "max_new_tokens": 5},
        "kl": {"coef": 0.1},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 4, "checkpoint_every": 2, "samples_every": 2},
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config | changes))
    return root / f"{name}.yaml"


def result_of(capsys, *argv):
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def metrics(folder):
    """metrics.jsonl without wall-clock figures."""
    rows = read_metrics(folder)
    return [{k: v for k, v in row.items() if not re.match(r"perf/|time", k)} for row in rows]


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def fitted(world):
    """A GRPO run on a fitted reward run: the compiled path."""
    assert cli.main(["train", "grpo", str(write(world, "grpo", rewards=str(world / "rewards")))]) == 0
    return world / "grpo"


@pytest.fixture(scope="module")
def populated(world):
    """A PPO run on two functions and a given population: the host path, and a reward run of its own."""
    changes = {
        "columns": [column(world, "exact"), column(world, "words")],
        "population": {"mean": [1.0, 0.0], "sd": [0.5, 1.0], "completions": 6},
        "critic": {"hidden": 8},
    }
    assert cli.main(["train", "ppo", str(write(world, "ppo", **changes))]) == 0
    return world / "ppo"


def test_a_fitted_run_trains_a_policy_that_serves_its_people(world, fitted, capsys):
    rows = metrics(fitted)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"train/reward/axis_0", "train/reward/axis_2", "train/kl_ref_nats", "train/z_norm"} <= set(rows[0])
    assert rows[0]["train/kl_ref_nats"] == 0.0 and rows[0]["train/sampler_gap_nats"] < 1e-4
    assert (fitted / "report.html").is_file()
    record = json.loads((fitted / "policy" / "policy.json").read_text())
    assert record["kind"] == "grpo" and record["beta"] == pytest.approx(0.1) and len(record["names"]) == 3
    ask = ["generate", "--policy", fitted, "--prompt", "item 3 ?", "--greedy", "--max-new-tokens", "5"]
    texts = {
        tuple(result_of(capsys, *ask, "--coefficients", w)["completions"]) for w in ("9,9,9", "-9,-9,-9")
    }
    assert len(texts) == 2
    out = world / "exported"
    result_of(capsys, "export", "--policy", fitted, "--output", out)
    plain = [*ask[:1], "--model", out, *ask[3:]]
    assert result_of(capsys, *plain)["completions"] == result_of(capsys, *ask)["completions"]


def test_samples_hold_the_reward_of_their_text(world, fitted):
    """reward = w·φ, φ that of `chorus rewards score` for the decoded text."""
    from rlhf.phi import encoder
    from rlhf.phi.reward import PromptRows

    entries = [entry for entry in samples(fitted) if entry["canonical"]]
    assert {entry["step"] for entry in samples(fitted)} == {1, 2, 4} and len(entries) >= 6
    run = load_reward_run(world / "rewards")
    rows = PromptRows(tuple(entry["prompt"] for entry in entries), np.arange(len(entries)), {}, "samples")
    items = rows.with_texts([entry["completion"] for entry in entries])
    phi = Readout.of(run.basis).features(encoder.embed_items(items, run.basis.encoder))
    np.testing.assert_allclose([list(entry["phi"].values()) for entry in entries], phi, atol=1e-4)
    reward = [np.dot(entry["coef"], list(entry["phi"].values())) for entry in entries]
    np.testing.assert_allclose([entry["reward"] for entry in entries], reward, atol=1e-4)
    for entry in entries:
        assert len(entry["z"]) == 3 and entry["prompt"] == f"item {entry['row'] - 1} ?"


def test_a_run_that_fell_back_a_checkpoint_ends_with_the_same_numbers(world, populated):
    """What a kill after step 2 leaves: checkpoint 2, later lines of metrics and samples; then the same command."""
    folder = world / "again"
    shutil.copytree(populated, folder)
    for part in ("policy", "critic", "checkpoints/00000004"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for part in ("metrics.json", "report.html"):
        (folder / part).unlink()
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 4, "torn')
    assert cli.main(["train", "ppo", str(world / "ppo.yaml"), f"output_dir={folder}"]) == 0
    assert metrics(folder) == metrics(populated) and samples(folder) == samples(populated)
    for part in ("policy/weights.safetensors", "critic/critic.safetensors"):
        assert (folder / part).read_bytes() == (populated / part).read_bytes()


def test_a_finished_run_is_not_trained_again(world, fitted, capsys):
    before = (fitted / "metrics.jsonl").stat().st_mtime_ns
    result_of(capsys, "train", "grpo", world / "grpo.yaml")
    assert (fitted / "metrics.jsonl").stat().st_mtime_ns == before


def test_columns_with_a_population_become_a_reward_run_people_can_use(populated, capsys):
    rewards = populated / "rewards"
    basis = json.loads((rewards / "basis.json").read_text())
    assert basis["gauge"]["names"] == ["exact", "words"]
    record = json.loads((populated / "policy" / "policy.json").read_text())
    assert record["basis"] == basis["basis_hash"]
    np.testing.assert_allclose(record["prior"]["cov"], np.diag([0.25, 1.0]))
    lines = (rewards / "reference.jsonl").read_text().splitlines()
    answers = rewards.parent / "answers.jsonl"
    texts = [json.loads(line) for line in lines]
    pair = next(
        t for t in texts if t["prompt"] == texts[0]["prompt"] and t["completion"] != texts[0]["completion"]
    )
    row = {"prompt": texts[0]["prompt"], "chosen": texts[0]["completion"], "rejected": pair["completion"]}
    answers.write_text(json.dumps(row | {"user_id": "ada", "wanted": 0}) + "\n")
    result_of(capsys, "users", "update", "ada", "--rewards", rewards, "--answers", answers)
    batch = result_of(capsys, "users", "ask", "bob", "--rewards", rewards, "--batch", "2")
    assert len(batch["questions"]) == 2
    ask = [
        "generate",
        "--policy",
        populated,
        "--user",
        "ada",
        "--prompt",
        "item 3 ?",
        "--max-new-tokens",
        "4",
    ]
    assert len(result_of(capsys, *ask)["completions"]) == 1
    answers.unlink()


def test_columns_are_standardised_once_over_samples_of_the_reference(populated):
    """φ of the samples of π_ref has mean 0 and, within prompts, standard deviation 1."""
    texts = [
        json.loads(line) for line in (populated / "rewards" / "reference.jsonl").read_text().splitlines()
    ]
    raw = np.array([0.7 if "item" in t["completion"].split() else -1.9 for t in texts])
    within = raw - np.array(
        [np.mean([v for v, u in zip(raw, texts, strict=True) if u["prompt"] == t["prompt"]]) for t in texts]
    )
    mean, sd = raw.mean(), np.sqrt(np.mean(within**2))
    for entry in samples(populated):
        value = 0.7 if "item" in entry["completion"].split() else -1.9
        assert entry["phi"]["exact"] == pytest.approx((value - mean) / sd, abs=1e-5)


def test_the_critic_is_kept_and_read_strictly(world, populated):
    record = hashed.read_record(populated / "critic" / "critic.json")
    config = CriticConfig(hidden=8)
    spec = rl_critic.spec_of(config, 2, True)
    assert record["spec"] == spec and spec["separate"]
    policy = policy_store.load_policy(populated)
    width, key = policy.base.config.width, jax.random.key(0)
    template = init_critic(config, policy.params, width, key, num_basis=2, personal=True)
    purpose = record["made_for"]
    assert purpose == rl_critic.made_for(policy.base, ("exact", "words"))
    critic = rl_critic.load(populated, spec, template, purpose)
    assert critic["w2"].shape == (8, 4) and np.abs(critic["w2"]).max() > 0
    path = populated / "critic" / "critic.json"
    whole = path.read_text()
    spec_before = {name: value for name, value in record["spec"].items() if name != "from_rewards"}
    write_json(path, record | {"spec": spec_before})
    rl_critic.load(populated, spec, template, purpose)  # a record from before that field
    path.write_text(whole)
    with pytest.raises(UserError, match="is another critic than"):
        rl_critic.load(populated, spec | {"separate": False}, template, purpose)
    with pytest.raises(UserError, match="tensor 'w1' is float32"):
        rl_critic.load(populated, spec, {**template, "w1": template["w1"][:, :4]}, purpose)
    with pytest.raises(UserError, match="holds no critic"):
        rl_critic.load(populated.parent / "grpo", spec, template, purpose)
    with pytest.raises(UserError, match="outputs: .*'words'.*this run has"):
        rl_critic.load(populated, spec, template, purpose | {"outputs": ["other"]})
    again = world / "on"
    arguments = [f"critic.start={populated}", f"output_dir={again}", "train.steps=1"]
    assert cli.main(["train", "ppo", str(world / "ppo.yaml"), *arguments]) == 0
    # Fresh heads say 0 to everything, which explains nothing.
    explained = [metrics(run)[0]["train/explained_variance/exact"] for run in (populated, again)]
    assert explained[0] == 0.0 != explained[1]


def test_one_policy_for_all_gets_rewards_as_they_are(world, capsys):
    """Without people: raw numbers, weights instead of coefficients, no conditioner; all weights trained, π_ref kept apart."""
    changes = {"columns": [column(world, "exact"), column(world, "words")], "weights": [2.0, 1.0]}
    path = write(world, "plain", **changes, tune={"mode": "full"})
    result_of(capsys, "train", "grpo", path, "train.steps=3")
    for entry in samples(world / "plain"):
        value = 0.7 if "item" in entry["completion"].split() else -1.9
        assert entry["phi"]["exact"] == np.float32(value) and entry["z"] is None
        assert entry["reward"] == pytest.approx(2 * value + 0.25 * len(entry["completion"].split()), abs=1e-5)
    record = json.loads((world / "plain" / "policy" / "policy.json").read_text())
    assert "prior" not in record and record["spec"] is None and record["full"]
    assert not (world / "plain" / "rewards").exists()
    rows = metrics(world / "plain")
    assert rows[0]["train/kl_ref_nats"] == 0.0 and abs(rows[2]["train/kl_ref_nats"]) > 1e-3


def test_jittable_columns_alone_are_compiled_and_read_the_tokens_of_the_model(world):
    """The model of a jit column is the one that is trained, unless it is named; one function among them is for the host."""
    base = policy_store.load_base(world / "model", adapter_layers=1, dtype="float32")
    path = write(world, "jit", columns=[column(world, "length", "jit")])
    config = load(path, [], GRPOConfig)
    source = rl_rewards.prepare(config, base, rl_data.prompt_set(config, base))
    assert (
        source.reward.can.compiled
        and source.names == ("length",)
        and np.asarray(source.people).tolist() == [1.0]
    )
    config = load(
        write(world, "jit", columns=[column(world, "length", "jit"), column(world, "words")]), [], GRPOConfig
    )
    source = rl_rewards.prepare(config, base, rl_data.prompt_set(config, base))
    assert not source.reward.can.compiled and source.names == ("length", "words")


@pytest.mark.parametrize("kind", [GRPOConfig, PPOConfig])
@pytest.mark.parametrize("skip", ["true", "false"])
def test_rewards_of_both_trainers_see_special_tokens_where_the_rollout_says_so(world, kind, skip):
    base = policy_store.load_base(world / "model", adapter_layers=1, dtype="float32")
    path = write(world, "special", columns=[column(world, "marks")])
    config = load(path, [f"rollout.skip_special_tokens={skip}"], kind)
    prompts = rl_data.prompt_set(config, base)
    source = rl_rewards.prepare(config, base, prompts)
    special, word = base.tokenizer.end_id, base.tokenizer.encode_completion("item")[0]
    tokens = np.full((4, 3), word, np.int32)
    tokens[:, 1] = special
    said = types.SimpleNamespace(tokens=tokens, mask=np.ones((4, 3), bool), ended=np.zeros(4, bool))
    found = source.reward(said, prompts.rows.take([0, 0, 0, 0]))
    assert (np.asarray(found.phi) > 0).all() == (skip == "false")


@pytest.mark.parametrize("source", ["fitted", "columns"])
def test_values_start_from_the_reward_where_it_reads_beginnings(world, capsys, source):
    """Fitted rewards: values are something before anything is learned. Functions see whole completions only."""
    rewards = {
        "fitted": {"rewards": str(world / "rewards")},
        "columns": {"columns": [column(world, "exact")]},
    }
    changes = rewards[source] | {"train": {"steps": 1, "samples_every": 0}}
    path = write(world, f"begun_{source}", critic={"hidden": 8, "from_rewards": True}, **changes)
    status = cli.main(["train", "ppo", str(path)])
    if source == "columns":
        assert status == 2 and "critic.from_rewards true" in capsys.readouterr().err
        return
    assert status == 0
    (row,) = metrics(world / "begun_fitted")
    assert row["train/explained_variance/axis_0"] != 0.0 and row["train/explained_variance/kl"] == 0.0
    purpose = json.loads((world / "begun_fitted" / "critic" / "critic.json").read_text())["made_for"]
    assert purpose["rewards"] == load_reward_run(world / "rewards").hash


@pytest.mark.parametrize("answer", [1, 2])
def test_votes_alone_pass_their_probe_or_stop_the_run(world, capsys, answer):
    """Majorities of the probe say 1: rewards without a truth are trained on where their probe agrees, and only there."""
    probe = world / f"probe{answer}.jsonl"
    probe.write_text(json.dumps({"prompt": "x", "completions": ["1", "1", "2"], "answer": answer}) + "\n")
    columns = [{"name": "vote", "kind": "votes", "probe": str(probe)}]
    config = write(world, f"votes{answer}", columns=columns, train={"steps": 1})
    if answer == 1:
        assert cli.main(["train", "grpo", str(config), "--json"]) == 0
        return
    assert cli.main(["train", "grpo", str(config)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "vote: majority answers are right on 0% of 1 probe prompts, below min_accuracy 50%" in said
