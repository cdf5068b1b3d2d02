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


def coded(directory: Path) -> None:
    """Supervised steps over a base in codes: how far from one device, and what is exchanged."""
    world, case = cases.World(directory, hidden_size=128), "sft/none/lora"
    with cases.compiled(sft_step, "step") as programs:
        found = cases.run_all(world, ("1.1.1", MESH), [case], **{"model.base": "nf4", "steps": 2})
    (divided,) = (program for mesh, program in programs.items() if mesh != "one device")
    print(json.dumps([cases.difference(found, MESH, case), cases.collectives(divided.as_text())]))


def experts(directory: Path) -> None:
    """Supervised steps of all weights of a mixture of experts: how far from one device on each mesh."""
    mixture = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    world, case, meshes = cases.World(directory, **mixture), "sft/none/full", ("1.8.1", MESH)
    found = cases.run_all(world, ("1.1.1", *meshes), [case], steps=2)
    print(json.dumps([cases.difference(found, mesh, case) for mesh in meshes]))


if __name__ == "__main__":
    {"": main, "steps": steps, "coded": coded, "experts": experts}["".join(sys.argv[2:])](Path(sys.argv[1]))
