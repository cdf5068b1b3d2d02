"""The layers of the design, held against the imports."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_layers_hold():
    command = Path(sys.executable).with_name("lint-imports")
    if not command.is_file() and not shutil.which("lint-imports"):
        pytest.skip("import-linter is not installed")
    done = subprocess.run([str(command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_gate_alone_makes_a_z():
    """Whatever holds for everybody's z (the rail, later guardrails) is applied by `Gate`, so nobody may go around it."""
    assert not _uses({"inverse_sqrt", "cov_sqrt", "Conditioning"}, {"rlhf/policy/conditioning.py"})


def _uses(names: set[str], allowed: set[str]) -> list[str]:
    """Where `names` occur as an attribute, a name or an import, outside the allowed files."""
    found = []
    for path in [*ROOT.glob("rlhf/**/*.py"), *ROOT.glob("rewards/**/*.py")]:
        if str(path.relative_to(ROOT)) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            field = {"Attribute": "attr", "Name": "id", "alias": "name"}.get(type(node).__name__)
            if field and getattr(node, field) in names:
                found.append(
                    f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}: {getattr(node, field)}"
                )
    return found


def test_a_basis_is_read_at_one_place():
    """Whitening, rotation and signs are made by the gauge, stored, and applied by `Readout` alone."""
    basis = {"rewards/types.py", *(f"rewards/basis/{name}.py" for name in ("gauge", "readout", "store"))}
    assert not _uses({"rotation"}, basis)


def test_trainers_ask_a_reward_what_it_can_do():
    """Which class a reward is of is known where it is made, and nowhere else."""
    kinds = {"EncoderKernel", "ColumnKernel", "HostReward", "ColumnFeatures", "EncoderFeatures", "Compiled"}
    made = {"rlhf/phi/on_device.py", "rlhf/phi/on_host.py", "rlhf/phi/reward.py", "rlhf/train/rl/sources.py"}
    assert not _uses(kinds, made)


def test_rewards_alone_imports_neither_the_policy_side_nor_a_language_model():
    code = "import sys, rewards.basis.fit, rewards.people.records, rewards.comparison.replay; " + (
        "assert not [m for m in sys.modules if m.startswith('rlhf') or m in ('transformers', 'torch')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
