"""Architecture of a decoder, read from a Hugging Face `config.json`: a key is computed, known to change nothing, or refused."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from rewards.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
MAX_SIZE, MAX_LAYERS = 2**24, 10_000  # far above any published model: a larger number is a damaged file

# What transformers takes where a published file leaves a key out (`configuration_*.py` of 5.23); sizes that no two models
# share have no default here.
DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"head_dim": 128, "num_key_value_heads": 32},
    "gemma": {"head_dim": 256, "num_key_value_heads": 16},
    "gemma2": {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131_072,
    },
}
COMPUTED = frozenset(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta rope_scaling rope_parameters "
    "eos_token_id".split()
)
_GEMMA = frozenset({"hidden_activation", "attention_bias"})
_GEMMA2 = _GEMMA | {"query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping"}
_GEMMA2 |= {"final_logit_softcapping", "layer_types"}
_QWEN = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
COMPUTED_OF_FAMILY: dict[str, frozenset[str]] = {
    "llama": frozenset({"attention_bias"}),
    "mistral": frozenset({"sliding_window"}),
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"attention_bias"},
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2 | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
}
# Keys of files and libraries around the model; dropout is never applied here, as in the field's preference trainers.
NO_EFFECT = frozenset(
    "architectures attention_dropout auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation "
    "cache_config custom_pipelines decoder_start_token_id diversity_penalty do_sample dtype early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id hidden_dropout id2label initializer_range is_llama_config label2id length_penalty max_length "
    "min_length model_max_length name_or_path no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
    "output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type "
    "remove_invalid_values repetition_penalty resid_pdrop embd_pdrop return_dict return_dict_in_generate sep_token_id "
    "suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype "
    "torchscript transformers_version transformers.js_config typical_p use_bfloat16 use_cache attn_implementation".split()
)
# Keys that are harmless at these values alone.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "is_causal": (True,),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
}
_ROPE_KEYS = frozenset(
    "rope_type type rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings".split()
)
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


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
        if not isinstance(family, str) or family not in FAMILIES:
            raise UserError(
                f"{source}: model_type: {family!r} is not supported; use one of {', '.join(FAMILIES)}"
            )
        values = _Values(raw, family, source)
        values.check_keys()
        return _read(values, family)


class _Values:
    """Typed reading of one configuration: each method returns a value in its range or names key and value."""

    def __init__(self, raw: Mapping[str, object], family: str, source: str):
        self.raw, self.family, self.source = raw, family, source
        self.defaults = DEFAULTS[family]

    def get(self, key: str, default: object = None) -> object:
        """The value; where the file leaves the key out, the family's default. null stays null."""
        return self.raw[key] if key in self.raw else self.defaults.get(key, default)

    def refuse(self, key: str, reason: str) -> UserError:
        return UserError(f"{self.source}: {key}: {reason}")

    def check_keys(self) -> None:
        """Refuse what would change the computation without this decoder knowing it."""
        known = COMPUTED | COMPUTED_OF_FAMILY[self.family] | NO_EFFECT
        for key, value in self.raw.items():
            if key in known or value is None or key.startswith("unsloth_"):
                continue
            if key in NEUTRAL:
                if value in NEUTRAL[key]:
                    continue
                allowed = " or ".join(repr(allowed) for allowed in NEUTRAL[key])
                raise self.refuse(key, f"{_cut(value)} is not supported, only {allowed}; use another model")
            if key.startswith("_"):  # what libraries write for themselves
                continue
            raise self.refuse(
                key,
                f"{_cut(value)}: a key that this decoder does not know for {self.family}; if it changes nothing "
                "that the model computes, remove it, otherwise use another model",
            )

    def integer(self, key: str, low: int = 1, high: int = MAX_SIZE, default: object = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise self.refuse(key, "missing; take the file that came with the weights")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"must be a whole number from {low} to {high}, not {_cut(value)}")
        return value

    def number(self, key: str, default: object = None, where: Mapping[str, object] | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key, default) if where is None else where.get(key, default)
        if value is None:
            raise self.refuse(key, "missing; take the file that came with the weights")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.refuse(key, f"must be a number above 0, not {_cut(value)}")
        return float(value)

    def optional(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(key, f"must be true or false, not {_cut(value)}")
        return value

    def section(self, key: str) -> Mapping[str, object]:
        value = self.raw.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.refuse(key, f"must be a section or null, not {_cut(value)}")
        return value


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(values: _Values, family: str) -> ModelConfig:
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
    rope, rope_local = _ropes(values, family)
    sliding, window = _sliding(values, family, num_layers)
    bias = values.flag("attention_bias", False) if family != "mistral" else False
    norm_eps = values.number("rms_norm_eps", 1e-6)
    if norm_eps > 1:
        raise values.refuse("rms_norm_eps", f"must be at most 1, not {norm_eps}")
    scaled = family in ("gemma2", "gemma3_text")
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=groups,
        head_dim=head_dim,
        mlp_width=values.integer("intermediate_size"),
        max_positions=values.integer("max_position_embeddings", high=2**31 - 1, default=8192),
        rope=rope,
        rope_local=rope_local,
        sliding=sliding,
        window=window,
        norm_eps=norm_eps,
        activation=_activation(values, gemma),
        tied=values.flag("tie_word_embeddings", gemma),
        attention_bias=bias or family == "qwen2",
        output_bias=bias and family != "qwen2",
        norm_plus_one=gemma,
        post_norms=scaled,
        qk_norm=family in ("qwen3", "gemma3_text"),
        query_scale=(values.number("query_pre_attn_scalar") if scaled else float(head_dim)) ** -0.5,
        embed_scale=math.sqrt(width) if gemma else 1.0,
        attention_softcap=values.optional("attn_logit_softcapping") if scaled else None,
        final_softcap=values.optional("final_logit_softcapping") if scaled else None,
    )


def _check_end_tokens(values: _Values, vocab_size: int) -> None:
    given = values.raw.get("eos_token_id")
    for token in given if isinstance(given, list) else [] if given is None else [given]:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise values.refuse(
                "eos_token_id", f"must be token ids from 0 to {vocab_size - 1}, not {_cut(given)}"
            )


def _activation(values: _Values, gemma: bool) -> str:
    key = "hidden_activation" if gemma and values.get("hidden_activation") is not None else "hidden_act"
    given = values.get(key)
    given = ("gelu_pytorch_tanh" if gemma else "silu") if given is None else given
    if not isinstance(given, str) or given not in _ACTIVATIONS:
        raise values.refuse(key, f"{_cut(given)} is not supported; use one of {', '.join(_ACTIVATIONS)}")
    # Gemma's first files say gelu and mean the approximation by tanh.
    return "gelu_tanh" if gemma and given == "gelu" else _ACTIVATIONS[given]


def _rope(values: _Values, key: str, scaling: Mapping[str, object], theta: float) -> Rope:
    """One rotary embedding from the section `key` of the file."""
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise values.refuse(key, f"{_cut(kind)} is not supported; use default, linear or llama3")
    for name, value in scaling.items():
        if name not in _ROPE_KEYS and value is not None and (name, value) != ("partial_rotary_factor", 1.0):
            raise values.refuse(
                f"{key}.{name}", f"{_cut(value)}: not known for {kind} positions; use another model"
            )

    def number(name: str) -> float:
        if scaling.get(name) is None:
            raise values.refuse(f"{key}.{name}", "missing; take the file that came with the weights")
        value = scaling[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise values.refuse(f"{key}.{name}", f"must be a number above 0, not {_cut(value)}")
        return float(value)

    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", number("factor"))
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if low >= high:
        raise values.refuse(f"{key}.low_freq_factor", f"must be below high_freq_factor {high}, not {low}")
    original = number("original_max_position_embeddings")
    return Rope(theta, "llama3", number("factor"), low, high, int(original))


def _theta(values: _Values, places: Iterable[tuple[str, object]], default: float) -> float:
    """The first base that is given; every one that is given is checked, null included where the file writes it."""
    found = None
    for key, value in places:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise values.refuse(key, f"must be a number above 0, not {_cut(value)}")
        found = float(value) if found is None else found
    return default if found is None else found


def _ropes(values: _Values, family: str) -> tuple[Rope, Rope]:
    """Global and local rotary embeddings; both spellings, `rope_theta`/`rope_scaling` and `rope_parameters`."""
    raw, default = values.raw, 1_000_000.0 if family == "gemma3_text" else 10_000.0
    parameters, scaling = values.section("rope_parameters"), values.section("rope_scaling")
    if "full_attention" in parameters:
        parts = []
        for name, base in (("full_attention", default), ("sliding_attention", 10_000.0)):
            key, part = f"rope_parameters.{name}", parameters.get(name)
            if not isinstance(part, Mapping):
                raise values.refuse(key, f"must be a section, not {_cut(part)}")
            theta = _theta(
                values, [(f"{key}.rope_theta", part[n]) for n in ("rope_theta",) if n in part], base
            )
            parts.append(_rope(values, key, part, theta))
        return parts[0], parts[1]
    held = (("rope_parameters.rope_theta", parameters), ("rope_theta", raw))
    places = [(key, section["rope_theta"]) for key, section in held if "rope_theta" in section]
    theta = _theta(values, places, default)
    key, section = ("rope_parameters", parameters) if parameters else ("rope_scaling", scaling)
    rope = _rope(values, key, section, theta)
    if family == "gemma3_text":
        return rope, Rope(values.number("rope_local_base_freq", 10_000.0))
    return rope, rope


def _sliding(values: _Values, family: str, num_layers: int) -> tuple[tuple[bool, ...], int]:
    """Which layers have a sliding window, and its width (0 where none has)."""
    known = "sliding_window" in COMPUTED_OF_FAMILY[family]
    window = values.integer("sliding_window") if known and values.get("sliding_window") is not None else 0
    windowed = family != "mistral" and "layer_types" in COMPUTED_OF_FAMILY[family]
    switched_off = family.startswith("qwen") and not values.flag("use_sliding_window", False)
    kinds = values.get("layer_types") if windowed else None
    if kinds is not None:
        names = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != num_layers or not set(kinds) <= set(names):
            raise values.refuse(
                "layer_types", f"must be {num_layers} of {' and '.join(names)}, not {_cut(kinds)}"
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
    elif family == "mistral":
        sliding = (window > 0,) * num_layers
    elif family.startswith("qwen"):
        first = values.integer("max_window_layers", low=0, default=28)
        sliding = tuple(layer >= first for layer in range(num_layers))
    else:
        sliding = (False,) * num_layers
    if switched_off or window == 0:
        sliding = (False,) * num_layers
    return sliding, window if any(sliding) else 0
