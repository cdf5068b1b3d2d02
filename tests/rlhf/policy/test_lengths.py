"""Rows of similar length together: the fewest padding, the same numbers, every row visited."""

import itertools

import jax
import numpy as np
import pytest

from rlhf.policy import lengths
from rlhf.policy.batches import batch_rows
from rlhf.policy.lengths import Grouped
from rlhf.policy.logprobs import all_logprobs, cached_hidden
from rlhf.policy.packing import Sequences, pack
from tests.rlhf import tiny

RNG = np.random.default_rng(0)


def sequence(first, size):
    return (first, *RNG.integers(3, 30, size - 1).tolist())


ROWS = [
    [Sequences(sequence(1, n % 7 + 1), (sequence(3, n + 1), sequence(4, (3 * n) % 11 + 1)))]
    for n in RNG.permutation(23)
]


def test_what_is_used_is_counted_row_by_row():
    packed = pack(ROWS)
    for row, sizes in zip(ROWS, lengths.used(packed), strict=True):
        alone = pack([row], multiple=1)
        assert sizes.tolist() == [alone.tokens.shape[1], alone.heads.shape[1], alone.scored.shape[1]]


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_widths_have_the_least_padding(most):
    sizes = np.sort(RNG.integers(1, 90, (40, 3)), axis=1)[:, ::-1]
    found = [width.nodes for width in lengths.divide(sizes, most)]
    rounded = -(-sizes[:, 0] // 8) * 8
    known = np.unique(rounded)

    def nodes(widths):
        return sum(min(width for width in widths if width >= size) for size in rounded)

    least = min(nodes((*chosen, known[-1])) for chosen in itertools.combinations(known[:-1], most - 1))
    assert nodes(found) == least and found == sorted(found) and len(found) == most
    for width in lengths.divide(sizes, most):
        assert (sizes[sizes[:, 0] <= width.nodes] <= np.array(width)).all()


@pytest.mark.parametrize("adapter_layers", [None, 1])
def test_rows_say_the_same_at_any_width(adapter_layers):
    base = tiny.make_base(tiny.make_config("gemma2"), adapter_layers=adapter_layers)
    policy, packed = tiny.make_policy(base, None), pack(ROWS)
    wide = lengths.divide(lengths.used(packed), 3)
    assert len(wide) == 3
    hidden = [cached_hidden(policy.graphdef, policy.params, packed, given) for given in (None, wide)]
    assert (hidden[0] is None) == (adapter_layers is None)
    whole, cut = (
        all_logprobs(policy.graphdef, policy.params, packed, below, widths=given)
        for below, given in zip(hidden, (None, wide), strict=True)
    )
    np.testing.assert_allclose(cut, whole, atol=2e-6)


def test_windows_visit_what_would_be_visited_without_them():
    sizes = np.sort(RNG.integers(1, 90, (371, 3)), axis=1)[:, ::-1]
    grouped = Grouped(sizes, lengths.divide(sizes, 4), seed=5, num_steps=120, batch=4)
    steps = [grouped.rows(step) for step in range(120)]
    for first, end in ((0, 50), (50, 100), (100, 120)):
        plain = np.concatenate([batch_rows(5, step, 371, 4) for step in range(first, end)])
        assert sorted(np.concatenate(steps[first:end])) == sorted(plain)
    wide = np.mean([grouped.width(rows).nodes for rows in steps])
    alone = np.mean([grouped.width(np.array([row])).nodes for rows in steps for row in rows])
    assert wide < 1.05 * alone < grouped.widths[-1].nodes  # hardly more than rows one by one
    assert (
        len({grouped.width(rows).nodes for rows in steps[:20]}) == 4
    )  # short and long ones mixed over the run
    few = Grouped(sizes[:9], grouped.widths, seed=5, num_steps=120, batch=4)
    for first in range(0, 120, 2):  # no window is longer than an epoch
        plain = np.concatenate([batch_rows(5, step, 9, 4) for step in (first, first + 1)])
        assert sorted(np.concatenate([few.rows(first), few.rows(first + 1)])) == sorted(plain)
    again = Grouped(sizes, grouped.widths, seed=5, num_steps=120, batch=4)
    assert all(
        (again.rows(step) == steps[step]).all() for step in (119, 3, 60)
    )  # a resumed run asks in another order
    other = Grouped(sizes, grouped.widths, seed=6, num_steps=120, batch=4)
    assert any((other.rows(step) != steps[step]).any() for step in range(5))


def test_a_trimmed_tree_keeps_leading_axes():
    packed = pack(ROWS)
    stacked = jax.tree.map(lambda leaf: leaf[:6].reshape(2, 3, *leaf.shape[1:]), packed)
    width = lengths.Widths(8, 8, 16)
    assert lengths.trimmed(stacked, width).member.shape == (2, 3, 2, 16)
    assert lengths.trimmed(stacked, width).tokens.shape == (2, 3, 8)
