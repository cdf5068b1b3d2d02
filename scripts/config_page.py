"""Write docs/configuration.md from the records themselves:  python scripts/config_page.py"""

import inspect
import re
from pathlib import Path

from rewards.files import write_text
from rlhf.run.config.describe import KINDS, Entry, describe, schema_of
from rlhf.run.config.document import dump

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration

<!-- Written by scripts/config_page.py from the records (`rlhf.run.config.describe.KINDS`); change it there. -->

A run is one YAML file and any number of `key.sub=value` overrides:

```sh
chorus rewards fit configs/electricity/rewards.yaml fit.num_basis=4 'evaluation.counts=[0, 3, 10]'
```

YAML is read as version 1.2: `yes`, `on`, `1:30` and `2026-01-01` are text, `010` is ten, `1e-5` a number. The
value of an override is all the text behind its `=` (`output_dir=runs/sweep #1` keeps its end); only where it
opens with a bracket, a brace or a quote is it a list, a section or quoted text.

Nothing is accepted that is not listed here: a misspelt key at any depth is an error that names the nearest
right one, its file and line. Types are strict: `"5"` is no integer, `true` no number. **required** marks
values that have no sensible default. A mapping given as an override replaces the whole section. The resolved
configuration of a run stands in its `config.yaml`. Paths are relative to the folder the command runs in, and
`~/` is the home folder. The same list on the console: `chorus config describe rewards|sft|dpo|ppo|grpo|evaluate|outputs|sweep`.
"""
COMMANDS = {
    "rewards": "`chorus rewards fit`, `chorus rewards evaluate`",
    "reward": "`chorus rewards train`",
    "sft": "`chorus train sft`",
    "dpo": "`chorus train dpo`",
    "ppo": "`chorus train ppo`",
    "grpo": "`chorus train grpo`",
    "evaluate": "`chorus evaluate`",
    "outputs": "`chorus evaluate` with `policies`",
    "sweep": "`chorus sweep`: the section `sweep`",
}


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for kind in KINDS:
        summary = (inspect.getdoc(schema_of(kind)) or "").split(": ", 1)[-1]
        parts.append(f"## {COMMANDS[kind]}\n\n{summary[:1].upper()}{summary[1:]}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        parts.append("\n".join(_line(entry) for entry in describe(schema_of(kind))) + "\n")
    return "\n".join(parts)


def _line(entry: Entry) -> str:
    limits = f", {entry.limits}" if entry.limits else ""
    doc = entry.doc[:1].upper() + entry.doc[1:] if re.match(r"[a-z]\w* [a-z]", entry.doc) else entry.doc
    cells = (f"`{entry.key}`", f"{entry.type}{limits}", _default(entry), doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(entry: Entry) -> str:
    if entry.required:
        return "**required**"
    return f"`{dump(entry.default, flow=True)}`"


if __name__ == "__main__":
    write_text(PAGE, page())
