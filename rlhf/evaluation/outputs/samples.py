"""What policies write, sampled once and kept (`rlhf.evaluation.outputs.store`).

The key of a completion is a hash of all that decides it besides the policy itself: prompt, coefficients, sampling settings,
seed, number. Another evaluation of the same policy, person and prompt samples nothing.

The random numbers of a completion depend on the prompt, the person and its number, not on the policy: policies are compared
under the same draws, as paired as sampling can be.
"""

import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rewards.errors import UserError
from rewards.files import sha256_json
from rewards.types import Prompt
from rlhf.evaluation.outputs import address
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.evaluation.outputs.in_context import elsewhere, prompt_for
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.policies import Source, z_of
from rlhf.evaluation.outputs.store import Store
from rlhf.policy import decoding
from rlhf.policy.generation import Completion, complete_in_batches
from rlhf.policy.store import Policy
from rlhf.run.progress import ProgressLine

_LOG = logging.getLogger("chorus")


class Ask(NamedTuple):
    """One completion to be had: of which prompt (`text` is what is read), for which of the people, and its key; draw: which
    random numbers."""

    prompt: int
    person: int
    key: str
    draw: int
    text: Prompt


@dataclasses.dataclass(frozen=True)
class Written:
    """What one policy wrote.

    Attributes:
      source: who. completions: [U][P][n], U = 1 where everybody is asked alike.
      reference: float64[U, P, n], log π_ref of each, nats, or None without a reference; aggregate: log π_agg of the same run.
      tokens: int[U, P, n], tokens of each under the reference's tokenizer, where there is a reference; else its own.
      same_tokens: whether the reference reads the very tokens that were sampled.
    """

    source: Source
    completions: list[list[list[Completion]]]
    reference: np.ndarray | None = None
    tokens: np.ndarray | None = None
    same_tokens: bool = False
    aggregate: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.completions), len(self.completions[0]), len(self.completions[0][0])

    def flat(self) -> Iterator[Completion]:
        """In order of person, prompt, number."""
        return itertools.chain.from_iterable(itertools.chain.from_iterable(self.completions))

    def array(self, name: str) -> np.ndarray:
        """One field of every completion, [U, P, n]."""
        return np.array([getattr(one, name) for one in self.flat()]).reshape(self.shape)


def whole(prompt: Prompt) -> object:
    """A prompt with all that a chat template may read of it."""
    if isinstance(prompt, str):
        return prompt
    return [[*one, getattr(one, "more", None)] for one in prompt]


def plan(
    config: OutputsConfig, source: Source, prompts: Sequence[Prompt], people: Sequence[Person]
) -> list[Ask]:
    """All that one policy is asked, in order of person, prompt and number."""
    own = dataclasses.asdict(config.sampling)
    settings = [own[name] for name in ("max_new_tokens", "temperature", "top_p", "skip_special_tokens")]
    asked = []
    for person in range(len(people)) if source.asked_for_each else (0,):
        who = people[person]
        coef = None
        if source.conditioned and who.coef is not None:
            coef = who.coef.astype(np.float32).tolist()
        for prompt, text in enumerate(prompts):
            text = prompt_for(text, elsewhere(who.answers, text)) if source.in_context else text
            whose = sha256_json([whole(text), coef, config.seed])
            for number in range(config.sampling.num_samples * source.best_of):
                key = sha256_json([whose, number, settings])
                draw = int.from_bytes(hashlib.sha256(f"{whose} {number}".encode()).digest()[:4])
                asked.append(Ask(prompt, person, key, draw, text))
    return asked


Finish = Callable[[Written, Callable[[], Policy]], Written]
"""What is done with a policy's completions while it is at hand: (completions, a function that gives the policy)."""


def write_all(
    config: OutputsConfig,
    found: Sequence[Source],
    prompts: Sequence[Prompt],
    people: Sequence[Person],
    finish: Finish = lambda written, load: written,
) -> list[Written]:
    """Everything that the policies write, from the store or sampled now, policy by policy; best-of-N: all of the N, of which
    `finish` may choose.

    Raises:
      UserError: a prompt does not fit into a model's context, or an address does not answer.
    """
    plans = [(source, plan(config, source, prompts, people), Store(source.store)) for source in found]
    missing, planned = [], dict[str, set[str]]()  # policies may share what they write
    for source, asked, store in plans:
        new = {ask.key for ask in asked} - store.known.keys() - planned.setdefault(source.store, set())
        planned[source.store] |= new
        missing.append(len(new))
    total = sum(len(asked) for _, asked, _ in plans)
    limit = config.sampling.max_new_tokens
    _LOG.info(
        f"policies: {len(found)}, people: {len(people)}, prompts: {len(prompts)}: {total:,} completions, "
        f"{total - sum(missing):,} written before, {sum(missing):,} to write (at most {sum(missing) * limit:,} tokens)"
    )
    written = []
    with ProgressLine("write", max(1, sum(missing)), unit="completion") as line:
        clock = _Clock(line, sum(missing))
        for source, asked, store in plans:
            if written and any(ask.key not in store.known for ask in asked):
                store = Store(source.store)  # a policy before it may have written the same
            policy = None
            if any(ask.key not in store.known for ask in asked):
                policy = _write(config, source, asked, store, people, clock)
            texts = [store.known[ask.key] for ask in asked]
            number = config.sampling.num_samples * source.best_of
            one = Written(source, _nested(texts, len(prompts), number))
            written.append(finish(one, source.load if policy is None else lambda policy=policy: policy))
    return written


class _Clock:
    """Progress with the time that is left, by the batches after the first, which compiles."""

    def __init__(self, line: ProgressLine, total: int):
        self._line, self._total, self._done = line, total, 0
        self._begun: tuple[float, int] | None = None

    def advance(self, count: int, name: str) -> None:
        self._done += count
        now, note = time.monotonic(), name
        if self._begun is not None:
            seconds, done = now - self._begun[0], self._done - self._begun[1]
            left = (self._total - self._done) * seconds / done
            note += f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"
        else:
            self._begun = now, self._done
        self._line.update(self._done, note)


def _write(
    config: OutputsConfig,
    source: Source,
    asked: Sequence[Ask],
    store: Store,
    people: Sequence[Person],
    clock: _Clock,
) -> Policy | None:
    """Sample what is missing; the policy that was loaded for it, None of one at an address."""
    distinct = {ask.key: ask for ask in asked if ask.key not in store.known}  # a prompt may be there twice
    missing = list(distinct.values())
    if (place := source.address) is not None:

        def heard(number: int, one: Completion) -> None:
            store.add([(missing[number].key, one)])
            clock.advance(1, source.name)

        jobs = [(ask.text, ask.draw) for ask in missing]
        address.write(place, jobs, config.sampling, config.server, heard)
        return None
    policy = source.load()
    graphdef, params = decoding.apart(policy.graphdef, policy.params)  # once for all batches
    policy = dataclasses.replace(policy, graphdef=graphdef, params=params)
    settings = config.sampling
    encoded = {text: policy.base.tokenizer.encode_prompt(text) for text in {ask.text for ask in missing}}
    _check_room(policy, source, missing, encoded, settings.max_new_tokens)
    z = z_of(policy, source, people)
    missing.sort(key=lambda ask: len(encoded[ask.text]))  # stable: little padding
    for start in range(0, len(missing), settings.batch):
        part = missing[start : start + settings.batch]
        padded = part + part[-1:] * (settings.batch - len(part) if start else 0)  # one shape but for few
        batches = complete_in_batches(
            policy,
            [encoded[ask.text] for ask in padded],
            None if z is None else z[[ask.person for ask in padded]],
            np.array([ask.draw for ask in padded], np.uint32),
            settings.drawing(),
            seed=config.seed,
        )
        texts = [one for batch in batches for one in batch][: len(part)]
        store.add([(ask.key, one) for ask, one in zip(part, texts, strict=True)])
        clock.advance(len(part), source.name)
    return policy


def _check_room(
    policy: Policy, source: Source, asked: Sequence[Ask], encoded: Mapping[Prompt, Sequence[int]], new: int
) -> None:
    longest = max(asked, key=lambda ask: len(encoded[ask.text]))
    count, room = len(encoded[longest.text]), policy.base.config.max_positions
    if count + new > room:
        fix = "lower answers" if source.in_context else "shorten it"
        raise UserError(
            f"prompts: prompt {longest.prompt + 1} has {count} tokens for {source.name}, with {new} new ones more "
            f"than its context of {room}; {fix} or lower sampling.max_new_tokens"
        )


def _nested(texts: list[Completion], prompts: int, number: int) -> list[list[list[Completion]]]:
    each = prompts * number
    return [
        [texts[start + place : start + place + number] for place in range(0, each, number)]
        for start in range(0, len(texts), each)
    ]
