"""The documentation is true: its commands parse, its configurations load, its links lead somewhere."""

import dataclasses
import re
import runpy
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from rlhf.apps.cli import parse
from rlhf.apps.cli.common import configuration
from rlhf.apps.cli.evaluate import asked
from rlhf.apps.evaluate import configuration as evaluation
from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import load
from rlhf.sweep.config import read_sweep

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
KIND = {("rewards", "fit"): "rewards", ("rewards", "evaluate"): "rewards"}
KIND |= {("rewards", "train"): "reward"}
KIND |= {("train", kind): kind for kind in ("sft", "dpo", "ppo", "grpo")}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(text: str) -> Iterator[str]:
    """Lines of the shell blocks of a page, continuation lines joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S):
        yield from block.replace("\\\n", " ").splitlines()


def commands() -> Iterator[tuple[str, str]]:
    """(place, command): every complete `chorus …` of shell blocks, inline code, configurations, --help."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = re.findall(r"(?<!`)`(chorus [^`\n]+)`(?!`)", text)
        # `train sft|dpo`, `FILE`, `NAME` and `…` are shapes of commands, not commands.
        inline = [line for line in inline if not re.search(r"[|…]|\b[A-Z]{2,}\b", line) and complete(line)]
        for line in [*fenced(text), *inline]:
            if line.startswith("chorus "):
                yield name(page), line
    for config in CONFIGS:
        for line in re.findall(r"^#\s+(chorus .*)$", config.read_text(encoding="utf-8"), flags=re.M):
            yield name(config), line
    for module in sorted(ROOT.glob("rlhf/apps/cli/*.py")):
        for line in re.findall(r'^ +["\'](chorus .+)["\'],$', module.read_text(encoding="utf-8"), flags=re.M):
            yield name(module), line


def complete(line: str) -> bool:
    """Whether inline code is a whole command; `chorus train sft` alone is only the name of one."""
    return len(shlex.split(line)) > 3 or line in ("chorus quickstart",)


COMMANDS = list(dict.fromkeys(commands()))


def arguments(command: str):
    words = shlex.split(command, comments=True)[1:]
    try:
        return parse(words)
    except SystemExit as stop:  # --help, --version
        assert not stop.code
        return None


def test_commands_are_found():
    places = {place for place, _ in COMMANDS}
    assert {
        "README.md",
        "docs/commands.md",
        "rlhf/apps/cli/train.py",
        "configs/electricity/dpo.yaml",
    } <= places
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("place", "command"), COMMANDS, ids=[f"{p}:{c[:60]}" for p, c in COMMANDS])
def test_command_parses_and_its_configuration_loads(place, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = arguments(command)
    if args is None or not hasattr(args, "config") or not hasattr(args, "overrides"):
        return
    if args.command == "sweep":
        read_sweep(args.config, args.overrides)
        return
    if args.command == "evaluate":
        evaluation(*asked(args))
        return
    kind = KIND[args.command, getattr(args, "subcommand", None)]
    if hasattr(args, "data"):  # may run without a file
        configuration(args, kind)
        return
    load(args.config, args.overrides, schema_of(kind))  # a wrong key, value or file raises


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    lines = fenced(page.read_text(encoding="utf-8"))
    assert {word for line in lines for word in re.findall(r"^make ([a-z]+)", line)} <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_configurations_exist(page):
    named = set(re.findall(r"configs/[\w./-]+\.yaml", page.read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, flags=re.M)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_configurations_name_pages_that_exist(config):
    named = set(re.findall(r"docs/[\w/-]+\.md", config.read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("script", ["api_page", "config_page", "files_page", "metrics_page"])
def test_generated_pages_are_current(script):
    module = runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))
    text = module["page"]() if "page" in module else module["markdown"]()
    assert module["PAGE"].read_text(encoding="utf-8") == text, f"run: python scripts/{script}.py"


def leaves(record: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of the values of a record, found without the code that writes the page."""
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        yield from leaves(inner[0], f"{prefix}{field.name}.") if inner else (f"{prefix}{field.name}",)


@pytest.mark.parametrize(
    "kind", ["rewards", "reward", "sft", "dpo", "ppo", "grpo", "evaluate", "outputs", "sweep"]
)
def test_every_key_is_explained(kind):
    sections = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").split("\n## ")
    others = {"rewards": "rewards fit", "reward": "rewards train", "outputs": "evaluate"}
    others |= {kind: kind for kind in ("evaluate", "sweep")}
    head = f"`chorus {others.get(kind, f'train {kind}')}`" + (" with `policies`" if kind == "outputs" else "")
    [section] = [part for part in sections if re.match(rf"{re.escape(head)}([,:\n]|$)", part)]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \| (.+) \| (.*) \|$", section, flags=re.M)
    assert [row[0] for row in rows] == list(leaves(schema_of(kind)))
    assert [row[0] for row in rows if len(row[3]) < 10] == []


def test_the_repository_speaks_of_itself_alone():
    """No page names a path of some machine."""
    for page in PAGES:
        found = re.findall(r"(?:/home/|/root/|/work/|/tmp/)\S*", page.read_text(encoding="utf-8"))
        assert not found, f"{name(page)}: {found[0]}"
