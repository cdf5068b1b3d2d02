"""A folder with a model, SFT, reward and DPO runs is moved as a whole; policies find what they were trained from."""

import json
import shutil
import types
from pathlib import Path

import pytest

from rewards.errors import UserError
from rlhf.policy import store
from rlhf.train.sft import base_record, fresh_policy
from tests.rlhf.tiny import write_model
from tests.rlhf.train.rl.reward_runs import make_run

CONFIG = types.SimpleNamespace(
    model=types.SimpleNamespace(adapter_layers=None, dtype="float32", base=None, remat=False),
    tune=types.SimpleNamespace(mode="lora", lora_rank=2),
    seed=0,
)


def train(directory: Path, name: Path, rewards=None) -> None:
    base = store.load_base(name, adapter_layers=None, dtype="float32")
    spec = store.AdapterSpec(lora_rank=2)
    _, params, _ = fresh_policy(CONFIG, base, spec)
    record = base_record(CONFIG, base, "sft")
    if rewards is not None:
        record |= {"rewards": str(rewards.directory.resolve()), "basis": rewards.hash}
    store.save_policy(directory, params, spec, record, full=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("moved") / "old" / "runs"
    model = write_model(root / "model")
    train(root / "sft", model)
    rewards = make_run(
        store.load_base(model, adapter_layers=None, dtype="float32"), root / "people" / "rewards"
    )
    train(root / "dpo", root / "sft", rewards)
    return root


def old_record(run: Path) -> None:
    """As policies were recorded before they knew the way."""
    path = run / "policy" / "policy.json"
    record = json.loads(path.read_text())
    del record["relative"], record["sha256"]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("old", [False, True])
def test_a_moved_folder_serves_its_policies(project, tmp_path, old):
    moved = tmp_path / "elsewhere" / "runs"
    shutil.copytree(project, moved)
    hidden = project.with_name("hidden")
    project.rename(hidden)
    try:
        if old:  # the DPO run alone: its own hash is in no other record
            old_record(moved / "dpo")
        policy = store.load_policy(moved / "dpo")
        assert policy.record["base"] == str(moved / "sft")
        assert policy.record["rewards"] == str(moved / "people" / "rewards")
        assert policy.base.directory == moved / "model"
        write_model(tmp_path / "other", seed=1)
        shutil.rmtree(moved / "model")
        shutil.copytree(tmp_path / "other", moved / "model")  # other weights at the right place
        with pytest.raises(UserError, match="no such model|weights differ"):
            store.load_policy(moved / "dpo")
    finally:
        hidden.rename(project)


def test_a_copy_beside_the_original_reads_its_own(project, tmp_path):
    shutil.copytree(project, tmp_path / "runs")
    assert store.load_policy(tmp_path / "runs" / "dpo").record["base"] == str(tmp_path / "runs" / "sft")
    record = json.loads((project / "dpo" / "policy" / "policy.json").read_text())
    assert record["relative"] == {"base": "../sft", "rewards": "../people/rewards"}
    assert record["base"] == str(project / "sft")
