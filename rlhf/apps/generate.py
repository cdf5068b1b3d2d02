"""`chorus generate`: prompts in, completions out, for a person, given coefficients, the aggregate, or a plain model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rewards.people import records
from rewards.types import Prompt
from rlhf.policy import store as policy_store
from rlhf.policy.generation import complete


def generate(
    prompts: Sequence[Prompt],
    *,
    policy: str | None,
    model: str | None,
    user: str | None = None,
    coefficients: Sequence[float] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Complete every prompt.

    Args:
      policy: training run, or None for the plain `model`.
      user: name of a record; `coefficients`: w instead; neither means the aggregate policy.
      settings: seed, max_new_tokens, temperature, top_k, top_p, min_p.
    """
    loaded = load(policy, model)
    z = person_z(loaded, policy, user, coefficients)
    rows = None if z is None else np.tile(z, (len(prompts), 1))
    completions = complete(loaded, prompts, rows, **settings)
    return {
        "completions": [completion.text for completion in completions],
        "tokens": [completion.num_tokens for completion in completions],
        "logprobs": [completion.logprob for completion in completions],
        "finished": [completion.finished for completion in completions],
        "user": user,
    }


def load(policy: str | None, model: str | None) -> policy_store.Policy:
    """A training run's policy, or a model without adapters."""
    if policy is not None:
        return policy_store.load_policy(policy)
    base = policy_store.load_base(model, adapter_layers=None, dtype="float32")
    graphdef, params, _ = policy_store.base_state(base, None, "float32", False)
    return policy_store.Policy(base, graphdef, params, None, None, {})


def person_z(
    policy: policy_store.Policy, run: str | None, user: str | None, coefficients: Sequence[float] | None
) -> np.ndarray | None:
    """z[K] of a person or of given coefficients; None for the aggregate.

    Raises:
      UserError: the policy has no users, the person has no record, or the record is of another basis.
    """
    if user is None and coefficients is None:
        return None
    if coefficients is not None:
        return policy_store.coefficients_to_z(policy, np.array(coefficients))
    if policy.gate is None:
        raise UserError(f"{run}: this policy was trained without users; leave out --user")
    rewards = load_reward_run(policy.record["rewards"])
    if rewards.hash != policy.record["basis"]:
        raise UserError(
            f"{rewards.directory}: basis {rewards.hash[:12]}… is not the one that {run} was trained with "
            f"({policy.record['basis'][:12]}…); restore it or train again"
        )
    record = records.load(rewards.users, user, rewards)
    return policy_store.coefficients_to_z(policy, record.posterior.mean)
