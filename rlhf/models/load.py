"""Model names → Hugging Face directories → parameter trees.

Strict: every tensor is accounted for, or there is an error that names it.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from rewards.errors import UserError, meant
from rewards.files import JSONObject, cache_dir, read_json, sha256_json
from rlhf.mesh import place, rules
from rlhf.models import fetch, layout, quantised
from rlhf.models.config import ModelConfig
from rlhf.models.layout import INDEX, SINGLE, Tree

FLOATS = ("F64", "F32", "F16", "BF16")
# Gemma 3 checkpoints with a vision tower keep the language model one level deeper (old and new spelling).
PREFIXES = ("model.", "language_model.model.", "model.language_model.")
VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
LAYER = re.compile(r"\.layers\.(\d{1,9})\.")
BUFFERS = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")  # written by older transformers


def read_hf_config(directory: str | Path) -> JSONObject:
    """`config.json` of a model directory as a dictionary.

    Raises:
      UserError: no such directory, no config.json in it, or not a JSON object.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such model directory; give a Hugging Face directory or a model's name"
        )
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path}: missing; a model directory holds config.json, model.safetensors and tokenizer.json"
        )
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: must be a JSON object, is a {type(raw).__name__}; take the file of the model"
        )
    return raw


def load_params(
    directory: str | Path,
    config: ModelConfig,
    stages: tuple[int, ...],
    dtype: DTypeLike,
    *,
    extra: tuple[layout.Leaf, ...] = (),
) -> Tree:
    """Read safetensors (one file, or shards with an index) into the decoder's base parameters.

    Kernels become [in, out]; layers are stacked along axis 0, `stages[i]` of them under tree["stages"][i].
    Norm weights stay as in the file (Gemma's decoder adds 1).

    Args:
      directory: Hugging Face directory.
      config: its architecture.
      stages: numbers of layers of the stacks, bottom first, adding up to `config.num_layers`.
      dtype: of every array returned, but of the layers' matrices where `config.kept` says how they are kept.
      extra: tensors outside the layers that a plain decoder does not have, such as a classification head.

    Raises:
      UserError: a tensor is missing, left over, of another shape or not floating point; a file is missing or
        damaged.
    """
    if sum(stages) != config.num_layers:
        raise ValueError(f"stages {stages} must add up to {config.num_layers} layers")
    rules.check_model(
        num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, mlp_width=config.mlp_width
    )
    with contextlib.ExitStack() as stack:
        files = _Checkpoint(Path(directory), stack)
        files.check_layers(config.num_layers)
        leaves = layout.layer_leaves(config)
        top = [*layout.top_leaves(config), *extra]
        names = [leaf.name for leaf in top]
        each = [one for leaf in leaves for one in leaf.each_expert()]
        names += [layout.layer_name(i, leaf) for i in range(config.num_layers) for leaf in each]
        files.check_names(names, config.tied)
        tree: Tree = {"stages": {}}
        for leaf in top:

            def whole(index: place.Index, leaf: layout.Leaf = leaf) -> np.ndarray:
                return files.read(leaf.name, leaf, dtype, index)

            layout.put(tree, leaf.path, place.made(leaf.path, leaf.shape, dtype, whole))
        first = 0
        for number, size in enumerate(stages):
            for leaf in leaves:
                path = ("stages", number, *leaf.path)
                kept = config.kept if leaf.path[-1] == "kernel" else None
                stacks: dict[str, place.Stack] = {}
                for layer in range(size):
                    for part in _layer_parts(files, first + layer, leaf, kept, dtype):
                        own = (*path[:-1], part.name)
                        if layer == 0:
                            stacks[part.name] = place.Stack(own, (size, *part.shape), part.dtype)
                        stacks[part.name].set(layer, part.read)
                for name, stack in stacks.items():
                    layout.put(tree, (*path[:-1], name), stack.array)
            first += size
    return jax.tree.map(jax.block_until_ready, tree)


def resolve_model(name: str | Path, *, folders: bool = False) -> Path:
    """Local Hugging Face directory of a model.

    Args:
      name: a directory, a .gguf file (converted once into the cache), a short name (`fetch.KNOWN`), or a hub
        id "owner/name".
      folders: whether a hub repository's folders are part of the model, as a sentence encoder's pooling is.

    Raises:
      UserError: none of these, or the model cannot be had.
    """
    text, path = str(name), Path(name).expanduser()
    if path.suffix == ".gguf":
        return _converted(path)
    if path.is_dir():
        return path
    if text in fetch.KNOWN:
        return fetch.fetch(text)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        return fetch.hub_snapshot(text, folders=folders)
    known = ", ".join(fetch.KNOWN)
    fix = meant(text, fetch.KNOWN, f"give a directory, a .gguf file, a hub id owner/name, or one of: {known}")
    raise UserError(f"{text}: no such model; {fix}")


def _converted(path: Path) -> Path:
    """Directory made from a GGUF file; made again when the file has changed."""
    from rlhf.models.gguf import convert_gguf

    try:
        status = path.stat()
    except OSError:
        raise UserError(f"{path}: no such file; give the path of a .gguf file") from None
    # A copy that keeps the time of writing still has a time of change of its own.
    identity = sha256_json([str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    directory = cache_dir() / "models" / f"{path.stem}-{identity[:16]}"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f".{directory.name}.lock")):
            if not directory.is_dir():
                convert_gguf(path, directory)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot write ({error.strerror or error}); free some space or set CHORUS_CACHE"
        ) from None
    return directory


class _Checkpoint:
    """The safetensors files of one directory, opened lazily and closed with `stack`."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack):
        self.directory, self.stack = directory, stack
        self.open_files: dict[Path, safe_open] = {}
        self.where = self._locate()
        self.prefix = next((p for p in PREFIXES if f"{p}embed_tokens.weight" in self.where), "model.")

    def _locate(self) -> dict[str, Path]:
        """Name of each tensor → the file that holds it."""
        if (self.directory / INDEX).is_file():
            return self._locate_shards(self.directory / INDEX)
        path = self.directory / SINGLE
        if not path.is_file():
            pickled = sorted(p.name for p in self.directory.glob("*.bin"))
            found = (
                f"; {pickled[0]} is a pickle and is never read, save the model as safetensors"
                if pickled
                else ""
            )
            raise UserError(f"{path}: missing{found or '; download the whole model again'}")
        return dict.fromkeys(self._open(path).keys(), path)

    def _locate_shards(self, index: Path) -> dict[str, Path]:
        raw = read_json(index)
        weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(
                f"{index}: weight_map: missing or empty; take the index that came with the shards"
            )
        where = {}
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise UserError(
                    f"{index}: weight_map: {name}: {file!r} must be a file name in the same directory"
                )
            where[name] = self.directory / file
        for path in sorted(set(where.values())):
            held = set(self._open(path).keys()) if path.is_file() else None
            if held is None:
                raise UserError(f"{path}: missing, but {index.name} names it; download this shard")
            listed = {name for name, file in where.items() if file == path}
            if listed != held:
                name = min(listed ^ held)
                place = "is listed in the index only" if name in listed else "is not listed in the index"
                raise UserError(f"{path}: tensor {name} {place}; download index and shards from one revision")
        return where

    def _open(self, path: Path) -> safe_open:
        if path not in self.open_files:
            with _damage(path):
                self.open_files[path] = self.stack.enter_context(safe_open(path, framework="numpy"))
        return self.open_files[path]

    def _file_name(self, name: str) -> str:
        """Name in the files of a tensor whose plain name is `name`."""
        if name.startswith("model."):
            return self.prefix + name.removeprefix("model.")
        if name != "lm_head.weight":
            return name
        return next((n for n in (name, "language_model.lm_head.weight") if n in self.where), name)

    def check_layers(self, num_layers: int) -> None:
        """No fewer layers than config.json says, before names are made for each of a billion."""
        held = {
            int(found[1]) for name in self.where if (found := LAYER.search(name)) and not VISION.match(name)
        }
        if held and max(held) + 1 < num_layers:
            raise UserError(
                f"{self.directory}/config.json: num_hidden_layers: {num_layers}, but the safetensors files hold "
                f"{max(held) + 1} layers; config.json and weights must be of one model"
            )

    def check_names(self, names: list[str], tied: bool) -> None:
        """Every expected tensor is there, and nothing that the decoder would silently ignore."""
        wanted = {self._file_name(name) for name in names}
        missing = sorted(wanted - set(self.where))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{self.directory}: tensor {missing[0]}{more} missing from the safetensors files; "
                "config.json and weights must be of one model"
            )
        for name in sorted(set(self.where) - wanted):
            unused_head = tied and name == self._file_name("lm_head.weight")
            vision = self.prefix != "model." and VISION.match(name)
            if not (unused_head or vision or BUFFERS.match(name)):
                raise UserError(
                    f"{self.where[name]}: unexpected tensor {name}; config.json describes no such weight, "
                    "use the config.json of this model"
                )

    def read(self, name: str, leaf: layout.Leaf, dtype: DTypeLike, index: place.Index) -> np.ndarray:
        """The part `index` of one tensor in the tree's orientation, cast to `dtype`; nothing else of it is read."""
        name = self._file_name(name)
        path = self.where[name]
        with _damage(path):
            piece = self._open(path).get_slice(name)
            kind, shape = piece.get_dtype(), tuple(piece.get_shape())
            if kind not in FLOATS:
                raise UserError(
                    f"{path}: tensor {name} is stored as {kind}; save the model as one of {', '.join(FLOATS)}"
                )
            if shape != layout.file_shape(leaf):
                raise UserError(
                    f"{path}: tensor {name} has shape {list(shape)}, config.json asks for "
                    f"{list(layout.file_shape(leaf))}; use the config.json of this model"
                )
            first = 0 if leaf.part is None else leaf.part[0]
            rows, *rest = index[::-1] if leaf.transposed else index
            array = piece[(slice(first + rows.start, first + rows.stop), *rest)]
        array = array.astype(dtype, copy=False)
        if not _finite(array):
            raise UserError(f"{path}: tensor {name} holds a value that is not finite; take other weights")
        return array.T if leaf.transposed else array


def _finite(array: np.ndarray) -> bool:
    """Whether all numbers are."""
    if (
        array.dtype.itemsize == 2
    ):  # NumPy compares numbers of 16 bits one by one: all bits of the exponent are set otherwise
        exponent = 0x7C00 if array.dtype == np.float16 else 0x7F80
        return bool((array.view(np.uint16) & exponent).max() < exponent)
    return bool(np.isfinite(array.max()) and np.isfinite(array.min()))  # both are NaN where any entry is


class _Part(NamedTuple):
    """An array that one layer's tensor becomes: its name in the tree, and what reads a range of it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[place.Index], np.ndarray]


def _layer_parts(
    files: _Checkpoint, layer: int, leaf: layout.Leaf, kept: str | None, dtype: DTypeLike
) -> list[_Part]:
    """The tensor as it is, or its codes and scales."""
    name = layout.layer_name(layer, leaf)
    if leaf.experts:
        return [_experts(files, layer, leaf, jnp.dtype(dtype))]
    if kept is not None and quantised.coded(kept):
        matrix = _Coded(files, name, leaf, kept)
        like = quantised.shapes(kept, leaf.shape)
        reads = zip(like._fields, like, (matrix.codes, matrix.scales), strict=True)
        return [_Part(part, shape.shape, shape.dtype, read) for part, shape, read in reads]
    plain = jnp.dtype(kept or dtype)
    return [
        _Part(leaf.path[-1], leaf.shape, plain, lambda index: files.read(name, leaf, plain, index)),
    ]


def _experts(files: _Checkpoint, layer: int, leaf: layout.Leaf, dtype: np.dtype) -> _Part:
    """The tensors of all experts, one stack."""
    each = leaf.each_expert()

    def read(index: place.Index) -> np.ndarray:
        own = [
            files.read(layout.layer_name(layer, one), one, dtype, index[1:])
            for one in each[index[0].start : index[0].stop]
        ]
        return np.stack(own)

    return _Part(leaf.path[-1], leaf.shape, dtype, read)


class _Coded:
    """One matrix in codes. Scales are found with the codes; those that no device here has codes for, by themselves."""

    def __init__(self, files: _Checkpoint, name: str, leaf: layout.Leaf, kept: str):
        self.files, self.name, self.leaf, self.kept = files, name, leaf, kept
        self.block = quantised.block_of(kept, leaf.shape[0])
        self.rows = quantised.rows_of(kept, self.block)
        self.found = np.full(quantised.shapes(kept, leaf.shape).scales.shape, np.nan, np.float32)

    def codes(self, index: place.Index) -> np.ndarray:
        """Part of the codes, [inputs (or pairs of them), outputs]."""
        rows, columns = index
        blocks = slice(rows.start // self.rows, -(-rows.stop // self.rows))
        begin = blocks.start * self.rows
        return self._quantised(blocks, columns)[rows.start - begin : rows.stop - begin]

    def scales(self, index: place.Index) -> np.ndarray:
        """Part of the scales, [blocks, outputs]."""
        if np.isnan(self.found[index]).any():
            self._quantised(*index)
        return self.found[index]

    def _quantised(self, blocks: slice, columns: slice) -> np.ndarray:
        """Codes of whole blocks; their scales are kept."""
        rows = slice(blocks.start * self.block, blocks.stop * self.block)
        matrix = self.files.read(self.name, self.leaf, np.float32, (rows, columns))
        codes, self.found[blocks, columns] = quantised.quantised(self.kept, matrix, self.block)
        return np.asarray(codes)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn the safetensors library's errors into one line about the file."""
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: truncated or damaged ({reason}); download it again") from None
