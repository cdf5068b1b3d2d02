"""`data.stream`: preferences that are larger than memory, read, packed and scored under π_ref step by step.

A step's rows are the same as without (`rlhf.policy.batches.batch_rows`, a function of seed and step), each row one comparison.
Widths are powers of two, so that few programs are compiled. π_ref is the policy at its start: fresh adapters change nothing.

Shapes: A micro-batches, B rows, T nodes.
"""

import jax
import numpy as np
from flax import nnx

from rewards.data.stream import Stream
from rewards.errors import UserError
from rlhf.mesh import place
from rlhf.models.tokenizer import Tokenizer
from rlhf.policy import store as policy_store
from rlhf.policy.batches import PairRows, batch_rows
from rlhf.policy.logprobs import PolicyParams, sequence_logprobs
from rlhf.policy.packing import PackedRows, Sequences, pack
from rlhf.train import dpo_step as dpo
from rlhf.train.config import DPOConfig
from rlhf.train.length import rows_a_step
from rlhf.train.loop import Batches

LEAST = 32
"""Nodes of the shortest rows."""


def check(config: DPOConfig) -> None:
    """Refuse what needs all rows at once.

    Raises:
      UserError: the key, and what to do.
    """
    why = {
        "loss.kind": config.loss.personal and config.loss.kind,
        "loss.annotation": config.loss.annotation != "none" and config.loss.annotation,
        "guardrails": config.guardrails is not None and "given",
        "train.evaluate_every": config.train.evaluate_every,
        "groups.completions": config.groups.completions != 2 and "null",
    }
    for key, value in why.items():
        if value:
            fix = "dpo, ipo, cdpo or simpo" if key == "loss.kind" else "its default"
            raise UserError(f"{key} {value}: needs all rows at once; set it to {fix}, or data.stream=false")
    if config.train.batch_rows is None:
        raise UserError(
            "train.batch_rows null: is chosen from all rows; give a number, or set data.stream=false"
        )


def batches(
    config: DPOConfig,
    stream: Stream,
    base: policy_store.Base,
    graphdef: nnx.GraphDef,
    reference: PolicyParams,
) -> Batches:
    """Step number → its rows, packed and with their log π_ref.

    Args:
      reference: the parameters at the start, which no step may give away.
    """
    accumulation = config.train.accumulation_steps

    def made(_: int, index: np.ndarray) -> dpo.DPOBatch:
        rows = pair_rows(stream, index, base.tokenizer, base.config.max_positions)
        parts = jax.tree.map(lambda a: a.reshape(accumulation, -1, *a.shape[1:]), rows)
        scores = [
            place.host(sequence_logprobs(graphdef, reference, place.batch(_part(parts.packed, part)), None))
            for part in range(accumulation)
        ]
        phi = np.zeros((*parts.item.shape, 0), np.float32)
        return place.batch(dpo.DPOBatch(parts, np.stack(scores), phi, None), 1)

    return Batches(lambda step: batch_rows(config.seed, step, len(stream), rows_a_step(config)), made)


def _part(packed: PackedRows, part: int) -> PackedRows:
    return PackedRows(*(leaf[part] for leaf in packed))


def pair_rows(stream: Stream, index: np.ndarray, tokenizer: Tokenizer, max_positions: int) -> PairRows:
    """Rows `index` of the stream as `rlhf.policy.batches.pair_rows` makes them of distinct pairs."""
    groups, outcome = [], []
    for row in index:
        prompt, first, second, chosen = stream.pair(int(row))
        start = tuple(tokenizer.encode_prompt(prompt))
        both = tuple(tuple(tokenizer.encode_completion(text)) for text in (first, second))
        length = len(start) + max(map(len, both))
        if length > max_positions:
            raise UserError(
                f"{stream.source}: row {row + 1}: prompt and completion have {length} tokens, the model's context holds "
                f"{max_positions}; shorten the text or use a model with a longer context"
            )
        groups.append([Sequences(start, both)])
        outcome.append(chosen)
    count = len(index)
    return PairRows(
        widened(pack(groups)),
        np.tile(np.arange(2, dtype=np.int32), (count, 1)),
        np.tile(np.array([[0, 1]], np.int32), (count, 1, 1)),
        np.ones((count, 1), np.float32),
        np.array(outcome, np.float32)[:, None],
        np.full(count, -1, np.int32),
    )


def widened(packed: PackedRows) -> PackedRows:
    """The same rows, padded to powers of two: few shapes, whatever the lengths."""
    nodes = _power(packed.tokens.shape[1])
    scored = min(_power(max(packed.scored.shape[1], packed.heads.shape[1])), nodes)

    def padded(array: np.ndarray, width: int) -> np.ndarray:
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])

    end = np.tile(np.arange(1, nodes + 1, dtype=np.int32), (len(packed.end), 1))
    end[:, : packed.end.shape[1]] = packed.end
    return PackedRows(
        padded(packed.tokens, nodes),
        padded(packed.positions, nodes),
        end,
        padded(packed.heads, scored),
        padded(packed.scored, scored),
        padded(packed.scored_head, scored),
        padded(packed.member, scored),
    )


def _power(size: int) -> int:
    return max(LEAST, 1 << (size - 1).bit_length())
