import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from rewards.annotation import audit_text
from rewards.annotation.audit import audit, flip_rate_of_agreement, flip_rate_of_cycles
from rewards.annotation.audit_text import table
from rewards.annotation.measurements import cues, measure
from rewards.annotation.triads import triads
from rewards.data.read import read_preferences
from rewards.types import Preferences

SHARED = pathlib.Path(__file__).parents[3].parent / "shared"
UKP = SHARED / "data" / "ukpconvarg1" / "pairs.jsonl.gz"


def preferences(user, first, second, takes_first, **columns) -> Preferences:
    """Rows in the order given; `shown_first` and others as columns."""
    user, first, second = (np.asarray(part) for part in (user, first, second))
    takes_first = np.asarray(takes_first, bool)
    count, items = len(user), int(max(first.max(), second.max())) + 1
    return Preferences(
        prompts=("?",),
        item_prompt=np.zeros(items, np.int32),
        item_text=tuple(f"item {i}" for i in range(items)),
        item_features=None,
        user_ids=tuple(f"u{u}" for u in range(user.max() + 1)),
        user_index=user.astype(np.int32),
        chosen=np.where(takes_first, first, second).astype(np.int32),
        rejected=np.where(takes_first, second, first).astype(np.int32),
        outcome=np.ones(count, np.float32),
        choice=np.arange(count, dtype=np.int32),
        row=np.arange(1, count + 1, dtype=np.int32),
        columns={"timestamp": list(range(count)), **columns},
        source="made",
    )


def crowd(seed, *, people=60, items=9, flip=0.1, coins=0, firsts=0, first_push=0.0, repeats=0.0):
    """Everybody has an order of their own and compares all pairs; the last `coins` toss coins, the `firsts` before
    them take what stands first. Some pairs are put again in the other order.
    """
    rng = np.random.default_rng(seed)
    rows = []
    shared = rng.normal(size=items)
    for user in range(people):
        order = shared + 0.7 * rng.normal(size=items)
        pairs = [p if rng.random() < 0.5 else p[::-1] for p in itertools.combinations(range(items), 2)]
        again = [(b, a) for a, b in pairs if rng.random() < repeats]
        for a, b in pairs + again:
            takes = (order[a] > order[b]) ^ (rng.random() < flip)
            if user >= people - coins:
                takes = rng.random() < 0.5
            elif user >= people - coins - firsts or rng.random() < first_push:
                takes = True
            rows.append((user, a, b, takes))
    user, a, b, takes = (np.array(part) for part in zip(*rows, strict=True))
    return preferences(user, a, b, takes, shown_first=np.where(takes, "chosen", "rejected").tolist())


def test_triads_equal_a_search_over_all_triples():
    rng = np.random.default_rng(0)
    count = 400
    user, a = rng.integers(0, 4, count), rng.integers(0, 10, count)
    prefs = preferences(user, a, (a + rng.integers(1, 10, count)) % 10, rng.random(count) < 0.5)
    outcome = np.where(rng.random(count) < 0.1, 0.5, 1.0).astype(np.float32)
    prefs = dataclasses.replace(prefs, outcome=outcome)
    net: dict = {}
    for n in np.flatnonzero(outcome == 1):
        key = (prefs.user_index[n], prefs.chosen[n], prefs.rejected[n])
        net[key] = net.get(key, 0) + 1
    beats = {(u, x, y) for (u, x, y), votes in net.items() if votes > net.get((u, y, x), 0)}
    complete = cyclic = 0
    for u, trio in itertools.product(range(4), itertools.combinations(range(10), 3)):
        edges = [(x, y) for x, y in itertools.permutations(trio, 2) if (u, x, y) in beats]
        complete += len(edges) == 3
        cyclic += len(edges) == 3 and len({x for x, _ in edges}) == 3
    found = triads(prefs)
    assert (len(found.user), int(found.cyclic.sum())) == (complete, cyclic)
    assert cyclic > 20


def test_triads_in_small_chunks_are_the_same(monkeypatch):
    prefs = crowd(1, people=5)
    whole = triads(prefs)
    monkeypatch.setattr("rewards.annotation.triads.CHUNK", 7)
    parts = triads(prefs)
    np.testing.assert_array_equal(whole.edges, parts.edges)


def test_rates_and_their_flip_rates():
    """ε = 0.1: triads cyclic 0.09, repeats agree 0.82; 60 people, so intervals are wide enough to hold them."""
    # A pair answered once either way is no edge, so cycles are counted on answers without repeats.
    result = audit(crowd(2, flip=0.1))
    cycles, repeats = result["cycles"], audit(crowd(2, flip=0.1, repeats=0.3))["repeats"]
    assert cycles["triads"] == 60 * 84
    assert cycles["interval"][0] <= 0.09 <= cycles["interval"][1]
    assert repeats["interval"][0] <= 0.82 <= repeats["interval"][1]
    assert cycles["flip_rate"] == pytest.approx(0.1, abs=0.03)
    assert repeats["flip_rate"] == pytest.approx(0.1, abs=0.03)
    assert result["order"]["interval"][0] <= 0.5 <= result["order"]["interval"][1]
    assert result["random"]["named"] <= 1  # 5 % of false discoveries among none found
    json.dumps(result, allow_nan=False)
    assert "flip rate about 1" in result["verdict"]


def test_implied_flip_rates_invert_their_laws():
    for flip in (0.0, 0.07, 0.3, 0.5):
        assert flip_rate_of_agreement(1 - 2 * flip * (1 - flip)) == pytest.approx(flip, abs=1e-7)
        assert flip_rate_of_cycles(flip * (1 - flip)) == pytest.approx(flip, abs=1e-7)
    assert flip_rate_of_agreement(0.4) == flip_rate_of_cycles(0.3) == 0.5


def test_coin_tossers_and_first_takers_are_named():
    result = audit(crowd(3, coins=5, firsts=3, repeats=0.2))
    # One coin in twenty does better than a coin at 5 %.
    assert len({f"u{u}" for u in range(55, 60)} & set(result["random"]["user_ids"])) >= 4
    assert set(result["random"]["user_ids"]) <= {f"u{u}" for u in range(52, 60)}
    assert result["position"]["always_first"] == ["u52", "u53", "u54"]
    assert any("u52" in line for line in result["to_do"])


def test_a_contrarian_is_no_coin():
    """Forty separate pairs for everybody, so that nothing but the others' majority can tell."""
    rng = np.random.default_rng(4)
    user, pair = np.repeat(np.arange(30), 40), np.tile(np.arange(40), 30)
    takes = rng.random(1200) < 0.9
    takes[user == 7] = rng.random(40) < 0.1
    takes[user == 8] = rng.random(40) < 0.5
    result = audit(preferences(user, 2 * pair, 2 * pair + 1, takes))
    assert result["random"]["tested"] == 30
    assert result["random"]["user_ids"] == ["u8"]


def test_a_push_of_order_shows_in_the_share_and_across_conditions():
    result = audit(crowd(5, first_push=0.3, repeats=0.5))
    assert result["order"]["interval"][0] > 0.5
    # Repeats are in the other order: pushed both ways, they agree less than 0.82.
    assert result["repeats"]["other_condition"]["interval"][1] < 0.82
    assert "stood first" in result["verdict"] and any("mixture" in line for line in result["to_do"])


def test_frames_point_to_the_side_with_more_of_their_feature():
    attributes = [{"feature_names": ["price", "speed"], "chosen": [1, 5], "rejected": [2, 3]}] * 4
    frames = ["price", "-price", "speed", "loud"]
    prefs = preferences(
        [0, 0, 0, 0], [0, 1, 2, 3], [4, 4, 4, 4], [True] * 4, frame=frames, attributes=attributes
    )
    kinds, table_of = cues(prefs)
    assert kinds == ("frame price", "frame speed")
    np.testing.assert_array_equal(table_of, [[-1, 0], [1, 0], [0, 1], [0, 0]])


def test_rewordings_are_joined_by_repeat_of():
    prefs = preferences(
        [0, 0, 1],
        [0, 2, 2],
        [1, 3, 3],
        [True, False, True],
        item_id=["q", "q2", "q2"],
        repeat_of=[None, "q", "q"],
        chosen_id=["a", "b", "a"],
        rejected_id=["b", "a", "b"],
    )
    data = measure(prefs)
    assert data.question[0] == data.question[1] != data.question[2]
    assert data.turned[0] != data.turned[1]
    assert data.num_answers.tolist() == [2, 1]
    result = audit(prefs)
    assert result["repeats"]["couples"] == 1 and result["repeats"]["agreement"] == 0.0


def test_nothing_recorded_is_said():
    prefs = preferences([0, 1], [0, 2], [1, 3], [True, False])
    result = audit(prefs)
    assert result["repeats"] is result["cycles"] is result["order"] is result["agreement"] is None
    assert "unknown" in result["verdict"] and any("shown_first" in line for line in result["to_do"])
    assert any("not recorded" in line for line in table(result))


def test_response_times():
    prefs = preferences([0, 0, 1, 1, 2], [0] * 5, [1] * 5, [True] * 5, seconds=[30, 40, 2, 3, None])
    found = audit(prefs)["seconds"]
    assert found["median"] == 16.5 and found["fast_user_ids"] == ["u1"]


@pytest.mark.skipif(not UKP.is_file(), reason="the shared copy of UKPConvArg1 is not here")
def test_real_judgements_have_the_published_cycle_rate():
    """On all 84,445 judgements 3.4 % of triads are cyclic, two workers agree on 73.1 %; this is 7/10 of them."""
    result = audit(read_preferences(str(UKP)))
    assert result["cycles"]["rate"] == pytest.approx(0.034, abs=0.005)
    assert result["cycles"]["median_rate"] == pytest.approx(0.047, abs=0.01)
    assert result["agreement"]["rate"] == pytest.approx(0.731, abs=0.005)
    assert result["agreement"]["flip_rate"] == pytest.approx(0.16, abs=0.01)
    assert result["order"]["share"] == pytest.approx(0.503, abs=0.002)
    assert "people differ" in result["verdict"]


def test_a_few_triads_are_no_proof_of_consistency():
    few = {"repeats": None, "cycles": {"triads": 1, "rate": 0.0, "interval": [0.0, 0.79], "flip_rate": 0.0}}
    assert audit_text._consistency(few).startswith("Consistency not shown: flip rate about 0%, perhaps 50%")
    many = {
        "repeats": None,
        "cycles": {"triads": 999, "rate": 0.0, "interval": [0.0, 0.004], "flip_rate": 0.0},
    }
    assert audit_text._consistency(many).startswith("Answers are consistent")
