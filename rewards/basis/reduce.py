"""Embeddings → a few whitened coordinates, and back to a head over the embeddings.

Comparisons stay within a prompt, so the directions are the principal components of the embeddings with each
prompt's mean removed: what tells prompts apart would only take up room. Their scale is set so that one ridge
serves encoders of any scale: with component variances λ_j, coordinate j gets variance (λ_j / λ_1)^(1 − α).
Whitening, α = 1, gives every component the same chance; at α = 0 the reward is expected to follow the large
ones.

Letters in shapes: I items, D embedding width, P kept components.
"""

import dataclasses

import numpy as np

from rewards.basis import readout
from rewards.errors import UserError


@dataclasses.dataclass(frozen=True)
class Reduction:
    """x = projectionᵀ (e − prompt mean): projection[D, P], coordinates[I, P]."""

    projection: np.ndarray
    coordinates: np.ndarray

    @property
    def rank(self) -> int:
        return self.projection.shape[1]


def whitened_components(
    embeddings: np.ndarray, item_prompt: np.ndarray, dims: int, whitening: float = 1.0
) -> Reduction:
    """The first `dims` principal components within prompts, fewer when the embeddings have a lower rank.

    `whitening` is α in [0, 1].

    Raises:
      UserError: embeddings of one prompt never differ, or are not finite.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if not np.isfinite(embeddings).all():
        bad = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise UserError(
            f"embeddings: item {bad} holds a value that is not finite; check its text or features"
        )
    from sklearn.decomposition import PCA  # two seconds to import: only where something is fitted

    centred = readout.centre(embeddings, item_prompt)
    dims = min(dims, *centred.shape)
    # "full" on the short side, the eigenvectors of the covariance when there are many more items than
    # columns.
    solver = "covariance_eigh" if len(centred) > 4 * centred.shape[1] else "full"
    pca = PCA(n_components=dims, svd_solver=solver).fit(centred)
    variance = pca.explained_variance_
    scale = np.mean(embeddings**2)
    # Relative to the size of the embeddings: float32 encoders leave rounding noise of about 1e-12 of it.
    keep = int(np.sum((variance > 1e-7 * variance[0]) & (variance > 1e-11 * scale)))
    if keep == 0:
        raise UserError(
            "embeddings: the completions of every prompt have the same embedding; check texts and encoder"
        )
    spread = np.sqrt(variance[:keep] ** whitening * variance[0] ** (1 - whitening))
    projection = np.asarray(pca.components_)[:keep].T / spread
    return Reduction(projection, centred @ projection)
