"""`rlhf.evaluate`: does a policy serve the people it has never seen better than it would serve anybody?"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rewards.api.fitted import FittedRewards
from rewards.api.reading import PreferenceSet
from rewards.data.read import require_people
from rewards.errors import UserError
from rewards.files import JSONObject, write_text
from rewards.types import Preferences
from rlhf.api.policies import Policy
from rlhf.api.settings import configuration
from rlhf.evaluation.config import EvaluateConfig
from rlhf.evaluation.policy import Judged, judge, write_report
from rlhf.report.page import FILE
from rlhf.report.verdict import evaluation_verdict
from rlhf.run.directory import plain

SHOWN = (
    "own_reward",
    "aggregate_reward",
    "swapped_reward",
    "reference_reward",
    "diagonal_dominance",
    "own_beats_aggregate",
    "kl_to_optimum",
    "kl_to_reference",
)


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """What a policy does for people; its first line says whether personalisation helped, and may say no.

    Attributes:
      status: "won", "lost" or "unknown". verdict: a few sentences.
      people: who was evaluated. matrix: float64[U, U] nats; row u, column v: what u gets, by u's own taste, from the
        policy made for v. texts: what each person was told.
      sampled, enumerated: figures by name (docs/metrics.md): of sampled answers, and exact ones over the known answers.
    """

    status: str
    verdict: str
    people: tuple[str, ...]
    matrix: Float[np.ndarray, "U U"]
    texts: tuple[tuple[str, ...], ...]
    sampled: dict[str, float]
    enumerated: dict[str, float]
    _judged: Judged

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one self-contained page."""
        path = Path(path)
        write_text(path, self._page())
        return path

    def __repr__(self) -> str:
        figures = self.enumerated or self.sampled
        lines = [f"  {name:<20} {figures[name]:.3f}" for name in SHOWN if name in figures]
        return "\n".join([self.verdict, f"  people               {len(self.people)}", *lines])

    def _repr_html_(self) -> str:
        return f"<pre>{self!r}</pre>"

    def _page(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            write_report(Path(folder), plain(self._judged.figures), self._judged)
            return (Path(folder) / FILE).read_text(encoding="utf-8")


def evaluate(
    policy: Policy,
    rewards: FittedRewards,
    prefs: Preferences | PreferenceSet,
    *,
    seed: int = 0,
    **keys: object,
) -> Evaluation:
    """Ask held-out people a few of their own recorded questions, and judge what the policy then says to them.

    Args:
      policy: conditioned on the coefficients of `rewards`.
      prefs: comparisons of people whom neither has seen, `rewards.read(...).held_out`.
      seed: of questions and sampling.
      keys: of `chorus evaluate`: `users={"count": 20, "answers": 10}`, `sampling={"num_samples": 4}`,
        `enumerate=False` where the data's completions are not the whole answer space, `last_choices=3`.
    Raises:
      UserError: a policy for everybody, other rewards, fewer than two people, or an encoder that reads no new texts.
    """
    held = prefs.held_out if isinstance(prefs, PreferenceSet) else prefs
    require_people(held, "rlhf.evaluate")
    if policy.loaded.gate is None:
        raise UserError("evaluate: this policy was trained without users; there is nobody to compare")
    if policy.loaded.record["basis"] != rewards.basis.hash:
        raise UserError("evaluate: this policy was trained with other rewards; give those")
    base = policy.loaded.base
    defaults = {
        "seed": seed,
        "output_dir": "memory",
        "data.path": "memory",
        "model.name": base.name,
        "policy": "memory",
        "rewards": "memory",
    }
    config = configuration(EvaluateConfig, "evaluate", defaults, keys)
    # Trained adapters leave the model underneath as it was; otherwise it is read again.
    reference = None if policy.loaded.record.get("full") else base
    everybody = np.ones(held.num_comparisons, bool)
    judged = judge(config, policy.loaded, rewards.basis, held, everybody, reference)
    verdict = evaluation_verdict(plain(judged.figures), judged.matrix)
    return Evaluation(
        verdict.status,
        verdict.text,
        tuple(judged.people.user_ids),
        np.asarray(judged.matrix, np.float64),
        tuple(map(tuple, judged.texts)),
        _numbers(judged.figures["sampled"]),
        _numbers(judged.figures.get("enumerated", {})),
        judged,
    )


def _numbers(figures: JSONObject) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
