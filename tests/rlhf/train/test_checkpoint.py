"""Checkpoints: exact round trip, damage named, kill and full disk survived."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rewards.errors import UserError
from rlhf.train.checkpoint import Checkpointer


class State(NamedTuple):
    params: dict
    opt_state: tuple
    key: jax.Array
    step: jax.Array


def make_state(seed: int = 0) -> State:
    key = jax.random.key(seed)
    params = {
        "stages": {0: {"k": jax.random.normal(key, (3, 4))}},
        "odd/name.x": jnp.full((2,), seed, jnp.bfloat16),
    }
    params["empty"] = jnp.zeros((0, 3))
    return State(params, optax.adamw(1e-3).init(params), jax.random.fold_in(key, 1), jnp.int32(seed))


def assert_same(left, right):
    def check(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(check, left, right)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_round_trip_of_every_kind_of_leaf(tmp_path, capfd):
    checkpointer = Checkpointer(tmp_path / "c")
    assert checkpointer.restore(make_state()) is None
    checkpointer.save(7, make_state(5), {"rows": 3})
    step, state, meta = checkpointer.restore(make_state(0))
    assert (step, meta) == (7, {"rows": 3})
    assert_same(state, make_state(5))
    step, state, _ = checkpointer.restore(jax.eval_shape(make_state))
    assert_same(state, make_state(5))
    assert jax.tree.structure(state) == jax.tree.structure(make_state())
    assert jax.random.uniform(state.key) == jax.random.uniform(make_state(5).key)
    assert capfd.readouterr() == ("", "")


def test_numpy_leaves_stay_numpy(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(0, {"rows": np.arange(4)})
    rows = checkpointer.restore({"rows": np.zeros(4, np.int64)})[1]["rows"]
    assert isinstance(rows, np.ndarray) and rows.dtype == np.int64 and rows.tolist() == [0, 1, 2, 3]


def test_keeps_the_newest_and_drops_an_abandoned_future(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpointer.save(step, {"x": jnp.float32(step)})
    assert checkpointer.steps() == [20, 30]
    checkpointer.save(20, {"x": jnp.float32(-1)})
    assert checkpointer.steps() == [20]
    assert checkpointer.restore({"x": jnp.float32(0)})[1]["x"] == -1


@pytest.mark.parametrize("position", [0.0, 0.5, 0.999])
def test_one_flipped_bit_in_any_file_is_named_and_the_step_before_used(tmp_path, capsys, position):
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, make_state(step))
    for path in files_of(tmp_path / "00000002"):
        data = bytearray(path.read_bytes())
        if not data:
            continue
        data[int(position * len(data))] ^= 1
        original = path.read_bytes()
        path.write_bytes(data)
        step, state, _ = checkpointer.restore(make_state())
        message = capsys.readouterr().err
        assert (
            step == 1
            and "damaged: step 2 (" in message
            and "using step 1" in message
            and message.count("\n") == 1
        ), path
        assert_same(state, make_state(1))
        path.write_bytes(original)
    assert checkpointer.restore(make_state())[0] == 2


def test_any_deleted_file_is_named(tmp_path, capsys):
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, make_state(step))
    for path in files_of(tmp_path / "00000002"):
        path.rename(tmp_path / "aside")
        assert checkpointer.restore(make_state())[0] == 1
        assert f"{path.relative_to(tmp_path / '00000002')} is missing" in capsys.readouterr().err
        (tmp_path / "aside").rename(path)


def test_no_good_step_is_the_users_problem_with_every_step_named(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, make_state(step))
        (tmp_path / f"{step:08d}" / "COMPLETE").unlink()
    with pytest.raises(UserError, match="step 2 .*step 1 .*"):
        checkpointer.restore(make_state())


def test_damaged_step_is_replaced_when_training_reaches_it_again(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, make_state(step))
    (tmp_path / "00000002" / "COMPLETE").unlink()
    checkpointer.save(2, make_state(9))
    assert_same(checkpointer.restore(make_state())[1], make_state(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"more": jnp.zeros(2)}, "params.more is missing"),
        (lambda p: {k: v for k, v in p.items() if k != "stages"}, "params.stages.0.k is not part"),
        (
            lambda p: p | {"stages": {0: {"k": jnp.zeros((4, 3))}}},
            r"params.stages.0.k has shape \[3, 4\], \[4, 3\]",
        ),
        (
            lambda p: p | {"stages": {0: {"k": jnp.zeros((3, 4), jnp.bfloat16)}}},
            "params.stages.0.k has dtype float32",
        ),
    ],
)
def test_strict_about_every_leaf(tmp_path, change, message):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, make_state())
    with pytest.raises(UserError, match=message):
        checkpointer.restore(make_state()._replace(params=change(make_state().params)))


def test_python_numbers_belong_into_meta(tmp_path):
    with pytest.raises(TypeError, match="step: a checkpoint holds arrays"):
        Checkpointer(tmp_path).save(1, {"step": 3})
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_leaves_the_last_step(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, make_state(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match="00000002: cannot save.*no space left"):
        checkpointer.save(2, make_state(2))
    monkeypatch.undo()
    assert checkpointer.restore(make_state())[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_write_that_fails_half_way_leaves_the_last_step(tmp_path):
    """A real refusal of the system in the middle of Orbax's own writes."""
    code = (
        "import resource, signal, numpy as np, sys\n"
        "from rlhf.train.checkpoint import Checkpointer\nfrom rewards.errors import UserError\n"
        "checkpointer = Checkpointer(sys.argv[1])\n"
        "checkpointer.save(1, {'x': np.zeros(4)})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n    checkpointer.save(2, {'x': np.random.default_rng(0).normal(size=200_000)})\n"
        "except UserError as error:\n    print('refused:', error)\n"
        "print(checkpointer.restore({'x': np.zeros(4)})[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert "refused:" in done.stdout and done.stdout.strip().endswith("1"), done.stderr[-2000:]
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


_SAVE_FOR_EVER = """
import sys, numpy as np
from rlhf.train.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
tree = {str(i): np.zeros(20_000, np.int32) for i in range(20)}
found = checkpointer.restore(tree)
step = found[0] if found else 0
assert not found or all((leaf == step).all() for leaf in found[1].values())
print("ready", step, flush=True)
while True:
    step += 1
    checkpointer.save(step, {name: np.full(20_000, step, np.int32) for name in tree}, {"step": step})
    print(step, flush=True)
"""


def test_kill_at_random_instants_never_loses_the_last_finished_step(tmp_path):
    rng, last = random.Random(0), 0
    tree = {str(i): np.zeros(20_000, np.int32) for i in range(20)}
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVE_FOR_EVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == f"ready {last}\n", process.stderr.read()
        printed = [int(process.stdout.readline())]
        time.sleep(rng.random())
        os.kill(process.pid, signal.SIGKILL)
        printed += [int(line) for line in process.stdout.read().split()]
        assert process.stderr.read() == ""
        process.wait()
        step, restored, meta = Checkpointer(tmp_path).restore(tree)
        assert printed[-1] <= step <= printed[-1] + 1 and meta == {"step": step}
        assert all((leaf == step).all() for leaf in restored.values())
        last = step
    assert last > 0
