"""The probe sets, read from a folder; none of them is a part of Chorus, and what is not there is skipped with the reason.

    bias_probes/fff_human            arXiv:2506.05339: pairs that differ in one bias, with the majority of three people
    bias_probes/anthropic_sycophancy_150, rho_sycophancy_hard_100     claims by people who hold the wrong answer
    bias_probes/sycon_bench          arXiv:2505.23840: debates; false presuppositions with four push-backs
    polis_english/                   votes on statements, opinion groups of 13 public conversations
    remesh_opinions/pairs            choices between opinions, with the party of whoever chose
    persona_statements/statements    statements that go with a trait or against it
    prefeval/implicit_choice         a preference, a question on which it matters, four options

Each file is NAME.jsonl or NAME.jsonl.gz.
"""

import collections
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rewards import jsonl, opening
from rewards.errors import UserError
from rewards.files import JSONObject

T = TypeVar("T")
LONGEST = (
    1200  # characters of a text that is scored: longer items are left out, so that a probe has a known cost
)
BIASES = ("length", "structure", "jargon", "vagueness", "sycophancy")


class Skipped(Exception):
    """Why a probe cannot be made."""


class BiasPair(NamedTuple):
    """One prompt, an answer with the bias and one without; human: whether people prefer the former."""

    bias: str
    prompt: str
    biased: str
    plain: str
    human: bool


class Claim(NamedTuple):
    """A text that ends in a choice between (A) and (B), and which of them is right and which the asker holds."""

    text: str
    right: str
    held: str


class Debate(NamedTuple):
    claim: str


class Pressure(NamedTuple):
    """A question with a wrong presupposition, the correction, and what the asker replies turn by turn."""

    question: str
    wrong: str
    right: str
    pushbacks: tuple[str, ...]


class Person(NamedTuple):
    """Somebody's votes in one conversation: statements and −1 or 1."""

    statements: tuple[str, ...]
    votes: tuple[int, ...]


class Conversation(NamedTuple):
    """A conversation with the statement of each opinion group that tells it best from the rest, and the groups' shares."""

    name: str
    viewpoints: tuple[str, ...]
    shares: tuple[float, ...]
    people: tuple[Person, ...]


class PartyChoice(NamedTuple):
    question: str
    chosen: str
    rejected: str
    party: str


class Statement(NamedTuple):
    trait: str
    text: str
    matches: bool


class Option(NamedTuple):
    """A preference, a question, its options, and which of them follows the preference."""

    topic: str
    preference: str
    question: str
    options: tuple[str, ...]
    follows: int


def rows(folder: Path, name: str) -> list[JSONObject]:
    """Rows of NAME.jsonl or NAME.jsonl.gz.

    Raises:
      Skipped: there is neither. UserError: a row that cannot be read.
    """
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if not path.is_file():
            continue
        found = []
        with opening.binary(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as stream:
            try:
                for number, line in enumerate(stream, 1):
                    row = jsonl.parse(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path}: row {number}: is no object; restore the file")
                    found.append(row)
            except (OSError, EOFError, ValueError) as error:
                raise UserError(f"{path}: cannot be read ({error}); restore the file") from None
        return found
    raise Skipped(f"{folder.name}/{name}.jsonl[.gz] is not there")


def some(items: Sequence[T], count: int, seed: int, of: Callable[[T], str] | None = None) -> list[T]:
    """At most `count` items, drawn once by the seed; with `of`, so many of each kind."""
    kinds: dict[str, list[T]] = collections.defaultdict(list)
    for item in items:
        kinds["" if of is None else of(item)].append(item)
    drawn = []
    for number, kind in enumerate(sorted(kinds)):
        order = np.random.default_rng([seed, number]).permutation(len(kinds[kind]))[:count]
        drawn += [kinds[kind][i] for i in order]
    return drawn


def _made(folder: Path, name: str, make: Callable[[JSONObject], T | None]) -> list[T]:
    """What `make` finds in each row that it does not pass over.

    Raises:
      Skipped: no such set. UserError: a row that lacks a column, or holds something else in it.
    """
    found = []
    for number, row in enumerate(rows(folder, name), 1):
        try:
            item = make(row)
        except ValueError as error:
            raise UserError(f"{folder.name}/{name}: row {number}: {error}; restore the file") from None
        if item is not None:
            found.append(item)
    return found


def _value(row: JSONObject, key: str, right: Callable[[Any], bool], what: str) -> Any:
    if key not in row:
        raise ValueError(f"has no {key!r}")
    if not right(row[key]):
        raise ValueError(f"{key} is {_shown(row[key])}, which is no {what}")
    return row[key]


def _text(row: JSONObject, key: str) -> str:
    return _value(row, key, lambda value: isinstance(value, str) and bool(value.strip()), "text")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _string(row: JSONObject, key: str) -> str:
    """A text that may be empty."""
    return _value(row, key, lambda value: isinstance(value, str), "text")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _truth(row: JSONObject, key: str) -> bool:
    return bool(_value(row, key, lambda value: value in (0, 1) and value is not None, "truth value"))


def _read(folder: Path, name: str, make: Callable[[JSONObject], T | None]) -> list[T]:
    found = _made(folder, name, make)
    if not found:
        raise Skipped(f"{folder.name}/{name} has no item short enough")
    return found


def bias_pairs(data: Path) -> list[BiasPair]:
    def make(row: JSONObject) -> BiasPair | None:
        pair = BiasPair(
            _value(row, "bias", lambda value: value in BIASES, f"bias; known: {', '.join(BIASES)}"),
            _text(row, "prompt"),
            _text(row, "biased"),
            _text(row, "plain"),
            _truth(row, "human_prefers_biased"),
        )
        fits = max(len(pair.prompt), len(pair.biased), len(pair.plain)) <= LONGEST
        return pair if fits else None

    return _read(data / "bias_probes", "fff_human", make)


def claims(data: Path) -> list[Claim]:
    def make(row: JSONObject) -> Claim | None:
        claim = Claim(
            _text(row, "text"),
            _text(row, "truthful_answer").strip(),
            _text(row, "sycophantic_answer").strip(),
        )
        return claim if len(claim.text) <= LONGEST and claim.right != claim.held else None

    folder = data / "bias_probes"
    return _read(folder, "anthropic_sycophancy_150", make) + _read(folder, "rho_sycophancy_hard_100", make)


def debates(data: Path) -> list[Debate]:
    def make(row: JSONObject) -> Debate | None:
        return Debate(_text(row, "argument")) if _text(row, "setting") == "debate" else None

    return _read(data / "bias_probes", "sycon_bench", make)


def pressures(data: Path) -> list[Pressure]:
    found: dict[str, tuple[str, str]] = {}
    replies: dict[str, tuple[str, ...]] = {}

    def make(row: JSONObject) -> None:
        if _text(row, "setting") == "false_presupposition":
            found[_text(row, "question")] = _text(row, "presupposition"), _text(row, "correction")
        elif row["setting"] == "false_presupposition_pushback":
            replies[_text(row, "Question")] = tuple(_text(row, f"Pushback_{turn}") for turn in (1, 2, 3, 4))

    _made(data / "bias_probes", "sycon_bench", make)
    both = [
        Pressure(question, *said, replies[question])
        for question, said in found.items()
        if question in replies
    ]
    if not both:
        raise Skipped("bias_probes/sycon_bench: no false presupposition has its push-backs")
    return both


def conversations(data: Path, votes_a_person: int = 6, seed: int = 0) -> list[Conversation]:
    """Conversations with at least two opinion groups; viewpoints by the difference in agreement from everybody else.

    Only statements that a tenth of each group has voted on count.
    """
    folder = data / "polis_english"
    text = dict(_made(folder, "statements", lambda row: (_text(row, "item_id"), _string(row, "text"))))
    by_name: dict[str, list[JSONObject]] = collections.defaultdict(list)

    def keep(row: JSONObject) -> None:
        vote = _value(row, "vote", lambda value: value is None or value in (-1, 0, 1), "vote (-1, 0 or 1)")
        item, name = _text(row, "item_id"), _text(row, "conversation")
        _text(row, "user_id")
        _value(row, "opinion_group", lambda value: value is None or isinstance(value, str | int), "group")
        if vote and len(text.get(item, "")) >= 20:
            by_name[name].append(row)

    _made(folder, "votes", keep)
    found = []
    for name, own in sorted(by_name.items()):
        groups = _groups(own)
        if len(groups.sizes) < 2:
            continue
        viewpoints = tuple(text[item] for item in groups.typical)
        if len(set(viewpoints)) < len(viewpoints):
            continue
        people = []
        votes: dict[str, list[JSONObject]] = collections.defaultdict(list)
        for row in own:
            votes[row["user_id"]].append(row)
        rng = np.random.default_rng(seed)
        for user in sorted(votes):
            mine = votes[user]
            if len(mine) < votes_a_person or len({row["vote"] for row in mine}) < 2:
                continue
            picked = [mine[i] for i in rng.permutation(len(mine))[:votes_a_person]]
            people.append(
                Person(
                    tuple(text[row["item_id"]] for row in picked), tuple(int(row["vote"]) for row in picked)
                )
            )
        total = sum(groups.sizes)
        found.append(
            Conversation(name, viewpoints, tuple(size / total for size in groups.sizes), tuple(people))
        )
    if not found:
        raise Skipped("polis_english: no conversation has two opinion groups")
    return found


class _Groups(NamedTuple):
    sizes: tuple[int, ...]
    typical: tuple[str, ...]


def _groups(votes: list[JSONObject]) -> _Groups:
    members: dict[Any, set[str]] = collections.defaultdict(set)
    cast: dict[tuple[Any, str], list[int]] = collections.defaultdict(list)
    for row in votes:
        if row["opinion_group"] is not None:
            members[row["opinion_group"]].add(row["user_id"])
            cast[row["opinion_group"], row["item_id"]].append(row["vote"])
    names = sorted(members)
    typical = []
    for name in names:
        best, most = None, -np.inf
        for item in sorted({item for group, item in cast if group == name}):
            here, rest = cast[name, item], [v for other in names if other != name for v in cast[other, item]]
            if len(here) < max(3, len(members[name]) // 10) or len(rest) < 3:
                continue
            difference = np.mean(here) - np.mean(rest)
            if difference > most:
                best, most = item, difference
        if best is None:
            return _Groups((), ())
        typical.append(best)
    return _Groups(tuple(len(members[name]) for name in names), tuple(typical))


def party_choices(data: Path) -> list[PartyChoice]:
    def make(row: JSONObject) -> PartyChoice | None:
        party = _value(row, "attributes", lambda value: isinstance(value, dict), "object").get("political")
        if party not in ("Democrat", "Republican"):
            return None
        return PartyChoice(_text(row, "prompt"), _text(row, "chosen"), _text(row, "rejected"), party)

    return _read(data / "remesh_opinions", "pairs", make)


def statements(data: Path) -> list[Statement]:
    def make(row: JSONObject) -> Statement | None:
        return Statement(_text(row, "persona"), _text(row, "statement"), _truth(row, "matches"))

    return _read(data / "persona_statements", "statements", make)


def options(data: Path) -> list[Option]:
    def make(row: JSONObject) -> Option | None:
        choices = tuple(_value(row, "options", _texts, "list of texts"))
        if _text(row, "aligned_op") not in choices or len(choices) < 2:
            return None
        return Option(
            _text(row, "topic"),
            _text(row, "preference"),
            _text(row, "implicit_query"),
            choices,
            choices.index(row["aligned_op"]),
        )

    return _read(data / "prefeval", "implicit_choice", make)
