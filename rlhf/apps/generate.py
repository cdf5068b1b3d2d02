"""`chorus generate`: prompts in, completions out, for a person, given coefficients, the aggregate, or a plain model."""

from collections.abc import Sequence

from rewards.files import JSONObject
from rewards.types import Prompt
from rlhf.api.policies import load_policy, plain_model
from rlhf.mesh.devices import use
from rlhf.run.config.common import MeshConfig


def generate(
    prompts: Sequence[Prompt],
    *,
    policy: str | None,
    model: str | None,
    user: str | None = None,
    coefficients: Sequence[float] | None = None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    mesh: MeshConfig | None = None,
) -> JSONObject:
    """Complete every prompt.

    Args:
      policy: training run, or None for the plain `model`.
      user: name of a record; `coefficients`: w instead; neither means the aggregate policy.
      max_new_tokens, temperature, top_k, top_p, min_p, seed: as in `Policy.generate`.
      mesh: how the devices share the work; None divides rows over all of them.
    """
    who = user if coefficients is None else coefficients
    with use(mesh or MeshConfig()):
        loaded = load_policy(policy) if policy is not None else plain_model(str(model))
        rows = loaded.generate(
            list(prompts),
            people=[who],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
        ).rows
    return {
        "completions": [row.text for row in rows],
        "tokens": [row.num_tokens for row in rows],
        "logprobs": [row.logprob for row in rows],
        "finished": [row.finished for row in rows],
        "user": user,
        "rails": loaded.rails_on(who),
        "provenance": loaded.provenance(who),
    }
