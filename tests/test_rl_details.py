"""docs/rl-details.md is true: the functions it names exist where it says, and so do the tests that guard them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "rl-details.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in re.findall(r"^\| \d+ \|.*$", PAGE, flags=re.M)]
NAMED = re.compile(r"`([\w/]+\.py):(\w+)`")
TESTED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def definitions(file: str) -> set[str]:
    """Top-level functions and classes of a module of this repository."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_details_are_numbered_through():
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1)) and len(ROWS) > 30


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_detail_has_a_place_and_a_test_that_exist(row):
    _, detail, places, guards = row
    assert NAMED.findall(places) and TESTED.findall(guards), detail
    for cell, pattern in ((places, NAMED), (guards, TESTED)):
        found = pattern.findall(cell)
        assert len(found) == cell.count("`") // 2, f"something else is named in {cell!r}"
        missing = [f"{file}: {name}" for file, name in found if name not in definitions(file)]
        assert missing == []


def test_sources_are_the_ones_cited():
    body, sources = PAGE.split("## Sources")
    cited = {int(number) for group in re.findall(r"\[([\d, ]+)[\]:]", body) for number in group.split(", ")}
    assert cited == {int(number) for number in re.findall(r"^(\d+)\. ", sources, flags=re.M)}
