"""GGUF → a Hugging Face directory, without torch (transformers' own GGUF reader needs it).

Tensor names come from the gguf package's tables. What differs from Hugging Face and is undone here:
  llama: the rows of q and k, (first half, second half) in each head, are interleaved as rotary pairs;
  gemma: norm weights have 1 added.
Source of both: llama.cpp's convert_hf_to_gguf.py.
"""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rewards.errors import UserError
from rewards.files import JSONObject, atomic_directory, write_json
from rlhf.models import gguf_header, layout
from rlhf.models.config import ModelConfig
from rlhf.models.families import ARCHITECTURES
from rlhf.models.gguf_tokenizer import check_tokenizer, write_tokenizer
from rlhf.models.layout import SINGLE, TOKENIZER_FILES
from rlhf.models.rope import Rope, frequencies

MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
DAMAGE = (ValueError, KeyError, IndexError, TypeError, OSError, struct.error, OverflowError, AttributeError)


def convert_gguf(path: str | Path, directory: str | Path) -> Path:
    """Write config.json, generation_config.json, tokenizer files and model.safetensors of a GGUF file.

    Quantised weights are multiplied out in float32, all in memory. They are stored as float16 or bfloat16
    when every value of every tensor survives that unchanged (files that were never quantised), else as
    float32: values of most quantised formats are products of float16 numbers and need more than 11 bits.

    Args:
      path: the .gguf file. A tokenizer.json beside it replaces the tokenizer inside it.
      directory: to make, complete or not at all.

    Raises:
      UserError: the file is missing, damaged, or of an architecture or tokenizer that is not supported.
    """
    path = Path(path)
    reader, metadata = _open(path)
    raw = _config(metadata, reader, path)
    beside = path.parent / "tokenizer.json"
    if not beside.is_file():
        check_tokenizer(metadata, path)
    with atomic_directory(directory) as temporary:
        raw["dtype"] = raw["torch_dtype"] = _write_weights(reader, raw, path, temporary)
        write_json(temporary / "config.json", raw)
        special = {k: raw[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in raw}
        write_json(temporary / "generation_config.json", {"_from_model_config": True, **special})
        if beside.is_file():
            for name in TOKENIZER_FILES:
                if (path.parent / name).is_file():
                    shutil.copyfile(path.parent / name, temporary / name)
        else:
            write_tokenizer(metadata, temporary)
    return Path(directory)


def _open(path: Path) -> tuple[gguf.GGUFReader, JSONObject]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a .gguf file")
    gguf_header.check(path)
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except DAMAGE as error:
        raise UserError(
            f"{path}: not a whole GGUF file ({' '.join(str(error).split())}); download it again"
        ) from None
    architecture = metadata.get("general.architecture")
    if architecture not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        raise UserError(
            f"{path}: general.architecture: {architecture!r} is not supported; use one of {supported}"
        )
    return reader, metadata


def _config(metadata: JSONObject, reader: gguf.GGUFReader, path: Path) -> JSONObject:
    """The key-value pairs as Hugging Face's config.json."""
    architecture = metadata["general.architecture"]
    model_type = MODEL_TYPES[architecture]

    def number(key: str, default: float | None = None) -> float:
        value = read(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(
                f"{path}: {architecture}.{key}: must be a number above 0, not {value!r}; download it again"
            )
        return value

    def whole(key: str, default: float | None = None) -> int:
        value = number(key, default)
        if value != int(value) or value >= 2**31:
            raise UserError(
                f"{path}: {architecture}.{key}: must be a whole number, not {value!r}; download it again"
            )
        return int(value)

    def read(key: str, default: float | None = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise UserError(f"{path}: {architecture}.{key}: missing; convert the model to GGUF again")
        if isinstance(value, list):
            raise UserError(f"{path}: {architecture}.{key}: differs between layers, which is not supported")
        return value

    width, num_heads, num_layers = (
        whole("embedding_length"),
        whole("attention.head_count"),
        whole("block_count"),
    )
    head_dim = whole("attention.key_length", whole("rope.dimension_count", width // num_heads))
    names = {tensor.name: tensor for tensor in reader.tensors}
    raw = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": int(names["token_embd.weight"].shape[1]) if "token_embd.weight" in names else 0,
        "hidden_size": width,
        "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": whole("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": whole("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in names,
        "rope_theta": number("rope.freq_base", 10_000.0),
    }
    # A 32-bit float in the file; its shortest decimal is what the authors wrote (1e-05, not 9.99999974e-06).
    raw |= {key: float(str(np.float32(raw[key]))) for key in ("rms_norm_eps", "rope_theta")}
    raw |= _gemma(number, model_type) if model_type.startswith("gemma") else {"hidden_act": "silu"}
    if model_type != "qwen2":
        raw["attention_bias"] = "blk.0.attn_q.bias" in names
    scaling = _rope_scaling(metadata, names, raw, path)
    if scaling is not None:
        raw["rope_scaling"] = scaling
    return raw | _special_tokens(metadata, path)


def _gemma(read: Callable[..., float], model_type: str) -> JSONObject:
    extra: JSONObject = {"hidden_activation": "gelu_pytorch_tanh"}
    if model_type == "gemma":
        return extra | {"hidden_act": "gelu_pytorch_tanh"}
    head_dim, width, num_heads = (
        read("attention.key_length"),
        read("embedding_length"),
        read("attention.head_count"),
    )
    # GGUF does not record the query scale; llama.cpp, too, tells the 27B models by their number of layers.
    is_27b = read("block_count") == {"gemma2": 46, "gemma3_text": 62}[model_type]
    extra["query_pre_attn_scalar"] = width // num_heads if is_27b else head_dim
    extra["sliding_window"] = read("attention.sliding_window")
    if model_type == "gemma2":
        extra["attn_logit_softcapping"] = read("attn_logit_softcapping")
        extra["final_logit_softcapping"] = read("final_logit_softcapping")
    else:
        extra["rope_local_base_freq"] = read("rope.freq_base_swa", 10_000.0)
        extra["sliding_window_pattern"] = 6
    return extra


def _rope_scaling(metadata: JSONObject, names: JSONObject, raw: JSONObject, path: Path) -> JSONObject | None:
    """`rope_scaling` of config.json, or None."""
    prefix = f"{metadata['general.architecture']}.rope.scaling."
    kind, factor = metadata.get(f"{prefix}type", "none"), metadata.get(f"{prefix}factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}  # ModelConfig says what it may be
    if kind != "none":
        raise UserError(
            f"{path}: {prefix}type: {kind!r} is not supported; use a model with none or linear scaling"
        )
    if "rope_freqs.weight" not in names:
        return None
    # Llama 3 models store the factor of every frequency instead of the four numbers it was computed from;
    # three of them are the same in every published model, so they can be checked.
    factors = np.asarray(names["rope_freqs.weight"].data, np.float32)
    rope = Rope(raw["rope_theta"], "llama3", float(factors.max()))
    plain = frequencies(Rope(raw["rope_theta"]), raw["head_dim"])
    expected = plain / frequencies(rope, raw["head_dim"])
    if expected.shape != factors.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(
            f"{path}: rope_freqs.weight: not Llama 3 scaling; load the model's safetensors instead"
        )
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_positions,
    }


def _special_tokens(metadata: JSONObject, path: Path) -> JSONObject:
    ids = {key: metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding", "eot")}
    for key, value in ids.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UserError(
                f"{path}: tokenizer.ggml.{key}_token_id: must be a token id, not {value!r}; download it again"
            )
    special = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    if ids["eot"] is not None and ids["eot"] != ids["eos"]:
        special["eos_token_id"] = [ids["eos"], ids["eot"]]
    return {key: value for key, value in special.items() if value is not None}


def _write_weights(reader: gguf.GGUFReader, raw: JSONObject, path: Path, directory: Path) -> str:
    """Write model.safetensors and return the name of its dtype."""
    config = ModelConfig.from_hf(raw, source=str(path))
    names = gguf.get_tensor_name_map(
        next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == _architecture(config)),
        config.num_layers,
    )
    held = {tensor.name: tensor for tensor in reader.tensors}
    held.pop("rope_freqs.weight", None)  # already in the configuration
    leaves = [(leaf.name, leaf) for leaf in layout.top_leaves(config)]
    for i in range(config.num_layers):
        leaves += [(layout.layer_name(i, leaf), leaf) for leaf in layout.layer_leaves(config)]
    tensors = {}
    for name, leaf in leaves:
        stem, suffix = name.rsplit(".", 1)
        tensor = held.pop(f"{names.get_name(stem)}.{suffix}", None)
        if tensor is None:
            raise UserError(
                f"{path}: tensor {names.get_name(stem)}.{suffix} is missing; download the file again"
            )
        tensors[name] = _tensor(tensor, name, leaf, config, path)
    if held:
        raise UserError(
            f"{path}: unexpected tensor {min(held)}; this variant of {raw['model_type']} is not supported"
        )
    dtype = _smallest_exact(tensors)
    try:
        stored = {
            name: np.ascontiguousarray(array.astype(dtype, copy=False)) for name, array in tensors.items()
        }
        save_file(stored, directory / SINGLE, metadata={"format": "pt"})
    except SafetensorError as error:  # the library's name for a full disk
        reason = " ".join(str(error).split())
        raise UserError(f"{directory.parent}: cannot write ({reason}); free some space") from None
    return np.dtype(dtype).name


def _architecture(config: ModelConfig) -> str:
    return next(name for name, model_type in MODEL_TYPES.items() if model_type == config.family)


def _tensor(
    tensor: gguf.ReaderTensor, name: str, leaf: layout.Leaf, config: ModelConfig, path: Path
) -> np.ndarray:
    """float32 values in Hugging Face's orientation and order."""
    try:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except (NotImplementedError, *DAMAGE) as error:
        kind = tensor.tensor_type.name
        raise UserError(
            f"{path}: tensor {tensor.name}: cannot read {kind} ({error}); use a Q4_K_M or Q8_0 file"
        ) from None
    shape = layout.file_shape(leaf)
    if array.shape != shape:
        raise UserError(
            f"{path}: tensor {tensor.name} has shape {list(array.shape)}, the metadata says {list(shape)}"
        )
    if config.family == "llama" and leaf.path[1:2] in (("q",), ("k",)):
        heads = config.num_heads if leaf.path[1] == "q" else config.num_kv_heads
        pairs = array.reshape(heads, config.head_dim // 2, 2, *array.shape[1:])
        array = pairs.swapaxes(1, 2).reshape(shape)
    if config.norm_plus_one and name.endswith("norm.weight"):
        array = array - 1.0
    return array


def _smallest_exact(tensors: dict[str, np.ndarray]) -> type[np.generic]:
    """float16 or bfloat16 where no value changes, else float32."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            if all(np.array_equal(a.astype(dtype).astype(np.float32), a) for a in tensors.values()):
                return dtype
    return np.float32
