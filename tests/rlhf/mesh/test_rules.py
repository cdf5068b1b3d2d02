"""The mesh from its configuration, and the table of rules: what is wrong is said before anything is allocated."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from pydantic import ValidationError

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.mesh import devices, place, rules
from rlhf.models.adapters import AdapterSpec
from rlhf.policy.logprobs import structure
from rlhf.run.config.common import MeshConfig
from tests.rlhf import tiny


def mesh(data=1, fsdp=1, tensor=1):
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((data, fsdp, tensor), devices.AXES, axis_types=(AxisType.Auto,) * 3)
    )


def shapes(kind="low_rank", family="llama", lora=2):
    given = {"low_rank": {"basis_rank": 2}, "logit_heads": {"basis_rank": 2}, "prefix": {"slots": 3}}
    spec = AdapterSpec(lora, 4.0, 2, kind=kind, **given.get(kind, {}))
    return structure(tiny.make_config(family), (3,), spec, "float32", False)[1]


@pytest.mark.parametrize(
    ("config", "num_devices", "found"),
    [
        ({}, 8, (8, 1, 1)),
        ({"fsdp": 4}, 8, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, 8, (1, 4, 2)),
        ({}, 1, (1, 1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8, (2, 2, 2)),
    ],
)
def test_the_free_axis_takes_what_the_others_leave(config, num_devices, found):
    assert tuple(devices.sizes(MeshConfig(**config), num_devices).values()) == found


@pytest.mark.parametrize(
    ("config", "num_devices", "words"),
    [
        ({"fsdp": 3}, 8, ("fsdp 3", "8 devices", "mesh.fsdp")),
        ({"data": 2, "fsdp": 2}, 8, ("data 2 × fsdp 2 × tensor 1", "4 devices", "has 8", "mesh.data=-1")),
        ({"data": 8}, 1, ("8 devices", "has 1")),
    ],
)
def test_axes_that_do_not_multiply_to_the_devices(config, num_devices, words):
    with pytest.raises(UserError) as error:
        devices.sizes(MeshConfig(**config), num_devices)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [({"fsdp": -1}, "data and fsdp are both -1"), ({"tensor": 0}, "tensor is 0"), ({"model": 2}, "model")],
)
def test_an_axis_that_is_none(config, words):
    with pytest.raises(ValidationError, match=words):
        MeshConfig(**config)


def test_one_device_has_no_mesh_and_nothing_is_placed():
    array = np.arange(4)
    with devices.use(MeshConfig(), jax.devices()[:1]) as found:
        assert found is None and devices.current() is None and devices.axis(*devices.AXES) == 1
        assert (
            place.batch(array) is array and place.parameters({"q": {"kernel": array}})["q"]["kernel"] is array
        )
        assert place.multiple(7) == 7


@pytest.mark.parametrize("kind", ["low_rank", "film", "prefix", "logit_heads"])
@pytest.mark.parametrize("family", tiny.KINDS)
def test_every_parameter_has_a_rule_and_what_is_large_is_divided(kind, family):
    with mesh(1, 4, 2):
        found = rules.specs(shapes(kind, family))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for path, spec in leaves:
        layer, name = rules.names_of(path)[-2:]
        small = name in ("scale", "film_scale", "film_shift", "prefix_keys", "prefix_values")
        assert small == (spec == P()), (layer, name, spec)
        assert name != "kernel" or {"fsdp", "tensor"} <= set(spec)
    assert {name for path, _ in leaves for name in rules.names_of(path)} >= {"embedding", "kernel", "lora_a"}


def test_moments_lie_where_their_parameter_does_and_counters_everywhere():
    params = {"lora": shapes().lora}
    moments = {
        "count": jax.ShapeDtypeStruct((), "int32"),
        "mu": params,
        "row": {"q": {"lora_a": np.zeros(3)}},
    }
    with mesh(1, 4, 2):
        found, own = rules.state_specs(params, moments), rules.specs(params)
    assert found["count"] == P() and found["row"]["q"]["lora_a"] == P()
    assert jax.tree.leaves(found["mu"]) == jax.tree.leaves(own)


def test_a_parameter_without_a_rule_and_a_size_that_is_not_divided_are_named():
    with mesh(1, 1, 3), pytest.raises(UserError) as error:
        rules.specs(shapes())
    assert "mesh.tensor 3" in str(error.value) and "embed.embedding" in str(error.value)
    with pytest.raises(UserError, match=r"no rule says how layer.router \[4, 2\] is divided"):
        rules.specs({"layer": {"router": np.zeros((4, 2))}})


def test_a_tensor_axis_divides_heads_and_is_checked_against_the_architecture():
    with mesh(1, 1, 4), pytest.raises(UserError) as error:
        rules.check_model(num_heads=8, num_kv_heads=2, mlp_width=64)
    assert "2 key/value heads" in str(error.value) and "divisor of 2" in str(error.value)
    with mesh(1, 1, 2):
        rules.check_model(num_heads=8, num_kv_heads=2, mlp_width=64)


def test_rows_that_the_devices_cannot_divide_are_refused_with_the_nearest_number():
    with mesh(2, 4), pytest.raises(UserError) as error:
        place.check_rows("train.batch_rows", 12)
    assert "train.batch_rows: 12 rows" in str(error.value) and "(16)" in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [("8", "must name axes"), ("{tensr: 2}", "did you mean 'tensor'"), ("{fsdp: 3}", "does not")],
)
def test_a_mesh_on_the_command_line_is_refused_before_a_model_is_looked_for(given, words, capsys):
    assert cli.main(["generate", "--model", "nowhere", "--prompt", "a", "--mesh", given]) == 2
    assert words in capsys.readouterr().err
