"""The configurations that come with the package."""

from pathlib import Path

from rewards.errors import UserError


def shipped(name: str) -> Path:
    """Path of configs/NAME: inside an installed wheel, or in the source tree of an editable installation.

    Raises:
      UserError: no such file in either place.
    """
    package = Path(__file__).parents[2]
    for folder in (package / "_configs", package.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{name}: not among the shipped configurations; reinstall the package")
