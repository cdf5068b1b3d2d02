"""Seed one fault into every public function of the mathematics and see whether the tests notice.

    python scripts/faults/mutate.py --output docs/results/mutation.json [--only advantages users] [--seconds 1800]

For every public function of a module the fault is a change of the table `SWAPS` or `CALLS` that applies to a line of the
function which is not its docstring: a sign, a comparison, the branches of a `where`, a maximum, a number. Which line is
drawn from the function's name, so the same command seeds the same faults. Faults that reviews found unnoticed have a
table of their own, `NAMED`. Only the tests of the
module run (the fast ones, then those of the slow tier), on a copy of the repository, one fault at a time; a test run that
fails, or does not end within its limit, has caught the fault. The page stands beside the output.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import mutation_page
import pytest
from mutation_faults import MODULES, ROOT, Fault, faults_of, named_of

LIMIT_SECONDS = 900
TIERS = ("not slow", "slow")


def caught_by(copy: Path, module: str, tier: str) -> tuple[bool, str]:
    """Whether a test of the module fails in the copy as it stands, and which; pytest in a process forked from this one."""
    report = copy / "report.txt"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        os.setsid()
        sys.path[:0] = [str(copy)]
        with open(report, "w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
            status = pytest.main([*options, "-m", f"{tier} and not real_model", *MODULES[module][1]])
            sys.stdout.flush()
        os._exit(int(status))
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, "did not end"
        time.sleep(0.2)
    code = os.waitstatus_to_exitcode(status)
    if code in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        return False, ""
    lines = report.read_text(encoding="utf-8", errors="replace").splitlines()
    by = next(
        (line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))), f"ended with {code}"
    )
    return True, by.removeprefix("FAILED ").removeprefix("ERROR ")


def tested(copy: Path, fault: Fault) -> dict[str, object]:
    """Whether the tests of the module notice (the fast ones first, then those left to the slow tier), and which."""
    path = copy / MODULES[fault.module][0]
    before = path.read_text(encoding="utf-8")
    path.write_text(fault.source, encoding="utf-8")
    start, caught, by, tier = time.monotonic(), False, "", ""
    for tier in TIERS:
        caught, by = caught_by(copy, fault.module, tier)
        if caught:
            break
    path.write_text(before, encoding="utf-8")
    entry = {"module": fault.module, "function": fault.function, "change": fault.change, "caught": caught}
    return entry | {"by": by, "tier": tier, "seconds": round(time.monotonic() - start)}


def preload() -> None:
    """Import what the tests import besides our own packages, with the settings of tests/conftest.py."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    sys.path[:] = [place for place in sys.path if Path(place).resolve() not in (ROOT, Path(__file__).parent)]
    for name in (
        "jax",
        "optax",
        "flax.nnx",
        "scipy.stats",
        "hypothesis",
        "transformers",
        "torch",
        "pydantic",
        "jaxtyping",
    ):
        importlib.import_module(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(MODULES), choices=list(MODULES))
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no further fault after this"
    )
    given = parser.parse_args()
    start = time.monotonic()
    preload()
    known = json.loads(given.output.read_text(encoding="utf-8")) if given.output.is_file() else []
    results = {(entry["module"], entry["function"], entry["change"]): entry for entry in known}
    faults = [fault for of in (named_of, faults_of) for module in given.only for fault in of(module)]
    there = {(fault.module, fault.function, fault.change) for fault in faults}
    results = {key: entry for key, entry in results.items() if key in there or key[0] not in given.only}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "chorus"
        ignored = shutil.ignore_patterns(".git", "runs", ".venv", "__pycache__", "results")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for module in given.only:
            failing, by = caught_by(copy, module, TIERS[0])
            if failing:
                raise SystemExit(f"{module}: {by} fails without any fault")
        for fault in faults:
            key = (fault.module, fault.function, fault.change)
            if key in results or time.monotonic() - start > given.seconds:
                continue
            results[key] = tested(copy, fault)
            verdict = "caught" if results[key]["caught"] else "MISSED"
            print(f"{verdict}  {fault.module}.{fault.function}: {fault.change}", flush=True)
            text = json.dumps(list(results.values()), ensure_ascii=False, indent=1) + "\n"
            given.output.write_text(text, encoding="utf-8")
    mutation_page.write(given.output.with_suffix(".md"), list(results.values()))
    caught, judged = mutation_page.shares(list(results.values()))
    print(f"{caught} of {judged} faults caught ({caught / max(judged, 1):.1%})")


if __name__ == "__main__":
    main()
