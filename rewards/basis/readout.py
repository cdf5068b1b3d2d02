"""How a reward basis is read: the one place where centring, whitening and rotation are applied to embeddings.

    φ(x, y) = B (raw(x, y) − c),   raw = headᵀ e(x, y) [− |f|² [+ fᵀ head_k c(x)]],   f = squareᵀ e

B and the stored mean m come from the gauge record. On the host (`Readout.features`) everything is float64 and c is the mean
of the item's prompt where prompts are given, else m; inside a compiled program (`Readout.folded`) one completion has no
company, so c is m. The two differ by a shift per prompt, which cancels wherever completions of one prompt are compared.

Letters in shapes: I items, D embedding width, K basis outputs, R width of the quadratic part, P prompts.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rewards.errors import UserError
from rewards.types import Quadratic, RewardBasis


class Folded(NamedTuple):
    """φ = e·weight − |squareᵀ e|² · curve − shift: head and gauge in one, float32, for compiled programs.

    Attributes:
      weight: [D, K]; square: [D, R] or None; curve: [K]; shift: [K].
    """

    weight: jax.Array
    square: jax.Array | None
    curve: jax.Array
    shift: jax.Array

    def __call__(self, embeddings: jax.Array) -> jax.Array:
        """Embeddings [..., D] → φ [..., K]."""
        # The gauge cancels large common parts of e: TF32 would keep three digits of them.
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        phi = product(embeddings, self.weight) - self.shift
        if self.square is None:
            return phi
        return phi - jnp.sum(product(embeddings, self.square) ** 2, axis=-1, keepdims=True) * self.curve


@dataclasses.dataclass(frozen=True)
class Readout:
    """A basis as it is read.

    Attributes:
      head: [D, K]; quadratic: its quadratic part or None.
      mean: m[K], of the raw outputs over the reference items; change: B[K, K], float64.
    """

    head: np.ndarray
    quadratic: Quadratic | None
    mean: np.ndarray
    change: np.ndarray

    @classmethod
    def of(cls, basis: RewardBasis) -> "Readout":
        """B = scale · diag(signs) · rotation · whitening."""
        gauge = basis.gauge
        product = gauge.rotation.astype(np.float64) @ gauge.whitening.astype(np.float64)
        change = gauge.scale * gauge.signs[:, None] * product
        return cls(basis.head, basis.quadratic, gauge.mean, change)

    def features(
        self,
        embeddings: np.ndarray,
        item_prompt: np.ndarray | None = None,
        prompt_embeddings: np.ndarray | None = None,
    ) -> np.ndarray:
        """φ(x, y), float32[I, K].

        With `item_prompt` int[I], c is the mean of the item's prompt over the items given; without, the stored mean, and
        then a row depends on no other row. `prompt_embeddings` float[P, D] are only read by a basis that was fitted
        with embeddings of prompts.

        Raises:
          UserError: embeddings of another width than the basis was fitted on, or not finite; no prompts for a
            basis that depends on them.
        """
        embeddings = np.asarray(embeddings)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.head.shape[0]:
            raise UserError(
                f"embeddings: shape {embeddings.shape}, but the basis reads width {self.head.shape[0]}; "
                "use the encoder the basis was fitted with"
            )
        if not np.isfinite(embeddings).all():
            bad = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
            raise UserError(
                f"embeddings: item {bad} holds a value that is not finite; check its text or features"
            )
        raw = raw_outputs(self.head, self.quadratic, embeddings, item_prompt, prompt_embeddings)
        shifted = raw - self.mean if item_prompt is None else centre(raw, item_prompt)
        return (shifted @ self.change.T).astype(np.float32)

    def folded(self) -> Folded:
        """The same for compiled programs, folded in float64.

        Raises:
          UserError: prototypes that depend on the prompt: they need a prompt's other completions.
        """
        if self.quadratic is not None and self.quadratic.prompt is not None:
            raise UserError(
                "rewards: the prototypes of this basis (pal_b) depend on the prompt, which no single completion can be "
                "rewarded by; fit pal_a or house"
            )
        square = None if self.quadratic is None else jnp.asarray(self.quadratic.square, jnp.float32)
        return Folded(
            jnp.asarray(np.asarray(self.head, np.float64) @ self.change.T, jnp.float32),
            square,
            jnp.asarray(self.change.sum(axis=1), jnp.float32),
            jnp.asarray(self.change @ np.asarray(self.mean, np.float64), jnp.float32),
        )


def raw_outputs(
    head: np.ndarray,
    quadratic: Quadratic | None,
    embeddings: np.ndarray,
    item_prompt: np.ndarray | None = None,
    prompt_embeddings: np.ndarray | None = None,
) -> np.ndarray:
    """headᵀ e, and with a quadratic part also −|f|² + fᵀ head_k c(x), f = squareᵀ e: float64[I, K].

    Raises:
      UserError: the basis depends on the prompt and the prompts, or their embeddings, are not given.
    """
    embeddings = np.asarray(embeddings, np.float64)
    raw = embeddings @ np.asarray(head, np.float64)
    if quadratic is None:
        return raw
    point = embeddings @ quadratic.square.astype(np.float64)
    raw = raw - np.sum(point**2, axis=1, keepdims=True)
    prompt = quadratic.prompt
    if prompt is None:
        return raw
    if item_prompt is None or (prompt.source == "encoder" and prompt_embeddings is None):
        missing = "item_prompt" if item_prompt is None else "prompt_embeddings"
        raise UserError(
            f"{missing}: not given, but the prototypes of this basis (pal_b) depend on the prompt; give it, "
            "or fit pal_a"
        )
    if prompt.source == "mean":
        prompt_embeddings = prompt_means(embeddings, item_prompt)
    context = np.asarray(prompt_embeddings, np.float64) @ prompt.projection.astype(np.float64)
    return raw + np.einsum("ir,krq,iq->ik", point, prompt.head.astype(np.float64), context[item_prompt])


def prompt_means(embeddings: np.ndarray, item_prompt: np.ndarray) -> np.ndarray:
    """Mean embedding of every prompt's items, float64[P, D]; zeros for prompts without items."""
    count = np.bincount(item_prompt)
    total = np.zeros((len(count), embeddings.shape[1]), np.float64)
    np.add.at(total, item_prompt, embeddings)
    return total / np.maximum(count, 1)[:, None]


def centre(values: np.ndarray, item_prompt: np.ndarray) -> np.ndarray:
    """Subtract from values[I, K] the mean of each item's prompt over the items given."""
    _, group = np.unique(item_prompt, return_inverse=True)
    total = np.zeros((group.max() + 1, values.shape[1]), np.float64)
    np.add.at(total, group, values)
    return values - (total / np.bincount(group)[:, None])[group]
