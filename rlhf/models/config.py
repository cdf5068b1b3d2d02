"""Architecture of a decoder, read from a Hugging Face `config.json`."""

import dataclasses
import math
from typing import Any

from rewards.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer.

    Attributes:
      theta: base of the frequencies.
      kind: "default", "linear" (frequencies divided by `factor`) or "llama3" (only the low ones, with a ramp).
      factor, low_freq_factor, high_freq_factor, original_positions: parameters of the scaled kinds.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a decoder's computation; frozen and hashable, so it can be static under jit.

    `sliding[l]` says whether layer l sees only the last `window` positions (and then uses `rope_local`).
    """

    family: str
    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    rope: Rope
    rope_local: Rope
    sliding: tuple[bool, ...]
    window: int
    norm_eps: float
    activation: str
    tied: bool
    attention_bias: bool
    output_bias: bool
    norm_plus_one: bool
    post_norms: bool
    qk_norm: bool
    query_scale: float
    embed_scale: float
    attention_softcap: float | None
    final_softcap: float | None

    @classmethod
    def from_hf(cls, raw: dict[str, Any], source: str = "config.json") -> "ModelConfig":
        """Read a Hugging Face configuration; anything this decoder cannot compute is a UserError."""
        if raw.get("model_type") == "gemma3" and "text_config" in raw:
            raw = {**raw["text_config"], "model_type": "gemma3_text"}
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise UserError(
                f"{source}: model_type: {family!r} is not supported; use one of {', '.join(FAMILIES)}"
            )
        try:
            return _read(cls, raw, family, source)
        except KeyError as error:
            raise UserError(
                f"{source}: {error.args[0]}: missing; take the file that came with the weights"
            ) from None


def _read(cls: type[ModelConfig], raw: dict[str, Any], family: str, source: str) -> ModelConfig:
    gemma = family.startswith("gemma")
    num_layers, width, num_heads = (
        int(raw[k]) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    head_dim = int(raw.get("head_dim") or width // num_heads)
    if raw.get("mlp_bias"):
        raise UserError(
            f"{source}: mlp_bias: true is not supported; no published model of these families sets it"
        )
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or "silu"
    activation = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh" if gemma else "gelu"}.get(
        activation, activation
    )
    if activation not in ("silu", "gelu", "gelu_tanh"):
        raise UserError(
            f"{source}: hidden_act: {activation!r} is not supported; use silu or gelu_pytorch_tanh"
        )
    rope, rope_local = _ropes(raw, family, source)
    sliding, window = _sliding(raw, family, num_layers)
    scalar = raw.get("query_pre_attn_scalar") if family in ("gemma2", "gemma3_text") else None
    return cls(
        family=family,
        vocab_size=int(raw["vocab_size"]),
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=head_dim,
        mlp_width=int(raw["intermediate_size"]),
        max_positions=int(raw.get("max_position_embeddings", 8192)),
        rope=rope,
        rope_local=rope_local,
        sliding=sliding,
        window=window,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        activation=activation,
        tied=bool(raw.get("tie_word_embeddings", gemma)),
        attention_bias=bool(raw.get("attention_bias", family == "qwen2")),
        output_bias=bool(raw.get("attention_bias", False)) and family != "qwen2",
        norm_plus_one=gemma,
        post_norms=family in ("gemma2", "gemma3_text"),
        qk_norm=family in ("qwen3", "gemma3_text"),
        query_scale=float(scalar or head_dim) ** -0.5,
        embed_scale=math.sqrt(width) if gemma else 1.0,
        attention_softcap=raw.get("attn_logit_softcapping") if family == "gemma2" else None,
        final_softcap=raw.get("final_logit_softcapping") if family in ("gemma2", "gemma3_text") else None,
    )


def _rope(theta: float, scaling: dict[str, Any] | None, source: str) -> Rope:
    scaling = scaling or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", float(scaling["factor"]))
    if kind == "llama3":
        return Rope(
            theta,
            "llama3",
            float(scaling["factor"]),
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    raise UserError(f"{source}: rope_scaling: {kind!r} is not supported; use default, linear or llama3")


def _ropes(raw: dict[str, Any], family: str, source: str) -> tuple[Rope, Rope]:
    """Global and local rotary embeddings; both spellings, `rope_theta`/`rope_scaling` and `rope_parameters`."""
    default_theta = 1_000_000.0 if family == "gemma3_text" else 10_000.0
    parameters = raw.get("rope_parameters") or {}
    if "full_attention" in parameters:
        full, local = parameters["full_attention"], parameters["sliding_attention"]
        return (
            _rope(float(full.get("rope_theta", default_theta)), full, source),
            _rope(float(local.get("rope_theta", 10_000.0)), local, source),
        )
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or default_theta)
    rope = _rope(theta, parameters or raw.get("rope_scaling"), source)
    if family == "gemma3_text":
        return rope, Rope(float(raw.get("rope_local_base_freq", 10_000.0)))
    return rope, rope


def _sliding(raw: dict[str, Any], family: str, num_layers: int) -> tuple[tuple[bool, ...], int]:
    """Which layers have a sliding window, and its width (0 where none has)."""
    window = int(raw.get("sliding_window") or 0)
    if raw.get("layer_types"):
        sliding = tuple(kind == "sliding_attention" for kind in raw["layer_types"])
    elif family == "gemma2":
        sliding = tuple(layer % 2 == 0 for layer in range(num_layers))
    elif family == "gemma3_text":
        pattern = int(raw.get("sliding_window_pattern", 6))
        sliding = tuple((layer + 1) % pattern != 0 for layer in range(num_layers))
    elif family == "mistral":
        sliding = (window > 0,) * num_layers
    elif family in ("qwen2", "qwen3") and raw.get("use_sliding_window"):
        first = int(raw.get("max_window_layers", num_layers))
        sliding = tuple(layer >= first for layer in range(num_layers))
    else:
        sliding = (False,) * num_layers
    return sliding, window if any(sliding) else 0
