"""Every door by which somebody may try to move a lock: each is refused or clipped, and it is said."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import rewards
from rewards import hashed, jsonl
from rewards.basis import gauge, rails, store
from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.people import edits, population, records
from rewards.people import pool as pool_module
from rewards.people.pool import Question
from rlhf.api.policies import load_policy
from rlhf.apps import cli, users
from rlhf.policy import store as policy_store
from rlhf.policy.conditioning import Gate, Population, UserShares, sample_coef
from rlhf.policy.rails import in_force
from rlhf.run.config.load import load
from rlhf.train import dpo_parts, sft
from rlhf.train.config import DPOConfig
from rlhf.train.hints import gate as hint_gate
from rlhf.train.rl.rollout import user_rows
from tests.rlhf.tiny import write_model

NAMES = ("style", "flattery", "warmth", "stance")
LOCK, HIGH, LIMIT = -0.25, 0.5, 0.3
RAILS = {
    "axes": [{"name": "flattery", "locked": LOCK}, {"name": "warmth", "low": -HIGH, "high": HIGH}],
    "half_spaces": [{"name": "echo", "direction": {"stance": 1.0, "style": 0.5}, "limit": LIMIT}],
}
MEAN = np.array([0.4, 0.6, 0.1, 0.3], np.float32)
ETA = 0.25
HOSTILE = {
    "flattery up": [0, 1, 0, 0],
    "flattery a little": [0, LOCK + 0.05, 0, 0],
    "flattery down": [0, -3, 0, 0],
    "flattery far": [0, 1e3, 0, 0],
    "warmth up": [0, LOCK, 2, 0],
    "warmth down": [0, LOCK, -9, 0],
    "stance up": [0, LOCK, 0, 4],
    "stance by way of style": [6, LOCK, 0, 0],
    "everything at once": [9, 9, 9, 9],
    "everything the other way": [-9, -9, -9, -9],
    "style against stance": [-30, LOCK, 0, 40],
}


def made_basis():
    rng = np.random.default_rng(0)
    cov = np.diag([1.0, 0.5, 0.8, 0.6]) + 0.2
    basis, _, _ = gauge.canonicalise(
        rng.normal(size=(6, 4)),
        Belief.from_cov(MEAN, cov),
        rng.normal(size=(40, 6)).astype(np.float32),
        np.zeros(40, int),
        encoder={"kind": "precomputed"},
    )
    named = dataclasses.replace(basis, gauge=dataclasses.replace(basis.gauge, names=NAMES))
    return named, Belief.from_cov(MEAN, cov.astype(np.float32))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("attacks")
    basis, prior = made_basis()
    identity = store.save_reward_run(root / "rewards", basis, prior)
    posterior = Belief.from_cov(np.array([0.1, 7.0, 3.0, 5.0], np.float32), 0.1 * np.eye(4, dtype=np.float32))
    population.save_people(
        root / "rewards", identity, ["fan"], posterior.mean[None], posterior.precision[None], [30]
    )
    rails.write(root / "rewards", rails.stated(RAILS, NAMES, identity, "rails"), "the tests")
    rng = np.random.default_rng(1)
    rows = [
        {
            "prompt": "Which ?",
            "chosen": f"item {i}",
            "rejected": f"item {i + 1}",
            "chosen_features": rng.normal(size=6).tolist(),
            "rejected_features": rng.normal(size=6).tolist(),
        }
        for i in range(4)
    ]
    jsonl.write(root / "pairs.jsonl", rows)
    config = {
        "seed": 0,
        "output_dir": str(root / "policy"),
        "rewards": str(root / "rewards"),
        "data": {"path": str(root / "pairs.jsonl")},
        "model": {"name": str(write_model(root / "model")), "adapter_layers": 1},
        "loss": {"kind": "soft", "dpo_beta": 1.0},
        "rail": {"eta": ETA},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 2, "batch_rows": 2},
    }
    (root / "policy.yaml").write_text(yaml.safe_dump(config))
    write_policy(load(root / "policy.yaml", [], DPOConfig))
    return root


def write_policy(config):
    """The policy of a run before its first step, with a conditioner that does something."""
    run, base = store.load_reward_run(config.rewards), sft.open_base(config)
    spec = dpo_parts.adapter_spec(config, NAMES, base)
    _, params, _ = sft.fresh_policy(config, base, spec)
    moved = jax.tree.map(lambda leaf: leaf + 0.05, params.conditioner)
    record = sft.base_record(config, base, "dpo") | dpo_parts.personal_record(config, run)
    policy_store.save_policy(
        Path(config.output_dir), params._replace(conditioner=moved), spec, record, full=False
    )


@pytest.fixture
def runs(world, tmp_path):
    """A copy of the reward run, to be spoiled."""
    shutil.copytree(world / "rewards", tmp_path / "rewards")
    return tmp_path / "rewards"


@pytest.fixture(scope="module")
def policy(world):
    return load_policy(world / "policy")


def assert_railed(policy, z):
    """The coefficients behind a z, whatever made it, meet the rails."""
    conditioning = policy.loaded.gate.conditioning
    coef = conditioning.origin + np.asarray(z) @ conditioning.cov_sqrt
    np.testing.assert_allclose(coef[..., 1], LOCK, atol=1e-4)
    assert (np.abs(coef[..., 2]) <= HIGH + 1e-4).all()
    assert (coef[..., 3] + 0.5 * coef[..., 0] <= LIMIT + 2e-4).all()


@pytest.mark.parametrize("asked", HOSTILE.values(), ids=HOSTILE)
def test_coefficients_are_clipped_and_it_is_said(policy, caplog, asked):
    with caplog.at_level("WARNING", logger="chorus"):
        z = policy.signal(asked)
    assert_railed(policy, z)
    assert "rails:" in caplog.text and policy.rails_on(asked)


def test_coefficients_within_the_rails_are_left_alone(policy, caplog):
    within = np.array([0.3, LOCK, 0.2, 0.1], np.float32)
    conditioning = policy.loaded.gate.conditioning
    with caplog.at_level("WARNING", logger="chorus"):
        z = policy.signal(within)
    wanted = (within - conditioning.origin) @ conditioning.inverse_sqrt / (1 + ETA)
    np.testing.assert_allclose(z, wanted, atol=1e-5)
    assert not caplog.text and policy.rails_on(within) == []


@pytest.mark.parametrize(
    "given",
    ["0,1,0", "0,nan,0,0", "0,inf,0,0", "0,1e30,0,0", "0,one,0,0", "0,0,0,0,9", ""],
)
def test_coefficients_that_are_none_are_refused(world, capsys, given):
    argv = ["generate", "--policy", str(world / "policy"), "--prompt", "Which ?", "--max-new-tokens", "1"]
    assert cli.main([*argv, f"--coefficients={given}"]) == 2
    assert "coefficients" in capsys.readouterr().err


def test_nobody_named_is_railed_as_well(policy):
    """The population's mean breaks the lock; the aggregate policy does not."""
    conditioning = policy.loaded.gate.conditioning
    assert_railed(policy, np.zeros(4))
    assert policy.signal(None) is None and policy.rails_on(None)
    np.testing.assert_allclose(policy.signal(MEAN), 0, atol=1e-5)
    assert conditioning.origin[1] == np.float32(LOCK) and conditioning.mean[1] == MEAN[1]


def flatterer(run, name="fan", count=25, towards=1.0):
    """Somebody whose every answer asks for flattery."""
    delta = np.array([0.0, 4.0 * towards, 1.0, 1.0])
    return [records.make_answer("?", f"{name} {i}", f"other {i}", 1, delta) for i in range(count)]


@pytest.mark.parametrize("towards", [1.0, -1.0, -20.0])
def test_answers_move_the_record_and_not_the_policy(policy, runs, towards):
    run = store.load_reward_run(runs)
    record = records.append(run.users, run, "ada", flatterer(run, towards=towards))
    assert abs(record.posterior.mean[1] - MEAN[1]) > 0.3
    assert_railed(policy, policy.signal(record.posterior.mean))
    shown = users.show(str(runs), "ada")
    assert shown["coef_railed"][1] == pytest.approx(LOCK) and any("flattery" in s for s in shown["rails"])
    assert [axis["rail"] for axis in shown["axes"]][1] == "locked at -0.25"


REFUSED_EDITS = {
    "a locked axis": ["flattery=1"],
    "a locked axis at its own value": [f"flattery={LOCK}"],
    "a locked axis at the mean": ["flattery=0.6"],
    "beyond a bound": ["warmth=0.7"],
    "below a bound": ["warmth=-0.7"],
    "after one in order": ["style=0.5", "flattery=1"],
}


@pytest.mark.parametrize("axes", REFUSED_EDITS.values(), ids=REFUSED_EDITS)
def test_edits_are_refused_whole(runs, axes):
    with pytest.raises(UserError, match="locked|bounded"):
        users.edit(str(runs), "ada", axes, None)
    assert not (runs / "users").exists() or not any((runs / "users").glob("*.json"))


@pytest.mark.parametrize(
    "text", ["more flattery", "much less flattery, please", "more style and more flattery"]
)
def test_words_about_a_lock_are_refused(runs, text):
    with pytest.raises(UserError, match="'flattery' is locked"):
        users.edit(str(runs), "ada", [], text)


def test_words_beyond_a_bound_are_clipped_and_it_is_said(runs, caplog):
    with caplog.at_level("WARNING", logger="chorus"):
        edited = users.edit(str(runs), "ada", [], "much more warmth")["edited"]
    assert edited[0]["value"] == HIGH and "'warmth' is bounded to [-0.5, +0.5]" in caplog.text


def forged(runs, change, *, consistent):
    """Somebody's record rewritten by hand, with its hash; and with the posterior that follows, if `consistent`."""
    run = store.load_reward_run(runs)
    record = records.append(run.users, run, "ada", flatterer(run, count=3))
    record = change(record)
    if consistent:
        record = dataclasses.replace(record, posterior=records.recompute(run, record))
    records.write(run.users, record)
    return run


def forged_edit(record):
    edit = edits.Edit(
        "flattery", "I wrote this myself", (0.0, 1.0, 0.0, 0.0), 8.0, 0.01, "2026-01-01T00:00:00+00:00"
    )
    return dataclasses.replace(record, edits=(edit,))


def forged_answers(record):
    answers = tuple(dataclasses.replace(a, delta_features=(0.0, 6.0, 6.0, 6.0)) for a in record.answers)
    return dataclasses.replace(record, answers=answers)


def forged_mean(record):
    mean = np.array([0, 9, 9, 9], np.float32)
    return dataclasses.replace(record, posterior=Belief.from_precision(mean, record.posterior.precision, 3))


def forged_basis(record):
    return dataclasses.replace(record, basis="0" * 64)


@pytest.mark.parametrize("change", [forged_mean, forged_basis, forged_answers, forged_edit])
def test_a_record_rewritten_by_hand_is_refused(runs, change):
    run = forged(runs, change, consistent=False)
    with pytest.raises(UserError, match="do not follow|coefficients of basis"):
        records.load(run.users, "ada", run)


@pytest.mark.parametrize("change", [forged_answers, forged_edit])
def test_a_record_forged_throughout_is_clipped(policy, runs, change):
    run = forged(runs, change, consistent=True)
    coef = records.load(run.users, "ada", run).posterior.mean
    assert abs(coef[1] - LOCK) > 0.5
    assert_railed(policy, policy.signal(coef))
    assert policy.rails_on(coef)


def test_a_record_edited_without_its_hash_is_refused(runs):
    run = store.load_reward_run(runs)
    records.append(run.users, run, "ada", flatterer(run, count=3))
    path = records.path_of(run.users, "ada")
    path.write_text(path.read_text().replace('"outcome": 1.0', '"outcome": 0.0', 1))
    with pytest.raises(UserError, match="differs from what was written"):
        records.load(run.users, "ada", run)


def spoiled_policy(world, tmp_path, change, *, rehash):
    shutil.copytree(world / "policy", tmp_path / "policy")
    path = tmp_path / "policy" / "policy" / "policy.json"
    record = hashed.read_record(path)
    change(record)
    if rehash:
        hashed.write_record(path, record)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | record))
    return tmp_path / "policy"


def without(record):
    record["rails"] = None


def widened(record):
    record["rails"]["axes"][1]["high"] = 9.0


def of_another_basis(record):
    record["rails"]["basis"] = "0" * 64


def of_other_axes(record):
    record["rails"]["names"] = ["flattery", "style", "warmth", "stance"]


def not_a_record(record):
    record["rails"] = {"axes": "none"}


@pytest.mark.parametrize("change", [without, widened, of_another_basis, of_other_axes])
def test_a_policy_edited_by_hand_is_refused(world, tmp_path, change):
    with pytest.raises(UserError, match="differs from what was written"):
        load_policy(spoiled_policy(world, tmp_path, change, rehash=False))


@pytest.mark.parametrize("change", [without, widened, of_another_basis, of_other_axes, not_a_record])
def test_a_policy_with_other_rails_is_refused_though_its_hash_is_right(world, tmp_path, change):
    with pytest.raises(UserError, match="rails of basis|rails: damaged|policy.json: damaged|rails_hash"):
        load_policy(spoiled_policy(world, tmp_path, change, rehash=True))


def test_rails_of_another_run_are_refused(world, tmp_path):
    basis, prior = made_basis()
    other = dataclasses.replace(basis, head=basis.head + 1)
    store.save_reward_run(tmp_path / "other", other, prior)
    for name in (rails.RECORD, rails.HISTORY):
        shutil.copy(world / "rewards" / name, tmp_path / "other" / name)
    with pytest.raises(UserError, match=r"rails of basis .*, but this is .*state the rails anew"):
        store.load_reward_run(tmp_path / "other")
    with pytest.raises(UserError, match="was trained with basis"):
        policy_store.load_gate(world / "policy", store.basis_hash(other))


def draws(world, shares, sd=2.0, posteriors=None):
    run = store.load_reward_run(world / "rewards")
    people = list(population.load_people(run).posteriors) if posteriors is None else posteriors
    return Population.from_posteriors(run.prior, people, sd, run.rails, 1.0), UserShares(*shares)


@pytest.mark.parametrize(
    "shares,sd",
    [
        ((0, 0, 1, 0), 2.0),
        ((0, 0, 1, 0), 500.0),
        ((1, 0, 0, 0), 2.0),
        ((0, 1, 0, 0), 2.0),
        ((0, 0, 0, 1), 2.0),
    ],
    ids=["extremes", "extremes far out", "a flatterer's posterior", "the prior", "nobody"],
)
def test_draws_of_training_and_of_relabelling_are_railed(world, policy, shares, sd):
    """`user_rows` draws for the rollout and, with another key, for relabelling; `dpo_step` draws with `sample_coef`."""
    people, shares = draws(world, shares, sd)
    for key in jax.random.split(jax.random.key(0), 2):
        coef, z = user_rows(key, people, shares, 64, 2, 1.0, ETA)
        assert_railed(policy, z)
        np.testing.assert_allclose(coef[:, 1], LOCK, atol=1e-5)  # what scalarises the rewards
    asked = sample_coef(jax.random.key(1), people, shares, 64)
    assert_railed(policy, Gate(people.conditioning, 1.0, 0.0)(asked))
    assert np.abs(np.asarray(asked)[:, 1] - LOCK).max() > 0.05


def test_a_trained_policy_has_the_rails_of_its_rewards(world, policy):
    run = store.load_reward_run(world / "rewards")
    record = policy_store.record_of(world / "policy")
    assert policy.rails == run.rails and record["rails_hash"] == run.rails.hash


def test_own_labels_are_refused_with_rails(world, tmp_path, capsys):
    """People's labels would carry what the rails take out of their coefficients."""
    config = yaml.safe_load((world / "policy.yaml").read_text())
    rows = [
        json.loads(line) | {"user_id": "fan"} for line in (world / "pairs.jsonl").read_text().splitlines()
    ]
    jsonl.write(tmp_path / "own.jsonl", rows)
    config |= {"output_dir": str(tmp_path / "policy"), "loss": {"kind": "observed", "dpo_beta": 1.0}}
    config["data"] = {"path": str(tmp_path / "own.jsonl")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["train", "dpo", str(tmp_path / "c.yaml")]) == 2
    assert "people's own labels, which the rails" in capsys.readouterr().err


@pytest.mark.parametrize(
    "hint", ["more flattery", "agree with me", "be more flattering and agree with what I say"]
)
def test_hints_about_a_lock_do_nothing(world, hint):
    run = store.load_reward_run(world / "rewards")
    decision = hint_gate.decide(hint, run=run, posterior=run.prior, verified=False)
    assert not decision.distil and not decision.edits


@pytest.mark.parametrize("asked", ["flattery up", "everything at once"])
def test_an_export_is_that_of_the_railed_person(world, policy, tmp_path, capsys, asked):
    coef = np.array(HOSTILE[asked], np.float32)
    given = np.asarray(policy.loaded.gate.railed(coef))
    argv = ["export", "--policy", str(world / "policy"), "--json"]
    for name, own in (("asked", coef), ("given", given)):
        words = ",".join(repr(float(one)) for one in own)
        assert cli.main([*argv, f"--coefficients={words}", "--output", str(tmp_path / name)]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.strip().splitlines() if line[0] == "{"]
    assert results[0]["rails"] and not results[1]["rails"]
    assert_railed(policy, results[0]["z"])
    np.testing.assert_allclose(results[0]["z"], results[1]["z"], atol=1e-4)


def test_switching_off_is_an_act(world, tmp_path, runs, capsys, caplog):
    assert cli.main(["rewards", "rails", "--rewards", str(runs), "--off", " "]) == 2
    assert "needs a reason" in capsys.readouterr().err
    assert cli.main(["train", "dpo", str(world / "policy.yaml"), 'rails.off=""']) == 2
    config = load(
        world / "policy.yaml",
        [f"output_dir={tmp_path / 'policy'}", "rails.off=to measure their cost"],
        DPOConfig,
    )
    run = store.load_reward_run(world / "rewards")
    with caplog.at_level("WARNING", logger="chorus"):
        assert in_force(config.rails, run).rails is None
    assert "trained without the rails" in caplog.text and "to measure their cost" in caplog.text
    write_policy(config)
    record = policy_store.record_of(tmp_path / "policy")
    assert record["rails"] is None and load_policy(tmp_path / "policy").rails is None
    assert record["rails_off"] == {"hash": run.rails.hash, "reason": "to measure their cost"}


def test_python_takes_the_same_way(world, policy):
    fitted = rewards.load(world / "rewards")
    assert fitted.rails == policy.rails
    person = fitted.person("fan")
    assert_railed(policy, policy.signal(person))
    z = policy._signals([None, person, [0, 9, 9, 9]])
    assert_railed(policy, z)
    np.testing.assert_array_equal(z[0], 0)
    logprobs = policy.logprobs("Which ?", "item 1", [[0, 9, 0, 0], [0, 50, 0, 0]])
    np.testing.assert_allclose(logprobs[0, 0], logprobs[0, 1], atol=1e-4)
    with pytest.raises(UserError, match="needs a reason"):
        fitted.with_rails(None)


def test_nobody_is_asked_about_a_locked_axis(world):
    """A pair that differs in flattery alone would teach most, but what it teaches is used nowhere."""
    run = store.load_reward_run(world / "rewards")
    deltas = np.array([[0, 3, 0, 0], [0.5, 3, 0, 0], [0.4, 0.1, 0, 0], [0, 0, 1, 1]], np.float32)
    pool = [
        Question("Which?", f"first {n}", f"second {n}", tuple(map(float, row)))
        for n, row in enumerate(deltas)
    ]
    free = dataclasses.replace(run, rails=None)
    nobody = records.new_record(run, "nobody")
    assert pool_module.next_question(free, nobody, pool) in (0, 1)
    seen, may = pool_module.worth_asking(run, deltas)
    assert may.tolist() == [False, False, True, True] and not seen[:, 1].any()
    np.testing.assert_array_equal(np.delete(seen, 1, axis=1), np.delete(deltas, 1, axis=1))
    asked, record = [], nobody
    while (index := pool_module.next_question(run, record, pool)) is not None:
        asked.append(index)
        record = dataclasses.replace(record, skipped=(*record.skipped, pool[index].key))
    assert sorted(asked) == [2, 3]
