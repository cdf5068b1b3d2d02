"""The canonical gauge: which of all equivalent (φ, w) is meant.

(φ, w) and (Aφ, A⁻ᵀw) predict the same, and φ is free up to a prompt-dependent shift, so a prior, a lock or a
norm means nothing until both are fixed. Canonical:
    1. centring: every prompt's mean over the reference items is 0,
    2. whitening: Cov over the reference items is I,
    3. rotation: axis 0 is the direction of μ (so μ = (‖μ‖, 0, …)); axes 1.. are the principal axes of Σ
       in its orthogonal complement, by falling variance,
    4. signs: μ_0 ≥ 0; on every other axis the reference item of largest |φ| is positive.
With φ′ = B φ the coefficients become B⁻ᵀ w, covariances B⁻ᵀ Σ B⁻¹ and precisions B H Bᵀ.

Letters in shapes: I items, D embedding width, K basis outputs.
"""

import dataclasses

import numpy as np

from rewards.basis.belief import Belief
from rewards.basis.readout import Readout, centre, raw_outputs
from rewards.errors import UserError
from rewards.types import Gauge, Quadratic, RewardBasis

CENTRING = "prompt_mean"


def canonicalise(
    head: np.ndarray,
    prior: Belief,
    embeddings: np.ndarray,
    item_prompt: np.ndarray,
    *,
    encoder: dict,
    encoder_hash: str = "",
    quadratic: Quadratic | None = None,
    prompt_embeddings: np.ndarray | None = None,
) -> tuple[RewardBasis, Belief, np.ndarray]:
    """Bring a raw fit into the canonical gauge.

    Args:
      head: float[D, K] of full column rank on the reference items; raw(x, y) = headᵀ e(x, y).
      prior: N(μ, Σ) over raw coefficients.
      embeddings: float[I, D] of the reference items; `item_prompt` int[I] says whose they are.
      encoder: settings that rebuild the embeddings; `encoder_hash` the hash of its weights.
      quadratic: the quadratic part of the raw outputs; `prompt_embeddings` float[P, D] where it needs them.
    Returns:
      the basis (same head, with its gauge), the prior in the canonical gauge, and B[K, K] with φ = B · raw
      (up to a shift), for `transform_coef` and `transform_cov`.
    Raises:
      UserError: the basis outputs are linearly dependent over the reference items.
    """
    raw = raw_outputs(head, quadratic, embeddings, item_prompt, prompt_embeddings)
    whitening, rotation, signs = _parts(raw, prior.mean, prior.cov, item_prompt)
    gauge = Gauge(
        centring=CENTRING,
        mean=raw.mean(axis=0).astype(np.float32),
        whitening=whitening.astype(np.float32),
        rotation=rotation.astype(np.float32),
        signs=signs.astype(np.float32),
        scale=1.0,
        names=axis_names(head.shape[1]),
        encoder_hash=encoder_hash,
    )
    basis = RewardBasis(np.asarray(head, np.float32), gauge, dict(encoder), quadratic)
    change = Readout.of(basis).change
    mean = transform_coef(change, prior.mean)
    cov = transform_cov(change, np.asarray(prior.cov, np.float64))
    canonical = Belief.from_cov(mean.astype(np.float32), (0.5 * (cov + cov.T)).astype(np.float32))
    return basis, canonical, change


def canonical_change(
    raw: np.ndarray, mean: np.ndarray, cov: np.ndarray, item_prompt: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B[K, K] for raw outputs[I, K] of the reference items, and μ, Σ in the canonical gauge (float64)."""
    whitening, rotation, signs = _parts(raw, mean, cov, item_prompt)
    change = signs[:, None] * (rotation @ whitening)
    cov = transform_cov(change, np.asarray(cov, np.float64))
    return change, transform_coef(change, mean), 0.5 * (cov + cov.T)


def _parts(raw, mean, cov, item_prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whitening, rotation and signs of the canonical gauge."""
    centred = centre(raw, item_prompt)
    whitening = whitener(centred.T @ centred / len(centred))
    cov = np.asarray(cov, np.float64)
    rotation = rotate(transform_coef(whitening, mean), transform_cov(whitening, cov))
    return whitening, rotation, sign(centred @ (rotation @ whitening).T)


def turned(basis: RewardBasis, matrix: np.ndarray, names: tuple[str, ...]) -> RewardBasis:
    """The basis with φ′ = Qφ for an orthogonal Q[K, K], kept in its gauge record: Q diag(signs) rotation, and no signs."""
    old = basis.gauge
    rotation = matrix @ (old.signs.astype(np.float64)[:, None] * old.rotation.astype(np.float64))
    changed = dataclasses.replace(
        old, rotation=rotation.astype(np.float32), signs=np.ones_like(old.signs), names=names
    )
    return dataclasses.replace(basis, gauge=changed)


def transform_coef(change: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """w′ = B⁻ᵀ w for coef[..., K]."""
    return np.asarray(coef, np.float64) @ np.linalg.inv(change)


def transform_cov(change: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Σ′ = B⁻ᵀ Σ B⁻¹ for cov[..., K, K]."""
    inverse = np.linalg.inv(change)
    return inverse.T @ cov @ inverse


def whitener(cov: np.ndarray) -> np.ndarray:
    """Symmetric C^{-1/2}, float64[K, K]."""
    values, vectors = np.linalg.eigh(cov)
    if not values[0] > 1e-10 * max(values[-1], 1e-300):
        raise UserError(
            f"basis: {len(cov)} outputs are linearly dependent over the reference items "
            f"(eigenvalues {values[0]:.2g} to {values[-1]:.2g}); choose fewer outputs (num_basis)"
        )
    return (vectors / np.sqrt(values)) @ vectors.T


def rotate(mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Orthogonal R[K, K]: row 0 along μ, the others the principal axes of Σ in its complement."""
    num_basis = len(mean)
    norm = np.linalg.norm(mean)
    spread = np.sqrt(np.trace(cov))
    # A population with no common direction (opposite tastes) has no aggregate axis: order by variance alone.
    if norm <= 1e-6 * spread:
        return np.linalg.eigh(cov)[1].T[::-1]
    axis = mean / norm
    complement = np.linalg.svd(axis[None])[2][1:] if num_basis > 1 else np.zeros((0, 1))
    vectors = np.linalg.eigh(complement @ cov @ complement.T)[1] if num_basis > 1 else np.zeros((0, 0))
    return np.concatenate([axis[None], vectors.T[::-1] @ complement])


def sign(rotated: np.ndarray) -> np.ndarray:
    """±1 for each axis of φ[I, K] over the reference items; axis 0 is already oriented by μ."""
    size = np.abs(rotated)
    # The first item within 0.1 % of the largest: an exact tie must not be broken by rounding.
    first = np.argmax(size >= 0.999 * size.max(axis=0), axis=0)
    signs = np.sign(rotated[first, np.arange(rotated.shape[1])])
    signs[0] = 1.0
    return np.where(signs == 0, 1.0, signs)


def axis_names(num_basis: int) -> tuple[str, ...]:
    return ("aggregate", *(f"taste {axis}" for axis in range(1, num_basis)))
