"""The claims of docs/results/guardrails.md, on fewer people."""

import numpy as np
import pytest

from scripts.experiments import guardrails
from scripts.experiments import guardrails_loops as loops
from scripts.experiments import guardrails_pareto as pareto
from scripts.experiments import guardrails_people as people
from scripts.experiments import guardrails_trained as trained_page


@pytest.fixture(scope="module")
def flattering():
    return guardrails.world(1, 0.6, 100)


def test_the_mean_is_no_rail_where_it_flatters_and_the_half_space_is(flattering):
    found = guardrails.measured(flattering)
    base = found["base"]["agreement"]
    assert found["aggregate"]["agreement"] > found["personal"]["agreement"] > base + 0.05
    for name in ("half-space", "λ*"):
        assert found[name]["agreement"] <= base + 0.01 and found[name]["over_10_points"] == 0
        assert found[name]["taste_kept"] >= 0.95
    assert found["lock at the mean"]["agreement"] > base + 0.05
    assert found["shrink 50 %"]["taste_kept"] < 0.8


def test_the_mean_is_a_rail_where_it_dislikes_flattery():
    found = guardrails.measured(guardrails.world(1, -0.3, 100))
    assert found["aggregate"]["agreement"] < found["personal"]["agreement"]


def test_errors_of_the_detector_hurt_the_penalty_more(flattering):
    def agreement(name, error):
        flagged = guardrails.seen(flattering.agrees, error, 0)
        return (guardrails.scheme(name, flattering, flagged) * flattering.agrees).sum(axis=-1).mean()

    assert agreement("half-space", 0.3) - agreement("half-space", 0.0) < 0.03
    assert agreement("λ*", 0.3) - agreement("λ*", 0.0) > 0.08
    assert np.isclose(guardrails.seen(flattering.agrees, 0.3, 0).mean(), 0.35 * 0.7 + 0.65 * 0.3, atol=0.03)


def test_rails_hold_where_dpo_and_ppo_really_optimise():
    """F1 with fewer steps: no more agreement than π_ref plus one point, at μ as well, where no rail flatters."""
    at = trained_page.world(0, 0.6, 0.0)
    base, mean = at.agrees.mean(), np.broadcast_to(at.mean, at.people.shape)
    for trainer, scheme in (("ppo", "half-space"), ("dpo, whole rows", "λ*")):
        plain, railed = (trained_page.trained(at, name, trainer, 120, 0) for name in ("no rail", scheme))
        free = trained_page.measured(at, plain, "no rail", at.people)
        held = trained_page.measured(at, railed, scheme, at.people)
        assert free["agreement"] > base + 0.05 and held["agreement"] <= base + 0.01
        assert held["taste"] > 0.9 * free["taste"]
        assert trained_page.measured(at, plain, "no rail", mean)["agreement"] > base + 0.01
        assert trained_page.measured(at, railed, scheme, mean)["agreement"] <= base + 0.03


def test_a_capped_mirror_does_not_polarise_and_its_slope_predicts_the_index():
    row = loops.polarisation(0, loops.capped(0))
    assert row["slope"] <= 0.3 + 1e-6 and row["index"] <= 1
    assert abs(row["predicted"] / row["index"] - 1) < 0.1
    strong = loops.polarisation(0, 1.0)
    assert strong["index"] > 1 and abs(strong["predicted"] / strong["index"] - 1) > 0.1, (
        "a limit of the claim"
    )


def test_a_calibrated_slate_costs_little_reward():
    best, chosen = loops.slate(0, 0.0), loops.slate(0, 0.5)
    assert (
        chosen["calibration_nats"] < 0.2 * best["calibration_nats"]
        and chosen["reward"] > 0.95 * best["reward"]
    )


def test_weights_of_the_worst_group_lift_it_and_cost_the_mean_more_than_was_hoped():
    plain, weighted = loops.worst_group(0, False, 200), loops.worst_group(0, True, 200)
    assert weighted["minority"] > 2 * plain["minority"]
    assert weighted["mean"] < 0.95 * plain["mean"]


def test_at_every_shrinkage_the_rails_hold_and_no_rail_flatters_more_the_more_it_is_shrunk():
    """The Pareto figure on tastes drawn at random instead of people's."""
    rng = np.random.default_rng(0)
    at = pareto.world(rng.normal(size=(20, 4)), rng.normal(size=(60, 4)), 0.6, 0)
    found = pareto.front(at, draws=20)
    flattery = {name: np.array([point["flattery"] for point in points]) for name, points in found.items()}
    assert flattery["no rail"].min() > 0.55 and flattery["no rail"][-1] > flattery["no rail"][0]
    for name in ("projection", "λ*"):
        assert flattery[name].max() <= 0.5 + 1e-4 and max(point["p95"] for point in found[name]) <= 0.5 + 1e-4
        assert found[name][0]["kept"] > 0.75
    for points in found.values():
        assert all(
            one["kept_interval"][0] <= one["kept"] + 1e-9 <= one["kept_interval"][1] + 2e-9 for one in points
        )


def test_a_topic_of_votes_has_sides_places_and_statements_in_between():
    votes, group = [], {f"p{n}": 1 if n % 2 else -1 for n in range(20)}
    for n, person in enumerate(group):
        for k in range(20):
            sign = 1 if k < 7 else -1 if k < 14 else (1 if (n // 2 + k) % 2 else 0)
            votes.append(
                (
                    person,
                    f"a statement of number {k:02}",
                    (sign * group[person] or -1) if k < 14 else (sign or -1),
                )
            )
    one = people.topic("What?", votes, group, 5)
    assert one is not None and len(one.texts) == 12 and one.side.tolist() == [1] * 4 + [-1] * 4 + [0] * 4
    number = [int(text[-2:]) for text in one.texts]
    assert max(number[:4]) < 7 <= min(number[4:8]) <= max(number[4:8]) < 14 <= min(number[8:])
    first = np.array([one.features[text][0] for text in one.texts])
    assert first[:4].min() > first[8:].max() and first[4:8].max() < first[8:].min()
    assert people.topic("What?", votes[:50], group, 5) is None
