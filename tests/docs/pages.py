"""Python in the documentation, and its names on stand-ins."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("smollm2-135m", "electricity")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def adapted(code: str, world: dict[str, str]) -> str:
    for name, stand_in in world.items():
        code = code.replace(f'"{name}"', repr(stand_in))
    return code.replace("adapter_layers=10", "adapter_layers=1")  # the tiny model has two layers
