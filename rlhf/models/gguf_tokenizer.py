"""The tokenizer inside a GGUF file → Hugging Face tokenizer files, without torch.

Only byte-level BPE is rebuilt, and only with a known pre-tokenizer: `tokenizer.ggml.pre` names a splitting
rule that llama.cpp holds in code (src/llama-vocab.cpp), so a rule that is not in the table cannot be guessed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from rewards.errors import UserError
from rewards.files import JSONObject, write_json

CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType

# The splitting rules as the families publish them in their tokenizer.json.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class _Rule(NamedTuple):
    """How text is cut before BPE; whole-word vocabulary entries may skip the merges (Llama 3)."""

    split: Callable[[], list[pre_tokenizers.PreTokenizer]]
    ignore_merges: bool = False
    normalizer: Callable[[], normalizers.Normalizer] | None = None


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


RULES = {
    "gpt-2": _Rule(lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
    "smollm": _Rule(
        lambda: [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "llama-bpe": _Rule(lambda: _split(_LLAMA3), ignore_merges=True),
    "qwen2": _Rule(lambda: _split(_QWEN2), normalizer=normalizers.NFC),
}


def check_tokenizer(metadata: JSONObject, source: Path) -> None:
    """Raise UserError, before any work is done, when the file's tokenizer cannot be rebuilt."""
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    proceed = (
        "put the model's tokenizer.json and tokenizer_config.json beside the file, or load its safetensors"
    )
    if model != "gpt2":
        raise UserError(f"{source}: tokenizer.ggml.model: {model!r} is not byte-level BPE (gpt2); {proceed}")
    if pre not in RULES:
        raise UserError(f"{source}: tokenizer.ggml.pre: {pre!r} is not one of {', '.join(RULES)}; {proceed}")
    for key in ("tokens", "merges", "token_type"):
        if f"tokenizer.ggml.{key}" not in metadata:
            raise UserError(f"{source}: tokenizer.ggml.{key}: missing; {proceed}")


def write_tokenizer(metadata: JSONObject, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; call `check_tokenizer` first.

    Args:
      metadata: the GGUF file's key-value pairs.
      directory: existing folder.
    """
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    rule = RULES[metadata["tokenizer.ggml.pre"]]
    # A merge is two pieces with a space between; a piece never holds a space, byte-level BPE writes it as Ġ.
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(rule.split())
    if rule.normalizer is not None:
        tokenizer.normalizer = rule.normalizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, k in zip(tokens, kinds, strict=True)
            if k == CONTROL
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED]
    )
    named = {
        role: tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    if metadata.get("tokenizer.ggml.add_bos_token") and "bos" in named:
        bos = named["bos"]
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
            ),
        ])  # fmt: skip
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {f"{role}_token": token for role, token in named.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = metadata[f"{metadata['general.architecture']}.context_length"]
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    write_json(directory / "tokenizer_config.json", settings)
