"""Families of models: what their `config.json` may say, and what transformers takes where it says nothing.

A key is computed, known to change nothing, or refused (`hf_values.Values.check_keys`).
"""

MAX_SIZE, MAX_LAYERS = 2**24, 10_000  # far above any published model: a larger number is a damaged file

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
FAMILIES = tuple(ARCHITECTURES)
EXPERTS = ("mixtral", "qwen3_moe", "olmoe")
"""Families whose MLPs are mixtures of experts."""


def classifier_architecture(family: str) -> str:
    """transformers' sequence-classification model of a family."""
    stem = "Gemma3Text" if family == "gemma3_text" else ARCHITECTURES[family].removesuffix("ForCausalLM")
    return f"{stem}ForSequenceClassification"


# What transformers takes where a published file leaves a key out (`configuration_*.py` of 5.23); sizes that no two models
# share have no default here.
DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "ministral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"head_dim": 128, "num_key_value_heads": 32},
    "mixtral": {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 131_072,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 32_768,
    },
    "olmoe": {
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    },
    "smollm3": {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
    "olmo2": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    "olmo3": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "sliding_window": 4096},
    "phi3": {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "granite": {
        "max_position_embeddings": 2048,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    },
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
ROPE_THETA = {
    "gemma3_text": 1_000_000.0,
    "smollm3": 2_000_000.0,
    "olmo3": 500_000.0,
    "mixtral": 1_000_000.0,
}  # others: 10,000

COMPUTED = frozenset(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta rope_scaling rope_parameters "
    "eos_token_id".split()
)
_BIASES = frozenset({"attention_bias", "mlp_bias"})
_GEMMA = frozenset({"hidden_activation", "attention_bias"})
_GEMMA2 = _GEMMA | {"query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping"}
_GEMMA2 |= {"final_logit_softcapping", "layer_types"}
_QWEN = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
_EXPERTS = frozenset({"num_experts_per_tok"})
_COUNTS = frozenset({"num_experts", "num_local_experts", "norm_topk_prob"})  # two spellings of one number
COMPUTED_OF_FAMILY: dict[str, frozenset[str]] = {
    "llama": _BIASES,
    "mistral": frozenset({"sliding_window"}),
    "ministral": frozenset({"sliding_window", "layer_types"}),
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"attention_bias"},
    "mixtral": _EXPERTS | {"sliding_window", "num_local_experts"},
    "qwen3_moe": _EXPERTS
    | _COUNTS
    | {"attention_bias", "use_sliding_window", "sliding_window", "moe_intermediate_size"},
    "olmoe": _EXPERTS | _COUNTS | {"attention_bias"},
    "smollm3": _BIASES
    | {"use_sliding_window", "sliding_window", "layer_types", "no_rope_layers", "no_rope_layer_interval"},
    "olmo2": frozenset({"attention_bias"}),
    "olmo3": frozenset({"attention_bias", "sliding_window", "layer_types"}),
    "phi3": frozenset({"sliding_window", "original_max_position_embeddings", "partial_rotary_factor"}),
    "granite": _BIASES
    | {"embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"},
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
    "torchscript router_aux_loss_coef transformers_version transformers.js_config typical_p use_bfloat16 use_cache "
    "attn_implementation".split()
)
# Keys that are harmless at these values alone.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "clip_qkv": (),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([],),
    "output_router_logits": (False,),  # true would add the router's auxiliary loss in training
    "router_jitter_noise": (0, 0.0),
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
