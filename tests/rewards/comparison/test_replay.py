import gzip
import json
import pathlib

import jax
import numpy as np
import pytest

from rewards.basis.belief import Belief
from rewards.basis.fit import FitConfig, fit_basis, fit_pooled
from rewards.basis.readout import Readout
from rewards.comparison import measures
from rewards.comparison import replay as evaluate
from rewards.errors import UserError
from rewards.types import Preferences
from tests.rewards.planted import last, planted

COUNTS = (0, 2, 5, 10, 20, 25)  # the same everywhere: one compiled replay a method
SHARED = pathlib.Path(__file__).parents[3].parent / "shared" / "data" / "stated_choice"


def world(seed=0, **sizes):
    made = planted(
        seed, **({"width": 8, "num_basis": 3, "num_users": 30, "pairs": 30, "num_items": 80} | sizes)
    )
    phi = made.prefs.item_features @ made.directions
    prior = Belief.from_cov(made.coef.mean(axis=0).astype(np.float32), np.cov(made.coef.T).astype(np.float32))
    return made.prefs, phi.astype(np.float32), prior, last(made.prefs, 10)


def test_zero_answers_predict_with_the_prior_mean():
    prefs, phi, prior, test = world()
    result = evaluate.cold_start(prior, prefs, phi, test, key=jax.random.key(0), counts=COUNTS)
    margin = (phi[prefs.chosen] - phi[prefs.rejected]) @ prior.mean
    expected = np.mean([np.mean(margin[test & (prefs.user_index == user)] > 0) for user in range(30)])
    assert result.accuracy[0].mean == pytest.approx(expected)
    pooled = evaluate.pooled_accuracy(phi @ prior.mean, prefs, test, key=jax.random.key(1))
    assert pooled.mean == pytest.approx(expected)
    np.testing.assert_array_equal(result.coef[0], np.tile(prior.mean, (30, 1)))


@pytest.mark.parametrize("method", ["information", "random"])
def test_asks_each_own_pool_question_once_and_never_a_test_question(method):
    prefs, phi, prior, test = world(1)
    people = np.arange(30)[::-1]
    result = evaluate.cold_start(
        prior, prefs, phi, test, key=jax.random.key(0), people=people, counts=COUNTS, method=method
    )
    np.testing.assert_array_equal(result.people, people)
    for person, rows in zip(people, result.questions, strict=True):
        asked = rows[rows >= 0]
        pool = np.flatnonzero((prefs.user_index == person) & ~test)
        np.testing.assert_array_equal(np.sort(asked), pool)
        assert np.all(rows[len(pool) :] == -1)
    assert result.fully_asked == {0: 30, 2: 30, 5: 30, 10: 30, 20: 30, 25: 0}


def test_order_within_the_pool_does_not_matter_once_all_is_asked():
    prefs, phi, prior, test = world(2)
    results = [
        evaluate.cold_start(prior, prefs, phi, test, key=jax.random.key(0), counts=COUNTS, method=method)
        for method in ("information", "random")
    ]
    np.testing.assert_allclose(results[0].coef[20], results[1].coef[20], atol=2e-3)


def test_random_orders_differ_with_the_key_and_repeat_with_it():
    prefs, phi, prior, test = world(3)

    def ask(seed):
        key = jax.random.key(seed)
        return evaluate.cold_start(prior, prefs, phi, test, key=key, counts=COUNTS, method="random").questions

    np.testing.assert_array_equal(ask(0), ask(0))
    assert np.mean(ask(0)[:, :20] == ask(1)[:, :20]) < 0.5


def test_swap_equals_the_mean_over_all_other_people():
    prefs, phi, prior, test = world(4, spread=2.0)
    result = evaluate.cold_start(prior, prefs, phi, test, key=jax.random.key(0), counts=COUNTS)
    swap = evaluate.swap(result, prefs, phi, test, key=jax.random.key(1), count=10)
    delta = phi[prefs.chosen] - phi[prefs.rejected]
    table = np.zeros((30, 30))
    for user in range(30):
        mine = delta[test & (prefs.user_index == user)]
        table[user] = np.mean(mine @ result.coef[10].T > 0, axis=0)
    assert swap.own.mean == pytest.approx(np.trace(table) / 30)
    others = (table.sum() - np.trace(table)) / (30 * 29)
    assert swap.swapped.mean == pytest.approx(others, abs=0.03)
    assert swap.difference.mean == pytest.approx(swap.own.mean - swap.swapped.mean)
    assert swap.own.mean > swap.swapped.mean + 0.1 and 0.1 < swap.flip_rate.mean < 0.6


def test_identical_coefficients_are_not_changed_by_a_swap():
    prefs, phi, prior, test = world(5)
    certain = Belief.from_cov(prior.mean, 1e-8 * np.eye(3, dtype=np.float32))
    result = evaluate.cold_start(certain, prefs, phi, test, key=jax.random.key(0), counts=COUNTS)
    swap = evaluate.swap(result, prefs, phi, test, key=jax.random.key(1))
    assert swap.flip_rate.mean == 0 and abs(swap.difference.mean) < 1e-12


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(0).normal(0.7, 0.2, size=400)
    interval = measures.bootstrap(values, jax.random.key(0), draws=4000)
    expected = 2 * 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)


def test_bad_input_is_named():
    prefs, phi, prior, test = world(6)
    with pytest.raises(UserError, match="'informaton'"):
        evaluate.cold_start(prior, prefs, phi, test, key=jax.random.key(0), method="informaton")
    with pytest.raises(UserError, match="nobody"):
        evaluate.cold_start(prior, prefs, phi, np.zeros_like(test), key=jax.random.key(1))
    with pytest.raises(UserError, match="none is left to ask"):
        evaluate.cold_start(prior, prefs, phi, np.ones_like(test), key=jax.random.key(2))


def electricity() -> tuple[Preferences, np.ndarray]:
    """Real choices with the true attributes as embeddings."""
    path = SHARED / "electricity_pairs.jsonl.gz"
    if not path.is_file():
        pytest.skip("the stated-choice data are not beside the repository")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    sides = ("chosen", "rejected")
    items = {text: None for row in rows for text in (row["chosen"], row["rejected"])}
    attributes = {row[side]: row["attributes"][side] for row in rows for side in sides}
    index = {text: i for i, text in enumerate(items)}
    people = {row["user_id"]: None for row in rows}
    person = {user: i for i, user in enumerate(people)}
    user_index = np.array([person[row["user_id"]] for row in rows], np.int32)
    prefs = Preferences(
        prompts=(rows[0]["prompt"],),
        item_prompt=np.zeros(len(index), np.int32),
        item_text=tuple(index),
        item_features=None,
        user_ids=tuple(person),
        user_index=user_index,
        chosen=np.array([index[row["chosen"]] for row in rows], np.int32),
        rejected=np.array([index[row["rejected"]] for row in rows], np.int32),
        outcome=np.ones(len(rows), np.float32),
        choice=np.array([row["choice_context"]["choice_set"] for row in rows], np.int32),
        row=np.arange(1, len(rows) + 1, dtype=np.int32),
        columns={},
        source=str(path),
    )
    return prefs, np.array([attributes[text] for text in index], np.float32)


def last_sets(prefs: Preferences, count: int) -> np.ndarray:
    mask = np.zeros(prefs.num_comparisons, bool)
    for user in range(prefs.num_users):
        rows = np.flatnonzero(prefs.user_index == user)
        mask[rows] = np.isin(prefs.choice[rows], np.unique(prefs.choice[rows])[-count:])
    return mask


def test_real_people_never_seen_are_predicted_after_a_few_questions():
    """Electricity contracts, 72 people held out, two splits, last three choices (nine pairs) predicted."""
    prefs, attributes = electricity()
    test, config = last_sets(prefs, 3), FitConfig(num_basis=6, dims=6, ridge=1.0, rounds=10)
    curves = {"information": [], "random": []}
    for seed in range(2):
        people = np.sort(np.random.default_rng(seed).permutation(prefs.num_users)[:72])
        train = prefs.select(~np.isin(prefs.user_index, people))
        result = fit_basis(train, attributes, config, encoder={"kind": "precomputed"})
        phi = Readout.of(result.basis).features(attributes)
        pooled_scores = fit_pooled(train, attributes, config)
        pooled = evaluate.pooled_accuracy(pooled_scores, prefs, test, key=jax.random.key(9), people=people)
        for method, curve in curves.items():
            key = jax.random.key(seed)
            replay = evaluate.cold_start(
                result.prior, prefs, phi, test, key=key, people=people, counts=(0, 3, 5, 10), method=method
            )
            curve.append([replay.accuracy[n].mean for n in (0, 3, 5, 10)])
            if method == "information":
                swap = evaluate.swap(replay, prefs, phi, test, key=jax.random.key(8))
        assert swap.swapped.mean < pooled.mean + 0.01
    chosen, random = (np.mean(curve, axis=0) for curve in curves.values())
    assert chosen[0] >= 0.64 and chosen[1] >= 0.73 and chosen[3] >= 0.79
    assert chosen[2] > random[2] and chosen[3] > random[3]
