"""`~` in paths, and runs that are moved together."""

import shutil
from pathlib import Path

import pytest

from rewards import paths
from rewards.errors import UserError
from rewards.files import cache_dir
from rlhf.apps.cli import parse
from rlhf.run.config.load import load
from rlhf.train.config import SFTConfig


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/a", "{home}/a"),
        ("~", "{home}"),
        ("a~/b", "a~/b"),
        ("/a/~", "/a/~"),
        ("~a", "~a"),
        ("./~/x", "./~/x"),
        ("", ""),
    ],
)
def test_the_home_folder(home, written, meant):
    assert paths.expanded(written) == meant.format(home=home)


def test_a_nul_byte_is_named():
    with pytest.raises(UserError, match="NUL byte"):
        paths.expanded("a\0b")


def test_everywhere_a_path_is_given(home, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", "~/cache")
    assert cache_dir() == home / "cache"
    config = home / "a.yaml"
    config.write_text(
        "seed: 1\noutput_dir: ~/out\ndata: {path: ~/d.jsonl}\nmodel: {name: ~/m}\ntrain: {steps: 3}\n"
        "optimizer: {learning_rate: 1e-4}\n"
    )
    read = load(config, ["output_dir=~/other"], SFTConfig)
    assert (read.output_dir, read.data.path, read.model.name) == (
        f"{home}/other",
        f"{home}/d.jsonl",
        f"{home}/m",
    )
    score = ["rewards", "score", "--rewards=~/r", "--input=~/i", "--output=~/o"]
    args = parse(score)
    assert (args.rewards, args.input, args.output) == (f"{home}/r", f"{home}/i", f"{home}/o")
    args = parse(["generate", "--policy=~/p", "--prompt", "~/p"])
    assert args.policy == f"{home}/p" and args.prompt == ["~/p"]  # words stay words
    args = parse(["users", "update", "ada", "--rewards=~/r", "--answers=~/a"])
    assert (args.rewards, args.answers) == (f"{home}/r", f"{home}/a")
    assert parse(["train", "sft", "~/c.yaml"]).config == f"{home}/c.yaml"
    with pytest.raises(UserError, match="NUL byte"):
        parse(["train", "sft", "c\0.yaml"])


def make(path: Path, content: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "hash").write_text(content)
    return path


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("place", ["sft", "deep/er/sft", "../beside/sft"])
def test_a_reference_is_found_after_a_move_and_only_by_its_hash(tmp_path, recorded, place):
    project = tmp_path / "old" / "project"
    run, target = make(project / "dpo", "run"), make(project / place, "right")
    stored, nearby = str(target.resolve()), paths.relative(target, run) if recorded else None

    def right(path):
        return (path / "hash").is_file() and (path / "hash").read_text() == "right"

    assert Path(paths.find(stored, nearby, run, right)).samefile(target)
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = tmp_path / "new" / "project"
    assert Path(paths.find(stored, nearby, moved / "dpo", right)).samefile(moved / place)
    make(Path(stored), "another one, later, at the old place")
    assert Path(paths.find(stored, nearby, moved / "dpo", right)).samefile(moved / place)
    make(moved / place, "changed")
    assert paths.find(stored, nearby, moved / "dpo", right) == stored
