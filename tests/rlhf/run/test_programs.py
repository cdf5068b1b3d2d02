"""Compiled programs outlive their process, on the machine that compiled them."""

import os
import subprocess
import sys
from unittest import mock

import pytest

from rlhf.run import programs

COMPILE = """
from rlhf.run import programs
programs.remember()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((4, 4))).sum())
"""


@pytest.fixture
def alone(tmp_path):
    """The cache folder of an environment without settings, which is put back afterwards."""
    with mock.patch.dict(os.environ, CHORUS_CACHE=str(tmp_path / "cache")):
        for name in ("JAX_COMPILATION_CACHE_DIR", *programs.SETTINGS):
            os.environ.pop(name, None)
        yield tmp_path / "cache"


def run():
    return subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True)


def test_a_second_process_writes_nothing_new(alone):
    first = run().stdout
    kept = {path: path.read_bytes() for path in alone.rglob("*-cache")}
    assert kept and all(programs.processor() in str(path) for path in kept)
    assert run().stdout == first
    assert {path: path.read_bytes() for path in alone.rglob("*-cache")} == kept


def test_a_damaged_program_is_compiled_again(alone):
    first = run().stdout
    for path in alone.rglob("*-cache"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert run().stdout == first


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", *programs.SETTINGS])
def test_what_the_user_has_set_stays(alone, monkeypatch, name):
    monkeypatch.setenv(name, "/elsewhere")
    programs.remember()
    assert os.environ[name] == "/elsewhere"


def test_nothing_is_thrown_out_of_a_folder_that_is_not_ours(alone, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    programs.remember()
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ


def test_jax_can_be_told_to_keep_none(alone, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    run()
    assert not list(alone.rglob("*-cache"))


def test_a_home_that_cannot_be_written_is_no_error(alone):
    alone.write_text("a file where the folder should be")
    programs.remember()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
