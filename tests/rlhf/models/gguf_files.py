"""GGUF files for the tests, written the way llama.cpp's convert_hf_to_gguf.py writes them."""

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

QuantType = gguf.GGMLQuantizationType

TEXTS = [
    "The capital of France is Paris, and 1234 trains leave it every day.",
    "  Double  spaces,\ttabs\n\nand new lines\r\n 's 'LL don't I'VE",
    "Straße, naïve café, e\u0301 combining, 北京 東京, мир, 😀👍🏽, ١٢٣ ½ ²",
    "x=3.14159; y += 2**10  # code(with_symbols)!?!  ...\n    indented",
    "",
    " ",
    "<|im_start|>user\nHello<|im_end|>\n",
]
CHAT = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_vocabulary(size: int = 400) -> tuple[list[str], list[str]]:
    """Tokens in id order and merges ("left right") of a byte-level BPE trained on `TEXTS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokens, [f"{left} {right}" for left, right in merges]


def write_gguf(
    path: Path, model, architecture: str, *, pre: str = "smollm", kind=QuantType.F32, metadata=None
):
    """Store a transformers model with a small vocabulary.

    Args:
      kind: type of the matrices; vectors stay float32, as llama.cpp keeps them.
      metadata: function that gets the writer, for more keys and tensors.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture != "llama":
        writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 8)
    if architecture.startswith("gemma") and architecture != "gemma":
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    add_tokenizer(writer, pre, config.vocab_size)
    if metadata is not None:
        metadata(writer)
    for name, array in gguf_tensors(model, architecture).items():
        if array.ndim == 2 and kind != QuantType.F32:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, pre: str, size: int) -> None:
    tokens, merges = train_vocabulary(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)


def gguf_tensors(model, architecture: str) -> dict[str, np.ndarray]:
    names = gguf.get_tensor_name_map(
        next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        model.config.num_hidden_layers,
    )
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            # permute() of convert_hf_to_gguf.py
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = array.swapaxes(1, 2).reshape(tensor.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        stem, suffix = name.rsplit(".", 1)
        tensors[f"{names.get_name(stem)}.{suffix}"] = np.ascontiguousarray(array)
    return tensors
