"""Sentence vectors against transformers with the pooling written out; what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers

from rewards.errors import UserError
from rlhf.models import fetch, positions
from rlhf.models.config import ModelConfig
from rlhf.models.load import read_hf_config
from rlhf.models.sentence import SentenceEncoder, buckets
from tests.rlhf.models import sentence_files

TEXTS = [
    "the trip is cheap",
    "",
    "  A longer trip, no item 3  ",
    "item 1 " * 30,
    "cheapest",
    "the trip is long " * 4,
    "x [SEP] y",
]


def reference(
    directory, texts=TEXTS, *, pools=("mean",), normalise=True, max_tokens=sentence_files.MAX_TOKENS
):
    """What sentence-transformers does with AutoModel: one padded batch, pooled over what is attended to."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    batch = tokenizer(
        [text.strip() for text in texts],
        padding=True,
        truncation=True,
        max_length=max_tokens,
        return_tensors="pt",
    )
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    seen = batch["attention_mask"][..., None].float()
    total, count = (hidden * seen).sum(1), seen.sum(1)
    found = {
        "cls": hidden[:, 0],
        "max": hidden.masked_fill(seen == 0, -1e9).max(1).values,
        "mean": total / count,
        "mean_sqrt_len_tokens": total / count.sqrt(),
    }
    vectors = torch.cat([found[name] for name in pools], 1)
    return (torch.nn.functional.normalize(vectors, dim=1) if normalise else vectors).numpy()


@pytest.mark.parametrize(
    ("pooling", "pools", "normalise", "changes"),
    [
        (sentence_files.MEAN, ("mean",), True, {}),
        ({"pooling_mode_cls_token": True}, ("cls",), False, {"hidden_act": "gelu_new"}),
        (
            {"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_max_tokens": True},
            ("max", "mean_sqrt_len_tokens"),
            False,
            {"hidden_act": "relu"},
        ),
        ({"pooling_mode": "mean"}, ("mean",), False, {}),
        (sentence_files.MEAN, ("mean",), True, {"family": "mpnet"}),
        ({"pooling_mode_cls_token": True}, ("cls",), False, {"family": "mpnet", "hidden_act": "relu"}),
    ],
)
def test_vectors_equal_the_reference(tmp_path, pooling, pools, normalise, changes):
    directory = sentence_files.write(tmp_path / "encoder", pooling=pooling, normalise=normalise, **changes)
    encoder = SentenceEncoder(directory)
    found = encoder.embed(TEXTS)
    expected = reference(directory, pools=pools, normalise=normalise)
    assert found.shape == (len(TEXTS), encoder.width)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 9, 514])
def test_relative_positions_are_those_of_the_reference(length):
    places = torch.arange(length)
    expected = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.relative_position_bucket(
        places[None, :] - places[:, None]
    )
    np.testing.assert_array_equal(positions.buckets(length), expected.numpy())


@pytest.mark.parametrize("family", sentence_files.KINDS)
def test_a_vector_depends_on_its_text_alone(tmp_path, caplog, family):
    encoder = SentenceEncoder(sentence_files.write(tmp_path / "encoder", family=family))
    together = encoder.embed(TEXTS)
    assert "1 of 7 texts are longer than the 24 tokens" in caplog.text
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.embed([text])[0], vector, atol=1e-6)
    assert encoder.embed([]).shape == (0, 32)


def test_every_text_is_in_one_bucket_of_few():
    lengths = [1, 16, 17, 200, 32, 33, 256]
    found = buckets(lengths, 256)
    assert [size for size, _ in found] == [16, 32, 64, 256]
    assert sorted(np.concatenate([index for _, index in found])) == list(range(7))
    assert all(lengths[i] <= size for size, index in found for i in index)


def _rewritten(directory, name, change):
    path = directory / name
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(change(value)))


DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("modules.json", lambda old: [*old, DENSE], "module 'Dense' is not implemented"),
        ("modules.json", lambda old: old[:1], "must be Transformer, Pooling and at most one Normalize"),
        ("modules.json", lambda old: {}, "must be a list of modules"),
        (
            "1_Pooling/config.json",
            lambda old: {"pooling_mode_weightedmean_tokens": True},
            "weightedmean.*not impl",
        ),
        ("1_Pooling/config.json", lambda old: {"pooling_mode": "lasttoken"}, "'lasttoken'.*not implemented"),
        ("1_Pooling/config.json", lambda old: {}, "no pooling mode is on"),
        ("1_Pooling/config.json", lambda old: old | {"include_prompt": False}, "include_prompt: False"),
        (
            "1_Pooling/config.json",
            lambda old: {"pooling_mode_mean_tokens": "true"},
            "mean_tokens: must be true or false, not 'true'",
        ),
        ("1_Pooling/config.json", lambda old: old | {"pooling_mode_cls_token": 1}, "true or false, not 1"),
        ("1_Pooling/config.json", lambda old: old | {"poling": True}, "poling: is not known"),
        (
            "1_Pooling/config.json",
            lambda old: old | {"word_embedding_dimension": 99},
            "dimension: 99, but .* hidden_size 32",
        ),
        ("config.json", lambda old: old | {"model_type": "xlm-roberta"}, "model_type: 'xlm-roberta'"),
        (
            "config.json",
            lambda old: old | {"position_embedding_type": "relative_key"},
            "position_embedding_type",
        ),
        ("config.json", lambda old: old | {"is_decoder": True}, "is_decoder: True"),
        ("config.json", lambda old: old | {"rope_theta": 1e4}, "rope_theta: 10000.0 is not supported"),
        ("config.json", lambda old: old | {"num_attention_heads": 5}, "5 does not divide hidden_size"),
        ("config.json", lambda old: old | {"num_hidden_layers": 2}, "unexpected tensor encoder.layer.2"),
        ("config.json", lambda old: old | {"num_hidden_layers": 4}, "tensor encoder.layer.3.* missing"),
        (
            "config.json",
            lambda old: old | {"intermediate_size": 40},
            "shape .48, 32., config.json asks for .40",
        ),
        ("config.json", lambda old: old | {"vocab_size": 9}, "tokenizer.json: has 28 tokens"),
        (
            "sentence_bert_config.json",
            lambda old: {"max_seq_length": 99},
            "max_seq_length: .* 3 to 40, not 99",
        ),
        (
            "sentence_bert_config.json",
            lambda old: {"do_lower_case": "no"},
            "do_lower_case: must be true or false, not 'no'",
        ),
        ("sentence_bert_config.json", lambda old: {"max_sequence": 7}, "max_sequence: 7 is not known"),
        ("sentence_bert_config.json", lambda old: {"lowercase": True}, "lowercase: True is not known"),
        ("sentence_bert_config.json", lambda old: {"model_args": {"a": 1}}, "model_args: .* is not known"),
        (
            "config_sentence_transformers.json",
            lambda old: {"default_prompt_name": ["query"]},
            "default_prompt_name: .*'query'.* is none of prompts",
        ),
        (
            "config_sentence_transformers.json",
            lambda old: {"default_prompt_name": "query", "prompts": {}},
            "default_prompt_name: 'query' is none of prompts",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, name, change, message):
    directory = sentence_files.write(tmp_path / "encoder")
    _rewritten(directory, name, change)
    with pytest.raises(UserError, match=message):
        SentenceEncoder(directory)


def test_a_default_prompt_and_lower_case_are_read(tmp_path):
    directory = sentence_files.write(tmp_path / "encoder")
    plain = SentenceEncoder(directory).embed(["no the trip"])
    settings = {"default_prompt_name": "no", "prompts": {"no": "no "}}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(SentenceEncoder(directory).embed(["the trip"]), plain, atol=1e-6)


def test_it_is_no_language_model(tmp_path):
    directory = sentence_files.write(tmp_path / "encoder")
    with pytest.raises(UserError, match="encoder of sentences.*encoder.kind: sentence"):
        ModelConfig.from_hf(read_hf_config(directory))


@pytest.mark.download
@pytest.mark.parametrize(("name", "max_tokens"), [("all-minilm-l6-v2", 256), ("all-mpnet-base-v2", 384)])
def test_the_published_one_equals_the_reference(name, max_tokens):
    directory = fetch.fetch(name)
    found = SentenceEncoder(directory).embed(TEXTS)
    np.testing.assert_allclose(found, reference(directory, max_tokens=max_tokens), atol=1e-5)
