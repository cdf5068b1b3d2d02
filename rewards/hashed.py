"""Files that carry the hash of their content: records (JSON), tensors (safetensors), and caches of one array.

    NAME.json          {..., "sha256": hash of the canonical JSON of everything else}
    NAME.safetensors   its sha256 stands in NAME.json as `tensors_sha256`
    a cache file       safetensors; names, shapes, types and bytes are hashed in its own header

Nothing is used whose hash is wrong: a record or tensors are refused by name, a cache is computed again. The record is
written after its tensors, so a save that was killed in between does not load.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from rewards import files
from rewards.errors import UserError
from rewards.files import JSONObject

_LOG = logging.getLogger("chorus")
FIELD, LINE_FIELD = "sha256", "line_sha256"
OLD_FIELD = "record_sha256"  # what basis.json and model.json called it first
TENSORS_FIELD = "tensors_sha256"
HEX, LINE_HEX = 64, 16  # digits of a hash in a file, and on a line
Parsed = TypeVar("Parsed")
Shapes = Mapping[str, tuple[int, ...]]
"""Names of tensors with their shapes; all are float32."""


def write_record(path: str | Path, body: Mapping[str, object]) -> None:
    """Write a JSON object with the hash of its content, whole or not at all."""
    files.write_json(path, {**body, FIELD: files.sha256_json(_as_read(body))})


def read_record(path: str | Path, again: str = "restore or recreate the file") -> JSONObject:
    """Read what `write_record` wrote, without the hash; `parse_record` for content that is taken as it is."""
    return parse_record(path, again, lambda body: body)


def parse_record(path: str | Path, again: str, parse: Callable[[JSONObject], Parsed]) -> Parsed:
    """`parse` of what `write_record` wrote, without the hash.

    A file from before there were hashes is taken as it is and, when it can be parsed, gets one now; this is said once a
    folder on stderr.

    Args:
      again: what to do about a damaged file, for the message.
      parse: raises UserError for content that cannot be.
    Raises:
      UserError: no such file, no JSON object, or another content than was written.
    """
    path = Path(path)
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}; {again}")
    try:
        body = _checked(content, (FIELD, OLD_FIELD), HEX)
    except ValueError:
        raise UserError(f"{path}: its content differs from what was written ({FIELD}); {again}") from None
    value = parse(body)
    if body is content:
        _adopt(path, content)
    return value


def with_hash(row: Mapping[str, object]) -> JSONObject:
    """A row of JSON lines with a short hash of its content."""
    return {**row, LINE_FIELD: files.sha256_json(_as_read(row))[:LINE_HEX]}


def checked_row(row: object) -> JSONObject:
    """A row that `with_hash` made, without the hash; rows from before there were hashes are taken as they are.

    Raises:
      ValueError: no JSON object, or another content than was written.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return _checked(row, (LINE_FIELD,), LINE_HEX)


def _checked(content: JSONObject, fields: tuple[str, ...], length: int) -> JSONObject:
    """The content without its hash, or itself when it has none; ValueError for a hash that is wrong."""
    field = next((name for name in fields if name in content), None)
    if field is not None:
        if content[field] != files.sha256_json(_without(content, field))[:length]:
            raise ValueError("its content differs from what was written")
        return _without(content, field)
    # A damaged name of the field must not turn it into something from before.
    for name, value in content.items():
        if isinstance(value, str) and len(value) == length:
            if value == files.sha256_json(_without(content, name))[:length]:
                raise ValueError(f"{name!r} stands where {fields[0]!r} should")
    return content


def record_identity(path: str | Path, again: str = "restore or recreate the file") -> str:
    """sha256 of a record's text without its hash: the same before and after a file got one."""
    return hashlib.sha256(files.json_text(read_record(path, again)).encode()).hexdigest()


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> str:
    """Write tensors whole or not at all; returns the sha256 of the file."""
    with files.atomic_path(path) as temporary:
        whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        safetensors.numpy.save_file(whole, temporary)
        return files.sha256_file(temporary)


def read_tensors(
    path: str | Path, sha256: str, expected: Shapes, again: str, *, whole: str = "this file"
) -> dict[str, np.ndarray]:
    """Read float32 tensors with exactly these names and shapes, and exactly the bytes that were written.

    Args:
      sha256: of the file, as its record has it.
      whole: what the tensors make up, for the message about one that does not belong there.
    Raises:
      UserError: naming the file and the tensor: missing, left over, of another shape or type; or changed bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {again}")
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); {again}") from None
    check_tensors(tensors, expected, str(path), whole, again)
    if files.sha256_file(path) != sha256:
        raise UserError(f"{path}: its bytes differ from those written (sha256 in its record); {again}")
    return tensors


def check_tensors(
    tensors: Mapping[str, np.ndarray], expected: Shapes, place: str, whole: str, again: str
) -> None:
    """Exactly these names, shapes and float32; else a UserError with `place`, what it is a part of and what to do."""
    for name in sorted(set(expected) ^ set(tensors)):
        problem = "is missing" if name in expected else f"is not part of {whole}"
        raise UserError(f"{place}: tensor {name!r} {problem}; {again}")
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != tuple(shape) or found.dtype != np.float32:
            raise UserError(
                f"{place}: tensor {name!r} is {found.dtype}{list(found.shape)}, expected "
                f"float32{list(shape)}; {again}"
            )


def save(
    directory: str | Path, name: str, tensors: Mapping[str, np.ndarray], record: Mapping[str, object]
) -> str:
    """Write NAME.safetensors and then NAME.json; returns the sha256 of the tensors."""
    digest = write_tensors(Path(directory) / f"{name}.safetensors", tensors)
    write_record(Path(directory) / f"{name}.json", {**record, TENSORS_FIELD: digest})
    return digest


def load(
    directory: str | Path,
    name: str,
    shapes: Callable[[JSONObject], Shapes],
    again: str,
    *,
    whole: str = "this file",
) -> tuple[dict[str, np.ndarray], JSONObject]:
    """Read what `save` wrote: the tensors, and the record without hashes.

    Args:
      shapes: record → the tensors that belong to it; a key it misses, or a value it cannot use, is a damaged record.
      again: what to do about damage.
      whole: what the two files make up, for messages.
    Raises:
      UserError: naming file and tensor or key.
    """
    path = Path(directory) / f"{name}.json"

    def parse(record: JSONObject) -> tuple[dict[str, np.ndarray], JSONObject]:
        try:
            expected, digest = shapes(record), record[TENSORS_FIELD]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {again}") from None
        tensors = read_tensors(path.with_suffix(".safetensors"), digest, expected, again, whole=whole)
        return tensors, _without(record, TENSORS_FIELD)

    return parse_record(path, again, parse)


def check_keys(
    path: Path, record: Mapping[str, object], keys: frozenset[str], again: str, whole: str
) -> None:
    """Exactly these keys; else a UserError that names the first one missing or left over."""
    for key in sorted(keys ^ set(record)):
        problem = "is missing" if key in keys else f"is not part of {whole}"
        raise UserError(f"{path}: key {key!r} {problem}; {again}")


def cached(folder: Path, key: object, compute: Callable[[], np.ndarray], prefix: str = "") -> np.ndarray:
    """`compute()`, or what it gave before for the same `key` (JSON), from a file of `folder` named by the key's hash.

    A file that is not whole to the byte is computed and written again.
    """
    identity = files.sha256_json(key)
    path = folder / f"{prefix}{identity}.safetensors"
    known = _whole_array(path, identity)
    if known is not None:
        return known
    values = np.ascontiguousarray(compute())
    with files.atomic_path(path) as temporary:
        safetensors.numpy.save_file({"values": values}, temporary, {FIELD: _array_hash(identity, values)})
    return values


def _whole_array(path: Path, identity: str) -> np.ndarray | None:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            values, digest = file.get_tensor("values"), (file.metadata() or {}).get(FIELD)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError):
        return None
    return values if digest == _array_hash(identity, values) else None


def _array_hash(identity: str, values: np.ndarray) -> str:
    digest = hashlib.sha256(f"{identity} {values.dtype} {values.shape}\n".encode())
    digest.update(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"")
    return digest.hexdigest()


def _adopt(path: Path, content: JSONObject) -> None:
    """Give a file from before its hash; where nothing can be written it stays as it is."""
    _say_once(path.parent)
    try:
        with files.locked(path.parent):
            if files.read_json(path) == content:  # nobody has changed it meanwhile
                write_record(path, content)
    except UserError:
        return


@functools.cache
def _say_once(folder: Path) -> None:
    _LOG.info(
        f"{folder}: holds files written before they carried a hash of their content; they are taken as they are and get "
        "one now"
    )


def _as_read(body: Mapping[str, object]) -> object:
    """The body after a trip through JSON: tuples are lists, keys are texts."""
    return json.loads(files.json_text(body))


def _without(content: Mapping[str, object], name: str) -> JSONObject:
    return {key: value for key, value in content.items() if key != name}
