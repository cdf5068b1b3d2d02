"""How likely π_ref and π_agg find what was written."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from rewards import hashed
from rewards.files import cache_dir
from rewards.types import Prompt
from rlhf.evaluation.outputs.policies import Source
from rlhf.evaluation.outputs.samples import Written, whole
from rlhf.policy.logprobs import all_logprobs
from rlhf.policy.packing import Sequences, pack
from rlhf.policy.store import Policy, files_under

PACKED, CHUNK = 512, 16  # rows packed, and scored, at a time


def with_reference(written: Sequence[Written], reference: Source, prompts: Sequence[Prompt]) -> list[Written]:
    """The same with log π_ref of every completion.

    Where the reference has another tokenizer than a policy, it reads the text anew, with the token that ends a turn.
    """
    load = functools.cache(reference.load)
    found = []
    for one in written:
        own = _vocabulary(one.source)
        same = own is not None and own == _vocabulary(reference)
        scores, tokens = _scored(one, load, reference.identity, prompts, same)
        found.append(dataclasses.replace(one, reference=scores, tokens=tokens, same_tokens=same))
    return found


def with_aggregate(written: Written, load: Callable[[], Policy], prompts: Sequence[Prompt]) -> Written:
    """The same with log π_agg of every completion, π_agg being the policy for everybody of the same run and step.

    Args:
      load: gives the policy, where it is not known already what it says.
    """
    if not written.source.has_people:
        return written
    scores, _ = _scored(written, load, written.source.store, prompts, True)
    return dataclasses.replace(written, aggregate=scores)


def _scored(
    written: Written, load: Callable[[], Policy], identity: str, prompts: Sequence[Prompt], same: bool
) -> tuple[np.ndarray, np.ndarray]:
    """log π(completion | prompt) at z = 0, nats, and numbers of tokens: both [U, P, n].

    Args:
      load: gives the policy. identity: of it. same: whether it reads the tokens as they were sampled; else the texts.
    """
    people, num_prompts, number = written.shape
    read = list(written.flat())
    if not same:
        encode = load().base.tokenizer.encode_completion
        ids = [tuple(encode(one.text)) for one in read]
        read = [one._replace(tokens=own, num_tokens=len(own)) for one, own in zip(read, ids, strict=True)]
    places = [prompt for _ in range(people) for prompt in range(num_prompts) for _ in range(number)]
    distinct = sorted({(place, one.tokens) for place, one in zip(places, read, strict=True)})
    key = [identity, [[whole(prompts[place]), list(ids)] for place, ids in distinct]]
    logprobs = hashed.cached(
        cache_dir() / "outputs" / "reference", key, lambda: _logprobs(load(), prompts, distinct)
    )
    by = dict(zip(distinct, logprobs.tolist(), strict=True))
    scores = np.array([by[place, one.tokens] for place, one in zip(places, read, strict=True)])
    tokens = np.array([len(one.tokens) for one in read])
    return scores.reshape(written.shape), tokens.reshape(written.shape)


def _logprobs(
    policy: Policy, prompts: Sequence[Prompt], distinct: Sequence[tuple[int, tuple[int, ...]]]
) -> np.ndarray:
    """One completion a row, sorted by length so that a chunk holds little padding; NaN: empty, or longer than the context."""
    room, found = policy.base.config.max_positions, np.full(len(distinct), np.nan)
    encoded = [tuple(policy.base.tokenizer.encode_prompt(prompt)) for prompt in prompts]
    rows = {
        index: Sequences(encoded[place], (ids,))
        for index, (place, ids) in enumerate(distinct)
        if ids and len(encoded[place]) + len(ids) <= room
    }
    order = sorted(rows, key=lambda index: len(rows[index].prompt) + len(rows[index].completions[0]))
    for start in range(0, len(order), PACKED):
        part = order[start : start + PACKED]
        packed = pack([[rows[index]] for index in part])
        found[part] = all_logprobs(policy.graphdef, policy.params, packed, None, chunk=CHUNK)[:, 0]
    return found


def _vocabulary(source: Source) -> str | None:
    if source.address is not None:
        return None
    return files_under(source.place).get("tokenizer.json")
