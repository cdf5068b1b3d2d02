"""Tiny random sequence-classification models of every family, made by transformers, with a word tokenizer."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.rlhf.models.families import FAMILIES

WORDS = ["<unk>", "<start>", "<end>", "<pad>", "user", "assistant", "system", *"abcdefghijklmnopqrstuvwxyz"]
TEMPLATE = (
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


def write_tokenizer(directory: Path, template: str | None = TEMPLATE) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "<end>"}
    settings |= {"pad_token": "<pad>"} | ({"chat_template": template} if template else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_classifier(
    directory: Path, family: str = "llama", *, num_labels: int = 1, seed: int = 0, **changes
):
    """Save a random …ForSequenceClassification and its tokenizer; returns the transformers model."""
    name, extra = FAMILIES[family]
    extra = {key: value for key, value in extra.items() if key not in ("layer_types",)}
    config = getattr(transformers, name)(**{**extra, **SIZES, "num_labels": num_labels, **changes})
    torch.manual_seed(seed)
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in parameter_name and not family.startswith("gemma") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model
