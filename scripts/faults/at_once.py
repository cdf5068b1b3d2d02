"""Many `users update` of one person at once, with overlapping rows: each answer counts once. docs/results/interruptions.*

python scripts/faults/at_once.py --processes 50 --rounds 2
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # this checkout is what is tried

import page  # noqa: E402
from runs import Forked, World, preload  # noqa: E402

ROWS, EACH = 20, 10  # different answers, and rows of every file


def rows() -> list[dict[str, str]]:
    """Different questions, each answered once."""
    pairs = [(a, b) for a in range(8) for b in range(a)][:ROWS]
    return [
        {"prompt": "Which ?", "chosen": f"item {a}", "rejected": f"item {b}", "user_id": "ada"}
        for a, b in pairs
    ]


def update(world: World, person: str, answers: Path, number: int) -> Forked:
    words = ["users", "update", person, "--rewards", "runs/rewards", "--answers", str(answers), "--json"]
    with (
        (world.folder / f"out-{number}.txt").open("wb") as out,
        (world.folder / f"err-{number}.txt").open("wb") as err,
    ):
        return Forked(words, world.folder, world.environment(), out.fileno(), err.fileno())


def round_of(world: World, processes: int, number: int) -> dict[str, Any]:
    person, given = f"ada {number}", rows()
    files = []
    for index in range(processes):
        path = world.folder / f"answers-{index}.jsonl"
        part = [given[(7 * index + i) % ROWS] | {"user_id": person} for i in range(EACH)]
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        files.append(path)
    started = [update(world, person, path, index) for index, path in enumerate(files)]
    statuses = [process.wait(600) for process in started]
    problems = [f"status {status}" for status in statuses if status]
    added = sum(result(world, index)["added"] for index, status in enumerate(statuses) if not status)
    (world.folder / "all.jsonl").write_text(
        "".join(json.dumps(row | {"user_id": f"whole {number}"}) + "\n" for row in given)
    )
    if update(world, f"whole {number}", world.folder / "all.jsonl", 0).wait(600):
        raise SystemExit((world.folder / "err-0.txt").read_text())
    whole = result(world, 0)
    update(world, person, files[0], 0).wait(600)  # once more: nothing new
    after = result(world, 0)
    answers = after["num_answers"]
    if (answers, added, after["added"]) != (ROWS, ROWS, 0):
        problems.append(f"{answers} answers, {added} added, {after['added']} once more, {ROWS} expected")
    if off := farthest(whole, after):
        problems.append(f"coefficients differ by {off:.2g}")
    return {"command": f"{processes} processes", "answers": answers, "ends": processes + 2} | (
        {"problem": "; ".join(problems)} if problems else {}
    )


def result(world: World, number: int) -> dict[str, Any]:
    return json.loads((world.folder / f"out-{number}.txt").read_text().splitlines()[-1])


def farthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far two people's coefficients are apart, 0 where it is rounding."""
    off = max(abs(a - b) for a, b in zip(one["coef_mean"], other["coef_mean"], strict=True))
    return off if off > 1e-4 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--compiled", type=Path)
    parser.add_argument("--out", type=Path, default=page.PATH)
    args = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        world = World(args.folder or Path(temporary), compiled=args.compiled)
        world.make("fit")
        found = [round_of(world, args.processes, number) for number in range(args.rounds)]
    print(found)
    page.add(args.out, "updates", found, fresh=True)
    page.write(args.out)


if __name__ == "__main__":
    main()
