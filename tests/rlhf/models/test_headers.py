"""Headers of weights that speak of more than the file holds, or of what there is not: one line, at once, nothing made."""

import json
import struct
import time
import tracemalloc

import pytest

from rewards.errors import UserError
from rlhf.models import gguf_header
from rlhf.models.config import ModelConfig
from rlhf.models.gguf import convert_gguf
from rlhf.models.load import load_params, read_hf_config
from tests.rlhf.tiny import write_model

MOST_BYTES, MOST_SECONDS = 50_000_000, 5.0


def text(value: str, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if size is None else size) + value.encode()


def gguf(
    *pairs: bytes, keys: int | None = None, tensors: bytes = b"", count: int = 0, version: int = 3
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, count, len(pairs) if keys is None else keys)
    return head + b"".join(pairs) + tensors


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return text("a") + struct.pack("<IIQ", 9, kind, count) + content


def tensor(
    *sizes: int, name: str = "token_embd.weight", dimensions: int | None = None, offset: int = 0
) -> bytes:
    shape = struct.pack("<I", len(sizes) if dimensions is None else dimensions)
    return (
        text(name) + shape + b"".join(struct.pack("<Q", one) for one in sizes) + struct.pack("<IQ", 0, offset)
    )


LLAMA = text("general.architecture") + struct.pack("<I", 8) + text("llama")
GGUF = {
    "nothing": b"",
    "the magic alone": b"GGUF",
    "another magic": b"FUGG" + gguf(LLAMA)[4:],
    "version 1": gguf(LLAMA, version=1),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + LLAMA,
    "2^63 keys": gguf(LLAMA, keys=2**63),
    "a key more than there is": gguf(LLAMA, keys=2),
    "2^50 tensors": gguf(LLAMA, count=2**50),
    "a tensor that is not there": gguf(LLAMA, count=1),
    "a key of 2^61 letters": gguf(text("a", 2**61)),
    "a value of 2^40 letters": gguf(text("a") + struct.pack("<I", 8) + text("x", 2**40)),
    "an array of 2^62 numbers": gguf(LLAMA, array(4, 2**62, b"\0" * 64)),
    "an array of texts that end": gguf(LLAMA, array(8, 1000, text("x") * 3)),
    "an array of flags past the end": gguf(LLAMA, array(7, 10**6)),
    "arrays in an array": gguf(LLAMA, array(9, 1, struct.pack("<IQ", 4, 0))),
    "an array of kind 200": gguf(LLAMA, array(200, 1)),
    "a value of kind 13": gguf(text("a") + struct.pack("<I", 13)),
    "a tensor of 2^64 numbers": gguf(LLAMA, tensors=tensor(2**32, 2**32), count=1),
    "a tensor of 1000 dimensions": gguf(LLAMA, tensors=tensor(dimensions=1000), count=1),
    "a tensor far behind the end": gguf(LLAMA, tensors=tensor(2, offset=2**60), count=1),
    "a tensor with a name of 2^62": gguf(LLAMA, tensors=struct.pack("<Q", 2**62), count=1),
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf(name, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(GGUF[name])
    for read in (lambda: gguf_header.check(path), lambda: convert_gguf(path, tmp_path / "out")):
        refused(read, "m.gguf")
    assert not (tmp_path / "out").exists()


def test_a_header_that_is_right_is_taken(tmp_path):
    path = tmp_path / "m.gguf"
    numbers = array(4, 3, struct.pack("<III", 1, 2, 3))
    path.write_bytes(gguf(LLAMA, numbers, tensors=tensor(2, 3), count=1) + b"\0" * 64)
    gguf_header.check(path)


def safetensors(header: object, body: bytes = b"\0" * 8, size: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + body


def one(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


SAFETENSORS = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a header of 2^64 - 1": safetensors(b"{}", size=2**64 - 1),
    "a header of 2^31": safetensors(b"{}", size=2**31),
    "a header of 200 MB": safetensors(b"{}", size=200_000_000),
    "an empty header": safetensors(b""),
    "no JSON": safetensors(b"{'x': 1}"),
    "a list": safetensors([1, 2]),
    "deep": safetensors(b"[" * 100_000),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "a shape of texts": safetensors({"x": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]}}),
    "a shape of 2^40 squared": safetensors(one(shape=(2**40, 2**40))),
    "a shape below 0": safetensors(one(shape=(-4,))),
    "half a number": safetensors(one(offsets=(0, 3))),
    "offsets turned round": safetensors(one(offsets=(4, 0))),
    "offsets behind the end": safetensors(one(offsets=(10**12, 10**12 + 4))),
    "bytes that belong to nothing": safetensors(one(), b"\0" * 64),
    "a hole": safetensors(one() | {"y": one(offsets=(8, 12))["x"]}, b"\0" * 12),
    "two in one place": safetensors(one() | {"y": one()["x"]}, b"\0" * 4),
    "a type that there is not": safetensors(one(dtype="F128")),
    "no type": safetensors({"x": {"shape": [1], "data_offsets": [0, 4]}}),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(name, tmp_path):
    directory = write_model(tmp_path / "model")
    (directory / "model.safetensors").write_bytes(SAFETENSORS[name])
    config = ModelConfig.from_hf(read_hf_config(directory))
    refused(lambda: load_params(directory, config, (config.num_layers,), "float32"), "model.safetensors")


def refused(read, file: str) -> None:
    """In one line that names the file, soon, and without the memory that the header speaks of."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read()
    seconds, (_, most) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert most < MOST_BYTES and seconds < MOST_SECONDS
