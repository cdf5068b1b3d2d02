"""The layers of the design, held against the imports."""

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


def test_rewards_alone_imports_neither_the_policy_side_nor_a_language_model():
    code = "import sys, rewards.basis.fit, rewards.people.records, rewards.comparison.replay; " + (
        "assert not [m for m in sys.modules if m.startswith('rlhf') or m in ('transformers', 'torch')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
