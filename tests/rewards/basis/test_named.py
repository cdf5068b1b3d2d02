"""Axes named after probes: what is planted becomes explicit, rewards stay what they were, and nothing is taken on trust."""

import dataclasses

import numpy as np
import pytest

import rewards
from rewards.api import fitting
from rewards.basis import gauge, named
from rewards.basis.belief import Belief
from rewards.basis.readout import Readout
from rewards.errors import UserError

PROMPTS, EACH, SIZE = 40, 8, 5


def planted(seed=0, noise=0.2):
    """φ hides length and flattery, mixed with three axes of taste; values of them, correlated, and of what φ does not see."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(PROMPTS), EACH)
    hidden = rng.normal(size=(len(prompt), SIZE))
    hidden[:, 1] += 0.5 * hidden[:, 0]
    basis, prior, _ = gauge.canonicalise(
        rng.normal(size=(SIZE, SIZE)),
        Belief.from_cov(rng.normal(size=SIZE), np.diag(rng.uniform(0.5, 2.0, SIZE))),
        hidden,
        prompt,
        encoder={"kind": "precomputed"},
    )
    phi = Readout.of(basis).features(hidden, prompt)
    shift = 5.0 * rng.normal(size=(PROMPTS, 1))[prompt]
    values = np.column_stack(
        [hidden[:, :2] + noise * rng.normal(size=(len(prompt), 2)), rng.normal(size=len(prompt))]
    )
    return basis, prior, hidden, prompt, phi, values + shift


def r2(block, value, prompt):
    block, value = (
        named.centre(np.asarray(part, float).reshape(len(prompt), -1), prompt) for part in (block, value)
    )
    left = value - block @ np.linalg.lstsq(block, value, rcond=None)[0]
    return 1 - float(np.sum(left**2) / np.sum(value**2))


def test_planted_probes_are_recovered_from_their_block_and_from_no_other():
    _, prior, _, prompt, phi, values = planted()
    assert all(max(r2(phi[:, k], values[:, p], prompt) for k in range(SIZE)) < 0.8 for p in (0, 1)), (
        "no axis reads as one"
    )
    by = named.turn(phi, values, ["length", "flattery", "unseen"], prompt, prior)
    np.testing.assert_allclose(by.matrix @ by.matrix.T, np.eye(SIZE), atol=1e-12)
    turned = phi @ by.matrix.T
    assert by.names == ("length", "flattery", "aggregate", "taste 1", "taste 2")
    for p, name in enumerate(("length", "flattery")):
        assert r2(turned[:, :2], values[:, p], prompt) >= 0.8 >= by.probes[name].explicit - 0.2
        assert r2(turned[:, 2:], values[:, p], prompt) <= 0.1 and by.probes[name].free <= 0.1
        assert by.probes[name].axis > 0.85 and by.probes[name].refused is None
        assert np.argmax([r2(turned[:, k], values[:, p], prompt) for k in range(SIZE)]) == p
    assert "unseen" not in by.names and "φ shows 0.0" in by.probes["unseen"].refused


def test_the_free_axes_are_canonical_among_themselves():
    _, prior, _, prompt, phi, values = planted()
    by = named.turn(phi, values[:, :2], ["length", "flattery"], prompt, prior)
    mean, cov = named.turned_coef(by, prior.mean), named.turned_cov(by, prior.cov)
    np.testing.assert_allclose(mean[3:], 0, atol=1e-5)
    assert mean[2] > 0 and abs(cov[3, 4]) < 1e-5 and cov[3, 3] >= cov[4, 4]


def test_rewards_do_not_change_and_the_gauge_record_keeps_the_turn():
    basis, prior, hidden, prompt, phi, values = planted()
    by = named.turn(phi, values[:, :2], ["length", "flattery"], prompt, prior)
    turned = gauge.turned(basis, by.matrix, by.names)
    after = Readout.of(turned).features(hidden, prompt)
    np.testing.assert_allclose(after, phi @ by.matrix.T, atol=1e-4)
    people = np.random.default_rng(1).normal(size=(7, SIZE))
    np.testing.assert_allclose(after @ named.turned_coef(by, people).T, phi @ people.T, atol=1e-3)
    assert turned.gauge.names[:2] == ("length", "flattery")


def test_a_probe_that_others_say_already_has_no_axis_and_bad_ones_are_refused():
    _, prior, _, prompt, phi, values = planted()
    twice = np.column_stack([values[:, :2], values[:, 0] + 0.1 * values[:, 1]])
    by = named.turn(phi, twice, ["length", "flattery", "words"], prompt, prior)
    assert "mixture of length, flattery" in by.probes["words"].refused and by.probes["words"].free <= 0.1
    with pytest.raises(UserError, match="unseen: φ shows"):
        named.turn(phi, values[:, 2:], ["unseen"], prompt, prior)
    with pytest.raises(UserError, match="'taste 1' is the name of another axis"):
        named.turn(phi, values[:, :1], ["taste 1"], prompt, prior)
    broken = values[:, :1].copy()
    broken[3] = np.nan
    with pytest.raises(UserError, match="'length' says something that is no finite number"):
        named.turn(phi, broken, ["length"], prompt, prior)
    same = np.ones((len(prompt), 1))
    with pytest.raises(UserError, match="φ shows 0.00"):
        named.turn(phi, same, ["length"], prompt, prior)


WORDS = ("red", "green", "blue", "small", "large")


def rows(people=24, pairs=14):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(60)]
    feature = np.array([[len(text.split()), text.count("red"), text.count("blue")] for text in texts], float)
    feature = (feature - feature.mean(axis=0)) / feature.std(axis=0)
    for person in range(people):
        taste = np.array([1.5, 2.0 * (-1) ** person, 1.0 * (-1) ** (person // 2)])
        for _ in range(pairs):
            a, b = rng.choice(60, 2, replace=False)
            if rng.random() > 1 / (1 + np.exp(-(feature[a] - feature[b]) @ taste)):
                a, b = b, a
            texted = {
                "prompt": "Which?",
                "chosen": texts[a],
                "rejected": texts[b],
                "user_id": f"p{person:02}",
            }
            yield texted | {"chosen_features": feature[a].tolist(), "rejected_features": feature[b].tolist()}


def words(completions, **columns):
    return [float(len(text.split())) for text in completions]


def test_names_reach_rails_cards_and_files_and_people_stay_who_they_are(tmp_path):
    table = rewards.read(list(rows()))
    plain, fitted = (
        rewards.fit(table, method="per_user", probes=probes) for probes in (None, {"length": words})
    )
    assert fitted.axes == ("length", "aggregate", "taste 1")
    assert fitted.prior.mean[0] > 0.3, "everybody here likes longer ones"
    for name in plain.people[:4]:
        np.testing.assert_allclose(
            fitted.fit.phi @ fitted.person(name).mean, plain.fit.phi @ plain.person(name).mean, atol=2e-3
        )
    stored = fitted.with_rails({"axes": [{"name": "length", "locked": 0}]}).save(tmp_path / "run")
    opened = rewards.load(stored)
    assert opened.axes == fitted.axes and opened.rails.locked == ("length",)
    assert opened.basis.extra["probes"]["length"]["explicit"] > 0.8
    assert "length" in opened.person("p00").card()
    np.testing.assert_allclose(opened.model.seen().mean, fitted.model.seen().mean)


@pytest.mark.parametrize(
    ("probes", "fault"),
    [
        ({"length": lambda completions, **_: [1.0]}, "not one number for each of 59"),
        ({"length": lambda completions: [1.0]}, "'length' fails"),
    ],
)
def test_probes_that_do_not_answer_are_refused(probes, fault):
    with pytest.raises(UserError, match=fault):
        rewards.fit(list(rows()), method="per_user", probes=probes)


def test_only_axes_without_names_get_some():
    vpl = dataclasses.make_dataclass("Vpl", [("kind", str, "vpl")])()
    with pytest.raises(UserError, match="vpl has no axes that could be named"):
        fitting.with_probes(vpl, None, ["length"], np.zeros((1, 1)))
    with pytest.raises(UserError, match="the axes of columns have names"):
        rewards.fit(list(rows()), method="columns", probes={"length": words})
