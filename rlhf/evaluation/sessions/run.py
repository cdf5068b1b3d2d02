"""People over several sessions: what is claimed of them, from which answers, and what drifts.

Simulated people have coefficients w* from the population and answer the questions that are asked, P(first) = σ(w*·δ); from
session `changed` on every second one has somebody else's. Replayed people are those with a record, whose answers come again
in their order; nothing is written to their records. After every session:

    claim        an axis on which somebody is said to be unlike the average: |m − μ| ≥ 2 posterior standard deviations
    evidence     of a claim, answer by answer: m with all answers less m without this one, along the axis
    moved        |m_t − m_{t−1}| in the posterior standard deviations before the session, root mean square over axes
    distance     |m − w*| in the population's standard deviations, root mean square over axes (simulated people)
    z moved      |z_t − z_{t−1}| of what the policy is given, through its own gate (with a policy)

Letters in shapes: K axes, S sessions, n answers.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rewards.api.fitted import FittedRewards
from rewards.basis import users
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import edits, pool, records
from rewards.people.answers import Answer, UserRecord

SURE = 2.0
"""Posterior standard deviations from the average that make a claim."""
SHOWN = 3
"""Answers quoted for a claim."""


@dataclasses.dataclass(frozen=True)
class Somebody:
    """Who answers.

    Attributes:
      name: as shown. truth: float64[S, K] true coefficients in each session; None where nobody knows.
      said: answers that come again, in order; None where questions are asked. record: where they come from.
      group: with whom they are averaged.
    """

    name: str
    truth: np.ndarray | None = None
    said: tuple[Answer, ...] | None = None
    record: UserRecord | None = None
    group: str = "everybody"


def simulated(
    fitted: FittedRewards, people: int, sessions: int, changed: int | None, seed: int
) -> list[Somebody]:
    """Drawn from the population; from session `changed` on every second one is somebody else."""
    rng, prior = np.random.default_rng(seed), fitted.prior
    covariance = np.linalg.inv(np.asarray(prior.precision, np.float64))
    drawn = rng.multivariate_normal(np.asarray(prior.mean, np.float64), covariance, (people, 2))
    found = []
    for number, (first, second) in enumerate(drawn):
        moves = changed is not None and number % 2 == 1
        truth = [
            second if moves and changed is not None and t >= changed else first
            for t in range(1, sessions + 1)
        ]
        group = "taste changes" if moves else "taste stays"
        found.append(Somebody(f"simulated {number + 1}", np.array(truth), group=group))
    return found


def replayed(fitted: FittedRewards) -> list[Somebody]:
    """Everybody with a record who has answered.

    Raises:
      UserError: nobody has.
    """
    found = [(name, fitted.person(name).record) for name in fitted.book.names()]
    people = [Somebody(name, said=record.answers, record=record) for name, record in found if record.answers]
    if not people:
        raise UserError(f"{fitted.directory}: nobody with answers has a record there; leave --replay out")
    return people


def run(
    fitted: FittedRewards,
    people: Sequence[Somebody],
    sessions: int,
    answers: int,
    seed: int,
    z_of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> JSONObject:
    """All sessions of all people; `z_of` gives what a policy is told of coefficients [K]."""
    rng = np.random.default_rng(seed)
    persons = [_person(fitted, one, sessions, answers, rng, z_of) for one in people]
    groups: dict[str, list[list[JSONObject]]] = {}
    for one, found in zip(people, persons, strict=True):
        groups.setdefault(one.group, []).append(found["sessions"])
    return {
        "axes": list(fitted.axes),
        "answers_per_session": answers,
        "groups": {name: _means(rows) for name, rows in groups.items()},
        "claims": sum(len(one["claims"]) for one in persons),
        "claims_without_evidence": sum(
            not claim["answers_for"] for one in persons for claim in one["claims"]
        ),
        "persons": persons,
    }


def _person(
    fitted: FittedRewards,
    one: Somebody,
    sessions: int,
    answers: int,
    rng: np.random.Generator,
    z_of: Callable[[np.ndarray], np.ndarray] | None,
) -> JSONObject:
    record = records.new_record(fitted.basis, one.name)
    if one.record is not None:  # what they stated themselves holds from the beginning
        record = records.with_events(fitted.basis, record, edits=one.record.edits)
    rows: list[JSONObject] = []
    claims: dict[int, int] = {}
    for t in range(sessions):
        before = record
        record = _session(fitted, one, t, record, answers, rng)
        if len(record.answers) == len(before.answers):
            break  # everything has been answered
        now = _claims(fitted, record)
        rows.append(_row(fitted, one, t, before, record, claims, now, z_of))
        claims = now
    return {
        "name": one.name,
        "group": one.group,
        "sessions": rows,
        "claims": evidence(fitted, record, claims, answers),
    }


def _session(
    fitted: FittedRewards, one: Somebody, t: int, record: UserRecord, count: int, rng: np.random.Generator
) -> UserRecord:
    if one.said is not None:
        return records.with_events(fitted.basis, record, answers=one.said[t * count : (t + 1) * count])
    assert one.truth is not None, "somebody simulated"
    for _ in range(count):
        index = pool.next_question(fitted.basis, record, fitted.questions, "information")
        if index is None:
            return record
        question = fitted.questions[index]
        first = rng.random() < 1 / (1 + np.exp(-np.dot(one.truth[t], question.delta_features)))
        answer = pool.answer_to(question, "first" if first else "second")
        record = records.with_events(fitted.basis, record, answers=[answer])
    return record


def _claims(fitted: FittedRewards, record: UserRecord) -> dict[int, int]:
    """Axis → +1 or −1, which side of the average somebody is said to be on."""
    away = np.asarray(record.posterior.mean) - np.asarray(fitted.prior.mean)
    sure = np.abs(away) >= SURE * np.asarray(record.posterior.sd)
    return {int(axis): int(np.sign(away[axis])) for axis in np.flatnonzero(sure)}


def _row(
    fitted: FittedRewards,
    one: Somebody,
    t: int,
    before: UserRecord,
    after: UserRecord,
    claimed: dict[int, int],
    claims: dict[int, int],
    z_of: Callable[[np.ndarray], np.ndarray] | None,
) -> JSONObject:
    mean, was = np.asarray(after.posterior.mean, np.float64), np.asarray(before.posterior.mean, np.float64)
    row: JSONObject = {
        "answers": len(after.answers),
        "moved": _size((mean - was) / np.asarray(before.posterior.sd)),
        "claims": len(claims),
        "withdrawn": sum(claims.get(axis) != side for axis, side in claimed.items()),
    }
    if one.truth is not None:
        away = one.truth[t] - np.asarray(fitted.prior.mean)
        row["distance"] = _size((mean - one.truth[t]) / np.asarray(fitted.prior.sd))
        row["true_claims"] = sum(bool(np.sign(away[axis]) == side) for axis, side in claims.items())
    if z_of is not None:
        row["z_moved"] = float(np.linalg.norm(z_of(mean) - z_of(was)))
    return row


def evidence(
    fitted: FittedRewards, record: UserRecord, claims: dict[int, int], per_session: int
) -> list[JSONObject]:
    """Every claim with the answers that make it, the strongest first, by leaving each out."""
    n = len(record.answers)
    if not claims or n == 0:
        return []
    delta = np.array([answer.delta_features for answer in record.answers], np.float32)
    outcomes = np.array([answer.outcome for answer in record.answers], np.float32)
    kept = np.flatnonzero(~np.eye(n, dtype=bool).ravel()) % n  # all but one, n times
    without, _ = users.posteriors(
        edits.apply(fitted.prior, record.edits),
        np.repeat(np.arange(n), n - 1),
        delta[kept],
        outcomes[kept],
        num_users=n,
        lapse=fitted.basis.lapse,
    )
    shift = np.asarray(record.posterior.mean)[None] - without  # [n, K]
    found = []
    for axis, side in claims.items():
        own = shift[:, axis] * side
        order = np.argsort(-own, kind="stable")
        found.append(
            {
                "axis": fitted.axes[axis],
                "side": "above" if side > 0 else "below",
                "coefficient": float(record.posterior.mean[axis]),
                "average": float(fitted.prior.mean[axis]),
                "sd": float(record.posterior.sd[axis]),
                "answers_for": int(np.sum(own > 0)),
                "answers_against": int(np.sum(own < 0)),
                "strongest": [
                    _quoted(record.answers[i], int(i), per_session, float(own[i]))
                    for i in order[:SHOWN]
                    if own[i] > 0
                ],
            }
        )
    return found


def _quoted(answer: Answer, place: int, per_session: int, shift: float) -> JSONObject:
    first = answer.outcome >= 0.5
    texts = (answer.chosen, answer.rejected) if first else (answer.rejected, answer.chosen)
    return {
        "session": place // per_session + 1,
        "preferred": texts[0],
        "to": texts[1],
        "shift": shift,
    }


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _means(persons: Sequence[Sequence[JSONObject]]) -> list[JSONObject]:
    """Session by session over the people who came to it."""
    found = []
    for t in range(max(map(len, persons))):
        rows = [sessions[t] for sessions in persons if len(sessions) > t]
        found.append(
            {"people": len(rows)} | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        )
    return found
