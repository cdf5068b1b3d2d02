"""The choice of K and width on people who are left out: they teach the fit nothing, and are predicted on the rest."""

import dataclasses

import numpy as np
import pytest

from rewards.basis import fit
from rewards.basis.fit import FitConfig
from rewards.basis.reduce import whitened_components
from tests.rewards.planted import planted

CONFIG = FitConfig(num_basis=2, dims=8, ridge=1.0, rounds=2)


def problem_of(pairs: int):
    world = planted(5, width=8, num_basis=2, num_users=12, pairs=pairs, num_items=40)
    prefs, embeddings = world.prefs, world.prefs.item_features
    used = np.unique(np.concatenate([prefs.chosen, prefs.rejected]))
    reference, prompts = embeddings[used], prefs.item_prompt[used]
    reduction = whitened_components(reference, prompts, 8, CONFIG.whitening)
    return fit._Problem.build(prefs, used, reduction, prompts)


@pytest.fixture
def states(monkeypatch):
    """The states that fits end with, in order."""
    found, run_rounds = [], fit.run_rounds

    def recorded(*args, **kwargs):
        state, metrics = run_rounds(*args, **kwargs)
        found.append(state)
        return state, metrics

    monkeypatch.setattr(fit, "run_rounds", recorded)
    return found


@pytest.mark.parametrize("left_out", [[0], [3, 7], [1, 2, 11], [0, 4, 5, 9], [10, 11]])
def test_people_who_are_left_out_teach_the_fit_nothing(states, left_out):
    problem, left_out = problem_of(12), np.array(left_out)
    prefs = problem.prefs
    outside = np.isin(prefs.user_index, left_out)
    flipped = dataclasses.replace(prefs, outcome=np.where(outside, 1 - prefs.outcome, prefs.outcome))
    weight = np.ones(prefs.num_comparisons, np.float32)
    losses = [
        fit.held_out_loss(dataclasses.replace(problem, prefs=own), left_out, 2, 8, CONFIG, weight)
        for own in (prefs, flipped)
    ]
    for name in ("directions", "mean", "cov"):
        np.testing.assert_array_equal(getattr(states[0], name), getattr(states[1], name))
    assert (losses[0] != losses[1]).all()


@pytest.mark.parametrize(("pairs", "adapt"), [(2, 10), (4, 2), (5, 50), (8, 4), (12, 3)])
def test_answers_that_were_used_to_adapt_are_not_predicted(monkeypatch, pairs, adapt):
    """At most half of them are; the others are predicted, and every left-out person has a loss."""
    problem, left_out, asked = problem_of(pairs), np.array([2, 6, 9]), []
    posteriors = fit.users.posteriors
    monkeypatch.setattr(
        fit.users,
        "posteriors",
        lambda prior, index, *rest, **more: (
            asked.append(np.bincount(index, minlength=12)),
            posteriors(prior, index, *rest, **more),
        )[1],
    )
    weight = np.ones(problem.prefs.num_comparisons, np.float32)
    config = dataclasses.replace(CONFIG, adapt_answers=adapt)
    losses = fit.held_out_loss(problem, left_out, 2, 8, config, weight)
    np.testing.assert_array_equal(asked[-1][left_out], min(adapt, pairs // 2))
    assert asked[-1].sum() == 3 * min(adapt, pairs // 2) and (losses > 0).all()
