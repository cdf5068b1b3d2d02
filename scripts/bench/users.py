"""How fast are the posteriors of many people, against one scikit-learn fit a person?

    python scripts/bench/users.py [--people 100000] [--answers 40] [--num-basis 8] [--compared 1000]

Both solve the same problem: with prior N(0, I) the posterior mode is ridge logistic regression without intercept,
`LogisticRegression(C=1, fit_intercept=False)` with its default solver (L-BFGS). scikit-learn is timed on `--compared`
people, before and after, by processor time on one thread (kind to it on a busy machine), the faster of both scaled
up; Chorus on all of them by wall time, the first call with compilation. Writes scripts/bench/results/users.json.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from rewards.basis import users
from rewards.basis.belief import Belief
from scripts.bench import machine


def make(people: int, answers: int, num_basis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whose answer each row is, Δφ, and Bradley–Terry outcomes of people w ~ N(0, I)."""
    rng = np.random.default_rng(0)
    coef = rng.normal(size=(people, num_basis)).astype(np.float32)
    delta = rng.standard_normal((people * answers, num_basis), np.float32)
    user = np.repeat(np.arange(people), answers)
    margin = np.einsum("unk,uk->un", delta.reshape(people, answers, num_basis), coef).ravel()
    return user, delta, (rng.random(len(margin)) < 1 / (1 + np.exp(-margin))).astype(np.float32)


def scikit_learn(
    delta: np.ndarray, outcome: np.ndarray, people: int, answers: int
) -> tuple[float, np.ndarray]:
    """Seconds and coefficients of a loop over people; those of one opinion only cannot be fitted and cost nothing."""
    coef = np.full((people, delta.shape[1]), np.nan)
    start = time.process_time()
    for person in range(people):
        rows = slice(person * answers, (person + 1) * answers)
        if 0 < outcome[rows].sum() < answers:
            coef[person] = (
                LogisticRegression(C=1.0, fit_intercept=False).fit(delta[rows], outcome[rows]).coef_[0]
            )
    return time.process_time() - start, coef


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--num-basis", type=int, default=8)
    parser.add_argument("--compared", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "users.json")
    args = parser.parse_args()
    user, delta, outcome = make(args.people, args.answers, args.num_basis)
    prior = Belief.from_cov(np.zeros(args.num_basis, np.float32), np.eye(args.num_basis, dtype=np.float32))
    data_mib = (user.nbytes + delta.nbytes + outcome.nbytes) / 2**20
    with threadpool_limits(1):  # threads only slow down problems this small
        before, coef = scikit_learn(delta, outcome, args.compared, args.answers)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        mean, _ = users.posteriors(prior, user, delta, outcome, num_users=args.people)
        seconds.append(time.perf_counter() - start)
    with threadpool_limits(1):
        after, _ = scikit_learn(delta, outcome, args.compared, args.answers)
    reference = min(before, after) * args.people / args.compared
    result = {
        "people": args.people,
        "answers": args.answers,
        "num_basis": args.num_basis,
        "seconds_first_call": seconds[0],
        "seconds": min(seconds[1:]),
        "people_per_second": args.people / min(seconds[1:]),
        "scikit_learn_people": args.compared,
        "scikit_learn_seconds": [before, after],
        "scikit_learn_seconds_scaled": reference,
        "times_faster": reference / min(seconds[1:]),
        "times_faster_with_compilation": reference / seconds[0],
        "largest_difference_of_coefficients": float(np.nanmax(np.abs(mean[: args.compared] - coef))),
        "data_mib": data_mib,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    machine.report(args.out, result)


if __name__ == "__main__":
    main()
