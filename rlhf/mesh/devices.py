"""One mesh of all devices with three named axes, and the run that works under it.

    data    rows of a batch are divided, weights are whole on every device
    fsdp    rows are divided too, and so are weights, gradients and moments; a layer is gathered while it is computed
    tensor  each matrix is divided along its heads or its hidden width, rows are not

XLA places the collectives; nothing here moves a number. With one device there is no mesh at all, and every program is
what it would be without this room.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import jax
from jax.sharding import AxisType, Mesh

from rewards.errors import UserError
from rlhf.mesh import meeting
from rlhf.run import processes
from rlhf.run.config.common import MeshConfig

AXES = ("data", "fsdp", "tensor")
ONE_DEVICE = "one device"


def sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Devices along every axis; the one axis that is −1 takes what the others leave.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    given = {name: getattr(config, name) for name in AXES}
    fixed = math.prod(size for size in given.values() if size > 0)
    said = " × ".join(f"{name} {size}" for name, size in given.items())
    if free := [name for name, size in given.items() if size < 0]:
        if num_devices % fixed:
            others = [name for name in AXES if name not in free]
            raise UserError(
                f"mesh: {' × '.join(f'{name} {given[name]}' for name in others)} is {fixed}, which does not divide the "
                f"{num_devices} device{'s' * (num_devices != 1)} of this run; set mesh.{others[0]} and mesh.{others[1]} to "
                "numbers whose product does"
            )
        given[free[0]] = num_devices // fixed
    elif fixed != num_devices:
        raise UserError(
            f"mesh: {said} are {fixed} devices, and this run has {num_devices}; set mesh.data=-1 (all that are left), or other "
            "axes"
        )
    return given


def build(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh over these devices, by default all; None where the process has one device, which needs none."""
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes(config, len(devices)).values())
    if len(jax.devices()) == 1:
        return None
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


@contextlib.contextmanager
def use(config: MeshConfig, devices: Sequence[Any] | None = None) -> Iterator[Mesh | None]:
    """Work under the mesh: arrays are placed on it, and compiled functions are divided over it.

    Under a mesh already it changes nothing, so that whoever calls a trainer may have chosen one.
    """
    if (mesh := current()) is not None:
        yield mesh
        return
    mesh = build(config, devices)
    if mesh is None:
        yield None
        return
    meeting.connect(mesh)
    with jax.set_mesh(mesh):
        yield mesh


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Work that every process does for itself, such as rewards of its own rows: on its own devices, without the others.

    With one process it changes nothing.
    """
    if not processes.several():
        yield
        return
    own = jax.local_devices()
    mesh = jax.make_mesh((len(own), 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=own)
    with jax.set_mesh(mesh):
        yield


class Meshed(Protocol):
    """A configuration with a mesh."""

    @property
    def mesh(self) -> MeshConfig: ...


Config = TypeVar("Config", bound=Meshed)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def under_mesh(
    job: Callable[Concatenate[Config, Rest], Result],
) -> Callable[Concatenate[Config, Rest], Result]:
    """A function whose first argument is a configuration, run under the mesh that it asks for."""

    @functools.wraps(job)
    def meshed(config: Config, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with use(config.mesh):
            return job(config, *args, **kwargs)

    return meshed


def current() -> Mesh | None:
    """The mesh that is worked under; None without one, and while a function is traced, when nothing can be placed."""
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:
        return None
    return None if mesh.empty else mesh


def axis(*names: str) -> int:
    """Devices along these axes together; 1 without a mesh. The same while a function is traced."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in names)


def described() -> str:
    """The mesh in words, for a run's record."""
    mesh = jax.sharding.get_abstract_mesh()
    return (
        ONE_DEVICE
        if mesh.empty or mesh.size == 1
        else " × ".join(f"{name} {mesh.shape[name]}" for name in AXES)
    )
