"""Write docs/api.md from the docstrings of what `import rewards` and `import rlhf` offer:  python scripts/api_page.py"""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import rewards
import rlhf
from rewards.files import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
HEAD = """# Python reference

<!-- Written by scripts/api_page.py from the docstrings; change them there. -->

What `import rewards` and `import rlhf` offer. How it goes together: [from Python](python.md).
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for package in (rewards, rlhf):
        parts.append(f"## {package.__name__}\n")
        for name in package.__all__:
            value = getattr(package, name)
            if value.__module__.partition(".")[0] == package.__name__ or name not in rewards.__all__:
                parts.append(_entry(f"{package.__name__}.{name}", value))
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    text = [f"### {name}\n", _signature(name, value), _doc(value)]
    for member, found in _members(value) if inspect.isclass(value) else ():
        if isinstance(found, property):
            text.append(f"**`.{member}`** {_doc(found)}")
        else:
            text.append(
                f"#### {name.rpartition('.')[2]}.{member}\n\n{_signature(member, found)}\n{_doc(found)}"
            )
    return "\n".join(text)


def _members(value: type) -> list[tuple[str, Any]]:
    """Public methods and properties of the class itself, in order, with a docstring."""
    found = []
    for name, member in vars(value).items():
        if name.startswith("_") or not getattr(member, "__doc__", None):
            continue
        if hasattr(member, "func"):  # functools.cached_property
            member = property(member.func)
        if inspect.isfunction(member) or isinstance(member, property):
            found.append((name, member))
    return found


def _signature(name: str, value: Any) -> str:
    if inspect.isclass(value) and (
        dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False) or not _own_init(value)
    ):
        return ""  # made by functions, not by hand
    called = re.sub(r"\bself, |\bself\b", "", str(inspect.signature(value)))
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", called).replace("'", "")
    if len(name) + len(text) > 100:
        arguments, _, returned = text.partition(") -> ")
        inner = re.sub(r", (?=\*?\*?\w+(?::|,|$|=))", ",\n    ", arguments[1:])
        text = f"(\n    {inner},\n) -> {returned}"
    return f"```text\n{name}{text}\n```\n"


def _own_init(value: type) -> bool:
    return "__init__" in vars(value)


def _doc(value: Any) -> str:
    doc = inspect.getdoc(value.fget if isinstance(value, property) else value) or ""
    summary, _, rest = doc.partition("\n")
    rest = inspect.cleandoc(rest)
    if not rest:
        return f"{summary}\n"
    return f"{summary}\n\n```text\n{rest}\n```\n"


if __name__ == "__main__":
    write_text(PAGE, page())
