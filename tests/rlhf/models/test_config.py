"""config.json: every key is computed, known to change nothing, or refused by name; published files that leave keys out."""

import json

import numpy as np
import pytest
import torch
import transformers

from rewards.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.families import DEFAULTS
from rlhf.models.load import load_params, read_hf_config
from tests.rlhf.models import families
from tests.rlhf.tiny import KINDS

LLAMA = KINDS["llama"]

CHANGES_THE_COMPUTATION = [
    ("use_bidirectional_attention", True),
    ("is_causal", False),
    ("attention_out_bias", True),
    ("multi_query", True),
    ("rope_interleaved", True),
    ("partial_rotary_factor", 0.5),
    ("quantization_config", {"bits": 4}),
    ("compression_config", {"format": "int8"}),
    ("is_encoder_decoder", True),
    ("add_cross_attention", True),
    ("chunk_size_feed_forward", 8),
    ("use_qk_norm", True),
    ("qk_layernorm", True),
    ("clip_qkv", 8.0),
    ("logit_scale", 0.0625),
    ("logits_scaling", 8.0),
    ("embedding_multiplier", 12.0),
    ("residual_multiplier", 0.22),
    ("attention_multiplier", 0.015),
    ("no_rope_layers", [1, 1, 1, 0]),
    ("no_rope_layer_interval", 4),
    ("num_experts", 8),
    ("num_local_experts", 8),
    ("num_experts_per_tok", 2),
    ("moe_intermediate_size", 64),
    ("attention_chunk_size", 8192),
    ("attn_temperature_tuning", True),
    ("use_mrope", True),
    ("scale_embedding", 10.0),
    ("mup_scale", 2),
    ("sliding_window", 8),
    ("layer_types", ["sliding_attention"] * 2),
    ("parallel_attn", True),
    ("rotary_pct", 0.25),
    ("alibi", True),
]


@pytest.mark.parametrize(
    ("key", "value"), CHANGES_THE_COMPUTATION, ids=[k for k, _ in CHANGES_THE_COMPUTATION]
)
def test_a_key_that_changes_the_computation_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=f"^config.json: {key}: "):
        ModelConfig.from_hf({**LLAMA, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_bidirectional_attention", None),
        ("use_bidirectional_attention", False),
        ("mlp_bias", False),
        ("rope_scaling", None),
        ("quantization_config", None),
        ("pretraining_tp", 1),
        ("use_cache", False),
        ("transformers_version", "4.1"),
        ("_name_or_path", "x/y"),
        ("unsloth_version", "2026.1"),
        ("is_llama_config", True),
        ("rope_interleaved", False),
        ("something_unheard_of", None),
    ],
)
def test_keys_that_change_nothing_are_taken(key, value):
    assert ModelConfig.from_hf({**LLAMA, key: value}) == ModelConfig.from_hf(LLAMA)


NO_SENSIBLE_VALUE = [
    *[(key, value) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size") for value in (0, -3)],
    *[(key, "many") for key in ("hidden_size", "intermediate_size", "num_key_value_heads", "max_position_embeddings")],
    *[(key, None) for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads")],
    ("hidden_size", True),
    ("hidden_size", 32.5),
    ("hidden_size", [32]),
    ("num_hidden_layers", 10**9),
    ("vocab_size", 10**12),
    ("head_dim", 0),
    ("head_dim", 7),
    ("num_key_value_heads", 3),
    *[("rms_norm_eps", value) for value in (0, -1, "small", float("nan"), 3.0)],
    *[("rope_theta", value) for value in (0, -1, float("nan"), float("inf"), "10000", [1])],
    *[("rope_scaling", value) for value in ("linear", 3, {"rope_type": "linear", "factor": 0}, {"rope_type": "linear"})],
    ("rope_scaling", {"rope_type": "linear", "factor": float("nan")}),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "mscale": 0.7}),
    ("rope_scaling", {"rope_type": ["linear"], "factor": 2.0}),
    ("rope_parameters", {"full_attention": {}, "sliding_attention": 3}),
    *[("hidden_act", value) for value in ("relu2", 0, ["silu"])],
    *[("eos_token_id", value) for value in (-5, 10**9, "end", [1, -1], 2.5, True)],
    *[("tie_word_embeddings", value) for value in ("yes", 1)],
    ("attention_bias", "no"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), NO_SENSIBLE_VALUE, ids=[f"{k}={v}"[:60] for k, v in NO_SENSIBLE_VALUE]
)
def test_a_value_that_is_no_sensible_one_is_named(key, value):
    with pytest.raises(UserError, match=r"^config.json: \w+(\.\w+)*: "):
        ModelConfig.from_hf({**LLAMA, key: value})


def test_the_size_of_layer_types_is_checked():
    with pytest.raises(UserError, match="layer_types: must be 2 of"):
        ModelConfig.from_hf({**KINDS["gemma2"], "num_hidden_layers": 2, "layer_types": ["full_attention"]})


# ---- what published files leave out -----------------------------------------------------------------------------

# Sizes that a tiny model must say; everything else may be missing from a file.
_SAID = {
    "vocab_size": families.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,  # the seventh layer of Gemma 3 is past the first full one
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SPARSE = {
    "llama": {},
    "mistral": {"num_key_value_heads": 4},
    "qwen2": {"num_key_value_heads": 4},
    "qwen3": {"num_key_value_heads": 2},
    "gemma": {"num_key_value_heads": 2},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3_text head_dim alone": {"head_dim": 64},
    "gemma2 heads alone": {"num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize("case", SPARSE)
def test_sparse_files_mean_what_they_mean_to_transformers(case, tmp_path):
    raw = {"model_type": case.split()[0], **_SAID, **SPARSE[case]}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens, real = families.padded_batch()
    expected = families.torch_logits(again, tokens, real)[real]
    found = families.decoder_logits(families.load_decoder(tmp_path), tokens, real)[real]
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_defaults_are_those_of_the_installed_transformers():
    for family, defaults in DEFAULTS.items():
        theirs = transformers.AutoConfig.for_model(family).to_dict()
        assert {key: theirs[key] for key in defaults} == defaults, family


# ---- config.json against the weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [5, 9_999])
def test_more_layers_than_the_files_hold(layers, tmp_path):
    families.save_model("qwen3", tmp_path)
    raw = {**read_hf_config(tmp_path), "num_hidden_layers": layers, "layer_types": None}
    with pytest.raises(
        UserError, match=f"num_hidden_layers: {layers}, but the safetensors files hold 4 layers"
    ):
        load_params(tmp_path, ModelConfig.from_hf(raw), (layers,), np.float32)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("qwen3_moe", "mlp_only_layers", [1]),
        ("qwen3_moe", "decoder_sparse_step", 2),
        ("qwen3_moe", "num_experts_per_tok", 9),
        ("qwen3_moe", "output_router_logits", True),
        ("qwen3_moe", "n_shared_experts", 1),
        ("qwen3_moe", "shared_expert_intermediate_size", 16),
        ("qwen3_moe", "routed_scaling_factor", 2.5),
        ("qwen3_moe", "first_k_dense_replace", 1),
        ("mixtral", "router_jitter_noise", 0.1),
        ("mixtral", "moe_intermediate_size", 16),
        ("olmoe", "clip_qkv", 8.0),
    ],
)
def test_what_a_mixture_of_experts_does_not_compute_is_refused_by_name(family, key, value):
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    raw = {"model_type": family, **sizes, "num_attention_heads": 4, "num_key_value_heads": 2}
    counts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    raw |= counts if family != "qwen3_moe" else {**counts, "moe_intermediate_size": 24}
    ModelConfig.from_hf(raw)
    with pytest.raises(UserError, match=f"{key}: "):
        ModelConfig.from_hf({**raw, key: value})


# One key each that changes what some published decoder computes, added to a configuration that is read without it.
_CHANGES = {
    "llama": {
        "sliding_window": 8,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "logit_scale": 0.1,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.2,
        "logits_scaling": 8.0,
        "use_qk_norm": True,
        "qk_layernorm": True,
        "parallel_attn": True,
        "alibi": True,
        "clip_qkv": 8.0,
        "partial_rotary_factor": 0.5,
        "rope_interleaved": True,
        "num_local_experts": 4,
        "use_bidirectional_attention": True,
        "is_causal": False,
        "attention_chunk_size": 8,
        "no_rope_layers": [1, 0],
        "attn_temperature_tuning": True,
    },
    "qwen3": {
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "layer_scale": 0.1,
        "num_nextn_predict_layers": 1,
        "linear_num_value_heads": 4,
        "full_attention_interval": 4,
        "attn_output_gate": True,
        "hidden_size_per_layer_input": 16,
    },
    "gemma3_text": {
        "laurel_rank": 8,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.9, 0.0],
    },
}


@pytest.mark.parametrize(
    ("family", "key"), [(family, key) for family, keys in _CHANGES.items() for key in keys]
)
def test_a_key_of_another_family_is_refused_by_name(family, key):
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    raw = {"model_type": family, **sizes, "num_attention_heads": 4, "num_key_value_heads": 2}
    ModelConfig.from_hf(raw)
    with pytest.raises(UserError, match=f"^config.json: {key}: "):
        ModelConfig.from_hf({**raw, key: _CHANGES[family][key]})
