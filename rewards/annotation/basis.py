"""The basis fitted to answers weighted by how genuine they look: `fit_basis` and the mixture in turn."""

import dataclasses

import numpy as np

from rewards.annotation.mixture import Margins, Mixture, MixtureConfig, fit_mixture
from rewards.basis.belief import Belief
from rewards.basis.fit import FitConfig, FitResult, fit_basis
from rewards.basis.readout import Readout
from rewards.files import JSONObject
from rewards.people.population import People
from rewards.types import Preferences


def fit_basis_mixture(
    prefs: Preferences,
    embeddings: np.ndarray,
    config: FitConfig,
    *,
    encoder: JSONObject,
    encoder_hash: str = "",
    mixture: MixtureConfig | None = None,
) -> tuple[FitResult, Mixture]:
    """φ, N(μ, Σ) and everyone's coefficients from genuine answers: EM over kinds of answer and rewards.

    Contaminated answers would otherwise enter φ itself. K and width are chosen once, on unweighted answers; the
    last fit uses the last weights. Arguments and errors as for `fit_basis`.
    """
    settings = mixture or MixtureConfig(
        rounds=4
    )  # a basis fit takes seconds, and margins move little after it
    result: FitResult | None = None
    chosen = config

    def fit(weight: np.ndarray, outcome: np.ndarray) -> Margins:
        nonlocal result, chosen
        soft = dataclasses.replace(prefs, outcome=outcome)
        result = fit_basis(
            soft, embeddings, chosen, encoder=encoder, encoder_hash=encoder_hash, weight=weight
        )
        dims = next((c.dims for c in result.candidates if c.chosen), config.dims)
        chosen = dataclasses.replace(chosen, num_basis=result.basis.num_basis, dims=dims)
        return margins(prefs, embeddings, result)

    found = fit_mixture(prefs, fit, settings)
    fit(found.weight, found.attitude)
    assert result is not None
    return result, found


def margins(prefs: Preferences, embeddings: np.ndarray, result: FitResult) -> Margins:
    """Mean and variance of w_u · Δφ for every row of `prefs` under the posteriors of the fit."""
    phi = Readout.of(result.basis).features(embeddings)
    return posterior_margins(prefs, phi, result.coef_mean, result.coef_precision)


def run_margins(prefs: Preferences, phi: np.ndarray, prior: Belief, people: People) -> Margins:
    """Margins of `prefs` under the people of a reward run; whoever is not among them has the prior."""
    place = {user_id: index for index, user_id in enumerate(people.user_ids)}
    known = [people.posteriors[place[user]] if user in place else None for user in prefs.user_ids]
    unknown = np.linalg.inv(np.asarray(prior.cov, np.float64))
    coef_mean = np.stack([prior.mean if one is None else one.mean for one in known])
    precision = np.stack([unknown if one is None else one.precision for one in known])
    return posterior_margins(prefs, phi, coef_mean, precision)


def posterior_margins(
    prefs: Preferences, phi: np.ndarray, coef_mean: np.ndarray, coef_precision: np.ndarray
) -> Margins:
    """Mean[N] and variance[N] of w_u · Δφ for phi[I, K] and posteriors coef_mean[U, K], coef_precision[U, K, K]."""
    delta = phi[prefs.chosen] - phi[prefs.rejected]
    mean = np.sum(coef_mean[prefs.user_index] * delta, axis=1)
    cov = np.linalg.inv(np.asarray(coef_precision, np.float64))
    return mean, np.einsum("nk,nkl,nl->n", delta, cov[prefs.user_index], delta)
