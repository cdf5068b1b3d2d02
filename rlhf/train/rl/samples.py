"""samples.jsonl: what the policy says during training, a few completions every so many iterations, with their rewards.

One JSON line a completion: `step`, `row` of the data, `prompt`, `completion`, `reward` (w·φ), `phi` by name, `coef` and `z` of
the person (null without people), `tokens`, `ended` (a stop token was produced), `canonical` (the tokens are the text's own
tokenisation, without which a compiled reward may differ from that of the text), `extra` (what reward functions logged).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.typing import ArrayLike

from rewards import jsonl
from rlhf.mesh import place as places
from rlhf.models.tokenizer import Tokenizer
from rlhf.phi.columns.arguments import jsonable
from rlhf.phi.reward import PromptRows
from rlhf.run import processes
from rlhf.run.directory import plain
from rlhf.train.rl.config import RLConfig
from rlhf.train.rl.prompts import PromptBatch
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.sources import Source

FILE = "samples.jsonl"


class Samples:
    """Writes entries; a resumed run leaves the file an uninterrupted one leaves."""

    def __init__(
        self, directory: Path, tokenizer: Tokenizer, source: Source, prompts: PromptRows, config: RLConfig
    ):
        self._path, self._tokenizer, self._source, self._prompts = (
            directory / FILE,
            tokenizer,
            source,
            prompts,
        )
        self._every, self._count = config.train.samples_every, config.train.sample_rows
        self._last = config.train.steps
        self._group, self._opened = config.rollout.completions, False
        self._skip_special_tokens = config.rollout.skip_special_tokens

    def take(
        self,
        batch: PromptBatch,
        rollout: Rollout,
        rewards: ArrayLike,
        extra: Mapping[str, Sequence[object]] | None = None,
    ) -> None:
        """Write rows of this iteration if it is its turn (the first, every `samples_every`-th, and the last)."""
        step = batch.number + 1
        if not self._opened:
            if processes.is_writer():
                self._drop_from(batch.number)
            self._opened = True
        if not self._every or (step % self._every and step not in (1, self._last)):
            return
        groups = rollout.mask.shape[0] // self._group
        chosen = self._group * np.unique(np.linspace(0, groups - 1, min(self._count, groups)).astype(int))
        picked = jax.tree.map(lambda leaf: leaf[chosen], (rollout._replace(rows=None), rewards))
        rows, phi = places.hosts(picked)
        if not processes.is_writer():
            return
        lines = []
        for place, row in enumerate(chosen):
            own = {name: values[row] for name, values in (extra or {}).items()}
            lines.append(self._line(step, batch, rows, phi, place, int(row), own))
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(lines))

    def _line(
        self,
        step: int,
        batch: PromptBatch,
        rows: Rollout,
        phi: np.ndarray,
        place: int,
        row: int,
        extra: dict[str, object],
    ) -> str:
        own = phi[place].sum(axis=0) if phi.ndim == 3 else phi[place]
        ids = rows.tokens[place, -rows.mask.shape[1] :][rows.mask[place]].tolist()
        ended = bool(rows.ended[place])
        said = ids[:-1] if ended else ids
        text = self._tokenizer.decode(said)
        prompt = int(batch.index[row])
        entry = {
            "step": step,
            "row": int(self._prompts.row[prompt]),
            "prompt": jsonl.prompt_value(self._prompts.prompts[prompt]),
            "completion": text
            if self._skip_special_tokens
            else self._tokenizer.decode(said, skip_special_tokens=False),
            "reward": float(own @ rows.coef[place]),
            "phi": dict(zip(self._source.names, own.tolist(), strict=True)),
            "coef": rows.coef[place].tolist(),
            "z": None if rows.z is None else rows.z[place].tolist(),
            "tokens": len(ids),
            "ended": ended,
            "canonical": self._tokenizer.encode_completion(text)[:-1] == said,
        }
        if extra:
            entry["extra"] = {name: jsonable(value) for name, value in extra.items()}
        return jsonl.line(plain(entry))

    def _drop_from(self, start: int) -> None:
        """Forget what a killed session wrote after the checkpoint it is resumed from."""
        if not self._path.is_file():
            return
        rows = (row for _, row in jsonl.whole_lines(self._path))
        jsonl.write(
            self._path, [row for row in rows if isinstance(row, dict) and row.get("step", 0) <= start]
        )
