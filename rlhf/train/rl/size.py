"""How much memory an iteration takes, estimated before it compiles."""

import logging

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rlhf.mesh.devices import axis
from rlhf.mesh.place import num_row_parts
from rlhf.policy import store as policy_store
from rlhf.policy.vocabulary import LOGITS_BYTES
from rlhf.train import memory
from rlhf.train.rl.config import GRPOConfig, PPOConfig

_LOG = logging.getLogger("chorus")


def estimate(
    config: PPOConfig | GRPOConfig,
    base: policy_store.Base,
    state: PyTree,
    prompt_slots: int,
    hinted: tuple[int, int] = (0, 0),
) -> dict[str, float]:
    """Gigabytes of one device by use: weights, training state, sampling (cache, layers apart), update (activations and logits).

    Args:
      hinted: rows of hints beside every part of the update, and their length in slots.
    """
    model, rows, parts = base.config, config.rows // num_row_parts(), axis("fsdp", "tensor")
    bytes_each = 2 if config.model.dtype == "bfloat16" else 4
    length = prompt_slots + config.rollout.max_new_tokens
    part = max(1, rows // config.algorithm.minibatches)
    layers = base.stages[-1]
    cache = 2 * model.num_layers * rows * length * model.num_kv_heads * model.head_dim * bytes_each
    hidden = rows * length * model.width * bytes_each if len(base.stages) > 1 else 0

    def learning(rows: int, length: int) -> int:
        """Bytes that the backward pass holds for so many rows of so many slots: activations and logits."""
        kept = (
            2 * model.width
            if config.model.remat
            else (memory.PER_LAYER * model.width + 2 * model.num_heads * length)
        )
        logits = 4 * min(LOGITS_BYTES, 4 * rows * config.rollout.max_new_tokens * model.vocab_size)
        return rows * length * layers * kept * bytes_each + logits

    # Values that start from the rewards: states, their running sum, mean and product, of all rows at once.
    begins = isinstance(config, PPOConfig) and config.critic.from_rewards
    begun = 4 * 4 * rows * config.rollout.max_new_tokens * model.width if begins else 0
    return {
        "weights": _nbytes(base.tree) / parts / memory.GIGABYTE,
        "training state": _nbytes(state) / parts / memory.GIGABYTE,
        "sampling": (max(_nbytes(base.tree["stages"]) / parts + cache, begun) + hidden) / memory.GIGABYTE,
        "update": (hidden + learning(part, length) + learning(*hinted)) / memory.GIGABYTE,
    }


def check_sampling(config: PPOConfig | GRPOConfig, base: policy_store.Base, prompt_slots: int) -> None:
    """Refuse iterations whose sampling cannot fit, before anything is made for them; raises UserError with the estimate."""
    parts = estimate(config, base, None, prompt_slots)
    rows = float(config.rows)
    held = {name: parts[name] * memory.GIGABYTE for name in ("weights", "sampling")}
    held["tokens"] = rows * (prompt_slots + config.rollout.max_new_tokens) * 16
    lower = "rollout.prompts_per_step, users_per_prompt, completions or max_new_tokens"
    memory.check(held, lower)


def memory_line(
    config: PPOConfig | GRPOConfig,
    base: policy_store.Base,
    state: PyTree,
    prompt_slots: int,
    hinted: tuple[int, int] = (0, 0),
) -> None:
    """Say on stderr what to expect, so that a run too large can be stopped before it fails."""
    parts = estimate(config, base, state, prompt_slots, hinted)
    fixed = parts["weights"] + parts["training state"]
    total = fixed + max(parts["sampling"], parts["update"])
    listed = ", ".join(f"{name} {size:.2g}" for name, size in parts.items())
    _LOG.info(
        f"memory: about {total:.2g} GB ({listed}; sampling and update take turns); smaller: algorithm.minibatches, "
        f"model.remat, model.adapter_layers{', hints.rows_per_step' if hinted[0] else ''}"
    )


def _nbytes(tree: PyTree) -> float:
    return sum(
        memory.num_bytes(leaf.size, leaf.dtype)
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
