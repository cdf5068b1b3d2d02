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
    inner, found = {"inverse_sqrt", "cov_sqrt", "Conditioning"}, []
    for path in [*ROOT.glob("rlhf/**/*.py"), *ROOT.glob("rewards/**/*.py")]:
        if path == ROOT / "rlhf" / "policy" / "conditioning.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = {"Attribute": "attr", "Name": "id", "alias": "name"}.get(type(node).__name__)
            if name and getattr(node, name) in inner:
                found.append(
                    f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}: {getattr(node, name)}"
                )
    assert not found, found


def test_rewards_alone_imports_neither_the_policy_side_nor_a_language_model():
    code = "import sys, rewards.basis.fit, rewards.people.records, rewards.comparison.replay; " + (
        "assert not [m for m in sys.modules if m.startswith('rlhf') or m in ('transformers', 'torch')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
