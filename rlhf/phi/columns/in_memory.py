"""What a function of this process is made of: its source, and whatever of the project and of the process it uses.

A function of a script or a notebook has no file of its own that could be hashed: the rest of the script may change. What it
reaches counts, as far as it can be described in the same words in another process: constants and arrays in closures,
defaults, globals and attributes, other functions and classes of the script, files of project modules.
"""

import functools
import inspect
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rewards.files import sha256_json
from rlhf.phi.columns.imports import OWN, of_project, sources
from rlhf.run import inputs

PLAIN = (type(None), bool, int, float, complex, str, bytes)


def parts(name: str, function: object) -> dict[str, str]:
    """sha256 by what it is: the function under `name` with all that it uses of the process, and files of the project."""
    described = _Described()
    own = described.of(function)
    return {name: sha256_json(own), **dict(sorted(described.files.items()))}


class _Described:
    """Values in words, and the files of the project that they come from."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # so that no identity is given away twice

    def of(self, value: object) -> object:
        if isinstance(value, PLAIN):
            return repr(value)
        if id(value) in self._seen:
            return ["again", self._seen[id(value)]]
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, list | tuple):
            return [type(value).__name__, *map(self.of, value)]
        if isinstance(value, dict):
            return ["dict", *([self.of(key), self.of(part)] for key, part in value.items())]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(repr(part) for part in value)]
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, functools.partial):
            return ["partial", self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, type):
            return self._class(value)
        if hasattr(value, "__array__"):  # of NumPy, JAX, torch
            return ["array", inputs.arrays([np.asarray(value)])]
        return [self.of(type(value)), self.of(getattr(value, "__dict__", None))]

    def _module(self, module: types.ModuleType) -> object:
        path = getattr(module, "__file__", None)
        if path and module.__name__.split(".")[0] not in OWN and of_project(Path(path)):
            self.files |= sources(Path(path))
        return ["module", module.__name__]

    def _function(self, function: types.FunctionType) -> object:
        if not _own(function.__module__, function.__code__.co_filename):
            return ["function", function.__module__, function.__qualname__]
        cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        used = {
            name: self.of(function.__globals__[name])
            for name in sorted(set(_names(function.__code__)) & function.__globals__.keys())
        }
        given = [self.of(function.__defaults__), self.of(function.__kwdefaults__), self.of(cells)]
        return ["function", _source(function, function.__code__), given, used]

    def _class(self, cls: type) -> object:
        try:
            file = inspect.getsourcefile(cls)
        except (OSError, TypeError):  # of a module without a file: typed at a prompt, or built in
            file = "<typed>" if cls.__module__ == "__main__" else None
        if file is None or not _own(cls.__module__, file):
            return ["class", cls.__module__, cls.__qualname__]
        parts = {
            name: self.of(part)
            for name, part in sorted(vars(cls).items())
            if not name.startswith("__") or callable(part)
        }
        return ["class", cls.__qualname__, [self.of(base) for base in cls.__bases__], parts]


def _own(module: str | None, file: str) -> bool:
    """Whether something is of the user's project, or was typed at a prompt."""
    if (module or "").split(".")[0] in OWN:
        return False
    return file.startswith("<") or "ipykernel" in file or of_project(Path(file))


def _source(function: object, code: types.CodeType) -> object:
    try:
        return inspect.getsource(function)  # pyright: ignore[reportArgumentType]
    except (OSError, TypeError):  # typed at a prompt
        return _compiled(code)


def _compiled(code: types.CodeType) -> object:
    constants = [
        _compiled(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that a function looks up, those of functions inside it too."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names(part)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
