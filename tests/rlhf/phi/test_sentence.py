"""A sentence encoder under rewards: fit, scores, a policy's reward, and that another encoder is refused."""

import json
import shutil
import types

import numpy as np
import pytest

import rewards
import rlhf
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.phi import encoder, sentence
from rlhf.phi.reward import PromptRows
from rlhf.train.rl import sources
from tests.rlhf.api.world import FIT, QUESTION, table
from tests.rlhf.models import sentence_files


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return sentence_files.write(tmp_path_factory.mktemp("sentence") / "encoder")


@pytest.fixture(scope="module")
def fitted(directory):
    return rewards.fit(rewards.read(table()).training, encoder=rlhf.encoder(directory), **FIT)


def test_rewards_of_new_texts_are_those_of_their_vectors(directory, fitted):
    settings = fitted.basis.basis.encoder
    assert settings["kind"] == "sentence" and settings["pool"] == "mean normalised"
    texts = ["item 3", "the trip"]
    items = PromptRows((QUESTION,) * 2, np.array([1, 2]), {}, "texts").with_texts(texts)
    expected = encoder.embed_items(items, settings)
    found = sentence.SentenceFeatures(fitted.basis.basis)(items).phi
    np.testing.assert_allclose(found, Readout.of(fitted.basis.basis).features(expected), atol=1e-5)
    assert fitted.score(QUESTION, texts).shape[0] == 2


def test_a_policy_reads_them_on_the_host(fitted):
    """As a trainer gets them: completions are decoded and embedded anew."""
    tokenizer = types.SimpleNamespace(decode=lambda ids, skip: " ".join(f"item {n}" for n in ids))
    config = types.SimpleNamespace(rollout=types.SimpleNamespace(skip_special_tokens=True, completions=2))
    reward = sources._reward_of(config, fitted.basis, types.SimpleNamespace(tokenizer=tokenizer))
    tokens = np.array([[9, 3, 1, 0], [9, 5, 1, 0]], np.int32)
    mask = np.array([[True, True, False]] * 2)
    completions = types.SimpleNamespace(tokens=tokens, mask=mask, ended=np.array([True, True]))
    prompts = PromptRows((QUESTION,) * 2, np.array([1, 2]), {}, "texts")
    expected = fitted.score(QUESTION, ["item 3", "item 5"])
    np.testing.assert_allclose(reward(completions, prompts).phi, expected, atol=1e-5)
    assert not reward.can.compiled


def test_layer_and_pool_are_not_its(directory):
    with pytest.raises(UserError, match="layer and pool are for language models"):
        rlhf.encoder(directory, layer=1)
    assert type(rlhf.encoder("all-minilm-l6-v2")) is type(rlhf.encoder(directory))


@pytest.fixture
def run(tmp_path, directory, capsys):
    """`chorus rewards fit` with a copy of the encoder."""
    own = shutil.copytree(directory, tmp_path / "encoder")
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in table()))
    (tmp_path / "fit.yaml").write_text(
        f"seed: 0\noutput_dir: {tmp_path / 'run'}\ndata: {{path: {data}}}\nmodel: {{name: {own}}}\n"
        "encoder: {kind: sentence}\nfit: {num_basis: 2, dims: 4, rounds: 3}\nevaluation: {models: []}\ntrack: []\n"
    )
    status = cli.main(["rewards", "fit", str(tmp_path / "fit.yaml")])
    assert status == 0, capsys.readouterr().err
    capsys.readouterr()
    return tmp_path


def test_commands_fit_score_and_notice_another_encoder(run, capsys):
    (run / "new.jsonl").write_text(json.dumps({"prompt": QUESTION, "completion": "item 11"}) + "\n")

    def score():
        given = ["rewards", "score", "--rewards", str(run / "run"), "--input", str(run / "new.jsonl")]
        status = cli.main([*given, "--output", str(run / "scored.jsonl")])
        return status, capsys.readouterr().err

    assert score()[0] == 0
    scored = json.loads((run / "scored.jsonl").read_text())
    assert np.isfinite(scored["reward"])
    pooling = run / "encoder" / "1_Pooling" / "config.json"
    before = pooling.read_text()
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    status, said = score()
    assert status == 2 and "1_Pooling/config.json" in said
    pooling.write_text(before)
    shutil.rmtree(run / "encoder")
    sentence_files.write(run / "encoder", hidden_size=32, num_hidden_layers=2)
    status, said = score()
    assert status == 2 and "weights differ" in said
