"""Adapters over a base in codes: the numbers of the same adapters over the matrices that the codes stand for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rewards.errors import UserError
from rlhf.models import load, quantised, save
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import store as policy_store
from rlhf.policy.conditioning import UserShares
from rlhf.policy.logprobs import PolicyParams, init_adapters
from rlhf.train import dpo_step, optim
from tests.rlhf.mesh import cases
from tests.rlhf.train import steps

PERSONAL = AdapterSpec(lora_rank=2, lora_alpha=2.0, num_basis=steps.K, basis_rank=2)
CODED = ("int8", "nf4")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return cases.World(tmp_path_factory.mktemp("coded"))


def opened(directory, kept):
    return policy_store.load_base(directory, adapter_layers=1, dtype="float32", kept=kept)


def plain_twin(base, target):
    """A directory with the model whose matrices are what the codes of `base` stand for, and nothing rounded."""
    tree = jax.tree.map(np.asarray, base.tree)
    config = load.read_hf_config(base.directory)
    return save.save_hf(target, _whole(tree), config, base.directory)


def _whole(tree):
    found = {name: _whole(leaf) if isinstance(leaf, dict) else leaf for name, leaf in tree.items()}
    if "codes" in found:
        found["kernel"] = np.asarray(
            quantised.dequantised(quantised.Quantised(found.pop("codes"), found.pop("scales")))
        )
    return found


@pytest.fixture(scope="module", params=CODED)
def twins(request, world, tmp_path_factory):
    """A base in codes, and the plain model with the matrices they stand for."""
    base = opened(world.model, request.param)
    twin = plain_twin(base, tmp_path_factory.mktemp("twin") / "model")
    return base, opened(twin, None)


def test_matrices_are_read_in_codes_and_the_rest_as_it_is(world):
    plain, coded = opened(world.model, None).tree, opened(world.model, "int8").tree
    assert coded["embed"]["embedding"].dtype == plain["embed"]["embedding"].dtype
    for number in plain["stages"]:
        down, codes = (tree["stages"][number]["mlp"]["down"] for tree in (plain, coded))
        assert set(codes) == {"codes", "scales"} and codes["codes"].dtype == jnp.int8
        expected = [np.asarray(quantised.quantised("int8", matrix, 24).codes) for matrix in down["kernel"]]
        np.testing.assert_array_equal(codes["codes"], np.stack(expected))
    described = policy_store.described(world.model, adapter_layers=1, dtype="float32", kept="int8").tree
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), described)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), coded)


def policy_over(base: policy_store.Base) -> policy_store.Policy:
    graphdef, params, shapes = policy_store.base_state(base, PERSONAL, "float32", False)
    lora, conditioner = init_adapters(graphdef, shapes, jax.random.key(3))
    bent = jax.tree.map(
        lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), (lora, conditioner)
    )
    return policy_store.Policy(base, graphdef, PolicyParams(params.base, *bent), PERSONAL, None, {})


def test_a_preference_step_is_that_over_the_whole_matrices(twins):
    left = []
    for base in twins:
        policy = policy_over(base)
        batch, settings = steps.make_batch(policy), steps.make_settings("soft")
        population = steps.make_population()
        program = dpo_step.DPOProgram(policy.graphdef, shares=UserShares(0.75, 0, 0, 0.25), with_rail=True)
        trained = {"lora": policy.params.lora, "conditioner": policy.params.conditioner}
        trained = jax.tree.map(jnp.array, trained)
        state = optim.init_state(trained, settings.optimizer, jax.random.key(0))
        state, metrics = dpo_step.step(state, batch, policy.params, population, settings, program=program)
        left.append((policy_store.flatten(state.params["lora"]), metrics))
    (coded, found), (plain, expected) = left
    for name, value in plain.items():
        np.testing.assert_allclose(coded[name], value, atol=2e-5, err_msg=name)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("kept", "case"), [("int8", "dpo/low_rank/lora"), ("nf4", "grpo/low_rank/lora")])
def test_a_run_is_kept_read_and_sampled_from(kept, case, world, tmp_path):
    """The policy of the directory, the one in memory and one over the matrices that the codes stand for say the same."""
    policy = world.train(case, **{"model.base": kept, "steps": 2})
    policy.save(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "policy" / "policy.json").read_text())
    assert record["kept"] == kept
    stored = load_file(tmp_path / "run" / "policy" / "weights.safetensors")
    assert all(name.startswith(("lora.", "conditioner.")) for name in stored)
    again = policy_store.load_policy(tmp_path / "run")
    assert again.base.config.kept == kept
    found, loaded = cases.left_by(policy), cases.left_by(type(policy)(again))
    assert found.keys() == loaded.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, loaded[name], err_msg=name)
    twin = plain_twin(again.base, tmp_path / "twin")
    plain = policy_store.load_base(twin, adapter_layers=None, dtype="float32")
    graphdef, params, _ = policy_store.base_state(plain, again.spec, "float32", False)
    params = params._replace(lora=again.params.lora, conditioner=again.params.conditioner)
    other = policy_store.Policy(plain, graphdef, params, again.spec, again.gate, again.record)
    np.testing.assert_array_equal(cases.left_by(type(policy)(other))[cases.TEXTS], found[cases.TEXTS])


def test_export_merges_into_the_model_on_disk_in_float32(twins):
    coded, _ = twins
    policy = policy_over(coded)
    merged = policy_store.merge_adapters(policy, None)
    plain = policy_over(opened(coded.directory, None))
    expected = policy_store.merge_adapters(plain, None)
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
    assert merged["stages"][1]["mlp"]["up"]["kernel"].dtype == jnp.float32
    # As the base of another run, it is quantised anew: what was merged, not what was in codes.
    again = policy_store.base_of(policy, "x", "y", adapter_layers=1, dtype="float32", kept="nf4")
    codes = again.tree["stages"][1]["mlp"]["up"]
    kernel = np.asarray(expected["stages"][1]["mlp"]["up"]["kernel"][0])
    np.testing.assert_array_equal(codes["codes"][0], quantised.quantised("nf4", kernel, 16).codes)


def test_a_bfloat16_base_under_float32(world):
    base = opened(world.model, "bfloat16")
    up = base.tree["stages"][0]["mlp"]["up"]["kernel"]
    assert up.dtype == jnp.bfloat16 and base.tree["embed"]["embedding"].dtype == jnp.float32
    policy = world.train("sft/none/lora", **{"model.base": "bfloat16", "steps": 1})
    assert policy.loaded.params.base["stages"][0]["mlp"]["up"]["kernel"][...].dtype == jnp.bfloat16


def test_what_is_trained_is_not_kept_in_codes(world):
    with pytest.raises(UserError, match="model.base is nf4.*tune.mode full trains it; set tune.mode=lora"):
        world.train("sft/none/full", **{"model.base": "nf4"})
    with pytest.raises(UserError, match="model.base.*int4"):
        world.train("sft/none/lora", **{"model.base": "int4"})


def test_a_policy_in_memory_cannot_be_read_again_from_disk(world):
    policy = world.train("sft/none/lora", steps=1)
    with pytest.raises(UserError, match="model.base nf4: this policy is in memory only"):
        cases.rlhf.train_sft(policy, world.prefs, row_length=16, steps=1, **{"model.base": "nf4"})
