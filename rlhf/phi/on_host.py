"""Rewards outside the compiled iteration: completions are decoded and shown to columns, or to an encoder that reads
other tokens than the policy writes.

A column sees exactly what it sees in `chorus rewards score`: prompts, texts, and the other columns of the prompt's row.
Columns run side by side in threads, each with a time limit and further tries. A column that says nothing about a
completion (None) is left out of its group (`filled`). NaN and infinity are refused.

Shapes: B rows, K basis outputs, C columns.
"""

import collections
import contextvars
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences, RewardBasis
from rlhf.mesh import place
from rlhf.mesh.devices import apart
from rlhf.models.tokenizer import Tokenizer
from rlhf.phi import sentence
from rlhf.phi.columns import arguments, table
from rlhf.phi.columns.arguments import IDS
from rlhf.phi.columns.functions import load_function
from rlhf.phi.columns.items import Measured
from rlhf.phi.on_device import EncoderArrays
from rlhf.phi.pooling import load_encoder, pooled_texts
from rlhf.phi.reward import Can, Completions, HostConfig, PromptRows, Rewards
from rlhf.policy.sampling import left_pad
from rlhf.run import processes, signals

_LOG = logging.getLogger("chorus")
BACKOFF_SECONDS = 0.5  # doubled at every further try
WIDTH = 64  # widths of re-encoded completions are multiples of this, so that few programs are compiled


Features = Callable[[Preferences, int], Rewards]  # items, and how many stand together → φ float32[I, K]


def texts_of(completions: Completions, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> list[str]:
    """The completions as text, without the token that ended them; other special tokens are left out by default."""
    num_slots = completions.mask.shape[1]
    tokens, mask, ended = place.hosts(
        (completions.tokens[:, -num_slots:], completions.mask, completions.ended)
    )
    return [
        tokenizer.decode(row[real].tolist()[: -1 if stopped else None], skip_special_tokens)
        for row, real, stopped in zip(tokens, mask, ended, strict=True)
    ]


def ids_of(completions: Completions) -> list[list[int]]:
    """Token ids of the completions, the token that ended them included."""
    num_slots = completions.mask.shape[1]
    tokens, mask = place.hosts((completions.tokens[:, -num_slots:], completions.mask))
    return [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]


class ColumnFeatures:
    """φ of items from stored columns; `basis` None takes the columns as they are.

    Raises:
      UserError: a column is not what it was when its settings were stored.
    """

    def __init__(self, settings: JSONObject, basis: RewardBasis | None, limits: HostConfig):
        self._opened = table.open_columns(settings, gates=False)
        for entry, _ in self._opened:
            if entry["settings"]["kind"] == "function":  # imported before anything runs
                load_function(entry["settings"]["function"])
        self._basis, self._limits = basis, limits
        if basis is not None:
            Readout.of(basis).folded()  # refuses a basis that depends on the prompt

    def __call__(self, items: Preferences, group_size: int = 1) -> Rewards:
        """φ; where a column says nothing about an item, see `left_out`.

        Raises:
          UserError: a column raises, returns something else than finite numbers, or takes too long.
        """
        jobs = [
            (entry["settings"]["name"], lambda column=column: column.measure(items, fitting=False))
            for entry, column in self._opened
        ]
        measured = side_by_side(jobs, self._limits)
        entries = [entry for entry, _ in self._opened]
        found = table.combine(list(zip(entries, measured, strict=True)))
        values, silent = filled(found, group_size), np.isnan(found.raw).sum(axis=0)
        left_out = {name: int(count) for name, count in zip(found.names, silent, strict=True) if count}
        if self._basis is None:
            return Rewards(values.astype(np.float32), left_out)
        return Rewards(Readout.of(self._basis).features(values), left_out)


def filled(found: table.Table, group_size: int) -> np.ndarray:
    """Raw rewards float64[I, C] without gaps: a reward that says nothing about a completion is left out of its group.

    It gets the mean of what the same reward says about the others of the group (`group_size` neighbours), so that the
    group's mean is that of the completions it applies to, and this one gains and loses nothing by it. Where it says nothing
    about the whole group, the stored value stands, the same for all of them.
    """
    raw = found.raw.reshape(-1, group_size, found.raw.shape[1])
    known = ~np.isnan(raw)
    count = known.sum(axis=1, keepdims=True)
    mean = np.where(known, raw, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    stored = found.values.reshape(raw.shape)
    return np.where(known | (count == 0), stored, mean).reshape(found.raw.shape)


class EncoderFeatures:
    """φ of items from a language-model encoder with a tokenizer of its own, re-encoded from text.

    `encoder.embed_items` gives the same; this one keeps the model loaded, its shapes few and the cache folder empty.
    """

    def __init__(self, basis: RewardBasis, chunk: int = 32):
        base, self._pooling, params = load_encoder(basis.encoder)
        self._tokenizer, self._room, self._chunk = base.tokenizer, base.config.max_positions, chunk
        self._arrays = EncoderArrays(params, Readout.of(basis).folded())
        self._features = jax.jit(self._compute)

    def _compute(self, arrays, tokens, starts, member):
        return arrays.readout(pooled_texts(self._pooling, arrays.params, tokens, starts, member))

    def __call__(self, items: Preferences, group_size: int = 1) -> Rewards:
        prompts = [self._tokenizer.encode_prompt(prompt) for prompt in items.prompts]
        completions = [self._tokenizer.encode_completion(text) for text in items.item_text]
        whole = [
            [*prompts[prompt], *completion]
            for prompt, completion in zip(items.item_prompt, completions, strict=True)
        ]
        longest = max(range(len(whole)), key=lambda item: len(whole[item]))
        if len(whole[longest]) > self._room:
            row = items.row[np.flatnonzero((items.chosen == longest) | (items.rejected == longest))[0]]
            raise UserError(
                f"{items.source} row {row}: prompt and completion have {len(whole[longest])} tokens for the encoder, whose "
                f"context holds {self._room}; shorten them (drawn ones: rollout.max_new_tokens or max_prompt_tokens)"
            )
        tokens, starts = left_pad(whole, multiple=WIDTH)
        first = tokens.shape[1] - np.array([len(completion) for completion in completions])
        member = np.arange(tokens.shape[1]) >= first[:, None]
        parts = []
        for start in range(0, len(whole), self._chunk):
            index = np.minimum(np.arange(start, start + self._chunk), len(whole) - 1)
            parts.append(self._features(self._arrays, tokens[index], starts[index], member[index]))
        return Rewards(np.concatenate([np.asarray(part) for part in parts])[: len(whole)], {})


def loaded(basis: RewardBasis) -> Features:
    """φ of any items by the encoder of a basis that reads new texts, which stays loaded."""
    if basis.encoder["kind"] == "columns":
        return ColumnFeatures(basis.encoder, basis, HostConfig())
    return (
        sentence.SentenceFeatures(basis) if basis.encoder["kind"] == sentence.KIND else EncoderFeatures(basis)
    )


def side_by_side(jobs: Sequence[tuple[str, Callable[[], Measured]]], limits: HostConfig) -> list[Measured]:
    """Run named jobs in threads; the first failure, or the first that takes too long, is the failure of all.

    Raises:
      UserError: one line that names the column.
      KeyboardInterrupt: a signal came; nobody waits for the threads.
    """
    # Not concurrent.futures: its threads are waited for at exit, and one that hangs would hang the process.
    gate = threading.Semaphore(limits.parallel)
    started: list[float | None] = [None] * len(jobs)
    results: dict[int, Measured] = {}
    errors: list[BaseException | None] = [None] * len(jobs)
    finished = [threading.Event() for _ in jobs]

    def work(number: int) -> None:
        with gate:
            started[number] = time.monotonic()
            try:
                results[number] = _tried(jobs[number][1], limits.retries)
            except BaseException as error:  # handed to the thread that waits
                errors[number] = error
            finally:
                finished[number].set()

    for number in range(len(jobs)):
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work, number), daemon=True).start()
    for number, (name, _) in enumerate(jobs):
        while not finished[number].wait(0.05):
            # A training loop waits for us, with a checkpoint to write; where others are in the same step, after it.
            if signals.pending() and not processes.several():
                signals.leave()
            begun = started[number]
            if begun is not None and time.monotonic() - begun > limits.timeout_seconds:
                raise UserError(
                    f"column {name!r}: no rewards after {limits.timeout_seconds:g} s (host.timeout_seconds); the same "
                    "command goes on from the last checkpoint"
                )
        error = errors[number]
        if isinstance(error, UserError):
            text = str(error)
            raise UserError(text if text.startswith("column ") else f"column {name!r}: {text}") from None
        if error is not None:
            raise error
    return [results[number] for number in range(len(jobs))]


def _tried(job: Callable[[], Measured], retries: int) -> Measured:
    for attempt in range(retries):
        try:
            return job()
        except UserError:
            time.sleep(BACKOFF_SECONDS * 2**attempt)
    return job()


class HostReward:
    """Completions and the rows of their prompts → φ float32[B, K], on the host."""

    can = Can(compiled=False, beginnings=False, tokens=False)
    kernel = arrays = None

    def __init__(
        self, features: Features, tokenizer: Tokenizer, group_size: int = 1, skip_special_tokens: bool = True
    ):
        self._features, self._tokenizer, self._group_size = features, tokenizer, group_size
        self._skip_special_tokens = skip_special_tokens
        self._told: set[str] = set()

    def __call__(self, completions: Completions, prompts: PromptRows) -> Rewards:
        """Raises UserError: a reward is missing or not finite; the line names column and row."""
        items = prompts.with_texts(texts_of(completions, self._tokenizer, self._skip_special_tokens))
        items = dataclasses.replace(items, columns={**items.columns, IDS: ids_of(completions)})
        found = self._shared(items) if processes.several() else self._computed(items)
        phi = found.phi
        for name in found.left_out.keys() - self._told:
            _LOG.warning(
                f"column {name!r}: says nothing about {found.left_out[name]} of {len(phi)} completions; it is left out of "
                "their groups' means (train/left_out_share)"
            )
        self._told |= found.left_out.keys()
        return found

    def _computed(self, items: Preferences) -> Rewards:
        found = self._features(items, self._group_size)
        phi = np.asarray(found.phi, np.float32)
        if not np.isfinite(phi).all():
            row = int(np.flatnonzero(~np.isfinite(phi).all(axis=1))[0])
            raise UserError(
                f"rewards: not finite for {items.source} row {items.row[row]}; check the reward's numbers"
            )
        return Rewards(phi, found.left_out)

    def _shared(self, items: Preferences) -> Rewards:
        """Each process computes for its own groups, and all get all of it, with what functions logged."""
        size = self._group_size
        groups = np.array_split(np.arange(items.num_items // size), processes.count())[processes.index()]
        own = (groups[:, None] * size + np.arange(size)).reshape(-1)
        call = arguments.current() or arguments.Call(arguments.TrainerState())

        def computed() -> JSONObject:
            with apart(), arguments.training(call.state, len(own)) as said:
                found = self._computed(_items(items, own)) if len(own) else Rewards(np.zeros((0, 0)), {})
            logged = {"metrics": dict(said.metrics), "extra": _plain(said.extra)}
            return {"phi": np.asarray(found.phi).tolist(), "left_out": found.left_out} | logged

        parts = processes.together(computed)
        left_out: collections.Counter[str] = collections.Counter()
        extra: dict[str, list[object]] = {}
        for part in parts:
            left_out.update(part["left_out"])
            for name, values in part["metrics"].items():
                call.metrics[name] += values
            for name, values in part["extra"].items():
                extra[name] = [*extra.get(name, []), *values]
        call.extra.update(extra)
        return Rewards(np.array([row for part in parts for row in part["phi"]], np.float32), dict(left_out))


def _plain(extra: dict[str, list[object]]) -> dict[str, list[object]]:
    return {name: [arguments.jsonable(value) for value in values] for name, values in extra.items()}


def _items(items: Preferences, index: np.ndarray) -> Preferences:
    """Some of the items that `PromptRows.with_texts` made: each its own comparison."""
    prompts = PromptRows(
        tuple(items.prompts[items.item_prompt[i]] for i in index),
        items.row[index],
        {name: [values[i] for i in index] for name, values in items.columns.items()},
        items.source,
    )
    return prompts.with_texts([items.item_text[i] for i in index])
