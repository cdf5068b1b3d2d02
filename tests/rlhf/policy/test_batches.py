"""Preferences → rows: weights, pairs, labels, ties, and the order of batches."""

import numpy as np
import pytest

from rewards.errors import UserError
from rewards.types import Preferences
from rlhf.policy.batches import batch_rows, microbatches, pair_rows, sft_rows
from tests.rlhf import tiny

TEXTS = ("ab", "abc", "d", "ef")  # items 0-2 answer prompt 0, items 3-4 prompt 1
TOKENIZER = tiny.ToyTokenizer()


def make_prefs() -> Preferences:
    rows = [  # user, chosen, rejected, outcome
        (0, 0, 1, 1.0),
        (0, 0, 1, 1.0),
        (0, 1, 0, 1.0),
        (1, 2, 0, 0.5),
        (1, 3, 4, 1.0),
    ]
    user, chosen, rejected, outcome = (np.array(column) for column in zip(*rows, strict=True))
    return Preferences(
        prompts=("q", "z"),
        item_prompt=np.array([0, 0, 0, 1, 1], np.int32),
        item_text=("ab", "abc", "d", "ef", "ab"),
        item_features=None,
        user_ids=("ann", "bob"),
        user_index=user.astype(np.int32),
        chosen=chosen.astype(np.int32),
        rejected=rejected.astype(np.int32),
        outcome=outcome.astype(np.float32),
        choice=np.arange(5, dtype=np.int32),
        row=np.arange(1, 6, dtype=np.int32),
        columns={},
        source="prefs.jsonl",
    )


def spelled(packed, row: int, completion: int) -> str:
    return TOKENIZER.decode(packed.tokens[row, packed.scored[row, packed.member[row, completion]]].tolist())


def test_sft_weights_are_how_often_a_completion_won():
    rows = sft_rows(make_prefs(), TOKENIZER, completions="chosen", row_length=32, max_positions=64)
    weight = {}
    for r, c in zip(*np.nonzero(rows.weight), strict=True):
        start = rows.packed.tokens[r, : rows.packed.scored[r, rows.packed.member[r, c]].min()]
        weight[spelled(rows.packed, r, c), int(rows.weight[r, c] * 2)] = start
    assert set(weight) == {("ab", 5), ("abc", 2), ("d", 1), ("ef", 2)}  # halves: ab won 2 and tied once
    rows = sft_rows(make_prefs(), TOKENIZER, completions="all", row_length=32, max_positions=64)
    assert sorted(rows.weight[rows.weight > 0]) == [1.0] * 5


def test_observed_rows_keep_one_persons_labels():
    prefs = make_prefs()
    rows = pair_rows(prefs, TOKENIZER, observed=True, size=None, max_positions=64)
    assert rows.user.tolist() == [0, 1, 1]
    found = set()
    for r in range(3):
        for (first, second), weight, outcome in zip(
            rows.pairs[r], rows.pair_weight[r], rows.outcome[r], strict=True
        ):
            if weight:
                names = spelled(rows.packed, r, first), spelled(rows.packed, r, second)
                items = rows.item[r, first], rows.item[r, second]
                assert names == tuple(prefs.item_text[i] for i in items)
                found.add((int(rows.user[r]), *names, float(weight), float(outcome)))
    assert found == {
        (0, "ab", "abc", 2.0, 1.0),
        (0, "abc", "ab", 1.0, 1.0),
        (1, "d", "ab", 1.0, 0.5),
        (1, "ef", "ab", 1.0, 1.0),
    }


def test_without_labels_every_pair_of_a_prompt_is_compared():
    rows = pair_rows(make_prefs(), TOKENIZER, observed=False, size=None, max_positions=64)
    assert (rows.user == -1).all()
    assert [sorted(row[row >= 0].tolist()) for row in rows.item] == [[0, 1, 2], [3, 4]]
    assert rows.pair_weight.sum(axis=1).tolist() == [3.0, 1.0]
    pairs = {tuple(sorted(rows.item[0, pair].tolist())) for pair in rows.pairs[0]}
    assert pairs == {(0, 1), (0, 2), (1, 2)}


def test_pairs_of_two_are_the_distinct_comparisons():
    rows = pair_rows(make_prefs(), TOKENIZER, observed=False, size=2, max_positions=64)
    assert sorted(tuple(row) for row in rows.item.tolist()) == [(0, 1), (0, 2), (3, 4)]
    assert rows.pair_weight.tolist() == [[1.0]] * 3


def test_rows_of_peoples_own_labels_are_not_cut_into_groups():
    with pytest.raises(ValueError, match="2 completions or all of a prompt, not 3"):
        pair_rows(make_prefs(), TOKENIZER, observed=True, size=3, max_positions=64)


def test_a_text_longer_than_the_context_is_named():
    with pytest.raises(
        UserError, match=r"prefs.jsonl row 1: prompt and completion have 6 tokens, .* holds 5"
    ):
        pair_rows(make_prefs(), TOKENIZER, observed=True, size=None, max_positions=5)


def test_every_epoch_visits_every_row_once_in_another_order():
    order = np.concatenate([batch_rows(3, step, num_rows=10, batch=4) for step in range(10)])
    epochs = order.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # A function of seed and step alone, however the process got there.
    for step in (7, 0, 9, 3, 7):
        np.testing.assert_array_equal(batch_rows(3, step, 10, 4), order[step * 4 : step * 4 + 4])
    assert not np.array_equal(batch_rows(4, 0, 10, 10), epochs[0])
    assert len(batch_rows(0, 5, num_rows=2, batch=7)) == 7  # a batch may be larger than the data


def test_microbatches_split_in_order_and_leave_none_alone():
    array = np.arange(20).reshape(10, 2)
    out, nothing, no_basis = microbatches(
        (array, None, np.zeros((10, 3, 0))), np.array([9, 0, 3, 4, 1, 2]), 3
    )
    assert nothing is None and out.shape == (3, 2, 2) and no_basis.shape == (3, 2, 3, 0)
    np.testing.assert_array_equal(out.reshape(6, 2), array[[9, 0, 3, 4, 1, 2]])
