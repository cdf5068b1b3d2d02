"""Choose the slow tier: write tests/slow.txt from a timed run of the whole suite.

    python -m pytest -n 2 --dist loadfile --junitxml=timed.xml
    python scripts/slow_tests.py timed.xml [--budget 600]

The fast tier (`make test`) keeps what fits into BUDGET seconds of processor time at the speed of that run: the cheapest tests of
every file first, so that every module is touched, and of every test function at least one case. What is left over is listed,
by function, the dearest file first, and runs in `make test-all`.
"""

import argparse
import collections
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from rewards.files import write_text

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "slow.txt"
DEAR = 20.0  # seconds


def durations(report: Path) -> dict[str, dict[str, float]]:
    """Seconds of each test function (its cases together, with what they set up), by file."""
    seconds: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    for case in ElementTree.parse(report).iter("testcase"):
        if "classname" not in case.attrib:  # of a run that was interrupted
            continue
        file = case.attrib["classname"].replace(".", "/") + ".py"
        seconds[file][re.sub(r"\[.*", "", case.attrib["name"], flags=re.S)] += float(case.attrib["time"])
    return seconds


def chosen(seconds: dict[str, dict[str, float]], budget: float) -> list[str]:
    """Functions of the slow tier as FILE::FUNCTION: the dearest, but all of a file only where each is dear."""
    cheapest = {file: min(functions, key=lambda name: functions[name]) for file, functions in seconds.items()}
    kept_always = {file: name for file, name in cheapest.items() if seconds[file][name] <= DEAR}
    costs = sorted(
        (
            (cost, f"{file}::{name}")
            for file, functions in seconds.items()
            for name, cost in functions.items()
        ),
        reverse=True,
    )
    total, slow = sum(cost for cost, _ in costs), []
    for cost, test in costs:
        file, _, name = test.partition("::")
        if total <= budget:
            break
        if kept_always.get(file) != name:
            slow.append(test)
            total -= cost
    of_file: dict[str, float] = collections.defaultdict(float)
    for test in slow:
        file, _, name = test.partition("::")
        of_file[file] += seconds[file][name]
    return sorted(slow, key=lambda test: (-of_file[test.partition("::")[0]], test))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("--budget", type=float, default=600.0)
    arguments = parser.parse_args()
    tests = chosen(durations(arguments.report), arguments.budget)
    write_text(LIST, "".join(f"{test}\n" for test in tests))
    print(f"{len(tests)} functions in the slow tier, {LIST.relative_to(ROOT)}")
