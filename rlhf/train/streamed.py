"""`data.stream`: data that are larger than memory, read, packed (and, of preferences, scored under π_ref) step by step.

A step's rows are the same as without (`rlhf.policy.batches.batch_rows`, a function of seed and step, so that a checkpoint need
hold no more than its step), each row one comparison or example. Widths are powers of two, so that few programs are compiled.
π_ref is the policy at its start: fresh adapters change nothing. Of a job of several processes each reads the rows of a step.

Shapes: A micro-batches, B rows, T nodes.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from flax import nnx

from rewards.basis.store import FittedBasis
from rewards.data.stream import Stream
from rewards.errors import UserError
from rewards.people.population import People
from rlhf.mesh import place
from rlhf.policy import store as policy_store
from rlhf.policy.batches import PairRows, SFTRows, batch_rows, microbatches
from rlhf.policy.logprobs import PolicyParams, sequence_logprobs
from rlhf.policy.packing import PackedRows, Sequences, check_row_length, pack
from rlhf.train import dpo_step as dpo
from rlhf.train import sft_step as sft
from rlhf.train.config import DPOConfig, SFTConfig
from rlhf.train.length import in_steps, rows_a_step
from rlhf.train.loop import Batches
from rlhf.train.streamed_people import ItemFeatures, Own, features_of, own_rows

Config = TypeVar("Config", SFTConfig, DPOConfig)
Rows = TypeVar("Rows", SFTRows, PairRows)
LEAST = 32
"""Nodes of the shortest rows."""


def check(config: DPOConfig | SFTConfig) -> None:
    """Refuse what needs all rows at once.

    Raises:
      UserError: the key, and what to do.
    """
    why: dict[str, object] = {"train.evaluate_every": config.train.evaluate_every}
    if isinstance(config, DPOConfig):
        why = {
            "loss.annotation": config.loss.annotation != "none" and config.loss.annotation,
            "guardrails": config.guardrails is not None and "given",
            **why,
            "groups.completions": config.groups.completions != 2 and "null",
            "train.length_buckets": config.train.length_buckets > 1 and config.train.length_buckets,
        }
    for key, value in why.items():
        if value:
            raise UserError(
                f"{key} {value}: needs all rows at once; set it to its default, or data.stream=false"
            )
    if config.train.batch_rows is None:
        raise UserError(
            "train.batch_rows null: is chosen from all rows; give a number, or set data.stream=false"
        )


class Personal(NamedTuple):
    """What a stream of people's comparisons needs besides. own: None where every row teaches everybody."""

    features: ItemFeatures
    own: Own | None


def personal_of(config: DPOConfig, stream: Stream, rewards: FittedBasis, people: People) -> Personal:
    """The encoder of the rewards, and with labels of people's own whose each row is. Errors as of its parts."""
    own = own_rows(stream, people) if config.loss.kind == "observed" else None
    return Personal(features_of(rewards), own)


def batches(
    config: DPOConfig,
    stream: Stream,
    base: policy_store.Base,
    graphdef: nnx.GraphDef,
    reference: PolicyParams,
    personal: Personal | None = None,
) -> Batches:
    """Step number → its rows, packed and with their log π_ref and φ.

    Args:
      reference: the parameters at the start, which no step may give away.
    """
    accumulation = config.train.accumulation_steps

    def made(_: int, index: np.ndarray) -> dpo.DPOBatch:
        rows = pair_rows(config, stream, index, base)
        phi = np.zeros((*rows.item.shape, 0), np.float32)
        if personal is not None:
            items = stream.preferences(index)
            found = personal.features(items)
            phi = np.stack([found[items.chosen], found[items.rejected]], axis=1)
            if personal.own is not None:
                rows = rows._replace(user=personal.own.user[index])
        parts, phi = microbatches((rows, phi), np.arange(len(index)), accumulation)
        scores = [
            place.host(sequence_logprobs(graphdef, reference, place.batch(_part(parts.packed, part)), None))
            for part in range(accumulation)
        ]
        return place.batch(dpo.DPOBatch(parts, np.stack(scores), phi, None), 1)

    kept = None if personal is None or personal.own is None else personal.own.row
    return Batches(_order(config, stream, kept), made)


def _part(packed: PackedRows, part: int) -> PackedRows:
    return PackedRows(*(leaf[part] for leaf in packed))


def pair_rows(config: DPOConfig, stream: Stream, index: np.ndarray, base: policy_store.Base) -> PairRows:
    """Rows `index` of the stream as `rlhf.policy.batches.pair_rows` makes them of distinct pairs."""
    groups, outcome, tokenizer = [], [], base.tokenizer
    for row in index:
        prompt, first, second, chosen = stream.pair(int(row))
        start = tuple(tokenizer.encode_prompt(prompt))
        both = tuple(tuple(tokenizer.encode_completion(text)) for text in (first, second))
        length = len(start) + max(map(len, both))
        _check_length(f"{stream.source}: row {row + 1}", length, base.config.max_positions)
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


def first_rows(
    config: Config, stream: Stream, packed_by: Callable[..., Rows], base: policy_store.Base
) -> tuple[Config, Rows]:
    """The configuration with its length as a number, and the rows of the first step; the rest is not read.

    Args:
      packed_by: `pair_rows` or `example_rows`.
    """
    check(config)
    config = in_steps(config, len(stream), rows_a_step(config))
    return config, packed_by(config, stream, _order(config, stream)(0), base)


def _order(
    config: DPOConfig | SFTConfig, stream: Stream, kept: np.ndarray | None = None
) -> Callable[[int], np.ndarray]:
    """Step number → the rows of the stream that it visits, among those that are kept (None: all)."""
    count, each = len(stream) if kept is None else len(kept), rows_a_step(config)

    def visited(step: int) -> np.ndarray:
        index = batch_rows(config.seed, step, count, each)
        return index if kept is None else kept[index]

    return visited


def example_batches(config: SFTConfig, stream: Stream, base: policy_store.Base) -> Batches:
    """Step number → its examples, packed."""
    accumulation = config.train.accumulation_steps

    def made(_: int, index: np.ndarray) -> sft.SFTBatch:
        rows = example_rows(config, stream, index, base)
        parts = microbatches(rows, np.arange(len(index)), accumulation)
        return place.batch(sft.SFTBatch(parts, None), 1)

    return Batches(_order(config, stream), made)


def example_rows(config: SFTConfig, stream: Stream, index: np.ndarray, base: policy_store.Base) -> SFTRows:
    """Rows `index` of the stream, each with the completions that `completions` says are learned."""
    groups, weights = [], []
    room = base.config.max_positions
    for row in index:
        prompt, shares = stream.example(int(row))
        wanted = {
            text: 1.0 if config.completions == "all" else share
            for text, share in shares.items()
            if share or config.completions == "all"
        }
        start = tuple(base.tokenizer.encode_prompt(prompt))
        texts = tuple(tuple(base.tokenizer.encode_completion(text)) for text in wanted)
        _check_length(f"{stream.source}: row {row + 1}", len(start) + max(map(len, texts)), room)
        check_row_length(config.train.row_length, len(start) + max(map(len, texts)))
        groups.append([Sequences(start, texts)])
        weights.append(list(wanted.values()))
    packed = widened(pack(groups))
    weight = np.zeros(packed.member.shape[:2], np.float32)
    for row, counts in enumerate(weights):
        weight[row, : len(counts)] = counts
    return SFTRows(packed, weight)


def _check_length(where: str, length: int, room: int) -> None:
    if length > room:
        raise UserError(
            f"{where}: prompt and completion have {length} tokens, the model's context holds {room}; shorten the text or use a "
            "model with a longer context"
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
