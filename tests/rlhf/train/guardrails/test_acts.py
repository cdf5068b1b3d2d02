"""What guardrails do to the rewards of a batch, against optima and tables worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.phi.columns.config import ColumnConfig
from rlhf.run.record import traced
from rlhf.train.guardrails import acts
from rlhf.train.guardrails.acts import GuardState, Seen
from rlhf.train.guardrails.config import (
    BehaviourConfig,
    CalibrationConfig,
    FloorConfig,
    GuardrailsConfig,
    HonestyConfig,
    TruthConfig,
    WorstConfig,
)
from tests.rlhf.train import steps

BETA = 0.7


def column(name, gate=None):
    return ColumnConfig(name=name, kind="function", function="f.py:f", gate=gate)


def seen(reward, checks, *, share=None, log_weight=None, average=None, right=None, z=None):
    reward = jnp.asarray(reward, jnp.float32)
    checks = jnp.asarray(checks, jnp.float32)
    checks = checks[..., None] if checks.ndim == 2 else checks
    own, shared = (None, None) if right is None else right
    return Seen(
        reward,
        average,
        jnp.zeros(reward.shape) if log_weight is None else jnp.asarray(log_weight, jnp.float32),
        jnp.full(reward.shape, 1 / reward.shape[1]) if share is None else jnp.asarray(share, jnp.float32),
        checks,
        own,
        shared,
        z,
    )


def run(config, given, state=None, beta=BETA):
    state = state or GuardState.start(config, None)
    return jax.jit(acts.act)(traced(config), state, given, beta)


def optimum(reward, log_weight):
    return np.asarray(jax.nn.softmax(reward / BETA + log_weight, axis=-1))


def test_a_behaviour_is_no_more_frequent_than_under_the_reference_and_the_rest_keeps_its_order():
    rng = np.random.default_rng(0)
    behaves, log_ref = rng.random((30, 12)) < 0.4, rng.normal(size=(30, 12))
    reward = rng.normal(size=(30, 12)) + 1.5 * behaves
    config = GuardrailsConfig(checks=(column("agrees"),), behaviour=BehaviourConfig(check="agrees"))
    policy = optimum(reward, log_ref)
    done, found, metrics = run(config, seen(reward, behaves, share=policy, log_weight=log_ref))
    base = (optimum(0 * reward, log_ref) * behaves).sum(axis=1)
    before = (policy * behaves).sum(axis=1)
    after = (optimum(reward + np.asarray(done.added), log_ref) * behaves).sum(axis=1)
    both = behaves.any(axis=1) & ~behaves.all(axis=1)
    assert (before > base + 0.1).sum() > 10
    assert (after[both] <= base[both] + 1e-5).all()
    assert not np.asarray(done.added)[~behaves].any(), "nothing but the behaviour is charged"
    np.testing.assert_allclose(metrics["train/guard/behaviour_share"], before.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["train/guard/behaviour_ref_share"], base.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["train/guard/cost_nats"], -(policy * np.asarray(done.added)).sum(axis=1).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["train/guard/penalised_share"], (before > base + 1e-6).mean())
    assert found.behaviour == metrics["train/guard/behaviour_share"]


def test_the_price_estimated_from_samples_of_the_optimum_is_that_of_the_reference():
    """Importance weights π_ref/π turn samples of another policy into averages over π_ref."""
    rng = np.random.default_rng(1)
    reward = rng.normal(size=8)
    behaves = np.arange(8) < 3
    reference = np.full(8, 1 / 8)
    policy = optimum(reward, np.log(reference))
    drawn = rng.choice(8, size=20_000, p=policy)
    sampled = seen(
        reward[drawn][None], behaves[drawn][None], log_weight=np.log(reference / policy)[drawn][None]
    )
    config = GuardrailsConfig(checks=(column("agrees"),), behaviour=BehaviourConfig(check="agrees"))
    exact = np.asarray(run(config, seen((reward + 3 * behaves)[None], behaves[None]))[0].added).min()
    sampled = sampled._replace(reward=sampled.reward + 3 * jnp.asarray(behaves[drawn]))
    assert np.asarray(run(config, sampled)[0].added).min() == pytest.approx(exact, abs=0.05)


def test_nothing_makes_up_for_a_failed_gate_and_a_group_without_a_pass_is_not_learned_from():
    config = GuardrailsConfig(checks=(column("safe", gate=0.5),), refused=-1.0)
    given = seen([[9.0, 1.0, 2.0], [9.0, 1.0, 2.0], [3.0, 1.0, 2.0]], [[0, 1, 1], [0, 0, 0], [1, 1, 1]])
    done, _, metrics = run(config, given)
    total = np.asarray(given.reward + done.added)
    np.testing.assert_allclose(total[0], [-1, 1, 2])
    np.testing.assert_array_equal(done.learn, [True, False, True])
    np.testing.assert_array_equal(done.added[2], 0)
    assert metrics["train/guard/refused_share"] == pytest.approx(4 / 9)
    assert metrics["train/guard/skipped_share"] == pytest.approx(1 / 3)


def test_padding_is_neither_the_least_of_its_group_nor_counted():
    config = GuardrailsConfig(checks=(column("safe", gate=0.5),), refused=5.0)
    padded = [[0.0, 0.0, -np.inf]]
    given = seen([[4.0, 2.0, 0.0]], [[0, 1, 0]], log_weight=padded, share=[[0.5, 0.5, 0.0]])
    done, _, metrics = run(config, given)
    np.testing.assert_allclose(done.added, [[-2.0, 0.0, 0.0]])
    assert metrics["train/guard/refused_share"] == pytest.approx(0.5)


def test_the_gate_comes_last():
    """Whatever the other rails add, a completion that fails gets no more than the least of the others."""
    config = GuardrailsConfig(
        checks=(column("agrees"), column("safe", gate=0.5)),
        behaviour=BehaviourConfig(check="agrees", penalty="dual"),
        refused=100.0,
    )
    state = GuardState.start(config, None)._replace(price=jnp.float32(5.0))
    given = seen([[1.0, 3.0, 2.0]], np.array([[[1, 1], [0, 0], [0, 1]]]))
    done, _, _ = run(config, given, state)
    np.testing.assert_allclose(given.reward + done.added, [[-4.0, -4.0, 2.0]])


def test_the_dual_price_rises_while_there_is_more_than_allowed_and_falls_to_0_after():
    config = GuardrailsConfig(
        checks=(column("agrees"),),
        behaviour=BehaviourConfig(check="agrees", penalty="dual", allowed=0.25, rate=2.0),
    )
    state = GuardState.start(config, None)
    often, never = (seen([[0.0, 0.0]], [flags]) for flags in ([1, 1], [0, 0]))
    prices = []
    for given in (often, often, never, never, never, never, never, never):
        _, found, _ = run(config, given, state)
        state = acts.moved(traced(config), state, found)
        prices.append(float(state.price))
    np.testing.assert_allclose(prices, [1.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0])


def test_without_a_stated_limit_the_reference_says_what_is_allowed():
    config = GuardrailsConfig(
        checks=(column("agrees"),), behaviour=BehaviourConfig(check="agrees", penalty="dual", rate=1.0)
    )
    given = seen([[0.0, 0.0]], [[1, 0]], share=[[0.9, 0.1]], log_weight=np.log([[0.3, 0.7]]))
    state = GuardState.start(config, None)
    _, found, _ = run(config, given, state)
    assert float(acts.moved(traced(config), state, found).price) == pytest.approx(0.6, abs=1e-6)


def test_right_answers_become_as_frequent_for_everybody_and_for_nobody_less_so():
    rng = np.random.default_rng(2)
    right = np.tile(np.arange(6) < 2, (2, 1))
    reward = np.stack([rng.normal(size=6) + 2 * right[0], rng.normal(size=6) - 2 * right[1]])
    own = (optimum(reward, 0) * right).sum(axis=1)
    config = GuardrailsConfig(checks=(column("right"),), truth=TruthConfig(check="right"))
    shared = np.full(2, 0.5)
    done, _, metrics = run(config, seen(reward, right, right=(jnp.asarray(own), jnp.asarray(shared))))
    after = (optimum(reward + np.asarray(done.added), 0) * right).sum(axis=1)
    assert own[0] > 0.5 > own[1]
    np.testing.assert_allclose(after, [own[0], 0.5], atol=1e-5)
    assert metrics["train/guard/truth_lifted_share"] == 0.5


def test_the_floor_pays_for_the_average_person_once_they_fall_short():
    config = GuardrailsConfig(floor=FloorConfig(nats=0.1, rate=1.0))
    average = jnp.array([[2.0, 0.0]])
    given = seen([[0.0, 0.0]], np.zeros((1, 2, 0)), share=[[0.25, 0.75]], average=average)
    state = GuardState.start(config, None)
    done, found, metrics = run(config, given, state)
    assert not np.asarray(done.added).any()
    assert metrics["train/guard/floor_slack_nats"] == pytest.approx(0.5 - 1.0 + 0.1)
    state = acts.moved(traced(config), state, found)
    assert float(state.floor) == pytest.approx(0.4)
    np.testing.assert_allclose(run(config, given, state)[0].added, 0.4 * average, rtol=1e-6)


def test_the_kind_of_people_that_gains_least_counts_most():
    config = GuardrailsConfig(worst=WorstConfig(groups=2, rate=1.0))
    people = steps.make_population()
    state = GuardState.start(config, people)
    z = jnp.concatenate([jnp.tile(state.centres[0], (3, 1)), jnp.tile(state.centres[1], (1, 1))])
    given = seen([[1.0, 0.0]] * 3 + [[0.0, 1.0]], np.zeros((4, 2, 0)), share=[[0.9, 0.1]] * 4, z=z)
    done, found, _ = run(config, given, state)
    np.testing.assert_allclose(done.weight, 1.0)
    np.testing.assert_allclose(found.gain, [1.2, -0.4], atol=1e-6)
    state = acts.moved(traced(config), state, found)
    np.testing.assert_allclose(state.weights, np.exp([-0.4, 0.4]) / np.exp([-0.4, 0.4]).sum(), rtol=1e-5)
    done, _, metrics = run(config, given, state)
    assert float(done.weight[3]) > 1 > float(done.weight[0]) and done.weight.mean() == pytest.approx(1)
    assert metrics["train/guard/worst_gain_nats"] == pytest.approx(-0.4, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "holds no guardrail"),
        ({"checks": (column("a"), column("a"))}, "two are called 'a'"),
        ({"checks": (column("a"),)}, "'a' is used for nothing"),
        ({"behaviour": BehaviourConfig(check="b")}, "'b' is none of the checks"),
        ({"checks": (column("a", 0.5),), "truth": TruthConfig(check="a")}, "hard check; remove gate"),
        (
            {
                "checks": (column("a"),),
                "truth": TruthConfig(check="a"),
                "behaviour": BehaviourConfig(check="a"),
            },
            "give each its own",
        ),
    ],
)
def test_a_section_that_says_nothing_or_two_things_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        GuardrailsConfig(**given)


def test_corrections_are_paid_alike_whatever_people_like_and_only_where_somebody_is_wrong():
    checks = np.zeros((2, 3, 3), np.float32)
    checks[:, 0, 0] = 1.0  # corrects
    checks[0, :, 1] = 1.0  # the first asker is wrong, the second is not
    checks[:, :, 2] = [0.8, 0.9, 0.0]  # how sure they say they are
    config = GuardrailsConfig(
        checks=(column("corrects"), column("wrong"), column("sure")),
        honesty=HonestyConfig(check="corrects", where="wrong", confidence="sure", weight=2.0),
    )
    for reward in (np.zeros((2, 3)), np.random.default_rng(0).normal(size=(2, 3))):
        done, _, metrics = run(config, seen(reward, checks))
        np.testing.assert_allclose(done.added[0], [2 * (1 - 0.2**2), -2 * 0.9**2, 0.0], atol=1e-6)
        np.testing.assert_array_equal(done.added[1], 0.0)
    np.testing.assert_allclose(metrics["train/guard/honesty_share"], 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["train/guard/honesty_nats"], -metrics["train/guard/cost_nats"], rtol=1e-5
    )


def test_calibration_pays_for_the_kind_that_is_missing_and_the_fixed_point_is_the_wanted_mix():
    """At π = optimum of β < 1 the favourite kind is shown too often: its completions pay, the others earn."""
    kinds = np.repeat(np.eye(2), 5, axis=0)[None]
    reward = np.where(kinds[0, :, 0] > 0, 0.85, 0.0)[None]  # 70 : 30 by Luce's rule
    config = GuardrailsConfig(
        checks=(column("a"), column("b")),
        calibration=CalibrationConfig(kinds=("a", "b"), general=0.0, weight=1.0),
    )
    sharp = np.asarray(jax.nn.softmax(jnp.asarray(reward) / 0.3, axis=-1))
    done, _, metrics = run(config, seen(reward, kinds, share=sharp))
    assert (done.added[0, :5] < 0).all() and (done.added[0, 5:] > 0).all()
    assert metrics["train/guard/calibration_nats"] > 0.1 and metrics["train/guard/calibration_paid_nats"] > 0
    likes = np.asarray(jax.nn.softmax(jnp.asarray(reward), axis=-1))
    rest, _, metrics = run(config, seen(reward, kinds, share=likes))
    assert metrics["train/guard/calibration_nats"] < 1e-6
    assert np.abs(rest.added).max() < 0.15 * np.abs(done.added).max()
    theta = np.zeros((1, 10))
    for _ in range(300):  # policy gradient on β = 0.3, with the term and without
        share = np.asarray(jax.nn.softmax(jnp.asarray(theta), axis=-1))
        added = run(config, seen(reward, kinds, share=share))[0].added
        theta = theta + 0.05 * (reward + 3.0 * np.asarray(added) - 0.3 * theta)
    share = np.asarray(jax.nn.softmax(jnp.asarray(theta), axis=-1))
    assert 0.65 < share[0, :5].sum() < 0.8 < sharp[0, :5].sum()


def test_calibration_leaves_alone_what_is_of_no_kind_and_padding():
    kinds = np.zeros((1, 4, 2), np.float32)
    kinds[0, 0], kinds[0, 1] = [1, 0], [0, 1]
    weight = np.array([[0.0, 0.0, 0.0, -np.inf]])
    config = GuardrailsConfig(
        checks=(column("a"), column("b")), calibration=CalibrationConfig(kinds=("a", "b"))
    )
    share = np.array([[0.6, 0.2, 0.2, 0.0]])
    done, _, metrics = run(config, seen(np.zeros((1, 4)), kinds, share=share, log_weight=weight))
    assert (np.asarray(done.added)[0, 2:] == 0).all() and done.added[0, 0] < 0 < done.added[0, 1]
    assert all(np.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"honesty": HonestyConfig(check="c")}, "honesty.check 'c' is none of the checks"),
        ({"honesty": HonestyConfig(check="a", where="a")}, "honesty.check and honesty.where are both 'a'"),
        ({"calibration": CalibrationConfig(kinds=("a", "a"))}, "are both 'a'"),
        ({"honesty": HonestyConfig(check="a")}, "check 'b' is used for nothing"),
    ],
)
def test_checks_of_the_terms_are_named_once(given, fault):
    with pytest.raises(ValueError, match=fault):
        GuardrailsConfig(checks=(column("a"), column("b")), **given)
