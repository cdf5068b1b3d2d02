"""Under what circumstances something was timed, and where the numbers go."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax

from scripts.pages import write_numbers

RESULTS = Path(__file__).parent / "results"


def report(path: Path, result: dict[str, Any]) -> None:
    """Print the numbers and write them with date, versions, cores and how busy the machine was."""
    circumstances = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "scikit-learn")
        },
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1_min": os.getloadavg()[0],
    }
    result = result | {"circumstances": circumstances}
    write_numbers(path, result)
    print(json.dumps(result, indent=1))
