"""`chorus export`: one person's policy, or everybody's aggregate, as a plain Hugging Face directory.

For a fixed person a low-rank conditioner is an ordinary weight change and folds into the kernels; FiLM without shift
folds into the norms, logit heads into the unembedding (untied where it was tied); prefix and text do not fold.
"""

from collections.abc import Sequence
from pathlib import Path

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.api.policies import load_policy


def export(
    policy: str, output: str, *, user: str | None = None, coefficients: Sequence[float] | None = None
) -> JSONObject:
    """Write a directory that transformers loads; returns its path and whose policy it holds.

    Raises:
      UserError: `output` exists, the policy is unusable, the person is unknown, or their policy is no ordinary model.
    """
    if Path(output).exists():
        raise UserError(f"--output {output}: exists already; choose a directory that does not exist")
    loaded = load_policy(policy)
    who = user if coefficients is None else coefficients
    loaded.export(output, person=who)
    z = loaded.signal(who)
    return {"path": str(output), "user": user, "z": None if z is None else z.tolist()} | {
        "rails": loaded.rails_on(who)
    }
