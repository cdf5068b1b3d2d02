"""Batches of comparisons whose rows are of similar length (`train.length_buckets`, `rlhf.policy.lengths`)."""

import logging

import jax
import numpy as np
from jaxtyping import PyTree

from rlhf.mesh import place
from rlhf.policy import lengths
from rlhf.policy.batches import microbatches
from rlhf.policy.lengths import Grouped, Widths
from rlhf.policy.packing import PackedRows
from rlhf.train.config import DPOConfig
from rlhf.train.length import num_steps, rows_a_step
from rlhf.train.loop import Batches
from rlhf.train.reward.config import RewardTrainConfig
from rlhf.train.sft import batches as batches_as_they_come

_LOG = logging.getLogger(__name__)
MUCH = 0.5
"""A larger share of padding is spoken of."""


def widths(config: DPOConfig | RewardTrainConfig, packed: PackedRows) -> list[Widths] | None:
    """To what rows are padded; None where all are padded to the longest."""
    return _widths(config, lengths.used(packed))


def _widths(config: DPOConfig | RewardTrainConfig, sizes: np.ndarray) -> list[Widths] | None:
    buckets = config.train.length_buckets
    return None if buckets == 1 else lengths.divide(sizes, buckets)


def batches(config: DPOConfig | RewardTrainConfig, data: PyTree, packed: PackedRows) -> Batches:
    """As `rlhf.train.sft.batches` of `data`, whose rows `packed` are; grouped by length where the configuration says so."""
    sizes = lengths.used(packed)
    wide = _widths(config, sizes)
    if wide is None:
        lost = lengths.padding(sizes[:, 0], packed.tokens.shape[1])
        if lost > MUCH:
            _LOG.info(
                f"train.length_buckets 1: {lost:.0%} of the tokens computed are padding; 8 would have less"
            )
        return batches_as_they_come(config, data, len(sizes))
    grouped = Grouped(sizes, wide, config.seed, num_steps(config), rows_a_step(config))
    _LOG.info(
        f"train.length_buckets: rows of {', '.join(str(one.nodes) for one in wide)} tokens, one program each; "
        f"{grouped.padding():.0%} of the tokens computed are padding"
    )
    accumulation = config.train.accumulation_steps

    def made(_: int, index: np.ndarray) -> PyTree:
        return place.batch(cut(microbatches(data, index, accumulation), grouped.width(index)), 1)

    return Batches(grouped.rows, made)


def cut(data: PyTree, width: Widths) -> PyTree:
    """`data` with its packed rows, and what is known of each of their nodes (`hidden` [..., T, D]), no wider than `width`."""
    if getattr(data, "hidden", None) is not None:
        data = data._replace(hidden=data.hidden[..., : width.nodes, :])

    def narrow(part: PyTree) -> PyTree:
        return lengths.trimmed(part, width) if isinstance(part, PackedRows) else part

    return jax.tree.map(narrow, data, is_leaf=lambda part: isinstance(part, PackedRows))
