"""The population of users: N(μ, Σ) over coefficients, estimated by empirical Bayes.

Letters in shapes: U users, K basis outputs.
"""

import numpy as np
from jaxtyping import Float


def empirical_bayes(
    coef_mean: Float[np.ndarray, "U K"],
    coef_cov: Float[np.ndarray, "U K K"],
    user_weight: Float[np.ndarray, " U"],
    shrinkage: float,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "K K"]]:
    """M-step of the population given Gaussian posteriors of its members.

        μ = Σ_u a_u m_u / Σ_u a_u
        Σ = Σ_u a_u [(m_u − μ)(m_u − μ)ᵀ + C_u] / Σ_u a_u
        Σ ← (1 − τ) Σ + τ diag(Σ)

    Without C_u the spread of the population is underestimated (the m_u are already shrunk) and shrinks
    further at every round. The diagonal target only means something in a fixed gauge: call it in the
    canonical one.

    Args:
      user_weight: a_u ≥ 0, 0 for people left out.
      shrinkage: τ in [0, 1].
    Source: Dempster, Laird & Rubin 1977; shrinkage as in Ledoit & Wolf 2004 with a diagonal target.
    """
    share = user_weight / user_weight.sum()
    mean = share @ coef_mean
    deviation = coef_mean - mean
    cov = (deviation * share[:, None]).T @ deviation + np.einsum("u,ukl->kl", share, coef_cov)
    return mean, (1.0 - shrinkage) * cov + shrinkage * np.diag(np.diag(cov))
