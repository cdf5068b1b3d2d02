"""Compiled rewards are those of the decoded text: fitted bases over hidden states, and jittable columns."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.methods.columns import column_basis
from rewards.types import PromptPart, Quadratic
from rlhf.phi import encoder, on_device
from rlhf.phi.columns import table
from rlhf.phi.columns.config import ColumnConfig
from rlhf.phi.columns.table import as_they_are
from rlhf.phi.on_host import EncoderFeatures, HostReward, texts_of
from rlhf.phi.pooling import pooled_texts
from rlhf.phi.reward import Can, PromptRows
from rlhf.policy import store as policy_store
from rlhf.policy.sampling import left_pad
from rlhf.policy.scoring import rows_of, with_lower_states
from rlhf.train.rl.rollout import Rollout
from tests.rlhf.tiny import write_model
from tests.rlhf.train.rl.reward_runs import make_run

SLOTS = 5
TEXTS = [
    "item 3",
    "item 12 ? 7",
    "item",
    "",
    "1 2 3 4 5",
]  # the last one fills all slots: cut off, no stop token
PROMPTS = ["Which ?", "item 4 item 5 Which ?", "Which ?", "? ? ?", "Which item ?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("basis") / "model")


@pytest.fixture(scope="module")
def base(model):
    return policy_store.load_base(model, adapter_layers=1, dtype="float32")


def make_rollout(tokenizer, stop=None):
    """What a sampler hands over for TEXTS: rubbish after the end, as a decoder with fixed slots may leave it."""
    prompts, starts = left_pad([tokenizer.encode_prompt(prompt) for prompt in PROMPTS])
    completions = np.full((len(TEXTS), SLOTS), 9, np.int32)
    mask, ended = np.zeros((len(TEXTS), SLOTS), bool), np.zeros(len(TEXTS), bool)
    for row, text in enumerate(TEXTS):
        ids = [*tokenizer.encode_completion(text)[:-1], tokenizer.end_id if stop is None else stop]
        ended[row] = len(ids) <= SLOTS
        ids = ids[:SLOTS]
        completions[row, : len(ids)], mask[row, : len(ids)] = ids, True
    assert ended.tolist() == [True, True, True, True, False]
    tokens = np.concatenate([prompts, completions], axis=1)
    zeros = jnp.zeros(mask.shape)
    return Rollout(
        *(jnp.asarray(tokens), jnp.asarray(starts), jnp.asarray(mask)),
        *(zeros, zeros, zeros, zeros[..., None]),
        rows_of(jnp.asarray(tokens), jnp.asarray(starts), None, SLOTS),
        *(jnp.zeros((len(TEXTS), 3)), None, jnp.asarray(ended)),
    )


def opened(reward):
    return reward.kernel, reward.arrays


def items():
    columns = {"answer": [f"a{n}" for n in range(len(TEXTS))]}
    rows = PromptRows(tuple(PROMPTS), np.arange(1, len(TEXTS) + 1), columns, "prompts.jsonl")
    return rows.with_texts(TEXTS)


def expected(run):
    """φ as `chorus rewards score` reads it: no company within the prompt, so the stored mean."""
    return Readout.of(run.basis).features(encoder.embed_items(items(), run.basis.encoder))


@pytest.mark.parametrize(
    ("layer", "pool"), [(-1, "mean"), (-1, "last"), (1, "mean"), (1, "last"), (0, "mean")]
)
def test_it_is_the_reward_of_the_text(base, tmp_path, layer, pool):
    run = make_run(base, tmp_path / "run", layer=layer, pool=pool)
    reward, arrays = opened(on_device.compiled_basis(run, base))
    np.testing.assert_allclose(reward(arrays, make_rollout(base.tokenizer)), expected(run), atol=1e-4)
    np.testing.assert_allclose(EncoderFeatures(run.basis, chunk=2)(items()).phi, expected(run), atol=1e-4)


@pytest.mark.parametrize(("layer", "pool"), [(1, "mean"), (1, "last"), (-1, "mean")])
def test_activations_under_the_adapters_are_shared(base, tmp_path, layer, pool):
    """They are read where every completion closed itself, computed anew where one was cut off; the reward is the same."""
    run = make_run(base, tmp_path / "run", layer=layer, pool=pool)
    reward, arrays = opened(on_device.compiled_basis(run, base))
    assert reward.pooling.shared
    graphdef, params, _ = policy_store.base_state(base, None, "float32", False)
    rollout = make_rollout(base.tokenizer)
    whole = jax.tree.map(lambda leaf: leaf[:4], rollout)
    for rows in (rollout, whole):
        known = with_lower_states(graphdef, params, rows.rows)
        found = reward(arrays, rows._replace(rows=known))
        np.testing.assert_allclose(found, expected(run)[: len(rows.tokens)], atol=1e-4)
    spoilt = reward(arrays, whole._replace(rows=known._replace(hidden=jnp.zeros_like(known.hidden))))
    assert np.abs(np.asarray(spoilt) - expected(run)[:4]).max() > 1e-2  # it was read
    embed = {"embedding": base.tree["embed"]["embedding"] * 1.001}
    moved = dataclasses.replace(base, tree={**base.tree, "embed": embed})
    assert not on_device.compiled_basis(run, moved).kernel.pooling.shared


@pytest.mark.parametrize("layer", [1, -1])
def test_beginnings_are_rewarded_as_if_they_were_the_whole(base, tmp_path, layer):
    """Before token t: φ of the first t tokens, read by themselves; nothing is known of token t or of what follows."""
    run = make_run(base, tmp_path / "run", layer=layer)
    reward, arrays = opened(on_device.compiled_basis(run, base))
    rollout = make_rollout(base.tokenizer)
    graphdef, params, _ = policy_store.base_state(base, None, "float32", False)
    known = rollout._replace(rows=with_lower_states(graphdef, params, rollout.rows))
    found = [np.asarray(reward.beginnings(arrays, rows)) for rows in (rollout, known)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert not found[0][:, 0].any()
    width = rollout.tokens.shape[1] - SLOTS
    for row in range(len(TEXTS)):
        for count in range(1, int(rollout.mask[row].sum())):
            tokens = rollout.tokens[row, int(rollout.starts[row]) : width + count][None]
            member = jnp.arange(tokens.shape[1])[None] >= tokens.shape[1] - count
            start = jnp.zeros(1, jnp.int32)
            alone = pooled_texts(reward.pooling, arrays.params, tokens, start, member)
            np.testing.assert_allclose(found[0][row, count], arrays.readout(alone)[0], atol=1e-4)


def test_what_compiled_and_host_rewards_can_do(base, tmp_path):
    """A trainer asks `can`; called as a reward, a compiled one gives what its kernel gives."""
    rows = PromptRows(tuple(PROMPTS), np.arange(1, len(TEXTS) + 1), {}, "prompts.jsonl")
    for pool in ("mean", "last"):
        run = make_run(base, tmp_path / pool, pool=pool)
        compiled = on_device.compiled_basis(run, base)
        assert compiled.can == Can(compiled=True, beginnings=pool == "mean", tokens=False)
        host = HostReward(EncoderFeatures(run.basis), base.tokenizer)
        assert host.can == Can(compiled=False, beginnings=False, tokens=False) and host.kernel is None
        rollout = make_rollout(base.tokenizer)
        for reward in (compiled, host):
            np.testing.assert_allclose(reward(rollout, rows).phi, expected(run), atol=1e-4)


def test_a_reading_of_the_closing_token_has_no_beginnings(base, tmp_path):
    reward, arrays = opened(on_device.compiled_basis(make_run(base, tmp_path / "run", pool="last"), base))
    with pytest.raises(ValueError, match="reads the closing token alone"):
        reward.beginnings(arrays, make_rollout(base.tokenizer))


def test_ideal_points_too(base, tmp_path):
    square = np.random.default_rng(5).normal(size=(base.config.width, 2)).astype(np.float32)
    run = make_run(base, tmp_path / "run", quadratic=Quadratic(square))
    reward, arrays = opened(on_device.compiled_basis(run, base))
    np.testing.assert_allclose(reward(arrays, make_rollout(base.tokenizer)), expected(run), atol=1e-4)


def test_any_stop_token_closes_a_completion(base, tmp_path):
    """A model may stop at several tokens; the text is the same, and so is its reward."""
    run = make_run(base, tmp_path / "run", pool="last")
    reward, arrays = opened(on_device.compiled_basis(run, base))
    other = reward(arrays, make_rollout(base.tokenizer, stop=0))
    np.testing.assert_allclose(other, expected(run), atol=1e-4)


def test_the_shift_of_a_prompt_cancels_within_its_group(base, tmp_path):
    """Centred within prompts (the fit) or by the stored mean (one completion): the same differences."""
    run = make_run(base, tmp_path / "run")
    reward, arrays = opened(on_device.compiled_basis(run, base))
    single = np.asarray(reward(arrays, make_rollout(base.tokenizer)))
    among = encoder.items_phi(run.basis, items())
    assert PROMPTS[0] == PROMPTS[2]
    np.testing.assert_allclose(single[0] - single[2], among[0] - among[2], atol=1e-4)
    assert np.abs(single[0] - among[0]).max() > 1e-2


def test_text_of_a_rollout(base):
    assert texts_of(make_rollout(base.tokenizer), base.tokenizer) == TEXTS


def test_other_tokens_are_not_compiled(base, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"item"', '"thing"'))
    foreign = policy_store.load_base(other, adapter_layers=None, dtype="float32")
    run = make_run(base, tmp_path / "run")
    assert on_device.compiled_basis(run, foreign) is None
    assert on_device.compiled_basis(run, base) is not None


def test_changed_encoder_weights_are_refused(base, tmp_path):
    run = make_run(dataclasses.replace(base, fingerprint="0" * 64), tmp_path / "run")
    with pytest.raises(UserError, match="weights differ"):
        on_device.compiled_basis(run, base)


def test_prototypes_that_depend_on_the_prompt_are_refused(base, tmp_path):
    width, rng = base.config.width, np.random.default_rng(0)
    part = PromptPart(
        rng.normal(size=(width, 2)).astype(np.float32), rng.normal(size=(3, 2, 2)).astype(np.float32), "mean"
    )
    square = rng.normal(size=(width, 2)).astype(np.float32)
    run = make_run(base, tmp_path / "run", quadratic=Quadratic(square, part))
    with pytest.raises(UserError, match="depend on the prompt.*fit pal_a"):
        on_device.compiled_basis(run, base)


FUNCTIONS = """
import jax.numpy as jnp

def length(completion_mask):
    return completion_mask.sum(axis=1)

def first_wins(completion_tokens, completion_mask, prompt_tokens, prompt_mask):
    seen = jnp.any((completion_tokens[:, :, None] == prompt_tokens[:, None, :]) & prompt_mask[:, None, :], axis=2)
    return jnp.where(completion_mask, seen * 0.5, 7.0)

def wants_text(completions):
    return completions

def scalar(completion_tokens):
    return completion_tokens.sum()

def branches(completion_tokens):
    return [1.0 if completion_tokens[0, 0] > 3 else 0.0]
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "jit_rewards.py"
    path.write_text(FUNCTIONS)
    return path


def jit_settings(model, functions, *names):
    return as_they_are(
        [ColumnConfig(name=n, kind="jit", function=f"{functions}:{n}", model=str(model)) for n in names]
    )


def test_jittable_columns_give_what_they_give_for_the_text(base, model, functions):
    """The compiled path on sampled tokens, and the column on decoded text, agree where nothing was cut off."""
    settings = jit_settings(model, functions, "length", "first_wins")
    reward, arrays = opened(on_device.compiled_columns(settings, None))
    rollout = make_rollout(base.tokenizer)
    found = np.asarray(reward(arrays, rollout))
    assert found.shape == (len(TEXTS), SLOTS, 2) and not found[~np.asarray(rollout.mask)].any()
    assert found[:, :, 0].sum(axis=1).tolist() == [3, 5, 2, 1, 5]  # tokens with the stop token
    assert found[0, :, 0].tolist() == [0, 0, 3, 0, 0]  # at the last token
    assert found[1, :, 1].tolist() == [0.5, 0.0, 0.5, 0.0, 0.0]  # "item" and "?" stand in the prompt
    by_text = table.evaluate(items(), settings, gates=False).values
    np.testing.assert_allclose(found.sum(axis=1)[:4], by_text[:4])


def test_jittable_columns_through_a_gauge(base, model, functions, tmp_path):
    settings = jit_settings(model, functions, "length", "first_wins")
    mean, sd = np.array([2.0, 0.25]), np.array([0.5, 4.0])

    basis = column_basis(("length", "first_wins"), mean, sd, settings, "")
    reward, arrays = opened(on_device.compiled_columns(settings, basis))
    assert reward.per_token and not reward.reads_beginnings
    found = np.asarray(reward(arrays, make_rollout(base.tokenizer))).sum(axis=1)
    values = table.evaluate(items(), settings, gates=False).values
    np.testing.assert_allclose(found[:4], ((values - mean) / sd)[:4], atol=1e-6)


BAD_FUNCTIONS = {
    "wants_text": "needs 'completions'; a jit function takes completion_tokens",
    "scalar": r"returns shape \[\] for 3 completions of 5 tokens; return \[3\] or \[3, 5\]",
    "branches": "cannot be traced, TracerBoolConversionError",
    "absent": "has no function 'absent'",
}


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_bad_jittable_functions(model, functions, name):
    settings = {"columns": [{"settings": {"name": name, "function": f"{functions}:{name}", "gate": None}}]}
    with pytest.raises(UserError, match=BAD_FUNCTIONS[name]):
        on_device.compiled_columns(settings, None)
