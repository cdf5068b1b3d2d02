"""Groups of devices of several processes, brought together before anything large is compiled.

On CPUs Gloo makes a group's connections when the group first exchanges something, and gives the others 30 seconds to come. One
process may take a minute longer than another to compile the program that asks first (it reads it from no cache, or its
host is busy), and would then be taken for dead. So every group meets here once: a tiny program is compiled by each, they wait
for one another, and then it runs.
"""

import functools
import itertools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf.run import processes

_met: set[tuple[tuple[int, ...], ...]] = set()


def connect(mesh: Mesh) -> None:
    """Let all groups along the axes of a mesh meet, and those of `processes.exchange`; every process calls it alike."""
    if not processes.several() or jax.default_backend() != "cpu":
        return
    by_process = np.array(jax.devices()).reshape(processes.count(), -1)
    axes = (AxisType.Auto,) * by_process.ndim
    for one in (Mesh(by_process, ("processes", "own"), axis_types=axes), mesh):
        wide = [name for name in one.axis_names if one.shape[name] > 1]
        for count in range(1, len(wide) + 1):
            for along in itertools.combinations(wide, count):
                _meet(one, along)


def _meet(mesh: Mesh, along: tuple[str, ...]) -> None:
    rest = [name for name in mesh.axis_names if name not in along]
    order = [mesh.axis_names.index(name) for name in (*rest, *along)]
    ids = np.vectorize(lambda device: device.id)(mesh.devices).transpose(order)
    groups = tuple(map(tuple, ids.reshape(-1, int(np.prod([mesh.shape[name] for name in along]))).tolist()))
    if groups in _met:
        return
    _met.add(groups)
    rows = NamedSharding(mesh, P(mesh.axis_names))
    ones = np.ones(mesh.size, np.float32)
    array = jax.make_array_from_callback(ones.shape, rows, ones.__getitem__)
    summed = jax.shard_map(
        functools.partial(jax.lax.psum, axis_name=along),
        mesh=mesh,
        in_specs=P(mesh.axis_names),
        out_specs=P(tuple(rest)),
    )
    program = jax.jit(summed).lower(array).compile()
    processes.wait_for_all(f"chorus/met/{len(_met)}")
    jax.block_until_ready(program(array))
