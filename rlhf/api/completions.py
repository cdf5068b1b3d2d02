"""What `Policy.generate` returns: texts, with whose they are and how they came about."""

import dataclasses
import html
import textwrap
from collections.abc import Iterator, Sequence
from typing import overload

from rewards.types import Prompt

WIDTH = 96


@dataclasses.dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
      prompt: what was asked. person: for whom, as it is called in tables. text: without special tokens.
      num_tokens: with the one that ended it. logprob: summed over them, nats. finished: whether it ended by itself.
    """

    prompt: Prompt
    person: str
    text: str
    num_tokens: int
    logprob: float
    finished: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Completions(Sequence[str]):
    """Texts in the order prompt by prompt, for every prompt person by person; `rows` has everything else."""

    rows: tuple[Completion, ...]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [row.text for row in self.rows[index]]
        return self.rows[index].text

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return (row.text for row in self.rows)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        lines, before = [], None
        for row in self.rows:
            if row.prompt != before:
                lines.append(_shown(row.prompt))
                before = row.prompt
            lines.append(textwrap.indent(textwrap.fill(f"{row.person}: {row.text.strip()}", WIDTH), "  "))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{html.escape(_shown(row.prompt))}</td><td>{html.escape(row.person)}</td>"
            f"<td>{html.escape(row.text)}</td></tr>"
            for row in self.rows
        )
        return f"<table><tr><th>prompt</th><th>person</th><th>completion</th></tr>{body}</table>"


def _shown(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{role}: {text}" for role, text in prompt)
