import dataclasses

import numpy as np
import pytest
from scipy.special import expit

from rewards.annotation.measurements import ORDER, measure, same_cue
from rewards.annotation.mixture import (
    GENUINE,
    Mixture,
    MixtureConfig,
    fit_mixture,
    genuine_by_topic,
)
from rewards.errors import UserError
from rewards.people.acquisition import probability
from scripts.experiments import annotation as experiment

BASE = (0.6, 0.25, 0.15)


def true_margins(world):
    return np.sum(world.coef[world.prefs.user_index] * world.delta, axis=1)


def one_kind_for_all(prefs, margins, share, kappa, slip):
    """Responsibilities and attitudes of every row, straight from the equations, one question at a time."""
    data = measure(prefs)
    rho, attitude = np.zeros((len(margins), 3)), np.zeros(len(margins))
    for question in range(len(data.user)):
        rows = np.flatnonzero(data.question == question)
        y = ~data.turned[rows]
        s = margins[rows[0]] * (1 if y[0] else -1)
        k, m = y.sum(), len(rows)
        up = expit(s) * (1 - slip) ** k * slip ** (m - k)
        down = expit(-s) * slip**k * (1 - slip) ** (m - k)
        pushed = np.prod(expit(data.cue[rows, 0] * kappa))
        joint = np.array([share[0] * (up + down), share[1] * 0.5**m, share[2] * pushed])
        rho[rows] = joint / joint.sum()
        attitude[rows] = np.where(y, up, down) / (up + down)
    return rho, attitude


def test_responsibilities_follow_the_equations():
    """At the fixed point π, κ, e reproduce ρ and ã; people are tied to the population by a huge concentration."""
    world = experiment.simulate(0, experiment.Design(BASE, questions=30, answers=3), people=20)
    margins = true_margins(world)
    found = fit_mixture(world.prefs, margins, MixtureConfig(concentration=1e9))
    np.testing.assert_allclose(found.share, BASE, atol=0.12)  # not a corner, where any likelihood would do
    rho, attitude = one_kind_for_all(world.prefs, margins, found.share, found.kappa[0], found.slip)
    np.testing.assert_allclose(found.responsibility, rho, atol=2e-3)
    np.testing.assert_allclose(found.attitude, attitude, atol=2e-3)
    questions = np.minimum(world.prefs.chosen, world.prefs.rejected)
    firsts = np.unique(questions, return_index=True)[1]
    np.testing.assert_allclose(found.share, rho[firsts].mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(found.weight, rho[:, GENUINE] / 3, atol=2e-3)


def test_one_answer_is_the_robust_loss():
    world = experiment.simulate(1, experiment.Design(BASE, questions=60), people=10)
    margins = true_margins(world)
    found = fit_mixture(world.prefs, margins, MixtureConfig(concentration=1e9))
    assert found.slip == 0.0
    cue = np.where(np.array(world.prefs.columns["shown_first"]) == "chosen", 1.0, -1.0)
    up, _ = probability(np.float32(margins)[:, None], found.answer_model({ORDER: cue}))
    loss = -np.log(np.asarray(up, np.float64)[:, 0])
    assert found.loss_nats == pytest.approx(loss.mean(), abs=2e-3)
    by_hand = found.share[0] * expit(margins) + found.share[1] / 2 + found.share[2] * expit(2.0 * cue)
    np.testing.assert_allclose(np.exp(-loss), by_hand, rtol=2e-5)


def test_probability_sums_to_one_over_the_two_answers_with_several_cues():
    world = experiment.simulate(1, experiment.Design(BASE, questions=60), people=10)
    found = dataclasses.replace(
        fit_mixture(world.prefs, true_margins(world), MixtureConfig(max_steps=1)),
        share=np.array([0.5, 0.2, 0.3]),
        kappa=np.array([1.5, -0.7]),
        kinds=("order", "frame"),
        slip=0.1,
    )
    margin, order, frame = (
        np.float32([[0.3], [-2.0], [40.0]]),
        np.array([1.0, -1.0, 0.0]),
        np.array([1.0, 0.0, 1.0]),
    )
    there, other = probability(margin, found.answer_model({"order": order, "frame": frame}))
    back, _ = probability(-margin, found.answer_model({"order": -order, "frame": -frame}))
    np.testing.assert_allclose(there + back, 1.0, atol=1e-6)
    np.testing.assert_allclose(other, back, atol=1e-6)
    p = there[2, 0]
    assert p == pytest.approx(0.5 * 0.9 + 0.1 + 0.3 * expit(-0.7), abs=1e-5)


@pytest.mark.parametrize("mix", [BASE, (0.3, 0.2, 0.5)])
def test_planted_shares_are_found_with_the_audit_repeats(mix):
    """One question in eight twice; the rewards are fitted in turn, never given."""
    design = experiment.Design(mix, questions=142, answers=2, repeated=0.125)
    _, found = experiment.mixture_fit(experiment.simulate(0, design))
    np.testing.assert_allclose(found.share, mix, atol=0.05)


def test_the_bias_of_a_fixed_frame_goes_away():
    """The frame always favours the first feature; the mixture knows where it pointed."""
    world = experiment.simulate(0, experiment.Design((0.5, 0.1, 0.4), cue="random"))
    fixed = experiment.simulate(0, experiment.Design((0.5, 0.1, 0.4), cue="fixed"))
    plain = experiment.plain_fit(fixed)
    coef, _ = experiment.mixture_fit(world)
    assert experiment.bias(fixed, plain) > 0.5
    assert abs(experiment.bias(world, coef)) < 0.1
    assert experiment.accuracy(world, coef) > experiment.accuracy(fixed, plain) + 0.08
    assert experiment.accuracy(world, coef) > experiment.accuracy(world, experiment.plain_fit(world)) + 0.005


@pytest.mark.parametrize("questions", [10, 40])
def test_clean_answers_lose_nothing(questions):
    world = experiment.simulate(3, experiment.Design((0.95, 0.025, 0.025), questions=questions))
    coef, _ = experiment.mixture_fit(world)
    assert experiment.accuracy(world, coef) >= experiment.accuracy(world, experiment.plain_fit(world)) - 0.01


def test_abstain_and_topics():
    """Half of the people toss coins; the others do so on one of two topics."""
    world = experiment.simulate(4, experiment.Design((1.0, 0.0, 0.0), questions=120), people=20)
    rng, prefs = np.random.default_rng(0), world.prefs
    topic = np.arange(prefs.num_comparisons) % 4 // 3
    coin = (prefs.user_index < 10) | (topic == 1)
    size = 2.0 * np.abs(true_margins(world))
    against = np.where(coin, rng.random(len(size)) < 0.5, rng.random(len(size)) > expit(size))
    found = fit_mixture(prefs, np.where(against, -size, size))
    views, none = found.user_share[10:, GENUINE], found.user_share[:10, GENUINE]
    assert views.min() > none.max() + 0.2
    assert found.abstain[:10].all() and not found.abstain[10:].any()
    share, count = genuine_by_topic(found, prefs, topic)
    assert (share[10:, 0] > share[10:, 1] + 0.1).all()
    np.testing.assert_array_equal(count, np.tile([90, 30], (20, 1)))


def test_uncertain_margins_are_held_less_genuine():
    world = experiment.simulate(5, experiment.Design(BASE, questions=40), people=10)
    margins = true_margins(world)
    sure = fit_mixture(world.prefs, (margins, np.zeros_like(margins)))
    unsure = fit_mixture(world.prefs, (margins, np.full_like(margins, 9.0)))
    assert unsure.share[GENUINE] < sure.share[GENUINE] - 0.05


def test_ties_and_copies():
    world = experiment.simulate(6, experiment.Design(BASE, questions=30), people=10)
    prefs, margins = world.prefs, true_margins(world)
    outcome = prefs.outcome.copy()
    outcome[:30] = 0.5
    tied = fit_mixture(dataclasses.replace(prefs, outcome=outcome), margins)
    np.testing.assert_allclose(tied.attitude[:30], 0.5)
    np.testing.assert_allclose(tied.responsibility[:30], np.tile(tied.user_share[0], (30, 1)))
    twice = np.concatenate([np.arange(prefs.num_comparisons), [5]])
    columns = {name: [values[n] for n in twice] for name, values in prefs.columns.items()}
    parts = ("user_index", "chosen", "rejected", "outcome", "choice", "row")
    copied = dataclasses.replace(prefs, columns=columns, **{p: getattr(prefs, p)[twice] for p in parts})
    found, alone = fit_mixture(copied, margins[twice]), fit_mixture(prefs, margins)
    np.testing.assert_allclose(found.share, alone.share, atol=1e-5)
    assert found.weight[-1] == 0.0 and found.weight[5] == pytest.approx(alone.weight[5], abs=1e-5)


def test_kappa_is_learned_only_from_repeats_under_the_same_cue():
    both = experiment.simulate(7, experiment.Design(BASE, questions=40, answers=2, cue="both"))
    drawn = experiment.simulate(7, experiment.Design(BASE, questions=40, answers=2, kappa=1.0))
    often = experiment.simulate(7, experiment.Design(BASE, questions=40, answers=4, kappa=1.0))
    assert same_cue(measure(both.prefs))[0] == 0
    # A drawn cue is the same in half of the 4000 couples; 5 standard deviations are 158.
    assert 1842 < same_cue(measure(drawn.prefs))[0] < 2158
    assert fit_mixture(both.prefs, true_margins(both)).kappa[0] == 2.0
    assert fit_mixture(drawn.prefs, true_margins(drawn)).kappa[0] != 2.0
    assert fit_mixture(often.prefs, true_margins(often)).kappa[0] == pytest.approx(1.0, abs=0.3)


def test_without_a_cue_nothing_is_constructed():
    world = experiment.simulate(8, experiment.Design(BASE, questions=20, recorded=False), people=5)
    found = fit_mixture(world.prefs, true_margins(world))
    assert found.kinds == () and found.share[2] == 0.0
    assert found.share.sum() == pytest.approx(1.0) and found.answer_model({ORDER: 1.0}).pull == 0.0
    assert isinstance(found, Mixture) and np.isfinite(found.responsibility).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda prefs, m: (prefs, m[:-1]), "one number a row"),
        (lambda prefs, m: (prefs, np.where(np.arange(len(m)) == 4, np.nan, m)), "row 5"),
        (lambda prefs, m: (dataclasses.replace(prefs, outcome=0 * prefs.outcome + 0.5), m), "ties"),
    ],
)
def test_mistakes_are_named(change, message):
    world = experiment.simulate(9, experiment.Design(BASE, questions=5), people=3)
    prefs, margins = change(world.prefs, true_margins(world))
    with pytest.raises(UserError, match=message) as caught:
        fit_mixture(prefs, margins)
    assert "\n" not in str(caught.value)


def test_marginal_likelihood_never_falls_between_em_steps():
    world = experiment.simulate(10, experiment.Design(BASE, questions=40, answers=2), people=20)
    margins = true_margins(world)
    losses = [
        fit_mixture(world.prefs, margins, MixtureConfig(concentration=1e9, max_steps=n)).loss_nats
        for n in (1, 2, 4, 8, 30)
    ]
    assert np.all(np.diff(losses) < 1e-6)
