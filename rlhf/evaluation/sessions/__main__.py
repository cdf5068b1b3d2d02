"""The command: people over sessions of one reward run, as JSON and as a page.

python -m rlhf.evaluation.sessions REWARDS [--policy RUN] [--people 20 --sessions 6 --answers 5 --changed 4] --output DIR
python -m rlhf.evaluation.sessions REWARDS --replay --answers 5 --output DIR
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import rewards
from rewards.api.fitted import FittedRewards
from rewards.errors import UserError
from rewards.files import JSONObject, write_json, write_text
from rlhf.evaluation.sessions.run import replayed, run, simulated
from rlhf.policy import store as policy_store
from rlhf.run.folder import check_own

FILE, PAGE = "sessions.json", "sessions.md"


def page(result: JSONObject, said: str) -> str:
    """sessions.md."""
    lines = ["# People over sessions", "", said]
    for group, sessions in result["groups"].items():
        names = [name for name in sessions[0] if name != "people"]
        lines += ["", f"## {group.capitalize()}", "", f"| session | people | {' | '.join(names)} |"]
        lines.append("| --- " * (len(names) + 2) + "|")
        for number, row in enumerate(sessions, 1):
            lines.append(
                f"| {number} | {row['people']} | {' | '.join(f'{row[name]:.3g}' for name in names)} |"
            )
    lines += [
        "",
        "Means over people; what the columns mean stands at the head of `rlhf/evaluation/sessions/run.py`.",
        "",
    ]
    lines += [
        f"## {result['claims']} claims, {result['claims_without_evidence']} of them without evidence",
        "",
    ]
    for person in result["persons"]:
        for claim in person["claims"]:
            number = f"{claim['coefficient']:+.2f} ± {claim['sd']:.2f}, {claim['side']} the average {claim['average']:+.2f}"
            answers = f"{claim['answers_for']} answers for it, {claim['answers_against']} against"
            lines.append(f"- {person['name']}, {claim['axis']}: {number}; {answers}.")
            lines += [
                f"  - session {one['session']}, {one['shift']:+.2f}: {one['preferred']!r} rather than {one['to']!r}"
                for one in claim["strongest"][:1]
            ]
    return "\n".join([*lines, ""]).encode("utf-8", "replace").decode("utf-8")


def _z_of(policy: str, fitted: FittedRewards) -> Callable[[np.ndarray], np.ndarray]:
    loaded = policy_store.load_policy(policy)
    if loaded.gate is None or loaded.record["basis"] != fitted.basis.hash:
        raise UserError(
            f"--policy {policy}: was not trained with the rewards {fitted.directory}; give a policy of theirs"
        )
    return lambda coef: np.asarray(policy_store.coefficients_to_z(loaded, coef))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m rlhf.evaluation.sessions",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rewards", help="reward run")
    parser.add_argument("--policy", help="a policy trained with it")
    parser.add_argument("--output", required=True, help=f"folder for {FILE} and {PAGE}")
    parser.add_argument(
        "--replay", action="store_true", help="people with a record, instead of simulated ones"
    )
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--answers", type=int, default=5, help="of each person in a session")
    parser.add_argument(
        "--changed", type=int, help="session from which every second simulated person has another taste"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    try:
        for name in ("people", "sessions", "answers"):
            if getattr(args, name) < 1:
                raise UserError(f"--{name} {getattr(args, name)}: give at least 1")
        check_own(args.output, FILE, "sessions")
        fitted = rewards.load(args.rewards)
        people = (
            replayed(fitted)
            if args.replay
            else simulated(fitted, args.people, args.sessions, args.changed, args.seed)
        )
        z_of = None if args.policy is None else _z_of(args.policy, fitted)
        result = run(fitted, people, args.sessions, args.answers, args.seed, z_of)
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, result)
        kind = "replayed" if args.replay else "simulated"
        said = f"{len(people)} {kind} people, {args.answers} answers in a session, seed {args.seed}."
        if args.changed is not None and not args.replay:
            said += f" From session {args.changed} on every second one has somebody else's taste."
        write_text(folder / PAGE, page(result, said))
        print(folder / PAGE)
    except UserError as error:
        print(f"sessions: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
