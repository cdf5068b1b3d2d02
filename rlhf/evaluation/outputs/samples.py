"""What policies write, sampled once and kept: one file a policy, one line a completion.

$CHORUS_CACHE/outputs/IDENTITY.jsonl   key, text, tokens, logprob, finished, check

`key` is a hash of all that decides a completion besides the policy itself: prompt, coefficients, sampling settings, seed,
number. A batch is written when it is done, so a process that is killed loses one batch at most, and another evaluation of
the same policy, person and prompt samples nothing. A line that is not whole is sampled again.

The random numbers of a completion depend on the prompt, the person and its number, not on the policy: policies are compared
under the same draws, as paired as sampling can be.
"""

import dataclasses
import hashlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from rewards import hashed, jsonl
from rewards.errors import UserError
from rewards.files import JSONObject, cache_dir, sha256_json
from rewards.types import Prompt
from rlhf.evaluation.outputs import address
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.evaluation.outputs.in_context import prompt_for
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.policies import Source, z_of
from rlhf.policy import decoding
from rlhf.policy.generation import Completion, complete_in_batches
from rlhf.policy.logprobs import all_logprobs
from rlhf.policy.packing import Sequences, pack
from rlhf.policy.store import Policy, files_under
from rlhf.run.progress import ProgressLine

_LOG = logging.getLogger("chorus")
CHECK = "check"
PACKED, CHUNK = 512, 16  # rows packed, and scored, at a time


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


class Store:
    """Completions of one policy on disk, by key."""

    def __init__(self, identity: str, folder: Path | None = None):
        self.path = (folder or cache_dir() / "outputs") / f"{identity}.jsonl"
        self.known: dict[str, Completion] = {}
        for line in self._lines():
            try:
                row = jsonl.parse(line)
                if row.pop(CHECK) == _check(row):
                    key, tokens = row.pop("key"), tuple(row.pop("tokens"))
                    count, logprob = row.pop("num_tokens", len(tokens)), row.pop("logprob")
                    logprob = math.nan if logprob is None else logprob
                    self.known[key] = Completion(num_tokens=count, tokens=tokens, logprob=logprob, **row)
            except (jsonl.LineError, KeyError, TypeError):
                continue  # cut off where a process was killed, or damaged: sampled again

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n") if self.path.is_file() else []

    def add(self, found: Sequence[tuple[str, Completion]]) -> None:
        """Append completions; several processes may."""
        lines = []
        for key, one in found:
            row = {
                "key": key,
                "text": one.text,
                "tokens": list(one.tokens),
                "logprob": one.logprob if math.isfinite(one.logprob) else None,
                "finished": one.finished,
            }
            if one.num_tokens != len(one.tokens):  # written elsewhere: tokens are not known, but their number
                row["num_tokens"] = one.num_tokens
            lines.append(jsonl.line(row | {CHECK: _check(row)}))
            self.known[key] = one
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":  # the last line is torn
                        lines.insert(0, "\n")
                file.write("".join(lines).encode())
                file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write ({error.strerror}); free some space or set CHORUS_CACHE to another folder"
            ) from None


def _whole(prompt: Prompt) -> object:
    """A prompt with all that a chat template may read of it."""
    if isinstance(prompt, str):
        return prompt
    return [[*one, getattr(one, "more", None)] for one in prompt]


def _check(row: JSONObject) -> str:
    return sha256_json(row)[:16]


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
            text = prompt_for(text, who.answers) if source.in_context else text
            whose = sha256_json([_whole(text), coef, config.seed])
            for number in range(config.sampling.num_samples * source.best_of):
                key = sha256_json([whose, number, settings])
                draw = int.from_bytes(hashlib.sha256(f"{whose} {number}".encode()).digest()[:4])
                asked.append(Ask(prompt, person, key, draw, text))
    return asked


def write_all(
    config: OutputsConfig, found: Sequence[Source], prompts: Sequence[Prompt], people: Sequence[Person]
) -> list[Written]:
    """Everything that the policies write, from the store or sampled now, policy by policy; best-of-N: all of the N.

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
            if any(ask.key not in store.known for ask in asked):
                _write(config, source, asked, store, people, clock)
            texts = [store.known[ask.key] for ask in asked]
            number = config.sampling.num_samples * source.best_of
            written.append(Written(source, _nested(texts, len(prompts), number)))
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
) -> None:
    distinct = {ask.key: ask for ask in asked if ask.key not in store.known}  # a prompt may be there twice
    missing = list(distinct.values())
    if (place := source.address) is not None:

        def heard(number: int, one: Completion) -> None:
            store.add([(missing[number].key, one)])
            clock.advance(1, source.name)

        jobs = [(ask.text, ask.draw) for ask in missing]
        address.write(place, jobs, config.sampling, config.server, heard)
        return
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


def with_reference(written: Sequence[Written], reference: Source, prompts: Sequence[Prompt]) -> list[Written]:
    """The same with log π_ref of every completion.

    Where the reference has another tokenizer than a policy, it reads the text anew, with the token that ends a turn.
    """
    policy = reference.load()
    found = []
    for one in written:
        own = _vocabulary(one.source)
        same = own is not None and own == _vocabulary(reference)
        scores, tokens = _scored(one, policy, reference.identity, prompts, same)
        found.append(dataclasses.replace(one, reference=scores, tokens=tokens, same_tokens=same))
    return found


def with_aggregate(written: Sequence[Written], prompts: Sequence[Prompt]) -> list[Written]:
    """The same with log π_agg of every completion, π_agg being the policy for everybody of the same run and step."""
    found = []
    for one in written:
        if one.source.has_people:
            scores, _ = _scored(one, one.source.load(), one.source.store, prompts, True)
            one = dataclasses.replace(one, aggregate=scores)
        found.append(one)
    return found


def _scored(
    written: Written, policy: Policy, identity: str, prompts: Sequence[Prompt], same: bool
) -> tuple[np.ndarray, np.ndarray]:
    """log π(completion | prompt) at z = 0, nats, and numbers of tokens: both [U, P, n].

    Args:
      identity: of the policy. same: whether it reads the tokens as they were sampled; else the texts.
    """
    people, num_prompts, number = written.shape
    read = list(written.flat())
    if not same:
        encode = policy.base.tokenizer.encode_completion
        ids = [tuple(encode(one.text)) for one in read]
        read = [one._replace(tokens=own, num_tokens=len(own)) for one, own in zip(read, ids, strict=True)]
    places = [prompt for _ in range(people) for prompt in range(num_prompts) for _ in range(number)]
    distinct = sorted({(place, one.tokens) for place, one in zip(places, read, strict=True)})
    key = [identity, [[_whole(prompts[place]), list(ids)] for place, ids in distinct]]
    logprobs = hashed.cached(
        cache_dir() / "outputs" / "reference", key, lambda: _logprobs(policy, prompts, distinct)
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


def _nested(texts: list[Completion], prompts: int, number: int) -> list[list[list[Completion]]]:
    each = prompts * number
    return [
        [texts[start + place : start + place + number] for place in range(0, each, number)]
        for start in range(0, len(texts), each)
    ]
