"""A training step divided over eight simulated devices: the numbers of one device, and no more than is needed exchanged."""

import json
import os
import subprocess
import sys

import pytest


def divided(*words: str) -> subprocess.CompletedProcess[str]:
    """`divided.py` in a process of eight devices."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",  # two programs at once wait for one another's threads
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.rlhf.mesh.divided", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert not done.returncode, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    done = divided(str(tmp_path_factory.mktemp("divided")))
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_parameters_metrics_and_answers_are_those_of_one_device(child):
    apart, where = child[0]["apart"]
    assert apart < 1e-4, where


def test_a_run_that_moves_from_eight_devices_to_one_and_to_a_mesh_ends_like_one_that_stays(child):
    apart, where = child[0]["moved"]
    assert apart < 1e-4, where
    assert "step 1 was made on data 1 × fsdp 8 × tensor 1; goes on on one device" in child[1]
    assert "step 2 was made on one device; goes on on data 1 × fsdp 4 × tensor 2" in child[1]


def test_matrices_are_gathered_one_at_a_time_and_logits_never(child):
    """Two layers of width 16 and a vocabulary of 48, of which a device has half."""
    exchanged = child[0]["exchanged"]
    assert exchanged.pop("one device") == []
    (found,) = exchanged.values()
    gathered = [tuple(shape) for kind, shape in found if kind == "all-gather"]
    assert (16, 12) in gathered and (
        24,
        16,
    ) in gathered  # an MLP's matrix and the embedding, whole along fsdp only
    assert not [shape for shape in gathered if len(shape) == 3 and shape[0] == 2]  # no stack of layers
    assert not [shape for _, shape in found if len(shape) > 2 and shape[-1] in (24, 48)]  # no logits
    assert "Involuntary full rematerialization" not in child[1]


def test_preference_and_reinforcement_steps_gather_matrices_one_at_a_time_too(tmp_path):
    """The same model; a rollout's rows, hidden states and logits are never gathered, nor any stack of layers."""
    done = divided(str(tmp_path), "steps")
    for kind, found in json.loads(done.stdout.splitlines()[-1]).items():
        gathered = [tuple(shape) for how, shape in found if how == "all-gather"]
        assert {(16, 12), (24, 16)} <= set(gathered), kind
        assert not [shape for shape in gathered if len(shape) == 3 and shape[0] == 2], kind
        assert not [shape for _, shape in found if len(shape) > 2 and shape[-1] in (24, 48)], kind
        assert max(len(shape) for how, shape in found if how == "all-gather") <= 3, kind


def test_a_base_in_codes_is_divided_as_its_matrices_are(tmp_path):
    """Width 128 has two blocks of nf4, which four devices cannot share: scales are whole along fsdp there, codes are not."""
    done = divided(str(tmp_path), "coded")
    (apart, where), exchanged = json.loads(done.stdout.splitlines()[-1])
    assert apart < 1e-4, where
    gathered = [tuple(shape) for how, shape in exchanged if how == "all-gather"]
    assert (128, 12) in gathered  # an MLP's matrix, whole along fsdp only
    assert not [shape for shape in gathered if len(shape) == 3 and shape[0] == 2]
    assert "Involuntary full rematerialization" not in done.stderr


def test_a_mixture_of_experts_is_what_it_is_on_one_device(tmp_path):
    """Every device holds a part of each expert; which experts a token goes through must not depend on it."""
    done = divided(str(tmp_path), "experts")
    for apart, where in json.loads(done.stdout.splitlines()[-1]):
        assert apart < 1e-4, where
