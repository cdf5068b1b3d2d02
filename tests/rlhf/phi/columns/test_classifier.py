"""Sequence-classification models against transformers itself."""

import json

import numpy as np
import pytest
import torch
import transformers

from rewards.errors import UserError
from rlhf.phi.columns.classifier import ClassifierColumn
from tests.rlhf.models.families import rewrite_config
from tests.rlhf.phi.columns.rows import completions
from tests.rlhf.phi.columns.tiny_hf import write_classifier, write_tokenizer
from tests.rlhf.tiny import write_model

TEXTS = {"a b c": ["d e", "d e f g h", "z"], "q": ["x y z x y z", "d e"]}


def expected(model, directory, prefs, *, chat=True):
    """transformers' own tokenizer, template and forward pass, one conversation at a time."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    out = []
    for prompt, text in zip(prefs.item_prompt, prefs.item_text, strict=True):
        content = prefs.prompts[prompt]
        if chat:
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": text}]
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        else:
            ids = [*tokenizer.encode(content + text), tokenizer.eos_token_id]
        with torch.no_grad():
            out.append(model(input_ids=torch.tensor([ids])).logits[0].numpy())
    return np.stack(out)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"])
def test_logits_equal_transformers(tmp_path, family):
    model = write_classifier(tmp_path / "rm", family)
    prefs = completions(tmp_path, TEXTS)
    measured = ClassifierColumn("rm", str(tmp_path / "rm")).measure(prefs, fitting=True)
    wanted = expected(model, tmp_path / "rm", prefs)
    assert measured.names == ("rm",) and np.ptp(wanted) > 0.1
    np.testing.assert_allclose(measured.values, wanted, atol=2e-5)


def test_several_labels_are_several_columns(tmp_path):
    names = {0: "helpful", 1: "safe", 2: "brief"}
    model = write_classifier(tmp_path / "rm", num_labels=3, id2label=names)
    prefs = completions(tmp_path, TEXTS)
    measured = ClassifierColumn("rm", str(tmp_path / "rm")).measure(prefs, fitting=True)
    assert measured.names == ("rm.helpful", "rm.safe", "rm.brief")
    np.testing.assert_allclose(measured.values, expected(model, tmp_path / "rm", prefs), atol=2e-5)


def test_the_default_two_labels_are_not_in_config_json(tmp_path):
    model = write_classifier(tmp_path / "rm", num_labels=2)
    assert "id2label" not in json.loads((tmp_path / "rm" / "config.json").read_text())
    prefs = completions(tmp_path, TEXTS)
    measured = ClassifierColumn("rm", str(tmp_path / "rm")).measure(prefs, fitting=True)
    np.testing.assert_allclose(measured.values, expected(model, tmp_path / "rm", prefs), atol=2e-5)


def test_a_pad_token_that_ends_turns_is_skipped_as_transformers_does(tmp_path):
    model = write_classifier(tmp_path / "rm", pad_token_id=2)  # <end>, the last token of every conversation
    prefs = completions(tmp_path, TEXTS)
    got = ClassifierColumn("rm", str(tmp_path / "rm")).measure(prefs, fitting=True).values
    np.testing.assert_allclose(got, expected(model, tmp_path / "rm", prefs), atol=2e-5)
    other = write_classifier(tmp_path / "other")
    assert np.abs(got - expected(other, tmp_path / "other", prefs)).min() > 1e-3  # pooled elsewhere


def test_without_a_template_prompt_and_completion_are_joined(tmp_path):
    model = write_classifier(tmp_path / "rm")
    write_tokenizer(tmp_path / "rm", template=None)
    prefs = completions(tmp_path, {"a b ": ["c d", "e"]})
    got = ClassifierColumn("rm", str(tmp_path / "rm")).measure(prefs, fitting=True).values
    np.testing.assert_allclose(got, expected(model, tmp_path / "rm", prefs, chat=False), atol=2e-5)


def test_values_are_remembered_until_the_weights_change(tmp_path, monkeypatch):
    write_classifier(tmp_path / "rm")
    prefs = completions(tmp_path, TEXTS)
    column = ClassifierColumn("rm", str(tmp_path / "rm"))
    first, identity = column.measure(prefs, fitting=True).values, column.identity()
    monkeypatch.setattr(
        "rlhf.phi.columns.classifier.load_classifier", lambda name: pytest.fail("computed again")
    )
    np.testing.assert_array_equal(column.measure(prefs, fitting=False).values, first)
    monkeypatch.undo()
    write_classifier(tmp_path / "rm", seed=1)
    assert column.identity() != identity
    assert np.abs(column.measure(prefs, fitting=True).values - first).max() > 1e-3


def test_other_architectures_are_named(tmp_path):
    write_model(tmp_path / "lm")
    with pytest.raises(
        UserError, match="'LlamaForCausalLM' cannot be a classifier column; supported: LlamaFor"
    ):
        ClassifierColumn("x", str(tmp_path / "lm")).identity()
    rewrite_config(tmp_path / "lm", architectures=["BertForSequenceClassification"], model_type="bert")
    with pytest.raises(UserError, match="'BertForSequenceClassification' cannot"):
        ClassifierColumn("x", str(tmp_path / "lm")).identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"score.weight has shape \[1, 16\]"),
        ({"id2label": {"1": "a"}}, "must number the labels from 0"),
    ],
)
def test_labels_that_do_not_fit_the_head(tmp_path, changes, message):
    write_classifier(tmp_path / "rm")
    rewrite_config(tmp_path / "rm", **changes)
    with pytest.raises(UserError, match=message):
        ClassifierColumn("rm", str(tmp_path / "rm")).measure(completions(tmp_path, TEXTS), fitting=True)


def test_a_text_that_is_too_long_is_named(tmp_path):
    write_classifier(tmp_path / "rm")
    prefs = completions(tmp_path, {"a": ["b", "c " * 60]})
    with pytest.raises(
        UserError, match="row 2: prompt and completion have 67 tokens, the context of .* holds 48"
    ):
        ClassifierColumn("rm", str(tmp_path / "rm")).measure(prefs, fitting=True)
