"""Parameter trees → Hugging Face directories that transformers loads."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rewards.errors import UserError
from rewards.files import JSONObject, atomic_directory, read_json, write_json
from rlhf.models import layout
from rlhf.models.config import ModelConfig
from rlhf.models.families import ARCHITECTURES, classifier_architecture
from rlhf.models.layout import INDEX, TOKENIZER_FILES, Tree

DTYPES = ("float32", "bfloat16", "float16")
MAX_SHARD_BYTES = 5_000_000_000


class _Source(NamedTuple):
    """One tensor to write: where its parts are in the tree, which layer of a stack (None outside the layers), which expert."""

    leaves: tuple[layout.Leaf, ...]
    stage: tuple[str | int, ...]
    layer: int | None
    expert: int | None = None

    def arrays(self, params: Tree) -> list[tuple[layout.Leaf, np.ndarray]]:
        """The parts, one below the other in the file."""
        found = [(leaf, layout.get(params, (*self.stage, *leaf.path))) for leaf in self.leaves]
        at = tuple(index for index in (self.layer, self.expert) if index is not None)
        return [(leaf, array[at] if at else array) for leaf, array in found]


def save_hf(
    directory: str | Path,
    params: Tree,
    hf_config: JSONObject,
    tokenizer_dir: str | Path | None,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    end_ids: tuple[int, ...] = (),
    labels: tuple[str, ...] = (),
) -> Path:
    """Write config.json, safetensors (shards above `max_shard_bytes`) and the tokenizer's files.

    The folder appears complete or not at all.

    Args:
      directory: to make; must not exist, or be empty.
      params: base parameters as `load_params` returns them, in any number of stages.
      hf_config: `config.json` of the model the parameters came from.
      tokenizer_dir: where tokenizer and generation_config.json are copied from; None to write the model only.
      dtype: of the weights: float32, bfloat16 or float16.
      end_ids: tokens at which the model was trained to stop; written where `generate` of transformers looks for them,
        whatever the model it came from said. Empty leaves that as it was.
      labels: names of the outputs of `params["score"]["kernel"]` [D, L]: a sequence-classification model is written, with
        that head in the place of the one over the vocabulary. Empty writes a language model.

    Raises:
      UserError: the folder exists, the disk is full, dtype unknown, or a value too large for the dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not supported; use one of {', '.join(DTYPES)}")
    config = ModelConfig.from_hf(hf_config)
    if labels:
        config = dataclasses.replace(config, tied=True)  # nothing over the vocabulary is written
    sources = _sources(params, config)
    if labels:
        sources["score.weight"] = _Source((score_leaf(config, len(labels)),), (), None)
    with atomic_directory(directory) as temporary:
        _write_weights(temporary, params, sources, jnp.dtype(dtype), max_shard_bytes)
        write_json(temporary / "config.json", _exported_config(hf_config, config, dtype, labels))
        if tokenizer_dir is not None:
            for name in TOKENIZER_FILES:
                if (Path(tokenizer_dir) / name).is_file():
                    shutil.copyfile(Path(tokenizer_dir) / name, temporary / name)
        if end_ids:
            _write_end_tokens(temporary, end_ids)
    return Path(directory)


def _write_end_tokens(directory: Path, end_ids: tuple[int, ...]) -> None:
    """End tokens in generation_config.json, whose word counts, and in config.json, its fallback."""
    ids = list(end_ids)
    ends = ids if len(ids) > 1 else ids[0]
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        raw = read_json(path) if path.is_file() else {}
        write_json(path, {**raw, "eos_token_id": ends})


def _sources(params: Tree, config: ModelConfig) -> dict[str, _Source]:
    """Hugging Face name → where it comes from; a tree that does not fit `config` is a programming error."""
    sources = {leaf.name: _Source((leaf,), (), None) for leaf in layout.top_leaves(config)}
    leaves, first = layout.layer_leaves(config), 0
    for stage in sorted(params["stages"], key=int):
        size = layout.get(params["stages"], (stage, *leaves[0].path)).shape[0]
        for i in range(size):
            for whole in leaves:
                for expert, leaf in enumerate(whole.each_expert()):
                    name = layout.layer_name(first + i, leaf)
                    before = sources[name].leaves if name in sources else ()
                    number = expert if whole.experts else None
                    sources[name] = _Source((*before, leaf), ("stages", stage), i, number)
        first += size
    if first != config.num_layers:
        raise ValueError(f"the tree has {first} layers, the configuration {config.num_layers}")
    for name, source in sources.items():
        for leaf in source.leaves:
            held = layout.get(params, (*source.stage, *leaf.path)).shape
            held = held[sum(index is not None for index in (source.layer, source.expert)) :]
            if held != leaf.shape:
                raise ValueError(f"{name}: the tree holds {held}, the configuration asks for {leaf.shape}")
    return sources


def _write_weights(
    directory: Path,
    params: Tree,
    sources: dict[str, _Source],
    dtype: np.dtype,
    max_shard_bytes: int,
) -> None:
    """Write the shards one after another, so that one shard at a time is in memory."""
    split = split_state_dict_into_shards_factory(
        sources,
        get_storage_size=lambda source: int(np.prod(layout.file_shape(source.leaves[0]))) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _tensor(name, params, sources[name], dtype) for name in names}
        try:
            save_file(tensors, directory / file, metadata={"format": "pt"})
        except SafetensorError as error:  # the library's name for a full disk
            reason = " ".join(str(error).split())
            raise UserError(
                f"{directory.parent}: cannot write ({reason}); free some space or choose another folder"
            ) from None
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tensor(name: str, params: Tree, source: _Source, dtype: np.dtype) -> np.ndarray:
    parts = [
        np.asarray(array).T if leaf.transposed else np.asarray(array) for leaf, array in source.arrays(params)
    ]
    with np.errstate(over="ignore"):
        cast = (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(dtype)
    if not np.isfinite(cast.astype(np.float32)).all():
        raise UserError(
            f"{name}: holds a value that is not finite in {dtype.name}; export as float32, check training"
        )
    # safetensors.numpy writes the bytes as they lie in memory: of a transposed view, silently the wrong ones.
    return np.ascontiguousarray(cast)


def score_leaf(config: ModelConfig, num_labels: int) -> layout.Leaf:
    """The head of a sequence-classification model."""
    return layout.Leaf(("score", "kernel"), "score.weight", (config.width, num_labels), True)


def _exported_config(
    hf_config: JSONObject, config: ModelConfig, dtype: str, labels: tuple[str, ...]
) -> JSONObject:
    """The text model's config.json (no vision tower is exported), with the dtype of the weights written."""
    raw = {**hf_config.get("text_config", hf_config)}
    raw |= {"model_type": config.family, "architectures": [ARCHITECTURES[config.family]]}
    raw |= {"tie_word_embeddings": config.tied, "dtype": dtype}
    if labels:
        raw["architectures"] = [classifier_architecture(config.family)]
        raw["id2label"] = {str(index): name for index, name in enumerate(labels)}
        raw["label2id"] = {name: index for index, name in enumerate(labels)}
    raw.pop("torch_dtype", None)  # the older spelling of dtype
    raw.pop("quantization_config", None)  # the weights written are plain
    return raw
