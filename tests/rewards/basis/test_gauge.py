import dataclasses

import numpy as np
import pytest

from rewards.basis import gauge, users
from rewards.basis.belief import Belief
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.people import questions


def raw_fit(seed, num_prompts=3):
    rng = np.random.default_rng(seed)
    embeddings = (rng.normal(size=(60, 20)) * np.linspace(0.2, 2, 20)).astype(np.float32)
    item_prompt = np.repeat(np.arange(num_prompts), 60 // num_prompts)
    embeddings += 3 * rng.normal(size=(num_prompts, 20)).astype(np.float32)[item_prompt]
    factor = rng.normal(size=(4, 4))
    prior = Belief.from_cov(rng.normal(size=4), factor @ factor.T + 0.3 * np.eye(4))
    return rng, embeddings, item_prompt, rng.normal(size=(20, 4)), prior


def changed(head, prior, change):
    """The same model in other coordinates: φ → Aφ, w → A⁻ᵀw."""
    inverse = np.linalg.inv(change)
    return head @ change.T, Belief.from_cov(inverse.T @ prior.mean, inverse.T @ prior.cov @ inverse)


@pytest.mark.parametrize("seed", range(5))
def test_any_invertible_change_of_basis_changes_nothing(seed):
    rng, embeddings, item_prompt, head, prior = raw_fit(seed)
    change = rng.normal(size=(4, 4)) + 0.5 * np.eye(4)
    versions = [(head, prior), changed(head, prior, change)]
    first, second = rng.integers(0, 20, (2, 40))
    second = np.where(first == second, (second + 1) % 20, second)
    outcome = rng.integers(0, 2, 8)
    seen = []
    for raw_head, raw_prior in versions:
        basis, canonical, _ = gauge.canonicalise(raw_head, raw_prior, embeddings, item_prompt, encoder={})
        phi = Readout.of(basis).features(embeddings, item_prompt)
        delta = phi[first] - phi[second]
        posterior = users.posterior(canonical, delta[:8], outcome)
        index, gains = questions.choose(posterior, delta[8:])
        seen.append((phi, canonical, delta @ posterior.mean, index, gains))
    (phi, canonical, margin, index, gains), other = seen
    np.testing.assert_allclose(phi, other[0], atol=1e-4)
    np.testing.assert_allclose(canonical.mean, other[1].mean, atol=1e-4)
    np.testing.assert_allclose(canonical.cov, other[1].cov, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(margin, other[2], atol=2e-3)
    assert index == other[3]
    np.testing.assert_allclose(gains, other[4], atol=1e-4)


def test_canonical_form():
    _, embeddings, item_prompt, head, prior = raw_fit(7)
    basis, canonical, _ = gauge.canonicalise(head, prior, embeddings, item_prompt, encoder={})
    phi = Readout.of(basis).features(embeddings, item_prompt)
    for prompt in range(3):
        np.testing.assert_allclose(phi[item_prompt == prompt].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(phi.T @ phi / len(phi), np.eye(4), atol=1e-4)
    np.testing.assert_allclose(canonical.mean[1:], 0, atol=1e-5)
    assert canonical.mean[0] > 0
    complement = canonical.cov[1:, 1:]
    np.testing.assert_allclose(complement, np.diag(np.diag(complement)), atol=1e-4)
    assert np.all(np.diff(np.diag(complement)) < 0)
    largest = np.abs(phi).argmax(axis=0)
    assert np.all(phi[largest, range(4)][1:] > 0)
    assert basis.gauge.names == ("aggregate", "taste 1", "taste 2", "taste 3")


def test_coefficients_precisions_and_predictions_transform_together():
    rng, embeddings, item_prompt, head, prior = raw_fit(8)
    basis, canonical, change = gauge.canonicalise(head, prior, embeddings, item_prompt, encoder={})
    raw, phi = embeddings @ head, Readout.of(basis).features(embeddings)
    coef = rng.normal(size=(5, 4))
    within = (raw[:20] - raw[0]) @ coef.T
    moved = gauge.transform_coef(change, coef)
    np.testing.assert_allclose((phi[:20] - phi[0]) @ moved.T, within, atol=1e-3)
    np.testing.assert_allclose(gauge.transform_coef(change, prior.mean), canonical.mean, atol=1e-5)
    np.testing.assert_allclose(gauge.transform_cov(change, prior.cov), canonical.cov, rtol=1e-3, atol=1e-4)


def test_a_row_read_without_prompts_depends_on_no_other_row():
    _, embeddings, item_prompt, head, prior = raw_fit(9)
    basis, _, _ = gauge.canonicalise(head, prior, embeddings, item_prompt, encoder={})
    together, alone = Readout.of(basis).features(embeddings), Readout.of(basis).features(embeddings[5:6])
    np.testing.assert_allclose(together[5:6], alone, atol=1e-6)
    centred = Readout.of(basis).features(embeddings, item_prompt)
    np.testing.assert_allclose(together[3] - together[7], centred[3] - centred[7], atol=1e-5)


def test_population_without_a_common_direction_has_a_gauge():
    _, embeddings, item_prompt, head, prior = raw_fit(10)
    nobody = dataclasses.replace(prior, mean=np.zeros(4))
    _, canonical, _ = gauge.canonicalise(head, nobody, embeddings, item_prompt, encoder={})
    assert np.all(np.diff(np.diag(canonical.cov)) < 0)


def test_bad_input_is_named():
    _, embeddings, item_prompt, head, prior = raw_fit(11)
    basis, _, _ = gauge.canonicalise(head, prior, embeddings, item_prompt, encoder={})
    with pytest.raises(UserError, match="width 20"):
        Readout.of(basis).features(embeddings[:, :-1])
    with pytest.raises(UserError, match="item 4"):
        Readout.of(basis).features(np.where(np.arange(60)[:, None] == 4, np.inf, embeddings))
    twice = np.concatenate([head[:, :3], head[:, :1]], axis=1)
    with pytest.raises(UserError, match="linearly dependent"):
        gauge.canonicalise(twice, prior, embeddings, item_prompt, encoder={})


def test_the_change_of_raw_outputs_is_that_of_their_head():
    _, embeddings, item_prompt, head, prior = raw_fit(4)
    _, canonical, change = gauge.canonicalise(head, prior, embeddings, item_prompt, encoder={})
    raw = embeddings.astype(np.float64) @ head
    again, mean, cov = gauge.canonical_change(raw, prior.mean, prior.cov, item_prompt)
    np.testing.assert_allclose(again, change, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, canonical.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cov, canonical.cov, rtol=1e-4, atol=1e-4)
