"""Prompts and coefficients → completions, in batches of one shape; completions → log-probs under another policy."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rewards.errors import UserError
from rewards.types import Prompt
from rlhf.mesh import place
from rlhf.policy import decoding
from rlhf.policy.logprobs import all_logprobs, chunks
from rlhf.policy.packing import Sequences, pack
from rlhf.policy.sampling import SamplingSettings, generate, left_pad, row_keys
from rlhf.policy.store import Policy


class Completion(NamedTuple):
    """text: special tokens only where asked for; logprob: summed over its tokens, nats; finished: whether it stopped by itself;
    tokens: as sampled, with the one that stopped it."""

    text: str
    num_tokens: int
    logprob: float
    finished: bool
    tokens: tuple[int, ...]


class Drawing(NamedTuple):
    """How completions are drawn; special tokens are left out of their texts or stay there.

    Attributes:
      max_new_tokens: longest completion. temperature: 0 takes the likeliest token. top_k, top_p, min_p: sample from fewer tokens;
        0, 1 and 0 mean all. batch: completions at a time, which changes none of them.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    batch: int = 32
    skip_special_tokens: bool = True

    @property
    def filtered(self) -> bool:
        """Whether fewer than all tokens are sampled from."""
        return bool(self.top_k or self.top_p < 1.0 or self.min_p > 0.0)


def complete(
    policy: Policy, prompts: Sequence[Prompt], z: np.ndarray | None, drawing: Drawing, *, seed: int
) -> list[Completion]:
    """Sample one completion for each prompt; row i uses z[i] and the key fold_in(key(seed), i).

    Raises:
      UserError: prompt and new tokens do not fit into the model's context.
    """
    encoded = [policy.base.tokenizer.encode_prompt(prompt) for prompt in prompts]
    longest, room = max(map(len, encoded)), policy.base.config.max_positions
    if longest + drawing.max_new_tokens > room:
        raise UserError(
            f"prompt of {longest} tokens and {drawing.max_new_tokens} new ones exceed the model's context of {room}; "
            "shorten the prompt or lower --max-new-tokens"
        )
    batches = complete_in_batches(
        policy,
        encoded,
        z,
        np.arange(len(encoded), dtype=np.uint32),
        drawing,
        seed=seed,
    )
    return [one for part in batches for one in part]


def complete_in_batches(
    policy: Policy,
    encoded: Sequence[Sequence[int]],
    z: np.ndarray | None,
    draws: np.ndarray,
    drawing: Drawing,
    *,
    seed: int,
) -> Iterator[list[Completion]]:
    """`complete`, batch by batch, of prompts as tokens that fit; row i uses the key fold_in(key(seed), draws[i])."""
    tokens, starts = left_pad(encoded)
    graphdef, params = decoding.apart(policy.graphdef, policy.params)  # once for all batches
    for rows in chunks(len(encoded), drawing.batch, "generate"):
        samples = generate(
            params,
            *place.batch(
                (
                    tokens[rows],
                    starts[rows],
                    None if z is None else z[rows],
                    row_keys(seed, draws[rows]),
                    SamplingSettings.of(
                        len(rows), drawing.temperature, drawing.top_k, drawing.top_p, drawing.min_p
                    ),
                )
            ),
            np.array(policy.base.tokenizer.eos_ids, np.int32),
            graphdef=graphdef,
            max_new_tokens=drawing.max_new_tokens,
            filtered=drawing.filtered,
        )
        host = [place.host(array) for array in samples]
        real = min(len(rows), len(encoded) - int(rows[0]))  # the last batch is filled up
        yield [_completion(policy, drawing.skip_special_tokens, *(a[i] for a in host)) for i in range(real)]


def logprobs_of(
    policy: Policy, prompts: Sequence[Prompt], completions: Sequence[Completion], chunk: int = 8
) -> np.ndarray:
    """log π(y|x) of the very tokens that were sampled, nats, float64[B]; z = 0.

    Args:
      prompts: one for each completion; neighbours with the same prompt share it.
      chunk: prompts scored at a time.
    """
    groups = [
        list(own)
        for _, own in itertools.groupby(zip(prompts, completions, strict=True), lambda pair: pair[0])
    ]
    rows = [
        [
            Sequences(
                tuple(policy.base.tokenizer.encode_prompt(own[0][0])), tuple(one.tokens for _, one in own)
            )
        ]
        for own in groups
    ]
    found = all_logprobs(policy.graphdef, policy.params, pack(rows), None, chunk=chunk)
    parts = [scores[: len(own)] for scores, own in zip(found, groups, strict=True)]
    return np.concatenate(parts).astype(np.float64)


def _completion(
    policy: Policy, skip_special_tokens: bool, tokens: np.ndarray, logprobs: np.ndarray, mask: np.ndarray
) -> Completion:
    ids = tokens[mask].tolist()
    finished = bool(ids) and ids[-1] in policy.base.tokenizer.eos_ids
    text = policy.base.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens)
    return Completion(text, len(ids), float(logprobs.sum()), finished, tuple(ids))
