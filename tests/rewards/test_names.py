"""One rule for names: of people, columns, rewards, launches, folders; said in one line, and nothing left behind."""

import os

import pytest
import yaml

from rewards import files
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.names import no_name
from rlhf.apps import cli
from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import build
from rlhf.train.rl.config import PPOConfig
from tests.test_bad_input import World

HOSTILE = [
    "\x1b[2J",
    "a\tb",
    "two\nlines",
    "\u202egnp.exe",
    "\x7f",
    "bell\x07",
    "\x9b2J",
    "a\u2028b",
    "\udcff",
    "\r",
]
NAMES = [
    "ada",
    "Ada Lovelace",
    "日本",
    "é😀",
    "a.b/c",
    "{}",
    "<b>",
    "\u05e9\u05dc\u05d5\u05dd\u200f",
    "a'b\"c",
    "$HOME",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_name(name):
    assert "U+" in (no_name(name) or "")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_one(name):
    assert no_name(name) is None


KEYS = {
    "data.prompt_column": "ppo",
    "data.user_column": "rewards",
    "data.completion_column": "sft",
    "data.split": "dpo",
    "data.path": "sft",
    "output_dir": "rewards",
    "model.name": "sft",
    "policy": "evaluate",
    "critic.start": "ppo",
    "evaluation.models": "rewards",
}


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines", "\u202egnp.exe", "a\tb", "\x07"])
@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_a_configuration_holds_one(key, name, tmp_path, monkeypatch, capsys):
    world = World(tmp_path, monkeypatch)
    argv = [*world.config(KEYS[key]), f"{key}={yaml_text([name] if key == 'evaluation.models' else name)}"]
    before = sorted(os.listdir(tmp_path))
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "U+" in said and key in said and said.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def yaml_text(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=False).removesuffix("...\n").strip()


@pytest.mark.parametrize("name", HOSTILE[:9])
def test_no_column_is_called_so(name, tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    values = yaml.safe_load((tmp_path / world.config("ppo")[-1]).read_text())
    values["columns"][0]["name"] = name
    with pytest.raises(UserError, match=r"columns\.0\.name .*U\+|UTF-8|surrogate"):
        build(values, schema_of("ppo"), "ppo.yaml")


def test_a_judges_question_is_text_of_any_kind(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    values = yaml.safe_load((tmp_path / world.config("ppo")[-1]).read_text())
    judge = {"name": "judge", "kind": "judge", "model": "m", "address": "http://localhost:1/v1"}
    values["columns"][0] = judge | {
        "question": "Is it good?\n\tSay \u202byes\u202c or no.\n{prompt}\n{completion}"
    }
    config = build(values, schema_of("ppo"), "ppo.yaml")
    assert isinstance(config, PPOConfig) and "\t" in config.columns[0].question


@pytest.mark.parametrize("name", HOSTILE[:8])
def test_nobody_is_called_so(name, tmp_path, monkeypatch, capsys):
    world = World(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"row 3.*user_id.*U\+"):
        read_preferences(str(world.spoiled(user_id=name)))
    assert cli.main(world.user("edit", "--axis", "taste 1=0.5", name=name)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "U+" in said and said.isprintable()


@pytest.mark.parametrize("name", HOSTILE[:9])
def test_no_file_or_folder_is_made_of_such_a_name(name, tmp_path):
    for made in (files.atomic_path, files.atomic_directory):
        with pytest.raises(UserError, match=r"U\+"), made(tmp_path / name):
            pass
    assert not os.listdir(tmp_path)


BAD_LAUNCHES = ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a b", "\x1b[2J", "x" * 101, "a\n", "a\x00"]


@pytest.mark.parametrize("name", BAD_LAUNCHES)
@pytest.mark.parametrize("asked", ["local", "status", "logs", "cancel"])
def test_no_launch_is_called_so(asked, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if asked == "local" and not name:
        return  # no name is a name by the time
    argv = ["launch", asked, *(["--name=" + name] if asked == "local" else ["--", name])]
    assert cli.main([*argv, *(["--", "data", "plan", "--labels", "100"] if asked == "local" else [])]) == 2
    assert "no name of a launch" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("option", ["--memory", "--time", "--partition", "--option"])
def test_no_option_of_a_scheduler_adds_lines(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["launch", "slurm", "--dry-run", f"{option}=1\ntouch x", "--", "data", "plan", "--labels", "100"]
    assert cli.main(argv) == 2 and "U+000A" in capsys.readouterr().err


@pytest.mark.parametrize("secret", ["https://u:S3CRET@host/v1", "http://S3CRET@host", "ftp://a:S3CRET@b/c"])
@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_a_configuration_holds_a_password(key, secret, tmp_path, monkeypatch, capsys):
    world = World(tmp_path, monkeypatch)
    value = yaml_text([secret] if key == "evaluation.models" else secret)
    assert cli.main([*world.config(KEYS[key]), f"{key}={value}"]) == 2
    said = capsys.readouterr()
    assert key in said.err and "S3CRET" not in said.err + said.out
    assert not any("S3CRET" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
