"""A small random sentence encoder in the layout of sentence-transformers, made by transformers."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the trip is a cheap dear long short ##er ##est item no one".split()
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
MAX_TOKENS = 24


KINDS = {
    "bert": (transformers.BertConfig, transformers.BertModel, WORDS),
    # Padding is token 1.
    "mpnet": (
        transformers.MPNetConfig,
        transformers.MPNetModel,
        ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *WORDS[4:]],
    ),
}


def write(directory: Path, *, family="bert", pooling=MEAN, normalise=True, **changes) -> Path:
    """`changes`: to the configuration of the model."""
    make_config, make_model, words = KINDS[family]
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = make_config(vocab_size=len(words) + 10, max_position_embeddings=40, **{**sizes, **changes})
    torch.manual_seed(0)
    model = make_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(("LayerNorm.weight" in name) + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer = Tokenizer(
        models.WordPiece({word: n for n, word in enumerate([*words, *"0123456789"])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, words.index(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=ends
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 2 + normalise]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (directory / "1_Pooling").mkdir()
    for name, value in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False}),
    ):
        (directory / name).write_text(json.dumps(value))
    return directory
