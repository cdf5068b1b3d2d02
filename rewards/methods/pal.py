"""PAL: ideal points. Everybody's ideal lies among K prototypes; texts near it are preferred.

    r_u(x, y) = Σ_k a_uk φ_k(x, y),  φ_k = −|f(x, y) − p_k|²,  a_u on the simplex,  f = Fᵀx
    PAL-A: p_k fixed        PAL-B: p_k(x) = p_k + G_k c(x), c = the reduced vector of the prompt

Since a_u sums to 1 this is −|f − Σ_k a_uk p_k|² up to a term that is the same for all completions of a prompt:
the ideal point. Expanding φ_k = −|f|² + 2 f·p_k(x) + const shows that r_u is linear in a_u with quadratic
features, which is how it is stored (`types.Quadratic`). The size of each part of the reward is penalised,

    ½ ridge (Σ_k |2 F p_k|² + |F Fᵀ|² + Σ_k |2 F G_k|²)

so that rescaling (F, p) cannot undo it. Prompts are embedded by the encoder where the table brings
`prompt_embeddings`, else a prompt's vector is the mean embedding of its items in the table; with one prompt
there is nothing for p_k to depend on and PAL-B is PAL-A. A new person's shares are a convex fit with F, p fixed.

Source: Chen et al. 2024, arXiv:2406.08469, models A and B with the squared distance (equations only). Differs: f
linear over a frozen embedding; started at the linear model whose hull holds most people; prototypes of B are
affine in the prompt.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from sklearn.decomposition import PCA

from rewards.basis import readout
from rewards.files import JSONObject
from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import RANK, LinearFitted, finish_head
from rewards.methods.lore import hull_rule
from rewards.types import PromptPart, Quadratic

START_SCALE = 0.3  # of F: the reward starts nearly linear


def _features(params, items, context):
    """φ_k of every item, without the terms that are the same for all items of a prompt."""
    point = items @ params["projection"]
    phi = 2.0 * point @ params["prototypes"].T - jnp.sum(point**2, axis=1, keepdims=True)
    if context is None:
        return phi
    return phi + 2.0 * jnp.einsum("ir,krq,iq->ik", point, params["turns"], context)


def _coefficients(params):
    return jax.nn.softmax(params["logits"], axis=1)


def _penalty(params, scales):
    projection = params["projection"]
    size = jnp.sum((2.0 * projection @ params["prototypes"].T) ** 2)
    size += jnp.sum((projection.T @ projection) ** 2)
    if "turns" in params:
        size += jnp.sum((2.0 * jnp.einsum("pr,krq->kpq", projection, params["turns"])) ** 2)
    return 0.5 * scales["ridge"] * size + 0.5 * scales["logit_ridge"] * jnp.sum(params["logits"] ** 2)


LINK = shared.Link(_features, _coefficients, _penalty)


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class PALA(shared.Reduced, RewardModel):
    """PAL-A.

    Attributes:
      num_prototypes: K; as many outputs are kept as are independent, at most one more than `width`.
      width: R, the dimension of the space of ideal points.
      logit_ridge: keeps the logits of training people finite.
      anchor: pull of a new person's shares to the mean (nats per squared share); 0 is the published fit.
      steps: L-BFGS iterations.
    """

    kind: ClassVar[str] = "pal_a"

    num_prototypes: shared.Count = 6
    width: shared.Count = 6
    logit_ridge: shared.Positive = 0.1
    anchor: shared.NotNegative = 1.0
    steps: shared.Count = 200

    def _context(self, problem: shared.Problem) -> "_Context | None":
        return None

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        context = self._context(problem)
        # Distances are between texts, not between texts of one prompt, so the shift is that of all items.
        middle = np.asarray(table.embeddings, np.float64)[problem.used].mean(axis=0)
        items = (
            np.asarray(table.embeddings, np.float64)[problem.used] - middle
        ) @ problem.reduction.projection
        params, metrics = shared.minimise(
            LINK,
            self._start(problem, context),
            problem.data._replace(items=items.astype(np.float32)),
            {"lapse": self.lapse, "ridge": self.ridge, "logit_ridge": self.logit_ridge},
            steps=self.steps,
            context=None if context is None else context.vectors[problem.prompts],
            on_round=on_round,
        )
        shares = np.asarray(_coefficients(params))
        params, shrink = _independent(params)
        head, quadratic = _raw(params, problem, middle, context)
        return finish_head(
            self.kind,
            problem,
            head,
            shares,
            hull_rule(shares[problem.answers > 0], self.anchor, self.lapse),
            metrics | {"mean_shares": shares.mean(axis=0).astype(float).tolist()},
            shrink=shrink,
            quadratic=quadratic,
        )

    def _start(self, problem: shared.Problem, context: "_Context | None") -> JSONObject:
        directions, logits = shared.simplex_start(problem, self.num_prototypes, self.ridge, self.lapse)
        width = min(self.width, problem.reduction.rank)
        plane = np.linalg.svd(directions, full_matrices=True)[0][:, :width]
        start = {
            "projection": START_SCALE * plane,
            "prototypes": (directions.T @ plane) / (2.0 * START_SCALE),
            "logits": logits,
        }
        if context is not None:
            start["turns"] = np.zeros((self.num_prototypes, width, context.vectors.shape[1]))
        return start


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class PALB(PALA):
    """PAL-B: prototypes that depend on the prompt.

    Attributes:
      prompt_dims: Q, principal components of the prompts' vectors.
    """

    kind: ClassVar[str] = "pal_b"

    prompt_dims: shared.Count = 4

    def _context(self, problem: shared.Problem) -> "_Context | None":
        table = problem.table
        given = table.prompt_embeddings
        vectors = readout.prompt_means(table.embeddings, table.prefs.item_prompt) if given is None else given
        vectors = np.asarray(vectors, np.float64)
        shown = np.unique(problem.prompts)
        count = min(self.prompt_dims, len(shown) - 1)
        if count < 1:
            return None
        pca = PCA(count, svd_solver="full").fit(vectors[shown])
        keep = pca.explained_variance_ > 1e-9 * max(float(np.mean(vectors[shown] ** 2)), 1e-30)
        if not keep.any():
            return None
        projection = np.asarray(pca.components_)[keep].T / np.sqrt(pca.explained_variance_[keep])
        source = "mean" if given is None else "encoder"
        return _Context((vectors - pca.mean_) @ projection, projection, pca.mean_ @ projection, source)


@dataclasses.dataclass(frozen=True)
class _Context:
    """c(x) = projectionᵀ e(x) − shift of every prompt: vectors[P, Q]."""

    vectors: np.ndarray
    projection: np.ndarray
    shift: np.ndarray
    source: str


def _independent(params: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """As many prototypes as there are independent rewards, and C[K, L] with p = C p′; changes no reward.

    More prototypes than the space of ideal points has room for (R dimensions hold R + 1) would be outputs that the
    gauge cannot tell apart. The rows of C sum to 1, so Σ_k a_k φ_k = Σ_l (Cᵀa)_l φ′_l holds with the term −|f|² too.
    """
    names = [name for name in ("prototypes", "turns") if name in params]
    points = {name: params[name].astype(np.float64) for name in names}
    middle = {name: point.mean(axis=0) for name, point in points.items()}
    projection = params["projection"].astype(np.float64)
    # What each prototype adds to the reward per component coordinate (and per coordinate of the prompt).
    parts = [
        np.tensordot(point - middle[name], projection, axes=([1], [1])) for name, point in points.items()
    ]
    slopes = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    left, size, _ = np.linalg.svd(slopes, full_matrices=False)
    rank = int(np.sum(size > RANK * size[0]))
    if rank + 1 >= len(slopes):
        return params, None
    left = left[:, :rank]
    fewer = dict(params)
    for name, point in points.items():
        offsets = np.tensordot(left, point - middle[name], axes=([0], [0]))
        fewer[name] = np.concatenate([middle[name][None], middle[name] + offsets])
    return fewer, np.concatenate([1.0 - left.sum(axis=1, keepdims=True), left], axis=1)


def _raw(
    params: dict[str, np.ndarray], problem: shared.Problem, middle: np.ndarray, context: _Context | None
) -> tuple[np.ndarray, Quadratic]:
    """Head[D, K] and quadratic part over the embeddings themselves.

    With S = projection · F and b = Sᵀ middle, f = Sᵀe − b, so −|f|² = −|Sᵀe|² + 2 b·Sᵀe + const.
    """
    square = problem.reduction.projection @ params["projection"].astype(np.float64)
    shift = middle @ square
    linear = params["prototypes"].astype(np.float64) + shift
    if context is None:
        return 2.0 * square @ linear.T, Quadratic(square.astype(np.float32))
    turns = params["turns"].astype(np.float64)
    linear = linear - turns @ context.shift
    part = PromptPart(context.projection.astype(np.float32), (2.0 * turns).astype(np.float32), context.source)
    return 2.0 * square @ linear.T, Quadratic(square.astype(np.float32), part)
