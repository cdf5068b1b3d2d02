"""A person's card: what is held about them, axis by axis, and the answers and statements that each number comes from.

At the optimum the posterior's gradient is zero, so a person's distance from the population is a sum over what they said:

    m − μ = Σ_i Σ v_i s_i + Σ_e Σ d_e (b_e − d_e·m) / sd_e²

with v_i = Δφ of answer i and s_i = ∂ log P(answer i)/∂(m·v_i), and statement e: d_e·w = b_e ± sd_e. The terms are exact, not
a linearisation; Σ is the population's covariance. What newton left undone is `rest`, near 0.

Letters in shapes: n answers, E statements, K basis outputs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rewards.basis import likelihood
from rewards.basis.store import RewardRun
from rewards.files import JSONObject, sha256_json
from rewards.people.edits import Edit
from rewards.people.record_json import to_json
from rewards.people.records import UserRecord
from rewards.types import Prompt


class Contributions(NamedTuple):
    """answers: [n, K]; edits: [E, K], of the statements that count; rest: [K]; their sum is m − μ."""

    answers: Float[np.ndarray, "n K"]
    edits: Float[np.ndarray, "E K"]
    rest: Float[np.ndarray, " K"]


def counting_edits(record: UserRecord) -> list[Edit]:
    """The latest statement of each name."""
    return list({edit.name: edit for edit in record.edits}.values())


def contributions(run: RewardRun, record: UserRecord) -> Contributions:
    """What every answer and statement does to every coefficient; see above."""
    mean, cov = np.asarray(record.posterior.mean, np.float64), np.asarray(run.prior.cov, np.float64)
    size = len(mean)
    delta = np.array([answer.delta_features for answer in record.answers], np.float64).reshape(-1, size)
    outcome = np.array([answer.outcome for answer in record.answers], np.float32)
    _, score, _ = likelihood.value_score_information(
        (delta @ mean).astype(np.float32), outcome, np.float32(run.lapse)
    )
    answers = (np.asarray(score, np.float64)[:, None] * delta) @ cov
    parts = [
        np.array(edit.direction) * (edit.value - np.array(edit.direction) @ mean) / edit.sd**2 @ cov
        for edit in counting_edits(record)
    ]
    edits = np.array(parts).reshape(-1, size)
    rest = mean - np.asarray(run.prior.mean, np.float64) - answers.sum(axis=0) - edits.sum(axis=0)
    return Contributions(answers, edits, rest)


def provenance(record: UserRecord) -> JSONObject:
    """What a use of these coefficients rests on: a hash of the record, its answers by question, its statements."""
    return {
        "record": sha256_json(to_json(record)),
        "answers": [answer.key for answer in record.answers],
        "edits": [edit.name for edit in counting_edits(record)],
    }


def reasons(run: RewardRun, record: UserRecord, axis: int, most: int = 3) -> list[JSONObject]:
    """The answers and statements that move one coefficient most, in nats, in the order of their weight."""
    found = contributions(run, record)
    rows = [
        {
            "kind": "answer",
            "number": number,
            "prompt": _words(answer.prompt),
            "preferred": answer.chosen if answer.outcome >= 0.5 else answer.rejected,
            "other": answer.rejected if answer.outcome >= 0.5 else answer.chosen,
            "tie": answer.outcome == 0.5,
            "time": answer.time,
            "moves": float(moves),
        }
        for number, (answer, moves) in enumerate(zip(record.answers, found.answers[:, axis], strict=True), 1)
    ]
    rows += [
        {"kind": "statement", "text": edit.text, "time": edit.time, "moves": float(moves)}
        for edit, moves in zip(counting_edits(record), found.edits[:, axis], strict=True)
    ]
    return sorted(rows, key=lambda row: -abs(row["moves"]))[:most]


def _words(prompt: Prompt) -> str:
    """The last message of a prompt."""
    return prompt if isinstance(prompt, str) else prompt[-1][1]
