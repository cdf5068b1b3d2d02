"""The personal path through the command line on a tiny model: rewards, policy, evaluation, people, export, kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from rewards import hashed
from rewards.basis import store
from rewards.basis.readout import Readout
from rewards.data.read import read_preferences
from rewards.people import records
from rlhf.api.policies import load_policy
from rlhf.apps import cli
from rlhf.evaluation import policy as evaluation
from rlhf.evaluation.config import EvaluateConfig
from rlhf.phi import encoder
from rlhf.policy import store as policy_store
from rlhf.run.config.load import load
from rlhf.run.directory import read_result
from rlhf.run.metrics import read_metrics
from tests.rlhf.tiny import write_model

NUM_ITEMS = 10


def choices(num_people: int, each: int) -> list[dict]:
    """Half the people like high numbers, half low ones; choices follow the logistic law."""
    rng = np.random.default_rng(0)
    value = np.linspace(-2, 2, NUM_ITEMS)
    rows = []
    for person in range(num_people):
        taste = 1.5 if person % 2 else -1.5
        for _ in range(each):
            a, b = rng.choice(NUM_ITEMS, 2, replace=False)
            if rng.random() > 1 / (1 + np.exp(-taste * (value[a] - value[b]))):
                a, b = b, a
            row = {
                "prompt": "Which ?",
                "chosen": f"item {a}",
                "rejected": f"item {b}",
                "user_id": f"p{person:02}",
            }
            rows.append(row)
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("personal")
    model = write_model(root / "model")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices(40, 16)))
    data = {"path": str(root / "pairs.jsonl")}
    rewards = {
        "seed": 0,
        "output_dir": str(root / "rewards"),
        "data": data | {"last_choices": 4},
        "model": {"name": str(model)},
        "fit": {"num_basis": 2, "dims": 6, "rounds": 6},
        "evaluation": {"counts": [0, 3, 8], "seeds": 2},
    }
    policy = {
        "seed": 0,
        "output_dir": str(root / "policy"),
        "rewards": str(root / "rewards"),
        "data": data,
        "model": {"name": str(model), "adapter_layers": 1},
        "loss": {"kind": "soft", "dpo_beta": 1.0, "nll_coef": 1.0},
        "rail": {"eta": 0.25},
        "groups": {"completions": None},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 60, "batch_rows": 8, "checkpoint_every": 20, "log_every": 5},
    }
    evaluation = {
        "seed": 0,
        "output_dir": str(root / "evaluation"),
        "rewards": str(root / "rewards"),
        "policy": str(root / "policy"),
        "data": data | {"last_choices": 4},
        "model": {"name": str(model)},
        "users": {"answers": 8},
        "sampling": {"num_samples": 2, "max_new_tokens": 6},
    }
    for name, config in {"rewards": rewards, "policy": policy, "evaluation": evaluation}.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["rewards", "fit", str(root / "rewards.yaml")]) == 0
    assert cli.main(["train", "dpo", str(root / "policy.yaml")]) == 0
    return root


def result_of(capsys, *argv):
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_one_policy_serves_opposite_people(world, capsys):
    result = result_of(capsys, "evaluate", world / "evaluation.yaml")["enumerated"]
    assert result["own_beats_aggregate"] >= 0.8
    assert result["diagonal_dominance"] >= 0.75  # people on one side are nearly alike
    assert result["kl_to_optimum"] < 0.5 * result["kl_of_reference_to_optimum"]
    assert (world / "evaluation" / "report.html").is_file()
    assert (world / "policy" / "report.html").is_file() and (world / "rewards" / "report.html").is_file()


def test_one_z_for_a_person_everywhere(world, capsys, tmp_path):
    """Show, generate, export, evaluation and the formula by hand agree, where the rail pulls everybody to the mean."""
    policy, run = policy_store.load_policy(world / "policy"), store.load_reward_run(world / "rewards")
    person = records.list_records(run.users)[0][0]
    coef = records.load(run.users, person, run).posterior.mean.astype(np.float64)
    values, vectors = np.linalg.eigh(run.prior.cov.astype(np.float64))
    whitened = (coef - run.prior.mean) @ (vectors / np.sqrt(values)) @ vectors.T
    wanted = whitened / 1.25  # (w_eff − μ) = β/(β+η) (w − μ), β = 1, η = 0.25
    show = ("users", "show", person, "--rewards", world / "rewards")
    assert "z" not in result_of(capsys, *show)
    shown = result_of(capsys, *show, "--policy", world / "policy")
    exported = result_of(
        capsys, "export", "--policy", world / "policy", "--user", person, "--output", tmp_path / "out"
    )
    generated = load_policy(world / "policy").signal(person)
    assert np.abs(wanted - whitened).max() > 0.05
    for z in (shown["z"], exported["z"], generated, policy.gate(coef.astype(np.float32))):
        np.testing.assert_allclose(z, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown["coef_effective"], (coef + 0.25 * run.prior.mean) / 1.25, rtol=1e-5)
    config = load(world / "evaluation.yaml", [], EvaluateConfig)
    prefs = read_preferences(config.data.path)
    phi = encoder.items_phi(run.basis, prefs)
    people, _ = evaluation.held_out_people(config, prefs, run, policy, phi)
    np.testing.assert_allclose(
        people.z, [policy.gate.checked(own) for own in people.coef], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        people.shrunk, (people.coef + 0.25 * run.prior.mean) / 1.25, rtol=1e-4, atol=1e-6
    )


def test_the_z_of_another_policy_is_refused(world, capsys, tmp_path):
    show = ["users", "show", "p00", "--rewards", str(world / "rewards"), "--policy"]
    for policy in (tmp_path, world / "rewards"):
        assert cli.main([*show, str(policy)]) == 2
        assert "is not a finished policy run" in capsys.readouterr().err
    (tmp_path / "policy").mkdir()
    record = policy_store.record_of(world / "policy")
    for change, said in (
        ({"basis": "0" * 64}, "was trained with basis 0000"),
        ({"prior": None}, "without users"),
    ):
        hashed.write_record(tmp_path / "policy" / "policy.json", record | change)
        assert cli.main([*show, str(tmp_path)]) == 2
        assert said in capsys.readouterr().err


def test_a_finished_evaluation_is_repeated_only_for_another_policy_or_data(world, capsys, monkeypatch):
    """Or where its report is missing, as runs of before left it when they were killed between their last files."""
    first = result_of(capsys, "evaluate", world / "evaluation.yaml")
    report, record = world / "evaluation" / "report.html", world / "policy" / "policy" / "policy.json"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "judge", None)  # nothing is judged
        assert cli.main(["evaluate", str(world / "evaluation.yaml"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == first and "finished earlier" in captured.err
    report.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_report", None)
        (world / "evaluation" / "metrics.json").rename(world / "evaluation" / "before")
        with pytest.raises(TypeError):  # killed before the report: not finished
            cli.main(["evaluate", str(world / "evaluation.yaml")])
        assert not (world / "evaluation" / "metrics.json").exists()
        (world / "evaluation" / "before").rename(world / "evaluation" / "metrics.json")
    capsys.readouterr()
    assert result_of(capsys, "evaluate", world / "evaluation.yaml") == first
    assert report.is_file()
    data = (world / "pairs.jsonl").read_text()
    (world / "pairs.jsonl").write_text(data + data.splitlines()[-1] + "\n")
    assert result_of(capsys, "evaluate", world / "evaluation.yaml")["data_sha256"] != first["data_sha256"]
    (world / "pairs.jsonl").write_text(data)
    text = record.read_text()
    try:
        hashed.write_record(record, policy_store.record_of(world / "policy") | {"note": "another"})
        again = result_of(capsys, "evaluate", world / "evaluation.yaml")
    finally:
        record.write_text(text)
    assert report.is_file() and again["policy_sha256"] != first["policy_sha256"]
    assert again["enumerated"] == first["enumerated"]


def test_a_person_can_be_generated_for_and_exported_alike(world, capsys):
    ask = ["--prompt", "Which ?", "--greedy", "--max-new-tokens", "4"]
    people = {}
    for person in ("p00", "p01", "p02", "p03"):
        try:
            people[person] = result_of(
                capsys, "generate", "--policy", world / "policy", "--user", person, *ask
            )["completions"]
        except AssertionError:
            capsys.readouterr()  # a held-out person has no record
    assert len({tuple(texts) for texts in people.values()}) > 1
    person, texts = next(iter(people.items()))
    out = world / "exported"
    result_of(capsys, "export", "--policy", world / "policy", "--user", person, "--output", out)
    assert result_of(capsys, "generate", "--model", out, *ask)["completions"] == texts
    aggregate = world / "aggregate"
    result_of(capsys, "export", "--policy", world / "policy", "--output", aggregate)
    generic = result_of(capsys, "generate", "--policy", world / "policy", *ask)["completions"]
    assert result_of(capsys, "generate", "--model", aggregate, *ask)["completions"] == generic


def test_a_remembered_person_has_the_coefficients_that_were_served(world):
    """The record that the quickstart leaves holds the person's own answers and gives the same z."""
    from rewards.basis.store import load_reward_run
    from rewards.data.read import read_preferences
    from rewards.people import records
    from rlhf.apps import quickstart
    from rlhf.evaluation import policy as evaluate
    from rlhf.evaluation.config import EvaluateConfig
    from rlhf.phi import encoder
    from rlhf.policy import store as policy_store
    from rlhf.run.config.load import load

    config = load(world / "evaluation.yaml", [], EvaluateConfig)
    prefs, rewards = read_preferences(config.data.path), load_reward_run(config.rewards)
    policy = policy_store.load_policy(config.policy)
    phi = Readout.of(rewards.basis).features(
        encoder.embed_items(prefs, rewards.basis.encoder), prefs.item_prompt
    )
    people, replayed = evaluate.held_out_people(config, prefs, rewards, policy, phi)
    for index in (0, 1):
        user_id = people.user_ids[index]
        quickstart.remember(rewards, prefs, phi, replayed, index, user_id)
        record = records.load(rewards.directory / "users", user_id, rewards)
        own = set(
            zip(
                *(
                    np.array(prefs.item_text)[side[prefs.user_index == prefs.user_ids.index(user_id)]]
                    for side in (prefs.chosen, prefs.rejected)
                ),
                strict=True,
            )
        )
        assert {(answer.chosen, answer.rejected) for answer in record.answers} <= own
        np.testing.assert_allclose(record.posterior.mean, people.coef[index], atol=2e-3)


def test_a_killed_run_ends_with_the_numbers_of_an_uninterrupted_one(world):
    """kill -9 after the first checkpoint, then the same command: metrics.jsonl, metrics.json and weights agree."""
    folder = world / "killed"
    command = [
        sys.executable,
        "-m",
        "rlhf",
        "train",
        "dpo",
        str(world / "policy.yaml"),
        f"output_dir={folder}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "00000020" / "COMPLETE").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert metrics(folder) == metrics(world / "policy")
    assert (folder / "policy" / "weights.safetensors").read_bytes() == (
        world / "policy" / "policy" / "weights.safetensors"
    ).read_bytes()
    without_place = [read_result(directory) | {"run_dir": ""} for directory in (folder, world / "policy")]
    assert without_place[0] == without_place[1]


def metrics(folder):
    """metrics.jsonl without wall-clock figures."""
    rows = read_metrics(folder)
    return [{k: v for k, v in row.items() if not re.match(r"perf/|time", k)} for row in rows]


def test_ten_people_compile_nothing_after_the_first(world):
    from rlhf.policy import sampling
    from rlhf.policy.generation import Drawing, complete

    policy = policy_store.load_policy(world / "policy")
    rng = np.random.default_rng(0)
    sizes = []
    for person in range(10):
        z = policy_store.coefficients_to_z(policy, rng.normal(size=(1, 2)))
        complete(policy, ["Which ?"], z, Drawing(3, temperature=float(rng.uniform(0.5, 1.5))), seed=person)
        sizes.append(sampling.generate._cache_size())
    assert sizes[-1] == sizes[0]
