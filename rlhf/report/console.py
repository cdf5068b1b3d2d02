"""Tables on the terminal."""

import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewards.shown import Shown, printable
from rlhf.report.page import number

_WIDTH = 100
"""Columns where there is no terminal to ask, so that a log file reads the same everywhere."""


def console_table(
    title: str, head: list[str], rows: Iterable[Iterable[object]], *, stream: TextIO | None = None
) -> None:
    """Print a table; numbers stand right, intervals ({mean, low, high}) in one cell.

    Args:
      stream: where to print; stdout when None. Without a terminal it is plain text of fixed width.
    """
    out: TextIO = sys.stdout if stream is None else stream
    out = getattr(out, "raw", out) if isinstance(out, Shown) else out  # the table colours its own title
    rows = [list(row) for row in rows]
    # Text objects: a person's id such as "[red]" is no markup.
    table = Table(title=Text(printable(title)), title_justify="left")
    for column, name in enumerate(head):
        values = [row[column] for row in rows if row[column] is not None]
        right = bool(values) and all(isinstance(value, (int, float)) for value in values)
        table.add_column(Text(printable(name)), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell) if isinstance(cell, str) else number(cell)) for cell in row))
    width = None if out.isatty() else _WIDTH
    Console(file=out, width=width, highlight=False).print(table)
