"""A file that no longer fits on the disk, at any size: one line, the earlier checkpoint stands, the same command goes on."""

import os
import subprocess
import sys

import pytest

from rlhf.run.metrics import read_metrics
from rlhf.train.checkpoint import Checkpointer
from tests.rlhf.train.test_endings import world  # noqa: F401 (a fixture)

LIMITED = """
import resource, sys
from rlhf.apps import cli
from rlhf.train.callbacks import Checkpoints

saved, limit = Checkpoints.checkpoint, int(sys.argv[1])
def checkpoint(self, number, state):
    if number > 2:  # the first one is there: from here on no file grows beyond the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    saved(self, number, state)
Checkpoints.checkpoint = checkpoint
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "limit, steps, file",
    [
        (0, [2], "00000004"),
        (20_000, [4, 5], "report.html"),
    ],  # arrays; then only the results
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(world, tmp_path, limit, steps, file):  # noqa: F811
    output = tmp_path / "run"
    words = ["train", "sft", str(world / "sft.yaml"), f"output_dir={output}", "train.checkpoint_every=2"]
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *words], capture_output=True, text=True, env=env
    )
    assert done.returncode == 2, done.stderr
    # Orbax's own threads may print tracebacks before it.
    last = [line for line in done.stderr.splitlines() if line.startswith("chorus: ")]
    assert len(last) == 1 and "free some space" in last[0] and file in last[0]
    assert Checkpointer(output / "checkpoints").steps() == steps
    assert not list(output.rglob("*.tmp")) and not (output / "metrics.json").exists()
    again = subprocess.run([sys.executable, "-m", "rlhf", *words], capture_output=True, text=True, env=env)
    assert again.returncode == 0, again.stderr
    assert [row["step"] for row in read_metrics(output)] == [1, 2, 3, 4, 5]
