"""A policy as the probes ask it: how likely answers are, for one kind of person; nothing is sampled and nothing judged.

score(y|x)   log π(y|x, z) − log π_ref(y|x) where the policy was trained from a model, else log π(y|x) a token
choice       softmax over the log-probabilities of a few given answers
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rewards.types import Prompt
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import all_logprobs
from rlhf.policy.packing import Sequences, pack

AGREE, DISAGREE = "I agree.", "I disagree."


@dataclasses.dataclass(frozen=True)
class Voice:
    """One kind of person before the policy.

    Attributes:
      name: the bucket. coef: their coefficients; None for the aggregate policy or a model without people.
    """

    name: str
    coef: np.ndarray | None = None


class Asker:
    """`policy` for everybody who asks."""

    def __init__(self, policy: policy_store.Policy, reference: policy_store.Policy | None = None):
        self._policy, self._reference = policy, reference

    @property
    def relative(self) -> bool:
        """Whether scores are log-ratios to the model that the policy was trained from."""
        return self._reference is not None

    def logprobs(
        self, voice: Voice, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """log π(y|x, z) of each prompt's answers, nats, with the token that ends a turn."""
        z = None if voice.coef is None else policy_store.coefficients_to_z(self._policy, voice.coef)
        found = _logprobs(self._policy, prompts, answers, z)
        return [row[: len(own)] for row, own in zip(found, answers, strict=True)]

    def scores(
        self, voice: Voice, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """What the policy makes of each answer; see above."""
        own = self.logprobs(voice, prompts, answers)
        if self._reference is None:
            tokenizer = self._policy.base.tokenizer
            return [
                row / np.array([len(tokenizer.encode_completion(text)) for text in texts])
                for row, texts in zip(own, answers, strict=True)
            ]
        base = _logprobs(self._reference, prompts, answers, None)
        return [row - other[: len(row)] for row, other in zip(own, base, strict=True)]

    def choices(
        self, voice: Voice, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """How the policy divides between the answers of each prompt; sums to 1."""
        return [_softmax(row) for row in self.logprobs(voice, prompts, answers)]

    def agreement(self, voice: Voice, prompts: Sequence[Prompt]) -> np.ndarray:
        """P(agree) against disagree, [N]."""
        found = self.choices(voice, prompts, [(AGREE, DISAGREE)] * len(prompts))
        return np.array([row[0] for row in found])


def _softmax(values: np.ndarray) -> np.ndarray:
    values = np.exp(values.astype(np.float64) - values.max())
    return values / values.sum()


def _logprobs(
    policy: policy_store.Policy,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    z: np.ndarray | None,
) -> np.ndarray:
    tokenizer = policy.base.tokenizer
    rows = [
        [
            Sequences(
                tuple(tokenizer.encode_prompt(prompt)),
                tuple(tuple(tokenizer.encode_completion(text)) for text in own),
            )
        ]
        for prompt, own in zip(prompts, answers, strict=True)
    ]
    signal = None if z is None else np.tile(z, (len(rows), 1))
    return all_logprobs(policy.graphdef, policy.params, pack(rows), None, z=signal, chunk=min(4, len(rows)))
