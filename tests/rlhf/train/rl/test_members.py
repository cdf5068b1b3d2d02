"""Several reinforcement-learning runs in one program: each is what it would be alone, and nothing compiles again."""

import json

import pytest

from rlhf.policy import store as policy_store
from rlhf.run.config.load import build
from rlhf.train.rl import member_steps, members, trainer
from rlhf.train.rl.config import GRPOConfig
from tests.rlhf.tiny import write_model
from tests.rlhf.train.populations import Asked, At, prune, same
from tests.rlhf.train.rl.reward_runs import make_run

FUNCTIONS = """
def words(completions, trainer_state, log_metric):
    log_metric("longest", max(len(text) for text in completions))
    return [0.25 * len(text.split()) + 0.1 * trainer_state.global_step for text in completions]

def fragile(completions, trainer_state):
    if trainer_state.global_step == 1:
        raise RuntimeError("no more")
    return [float(len(text)) for text in completions]

def thirds(completion_tokens):
    return (completion_tokens % 3).sum(axis=1)
"""

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("members")
    model = write_model(root / "model")
    rows = [{"prompt": f"item {number} ?"} for number in range(5)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "functions.py").write_text(FUNCTIONS)
    make_run(policy_store.load_base(model, adapter_layers=1, dtype="float32"), root / "rewards")
    return root


def config_of(world, folder, **changes):
    values = {
        "seed": 0,
        "output_dir": str(folder),
        "data": {"path": str(world / "prompts.jsonl")},
        "model": {"name": str(world / "model"), "adapter_layers": 1},
        "tune": {"lora_rank": 2},
        "rollout": {"prompts_per_step": 2, "completions": 2, "max_new_tokens": 3},
        "kl": {"coef": 0.1},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 3, "checkpoint_every": 2, "samples_every": 2},
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) and key in values else value
    return build(values, GRPOConfig, "test", {})


def functions(world, *names, kind="function"):
    return [{"name": name, "kind": kind, "function": f"{world / 'functions.py'}:{name}"} for name in names]


def together(asked, size, at_once=None):
    waiting = iter(asked)
    members.train(asked[0].config, size, lambda: next(waiting, None), at_once)
    return [one.ends for one in asked]


def alike(world, tmp_path, base, changes, at_once):
    """Members equal runs alone, and say the same in samples.jsonl."""
    asked = [Asked(config_of(world, tmp_path / f"m{n}", **base | own)) for n, own in enumerate(changes)]
    assert together(asked, len(changes), at_once) == [["complete"]] * len(changes)
    for n, own in enumerate(changes):
        trainer.run(config_of(world, tmp_path / f"alone{n}", **base | own))
        same(tmp_path / f"alone{n}", tmp_path / f"m{n}")
        said = [
            [
                json.loads(line)
                for line in (tmp_path / f"{name}{n}" / "samples.jsonl").read_text().splitlines()
            ]
            for name in ("alone", "m")
        ]
        assert [(one["step"], one["completion"]) for one in said[0]] == [
            (one["step"], one["completion"]) for one in said[1]
        ]


def test_members_with_rewards_of_the_host_are_what_they_would_be_alone(world, tmp_path):
    """Functions see each member's own step and log into its own metrics; a held-out score each."""
    base = {"columns": functions(world, "words"), "train": {"evaluate_every": 2, "evaluate_share": 0.3}}
    changes = [
        {"optimizer": {"learning_rate": 3e-2}},
        {"seed": 1, "kl": {"coef": 0.5}, "rollout": {"temperature": 0.7}},
    ]
    alike(world, tmp_path, base, changes, None)


def test_members_of_one_compiled_iteration_with_people_are_what_they_would_be_alone(world, tmp_path):
    """Side by side, as on accelerators; three in groups of two."""
    base = {"rewards": str(world / "rewards"), "rollout": {"users_per_prompt": 2}}
    changes = [
        {"optimizer": {"learning_rate": 3e-2, "warmup_steps": 1}},
        {"seed": 1, "kl": {"coef": 0.5}, "users": {"extreme_sd": 1.0}},
        {"seed": 2, "rail": {"eta": 0.2}, "algorithm": {"clip_low": 0.1}},
    ]
    alike(world, tmp_path, base, changes, 2)


def test_whoever_ends_makes_room_and_nothing_is_compiled_again(world, tmp_path):
    """One is pruned, the reward of another fails in its second step: others take their places."""

    def asked(n, *callbacks, rate=1e-2, columns=("words",)):
        changes = {"optimizer": {"learning_rate": rate}, "seed": n, "columns": functions(world, *columns)}
        return Asked(config_of(world, tmp_path / f"m{n}", **changes), *callbacks)

    together([asked(10), asked(11)], 2)
    programs = (member_steps.draw, member_steps.update)
    before = [one._cache_size() for one in programs]
    assert together([asked(0, At(1, prune)), asked(1), asked(2, rate=3e-2)], 2) == [
        ["pruned"],
        *[["complete"]] * 2,
    ]
    assert [one._cache_size() for one in programs] == before
    trainer.run(
        config_of(
            world,
            tmp_path / "alone",
            optimizer={"learning_rate": 3e-2},
            seed=2,
            columns=functions(world, "words"),
        )
    )
    same(tmp_path / "alone", tmp_path / "m2")
    [[told], *_] = together([asked(3, columns=("fragile",))], 2)
    assert "step 2:" in told and "no more" in told


def test_compiled_columns_of_a_population_are_measured_for_each_member(world, tmp_path):
    """Each has a reward run of its own: φ is standardised over samples of its own seed."""
    base = {
        "columns": functions(world, "thirds", kind="jit"),
        "population": {"mean": [1.0], "sd": [1.0], "prompts": 2, "completions": 2},
    }
    alike(world, tmp_path, base, [{"seed": 3}, {"seed": 4}], None)
