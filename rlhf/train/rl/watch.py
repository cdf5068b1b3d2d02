"""Says on stderr what goes wrong in a run of reinforcement learning, while there is still time to stop it."""

import logging
from pathlib import Path

from jaxtyping import PyTree

from rlhf.run import processes
from rlhf.run.metrics import read_metrics
from rlhf.train.callbacks import Callback
from rlhf.train.diagnosis.detectors import diagnose

_LOG = logging.getLogger("chorus")


class Watch(Callback):
    """At checkpoints: diagnoses the metrics so far and prints every finding once, when it first appears.

    A resumed run says again what is still wrong.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.said: set[str] = set()

    def checkpoint(self, number: int, state: PyTree) -> None:
        if not processes.is_writer():
            return
        for finding in diagnose(read_metrics(self.directory)):
            if finding.name not in self.said:
                self.said.add(finding.name)
                _LOG.warning(f"{finding.line()} More: docs/rl-diagnosis.md#{finding.name}")
