"""Small preference tables for tests of columns."""

import json
from pathlib import Path

from rewards.data.completions import read_completions
from rewards.data.read import read_preferences
from rewards.types import Preferences


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def preferences(folder: Path, rows: list[dict]) -> Preferences:
    return read_preferences(str(write_rows(folder / "pairs.jsonl", rows)))


def completions(folder: Path, texts: dict[str, list[str]], **columns) -> Preferences:
    """A table of completions: prompt → texts; `columns` are functions of (prompt, text)."""
    rows = [
        {"prompt": prompt, "completion": text} | {name: f(prompt, text) for name, f in columns.items()}
        for prompt, own in texts.items()
        for text in own
    ]
    return read_completions(str(write_rows(folder / "completions.jsonl", rows)))


def pair(prompt, chosen, rejected, user="ada", **columns) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "user_id": user} | columns
