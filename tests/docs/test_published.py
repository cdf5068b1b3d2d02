"""The ten lines of the README on the published model, and what importing costs."""

import subprocess
import sys

import pytest

import rewards
import rlhf
from rewards.errors import UserError
from rlhf.models.fetch import fetch
from tests.docs.pages import ROOT, blocks


@pytest.mark.real_model
def test_the_ten_lines_on_the_published_model(tmp_path, monkeypatch):
    """As in the README, with few steps and few people."""
    try:
        fetch("smollm2-135m")
        rewards.read("electricity")
    except UserError as error:
        pytest.skip(f"no model or data: {error}")
    monkeypatch.chdir(tmp_path)
    [code] = blocks("README.md")[:1]
    code = code.replace("steps=60", "steps=4, adapter_layers=4")
    small = 'users={"count": 2}, sampling={"num_samples": 1, "max_new_tokens": 8}'
    code = code.replace("prefs.held_out)", f"prefs.held_out, {small})")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    policy, ada = names["policy"], names["ada"]
    assert isinstance(policy, rlhf.Policy) and isinstance(ada, rewards.Person)
    # Four steps change little, but the coefficients already enter.
    two = policy.logprobs("Which supplier should I pick?", "Your local utility.", people=[ada, None])
    assert two[0, 0] != two[0, 1] and (tmp_path / "out" / "model.safetensors").is_file()


def test_importing_the_packages_and_helping_with_the_command_stay_light():
    """What is slow to import must not be imported; times themselves depend on the machine."""
    code = (
        "import sys, rlhf, rewards; from rlhf.apps.cli import build_parser; build_parser(); "
        "print(*sorted({'jax', 'numpy', 'pydantic', 'flax', 'transformers', 'yaml', 'ruamel'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
