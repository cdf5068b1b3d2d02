"""scripts/examples and the notebook run, on stand-ins."""

import os
import runpy
import sys

import nbclient
import nbformat
import pytest

from tests.docs.pages import ROOT, adapted

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_steps.ipynb"
EXAMPLES = sorted((ROOT / "scripts" / "examples").glob("*.py"))


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
