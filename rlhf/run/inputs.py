"""What a run reads, by content: a run that is resumed with something else is refused, and told what it is.

inputs.json   {"inputs": {where: {what: sha256}}}, for example {"model.name": {"weights": …, "tokenizer.json": …}}

Until the first checkpoint nothing depends on what was read, so that a mended file may be used with the same output_dir.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rewards import hashed
from rewards.errors import UserError
from rewards.shown import without_credentials
from rewards.types import Message
from rlhf.run import processes
from rlhf.run.directory import INPUTS, Run

_LOG = logging.getLogger("chorus")

AGAIN = "restore it or choose another output_dir"
Inputs = Mapping[str, Mapping[str, str]]
"""Where it is named (a key of the configuration) → what of it → sha256."""


class Change(NamedTuple):
    """Something that is not what it was; a hash is None where there was nothing, or is nothing any more."""

    what: str
    then: str | None
    now: str | None

    def __str__(self) -> str:
        return f"{self.what} changed (sha256 {_short(self.then)} then, {_short(self.now)} now)"


def check(job: Run, found: Inputs, *, begun: bool | None = None) -> None:
    """Record what a run reads, or compare it with what an earlier session of it read.

    Args:
      begun: whether something in the run depends on it; by default, whether there is a checkpoint.
    Raises:
      UserError: a resumed run finds something else; the line names what.
    """
    if processes.several():
        for where, parts in found.items():
            processes.agree(without_credentials(where), json.dumps(dict(parts), sort_keys=True))
    if begun is None:
        begun = any((job.directory / "checkpoints").glob("*/COMPLETE"))
    stored = _stored(job) if job.resumed and begun else {}
    for where, now in found.items():
        if where in stored and (changed := change(stored[where], now)):
            raise UserError(
                f"output_dir {job.directory}: {without_credentials(where)}: {without_credentials(str(changed))}; {AGAIN}"
            )
    if missing := sorted(stored.keys() - found.keys()):
        raise UserError(f"output_dir {job.directory}: {missing[0]} is not read any more; {AGAIN}")
    # Checkpoints of which none is whole are refused by their reader; until then the folder stays as it is.
    damaged = not begun and any((job.directory / "checkpoints").glob("[0-9]*"))
    if _plain(found) != stored and not damaged:
        write(job, found)


def unchanged(job: Run, found: Inputs) -> bool:
    """Whether an earlier session read the same; where it did not record that, what is found is taken and recorded."""
    stored = _stored(job)
    if not stored:
        write(job, found)
    return stored in ({}, _plain(found))


def write(job: Run, found: Inputs) -> None:
    """Record what a run reads."""
    if processes.is_writer():
        hashed.write_record(job.directory / INPUTS, {"inputs": _plain(found)})


def _plain(found: Inputs) -> dict[str, dict[str, str]]:
    return {where: dict(parts) for where, parts in found.items()}


def _stored(job: Run) -> dict[str, dict[str, str]]:
    """What an earlier session read; nothing, and said once, where it did not record that."""
    path = job.directory / INPUTS
    if path.is_file():
        return hashed.read_record(path, AGAIN)["inputs"]
    _LOG.info(
        f"{job.directory}: begun before runs recorded what they read; it is taken as it is and recorded now"
    )
    return {}


def change(then: Mapping[str, str], now: Mapping[str, str]) -> Change | None:
    """The first thing by name that is not what it was."""
    for what in sorted({*then, *now}):
        if then.get(what) != now.get(what):
            return Change(what, then.get(what), now.get(what))
    return None


def content(table: object) -> str:
    """sha256 over a table of rows (a dataclass), wherever it was read from."""
    fields = {name: value for name, value in vars(table).items() if name != "source"}
    if more := [
        one.more
        for prompt in fields.get("prompts", ())
        if isinstance(prompt, tuple)
        for one in prompt
        if isinstance(one, Message)
    ]:
        fields["messages say more"] = more
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=_listed)
    return hashlib.sha256(text.encode()).hexdigest()


def arrays(values: Iterable[ArrayLike]) -> str:
    """sha256 over arrays, their shapes and types."""
    digest = hashlib.sha256()
    for value in values:
        array = np.ascontiguousarray(value)
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _listed(value: object) -> object:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def _short(sha256: str | None) -> str:
    return "absent" if sha256 is None else f"{sha256[:12]}…"
