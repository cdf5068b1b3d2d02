"""Who is asked for: the aggregate policy, and of the people of its rewards the sparse, the median and the extreme."""

from pathlib import Path

import numpy as np

from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rewards.people.population import load_people
from rlhf.evaluation.probes.ask import Voice
from rlhf.policy import store as policy_store

AVERAGE = "average"
DRAWS = 256  # from the prior, where the people of the rewards are not known


def voices_of(policy: policy_store.Policy, each: int, seed: int) -> list[Voice]:
    """The average first, then `each` of every bucket; one voice for a model without people.

    sparse: fewest answers; median and extreme: by the distance of their coefficients from μ in the prior's metric. Where
    the reward run is gone or has no people, median and extreme are draws from the prior, and nobody is sparse.
    """
    gate = policy.gate
    if gate is None:
        return [Voice("model")]
    answers, found = None, _people(policy)
    if found is not None and len(found[0]):
        coef, answers = found
    else:
        noise = np.random.default_rng(seed).normal(size=(DRAWS, len(gate.conditioning.mean)))
        prior = policy.record["prior"]
        root = np.linalg.cholesky(np.array(prior["cov"]) + 1e-9 * np.eye(noise.shape[1]))
        coef = np.array(prior["mean"]) + noise @ root.T
    far = np.argsort(np.linalg.norm(np.asarray(gate(coef.astype(np.float32))), axis=1))
    middle = max(0, (len(far) - each) // 2)
    buckets = {"median": far[middle : middle + each], "extreme": far[-each:]}
    if answers is not None:
        buckets = {"sparse": np.argsort(answers, kind="stable")[:each]} | buckets
    voices = [Voice(AVERAGE)]
    for name, index in buckets.items():
        voices += [Voice(f"{name} {number}", coef[i]) for number, i in enumerate(index, 1)]
    return voices


def bucket(name: str) -> str:
    """The bucket of a voice."""
    return name.rpartition(" ")[0] or name


def _people(policy: policy_store.Policy) -> tuple[np.ndarray, np.ndarray] | None:
    place = policy.record.get("rewards")
    if not place or not Path(place).is_dir():
        return None
    try:
        run = load_reward_run(place)
        people = load_people(run)
    except UserError:
        return None
    if run.hash != policy.record["basis"]:
        return None
    means = np.array([one.mean for one in people.posteriors], np.float32).reshape(-1, run.basis.num_basis)
    return means, np.array([one.num_answers for one in people.posteriors])
