"""Short trainings on a tiny model, the same on any mesh: what they leave, to be compared.

`python -m tests.rlhf.mesh.cases OUTPUT.npz MESH … -- CASE …` runs cases on meshes of this process's devices, for instance
`8.1.1 1.4.2 -- dpo/low_rank/lora grpo/film/lora`.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import rewards
import rlhf
from rlhf.mesh import devices
from rlhf.policy import store as policy_store
from rlhf.run.config.common import MeshConfig
from tests.rlhf import tiny
from tests.rlhf.api.world import FIT, QUESTION, table

MESHES = ("8.1.1", "1.8.1", "1.4.2", "2.2.2")
ALGORITHMS = ("sft", "dpo", "ppo", "grpo")
CONDITIONERS = ("low_rank", "film", "prefix")
STEPS = 3
UNSAID = "1.train/accuracy"
"""Before the first step all margins are 0, and their signs those of rounding errors."""
Found = dict[str, np.ndarray]


def mesh_of(name: str) -> dict[str, int]:
    return dict(zip(devices.AXES, map(int, name.split(".")), strict=True))


def all_cases() -> list[str]:
    """algorithm/conditioner/what is trained."""
    cases = ["sft/none/lora", "sft/none/full"]
    for algorithm in ALGORITHMS[1:]:
        cases += [f"{algorithm}/{kind}/{tune}" for kind in CONDITIONERS for tune in ("lora", "full")]
    return cases


class World:
    """Model, data and rewards that all cases share; tied: whether the head is the embedding."""

    def __init__(self, directory: Path, tied: bool = True):
        self.model = tiny.write_model(directory / "model", vocab_size=48, tie_word_embeddings=tied)
        self.prefs = rewards.read(table())
        self.fitted = rewards.fit(self.prefs.training, encoder=rlhf.encoder(self.model), **FIT)

    def train(self, case: str, mesh: dict[str, int], **keys) -> rlhf.Policy:
        algorithm, conditioner, tune = case.split("/")
        given = {"mesh": mesh, "steps": STEPS, "learning_rate": 1e-2, "tune": {"mode": tune, "lora_rank": 2}}
        given |= {"eps": 1e-3, **keys}  # Adam divides by √v: without it a gradient of rounding errors is a step
        if algorithm == "sft":
            return rlhf.train_sft(self.model, self.prefs, row_length=16, batch_rows=16, **given)
        given |= {"rewards": self.fitted, "conditioner": {"kind": conditioner}}
        if algorithm == "dpo":
            return rlhf.train_dpo(self.model, self.prefs, batch_rows=16, accumulation_steps=2, **given)
        given["rollout"] = {"max_new_tokens": 4, "prompts_per_step": 8, "completions": 4}
        if algorithm == "ppo":
            shared = {"backbone": "shared"} if tune == "full" else {}
            sizes = {"minibatches": 2, "epochs": 2}
            given |= {"algorithm": sizes, "critic": {"hidden": 8} | shared}
            return rlhf.train_ppo(self.model, self.prefs, **given)
        return rlhf.train_grpo(self.model, self.prefs, **given)

    def run(self, case: str, mesh: dict[str, int], **keys) -> Found:
        """Parameters, metrics of every step and sampled tokens, by name."""
        policy = self.train(case, mesh, **keys)
        params = policy.loaded.params
        found = {
            f"{role}.{name}": value
            for role in ("base", "lora", "conditioner")
            for name, value in policy_store.flatten(getattr(params, role)).items()
        }
        for step in policy.history:
            numbers = {k: v for k, v in step.metrics.items() if not k.startswith("perf/")}
            found |= {f"{step.step}.{name}": np.asarray(value) for name, value in numbers.items()}
        people = ["p00", "p01", None] if policy.loaded.gate is not None else [None]
        with devices.use(MeshConfig(**mesh)):
            rows = policy.generate([QUESTION, "item ?"], people=people, max_new_tokens=5, seed=1).rows
        texts = "|".join(row.text for row in rows)
        return found | {"tokens": np.frombuffer(texts.encode(), np.uint8)}


def run_all(meshes: Iterable[str], cases: Iterable[str], directory: Path, tied: bool = True) -> Found:
    world = World(directory, tied)
    return {
        f"{mesh}:{case}:{name}": value
        for case in cases
        for mesh in meshes
        for name, value in world.run(case, mesh_of(mesh)).items()
    }


def differences(one: Found, other: Found, mesh: str, case: str) -> tuple[float, str]:
    """The largest difference between one device and a mesh, and where; tokens that differ count as infinite."""
    alone, divided = f"1.1.1:{case}:", f"{mesh}:{case}:"
    names = [name.removeprefix(alone) for name in one if name.startswith(alone)]
    assert names and {divided + name for name in names} == {n for n in other if n.startswith(divided)}
    names = [name for name in names if name != UNSAID]
    worst = (0.0, "")
    for name in names:
        a, b = one[alone + name], other[divided + name]
        if name == "tokens":
            apart = 0.0 if np.array_equal(a, b) else float("inf")
        else:
            apart = float(np.max(np.abs(a - b), initial=0.0))
        worst = max(worst, (apart, name))
    return worst


if __name__ == "__main__":
    output, *rest = sys.argv[1:]
    cut = rest.index("--")
    with tempfile.TemporaryDirectory() as folder:
        np.savez(output, **run_all(rest[:cut], rest[cut + 1 :], Path(folder)))
