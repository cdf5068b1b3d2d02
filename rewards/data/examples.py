"""Read what a policy is taught to say: prompts with completions, conversations, plain texts, or preferences."""

from collections.abc import Mapping

from rewards.data import sources
from rewards.data.completions import read_completions
from rewards.data.memory import Numbered
from rewards.data.read import read_preferences
from rewards.data.sources import Source
from rewards.errors import UserError
from rewards.types import Preferences

SHAPES = "prompt and completion, messages, text, or prompt, chosen and rejected"


def read_examples(
    source: Source, split: str = "train", columns: Mapping[str, str] | None = None
) -> Preferences:
    """Rows of prompt and completion, of messages or of text as comparisons of each with itself; or preferences.

    Args:
      source, split, columns: as in `rewards.data.read.read_preferences`.
    Raises:
      UserError: one line with source, row, field, value and fix.
    """
    records = list(sources.open_source(source, split, columns))
    names = dict.fromkeys(str(name) for _, row in records if isinstance(row, Mapping) for name in row)
    # A pipe can be read once only, so what was read goes on, under the name it had.
    table = Numbered(sources.name_of(source), records)
    if names.keys() & {"chosen", "rejected", "chosen_features"}:
        return read_preferences(table, people=False)
    if names and not names.keys() & {"completion", "messages", "text"}:
        raise UserError(
            f"{table.name}: nothing to learn in its columns ({', '.join(names)[:200]}); rows have {SHAPES}: say which "
            "columns hold them (prompt_column, completion_column, messages_column, text_column)"
        )
    return read_completions(table, texts=True)
