"""The Python of the documentation runs: README, docs/python.md, scripts/examples, the notebook; on a tiny model.

The names of the published model and data set are replaced by those of a tiny model and of few, small choices.
"""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

import rewards
import rlhf
from rewards.errors import UserError
from rlhf.models.fetch import fetch
from tests.rlhf import tiny
from tests.rlhf.api.world import table

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_steps.ipynb"
EXAMPLES = sorted((ROOT / "scripts" / "examples").glob("*.py"))
NAMES = ("smollm2-135m", "electricity")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(name, what stands for it): a model and a file of choices."""
    folder = tmp_path_factory.mktemp("docs")
    rows = "".join(json.dumps(row) + "\n" for row in table(20, 16))
    (folder / "choices.jsonl").write_text(rows)
    config = tiny.write_model(folder / "model") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 256}))
    stand_ins = (str(config.parent), str(folder / "choices.jsonl"))
    return dict(zip(NAMES, stand_ins, strict=True))


def adapted(code: str, world: dict[str, str]) -> str:
    for name, stand_in in world.items():
        code = code.replace(f'"{name}"', repr(stand_in))
    return code.replace("adapter_layers=10", "adapter_layers=1")  # the tiny model has two layers


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_blocks_of_python_run_in_order(page, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, names = blocks(page), {}
    assert found
    for number, code in enumerate(found, 1):
        exec(compile(adapted(code, world), f"{page}, block {number}", "exec"), names)
    assert isinstance(names["policy"], rlhf.Policy) and isinstance(names["fitted"], rewards.FittedRewards)
    assert (tmp_path / "out" / "config.json").is_file(), "the export"
    assert repr(names["report"]).startswith(names["report"].verdict)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(script, world, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", world["smollm2-135m"], "--steps", "2"]
    if "--data" in script.read_text(encoding="utf-8"):
        arguments += ["--data", world["electricity"]]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    names = runpy.run_path(str(script), run_name="__main__")
    assert len(names["policy"].history) == 2 and capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "examples write no files"


def test_the_notebook_runs(world, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells), "outputs are committed"
    assert NOTEBOOK.stat().st_size < 100_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = adapted(cell.source, world)
    kernel = os.environ | {"PYTHONPATH": str(ROOT), "CHORUS_CACHE": os.environ["CHORUS_CACHE"]}
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=kernel)  # a cell that raises fails here
    assert list(tmp_path.iterdir()) == []


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
    small = 'users={"count": 3}, sampling={"num_samples": 1, "max_new_tokens": 16}'
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
