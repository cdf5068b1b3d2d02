"""Training, sampling, storing and judging from Python, on a tiny model; and that the commands do the same."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import optax
import pytest

import rewards
import rlhf
from rlhf.apps import cli
from rlhf.policy import store as policy_store
from rlhf.run.metrics import read_metrics
from tests.rlhf import tiny
from tests.rlhf.api.world import FIT, ITEMS, QUESTION, table


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def prefs():
    return rewards.read(table())


@pytest.fixture(scope="module")
def fitted(prefs, model):
    return rewards.fit(prefs.training, encoder=rlhf.encoder(model), **FIT)


@pytest.fixture(scope="module")
def policy(model, prefs, fitted):
    return rlhf.train_dpo(model, prefs.training, rewards=fitted, steps=12, learning_rate=1e-2, lora_rank=2)


def arrays(policy):
    params = policy.loaded.params
    return policy_store.flatten(params.lora) | policy_store.flatten(params.conditioner)


def same_arrays(a, b):
    left, right = arrays(a), arrays(b)
    assert left.keys() == right.keys() and left
    return all(np.array_equal(left[name], right[name]) for name in left)


def test_two_people_and_everybody_are_answered_at_once(policy, fitted):
    ada, bob = fitted.person("p00"), fitted.person("p01")
    found = policy.generate([QUESTION, "item ?"], people=[ada, bob, None], max_new_tokens=4, seed=1)
    assert (
        len(found) == 6
        and isinstance(found[0], str)
        and [row.person for row in found.rows[:3]]
        == [
            "p00",
            "p01",
            "everybody",
        ]
    )
    assert [row.prompt for row in found.rows] == [QUESTION] * 3 + ["item ?"] * 3
    assert repr(found).startswith(f"{QUESTION}\n  p00: ") and "<td>everybody</td>" in found._repr_html_()
    # By name, by person and by coefficients it is the same input.
    for other in ("p00", ada.mean):
        again = policy.generate([QUESTION, "item ?"], people=[other, bob, None], max_new_tokens=4, seed=1)
        assert again == found
    assert policy.generate(QUESTION, max_new_tokens=4, greedy=True) == policy.generate(
        QUESTION, people=[None], max_new_tokens=4, greedy=True, seed=9
    )


def test_log_probs_tell_people_apart_and_add_up(policy, fitted):
    people = [fitted.person("p00"), fitted.person("p01"), None]
    texts = [f"item {n}" for n in range(ITEMS)]
    found = policy.logprobs(QUESTION, texts, people)
    assert found.shape == (ITEMS, 3) and (found < 0).all()
    # What the policy says more to one than to the other is what is worth more to the one, by φ and their coefficients.
    worth = fitted.score(QUESTION, texts) @ (people[0].mean - people[1].mean)
    assert np.corrcoef(found[:, 0] - found[:, 1], worth)[0, 1] > 0.5
    np.testing.assert_allclose(policy.logprobs(QUESTION, texts)[:, 0], found[:, 2], rtol=1e-5)
    [greedy] = policy.generate(QUESTION, greedy=True, max_new_tokens=3).rows
    if greedy.finished:
        own = policy.logprobs(QUESTION, greedy.text)[0, 0]
        np.testing.assert_allclose(own, greedy.logprob, rtol=1e-4)


def test_the_history_has_every_step_and_nothing_was_written(policy, tmp_path, monkeypatch, model):
    assert [step.step for step in policy.history] == list(range(1, 13))
    # An untrained policy is its own reference, so it tells no pair apart.
    np.testing.assert_allclose(policy.history[0]["train/loss/total"], np.log(2), rtol=1e-4)
    assert policy.directory is None
    monkeypatch.chdir(tmp_path)
    rlhf.train_sft(model, [{"prompt": "Which ?", "completion": "item 3"}], steps=1, row_length=16)
    assert list(tmp_path.iterdir()) == []


def test_saved_and_opened_it_is_the_same(policy, fitted, tmp_path):
    policy.save(tmp_path / "run")
    opened = rlhf.load_policy(tmp_path / "run")
    assert same_arrays(opened, policy) and opened.rewards.basis.hash == fitted.basis.hash
    asked = {"people": ["p00", None], "max_new_tokens": 4, "seed": 3}
    assert opened.generate(QUESTION, **asked) == policy.generate(QUESTION, **asked)
    with pytest.raises(rlhf.UserError, match="holds a policy already"):
        policy.save(tmp_path / "run")
    with pytest.raises(rlhf.UserError, match="no record of user 'nobody'"):
        opened.generate(QUESTION, people=["nobody"])


def test_one_persons_export_says_what_the_policy_says_to_them(policy, fitted, tmp_path):
    ada, texts = fitted.person("p00"), [f"item {n}" for n in range(4)]
    policy.export(tmp_path / "ada", person=ada)
    rlhf_plain = rlhf.api.policies.plain_model(tmp_path / "ada")
    np.testing.assert_allclose(
        rlhf_plain.logprobs(QUESTION, texts)[:, 0], policy.logprobs(QUESTION, texts, [ada])[:, 0], atol=2e-4
    )
    with pytest.raises(rlhf.UserError, match="exists already"):
        policy.export(tmp_path / "ada")


def test_the_evaluation_judges_people_never_seen(policy, fitted, prefs, tmp_path):
    small = {"sampling": {"num_samples": 2, "max_new_tokens": 4}, "users": {"answers": 5}, "last_choices": 4}
    report = rlhf.evaluate(policy, fitted, prefs.held_out, **small)
    assert report.status in ("won", "lost", "unknown") and repr(report).startswith(report.verdict)
    assert set(report.people) == {prefs.held_out.user_ids[u] for u in prefs.held_out.user_index}
    assert report.matrix.shape == (len(report.people),) * 2 and "kl_to_optimum" in report.enumerated
    np.testing.assert_allclose(report.enumerated["own_reward"], np.diag(report.matrix).mean(), rtol=1e-5)
    page = report.to_html(tmp_path / "report.html").read_text()
    assert page.index("verdict") < page.index("<h1>") and report.people[0] in page


def test_the_command_trains_the_same_policy(policy, fitted, prefs, model, tmp_path):
    """`chorus train dpo` over files, train_dpo with output_dir, and train_dpo in memory."""
    run = rlhf.train_dpo(
        model,
        prefs.training,
        rewards=fitted,
        steps=12,
        learning_rate=1e-2,
        lora_rank=2,
        output_dir=tmp_path / "a",
    )
    assert same_arrays(run, policy) and run.directory == tmp_path / "a" and run.rewards is not None
    again = rlhf.train_dpo(
        model,
        prefs.training,
        rewards=fitted,
        steps=12,
        learning_rate=1e-2,
        lora_rank=2,
        output_dir=tmp_path / "a",
    )
    assert same_arrays(again, policy), "a finished run is not trained again"
    with pytest.raises(rlhf.UserError, match="another configuration .train.steps is 12 there, 13 here"):
        rlhf.train_dpo(
            model,
            prefs.training,
            rewards=fitted,
            steps=13,
            learning_rate=1e-2,
            lora_rank=2,
            output_dir=tmp_path / "a",
        )
    held = {prefs.held_out.user_ids[u] for u in prefs.held_out.user_index}
    rows = [row for row in table() if row["user_id"] not in held]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "seed": 0,
        "output_dir": str(tmp_path / "b"),
        "data": {"path": str(tmp_path / "pairs.jsonl")},
        "model": {"name": str(model)},
        "rewards": str(fitted.directory),
        "tune": {"lora_rank": 2},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 12},
    }
    (tmp_path / "dpo.yaml").write_text(json.dumps(config))
    assert cli.main(["train", "dpo", str(tmp_path / "dpo.yaml")]) == 0
    assert same_arrays(rlhf.load_policy(tmp_path / "b"), policy)
    of_command = {row["step"]: row["train/loss/total"] for row in read_metrics(tmp_path / "b")}
    assert {
        step.step: step["train/loss/total"] for step in policy.history if step.step in of_command
    } == of_command


def test_a_supervised_start_in_memory_is_what_dpo_starts_from(model, prefs, fitted, tmp_path):
    start = rlhf.train_sft(model, prefs, steps=3, learning_rate=1e-2, row_length=32, lora_rank=2)
    texts = [f"item {n}" for n in range(4)]
    policy = rlhf.train_dpo(start, prefs, rewards=fitted, steps=1, learning_rate=1e-9)
    np.testing.assert_allclose(
        policy.logprobs(QUESTION, texts), start.logprobs(QUESTION, texts), atol=1e-3, rtol=1e-4
    )
    with pytest.raises(rlhf.UserError, match="trained from is in memory only"):
        policy.save(tmp_path / "policy")
    with pytest.raises(rlhf.UserError, match="model: this policy is in memory only"):
        rlhf.train_dpo(start, prefs, rewards=fitted, steps=1, output_dir=tmp_path / "run")
    stored = rlhf.load_policy(start.save(tmp_path / "sft"))
    rlhf.train_dpo(stored, prefs, rewards=fitted, steps=1).save(tmp_path / "policy")
    assert rlhf.load_policy(tmp_path / "policy").generate(QUESTION, max_new_tokens=2)


def test_pairs_without_people_train_a_policy_for_everybody(model, tmp_path):
    bare = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in table(4)]
    policy = rlhf.train_dpo(model, bare, steps=2, loss={"kind": "ipo"}, lora_rank=2)
    assert policy.loaded.gate is None and "train/accuracy" in policy.history[-1].metrics
    with pytest.raises(rlhf.UserError, match="trained without users"):
        policy.generate(QUESTION, people=[[0.0, 1.0]])
    with pytest.raises(rlhf.UserError, match="user_id.*loss.kind observed needs"):
        rewarded = rewards.fit(table(), encoder=rlhf.encoder(model), **FIT)
        rlhf.train_dpo(model, bare, rewards=rewarded, steps=1, loss={"kind": "observed"})


def brevity(completions, **columns):
    return [-float(len(text)) for text in completions]


def test_grpo_with_two_functions_learns_what_they_reward(model):
    """One is a module's function, one lives in this call only; both see the rows' other columns."""
    seen = []

    def says_wanted(prompts, completions, wanted):
        seen.append((prompts, wanted))
        words = [set(text.split()) for text in wanted]
        return [
            float(sum(w in own for w in text.split())) for text, own in zip(completions, words, strict=True)
        ]

    low = " ".join(map(str, range(20)))
    rows = [{"prompt": QUESTION, "wanted": low}, {"prompt": "item ?", "wanted": low}]
    policy = rlhf.train_grpo(
        model,
        rows,
        rewards=[says_wanted, brevity],
        weights=[1.0, 0.01],
        steps=40,
        tune={"mode": "full"},
        learning_rate=3e-2,
        max_new_tokens=4,
        prompts_per_step=2,
        rollout={"completions": 8},
        kl={"coef": 0.01},
    )
    first, last = policy.history[0], policy.history[-1]
    assert last["train/reward/says_wanted"] > first["train/reward/says_wanted"] + 1.0
    assert {"train/reward/brevity", "train/kl_ref_nats"} <= last.metrics.keys()
    assert set(seen[0][1]) == {low} and set(seen[0][0]) == {QUESTION, "item ?"}


def test_ppo_and_grpo_on_fitted_rewards(model, fitted, tmp_path):
    small = {
        "max_new_tokens": 3,
        "prompts_per_step": 2,
        "rollout": {"completions": 2},
        "steps": 2,
        "lora_rank": 2,
    }
    policy = rlhf.train_ppo(model, [QUESTION, "item ?"], rewards=fitted, **small)
    assert policy.loaded.gate is not None and len(policy.history) == 2
    assert policy.generate(QUESTION, people=["p00"], max_new_tokens=2)
    stored = rlhf.train_grpo(model, [QUESTION], rewards=fitted, output_dir=tmp_path / "run", **small)
    memory = rlhf.train_grpo(model, [QUESTION], rewards=fitted, **small)
    assert same_arrays(stored, memory) and (tmp_path / "run" / "samples.jsonl").is_file()
    with pytest.raises(rlhf.UserError, match="rewards is required"):
        rlhf.train_grpo(model, [QUESTION], steps=1)


def test_callbacks_see_every_step_and_may_end_the_training(model, prefs):
    seen, ended = [], []

    class Watch(rlhf.Callback):
        def checkpoint(self, number, state):
            seen.append(("checkpoint", number))

        def end(self):
            ended.append(True)

    rows = [{"prompt": QUESTION, "completion": "item 3"}]
    rlhf.train_sft(
        model,
        rows,
        steps=3,
        row_length=16,
        checkpoint_every=2,
        callbacks=[Watch(), lambda step, metrics: seen.append((step, sorted(metrics)[0]))],
    )
    assert [what[0] for what in seen] == [1, 2, "checkpoint", 3, "checkpoint"] and ended == [True]

    def stop(step, metrics):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        rlhf.train_sft(model, rows, steps=9, row_length=16, callbacks=[Watch(), stop])
    assert ended == [True, True]
    with pytest.raises(TypeError, match="neither a rlhf.Callback nor a function"):
        rlhf.train_sft(model, rows, steps=1, callbacks=[3])


def test_any_optax_optimiser(model):
    """Plain SGD with rate r moves by −r times the gradient; the section of the configuration counts for nothing then."""
    rows = [{"prompt": QUESTION, "completion": "item 3"}]
    settings = {"steps": 1, "row_length": 16, "tune": {"mode": "full"}}
    one, two = (rlhf.train_sft(model, rows, optimizer=optax.sgd(rate), **settings) for rate in (0.01, 0.02))
    start = rlhf.api.policies.plain_model(model)
    base, once, twice = (policy_store.flatten(p.loaded.params.base) for p in (start, one, two))
    assert np.abs(once["embed.embedding"] - base["embed.embedding"]).max() > 1e-4
    for name in base:
        np.testing.assert_allclose(
            twice[name] - base[name], 2 * (once[name] - base[name]), rtol=1e-3, atol=1e-6
        )
    grad_norm, moved = one.history[0]["train/grad_norm"], one.history[0]["train/update_norm"]
    np.testing.assert_allclose(moved, 0.01 * grad_norm, rtol=1e-4)
    section = rlhf.train_sft(model, rows, optimizer={"learning_rate": 0.0123}, **settings)
    np.testing.assert_allclose(section.history[0]["train/learning_rate"], 0.0123, rtol=1e-5)
    with pytest.raises(rlhf.UserError, match="optimizer: a float is none"):
        rlhf.train_sft(model, rows, optimizer=0.1, steps=1)
    small = {"max_new_tokens": 2, "prompts_per_step": 1, "rollout": {"completions": 2}, "steps": 1}
    assert rlhf.train_grpo(model, [QUESTION], rewards=brevity, optimizer=optax.adam(1e-3), **small).history


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"learning_rat": 1e-4}, r"train_dpo: no such keyword 'learning_rat'; did you mean 'learning_rate'"),
        ({"loss": {"kimd": "ipo"}}, r"loss.kimd \[train_dpo\]: unknown key; did you mean 'kind'"),
        ({"kind": "ipo"}, r"'kind' stands in several sections.*loss="),
        ({"steps": 0}, r"train.steps \[train_dpo\]: input should be greater than or equal to 1"),
        ({"rewards": 7}, "rewards: a int gives none"),
        ({"rewards": "nowhere"}, "nowhere: no such reward run"),
    ],
)
def test_mistakes_are_named(model, prefs, keys, complaint):
    with pytest.raises(rlhf.UserError, match=complaint):
        rlhf.train_dpo(model, prefs, **keys)


def test_people_of_other_rewards_are_refused(policy, prefs, model):
    other = rewards.fit(prefs.training, encoder=rlhf.encoder(model), num_basis=2, dims=3, rounds=2)
    with pytest.raises(rlhf.UserError, match="coefficients of other rewards"):
        policy.generate(QUESTION, people=[other.person("ada")])
    with pytest.raises(rlhf.UserError, match="trained with other rewards"):
        rlhf.evaluate(policy, other, prefs.held_out)


def test_vector_rewards_of_new_texts(fitted, model):
    found = fitted.score(QUESTION, ["item 1", "item 11"])
    assert found.shape == (2, 2) and np.isfinite(found).all()
    talk = (("user", "Which?"), ("assistant", "Of what?"), ("user", QUESTION))
    # One prompt, not three.
    with pytest.raises(rewards.UserError, match="no chat template for a prompt of messages"):
        fitted.score(talk, ["item 1", "item 11"])
    stored = rewards.load(fitted.directory or fitted.save(model.parent / "rewards"))
    with pytest.raises(rewards.UserError, match="rewards.load.directory, encoder=rlhf.encoder"):
        stored.score(QUESTION, ["item 1"])
    opened = rewards.load(stored.directory, encoder=rlhf.encoder(model))
    np.testing.assert_array_equal(opened.score(QUESTION, ["item 1", "item 11"]), found)


def test_the_package_lists_what_is_public_and_imports_nothing_heavy():
    code = "import sys, rlhf; assert not {'jax', 'pydantic', 'numpy'} & set(sys.modules); print(*dir(rlhf))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == rlhf.__all__
    with pytest.raises(AttributeError, match="no attribute 'train_dp0'; public are"):
        rlhf.train_dp0  # noqa: B018
    values = [getattr(rlhf, name) for name in rlhf.__all__]
    assert all(value.__doc__ for value in values)
    assert all(dataclasses.fields(value) for value in (rlhf.Policy, rlhf.Evaluation, rewards.FittedRewards))
