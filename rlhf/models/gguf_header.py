"""The header of a GGUF file, walked before anything is made of it: counts and lengths against the bytes that are there.

gguf's reader believes them: 2^33 elements are 2^33 steps, nested arrays end nowhere.
Source of the format: docs/gguf.md of ggml.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from rewards.errors import UserError

MAX_KEYS, MAX_ELEMENTS, MAX_TENSORS, MAX_DIMENSIONS = 10_000, 4_000_000, 1_000_000, 8
_MAX_TEXT = 50_000_000
_TEXT, _ARRAY = 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of the kinds of numbers


class _Header:
    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path, self._size = file, path, os.fstat(file.fileno()).st_size

    def refuse(self, reason: str) -> UserError:
        return UserError(f"{self._path}: not a whole GGUF file ({reason}); download it again")

    def take(self, form: str) -> int:
        size = struct.calcsize(form)
        data = self._file.read(size)
        if len(data) < size:
            raise self.refuse("it ends in its header")
        return struct.unpack(form, data)[0]

    def skip(self, size: int, what: str) -> None:
        if size > self._size - self._file.tell():
            raise self.refuse(f"{what} of {size} bytes in a file of {self._size}")
        self._file.seek(size, os.SEEK_CUR)

    def count(self, form: str, most: int, what: str) -> int:
        number = self.take(form)
        if number > most:
            raise self.refuse(f"{number} {what}, at most {most} are read")
        return number

    def text(self) -> None:
        self.skip(self.count("<Q", _MAX_TEXT, "bytes of a text"), "a text")

    def value(self) -> None:
        kind = self.take("<I")
        if kind == _TEXT:
            self.text()
        elif kind == _ARRAY:
            inner, number = self.take("<I"), self.count("<Q", MAX_ELEMENTS, "elements of an array")
            if inner == _TEXT:
                for _ in range(number):
                    self.text()
            elif inner in _BYTES:
                self.skip(number * _BYTES[inner], "an array")
            else:
                raise self.refuse("arrays of arrays" if inner == _ARRAY else f"a value of kind {inner}")
        elif kind in _BYTES:
            self.skip(_BYTES[kind], "a number")
        else:
            raise self.refuse(f"a value of kind {kind}")

    def tensor(self) -> None:
        self.text()
        elements = 1
        for _ in range(self.count("<I", MAX_DIMENSIONS, "dimensions of a tensor")):
            elements *= self.take("<Q")
        self.take("<I")
        if elements > 64 * self._size or self.take("<Q") > self._size:
            raise self.refuse(f"a tensor of {elements} numbers in a file of {self._size} bytes")


def check(path: Path) -> None:
    """Refuse a header that speaks of more than the file holds.

    Raises:
      UserError: what it speaks of.
    """
    with open(path, "rb") as file:
        header = _Header(file, path)
        if file.read(4) != b"GGUF":
            raise header.refuse("it does not begin with GGUF")
        if header.take("<I") not in (2, 3):
            raise header.refuse("neither version 2 nor 3, in little-endian order")
        tensors = header.count("<Q", MAX_TENSORS, "tensors")
        for _ in range(header.count("<Q", MAX_KEYS, "keys")):
            header.text()
            header.value()
        for _ in range(tensors):
            header.tensor()
