"""The files that a user's function is made of: its own and those of the project that it imports, found without running any.

An installed package has a version, which environment.json records; a file of the project has its content alone.
"""

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from rewards.files import sha256_file

OWN = ("rewards", "rlhf")
"""Packages of this framework: their revision is recorded with every session."""


def sources(path: Path) -> dict[str, str]:
    """sha256 of a Python file and of the project's files that it imports, however deep, by path relative to its folder."""
    found: dict[Path, None] = {}
    waiting = [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = None
            waiting += _imported(file)
    folder = path.resolve().parent
    return {_relative(file, folder): sha256_file(file) for file in sorted(found)}


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file, folder)).as_posix()


def _imported(file: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # what imports it says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name, list(sys.path))
        elif isinstance(node, ast.ImportFrom):
            where = [str(_package(file, node.level))] if node.level else list(sys.path)
            for alias in node.names:  # a name may be a module of the package
                yield from _files(".".join(filter(None, (node.module, alias.name))), where)


def _package(file: Path, level: int) -> Path:
    return file.parents[level - 1]


def _files(module: str, where: list[str]) -> Iterator[Path]:
    """Files of a dotted name from its first part on, as far as they are modules of the project."""
    if module.split(".")[0] in OWN:
        return
    for part in module.split("."):
        spec = _spec(part, where)
        if spec is None:
            return
        if spec.origin and spec.origin.endswith(".py"):
            file = Path(spec.origin).resolve()
            if not _of_project(file):
                return
            yield file
        if spec.submodule_search_locations is None:
            return
        where = list(spec.submodule_search_locations)


def _spec(name: str, where: list[str]) -> ModuleSpec | None:
    if name in sys.builtin_module_names:
        return None
    try:
        return PathFinder.find_spec(name, where)
    except (ImportError, ValueError):
        return None


def _of_project(file: Path) -> bool:
    return not any(folder in file.parents for folder in _installed())


@functools.cache
def _installed() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(path).resolve() for name in names if (path := sysconfig.get_path(name))})
