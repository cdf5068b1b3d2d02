"""Every algorithm, conditioner and way of training on every mesh of eight simulated devices, held against one device.

    python -m scripts.bench.mesh_table docs/results/mesh.md

A case trains three steps of a tiny random model; what is compared are all parameters, all metrics of every step and sampled
answers. A second table says what a device holds of a training step of all weights, from the compiled program's own analysis.
Cases that are done are kept in OUTPUT.json, so that a run that is broken off goes on.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
WIDE = {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 8192}


def words(mesh: str) -> str:
    data, fsdp, tensor = mesh.split(".")
    return f"data {data} × fsdp {fsdp} × tensor {tensor}"


def compare(case: str) -> dict[str, tuple[float, str]]:
    """In a process of eight devices: the largest difference from one device, by mesh, and where it is."""
    from tests.rlhf.mesh import cases

    with tempfile.TemporaryDirectory() as folder:
        world = cases.World(Path(folder), tied=case.startswith(("sft", "dpo")))
        found = cases.run_all(world, ("1.1.1", *cases.MESHES), [case])
        return {mesh: cases.difference(found, mesh, case) for mesh in cases.MESHES}


def memory() -> dict[str, dict[str, float]]:
    """In a process of eight devices: megabytes of a device by mesh, for a step of all weights with a wider model."""
    import jax

    from rlhf.train import optim, sft_step
    from tests.rlhf.mesh import cases

    held: dict[str, dict[str, float]] = {}

    def own(tree: object) -> float:
        """Megabytes of the first device's shards."""
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)) / 1e6

    def spied(params, optimizer, key, own_optimizer=None, start=optim.init_state):  # noqa: ANN001, ANN202
        state = start(params, optimizer, key, own_optimizer)
        held[mesh] = {"parameters": own(state.params), "moments": own(state.opt_state)}
        return state

    with tempfile.TemporaryDirectory() as folder:
        world = cases.World(Path(folder), tied=True, **WIDE)
        for mesh in ("1.1.1", *cases.MESHES):
            optim.init_state = spied
            with cases.on(mesh), cases.compiled(sft_step, "step") as programs:
                world.train("sft/none/full", steps=1)
            (program,) = programs.values()
            found = program.memory_analysis()
            assert found is not None, "this backend analyses its programs"
            held[mesh]["arguments"] = found.argument_size_in_bytes / 1e6
            held[mesh]["temporaries"] = found.temp_size_in_bytes / 1e6
    return held


def child(name: str) -> object:
    """`compare` or `memory` in a process of its own."""
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"  # two programs at once wait for one another's threads
    command = [sys.executable, "-m", "scripts.bench.mesh_table", "--child", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


INTRODUCTION = """# One mesh, checked

<!-- Made by scripts/bench/mesh_table.py. -->

Eight simulated CPU devices against one: the largest difference after three steps over all parameters and all metrics of
every step (absolute, relative above 1). Sampled answers are equal in every cell. Optimisers run with eps 1e-3, since where
a gradient is nothing but rounding errors Adam turns their sign into a whole step. Learning rates are 1e-2, for PPO and GRPO
1e-3 (PPO makes four updates a step, and their clipping magnifies rounding). The accuracy before the first step is left out:
all margins are 0 there.
"""
HELD = """
## What a device holds

A supervised step of all weights, width 256, vocabulary 8,192, MB of one device; arguments and temporaries from the compiled
program's analysis.

| mesh | parameters | moments | arguments | temporaries | parameters, of one device's |
|---|---|---|---|---|---|"""


def page(found: dict) -> str:
    from tests.rlhf.mesh import cases

    lines = [
        INTRODUCTION,
        "| case | " + " | ".join(words(mesh) for mesh in cases.MESHES) + " |",
        "|---|" + "---|" * len(cases.MESHES),
    ]
    for case in cases.all_cases():
        if case in found:
            lines.append(f"| {case} | " + " | ".join(f"{found[case][m][0]:.1e}" for m in cases.MESHES) + " |")
    if "memory" in found:
        alone = found["memory"]["1.1.1"]
        lines.append(HELD)
        for mesh, own in found["memory"].items():
            name = "one device" if mesh == "1.1.1" else words(mesh)
            parts = " | ".join(
                f"{own[key]:.2f}" for key in ("parameters", "moments", "arguments", "temporaries")
            )
            lines.append(f"| {name} | {parts} | 1/{alone['parameters'] / own['parameters']:.1f} |")
    return "\n".join(lines) + "\n"


def main(output: Path) -> None:
    from tests.rlhf.mesh import cases

    kept = output.with_suffix(".json")
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in ("memory", *cases.all_cases()):
        if name not in found:
            found[name] = child(name)
            kept.write_text(json.dumps(found, indent=1) + "\n")
            print(name, found[name], flush=True)
    output.write_text(page(found))
    worst = max(value[0] for name in cases.all_cases() for value in found[name].values())
    print(f"largest difference {worst:.1e}")
    if worst >= 1e-4:
        sys.exit("a mesh gives other numbers than one device")


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        print(json.dumps(memory() if sys.argv[2] == "memory" else compare(sys.argv[2])))
    else:
        main(Path(sys.argv[1]))
