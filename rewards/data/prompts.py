"""Prompts of a file or of standard input."""

from rewards import jsonl
from rewards.data.schema import RowError, parse_prompt
from rewards.errors import UserError
from rewards.types import Prompt

MOST_LINES = 1_000_000  # all of them are held in memory


def is_text(path: str) -> bool:
    """Whether a file of this name is one of lines of text, or standard input: no table that a data source reads."""
    return path == jsonl.STANDARD_INPUT or path.endswith((".txt", ".md"))


def read_prompts(path: str) -> list[Prompt]:
    """Prompts of a file or standard input: plain lines, or JSON lines whose `prompt` is text or messages."""
    prompts: list[Prompt] = []
    for number, line in enumerate(jsonl.raw_lines(path), 1):
        if number > MOST_LINES:
            raise UserError(f"{path}: more than {MOST_LINES:,} lines; give the prompts in several files")
        if line.strip():
            prompts.append(_prompt(line, f"{path}: line {number}"))
    if not prompts:
        raise UserError(f"{path}: no prompts; write one a line")
    return prompts


def _prompt(line: bytes, place: str) -> Prompt:
    try:
        if not line.lstrip().startswith(b"{"):
            return checked(line.decode("utf-8").removesuffix("\n").removesuffix("\r"), place)
        prompt = jsonl.parse(line)["prompt"]
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text ({error.reason}); convert the file to UTF-8") from None
    except (jsonl.LineError, KeyError):
        raise UserError(
            f'{place}: not a JSON object with "prompt"; write {{"prompt": "..."}} or plain text'
        ) from None
    return checked(prompt, place)


def checked(prompt: object, place: str) -> Prompt:
    """A prompt as rows of a preference file may have it: text, or a list of messages with role and content."""
    if isinstance(prompt, str) and not prompt.strip():
        raise UserError(f"{place} {prompt!r}: empty; write what the model is to answer")
    try:
        return parse_prompt(prompt)
    except RowError as error:
        raise UserError(f"{place}: {error}") from None
