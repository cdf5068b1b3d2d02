"""Exact figures of policies with people, where the data lists the answers to a prompt: nothing is sampled.

The figures are those of `chorus evaluate` of one policy (`rlhf.report.figures.summarise_enumerated`), with the people and the
prompts of this evaluation.
"""

import numpy as np

from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences, Prompt
from rlhf.evaluation import policy as one_policy
from rlhf.evaluation.outputs.people import Person
from rlhf.phi import encoder
from rlhf.policy import store as policy_store


def exact(
    policy: policy_store.Policy,
    reference: str,
    run: RewardRun,
    prefs: Preferences,
    whom: list[Person],
    asked: tuple[Prompt, ...],
) -> JSONObject:
    """Figures over the data's distinct answers to each prompt, averaged over prompts.

    Args:
      policy: one that is given coefficients. reference: the model from which it was trained.

    Raises:
      UserError: a prompt to which the data lists fewer than two answers.
    """
    gate = policy.gate
    assert gate is not None, "a policy with users"
    place = {prompt: number for number, prompt in enumerate(prefs.prompts)}
    compared = prefs.item_prompt[np.union1d(prefs.chosen, prefs.rejected)]
    counts = np.bincount(compared, minlength=len(prefs.prompts))
    for number, prompt in enumerate(asked, 1):
        if prompt not in place or counts[place[prompt]] < 2:
            raise UserError(
                f"enumerate: {prefs.source} lists no answers to prompt {number}; leave enumerate out, or prompts"
            )
    coef = np.stack([np.asarray(one.coef, np.float64) for one in whom])
    shrunk, z = gate.compose(coef.astype(np.float32))
    people = one_policy.People(
        [one.name for one in whom], coef, np.asarray(shrunk), np.asarray(z, np.float32)
    )
    base = policy_store.load_base(
        reference,
        adapter_layers=policy.record["adapter_layers"],
        dtype=policy.record["dtype"],
        kept=policy.record.get("kept"),
    )
    prompts = np.array([place[prompt] for prompt in asked])
    phi = encoder.items_phi(run.basis, prefs)
    figures, _ = one_policy.enumerated(policy, prefs, phi, people, prompts, base)
    return figures
