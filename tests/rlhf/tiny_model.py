"""A random model for tests of whole commands: two layers, 64 tokens of context, a word tokenizer."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from rlhf.models import layout
from rlhf.models.config import ModelConfig

WORDS = ["<unk>", "<eos>", "Which", "?", "item", *map(str, range(40))]


def write_model(directory: Path, seed: int = 0) -> Path:
    """Write a Hugging Face directory of the Llama family."""
    directory.mkdir(parents=True)
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": 1,
    }
    (directory / "config.json").write_text(json.dumps(raw))
    config, rng, tensors = ModelConfig.from_hf(raw), np.random.default_rng(seed), {}
    names = {leaf.name: leaf for leaf in layout.top_leaves(config)}
    for layer in range(config.num_layers):
        names |= {layout.layer_name(layer, leaf): leaf for leaf in layout.layer_leaves(config)}
    for name, leaf in names.items():
        shape = layout.file_shape(leaf)
        tensors[name] = (rng.normal(size=shape) * 0.1 + (len(shape) == 1)).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "<eos>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
