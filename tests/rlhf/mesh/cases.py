"""Short trainings on a tiny model, the same on any mesh: what they leave, to be compared; and what their programs exchange.

A mesh is named by its axes, `1.4.2` for data 1 × fsdp 4 × tensor 2; a case by algorithm, conditioner and what is trained.
"""

import contextlib
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import jax
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
TEXTS = "texts"
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

    def __init__(self, directory: Path, tied: bool = True, **changes: int | str):
        given = {"vocab_size": 48, "tie_word_embeddings": tied} | changes
        self.model = tiny.write_model(directory / "model", **given)
        self.prefs = rewards.read(table())

    @functools.cached_property
    def fitted(self) -> rewards.FittedRewards:
        return rewards.fit(self.prefs.training, encoder=rlhf.encoder(self.model), **FIT)

    def train(self, case: str, **keys) -> rlhf.Policy:
        algorithm, conditioner, tune = case.split("/")
        given = {"steps": STEPS, "learning_rate": 1e-2, "tune": {"mode": tune, "lora_rank": 2}}
        given |= {
            "eps": 1e-3,
            **keys,
        }  # Adam divides by √v: without it a gradient of rounding errors is a step
        if algorithm == "sft":
            return rlhf.train_sft(self.model, self.prefs, row_length=16, batch_rows=16, **given)
        given |= {"rewards": self.fitted, "conditioner": {"kind": conditioner}}
        if algorithm in (
            "ppo",
            "grpo",
        ):  # many updates, with kinks where ratios are clipped: larger steps magnify rounding
            given["learning_rate"] = 1e-3
        if algorithm == "dpo":
            return rlhf.train_dpo(self.model, self.prefs, batch_rows=16, accumulation_steps=2, **given)
        given["rollout"] = {"max_new_tokens": 4, "prompts_per_step": 8, "completions": 4}
        if algorithm == "ppo":
            shared = {"backbone": "shared"} if tune == "full" else {}
            sizes = {"minibatches": 2, "epochs": 2}
            given |= {"algorithm": sizes, "critic": {"hidden": 8} | shared}
            return rlhf.train_ppo(self.model, self.prefs, **given)
        return rlhf.train_grpo(self.model, self.prefs, **given)

    def run(self, case: str, **keys) -> Found:
        """What a case leaves, by name, with the metrics of every step."""
        policy = self.train(case, **keys)
        found = left_by(policy)
        for step in policy.history:
            numbers = {k: v for k, v in step.metrics.items() if not k.startswith("perf/")}
            found |= {f"{step.step}.{name}": np.asarray(value) for name, value in numbers.items()}
        return found


def left_by(policy: rlhf.Policy) -> Found:
    """Parameters and sampled texts of a policy."""
    found = {
        f"{role}.{name}": value
        for role in ("base", "lora", "conditioner")
        for name, value in policy_store.flatten(getattr(policy.loaded.params, role)).items()
    }
    people = ["p00", "p01", None] if policy.loaded.gate is not None else [None]
    rows = policy.generate([QUESTION, "item ?"], people=people, max_new_tokens=5, seed=1).rows
    texts = "|".join(row.text for row in rows)
    return found | {TEXTS: np.frombuffer(texts.encode(), np.uint8)}


def on(mesh: str) -> contextlib.AbstractContextManager[object]:
    """As many devices of this process as the mesh has."""
    config = MeshConfig(**mesh_of(mesh))
    return devices.use(config, jax.devices()[: math.prod(mesh_of(mesh).values())])


def run_all(world: World, meshes: Iterable[str], cases: Iterable[str], **keys: object) -> Found:
    """Every case on every mesh, under mesh:case:name."""
    found: Found = {}
    for case, mesh in itertools.product(cases, meshes):
        with on(mesh):
            found |= {f"{mesh}:{case}:{name}": value for name, value in world.run(case, **keys).items()}
    return found


def moved(world: World, case: str, meshes: Sequence[str], directory: Path) -> Found:
    """One run that is broken off after every step and goes on on the next mesh; what it leaves, on the last."""
    steps = len(meshes)
    for number, mesh in enumerate(meshes, 1):

        def stop(step: int, metrics: Mapping[str, float], last: int = number) -> None:
            if step == last + 1:  # read before the checkpoint of that step, so the run is at `last`
                raise KeyboardInterrupt

        with on(mesh), contextlib.suppress(KeyboardInterrupt):
            world.train(case, steps=steps, checkpoint_every=1, output_dir=directory, callbacks=[stop])
    with on(meshes[-1]):
        return left_by(rlhf.load_policy(directory))


def difference(found: Found, mesh: str, case: str) -> tuple[float, str]:
    """The largest difference between one device and a mesh, and where: relative above 1, infinite for texts."""
    alone, divided = f"1.1.1:{case}:", f"{mesh}:{case}:"
    names = [name.removeprefix(alone) for name in found if name.startswith(alone)]
    assert names and {divided + name for name in names} == {n for n in found if n.startswith(divided)}
    names = [name for name in names if name != UNSAID]
    worst = (0.0, "")
    for name in names:
        a, b = found[alone + name], found[divided + name]
        if name == TEXTS:
            apart = 0.0 if np.array_equal(a, b) else float("inf")
        else:
            apart = float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(a)), initial=0.0))
        worst = max(worst, (apart, name))
    return worst


@contextlib.contextmanager
def compiled(module: ModuleType, name: str) -> Iterator[dict[str, jax.stages.Compiled]]:
    """The optimised programs of a compiled function that run meanwhile, by the mesh in words; the first one of each."""
    function, programs = getattr(module, name), {}

    def spied(*args: object, **kwargs: object) -> object:
        if devices.described() not in programs:
            programs[devices.described()] = function.lower(*args, **kwargs).compile()
        return function(*args, **kwargs)

    setattr(module, name, spied)
    try:
        yield programs
    finally:
        setattr(module, name, function)


class _Compiled(Exception):
    """Enough: the program is there, and is not run."""


def exchanged(
    world: World, case: str, mesh: str, module: ModuleType, name: str
) -> list[tuple[str, tuple[int, ...]]]:
    """What the devices of a mesh exchange in a compiled step of a case, which is not run."""
    function, found = getattr(module, name), []

    def spied(*args: object, **kwargs: object) -> None:
        found.extend(collectives(function.lower(*args, **kwargs).compile().as_text()))
        raise _Compiled

    setattr(module, name, spied)
    try:
        with on(mesh), contextlib.suppress(_Compiled):
            world.train(case, steps=1)
    finally:
        setattr(module, name, function)
    return found


_COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and shape of every array that a program's devices exchange."""
    return [
        (kind, tuple(map(int, sizes.split(","))) if sizes else ())
        for shapes, kind in _COLLECTIVE.findall(text)
        for sizes in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]
