"""Write docs/files.md, every file with the first line of its docstring:  python scripts/files_page.py"""

import ast
from pathlib import Path

from rewards.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "files.md"
HEAD = """# Every file in a line

<!-- Made by scripts/files_page.py from the docstrings. -->

Which room a line lives in; [architecture](architecture.md) says what the rooms promise one another.
"""


def page() -> str:
    """The page, from the packages as they are."""
    return HEAD + "".join(
        _room(folder) for package in ("rewards", "rlhf") for folder in _rooms(ROOT / package)
    )


def _rooms(package: Path) -> list[Path]:
    return [package, *sorted(path.parent for path in package.glob("*/**/__init__.py"))]


def _room(folder: Path) -> str:
    files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    rows = "".join(f"| `{path.name}` | {_summary(path)} |\n" for path in files)
    table = f"\n| file | |\n|---|---|\n{rows}" if rows else ""
    return f"\n## {folder.relative_to(ROOT).as_posix()}/\n\n{_summary(folder / '__init__.py')}\n{table}"


def _summary(path: Path) -> str:
    """First sentence or line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    write_text(PAGE, page())
