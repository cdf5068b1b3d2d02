"""The one exception for mistakes of the user's, and the name that was probably meant."""

import difflib
import re
from collections.abc import Iterable

from rewards.shown import printable

LONGEST = 200  # characters of one name or value in a message
_ALL = 2000  # characters of a whole message
_QUOTED = re.compile(  # in quotes, or without a space; an apostrophe inside a word quotes nothing
    rf"(?<!\w)'[^'\n]{{{LONGEST},}}'(?!\w)|\"[^\"\n]{{{LONGEST},}}\"|[^\s'\"]{{{LONGEST + 1},}}"
)


class UserError(Exception):
    """A mistake the user can mend: `str(error)` is one line with the place, the value and the fix.

    The command line prints it on stderr after `chorus: ` and exits with status 2, without a traceback. Names and values in
    it are the user's and may be anything: control characters become escapes, what is longer than `LONGEST` is cut.
    """

    def __init__(self, message: str):
        text = _QUOTED.sub(lambda found: _cut(found[0], LONGEST), printable(message))
        super().__init__(_cut(text, _ALL))


def _cut(text: str, longest: int) -> str:
    """Beginning and end, where a path and a message say most."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """The known name most like `word`; None when none is alike enough (difflib's ratio)."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, alike)), None)


def meant(word: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown name: which one was probably meant, or `otherwise`."""
    found = nearest(word, known)
    return otherwise if found is None else f"did you mean {found!r}?"
