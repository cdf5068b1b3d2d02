"""Named probes made explicit: the axes of a learned basis turned so that some of them read as what they stand for.

A learned axis has no name, and what a rail is to hold (length, flattery, …) lies across several of them. In the canonical
gauge Cov[φ] = I, so every orthogonal Q gives an equal basis φ′ = Qφ with w′ = Qw. Per probe p, centred within prompts:

    b_p = E[φ p] / |E[φ p]|                                the direction in which φ sees it
    U   = B (BᵀB)^(-1/2),  B = [b_1 … b_P]                 the orthonormal directions nearest to all of them (Löwdin 1950)
    Q   = rows of Uᵀ, then the canonical axes of the rest:  μ's direction, and the principal axes of Σ there

The first P axes are the *explicit block*, the others the *free block*. Since B lies in the span of U the free block carries no
linear trace of a probe, up to noise. Nothing is taken on trust: b_p comes from one half of the prompts (of the items where
there are few prompts), and the shares of a probe's variance that each block explains from the other. A probe is refused,
and its axis not made, where φ does not show it, or shows it as a mixture of those before it.

Letters in shapes: I items, K basis outputs, P probes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from rewards.basis import gauge
from rewards.basis.belief import Belief
from rewards.basis.readout import centre
from rewards.errors import UserError

RECOVERED = 0.8
"""Least share of a probe's variance within prompts that the explicit block must explain on items not fitted on."""
LEAKED = 0.1
"""Most that the free block may."""
OWN = 0.1
"""Least squared length that must be left of a direction without those before it."""
FEW_PROMPTS = 8


@dataclasses.dataclass(frozen=True)
class Probe:
    """What became of one probe.

    Attributes:
      explicit, free: share of its variance that each block explains on the other half, R²; below 0 is worse than nothing.
      axis: correlation with the axis of its name. refused: why it has none; None where it has.
    """

    explicit: float
    free: float
    axis: float
    refused: str | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """matrix: Q[K, K]; names: of the K axes after it; probes: by name."""

    matrix: np.ndarray
    names: tuple[str, ...]
    probes: dict[str, Probe]


def turn(
    phi: Float[np.ndarray, "I K"],
    values: Float[np.ndarray, "I P"],
    probes: Sequence[str],
    item_prompt: Int[np.ndarray, " I"],
    prior: Belief,
) -> Turn:
    """Q for probes measured on the items of a fit.

    Args:
      phi: in the canonical gauge. values: what the P probes say of every item. prior: N(μ, Σ) over coefficients of φ.
    Raises:
      UserError: two probes of one name or that of a taste, a value that is not finite, or none that φ shows.
    """
    size = phi.shape[1]
    _check(values, probes, size)
    fit, held = _halves(item_prompt)
    phi, values = (centre(np.asarray(part, np.float64), item_prompt) for part in (phi, values))
    directions: list[np.ndarray] = []
    kept: list[str] = []
    found: dict[str, Probe] = {}
    for name, value in zip(probes, values.T, strict=True):
        seen = _explained(phi, value, fit, held)
        reason, direction = None, np.zeros(size)
        if not seen >= RECOVERED:
            reason = f"φ shows {max(seen, 0.0):.2f} of its variance, {RECOVERED:g} are needed"
        else:
            direction = np.linalg.lstsq(phi[fit], value[fit], rcond=None)[0]
            direction /= np.linalg.norm(direction)
            basis = np.array(directions).reshape(-1, size).T
            left = (
                direction - basis @ np.linalg.lstsq(basis, direction, rcond=None)[0]
                if directions
                else direction
            )
            if left @ left < OWN:
                reason = f"φ shows it as a mixture of {', '.join(kept)}"
        if reason is None:
            directions.append(direction)
            kept.append(name)
        found[name] = Probe(seen, 0.0, 0.0, reason)
    if not kept:
        raise UserError("probes: " + "; ".join(f"{name}: {one.refused}" for name, one in found.items()))
    matrix = _orthogonal(np.array(directions), prior, phi)
    names = (*kept, *gauge.axis_names(size - len(kept)))[:size]
    turned, first = phi @ matrix.T, len(kept)
    for name, value in zip(probes, values.T, strict=True):
        explicit = _explained(turned[:, :first], value, fit, held)
        free = _explained(turned[:, first:], value, fit, held) if first < size else 0.0
        own = turned[held, kept.index(name)] if name in kept else None
        axis = 0.0 if own is None else float(np.corrcoef(own, value[held])[0, 1])
        found[name] = dataclasses.replace(found[name], explicit=explicit, free=free, axis=axis)
        if name in kept and not (explicit >= RECOVERED and free <= LEAKED):
            reason = (
                f"R² {explicit:.2f} from the explicit block and {free:.2f} from the free one; use more items"
            )
            raise UserError(f"probes: {name}: {reason}")
    return Turn(matrix, names, found)


def turned_coef(by: Turn, coef: Float[np.ndarray, "*b K"]) -> Float[np.ndarray, "*b K"]:
    """w′ = Q w."""
    return (np.asarray(coef, np.float64) @ by.matrix.T).astype(np.float32)


def turned_cov(by: Turn, matrix: Float[np.ndarray, "*b K K"]) -> Float[np.ndarray, "*b K K"]:
    """Q M Qᵀ, of covariances and of precisions."""
    made = by.matrix @ np.asarray(matrix, np.float64) @ by.matrix.T
    return (0.5 * (made + np.swapaxes(made, -1, -2))).astype(np.float32)


def _check(values: np.ndarray, probes: Sequence[str], size: int) -> None:
    taken = gauge.axis_names(size)
    for name in probes:
        if list(probes).count(name) > 1 or name in taken:
            raise UserError(f"probes: {name!r} is the name of another axis; rename it")
    bad = ~np.isfinite(values).all(axis=0)
    if bad.any():
        raise UserError(
            f"probes: {probes[int(np.argmax(bad))]!r} says something that is no finite number; mend it"
        )


def _halves(item_prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool[I] of the items that directions come from, and of those that they are judged on."""
    _, group = np.unique(item_prompt, return_inverse=True)
    part = group if group.max() + 1 >= FEW_PROMPTS else np.arange(len(group))
    # A fixed draw: neighbours in a file are often pairs of one kind.
    even = np.random.default_rng(0).permutation(part.max() + 1)[part] % 2 == 0
    return even, ~even


def _explained(phi: np.ndarray, value: np.ndarray, fit: np.ndarray, held: np.ndarray) -> float:
    """R² on `held` of the least-squares fit of value[I] in phi[I, K] on `fit`; −1 where the probe does not vary."""
    total = float(value[held] @ value[held])
    if total <= 1e-12 * len(value) or not np.any(value[fit]):
        return -1.0
    error = value[held] - phi[held] @ np.linalg.lstsq(phi[fit], value[fit], rcond=None)[0]
    return 1.0 - float(error @ error) / total


def _orthogonal(directions: np.ndarray, prior: Belief, phi: np.ndarray) -> np.ndarray:
    """Q[K, K] from P unit directions [P, K]."""
    left, _, right = np.linalg.svd(directions.T, full_matrices=False)
    explicit = (left @ right).T
    rest = np.linalg.svd(explicit)[2][len(explicit) :]
    if not len(rest):
        return explicit
    cov = np.asarray(prior.cov, np.float64)
    inner = gauge.rotate(rest @ np.asarray(prior.mean, np.float64), rest @ cov @ rest.T)
    free = inner @ rest
    return np.concatenate([explicit, gauge.sign(phi @ free.T)[:, None] * free])
