"""Language-model embeddings of completions: e(x, y) = hidden states of y after x, pooled over its tokens.

Computed once and kept in the cache folder under a hash of weights, settings and tokens.
Shapes: I items, D width, B rows, T nodes, N scored nodes, C completions.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rewards.errors import UserError
from rewards.files import atomic_path, cache_dir, sha256_json
from rewards.types import Preferences
from rlhf import policy_store
from rlhf.batches import encode_items
from rlhf.models import attention
from rlhf.packing import PackedRows, Sequences, fill_rows, pack
from rlhf.policy import PolicyParams, chunk_of

ROW_LENGTH = 512


def encoder_settings(kind: str, model: str | None, layer: int, pool: str, fingerprint: str) -> dict[str, Any]:
    """The settings that a basis stores to rebuild its embeddings."""
    return {"kind": kind, "model": model, "layer": layer, "pool": pool, "fingerprint": fingerprint}


def prepare(
    prefs: Preferences, kind: str, model: str | None, layer: int, pool: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Embed every item with a new encoder; returns float32[I, D] and the settings to store with the basis.

    Raises:
      UserError: precomputed features are asked for and the data has none, or the model cannot be loaded.
    """
    if kind != "lm":
        settings = encoder_settings(kind, None, 0, "none", "")
        return embed_items(prefs, settings), settings
    base = policy_store.load_base(model, adapter_layers=None, dtype="float32")
    settings = encoder_settings("lm", base.name, layer, pool, base.fingerprint)
    return _embed(prefs, settings, base), settings


def embed_items(prefs: Preferences, settings: dict[str, Any]) -> np.ndarray:
    """Embed every item with a stored encoder, float32[I, D].

    Raises:
      UserError: the data lacks precomputed features, or the encoder's model has other weights than at the fit.
    """
    if settings["kind"] == "precomputed":
        if prefs.item_features is None:
            raise UserError(
                f"{prefs.source}: no chosen_features/rejected_features, which encoder.kind precomputed needs; "
                "add them or set encoder.kind=lm"
            )
        return prefs.item_features
    if settings["kind"] == "attributes":
        return attribute_features(prefs)
    cached = _load_cached(_cache_path(settings, prefs))
    if cached is not None:
        return cached
    base = policy_store.load_base(settings["model"], adapter_layers=None, dtype="float32")
    if base.fingerprint != settings["fingerprint"]:
        raise UserError(
            f"{settings['model']}: weights differ from those the reward basis was fitted with; restore them or fit again"
        )
    return _embed(prefs, settings, base)


def attribute_features(prefs: Preferences) -> np.ndarray:
    """The numbers of the `attributes` column, float32[I, D]; items of no comparison hold zeros.

    Raises:
      UserError: a row without attributes, or with another set of them than the first row.
    """
    column = prefs.columns.get("attributes")
    if column is None:
        raise UserError(
            f"{prefs.source}: no attributes column, which encoder.kind attributes needs; add it or set encoder.kind=lm"
        )
    names = (column[0] or {}).get("feature_names")
    out = np.zeros((prefs.num_items, len(names or ())), np.float32)
    for row, chosen, rejected, value in zip(prefs.row, prefs.chosen, prefs.rejected, column, strict=True):
        if not names or (value or {}).get("feature_names") != names:
            raise UserError(
                f"{prefs.source} row {row}: attributes: feature_names must be the same list in every row; "
                "mend it or set encoder.kind=lm"
            )
        out[chosen], out[rejected] = (
            value["chosen"],
            value["rejected"],
        )  # as many finite numbers: read checks that
    return out


def _cache_path(settings: dict[str, Any], prefs: Preferences):
    texts = [[prefs.prompts[p], text] for p, text in zip(prefs.item_prompt, prefs.item_text, strict=True)]
    content = {k: v for k, v in settings.items() if k != "model"}  # the fingerprint stands for the weights
    return cache_dir() / "embeddings" / f"{sha256_json([content, texts])}.safetensors"


def _load_cached(path) -> np.ndarray | None:
    try:
        return load_file(path)["embeddings"]
    except (OSError, SafetensorError, KeyError):  # not there, or damaged: computed again
        return None


def _embed(prefs: Preferences, settings: dict[str, Any], base: policy_store.Base) -> np.ndarray:
    path = _cache_path(settings, prefs)
    cached = _load_cached(path)
    if cached is not None:
        return cached
    prompts, completions = encode_items(prefs, base.tokenizer, base.config.max_positions)
    items: dict[Sequences, list[int]] = {}
    for item, completion in enumerate(completions):
        items.setdefault(Sequences(prompts[prefs.item_prompt[item]], (completion,)), []).append(item)
    longest = max(len(s.prompt) + len(s.completions[0]) for s in items)
    rows = fill_rows(items, max(ROW_LENGTH, longest))
    num_layers = _num_layers(settings["layer"], base.config.num_layers)
    embed = _embedder(base, num_layers, settings["pool"])
    out = np.zeros((prefs.num_items, base.config.width), np.float32)
    packed = pack(rows)
    for start in range(0, len(rows), 4):
        values = np.asarray(embed(chunk_of(packed, start, 4)))
        for row, groups in zip(values, rows[start : start + 4], strict=False):
            for value, group in zip(row, groups, strict=False):
                out[items[group]] = value
    with atomic_path(path) as temporary:
        save_file({"embeddings": out}, temporary)
    return out


def _num_layers(layer: int, total: int) -> int:
    """Layers to run for `encoder.layer`: −1 all of them (then the final norm), n the first n."""
    count = layer if layer >= 0 else total + 1 + layer
    if not 0 <= count <= total:
        raise UserError(
            f"encoder.layer: {layer} is outside −{total + 1} … {total}; the model has {total} layers"
        )
    return count


def _embedder(base: policy_store.Base, num_layers: int, pool: str):
    total = base.config.num_layers
    stages = (total,) if num_layers in (0, total) else (num_layers, total - num_layers)
    tree = policy_store.restage(base.tree, base.stages, stages)
    graphdef, params, _ = policy_store.base_state(
        dataclasses.replace(base, tree=tree, stages=stages), None, "float32", False
    )
    last = 0 if num_layers == 0 else 1
    return functools.partial(_pooled, graphdef, params, last=last, final_norm=num_layers == total, pool=pool)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("last", "final_norm", "pool"))
def _pooled(
    graphdef: nnx.GraphDef, params: PolicyParams, rows: PackedRows, *, last: int, final_norm: bool, pool: str
) -> jax.Array:
    """Pooled hidden states of every completion, float32[B, C, D]."""
    decoder = nnx.merge(graphdef, *params)
    context = decoder.context(rows.positions, attention.tree_mask(rows.end))
    hidden, _ = decoder.run_stages(decoder.embed_tokens(rows.tokens), context, last=last)
    hidden = decoder.final_norm(hidden) if final_norm else hidden
    scored = jnp.take_along_axis(hidden, rows.scored[:, :, None], axis=1).astype(jnp.float32)
    if pool == "last":
        depth = jnp.take_along_axis(rows.positions, rows.scored, axis=1)
        deepest = jnp.argmax(jnp.where(rows.member, depth[:, None, :], -1), axis=2)
        return jnp.take_along_axis(scored, deepest[:, :, None], axis=1)
    count = jnp.maximum(jnp.sum(rows.member, axis=2), 1)[:, :, None]
    return jnp.einsum("bcn,bnd->bcd", rows.member.astype(jnp.float32), scored) / count
