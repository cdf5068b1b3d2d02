"""The folder that a command without a configuration writes into."""

from pathlib import Path

from rewards.errors import UserError


def check_own(folder: str, record: str, what: str) -> Path:
    """`folder` where it is a command's to write: not there, empty, or written by the same command earlier.

    Args:
      record: the file by which an earlier one is known. what: of which it would be the result.
    Raises:
      UserError: it is a file, or holds something else, such as a run whose report.html would be lost.
    """
    place = Path(folder)
    if not folder or place.exists() and not place.is_dir():
        raise UserError(f"--output {folder!r}: is no folder; choose another")
    if place.exists() and any(place.iterdir()) and not (place / record).is_file():
        raise UserError(f"--output {folder}: not empty and no {what}; choose another folder")
    return place
