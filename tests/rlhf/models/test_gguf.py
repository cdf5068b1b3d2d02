"""GGUF → Hugging Face directory, against the model in the file and transformers' own GGUF reader."""

import json
import os

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from rewards.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.gguf import convert_gguf
from rlhf.models.load import load_params, read_hf_config, resolve_model
from rlhf.models.rope import Rope, frequencies
from rlhf.models.tokenizer import Tokenizer
from tests.rlhf.models import families, gguf_files
from tests.rlhf.models.gguf_files import QuantType

VOCAB = 400
ARCHITECTURES = {
    "llama": "llama",
    "smollm2": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
# GGUF does not carry these: llama.cpp has them in code, so the models of the test must use the usual values.
FIXED = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
}


def make_model(family, **changes):
    return families.make_model(family, vocab_size=VOCAB, **{**FIXED.get(family, {}), **changes})


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_converted_model_is_the_model(family, tmp_path):
    """transformers loads the directory, and its logits are those of the model the file was made from."""
    model = make_model(family)
    path = gguf_files.write_gguf(tmp_path / "m.gguf", model, ARCHITECTURES[family])
    directory = convert_gguf(path, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    assert type(loaded) is type(model)
    tokens, real = families.padded_batch()
    expected = families.torch_logits(model, tokens, real)
    # Gemma's norms went through x + 1 − 1.
    np.testing.assert_allclose(families.torch_logits(loaded, tokens, real), expected, atol=1e-4)
    config = ModelConfig.from_hf(read_hf_config(directory))
    assert config == ModelConfig.from_hf(json.loads(model.config.to_json_string(use_diff=False)))
    load_params(directory, config, (config.num_layers,), np.float32)


@pytest.mark.parametrize("kind", [QuantType.Q8_0, QuantType.Q4_1])
def test_quantised_tensors_equal_transformers_reader(kind, tmp_path):
    model = make_model("llama", hidden_size=64, intermediate_size=96, tie_word_embeddings=True)
    path = gguf_files.write_gguf(tmp_path / "m.gguf", model, "llama", kind=kind)
    ours = load_file(convert_gguf(path, tmp_path / "out") / "model.safetensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").state_dict()
    assert set(theirs) - set(ours) <= {"lm_head.weight"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].float()), name
    difference = (
        ours["model.layers.0.mlp.up_proj.weight"] - model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    )
    assert 0 < difference.abs().max() < 0.2  # it was quantised


def test_stored_in_half_precision_only_when_exact(tmp_path):
    """A file of float16 values stays float16; with one value more precise it becomes float32."""
    model = make_model("llama").half().float()
    path = gguf_files.write_gguf(tmp_path / "half.gguf", model, "llama", kind=QuantType.F16)
    stored = load_file(convert_gguf(path, tmp_path / "half") / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert read_hf_config(tmp_path / "half")["dtype"] == "float16"
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[name].float(), tensor), name
    with torch.no_grad():
        model.model.norm.weight[0] = 1.0 + 2.0**-12
    path = gguf_files.write_gguf(tmp_path / "mixed.gguf", model, "llama", kind=QuantType.F16)
    stored = load_file(convert_gguf(path, tmp_path / "mixed") / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    assert stored["model.norm.weight"][0] == 1.0 + 2.0**-12


def test_llama3_scaling_is_recovered_from_the_factors(tmp_path):
    model = make_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, head_dim=64)
    rope = Rope(500000.0, "llama3", 32.0, 1.0, 4.0, 8192)
    factors = frequencies(Rope(500000.0), 64) / frequencies(rope, 64)
    assert factors.max() == 32 and factors.min() == 1

    def add(scale):
        return lambda writer: (
            writer.add_tensor("rope_freqs.weight", (factors * scale).astype(np.float32)),
            writer.add_rope_dimension_count(64),
        )

    path = gguf_files.write_gguf(tmp_path / "m.gguf", model, "llama", metadata=add(1.0))
    assert ModelConfig.from_hf(read_hf_config(convert_gguf(path, tmp_path / "out"))).rope == rope
    path = gguf_files.write_gguf(tmp_path / "odd.gguf", model, "llama", metadata=add(np.linspace(1, 1.5, 32)))
    with pytest.raises(UserError, match="rope_freqs.weight: not Llama 3 scaling"):
        convert_gguf(path, tmp_path / "odd")


def reference_tokenizer(pre, tokens, merges):
    """transformers' own tokenizer class with the same vocabulary."""
    vocab, pairs = {t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]
    if pre == "qwen2":
        return transformers.Qwen2Tokenizer(vocab=vocab, merges=pairs)
    return transformers.GPT2Tokenizer(vocab=vocab, merges=pairs)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2"])
def test_token_ids_equal_transformers(pre, tmp_path):
    path = gguf_files.write_gguf(tmp_path / "m.gguf", make_model("llama"), "llama", pre=pre)
    directory = convert_gguf(path, tmp_path / "out")
    ours = transformers.AutoTokenizer.from_pretrained(directory)
    reference = reference_tokenizer(pre, *gguf_files.train_vocabulary(VOCAB))
    for text in gguf_files.TEXTS[:-1]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text, add_special_tokens=False), text
        if pre == "gpt-2":  # qwen2 normalises to NFC
            assert ours.decode(ids) == text
    assert ours.encode(gguf_files.TEXTS[-1])[0] == 1  # special tokens are whole


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "in 1234 days", ["in", "Ġ", "1", "2", "3", "4", "Ġdays"]),
        ("gpt-2", "in 1234 days", ["in", "Ġ1234", "Ġdays"]),
        ("llama-bpe", "in 1234 days", ["in", "Ġ", "123", "4", "Ġdays"]),
        ("qwen2", "in 1234 days", ["in", "Ġ", "1", "2", "3", "4", "Ġdays"]),
        ("llama-bpe", "I'LL go\n\n x", ["I", "'LL", "Ġgo", "ĊĊ", "Ġx"]),
        ("gpt-2", "I'LL go\n\n x", ["I", "'", "LL", "Ġgo", "ĊĊ", "Ġx"]),
    ],
)
def test_text_is_cut_as_published(pre, text, pieces, tmp_path):
    """Where each rule cuts, from the regular expressions the families document."""
    path = gguf_files.write_gguf(tmp_path / "m.gguf", make_model("llama"), "llama", pre=pre)
    backend = transformers.AutoTokenizer.from_pretrained(
        convert_gguf(path, tmp_path / "out")
    ).backend_tokenizer
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_settings_travel(tmp_path):
    path = gguf_files.write_gguf(
        tmp_path / "m.gguf",
        make_model("llama"),
        "llama",
        pre="llama-bpe",
        metadata=lambda w: w.add_add_bos_token(True),
    )
    directory = convert_gguf(path, tmp_path / "out")
    assert transformers.GenerationConfig.from_pretrained(directory).eos_token_id == 2
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    assert (reference.bos_token, reference.eos_token, reference.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert reference.encode("x")[0] == 1 and reference.chat_template == gguf_files.CHAT
    tokenizer = Tokenizer(directory)
    assert tokenizer.eos_ids == (2,) and tokenizer.pad_id == 2


def test_tokenizer_beside_the_file_is_used(tmp_path):
    """The way out for tokenizers that cannot be rebuilt."""
    known = convert_gguf(
        gguf_files.write_gguf(tmp_path / "m.gguf", make_model("llama"), "llama"), tmp_path / "known"
    )
    odd = tmp_path / "odd"
    odd.mkdir()
    path = gguf_files.write_gguf(odd / "m.gguf", make_model("llama"), "llama", pre="tekken")
    with pytest.raises(
        UserError, match="tokenizer.ggml.pre: 'tekken' is not one of .*; put the model's tokenizer.json"
    ):
        convert_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (odd / name).write_bytes((known / name).read_bytes())
    assert Tokenizer(convert_gguf(path, tmp_path / "out")).encode_prompt("hi") == Tokenizer(
        known
    ).encode_prompt("hi")


def test_resolve_model_converts_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    path = gguf_files.write_gguf(tmp_path / "m.gguf", make_model("llama"), "llama")
    directory = resolve_model(path)
    stamp = (directory / "config.json").stat().st_mtime_ns
    assert resolve_model(str(path)) == directory and (directory / "config.json").stat().st_mtime_ns == stamp
    os.utime(path, ns=(1, 1))  # another file under the same name
    assert resolve_model(path) != directory


def test_bad_files_are_named(tmp_path):
    whole = gguf_files.write_gguf(tmp_path / "m.gguf", make_model("llama"), "llama").read_bytes()
    writer = gguf.GGUFWriter(tmp_path / "arch.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    cut = whole.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_uq.weight")
    cases = {
        "arch": (None, "general.architecture: 'mamba' is not supported"),
        "cut": (whole[:-4000], "not a whole GGUF file"),
        "header": (whole[:300], "not a whole GGUF file"),
        "empty": (b"", "not a whole GGUF file"),
        "text": (b"hello" * 100, "not a whole GGUF file"),
        "renamed": (cut, "tensor blk.0.ffn_up.weight is missing"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as error:
            convert_gguf(path, tmp_path / "out")
        assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
