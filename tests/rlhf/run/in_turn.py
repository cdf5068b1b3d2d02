"""Commands one after another in one process, or in each of two that work together: backends start once for all.

    python -m tests.rlhf.run.in_turn JOBS.json [COORDINATOR PROCESS]

JOBS.json holds [kind, values of its configuration], …. Process 1 comes later than Gloo would wait for it when told to:
CHORUS_LATE, seconds before the first job.
"""

import json
import os
import sys
import time
from pathlib import Path

from rlhf.evaluation import policy
from rlhf.run import cluster
from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import made
from rlhf.train import dpo, sft
from rlhf.train.rl import trainer

RUNS = {"sft": sft.run, "dpo": dpo.run, "grpo": trainer.run, "evaluate": policy.run}


def main(jobs: Path, coordinator: str = "", process: str = "0") -> None:
    if coordinator:
        cluster.join(cluster.Place(coordinator, 2, int(process)))
        time.sleep(int(process) * float(os.environ.get("CHORUS_LATE", "0")))
    for kind, values in json.loads(jobs.read_text()):
        RUNS[kind](made(values, schema_of(kind), kind, {}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
