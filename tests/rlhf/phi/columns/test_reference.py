"""Certainty of a reference answer, against log-probs computed row by row without packing."""

import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.phi.columns.reference import ReferenceColumn, certainty, token_weights
from rlhf.policy import store as policy_store
from tests.rlhf.phi.columns.rows import completions
from tests.rlhf.tiny import causal_logits, write_model

TEXTS = {"Which 1": ["item 2 3", "item 4", "5 6 7 8"], "Which 2": ["item 9"]}


def answer(prompt, text):
    return "item 1 2 3" if prompt == "Which 1" else "4 5"


def column(tmp_path):
    if not (tmp_path / "lm").is_dir():
        write_model(tmp_path / "lm")
    return ReferenceColumn("sure", str(tmp_path / "lm"), "reference")


def by_hand(tmp_path, prefs):
    """log π of every answer token, each sequence in a row of its own."""
    base = policy_store.load_base(str(tmp_path / "lm"), adapter_layers=None, dtype="float32")
    graphdef, params, _ = policy_store.base_state(base, None, "float32", False)
    encode, out = base.tokenizer.encode_completion, []
    for index, text in zip(prefs.item_prompt, prefs.item_text, strict=True):
        prompt = prefs.prompts[index]
        read = [*base.tokenizer.encode_prompt(prompt), *encode(text)[:-1]]
        target = encode("\n" + answer(prompt, text))[:-1]
        ids = np.zeros((1, 32), np.int32)
        ids[0, : len(read) + len(target)] = [*read, *target]
        logits = np.asarray(causal_logits(graphdef, params, ids, None), np.float64)[0]
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        out.append(np.array([logprobs[len(read) + t - 1, token] for t, token in enumerate(target)]))
    return out


def test_certainty_is_the_weighted_log_prob_of_the_answer(tmp_path):
    prefs = completions(tmp_path, TEXTS, reference=answer)
    got = column(tmp_path).measure(prefs, fitting=True).values[:, 0]
    own = by_hand(tmp_path, prefs)
    spread = np.std(np.stack(own[:3]), axis=0)
    wanted = [float(row @ (spread / spread.sum())) for row in own[:3]] + [float(own[3].mean())]
    assert spread.min() > 1e-3 and len(own[0]) == 4
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    assert (got < 0).all()


def test_weights_follow_the_spread():
    logprobs = np.array([[-1.0, -2.0, -0.7], [-1.0, -4.0, -0.1]])
    np.testing.assert_allclose(token_weights(logprobs), [0, 1.0 / 1.3, 0.3 / 1.3])
    np.testing.assert_allclose(token_weights(logprobs[:1]), [1 / 3] * 3)


def test_prompts_are_weighted_apart(tmp_path):
    prefs = completions(tmp_path, {"p": ["a", "b"], "q": ["c"]})
    logprobs = [np.array([-1.0, -3.0]), np.array([-1.0, -5.0]), np.array([-0.7])]
    np.testing.assert_allclose(certainty(prefs, logprobs), [-3.0, -5.0, -0.7])


def test_identity_follows_the_weights(tmp_path):
    first = column(tmp_path).identity()
    write_model(tmp_path / "other", seed=1)
    assert ReferenceColumn("sure", str(tmp_path / "other"), "reference").identity() != first
    assert ReferenceColumn("sure", str(tmp_path / "lm"), "gold").identity() != first


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda p, t: None, "row 1: reference is None; column 'sure' needs a reference answer in every row"),
        (lambda p, t: 7, "row 1: reference is 7"),
        (lambda p, t: t, "row 2: reference differs from that of another row with the same prompt"),
        (lambda p, t: "1 " * 70, "row 1: prompt, completion and reference have 75 tokens"),
    ],
)
def test_what_the_data_lacks_is_named(tmp_path, reference, message):
    prefs = completions(tmp_path, TEXTS, reference=reference)
    with pytest.raises(UserError, match=message):
        column(tmp_path).measure(prefs, fitting=True)


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no column 'reference'.*columns: note"):
        column(tmp_path).measure(completions(tmp_path, TEXTS, note=lambda p, t: 1), fitting=True)
