"""Kill and interrupt commands at random instants, let them finish, and count what came out: docs/results/interruptions.*

    python scripts/faults/interrupt.py kills --rounds 200     # SIGKILL; the same numbers, reports, nothing left over?
    python scripts/faults/interrupt.py signals --rounds 100   # SIGTERM, SIGINT, SIGHUP, alone, doubled, in a row
    python scripts/faults/interrupt.py --write                # the page again from the stored counts

Every command works on the tiny model of tests/golden/old_runs. Half of the instants are uniform over the time of an
undisturbed run, imports included; the other half follow a change of the run directory's files, so that writing is hit
more often than chance would. Rounds add to the stored counts (`--fresh` forgets them); a failure is kept with its words.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # this checkout is what is tried

import page  # noqa: E402
from runs import COMMANDS, Changes, Ended, World, preload  # noqa: E402

KILLS_IN_A_ROW = 3
WHOLE = 0.4
"""Share of interrupted processes that import everything themselves, as a command does; the others are forks of one that has."""
SIGNALS: dict[str, tuple[int, ...]] = {
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGHUP": (signal.SIGHUP,),
    "SIGTERM twice": (signal.SIGTERM, signal.SIGTERM),
    "SIGTERM, then SIGINT": (signal.SIGTERM, signal.SIGINT),
    "five SIGINT": (signal.SIGINT,) * 5,
}


def instant(world: World, name: str, rng: random.Random, *, whole: bool = False) -> float | Changes:
    """When a command is hit: at a random time (of imports, too, where it does them), or after a random change of its files."""
    if whole or rng.random() < 0.5:
        return rng.uniform(0.0, 1.1 * world.seconds[name] + (world.imports if whole else 0.0))
    return Changes(rng.randint(1, max(1, world.changes[name])))


def kill_round(world: World, name: str, rng: random.Random) -> dict[str, Any]:
    """Kill a command up to three times, let it finish, compare."""
    world.forget(name)
    kills, ends, ended = 0, [], None
    for _ in range(rng.randint(1, KILLS_IN_A_ROW)):
        ended = world.run(name, [(instant(world, name, rng), signal.SIGKILL)])
        if ended.status != 128 + signal.SIGKILL:
            break
        kills += 1
    if ended is None or ended.status == 128 + signal.SIGKILL:
        ended = world.run(name)
        ends.append(ended)
    return {"command": name, "kills": kills, "ends": len(ends) or 1} | finish(world, name, ended)


def signal_round(world: World, name: str, kind: str, rng: random.Random) -> dict[str, Any]:
    """Interrupt a command, see how it ends, run it again to its end, compare."""
    world.forget(name)
    whole = rng.random() < WHOLE
    when, numbers = instant(world, name, rng, whole=whole), SIGNALS[kind]
    # A person's second Ctrl-C comes after some tenths of a second; a script's at once.
    plan = [(when, numbers[0]), *((rng.choice((0.0, 0.02, 0.3)), number) for number in numbers[1:])]
    ended = world.run(name, plan, forked=not whole)
    found: dict[str, Any] = {
        "command": name,
        "signals": kind,
        "status": ended.status,
        "ends": 1,
        "whole": whole,
    }
    found["seconds_after"] = round(ended.after, 2)
    problems = []
    if ended.status == 0:
        found["late"] = True
    elif ended.status is None:
        problems.append("hung")
    elif ended.status not in {128 + number for number in numbers}:
        problems.append(f"status {ended.status}")
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        problems.append("traceback")
    if len(numbers) == 1 and ended.status not in (0, None):
        found["steps"], found["checkpoint"] = world.steps(name), world.checkpoint(name)
        if name in ("sft", "dpo", "grpo", "ppo") and found["steps"] > found["checkpoint"]:
            problems.append(f"{found['steps']} steps, checkpoint {found['checkpoint']}")
    again = ended if ended.status == 0 else world.run(name)
    found["ends"] += ended.status != 0
    after = finish(world, name, again)
    if problems:
        after["problem"] = "; ".join([*problems, *filter(None, [after.get("problem")])])
        after["words"] = ended.err[-6000:]
    return found | after


def finish(world: World, name: str, ended: Ended) -> dict[str, Any]:
    """What there is to say about a command that was to finish."""
    if ended.status is None:
        return {"problem": "hung", "words": ended.err[-20000:]}
    if ended.status != 0:
        return {"problem": f"resumed to status {ended.status}", "words": ended.err[-6000:]}
    different = world.differences(name, ended)
    return {"problem": f"different: {', '.join(different[:5])}"} if different else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="?", choices=["kills", "signals"])
    parser.add_argument("--rounds", type=int, default=20, help="kills, or rounds of signals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--folder", type=Path, help="work here instead of in a temporary folder")
    parser.add_argument("--compiled", type=Path, help="JAX's cache of compiled programs")
    parser.add_argument("--out", type=Path, default=page.PATH)
    parser.add_argument("--fresh", action="store_true", help="forget the counts of earlier calls")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if not args.write:
        with tempfile.TemporaryDirectory() as temporary:
            run(
                args,
                World(
                    args.folder or Path(temporary),
                    every=1 if args.kind == "kills" else 100,
                    compiled=args.compiled,
                ),
            )
    page.write(args.out)


def run(args: argparse.Namespace, world: World) -> None:
    preload()
    rng, end = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    for name in args.only:
        world.make(name)
    if args.kind == "signals":
        first = args.only[0]
        world.forget(first)
        world.imports = world.run(first, forked=False).seconds - world.seconds[first]
        world.restore(first)
    done, number, seen = 0, 0, Counter()
    while done < args.rounds and time.monotonic() < end:
        name = args.only[number % len(args.only)]
        if args.kind == "kills":
            found = kill_round(world, name, rng)
            done += found["kills"]
        else:
            kinds = list(SIGNALS)
            found = signal_round(world, name, kinds[(number // len(args.only) + number) % len(kinds)], rng)
            done += "late" not in found
        number += 1
        if "problem" in found:
            world.restore(name)
        seen[found.get("problem", "as it should be")[:60]] += 1
        page.add(args.out, args.kind, [found], fresh=args.fresh and number == 1)
        print(done, found | ({"words": "…"} if "words" in found else {}), flush=True)
    print(dict(seen))


if __name__ == "__main__":
    main()
