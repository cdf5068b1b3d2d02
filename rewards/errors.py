"""The one exception for mistakes of the user's, and the name that was probably meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: `str(error)` is one line with the place, the value and the fix.

    The command line prints it on stderr after `chorus: ` and exits with status 2, without a traceback.
    """


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """The known name most like `word`; None when none is alike enough (difflib's ratio)."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, alike)), None)


def meant(word: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown name: which one was probably meant, or `otherwise`."""
    found = nearest(word, known)
    return otherwise if found is None else f"did you mean {found!r}?"
