"""Small preference files for the data tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, Any]


def make_row(**changes: Any) -> Row:
    row = {"prompt": "Which one?", "chosen": "The red one.", "rejected": "The blue one.", "user_id": "ann"}
    return {name: value for name, value in (row | changes).items() if value is not ...}


@pytest.fixture
def row() -> Callable[..., Row]:
    """A valid row with changes; `...` as a value removes the field."""
    return make_row


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON lines and return the path."""

    def write_rows(rows: list[Any], name: str = "prefs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def reference() -> Callable[[str], Path]:
    """A file of the shared reference data beside the repository; skips where there is none."""

    def find(name: str) -> Path:
        path = Path(__file__).parents[3].parent / "shared" / "data" / "stated_choice" / name
        if not path.exists():
            pytest.skip(f"reference data {name} is not here")
        return path

    return find
