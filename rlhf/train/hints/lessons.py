"""Hints in `chorus train ppo|grpo`: rows that people's hints give, as a further term of the loss at every optimiser step.

A hint is what somebody said about a completion. Where `rl.hint_gate` lets it teach, the policy of the run's start re-reads
the completion after the hinted prompt and teaches the policy that sees the prompt alone (`rl.hints`). Anchor rows are the
same prompts and completions read with other people's z, taught by the same policy without the hint. z = 0 needs no
such row: at z = 0 the conditioner, which alone the term may change, has no effect and no gradient.

OUTPUT/hints.jsonl holds a line a row: row, user_id, hint, class, phrase, distil, edits, reason, coef (the person's mean w), and
the sha256 of the row. A run that goes on takes all of it from there: people may have answered, or edited, meanwhile.

Shapes: H rows that teach, L slots (prompt | T completion slots), K basis outputs, P other people.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from rewards import hashed, jsonl
from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people.population import load_people
from rlhf.models.layout import HostOrDevice
from rlhf.policy.batches import batch_rows
from rlhf.policy.conditioning import Gate
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.store import Base
from rlhf.run.directory import Run
from rlhf.train.hints import loss as hints
from rlhf.train.hints import rows as rl_hint_rows
from rlhf.train.hints.config import HintsConfig
from rlhf.train.hints.loss import HintRows, HintTerm, Reading, TargetSpec
from rlhf.train.rl.config import RLConfig
from rlhf.train.rl.sources import Source

FILE = "hints.jsonl"
Lesson = tuple[Reading, Reading, HostOrDevice]
"""Rows as a student reads them, as the teacher does, and the mask of what was said."""
Spoken = tuple[Reading, HostOrDevice]
"""Rows as others read them, and that mask."""
TOP = 128  # tokens kept of a teacher: 1.5 kB a slot, where a vocabulary of 128,000 would take 1.5 MB


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What a run learns from hints.

    Attributes:
      entries: the lines of OUTPUT/hints.jsonl.
      student, teacher: how the H rows are read, without the hint and with it; NumPy. mask: bool[H, T].
      others: float32[P, K], z of the training people who teach nothing; with none of them, draws from N(0, I) are held.
      top: tokens kept of the teacher. gate: brings those draws within the rails.
    """

    config: HintsConfig
    seed: int
    entries: list[JSONObject]
    student: Reading
    teacher: Reading
    mask: np.ndarray
    others: np.ndarray
    top: int
    gate: Gate

    @property
    def taught(self) -> int:
        """Hinted rows of an iteration."""
        return min(self.config.rows_per_step, len(self.mask))

    @property
    def size(self) -> tuple[int, int]:
        """Rows beside every part of an update, and their slots."""
        return self.taught + self.config.anchor_rows, self.student.tokens.shape[1]

    def term(self, graphdef: nnx.GraphDef) -> HintTerm:
        """The term for a policy of this structure, as `RLProgram.extra` takes it."""
        return HintTerm(graphdef, self.mask.shape[1], TargetSpec(self.top))

    def rows(self, number: int, params: PolicyParams, term: HintTerm) -> HintRows:
        """The rows of iteration `number`, a function of (seed, number) alone and of one shape; `params` is the teacher."""
        pick = batch_rows(self.seed, number, len(self.mask), self.taught)
        own = (_take(self.student, pick), _take(self.teacher, pick), self.mask[pick])
        held = None
        if self.config.anchor_rows:
            again = pick[np.arange(self.config.anchor_rows) % len(pick)]
            held = (_take(self.student, again)._replace(z=self._others(number)), self.mask[again])
        own, held, coef = jax.device_put((own, held, np.float32(self.config.coef)))
        return _rows(params, own, held, coef, term=term)

    def _others(self, number: int) -> np.ndarray:
        """z of those who are held in an iteration, float32[anchor_rows, K]."""
        assert self.student.z is not None
        rng, num_rows = np.random.default_rng([self.seed, number]), self.config.anchor_rows
        if not len(self.others):
            noise = rng.normal(size=(num_rows, self.student.z.shape[1])).astype(np.float32)
            return np.asarray(self.gate.drawn(noise))
        return self.others[rng.integers(len(self.others), size=num_rows)]

    def write(self, directory: Path) -> None:
        """Write OUTPUT/hints.jsonl."""
        jsonl.write(directory / FILE, map(hashed.with_hash, self.entries))


def _take(reading: Reading, rows: np.ndarray) -> Reading:
    return jax.tree.map(lambda leaf: leaf[rows], reading)


@functools.partial(jax.jit, static_argnames="term")
def _rows(
    params: PolicyParams, own: Lesson, held: Spoken | None, coef: jax.Array, *, term: HintTerm
) -> HintRows:
    """Hinted rows and anchors. The completions are of the past, from no policy that is known, so no ratio counts."""
    student, teacher, mask = own
    key = jax.random.key(0)  # of draws from the rest, which are not made here
    parts = [hints.hint_rows(params, student, teacher, mask, None, coef, key, term=term)]
    if held is not None:
        reading, spoken = held
        parts.append(hints.anchor_rows(params, reading, spoken, coef, key, term=term))
    return hints.join(parts)


def prepare(config: RLConfig, job: Run, base: Base, source: Source) -> Lessons:
    """Read and judge the hints of a run, and say on stderr what becomes of them; writes nothing.

    Raises:
      UserError: a bad row (which, its field, the value, the fix); no row that teaches; a `top` above the vocabulary; rows
        other than those that a run in progress started with.
    """
    run, wanted, vocab = source.run, config.hints, base.config.vocab_size
    if not isinstance(run, RewardRun):
        raise UserError("hints: the rewards are in memory only; save them and give their directory")
    assert wanted is not None, "a run without hints prepares none"
    if wanted.top is not None and wanted.top > vocab:
        raise UserError(
            f"hints.top: {wanted.top} exceeds the vocabulary of {vocab} tokens; lower it or set it to null"
        )
    gate = Gate.of(run.prior, config.kl.coef, config.rail.eta, run.rails)

    def z_of(coef: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
        """z[…, K] of people's coefficients, shrunk as those of the rollout are."""
        return np.asarray(gate(np.asarray(coef, np.float32)), np.float32)

    rows, path = rl_hint_rows.read(wanted.path, run, base, config.rollout), job.directory / FILE
    if job.resumed and any((job.directory / "checkpoints").glob("*/COMPLETE")):
        entries = rl_hint_rows.as_started(rows, path, wanted.path)
    else:
        entries = [rl_hint_rows.judge(row, run, z_of) for row in rows]
    pairs = [(row, entry) for row, entry in zip(rows, entries, strict=True) if entry["distil"]]
    if not pairs:
        raise UserError(f"{wanted.path}: {rl_hint_rows.why_none(entries, run)}")
    rl_hint_rows.announce(entries, run, wanted.path, path)

    teaching, z = [row for row, _ in pairs], z_of([entry["coef"] for _, entry in pairs])
    mask = np.zeros((len(pairs), config.rollout.max_new_tokens), bool)
    completions, none = np.zeros(mask.shape, np.int32), [[]] * len(pairs)
    for place, row in enumerate(teaching):
        mask[place, : len(row.completion)] = True
        completions[place, : len(row.completion)] = row.completion
    people, taught = load_people(run), {row.user_id for row in teaching}
    others = [
        belief.mean
        for user_id, belief in zip(people.user_ids, people.posteriors, strict=True)
        if user_id not in taught
    ]
    return Lessons(
        wanted,
        config.seed,
        entries,
        hints.with_hint([row.prompt for row in teaching], none, completions, z),
        hints.with_hint([row.hinted for row in teaching], none, completions, z),
        mask,
        z_of(others) if others else np.zeros((0, z.shape[1]), np.float32),
        min(TOP, vocab) if wanted.top is None else wanted.top,
        gate,
    )
