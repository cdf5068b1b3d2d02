"""A policy's log-probs: z = 0, merging, rows apart, stages, caches, initialisation; transformers on trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from scipy.stats import entropy as scipy_entropy

from rlhf.models.adapters import AdapterSpec
from rlhf.models.config import ModelConfig
from rlhf.models.load import load_params, read_hf_config
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import all_logprobs, cached_hidden, init_adapters, sequence_logprobs, token_logprobs
from rlhf.policy.packing import Sequences, pack
from tests.rlhf import tiny

SPEC = AdapterSpec(lora_rank=2, lora_alpha=3.0, num_basis=3, basis_rank=2)
TOKENS = np.random.default_rng(0).integers(3, 30, (4, 12)).astype(np.int32)
Z = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
ROWS = [[Sequences((1, 5 + r), ((8, 9, 10 + r, 2), (8, 2), (r + 3, 2)))] for r in range(5)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def policy(request):
    return tiny.make_policy(tiny.make_base(tiny.make_config(request.param)), SPEC)


def logits(policy, z, params=None):
    return np.asarray(tiny.causal_logits(policy.graphdef, params or policy.params, TOKENS, z))


def test_zero_coefficients_are_the_aggregate_policy(policy):
    aggregate, own = logits(policy, None), logits(policy, Z)
    np.testing.assert_allclose(logits(policy, np.zeros_like(Z)), aggregate, atol=1e-5)
    assert np.abs(own - aggregate).max() > 0.05  # the conditioner is not idle


def test_the_conditioner_is_what_its_equation_says():
    """One linear layer against Σ_k z_k A_k B_k written as a loop."""
    policy = tiny.make_policy(tiny.make_base(tiny.make_config()), SPEC)
    pure = [nnx.to_pure_dict(part)["stages"][0]["mlp"]["up"] for part in policy.params]
    base, lora, basis = ({k: np.asarray(v[1], np.float64) for k, v in part.items()} for part in pure)
    z = np.array([0.5, -1.0, 2.0])
    wanted = base["kernel"] + 3.0 / 2 * lora["lora_a"] @ lora["lora_b"]
    for k in range(3):
        wanted += z[k] * basis["basis_a"][:, 2 * k : 2 * k + 2] @ basis["basis_b"][2 * k : 2 * k + 2]
    merged = policy_store.merge_adapters(policy, z)["stages"][0]["mlp"]["up"]["kernel"][1]
    np.testing.assert_allclose(merged, wanted, atol=1e-5)


@pytest.mark.parametrize("adapter_layers", [None, 1])
def test_a_merged_person_is_the_conditioned_policy(adapter_layers):
    base = tiny.make_base(tiny.make_config("gemma2"), adapter_layers=adapter_layers)
    policy = tiny.make_policy(base, SPEC)
    for z in (None, Z[0]):
        plain = tiny.make_policy(
            policy_store.dataclasses.replace(base, tree=policy_store.merge_adapters(policy, z)), None
        )
        rows = None if z is None else np.tile(z, (4, 1))
        np.testing.assert_allclose(logits(plain, None), logits(policy, rows), atol=1e-5)


def test_a_row_does_not_see_other_rows_coefficients(policy):
    all_together = logits(policy, Z)
    for row in range(4):
        changed = np.where(np.arange(4)[:, None] == row, Z, -3.0 * Z)
        np.testing.assert_allclose(logits(policy, changed)[row], all_together[row], atol=1e-5)


def test_two_stages_are_one_decoder():
    """Adapters on the top layer alone, against all layers with the lower ones' adapters zero."""
    config = tiny.make_config("gemma3")
    two = tiny.make_policy(tiny.make_base(config, adapter_layers=1), SPEC)
    one = tiny.make_policy(tiny.make_base(config), SPEC)
    parts = {}
    for role in ("lora", "conditioner"):
        top = nnx.to_pure_dict(getattr(two.params, role))["stages"][1]
        widened = jax.tree.map(lambda a: jnp.concatenate([jnp.zeros((2, *a.shape[1:])), a]), top)
        state = getattr(one.params, role)
        nnx.replace_by_pure_dict(state, {"stages": {0: widened}})
        parts[role] = state
    one_logits = logits(one, Z, one.params._replace(**parts))
    np.testing.assert_allclose(logits(two, Z), one_logits, atol=1e-5)
    assert np.abs(one_logits - logits(two, None)).max() > 0.05


def test_cached_activations_change_nothing():
    policy = tiny.make_policy(tiny.make_base(tiny.make_config("gemma2"), adapter_layers=1), SPEC)
    packed = pack(ROWS)
    z = np.resize(Z, (5, 3))
    hidden = cached_hidden(policy.graphdef, policy.params, packed, chunk=2)  # 2 does not divide 5
    assert hidden.shape == (*packed.tokens.shape, 16)
    whole = sequence_logprobs(policy.graphdef, policy.params, packed, z)
    np.testing.assert_allclose(
        sequence_logprobs(policy.graphdef, policy.params, packed, z, hidden), whole, atol=1e-5
    )
    for cache in (None, hidden):
        parts = all_logprobs(policy.graphdef, policy.params, packed, cache, z=z, chunk=2)
        np.testing.assert_allclose(parts, whole, atol=1e-5)
    # The cache is what is read, not recomputed.
    assert (
        np.abs(sequence_logprobs(policy.graphdef, policy.params, packed, z, hidden + 1.0) - whole).max() > 0.1
    )


def test_no_cache_when_every_layer_is_trained(policy):
    assert cached_hidden(policy.graphdef, policy.params, pack(ROWS)) is None


def test_fresh_adapters_leave_the_base_alone_for_everyone():
    base = tiny.make_base(tiny.make_config())
    graphdef, params, shapes = policy_store.base_state(base, SPEC, "float32", False)
    lora, conditioner = init_adapters(graphdef, shapes, jax.random.key(0))
    fresh = params._replace(lora=lora, conditioner=conditioner)
    plain = tiny.make_policy(base, None)
    untrained = np.asarray(tiny.causal_logits(graphdef, fresh, TOKENS, 10.0 * Z))
    np.testing.assert_array_equal(untrained, logits(plain, None))
    inputs = [leaf for leaf in jax.tree.leaves((lora, conditioner)) if np.any(leaf)]
    assert len(inputs) == 14  # lora_a and basis_a of q, k, v, o, gate, up, down
    for leaf in inputs:
        bound = np.sqrt(6.0 / leaf.shape[-2])
        assert np.abs(leaf).max() <= bound and np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.25)
    values = np.concatenate([np.ravel(leaf) for leaf in inputs])
    assert len(np.unique(values)) > 0.99 * len(values)  # no two factors share their draws
    other = init_adapters(graphdef, shapes, jax.random.key(1))
    assert not np.array_equal(jax.tree.leaves(other)[0], jax.tree.leaves((lora, conditioner))[0])


def test_entropy_is_that_of_the_read_distributions(policy):
    packed = pack([[Sequences((1, 7, 8), ((9, 2),))]], multiple=1)
    logprobs, entropy = token_logprobs(policy.graphdef, policy.params, packed, None)
    padded = np.zeros((4, 12), np.int32)
    padded[:, :4] = [1, 7, 8, 9]
    wanted = np.asarray(tiny.causal_logits(policy.graphdef, policy.params, padded, None))[0, 2:4].astype(
        np.float64
    )
    probs = np.exp(wanted - wanted.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(entropy[0], scipy_entropy(probs, axis=1), atol=1e-5)
    np.testing.assert_allclose(logprobs[0], np.log([probs[0, 9], probs[1, 2]]), atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2"])
def test_trees_have_transformers_log_probs(family, tmp_path):
    """One tree of four completions in our decoder, four rows in transformers'."""
    from tests.rlhf.models import families

    directory = families.save_model(family, tmp_path)
    config = ModelConfig.from_hf(read_hf_config(directory))
    stages = (config.num_layers,)
    tree = load_params(directory, config, stages, jnp.float32)
    base = policy_store.Base("hf", directory, config, tree, stages, tiny.ToyTokenizer(), "hf")
    policy = tiny.make_policy(base, None)
    prompt = (1, 40, 50, 60, 70, 80, 90, 20)
    completions = ((8, 9, 10, 11, 2), (8, 9, 2), (8, 9), (33, 2))
    ours = sequence_logprobs(policy.graphdef, policy.params, pack([[Sequences(prompt, completions)]]), None)[
        0
    ]
    model = families.make_model(family)
    for completion, value in zip(completions, ours, strict=True):
        with torch.no_grad():
            row = model(torch.tensor([[*prompt, *completion]])).logits.log_softmax(-1)[
                0, len(prompt) - 1 : -1
            ]
        wanted = row[torch.arange(len(completion)), torch.tensor(completion)].sum().item()
        assert float(value) == pytest.approx(wanted, abs=1e-4)
