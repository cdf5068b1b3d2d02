"""Every shipped configuration is valid, says how it is run, and is what the quickstart finds."""

from pathlib import Path

import pytest

from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import load
from rlhf.run.config.shipped import shipped
from rlhf.sweep.config import read_sweep

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))


def kind_of(path: Path) -> str:
    return path.stem.split("_")[0]


def test_there_are_configurations():
    assert len(FILES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_it_builds_and_opens_with_its_command(path):
    if kind_of(path) == "sweep":
        read_sweep(path)
    else:
        hash(load(path, [], schema_of(kind_of(path))))  # static arguments must be hashable
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    relative = f"configs/{path.parent.name}/{path.name}"
    assert any(line.strip().startswith("#   chorus ") and relative in line for line in head), head
    assert any("Hardware" in line for line in head)


def test_the_quickstart_finds_its_files():
    for name in ("rewards", "sft", "dpo", "evaluate"):
        assert shipped(f"quickstart/{name}.yaml").is_file()
