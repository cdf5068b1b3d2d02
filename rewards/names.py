"""What a name may hold: names of people, columns, rewards, launches, files to be written. One rule for all of them."""

import re

from rewards.errors import UserError
from rewards.shown import printable


def no_name(name: str) -> str | None:
    """Why a text is no name, with the fix; None when it is one.

    A character that a terminal obeys, a tab, or the end of a line would make two names look alike, or hide one.
    """
    if found := next((letter for letter in name if letter in "\t\n" or printable(letter) != letter), None):
        return f"holds the control character U+{ord(found):04X}; remove it"
    if half := re.search("[\ud800-\udfff]", name):
        return f"is not valid Unicode (U+{ord(half[0]):04X}); write it in UTF-8"
    return None


def checked_name(name: str, place: str) -> str:
    """`name`.

    Raises:
      UserError: `place`, and why it is no name.
    """
    if wrong := no_name(name):
        raise UserError(f"{place} {name!r}: {wrong}")
    return name
