"""The file of hints: read strictly, encoded, judged by the gate, and what becomes of it said on the terminal.

A hint stands where its reader would meet it: after a chat's last user message, but in front of plain text, which the
completion must be able to continue.
"""

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rewards import hashed, jsonl
from rewards.basis.belief import Belief
from rewards.basis.store import RewardRun
from rewards.data import schema, sources
from rewards.data.schema import RowError, show
from rewards.errors import UserError, meant
from rewards.files import JSONObject, sha256_json
from rewards.people import edits, records
from rewards.people.population import load_people
from rewards.types import Prompt
from rlhf.policy.store import Base
from rlhf.train.hints import gate as hint_gate
from rlhf.train.rl.settings import RolloutConfig

_LOG = logging.getLogger("chorus")

KEYS = ("user_id", "prompt", "completion", "hint", "verified")
LINE = ("row", "user_id", "hint", "class", "phrase", "distil", "edits", "reason", "coef", "sha256")
SHOWN = 5  # commands and reasons on the terminal; all reasons stand in the file
NEAR_ZERO = 1e-6  # of every coordinate of z


class Row(NamedTuple):
    """A row of the file: who said what, the tokens of prompt, hinted prompt and completion, the belief about the person."""

    number: int
    user_id: str
    hint: str
    verified: bool
    sha256: str
    prompt: list[int]
    hinted: list[int]
    completion: list[int]
    belief: Belief


def read(path: str, run: RewardRun, base: Base, rollout: RolloutConfig) -> list[Row]:
    """All rows of a file, checked and encoded.

    Args:
      rollout: has `max_prompt_tokens`, for prompts without their hint, and `max_new_tokens`.
    Raises:
      UserError: the first bad row (its field, the value, the fix), and how many more there are.
    """
    people = load_people(run)
    beliefs = dict(zip(people.user_ids, people.posteriors, strict=True))
    rows: list[Row] = []
    problems: list[tuple[int, RowError]] = []
    try:
        source = sources.open_source(path, "train")
    except UserError as error:  # which speaks of the usual key
        raise UserError(str(error).replace("data.path", "hints.path")) from None
    for number, record in source:
        try:
            rows.append(_parse(number, record, run, beliefs, base, rollout))
        except RowError as error:
            problems.append((number, error))
    schema.raise_first(path, problems)
    if not rows:
        raise UserError(f"{path}: holds no rows; give at least one hint, or remove hints")
    return rows


def _parse(
    number: int,
    record: object,
    run: RewardRun,
    beliefs: dict[str, Belief],
    base: Base,
    rollout: RolloutConfig,
) -> Row:
    record = schema.row_object(record)
    for key in record:
        if key not in KEYS:
            fix = meant(str(key), KEYS, "remove it")
            raise RowError(str(key), f"is no field of a hint ({', '.join(KEYS)}); {fix}")
    prompt, texts, _ = schema.parse_completions({key: record.get(key) for key in ("prompt", "completion")})
    hint, who = schema.parse_text("hint", record.get("hint")), record.get("user_id")
    user_id = schema.parse_text(
        "user_id", str(who) if isinstance(who, int) and not isinstance(who, bool) else who
    )
    verified = record.get("verified")
    if verified is not None and not isinstance(verified, bool):
        raise RowError("verified", f"is {show(verified)}; use true or false, or leave it out")
    plain, hinted = _encoded(base, "prompt", prompt), _encoded(base, "hint", _hinted(prompt, hint, base))
    completion = base.tokenizer.encode_completion(texts["completion"])
    most, new, room = rollout.max_prompt_tokens, rollout.max_new_tokens, base.config.max_positions
    if len(plain) > most:
        raise RowError(
            "prompt",
            f"has {len(plain)} tokens, rollout.max_prompt_tokens is {most}; shorten it or raise the limit",
        )
    if len(completion) - 1 > new:
        raise RowError(
            "completion",
            f"has {len(completion) - 1} tokens, rollout.max_new_tokens is {new}; shorten it or raise the limit",
        )
    if len(hinted) + new > room:
        raise RowError(
            "hint",
            f"with its prompt has {len(hinted)} tokens and rollout.max_new_tokens is {new}, the model's context holds "
            f"{room}; shorten one of them",
        )
    known = _belief(run, beliefs, user_id)
    content = [user_id, prompt, texts["completion"], hint, bool(verified)]
    # A completion that fills all slots was cut off before it could close.
    identity = sha256_json(content)
    return Row(number, user_id, hint, bool(verified), identity, plain, hinted, completion[:new], known)


def _encoded(base: Base, field: str, text: Prompt) -> list[int]:
    try:
        ids = base.tokenizer.encode_prompt(text)
    except UserError as error:  # messages that this model's template does not take
        raise RowError(field, str(error)) from None
    if not ids:
        raise RowError(field, "has no tokens; write a text")
    return ids


def _hinted(prompt: Prompt, hint: str, base: Base) -> Prompt:
    if isinstance(prompt, str):
        return f"{prompt}\n\n{hint}" if base.tokenizer.has_chat_template else f"{hint}\n\n{prompt}"
    *before, (role, content) = prompt
    if role == "user":
        return (*before, (role, f"{content}\n\n{hint}"))
    return (*prompt, ("user", hint))


def _belief(run: RewardRun, beliefs: dict[str, Belief], user_id: str) -> Belief:
    """What the person's record says, which may be newer; else what the fit said of a training person."""
    if records.exists(run.users, user_id):
        return records.load(run.users, user_id, run).posterior
    if user_id not in beliefs:
        fix = meant(user_id, beliefs, "ask them first with chorus users ask")
        raise RowError("user_id", f"is {show(user_id)}, whom {run.directory} does not know; {fix}")
    return beliefs[user_id]


def judge(row: Row, run: RewardRun, z_of: Callable[[np.ndarray], np.ndarray]) -> JSONObject:
    """The line of hints.jsonl: what the gate decides; and nothing is taught to somebody at z = 0, where nothing can be."""
    decision = hint_gate.decide(row.hint, run=run, posterior=row.belief, verified=row.verified)
    distil, reason = decision.distil, decision.reason
    if distil and np.abs(z_of(row.belief.mean)).max() < NEAR_ZERO:
        said = f"; {len(decision.edits)} statement(s) about the coefficients" if decision.edits else ""
        distil = False
        reason = (
            f"does not teach: the person's z is 0, the average person's, whose policy no hint changes{said}"
        )
    # When this was computed says nothing of when the person spoke.
    stated = [edits.to_json(edit) | {"time": None} for edit in decision.edits]
    coef = np.asarray(row.belief.mean, np.float64).tolist()
    said = (row.number, row.user_id, row.hint, decision.kind, decision.phrase)
    return dict(zip(LINE, (*said, distil, stated, reason, coef, row.sha256), strict=True))


def as_started(rows: list[Row], path: Path, source: str) -> list[JSONObject]:
    """The lines that a run in progress started with; raises UserError where they are not of these rows."""
    try:
        entries = [hashed.checked_row(row) for row in jsonl.rows(path)]
        whole = all(tuple(entry) == LINE for entry in entries)
    except (UserError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path}: missing or damaged; restore it or choose another output_dir")
    if [entry["sha256"] for entry in entries] != [row.sha256 for row in rows]:
        raise UserError(
            f"{source}: holds other rows than those this run started with ({path}); restore it or choose another "
            "output_dir"
        )
    return entries


def why_none(entries: list[JSONObject], run: RewardRun) -> str:
    """Why a file teaches nothing, and what to do, in one line."""
    commands = _commands(entries, run)
    if not commands:
        first = entries[0]
        return (
            f"none of {len(entries)} hints teaches the policy (row {first['row']}: {first['reason']}); give hints "
            "about style or content, or remove hints"
        )
    more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    return (
        f"none of {len(entries)} hints teaches the policy, but there are statements about people's coefficients: "
        f"{len(commands)}; remove hints and apply them with {commands[0]}{more}"
    )


def announce(entries: list[JSONObject], run: RewardRun, source: str, path: Path) -> None:
    """Say on stderr how many rows teach, which commands apply statements, and why the rest does nothing."""
    commands = _commands(entries, run)
    stated = sum(bool(entry["edits"]) for entry in entries)
    idle = [entry for entry in entries if not entry["distil"] and not entry["edits"]]
    lines = [
        f"{source}: {len(entries)} rows; teach the policy: {sum(entry['distil'] for entry in entries)}, are statements "
        f"about coefficients: {stated}, do nothing: {len(idle)} ({path} has the reasons)"
    ]
    lines += [f"statement, applied by you and not by training: {command}" for command in commands[:SHOWN]]
    if len(commands) > SHOWN:
        lines.append(f"and {len(commands) - SHOWN} more such statements")
    why: dict[str, list[str]] = {}
    for entry in idle:
        why.setdefault(entry["reason"], []).append(str(entry["row"]))
    lines += [f"nothing, row {', '.join(why[reason][:SHOWN])}: {reason}" for reason in list(why)[:SHOWN]]
    if len(why) > SHOWN:
        lines.append(f"and {len(why) - SHOWN} more reasons for nothing")
    for line in lines:
        _LOG.info("hints: %s", line)


def _commands(entries: list[JSONObject], run: RewardRun) -> list[str]:
    """The command behind every distinct statement, on one line and without what a terminal would obey."""
    found = {}
    for entry in entries:
        if entry["edits"]:
            text = "".join(letter for letter in " ".join(entry["hint"].split()) if letter.isprintable())
            words = [
                "chorus",
                "users",
                "edit",
                entry["user_id"],
                "--rewards",
                str(run.directory),
                "--text",
                text,
            ]
            found[shlex.join(words)] = None
    return list(found)
