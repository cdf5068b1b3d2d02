"""What tests of populations share: one that wants a run, a callback that acts at a step, and what equal runs are."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf.run.metrics import read_metrics
from rlhf.train.callbacks import Callback
from rlhf.train.members import Pruned


class Asked:
    """One that wants a run, and remembers how it ended."""

    def __init__(self, config, *callbacks):
        self.config, self.callbacks, self.ends = config, callbacks, []

    def complete(self):
        self.ends.append("complete")

    def fail(self, problem):
        self.ends.append(str(problem))

    def prune(self):
        self.ends.append("pruned")

    def leave(self):
        self.ends.append("left")


def same(alone, member):
    """Equal to 1e-5: every line of metrics, and the policy; and the same files."""
    lines = [read_metrics(folder) for folder in (alone, member)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if not name.startswith("perf/") and name != "line_sha256":
                assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), name
    weights = [load_file(folder / "policy" / "weights.safetensors") for folder in (alone, member)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        np.testing.assert_allclose(weights[1][name], weights[0][name], atol=1e-5, err_msg=name)
    files = [{str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (alone, member)]
    kept = [
        {p for p in found if "/arrays/" not in p and not p.startswith(("cache/", "tensorboard/"))}
        for found in files
    ]
    assert kept[0] == kept[1]


class At(Callback):
    """Does something when a step is reported."""

    def __init__(self, step, act):
        self._step, self._act = step, act

    def step(self, number, metrics):
        if number == self._step:
            self._act()


def prune():
    raise Pruned
