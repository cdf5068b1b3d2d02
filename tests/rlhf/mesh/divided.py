"""In a process of eight devices: supervised training of all weights on one and on a mesh, a run that moves between meshes,
and what its programs exchange, as JSON on standard output.
"""

import json
import sys
from pathlib import Path

import numpy as np

from rewards.shown import speak
from rlhf.train import dpo_step, sft_step
from rlhf.train.rl import update as updates
from tests.rlhf.mesh import cases

CASE, MESH = "sft/none/full", "1.4.2"


def main(directory: Path) -> None:
    speak()  # as a command does
    world = cases.World(directory)
    with cases.compiled(sft_step, "step") as programs:
        found = cases.run_all(world, ("1.1.1", MESH), [CASE])
    left = cases.moved(world, CASE, ("1.8.1", "1.1.1", MESH), directory / "run")
    apart = {
        name: float(np.max(np.abs(value - found[f"1.1.1:{CASE}:{name}"]))) for name, value in left.items()
    }
    result = {
        "apart": cases.difference(found, MESH, CASE),
        "moved": max((value, name) for name, value in apart.items()),
        "exchanged": {mesh: cases.collectives(program.as_text()) for mesh, program in programs.items()},
    }
    print(json.dumps(result))


def steps(directory: Path) -> None:
    """What the other trainers' steps exchange on the mesh, as JSON on standard output."""
    world = cases.World(directory)
    steps = (("dpo", dpo_step, "step"), ("grpo", updates, "iterate"), ("ppo", updates, "iterate"))
    found = {
        kind: cases.exchanged(world, f"{kind}/low_rank/full", MESH, module, name)
        for kind, module, name in steps
    }
    print(json.dumps(found))


if __name__ == "__main__":
    (steps if sys.argv[2:] else main)(Path(sys.argv[1]))
