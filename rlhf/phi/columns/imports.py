"""The files that a user's function is made of: its own and those of the project that it imports, found without running any.

An installed package has a version, which environment.json records; a file of the project has its content alone.
"""

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
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
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # what imports it says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            where = [str(_package(file, node.level))] if node.level else None
            for alias in node.names:  # a name may be a module of the package
                yield from _files(".".join(filter(None, (node.module, alias.name))), where)
        elif isinstance(node, ast.Call) and (name := _named(node)):
            yield from _files(name.lstrip("."), [str(file.parent)] if name.startswith(".") else None)


def _named(call: ast.Call) -> str | None:
    """The module of `importlib.import_module("…")` or `__import__("…")`, where it is written out."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if function not in ("import_module", "__import__") or not call.args:
        return None
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _package(file: Path, level: int) -> Path:
    return file.parents[level - 1]


def _files(module: str, where: list[str] | None) -> Iterator[Path]:
    """Files of a dotted name from its first part on, as far as they are of the project; `*` is every module of a package.

    Args:
      where: folders to look in; None is everywhere.
    """
    if module.split(".")[0] in OWN:
        return
    for part in module.split("."):
        if part == "*":
            yield from (
                file.resolve() for folder in where or () for file in sorted(Path(folder).glob("*.py"))
            )
            return
        spec = _spec(part, where)
        if spec is None:
            return
        if spec.has_location and spec.origin:
            file = Path(spec.origin).resolve()
            if not of_project(file):
                return
            yield file
        if spec.submodule_search_locations is None:
            return
        where = list(spec.submodule_search_locations)


def _spec(name: str, where: list[str] | None) -> ModuleSpec | None:
    """Nothing is imported: each finder is asked, as `import` asks them."""
    for finder in sys.meta_path:
        if where is not None and finder in (BuiltinImporter, FrozenImporter):  # these have no packages
            continue
        try:
            if (spec := finder.find_spec(name, where)) is not None:
                return spec
        except (AttributeError, ImportError, ValueError):
            continue
    return None


def of_project(file: Path) -> bool:
    """Whether a file is neither of the standard library nor of an installed package."""
    installed = any(part in ("site-packages", "dist-packages") for part in file.parts)
    return file.is_file() and not installed and not any(folder in file.parents for folder in _standard())


@functools.cache
def _standard() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib")
    return tuple({Path(path).resolve() for name in names if (path := sysconfig.get_path(name))})
