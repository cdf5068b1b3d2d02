"""Small random Hugging Face models of every family, made by transformers itself, and helpers to run ours."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from rlhf.models.config import ModelConfig
from rlhf.models.decoder import Decoder
from rlhf.models.load import load_params, read_hf_config
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.sampling import SamplingSettings, generate, row_keys

VOCAB, WINDOW, NUM_TOKENS = 97, 6, 21  # rows are longer than three windows

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Rotary scaling that is felt within the few positions of a test row.
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
_YARN_ALL = _YARN | {
    "beta_fast": 4.0,
    "beta_slow": 1.5,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
    "truncate": False,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}
_LONGROPE = {  # short up to 32 positions, of which a test row has 21
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.5, 3.0],
    "long_factor": [9.0, 9.0, 9.0],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.75,
}

_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}

FAMILIES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama_bias": ("LlamaConfig", {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 12}),
    "llama3_rope": ("LlamaConfig", {"rope_parameters": _LLAMA3, "tie_word_embeddings": False}),
    "llama_linear_rope": ("LlamaConfig", {"rope_parameters": _LINEAR, "tie_word_embeddings": False}),
    "smollm2": (
        "LlamaConfig",
        {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 1},
    ),
    "llama_mlp_bias": ("LlamaConfig", {"tie_word_embeddings": False, "mlp_bias": True}),
    "llama_yarn": ("LlamaConfig", {"rope_parameters": _YARN, "tie_word_embeddings": False}),
    "llama_yarn_all": ("LlamaConfig", {"rope_parameters": _YARN_ALL, "tie_word_embeddings": True}),
    "llama_dynamic_rope": ("LlamaConfig", {"rope_parameters": _DYNAMIC, "tie_word_embeddings": False}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "smollm3_window": (
        "SmolLM3Config",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "no_rope_layers": [1, 0, 0, 1],
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": ("Olmo2Config", {"num_key_value_heads": 4}),
    "olmo2_tied": ("Olmo2Config", {"tie_word_embeddings": True, "attention_bias": True}),
    "olmo3": ("Olmo3Config", {"sliding_window": WINDOW, "rope_scaling": _YARN}),
    "phi3": ("Phi3Config", {"sliding_window": WINDOW}),
    "phi4_mini": (
        "Phi3Config",
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32, "tie_word_embeddings": True},
    ),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.5,
            "logits_scaling": 0.7,
            "tie_word_embeddings": True,
        },
    ),
    "ministral": (
        "MinistralConfig",
        {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW, "head_dim": 8}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2_window": (
        "Qwen2Config",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
            "tie_word_embeddings": False,
        },
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 5, "sliding_window": WINDOW}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe_tied": (
        "Qwen3MoeConfig",
        {**_EXPERTS, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 6, "num_experts_per_tok": 3}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            # Caps low enough to bend the small logits of a random model.
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 24, "layer_types": None},
    ),
}


def make_model(family: str, **changes):
    """A float32 transformers model of `family`, with `changes` to its configuration.

    Every parameter is random, norms and biases, too.
    """
    name, extra = FAMILIES[family]
    if family == "gemma3_text":
        kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
        extra = {**extra, "layer_types": kinds}
    config = getattr(transformers, name)(**{**_SIZES, **extra, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in parameter_name and not family.startswith("gemma") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    return model


def save_model(family: str, directory: Path, **options) -> Path:
    make_model(family).save_pretrained(directory, **options)
    return directory


def load_decoder(directory: Path, stages: tuple[int, ...] | None = None, dtype=jnp.float32) -> Decoder:
    """Our decoder with the directory's weights."""
    config = ModelConfig.from_hf(read_hf_config(directory))
    stages = stages or (config.num_layers,)

    def make():
        rngs = nnx.Rngs(jax.random.key(0))
        return Decoder(config, stages=stages, spec=None, dtype=dtype, remat=False, rngs=rngs)

    graphdef, state = nnx.split(nnx.eval_shape(make))  # no time spent on random weights
    nnx.replace_by_pure_dict(state, load_params(directory, config, stages, dtype))
    return nnx.merge(graphdef, state)


def padded_batch() -> tuple[np.ndarray, np.ndarray]:
    """Random tokens [3, T] and bool mask of real ones: a full row, and two with padding at the end."""
    tokens = np.random.default_rng(0).integers(3, VOCAB, (3, NUM_TOKENS))
    real = np.arange(NUM_TOKENS) < np.array([NUM_TOKENS, NUM_TOKENS - 4, 9])[:, None]
    return np.where(real, tokens, 0), real


def decoder_logits(model: Decoder, tokens: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Float32 logits [B, T, V] of right-padded rows."""
    num_tokens = tokens.shape[1]
    causal = np.tril(np.ones((num_tokens, num_tokens), bool))
    mask = causal[None] & real[:, None, :]
    positions = np.broadcast_to(np.arange(num_tokens), tokens.shape)
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, tokens, positions, mask):
        model = nnx.merge(graphdef, state)
        hidden, _ = model.run_stages(model.embed_tokens(tokens), model.context(positions, mask))
        return model.logits(hidden)

    return np.asarray(run(state, jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(mask)))


def torch_logits(model, tokens: np.ndarray, real: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(real.astype(np.int64)))
    return out.logits.float().numpy()


def greedy_prompts() -> np.ndarray:
    """Random prompts [2, 9], longer than a window."""
    return np.random.default_rng(1).integers(3, VOCAB, (2, 9))


def decoder_greedy(model: Decoder, prompts: np.ndarray, num_tokens: int) -> np.ndarray:
    """The likeliest tokens after each prompt, one by one through our cache: int[B, num_tokens]."""
    graphdef, params = nnx.split(model)
    rows = len(prompts)
    return np.asarray(
        generate(
            PolicyParams(params, nnx.State({}), nnx.State({})),
            prompts.astype(np.int32),
            np.zeros(rows, np.int32),
            None,
            row_keys(0, np.arange(rows)),
            SamplingSettings.of(rows, temperature=0.0),
            np.array([-1], np.int32),
            graphdef=graphdef,
            max_new_tokens=num_tokens,
            filtered=False,
        ).tokens
    )


def torch_greedy(model, prompts: np.ndarray, num_tokens: int) -> np.ndarray:
    """The same by transformers' `generate`."""
    with torch.no_grad():
        return model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(prompts.shape, dtype=torch.long),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
        )[:, prompts.shape[1] :].numpy()


def rewrite_config(directory: Path, **changes) -> None:
    """Change keys of config.json; None removes one."""
    path = directory / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
