"""Several preference runs in one program: each is what it would be alone, whatever the others are, and nothing compiles again."""

import json
import os
import signal

import pytest

import rewards
import rlhf
from rlhf.run import signals
from rlhf.run.config.load import build
from rlhf.train import dpo, dpo_members
from rlhf.train.config import DPOConfig
from tests.rlhf import tiny
from tests.rlhf.api.world import FIT, table
from tests.rlhf.train.populations import Asked, At, prune, same

PLAIN = {"loss": {"kind": "dpo"}}
STEPS = 4

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("members")
    model = tiny.write_model(root / "model")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table()))
    rewards.fit(rewards.read(table()).training, encoder=rlhf.encoder(model), **FIT).save(root / "rewards")
    return root


def config_of(world, folder, **changes):
    values = {
        "seed": 0,
        "output_dir": str(folder),
        "data": {"path": str(world / "pairs.jsonl")},
        "model": {"name": str(world / "model")},
        "tune": {"lora_rank": 2},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": STEPS, "batch_rows": 2, "log_every": 1, "checkpoint_every": 3},
        **PLAIN,
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) and key in values else value
    return build(values, DPOConfig, "test", {})


def together(asked, size, cache, at_once=None):
    waiting = iter(asked)
    dpo_members.train(asked[0].config, size, lambda: next(waiting, None), cache, at_once)
    return [one.ends for one in asked]


def test_members_are_what_they_would_be_alone(world, tmp_path):
    changes = [
        {"optimizer": {"learning_rate": 1e-3}},
        {"optimizer": {"learning_rate": 3e-3, "warmup_steps": 2}, "seed": 1},
        {"loss": {"kind": "dpo", "dpo_beta": 0.7, "nll_coef": 0.3}, "seed": 2},
    ]
    asked = [Asked(config_of(world, tmp_path / f"m{n}", **own)) for n, own in enumerate(changes)]
    assert together(asked, 3, tmp_path) == [["complete"]] * 3
    for n, own in enumerate(changes):
        dpo.run(config_of(world, tmp_path / f"alone{n}", **own))
        same(tmp_path / f"alone{n}", tmp_path / f"m{n}")


def test_members_with_people_and_held_out_rows(world, tmp_path):
    """Coefficients are drawn with each member's own keys; the best step of each is kept. Side by side, as on accelerators."""
    base = {
        "rewards": str(world / "rewards"),
        "loss": {"kind": "soft"},
        "train": {"evaluate_every": 2, "evaluate_share": 0.3, "keep_best": "eval/loss/total"},
    }
    changes = [
        {"optimizer": {"learning_rate": 2e-3}, "seed": 3},
        {"users": {"extreme_sd": 1.0}, "rail": {"eta": 0.2}, "loss": {"kind": "soft", "dpo_beta": 0.4, "nll_coef": 0.1}},
    ]  # fmt: skip
    asked = [Asked(config_of(world, tmp_path / f"m{n}", **base | own)) for n, own in enumerate(changes)]
    assert together(asked, 2, tmp_path, at_once=2) == [["complete"]] * 2
    for n, own in enumerate(changes):
        dpo.run(config_of(world, tmp_path / f"alone{n}", **base | own))
        same(tmp_path / f"alone{n}", tmp_path / f"m{n}")


def test_whoever_ends_makes_room_and_nothing_is_compiled_again(world, tmp_path):
    """One is pruned, one diverges, one is finished: others take their places, at steps of their own."""

    def asked(n, *callbacks, rate=1e-3, **more):
        changes = {"optimizer": {"learning_rate": rate}, "seed": n, **more}
        return Asked(config_of(world, tmp_path / f"m{n}", **changes), *callbacks)

    first = [asked(10), asked(11)]
    together(first, 2, tmp_path)
    before = dpo_members.step._cache_size()
    wanted = [
        asked(0, At(2, prune)),
        asked(1, rate=1e3, loss={"kind": "dpo", "dpo_beta": 1e6}),
        asked(2),
        asked(3, rate=3e-3),
    ]
    ends = together(wanted, 2, tmp_path)
    assert ends[0] == ["pruned"] and ends[2:] == [["complete"]] * 2
    assert "not finite" in ends[1][0] or ends[1] == ["complete"]
    assert dpo_members.step._cache_size() == before
    assert sorted(one.name for one in (tmp_path / "m0" / "checkpoints").iterdir())[-1] == "00000003"
    assert not (tmp_path / "m0" / "metrics.json").exists()
    dpo.run(config_of(world, tmp_path / "alone", optimizer={"learning_rate": 3e-3}, seed=3))
    same(tmp_path / "alone", tmp_path / "m3")


def test_a_signal_is_a_checkpoint_of_all_and_the_rest_is_the_same(world, tmp_path):
    """Members may even go on in another company, or alone."""

    def asked(n, *callbacks):
        return Asked(config_of(world, tmp_path / f"m{n}", seed=n), *callbacks)

    ended = [asked(0, At(1, lambda: os.kill(os.getpid(), signal.SIGTERM))), asked(1)]
    with pytest.raises(KeyboardInterrupt), signals.handled():
        together(ended, 2, tmp_path)
    assert [one.ends for one in ended] == [["left"]] * 2
    for n in (0, 1):
        assert [one.name for one in (tmp_path / f"m{n}" / "checkpoints").iterdir()] == ["00000002"]
    assert together([asked(2), asked(0)], 2, tmp_path) == [["complete"]] * 2
    dpo.run(asked(1).config)
    for n in (0, 1):
        dpo.run(config_of(world, tmp_path / f"alone{n}", seed=n))
        same(tmp_path / f"alone{n}", tmp_path / f"m{n}")
