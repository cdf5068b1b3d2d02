"""Splits: what is held out depends on names and seed alone, and no person, prompt or event is torn apart."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.data.read import read_preferences
from rewards.data.split import keep_people, last_choices, split_people, split_prompts
from rewards.errors import UserError
from rewards.types import Preferences


def shuffled(prefs_rows, seed):
    return [prefs_rows[i] for i in np.random.default_rng(seed).permutation(len(prefs_rows))]


@pytest.fixture
def rows(row):
    return [row(prompt=f"p{n % 7}", user_id=f"u{n % 10}", chosen=f"c{n}") for n in range(60)]


def test_people_are_the_smallest_hashes_whatever_the_file_order(rows, write):
    by_hash = sorted(
        (f"u{i}" for i in range(10)), key=lambda u: hashlib.sha256(f"5:{u}".encode()).hexdigest()
    )
    for order in range(3):
        prefs = read_preferences(write(shuffled(rows, order)))
        train, held = split_people(prefs, 0.3, seed=5)
        assert {prefs.user_ids[u] for u in prefs.user_index[held]} == set(by_hash[:3])
        assert {prefs.user_ids[u] for u in prefs.user_index[train]} == set(by_hash[3:])
        assert (train ^ held).all()
    assert not np.array_equal(split_people(prefs, 0.3, seed=6)[1], held)
    assert not split_people(prefs, 0, seed=5)[1].any()


def test_only_people_with_comparisons_count(rows, write):
    prefs = read_preferences(write(rows))
    part = prefs.select(np.isin(prefs.user_index, [0, 1, 2, 3]))
    train, held = split_people(part, 0.5, seed=0)
    assert len(np.unique(part.user_index[held])) == len(np.unique(part.user_index[train])) == 2


def test_prompts_are_never_torn(rows, row, write):
    chat = [row(prompt=[{"role": "user", "content": f"q{n}"}], chosen="a", rejected="b") for n in range(3)]
    prefs = read_preferences(write(rows + chat))
    train, held = split_prompts(prefs, 0.3, seed=1)
    prompts = prefs.item_prompt[prefs.chosen]
    assert len(np.unique(prompts[held])) == 3  # round(0.3 · 10)
    assert not set(prompts[held]) & set(prompts[train])
    names = {prefs.prompts[p] for p in prompts[held]}
    again = read_preferences(write(shuffled(rows + chat, 4)))
    assert {
        again.prompts[p] for p in again.item_prompt[again.chosen[split_prompts(again, 0.3, seed=1)[1]]]
    } == names


@pytest.mark.parametrize("held_out", [-0.1, 1.0, 0.01, 0.99])
def test_a_fraction_that_leaves_a_side_empty_is_refused(held_out, rows, write):
    with pytest.raises(UserError, match="held_out|leaves one side empty"):
        split_people(read_preferences(write(rows)), held_out, seed=0)


def test_one_person_or_one_prompt_cannot_be_split(row, write):
    prefs = read_preferences(write([row(), row()]))
    with pytest.raises(UserError, match="0.5 of 1 people"):
        split_people(prefs, 0.5, seed=0)
    with pytest.raises(UserError, match="0.5 of 1 prompts"):
        split_prompts(prefs, 0.5, seed=0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_last_choices_agree_with_a_slow_loop(pairs, count):
    prefs = _prefs(pairs)
    expected = []
    for user, event in zip(prefs.user_index.tolist(), prefs.choice.tolist(), strict=True):
        events = sorted({e for u, e in zip(prefs.user_index, prefs.choice, strict=True) if u == user})
        expected.append(len(events) - events.index(event) <= count)
    assert last_choices(prefs, count).tolist() == expected


def _prefs(pairs):
    """Preferences with the given (user, event) of each row and nothing else of interest."""
    none = np.zeros(len(pairs), np.int32)
    user, event = np.array(pairs, np.int32).T
    return Preferences(
        prompts=("p",),
        item_prompt=np.zeros(2, np.int32),
        item_text=("a", "b"),
        item_features=None,
        user_ids=tuple("wxyz"),
        user_index=user,
        chosen=none,
        rejected=none + 1,
        outcome=np.ones(len(pairs), np.float32),
        choice=event,
        row=none,
        columns={},
        source="made up",
    )


def test_last_choices_takes_whole_events_of_a_selection(row, write):
    sets = [("ann", 1), ("ann", 2), ("ann", 2), ("ann", 3), ("bob", 1)]
    prefs = read_preferences(write([row(user_id=u, choice_context={"choice_set": s}) for u, s in sets]))
    assert last_choices(prefs, 1).tolist() == [False, False, False, True, True]
    earlier = prefs.select(~last_choices(prefs, 1))
    assert last_choices(earlier, 1).tolist() == [False, True, True]
    with pytest.raises(UserError):
        last_choices(prefs, -1)


def test_keep_people_drops_those_with_few_and_draws_by_name_alone(rows, write):
    few = [row for n, row in enumerate(rows) if not (row["user_id"] in ("u0", "u1") and n >= 20)]
    prefs = read_preferences(write(few))

    def names(kept):
        return {kept.user_ids[user] for user in kept.user_index}

    assert names(keep_people(prefs, 3, None)) == {f"u{i}" for i in range(2, 10)}
    by_hash = sorted(
        (f"u{i}" for i in range(2, 10)), key=lambda u: hashlib.sha256(f"keep:{u}".encode()).hexdigest()
    )
    for order in range(3):
        assert names(keep_people(read_preferences(write(shuffled(few, order))), 3, 4)) == set(by_hash[:4])
    assert keep_people(prefs, 1, None) is prefs
    with pytest.raises(UserError, match="0 people with 7 comparisons or more"):
        keep_people(prefs, 7, None)
