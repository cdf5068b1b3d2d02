"""Logits and greedy text of every family against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from rlhf.mesh import rules
from tests.rlhf.models import families
from tests.rlhf.models.families import FAMILIES

WINDOWED = (
    "mistral",
    "ministral",
    "qwen2_window",
    "smollm3_window",
    "olmo3",
    "phi3",
    "gemma2",
    "gemma3_text",
    "mixtral",
    "qwen3_moe_tied",
)
# Each alone is felt within the few positions of a test row.
FELT = {
    "llama3_rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "llama_linear_rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
    "llama_yarn": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "llama_yarn_all": {"rope_parameters": FAMILIES["llama_yarn"][1]["rope_parameters"]},
    "smollm3": {"no_rope_layer_interval": 3},
    "olmo3": {"rope_scaling": None},
    "phi4_mini": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.75}
    },
    "mixtral": {"num_experts_per_tok": 1},
    "qwen3_moe": {"norm_topk_prob": False},
    "granite": {"residual_multiplier": 1.0},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    reference = families.make_model(family)
    reference.save_pretrained(tmp_path)
    tokens, real = families.padded_batch()
    expected = families.torch_logits(reference, tokens, real)[real]
    # One family in two stages, so that the order of the layers across stages is tested, too.
    stages = (3, 1) if family == "gemma3_text" else (4,)
    actual = families.decoder_logits(families.load_decoder(tmp_path, stages), tokens, real)[real]
    assert np.abs(expected).max() > 1.0  # a model that says something
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("family", WINDOWED)
def test_parity_rows_feel_the_window(family):
    """The rows above are long enough that a decoder that ignores the window would be found out."""
    tokens, real = families.padded_batch()
    narrow = families.torch_logits(families.make_model(family), tokens, real)
    wide = families.torch_logits(families.make_model(family, sliding_window=1000), tokens, real)
    assert np.abs(narrow - wide)[real].max() > 0.01


@pytest.mark.parametrize("family", FELT)
def test_parity_rows_feel_what_is_special(family):
    tokens, real = families.padded_batch()
    special = families.torch_logits(families.make_model(family), tokens, real)
    plain = families.torch_logits(families.make_model(family, **FELT[family]), tokens, real)
    assert np.abs(special - plain)[real].max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_transformers(family, tmp_path):
    """Token by token through our cache, longer than a window, against `generate`."""
    reference = families.make_model(family)
    reference.save_pretrained(tmp_path)
    prompts = families.greedy_prompts()
    expected = families.torch_greedy(reference, prompts, 12)
    found = families.decoder_greedy(families.load_decoder(tmp_path), prompts, 12)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_a_token_of_a_mixture_depends_on_no_other_in_its_layer(family, tmp_path):
    """Dropless: however many tokens choose an expert. And every expert and the router have a gradient."""
    decoder = families.load_decoder(families.save_model(family, tmp_path))
    rules.specs(nnx.to_pure_dict(nnx.state(decoder)))  # none without a rule of how it is divided
    graphdef, state = nnx.split(decoder.stages[0])
    layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[1], state)).mlp
    x = jax.random.normal(jax.random.key(0), (1, 7, 32))
    same = jnp.tile(x[:, :1], (1, 50, 1))  # all of them want the same experts
    np.testing.assert_allclose(layer(same, None)[0, -1], layer(x, None)[0, 0], rtol=1e-4)
    graphdef, state = nnx.split(layer)
    many = jax.random.normal(jax.random.key(1), (2, 40, 32))
    grads = jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(many, None) ** 2))(state)
    for leaf in jax.tree.leaves(grads):
        per_expert = np.abs(np.asarray(leaf)).reshape(leaf.shape[0], -1).sum(axis=1)
        assert np.isfinite(per_expert).all() and (per_expert > 0).all()


@pytest.mark.parametrize(
    "family", ["llama", "olmo2", "phi4_mini", "granite", "smollm3", "gemma3_text", "mixtral", "qwen3_moe"]
)
def test_bfloat16_strays_no_further_than_transformers_does(family, tmp_path):
    """The two round at other places; both are held against float32."""
    reference = families.make_model(family)
    reference.save_pretrained(tmp_path)
    tokens, real = families.padded_batch()
    exact = families.torch_logits(reference, tokens, real)[real]
    decoder = families.load_decoder(tmp_path, dtype=jnp.bfloat16)
    ours = np.abs(families.decoder_logits(decoder, tokens, real)[real] - exact)
    theirs = np.abs(families.torch_logits(reference.to(torch.bfloat16), tokens, real)[real] - exact)
    assert ours.mean() < 1.2 * theirs.mean()
    assert ours.max() < 2.0 * theirs.max()
