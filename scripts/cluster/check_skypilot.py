"""Read task files with SkyPilot's own parser: no cloud, no credentials.

SkyPilot wants older versions of click and uvicorn than others here take, so give it an environment of its own:

    python -m venv sky && sky/bin/pip install skypilot
    chorus launch skypilot --accelerator H100 --dry-run -- train dpo configs/electricity/dpo.yaml > task.yaml
    sky/bin/python scripts/cluster/check_skypilot.py task.yaml scripts/cluster/*.sky.yaml

The tests do the same where SKYPILOT_PYTHON names such a Python.
"""

import sys

import sky  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    for path in sys.argv[1:]:
        task = sky.Task.from_yaml(path)
        print(f"{path}: {task.name}: {' '.join(str(task.resources).split())}")
