"""Prompts of a reinforcement-learning run: read, encoded, cut to what fits, and which of them a step visits."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rewards.data import schema, sources
from rewards.data.columns import OWN, naming
from rewards.data.schema import RowError
from rewards.data.sources import Source
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Prompt
from rlhf.mesh import place
from rlhf.phi.reward import PromptRows
from rlhf.policy import store as policy_store
from rlhf.policy.batches import batch_rows
from rlhf.policy.sampling import left_pad
from rlhf.train.loop import Batches
from rlhf.train.rl.config import GRPOConfig, PPOConfig, RLConfig
from rlhf.train.rl.rollout import Prompts

_LOG = logging.getLogger("chorus")

COMPLETIONS = ("completion", "messages", "chosen", "rejected")


class PromptSet(NamedTuple):
    """rows: N prompts; tokens int32[N, W] and starts int32[N], left-padded to one width; dropped: left out as too long."""

    rows: PromptRows
    tokens: np.ndarray
    starts: np.ndarray
    dropped: int


def read_prompts(path: Source, split: str = "train", columns: Mapping[str, str] | None = None) -> PromptRows:
    """Prompts of any source: the distinct ones of rows with completions, else one a row, with the row's other columns.

    Args:
      path, split, columns: as in `rewards.data.read.read_preferences`.
    Raises:
      UserError: one line with source, row, field, value and fix; it says how many more rows are bad.
    """
    source = sources.name_of(path)
    prompts: list[Prompt] = []
    numbers: list[int] = []
    records: list[JSONObject] = []
    problems: list[tuple[int, RowError]] = []
    seen: set[Prompt] = set()
    found: dict[str, None] = {}
    for number, record in sources.open_source(path, split, columns):
        try:
            fields = schema.row_object(record)
            found |= dict.fromkeys(fields)
            prompt, compared = _parse(fields)
        except RowError as error:
            problems.append((number, error))
            continue
        if compared and prompt in seen:
            continue
        seen.add(prompt)
        prompts.append(prompt)
        numbers.append(number)
        records.append(dict(fields))
    if found and not found.keys() & {"prompt", *COMPLETIONS}:
        listed = ", ".join(map(str, found))[:200]
        raise UserError(f"{source}: column 'prompt' is missing (columns: {listed}); {naming('prompt')}")
    schema.raise_first(source, problems)
    if not prompts:
        raise UserError(f"{source}: holds no rows; give at least one prompt")
    own = {*OWN, *COMPLETIONS, "user_id"}
    names = dict.fromkeys(name for record in records for name in record if name not in own)
    others = {name: [record.get(name) for record in records] for name in names}
    return PromptRows(tuple(prompts), np.array(numbers, np.int32), others, source)


def _parse(record: Mapping[str, object]) -> tuple[Prompt, bool]:
    """The prompt of a record, and whether the record is about completions (then equal prompts are one)."""
    if record.get("prompt") is None and _open_ended(record.get("messages")):
        return schema.parse_prompt(record.get("messages")), False
    if any(record.get(name) is not None for name in COMPLETIONS):
        return schema.parse_completions(record)[0], True
    return schema.parse_prompt(record.get("prompt")), False


def _open_ended(messages: object) -> bool:
    """Whether a conversation waits for an answer, and so is a prompt."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") != "assistant"


def prompt_set(
    config: PPOConfig | GRPOConfig, base: policy_store.Base, rows: PromptRows | None = None
) -> PromptSet:
    """`rows`, or the prompts of `config.data`, encoded for `base`, all in one width, so that a run has one shape.

    Raises:
      UserError: a prompt is too long (row and length) and data.too_long is error; none is left; prompt and completion do
        not fit into the model's context; or an iteration does not fit into memory.
    """
    data = config.data
    rows = read_prompts(data.path, data.split, data.columns) if rows is None else rows
    encoded = [base.tokenizer.encode_prompt(prompt) for prompt in rows.prompts]
    most, room = config.rollout.max_prompt_tokens, base.config.max_positions
    fits = np.array([0 < len(ids) <= most for ids in encoded])
    if not fits.all():
        bad = int(np.flatnonzero(~fits)[0])
        if not encoded[bad]:
            raise UserError(f"{rows.source} row {rows.row[bad]}: the prompt has no tokens; write a prompt")
        if config.data.too_long == "error":
            raise UserError(
                f"{rows.source} row {rows.row[bad]}: prompt of {len(encoded[bad])} tokens exceeds "
                f"rollout.max_prompt_tokens {most}; shorten it, raise the limit, or set data.too_long=drop"
            )
        if not fits.any():
            raise UserError(
                f"{rows.source}: all {len(encoded)} prompts exceed rollout.max_prompt_tokens {most}; raise the limit"
            )
        _LOG.warning(
            f"{rows.source}: {int(np.sum(~fits))} of {len(encoded)} prompts exceed rollout.max_prompt_tokens {most} and "
            "are left out"
        )
    kept = np.flatnonzero(fits)
    encoded, rows = [encoded[i] for i in kept], rows.take(kept)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    new = config.rollout.max_new_tokens
    if len(encoded[longest]) + new > room:
        raise UserError(
            f"{rows.source} row {rows.row[longest]}: prompt of {len(encoded[longest])} tokens and rollout.max_new_tokens "
            f"{new} exceed the model's context of {room}; lower one of them or rollout.max_prompt_tokens"
        )
    tokens, starts = left_pad(encoded)
    return PromptSet(rows, tokens, starts, int(np.sum(~fits)))


class PromptBatch(NamedTuple):
    """One iteration: its number, the prompt of each of its B rows, and their tokens on the device."""

    number: int
    index: np.ndarray
    prompts: Prompts


def batches(config: RLConfig, prompts: PromptSet) -> Batches:
    """Iteration → its prompts, a function of (seed, number) alone; every row of a group stands together."""
    rollout = config.rollout

    def rows(number: int) -> np.ndarray:
        index = batch_rows(config.seed, number, len(prompts.starts), rollout.prompts_per_step)
        return np.repeat(index, rollout.users_per_prompt * rollout.completions)

    def made(number: int, index: np.ndarray) -> PromptBatch:
        tokens, starts = place.sent(place.batch((prompts.tokens[index], prompts.starts[index])))
        return PromptBatch(number, index, Prompts(tokens, starts))

    return Batches(rows, made)
