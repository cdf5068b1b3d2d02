"""Does one policy serve different people differently, and for the better? Exact where answers can be enumerated.

The central table is U×U: entry (u, v) is what person u gets, by u's own coefficients, from the answers that the
policy gives when conditioned on v. Its diagonal must dominate. Rewards are w_u·φ with φ centred per prompt, so only
differences within a row of the table mean something.

Shapes: U people, C answers of the enumerated space, S samples, K basis outputs.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from rewards.files import JSONObject


@dataclasses.dataclass(frozen=True)
class Enumerated:
    """Log-probs of every answer in the space, nats.

    Attributes:
      policy: [U, C] under each person's coefficients; aggregate, reference: [C].
    """

    policy: np.ndarray
    aggregate: np.ndarray
    reference: np.ndarray


def normalise(logprobs: Float[np.ndarray, "*u c"]) -> Float[np.ndarray, "*u c"]:
    """Log-probs renormalised over the last axis: the policy given that its answer is in the space."""
    shifted = logprobs - logprobs.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl(log_q: Float[np.ndarray, "*u c"], log_p: Float[np.ndarray, "*v c"]) -> np.ndarray:
    """KL(q‖p) in nats over the last axis."""
    return np.sum(np.exp(log_q) * (log_q - log_p), axis=-1)


def optimum(reference: Float[np.ndarray, " c"], rewards: Float[np.ndarray, "u c"], beta: float) -> np.ndarray:
    """log of π_ref·exp(w·φ/β)/Z over the space, [U, C]: the best policy at temperature β."""
    return normalise(normalise(reference)[None] + rewards / beta)


def dominance(matrix: Float[np.ndarray, "u u"]) -> float:
    """Share of ordered pairs (u, v), u ≠ v, in which u gets more from the own policy than from v's."""
    better = np.diag(matrix)[:, None] > matrix
    off = ~np.eye(len(matrix), dtype=bool)
    return float(better[off].mean())


def mutual_dominance(matrix: Float[np.ndarray, "u u"]) -> float:
    """Share of unordered pairs in which both get more from their own policy."""
    better = np.diag(matrix)[:, None] > matrix
    upper = np.triu_indices(len(matrix), 1)
    return float((better & better.T)[upper].mean())


def off_diagonal_mean(matrix: Float[np.ndarray, "u u"]) -> np.ndarray:
    """For each person, the mean over other people's policies, [U]."""
    num_users = len(matrix)
    return (matrix.sum(axis=1) - np.diag(matrix)) / max(num_users - 1, 1)


def summarise_enumerated(
    answers: Enumerated,
    phi: Float[np.ndarray, "c k"],
    coef: Float[np.ndarray, "u k"],
    shrunk: np.ndarray,
    beta: float,
) -> tuple[JSONObject, np.ndarray]:
    """All exact figures of one prompt, and the U×U matrix.

    Args:
      phi: basis rewards of the answers.
      coef: w_u; `shrunk` w_eff, which the policy was trained to serve.
      beta: temperature of the training objective.
    """
    log_q = normalise(answers.policy)
    log_agg, log_ref = normalise(answers.aggregate), normalise(answers.reference)
    reward = coef @ phi.T
    matrix = reward @ np.exp(log_q).T
    best = optimum(answers.reference, shrunk @ phi.T, beta)
    own, aggregate, reference = np.diag(matrix), reward @ np.exp(log_agg), reward @ np.exp(log_ref)
    to_optimum = kl(log_q, best)
    tilt = kl(best, log_ref[None])
    return {
        "diagonal_dominance": dominance(matrix),
        "mutual_dominance": mutual_dominance(matrix),
        "own_beats_aggregate": float(np.mean(own > aggregate)),
        "own_beats_reference": float(np.mean(own > reference)),
        "own_reward": float(own.mean()),
        "swapped_reward": float(off_diagonal_mean(matrix).mean()),
        "aggregate_reward": float(aggregate.mean()),
        "reference_reward": float(reference.mean()),
        "best_reward": float(np.mean(np.sum(np.exp(best) * reward, axis=1))),
        "kl_to_optimum": float(to_optimum.mean()),
        "kl_to_optimum_worst_decile": float(np.quantile(to_optimum, 0.9)),
        "kl_of_reference_to_optimum": float(kl(log_ref[None], best).mean()),
        "kl_of_optimum_to_reference": float(tilt.mean()),
        "kl_to_reference": float(kl(log_q, log_ref[None]).mean()),
        "kl_to_aggregate": float(kl(log_q, log_agg[None]).mean()),
        "valid_mass": float(np.exp(answers.policy).sum(axis=1).mean()),
        "valid_mass_aggregate": float(np.exp(answers.aggregate).sum()),
        "valid_mass_reference": float(np.exp(answers.reference).sum()),
        "per_person": {
            "own_reward": own.tolist(),
            "aggregate_reward": aggregate.tolist(),
            "swapped_reward": off_diagonal_mean(matrix).tolist(),
            "kl_to_optimum": to_optimum.tolist(),
        },
    }, matrix


def summarise_samples(
    phi: Float[np.ndarray, "u s k"],
    texts: list[list[str]],
    coef: Float[np.ndarray, "u k"],
    valid: np.ndarray | None,
) -> tuple[JSONObject, np.ndarray]:
    """Figures of freely sampled answers: texts[u][s] was given to person u, with basis rewards phi[u, s].

    Args:
      valid: bool[U, S], whether the answer is in the enumerated space; None without one.
    """
    matrix = np.einsum("uk,vsk->uv", coef, phi) / phi.shape[1]
    pairs_within = [len(set(own)) / len(own) for own in texts]
    everything = [text for own in texts for text in own]
    return {
        "diagonal_dominance": dominance(matrix),
        "own_reward": float(np.diag(matrix).mean()),
        "swapped_reward": float(off_diagonal_mean(matrix).mean()),
        "distinct_within_person": float(np.mean(pairs_within)),
        "distinct_between_people": len(set(everything)) / len(everything),
        "words": float(np.mean([len(text.split()) for text in everything])),
        **({"valid_answers": float(valid.mean())} if valid is not None else {}),
    }, matrix
