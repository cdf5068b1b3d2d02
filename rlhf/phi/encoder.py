"""Embeddings of completions: e(x, y) = hidden states of y after x, pooled over its tokens, or the sentence vector of y.

Computed once and kept in the cache folder under a hash of weights, settings and texts. Without a model of its own, an encoder
may also be the numbers that came with the data, or off-the-shelf rewards (`rlhf.phi.columns`).
Shapes: I items, D width.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rewards import hashed
from rewards.basis.readout import Readout
from rewards.data.completions import read_completions
from rewards.data.features import attribute_features, precomputed_features
from rewards.errors import UserError
from rewards.files import JSONObject, cache_dir
from rewards.types import Preferences, RewardBasis
from rlhf.mesh.devices import apart
from rlhf.models.sentence import SentenceEncoder
from rlhf.phi import sentence
from rlhf.phi.columns import table
from rlhf.phi.columns.config import ColumnConfig
from rlhf.phi.columns.hidden import pooled_states
from rlhf.phi.columns.items import texts_of
from rlhf.policy import store as policy_store
from rlhf.policy.batches import encode_items
from rlhf.policy.packing import Sequences
from rlhf.run import inputs, processes

READ_NEW_TEXTS = ("lm", sentence.KIND, "columns")
"""Kinds of encoder that give features for texts that are not in the data."""
MODELS = ("lm", sentence.KIND)
"""Kinds of encoder that are a model with a name."""


def encoder_settings(kind: str, model: str | None, layer: int, pool: str, fingerprint: str) -> JSONObject:
    """The settings that a basis stores to rebuild its embeddings."""
    return {"kind": kind, "model": model, "layer": layer, "pool": pool, "fingerprint": fingerprint}


def prepare(
    prefs: Preferences,
    kind: str,
    model: str | None,
    layer: int,
    pool: str,
    columns: Sequence[ColumnConfig] = (),
    reference: str | None = None,
) -> tuple[np.ndarray, JSONObject]:
    """Embed every item with a new encoder; returns float32[I, D] and the settings to store with the basis.

    With kind `columns` the embedding is the raw rewards, float64 so that 0.7 stays 0.7; `reference` are samples of
    π_ref for their mean and standard deviation.

    Raises:
      UserError: precomputed features are asked for and the data has none, the model cannot be loaded, or a column
        cannot be computed.
    """
    if kind == "columns":
        rewards, settings = table.prepare(prefs, columns)
        if reference is not None:
            settings = table.standardise_on(settings, read_completions(reference))
        return rewards, settings
    if kind not in ("lm", sentence.KIND):
        settings = encoder_settings(kind, None, 0, "none", "")
        return embed_items(prefs, settings), settings
    assert model is not None, "a model has a name"
    if kind == sentence.KIND:
        loaded = SentenceEncoder(sentence.resolve(model))
        settings = sentence.settings_of(loaded, model)
        return _remembered(prefs, settings, lambda: loaded.embed(prefs.item_text)), settings
    base = policy_store.load_base(model, adapter_layers=None, dtype="float32")
    settings = encoder_settings("lm", base.name, layer, pool, base.fingerprint) | {"files": dict(base.files)}
    if base.tokenizer.template_date:
        settings["template_date"] = base.tokenizer.template_date
    return _remembered(prefs, settings, lambda: _embed(prefs, settings, base)), settings


def items_phi(basis: RewardBasis, prefs: Preferences) -> np.ndarray:
    """φ of every item, float32[I, K], centred within prompts; errors as `embed_items`."""
    return Readout.of(basis).features(embed_items(prefs, basis.encoder), prefs.item_prompt)


@apart()
def embed_items(prefs: Preferences, settings: JSONObject) -> np.ndarray:
    """Embed every item with a stored encoder, float32[I, D].

    Raises:
      UserError: the data lacks precomputed features, or the encoder's model is another than at the fit.
    """
    if settings["kind"] == "precomputed":
        return precomputed_features(prefs)
    if settings["kind"] == "attributes":
        return attribute_features(prefs)
    if settings["kind"] == "columns":
        if not processes.several():
            return table.evaluate(prefs, settings, gates=False).values
        # By one for all: a judge may answer twice in two ways.
        return np.array(
            processes.from_writer(lambda: table.evaluate(prefs, settings, gates=False).values.tolist())
        )
    if settings["kind"] == sentence.KIND:
        if here := _place(settings):
            sentence.check(settings, here)
        return _remembered(prefs, settings, lambda: sentence.opened(settings).embed(prefs.item_text))

    now = files_now(settings)
    _check_files(settings, now)
    key = settings if "files" in settings or not now else settings | {"files": now}
    return _remembered(prefs, key, lambda: _embed(prefs, settings, open_encoder(settings)))


def open_encoder(settings: JSONObject) -> policy_store.Base:
    """The language model of a stored encoder, as it was at the fit.

    Raises:
      UserError: it cannot be loaded, or has other weights, another tokenizer or other settings.
    """
    base = policy_store.load_base(settings["model"], adapter_layers=None, dtype="float32")
    base = dataclasses.replace(base, tokenizer=base.tokenizer.dated(settings.get("template_date")))
    if base.fingerprint != settings["fingerprint"]:
        raise UserError(
            f"{settings['model']}: weights differ from those the reward basis was fitted with; restore them or "
            "fit again"
        )
    _check_files(settings, base.files)
    return base


def files_now(settings: JSONObject) -> dict[str, str]:
    """sha256 by name of the tokenizer and settings of a stored encoder's model; nothing where it is not there."""
    try:
        if settings["kind"] == sentence.KIND:
            return sentence.files_now(settings["model"])
        return policy_store.files_under(settings["model"])
    except UserError:  # what needs the model says so
        return {}


def _place(settings: JSONObject) -> Path | None:
    """Where a stored sentence encoder is; None where it is gone, and what is remembered of it must do."""
    try:
        return sentence.resolve(settings["model"])
    except UserError:  # what needs the model says so
        return None


def _check_files(settings: JSONObject, now: Mapping[str, str]) -> None:
    """Rewards from before these were recorded are taken as they are; what is remembered for them is told apart by its key."""
    if now and "files" in settings and (changed := inputs.change(settings["files"], now)):
        raise UserError(
            f"{settings['model']}: {changed} since the rewards were fitted; restore it or fit again"
        )


def _remembered(prefs: Preferences, settings: JSONObject, compute: Callable[[], np.ndarray]) -> np.ndarray:
    content = {k: v for k, v in settings.items() if k != "model"}  # the fingerprint stands for the weights
    return hashed.cached(cache_dir() / "embeddings", [content, texts_of(prefs)], compute)


def _embed(prefs: Preferences, settings: JSONObject, base: policy_store.Base) -> np.ndarray:
    prompts, completions = encode_items(prefs, base.tokenizer, base.config.max_positions)
    sequences = [
        Sequences(prompts[prompt], (completion,))
        for prompt, completion in zip(prefs.item_prompt, completions, strict=True)
    ]
    num_layers = num_layers_of(settings["layer"], base.config.num_layers)
    return pooled_states(base, sequences, num_layers, settings["pool"])


def num_layers_of(layer: int, total: int) -> int:
    """Layers to run for `encoder.layer`: −1 all of them (then the final norm), n the first n."""
    count = layer if layer >= 0 else total + 1 + layer
    if not 0 <= count <= total:
        raise UserError(
            f"encoder.layer: {layer} is outside −{total + 1} … {total}; the model has {total} layers"
        )
    return count
