"""Refuses what cannot fit before it is made: sizes of a run × the model, against the memory of the device.

The estimates leave out what a compiler may save (scores of attention, logits), so that hardly anything is refused that
would have run.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rewards.errors import UserError
from rlhf.mesh import place
from rlhf.mesh.devices import axis
from rlhf.mesh.place import num_row_parts
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.packing import PackedRows
from rlhf.run import processes
from rlhf.train.config import Supervised
from rlhf.train.rl.config import GRPOConfig, PPOConfig, RLConfig

GIGABYTE = 1e9
CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
PER_LAYER = 16  # activations that the backward pass keeps of a layer, in widths, for Llama's proportions
ADAM = 3  # a trained number and its two moments, float32 each


def device_bytes() -> float:
    """Memory of a device that computes, in a job of several processes of the smallest (all of them ask)."""
    return min(processes.exchange(_own_bytes()))


def _own_bytes() -> float:
    """Of a CPU its share of the machine's memory, or of what the process's container may take."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(path.read_text()))
    return float(min(limits)) / len(jax.local_devices())


def check(needed: Mapping[str, float], lower: str) -> None:
    """Refuse more bytes than there are.

    Args:
      needed: bytes by use. lower: the keys that make it smaller.
    Raises:
      UserError: how much is needed, of what, and how much there is.
    """
    total, room = sum(needed.values()), device_bytes()
    if total > room:
        listed = ", ".join(
            f"{name} {size / GIGABYTE:.3g}" for name, size in needed.items() if size > 0.01 * total
        )
        raise UserError(
            f"memory: at least {total / GIGABYTE:.3g} GB are needed ({listed}), and there are {room / GIGABYTE:.3g} GB; "
            f"lower {lower}"
        )


def check_pass(config: Supervised | RLConfig) -> None:
    """Refuse rows of one pass that the mesh cannot divide, from the configuration alone; raises UserError with the key."""
    if isinstance(config, PPOConfig | GRPOConfig):
        what = "rollout (prompts × people × completions) over algorithm.minibatches"
        place.check_rows(what, config.rows // config.algorithm.minibatches)
    elif not isinstance(config, RLConfig) and config.train.batch_rows is not None:
        place.check_rows("train.batch_rows", config.train.batch_rows)


def check_policy(
    config: Supervised | RLConfig, base: policy_store.Base, shapes: PolicyParams, conditioned: bool
) -> None:
    """Refuse adapters of more layers than there are, and trained parameters that do not fit, from shapes alone.

    Raises:
      UserError: the key and the model's number, or the estimate.
    """
    layers = config.model.adapter_layers
    if layers is not None and layers > base.config.num_layers:
        raise UserError(
            f"model.adapter_layers {layers}: {base.name} has {base.config.num_layers} layers; give at most as many, or null "
            "for all"
        )
    full = config.tune.mode == "full"
    widest = max(base.config.width, base.config.mlp_width)
    if not full and config.tune.lora_rank > widest:
        raise UserError(
            f"tune.lora_rank {config.tune.lora_rank}: the widest matrix of {base.name} has {widest} rows, more ranks add "
            "nothing; lower it, or train all weights (tune.mode=full)"
        )
    parts = axis("fsdp", "tensor")
    held = {"weights": 4 * _size(shapes.base) / parts if full else policy_bytes(base)}
    held["optimiser"] = 4 * (ADAM - 1) * _size(shapes.base) / parts if full else 0.0
    held["adapters"] = 0.0 if full else 4.0 * ADAM * _size(shapes.lora) / parts
    held["conditioner"] = 4.0 * ADAM * _size(shapes.conditioner)
    keys = "tune.mode full (take lora)" if full else "tune.lora_rank"
    check(
        held,
        f"{keys}{', conditioner.rank or conditioner.slots' if conditioned else ''} or model.adapter_layers",
    )


def check_rows(config: Supervised, base: policy_store.Base, data: object, packed: PackedRows) -> None:
    """Refuse steps whose rows of `data` and their activations do not fit; raises UserError with the estimate."""
    assert config.train.batch_rows is not None, "settled with the length"
    rows = config.train.batch_rows / num_row_parts()
    num_rows, length = packed.tokens.shape
    row = sum(leaf.nbytes for leaf in jax.tree.leaves(data)) / num_rows
    held = {"rows of a step": rows * config.train.accumulation_steps * row}
    held["activations"] = _activations(config, base, length, rows)
    check(held, "train.batch_rows, train.accumulation_steps or the length of rows")


def rows_that_fit(config: Supervised, base: policy_store.Base, packed: PackedRows, rows: int) -> int:
    """The largest half, quarter … of `rows` whose activations take no more than half of the memory."""
    while (
        rows > 1
        and _activations(config, base, packed.tokens.shape[1], rows / num_row_parts()) > device_bytes() / 2
    ):
        rows //= 2
    return rows


def _activations(config: Supervised, base: policy_store.Base, length: int, rows: float) -> float:
    """Bytes that the backward pass keeps of so many rows."""
    each = 2 if config.model.dtype == "bfloat16" else 4
    kept = 2 * base.config.width if config.model.remat else PER_LAYER * base.config.width
    return rows * length * base.stages[-1] * kept * each


def policy_bytes(base: policy_store.Base) -> float:
    """Bytes of the frozen weights on one device."""
    parts = axis("fsdp", "tensor")
    return sum(num_bytes(leaf.size, leaf.dtype) for leaf in jax.tree.leaves(base.tree)) / parts


def num_bytes(size: int, dtype: DTypeLike) -> float:
    """Bytes of so many numbers."""
    return float(size * jnp.dtype(dtype).itemsize)


def _size(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
