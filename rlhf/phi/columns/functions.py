"""A Python function as a column, with TRL's signature:

    f(prompts, completions, **columns) -> list[float | None]      (also async def; more: `arguments`)

named `module:function` or `file.py:function`. Source of the signature: TRL, GRPOTrainer `reward_funcs`.
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import numbers
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np

from rewards.errors import UserError, meant
from rewards.files import sha256_file, sha256_json
from rewards.types import Preferences
from rlhf.phi.columns import arguments, event_loop, in_memory, user_code
from rlhf.phi.columns.config import LIMIT_SECONDS
from rlhf.phi.columns.imports import sources
from rlhf.phi.columns.items import Measured, first_rows, place

MEMORY = "memory:"
Code = Callable[..., object]
"""A user's function."""
_REMEMBERED: dict[str, Code] = {}
IMPORT_SECONDS = 600.0
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class FunctionColumn:
    """`name` in the report, `spec` and `limit_seconds` as in the configuration."""

    name: str
    spec: str
    limit_seconds: float = LIMIT_SECONDS

    def identity(self) -> str:
        """sha256 over the function's name, its source file and the project's files that it imports, none of them run."""
        return identity_of(self.spec)

    def former_identities(self) -> tuple[str, ...]:
        """Of before imported files were a part of it."""
        if self.spec.startswith(MEMORY):
            return (sha256_json([self.spec, _source_text(_in_memory(self.spec))]),)
        path, function = source_of(self.spec)
        return (sha256_json([function, sha256_file(path)]),)

    def parts(self) -> dict[str, str]:
        return parts_of(self.spec)

    def outputs(self) -> tuple[str, ...]:
        return (self.name,)

    def measure(self, prefs: Preferences, *, fitting: bool) -> Measured:
        values = call(load_function(self.spec), self.spec, prefs, self.limit_seconds)
        return Measured((self.name,), values[:, None], {"missing": int(np.isnan(values).sum())})


def identity_of(spec: str, *more: str) -> str:
    """sha256 over a function's name and everything of the project that it is made of; `more` counts as well.

    A function that imports nothing of its project has the identity it always had.
    """
    if spec.startswith(MEMORY):
        return sha256_json([parts_of(spec), *more])
    path, function = source_of(spec)
    own, *imported = parts_of(spec).values()
    return sha256_json([function, own, *more, *([imported] if imported else [])])


def parts_of(spec: str) -> dict[str, str]:
    """sha256 by file of what a function is made of, its own file first."""
    if spec.startswith(MEMORY):
        return in_memory.parts(spec.removeprefix(MEMORY), _in_memory(spec))
    path, _ = source_of(spec)
    found = sources(path)
    return {path.name: found.pop(path.resolve().name), **found}


def remember(function: Code) -> str:
    """A spec for a function of this process: its module and name where that finds it again, else one that lasts as long
    as the process.
    """
    name = getattr(function, "__name__", type(function).__name__)
    module = getattr(function, "__module__", None)
    if module not in (None, "__main__") and name.isidentifier():
        try:
            if getattr(importlib.import_module(str(module)), name, None) is function:
                source_of(f"{module}:{name}")
                return f"{module}:{name}"
        except (ImportError, UserError):
            pass
    # A later function of the same name takes its place; whether it is the same is what `identity` says.
    _REMEMBERED[f"{MEMORY}{name}"] = function
    return f"{MEMORY}{name}"


def _in_memory(spec: str) -> Code:
    if spec not in _REMEMBERED:
        raise UserError(
            f"function {spec!r}: was a function of another Python process; write it into a file and name file.py:function"
        )
    return _REMEMBERED[spec]


def _source_text(function: Code) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt, or a callable object
        return repr(function)


def source_of(spec: str) -> tuple[Path, str]:
    """File and function name of `module:function` or `file.py:function`.

    Raises:
      UserError: not of this form, or no such file or module.
    """
    where, colon, function = spec.rpartition(":")
    if not colon or not where or not function.isidentifier():
        raise UserError(f"function {spec!r}: write module:function or file.py:function")
    if where.endswith(".py"):
        path = Path(where).expanduser()
        if not path.is_file():
            raise UserError(
                f"function {spec!r}: no such file {path} (relative to {Path.cwd()}); check the path"
            )
        return path, function
    try:
        found = importlib.util.find_spec(_today(where))
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise UserError(
            f"function {spec!r}: no module {where!r} can be imported; install it, or give a file as file.py:function"
        )
    return Path(found.origin), function


def _today(module: str) -> str:
    """A module of ours by its present name: configurations and runs from before it moved name the old one."""
    return f"rlhf.phi.{module.removeprefix('rlhf.')}" if module.startswith("rlhf.columns.") else module


def load_function(spec: str) -> Code:
    """Import the function, once for the same source: what its module holds lasts as long as the process.

    Raises:
      UserError: the module fails on import, or has no such function.
    """
    return _in_memory(spec) if spec.startswith(MEMORY) else _imported(spec, sha256_file(source_of(spec)[0]))


@functools.lru_cache(maxsize=64)
def _imported(spec: str, digest: str) -> Code:
    """`digest` of the source stands in the key of the cache."""
    path, function = source_of(spec)
    where = spec.rpartition(":")[0]
    try:
        module = user_code.run(lambda: _module(where, path), IMPORT_SECONDS)
    except user_code.Failed as failure:
        why = user_code.said(failure, path, IMPORT_SECONDS, "importing must not wait")
        raise UserError(f"function {spec!r}: importing {where} failed, {why}; mend it") from None
    found = getattr(module, function, None)
    if not callable(found):
        known = [name for name, value in vars(module).items() if inspect.isroutine(value)]
        fix = meant(function, known, f"it has {', '.join(known[:8]) or 'none'}")
        raise UserError(f"function {spec!r}: {where} has no function {function!r}; {fix}")
    return found


def _module(where: str, path: Path) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(_today(where))
    spec = importlib.util.spec_from_file_location(f"chorus_column_{path.stem}", path)
    assert spec is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    # From the text as it is now: Python's own compiled copy goes by the second of a change, and would be left beside the file.
    exec(compile(path.read_bytes(), path, "exec"), vars(module))
    return module


def call(function: Code, spec: str, prefs: Preferences, seconds: float = LIMIT_SECONDS) -> np.ndarray:
    """The function's number for every item, float64[I]; NaN where it returned None.

    It is called once with all items. It gets what its signature names (`arguments`), or everything when it takes
    **kwargs; an item that stands in several rows has the values of the first.

    Raises:
      UserError: it needs a column that the data lacks, raises or leaves, takes more than `seconds`, or returns anything
        but one finite number or None for each completion; the line names function and row.
    """
    first = first_rows(prefs)
    given = arguments.of(function, spec, prefs, first)
    count = prefs.num_items
    try:
        result = user_code.run(lambda: _as_list(_run(function, given.all(), seconds)), seconds)
    except user_code.Failed as failure:
        raise UserError(_failure(function, spec, prefs, first, given, failure, seconds)) from None
    if not isinstance(result, list | tuple) or len(result) != count:
        got = f"{len(result)} values" if isinstance(result, list | tuple) else f"a {type(result).__name__}"
        raise UserError(
            f"function {spec!r}: returned {got} for {count} completions; return a list with one number each"
        )
    for item, value in enumerate(result):
        if value is not None and not _finite(value):
            raise UserError(
                f"function {spec!r}: returned {str(value)[:40]!r} for {place(prefs, first, item)}; "
                "return a finite number that float32 holds, or None where it has nothing to say"
            )
    return np.array([np.nan if value is None else float(value) for value in result], np.float64)


def _run(function: Code, given: dict[str, object], seconds: float) -> object:
    """The result, an awaited one on the loop of the process; so no event loop of the caller (a notebook) is in the way."""
    result = function(**given)
    return event_loop.wait_for(result, seconds) if inspect.isawaitable(result) else result


@runtime_checkable
class _Array(Protocol):
    def tolist(self) -> object: ...


def _as_list(result: object) -> object:
    """NumPy and torch arrays as lists; anything else as it is."""
    return result.tolist() if isinstance(result, _Array) else result


def _finite(value: object) -> bool:
    """Whether it is a number that stays finite as float32, in which rewards are computed."""
    try:
        return isinstance(value, numbers.Real) and abs(float(value)) <= _LARGEST
    except Exception:  # an integer beyond every float, or a number of the user's own that cannot be read
        return False


def _failure(
    function: Code,
    spec: str,
    prefs: Preferences,
    first: np.ndarray,
    given: arguments.Arguments,
    failure: user_code.Failed,
    seconds: float,
) -> str:
    """Try the completions one by one, to name the row on which it fails; all of them within `seconds` once more."""
    path = _code_file(function) if spec.startswith(MEMORY) else source_of(spec)[0]
    end = time.monotonic() + seconds
    where = prefs.source
    for item in range(prefs.num_items):
        left = end - time.monotonic()
        if left <= 0:
            break
        one = given.one(item)
        try:
            user_code.run(lambda one=one, left=left: _as_list(_run(function, one, left)), left)
        except user_code.Failed as own:
            if own.error is not None or failure.error is None:
                where, failure = place(prefs, first, item), own
            break
    option = "limit_seconds of the column, host.timeout_seconds in training"
    return f"function {spec!r}: failed on {where}, {user_code.said(failure, path, seconds, option)}; mend the function"


def _code_file(function: Code) -> Path:
    return Path(getattr(getattr(function, "__code__", None), "co_filename", "?"))
