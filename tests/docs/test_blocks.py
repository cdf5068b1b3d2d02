"""The Python of the README and docs/python.md runs, in order, on stand-ins."""

import pytest

import rewards
import rlhf
from tests.docs.pages import adapted, blocks


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
