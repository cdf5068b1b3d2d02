"""Architecture of a decoder, read from a Hugging Face `config.json`: a key is computed, known to change nothing, or refused."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from rewards.errors import UserError
from rlhf.models import rope as ropes
from rlhf.models.families import COMPUTED_OF_FAMILY, EXPERTS, FAMILIES, MAX_LAYERS
from rlhf.models.hf_values import Values, cut
from rlhf.models.rope import Rope

Kept = Literal["float32", "bfloat16", "int8", "nf4"]
"""How the matrices of frozen layers may be kept (`quantised.py`)."""

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a decoder's computation; frozen and hashable, so it can be static under jit.

    Attributes:
      sliding: by layer, whether it sees only the last `window` positions (and then uses `rope_local`).
      unrotated: by layer, whether it has no positions at all (SmolLM3).
      pre_norms, post_norms: whether attention and MLP read normed states, and whether what they give is normed (OLMo 2: that
        alone; Gemma 2: both).
      qk_norm: of queries and keys: none, of each "head", or of "all" heads together.
      norm_in_float32: whether a norm's scale multiplies before the result is rounded (OLMo) or after (Llama).
      residual_scale: what attention and MLP give is multiplied with; logit_divisor: logits are divided by.
      fused: whether the files hold q, k, v in one matrix, and gate and up (Phi-3).
      num_experts: of the MLP in every layer, each `mlp_width` wide; 0: one MLP. experts_per_token: how many of them a token
        goes through; expert_weights_sum_to_one: whether their weights are divided by their sum.
      kept: how the layers' matrices are kept in memory (`quantised.py`); None: in the type that is computed in.
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
    unrotated: tuple[bool, ...]
    window: int
    norm_eps: float
    activation: str
    tied: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    norm_plus_one: bool
    norm_in_float32: bool
    pre_norms: bool
    post_norms: bool
    qk_norm: Literal["none", "head", "all"]
    query_scale: float
    embed_scale: float
    residual_scale: float
    logit_divisor: float
    fused: bool
    attention_softcap: float | None
    final_softcap: float | None
    kept: Kept | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    expert_weights_sum_to_one: bool = False

    def lowest(self, num_layers: int) -> "ModelConfig":
        """The same with the lowest layers alone."""
        parts = {name: getattr(self, name)[:num_layers] for name in ("sliding", "unrotated")}
        return dataclasses.replace(self, num_layers=num_layers, **parts)

    @classmethod
    def from_hf(cls, raw: Mapping[str, object], source: str = "config.json") -> "ModelConfig":
        """Read a Hugging Face configuration.

        Raises:
          UserError: a family, key or value that this decoder cannot compute, or a value that is no sensible number; it is
            named with its place.
        """
        text = raw.get("text_config")
        if raw.get("model_type") == "gemma3" and isinstance(text, Mapping):
            raw = {**text, "model_type": "gemma3_text"}
        family = raw.get("model_type")
        if family in ("bert", "mpnet"):
            raise UserError(
                f"{source}: model_type: {family!r} is an encoder of sentences and writes no text; take a language model, or "
                "for rewards encoder.kind: sentence"
            )
        if not isinstance(family, str) or family not in FAMILIES:
            raise UserError(
                f"{source}: model_type: {family!r} is not supported; use one of {', '.join(FAMILIES)}"
            )
        values = Values(raw, family, source)
        values.check_keys()
        return _read(values, family)


def _read(values: Values, family: str) -> ModelConfig:
    gemma = family.startswith("gemma")
    width = values.integer("hidden_size")
    num_layers = values.integer("num_hidden_layers", high=MAX_LAYERS)
    num_heads = values.integer("num_attention_heads")
    groups = num_heads if values.get("num_key_value_heads") is None else values.integer("num_key_value_heads")
    if num_heads % groups:
        raise values.refuse(
            "num_key_value_heads", f"{groups} does not divide num_attention_heads {num_heads}"
        )
    if values.get("head_dim") is None and width % num_heads:
        raise values.refuse("num_attention_heads", f"{num_heads} does not divide hidden_size {width}")
    head_dim = width // num_heads if values.get("head_dim") is None else values.integer("head_dim")
    if head_dim % 2:
        raise values.refuse("head_dim", f"must be even for rotary positions, not {head_dim}")
    vocab_size = values.integer("vocab_size")
    _check_end_tokens(values, vocab_size)
    rope, rope_local = ropes.read(values, family, head_dim)
    sliding, window = _sliding(values, family, num_layers)
    own = COMPUTED_OF_FAMILY[family]
    bias = "attention_bias" in own and values.flag("attention_bias", False)
    norm_eps = values.number("rms_norm_eps", 1e-6)
    if norm_eps > 1:
        raise values.refuse("rms_norm_eps", f"must be at most 1, not {norm_eps}")
    experts, per_token = _experts(values, family)
    scaled, granite, olmo = (
        family in ("gemma2", "gemma3_text"),
        family == "granite",
        family in ("olmo2", "olmo3"),
    )
    query_scale = (values.number("query_pre_attn_scalar") if scaled else float(head_dim)) ** -0.5
    embed_scale = math.sqrt(width) if gemma else 1.0
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=groups,
        head_dim=head_dim,
        mlp_width=values.integer("moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"),
        max_positions=rope.limit(values.integer("max_position_embeddings", high=2**31 - 1, default=8192)),
        rope=rope,
        rope_local=rope_local,
        sliding=sliding,
        unrotated=_unrotated(values, family, num_layers),
        window=window,
        norm_eps=norm_eps,
        activation=_activation(values, gemma),
        tied=values.flag("tie_word_embeddings", gemma or family == "smollm3"),
        attention_bias=bias or family == "qwen2",
        output_bias=bias and family != "qwen2",
        mlp_bias="mlp_bias" in own and values.flag("mlp_bias", False),
        norm_plus_one=gemma,
        norm_in_float32=gemma or olmo,
        pre_norms=not olmo,
        post_norms=scaled or olmo,
        qk_norm="all"
        if olmo or family == "olmoe"
        else "head"
        if family in ("qwen3", "qwen3_moe", "gemma3_text")
        else "none",
        query_scale=values.number("attention_multiplier") if granite else query_scale,
        embed_scale=values.number("embedding_multiplier") if granite else embed_scale,
        residual_scale=values.number("residual_multiplier") if granite else 1.0,
        logit_divisor=values.number("logits_scaling") if granite else 1.0,
        fused=family == "phi3",
        attention_softcap=values.optional("attn_logit_softcapping") if scaled else None,
        final_softcap=values.optional("final_logit_softcapping") if scaled else None,
        num_experts=experts,
        experts_per_token=per_token,
        expert_weights_sum_to_one=family == "mixtral"
        or (family in EXPERTS and values.flag("norm_topk_prob", False)),
    )


def _experts(values: Values, family: str) -> tuple[int, int]:
    """Number of experts, and of those that a token goes through; 0 where the MLP is one."""
    if family not in EXPERTS:
        return 0, 0
    given = [key for key in ("num_experts", "num_local_experts") if values.raw.get(key) is not None]
    if len(given) == 2 and values.integer(given[0]) != values.integer(given[1]):
        raise values.refuse(
            given[1], f"{values.raw[given[1]]} differs from {given[0]} {values.raw[given[0]]}"
        )
    key = given[0] if given else "num_experts" if family == "olmoe" else "num_local_experts"
    return values.integer(key), values.integer("num_experts_per_tok", high=values.integer(key))


def _check_end_tokens(values: Values, vocab_size: int) -> None:
    given = values.raw.get("eos_token_id")
    for token in given if isinstance(given, list) else [] if given is None else [given]:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise values.refuse(
                "eos_token_id", f"must be token ids from 0 to {vocab_size - 1}, not {cut(given)}"
            )


def _activation(values: Values, gemma: bool) -> str:
    key = "hidden_activation" if gemma and values.get("hidden_activation") is not None else "hidden_act"
    given = values.get(key)
    given = ("gelu_pytorch_tanh" if gemma else "silu") if given is None else given
    if not isinstance(given, str) or given not in _ACTIVATIONS:
        raise values.refuse(key, f"{cut(given)} is not supported; use one of {', '.join(_ACTIVATIONS)}")
    # Gemma's first files say gelu and mean the approximation by tanh.
    return "gelu_tanh" if gemma and given == "gelu" else _ACTIVATIONS[given]


def _sliding(values: Values, family: str, num_layers: int) -> tuple[tuple[bool, ...], int]:
    """Which layers have a sliding window, and its width (0 where none has)."""
    known = "sliding_window" in COMPUTED_OF_FAMILY[family]
    window = values.integer("sliding_window") if known and values.get("sliding_window") is not None else 0
    if family == "qwen3_moe" and "sliding_window" not in values.raw:
        window = 4096  # what transformers takes where the switch below is on
    windowed = "layer_types" in COMPUTED_OF_FAMILY[family]
    switch = "use_sliding_window" in COMPUTED_OF_FAMILY[family]
    switched_off = switch and not values.flag("use_sliding_window", False)
    kinds = values.get("layer_types") if windowed else None
    if kinds is not None:
        names = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != num_layers or not set(kinds) <= set(names):
            raise values.refuse(
                "layer_types", f"must be {num_layers} of {' and '.join(names)}, not {cut(kinds)}"
            )
        sliding = tuple(names[kind] for kind in kinds)
    elif family == "gemma2":
        sliding = tuple(layer % 2 == 0 for layer in range(num_layers))
    elif family == "gemma3_text":
        key = (
            "sliding_window_pattern" if "sliding_window_pattern" in values.raw else "_sliding_window_pattern"
        )
        pattern = values.integer(key, default=6)
        sliding = tuple((layer + 1) % pattern != 0 for layer in range(num_layers))
    elif family in ("mistral", "ministral", "phi3", "mixtral", "qwen3_moe"):
        sliding = (window > 0,) * num_layers
    elif family == "olmo3":
        sliding = tuple((layer + 1) % 4 != 0 for layer in range(num_layers))
    elif family == "smollm3":
        sliding = _unrotated(values, family, num_layers)
    elif family.startswith("qwen"):
        first = values.integer("max_window_layers", low=0, default=28)
        sliding = tuple(layer >= first for layer in range(num_layers))
    else:
        sliding = (False,) * num_layers
    if switched_off or window == 0:
        sliding = (False,) * num_layers
    return sliding, window if any(sliding) else 0


def _unrotated(values: Values, family: str, num_layers: int) -> tuple[bool, ...]:
    """Which layers have no positions; `no_rope_layers` holds 1 for those that do."""
    if family != "smollm3":
        return (False,) * num_layers
    given = values.get("no_rope_layers")
    if given is None:
        interval = values.integer("no_rope_layer_interval")
        return tuple((layer + 1) % interval == 0 for layer in range(num_layers))
    if not isinstance(given, list) or len(given) < num_layers or any(flag not in (0, 1) for flag in given):
        raise values.refuse("no_rope_layers", f"must be {num_layers} of 0 and 1, not {cut(given)}")
    return tuple(not flag for flag in given[:num_layers])
