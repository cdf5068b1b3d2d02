"""Seed one fault into every public function of the mathematics and see whether the tests notice.

    python scripts/faults/mutate.py --output docs/results/faults.json [--only advantages users] [--seconds 1800]

For every public function of a module the fault is the first change of the table `CHANGES` that applies to a line of the
function which is not its docstring: a sign, a comparison, the branches of a `where`, a maximum, a number. Which line is
drawn from the function's name, so the same command seeds the same faults. Faults that reviews found unnoticed have a
table of their own, `NAMED`. Only the tests of the module run, on a copy of the repository, one fault at a time; a test run
that fails (or does not end within its limit) has caught the fault.
"""

import argparse
import ast
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 900
TIERS = ("not slow", "slow")
T = "tests/rlhf/train/rl"
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "advantages": (
        "rlhf/objectives/advantages.py",
        ("tests/rlhf/objectives/test_advantages.py", "tests/rlhf/run/test_unread.py"),
    ),
    "surrogate": ("rlhf/objectives/surrogate.py", ("tests/rlhf/objectives/test_surrogate.py",)),
    "preference": ("rlhf/objectives/preference.py", ("tests/rlhf/objectives/test_preference.py",)),
    "kl_control": (
        "rlhf/objectives/kl_control.py",
        ("tests/rlhf/objectives/test_surrogate.py", "tests/rlhf/run/test_unread.py"),
    ),
    "users": ("rewards/basis/users.py", ("tests/rewards/basis/test_users.py",)),
    "gauge": ("rewards/basis/gauge.py", ("tests/rewards/basis/test_gauge.py",)),
    "readout": ("rewards/basis/readout.py", ("tests/rewards/basis/test_gauge.py",)),
    "acquisition": (
        "rewards/people/acquisition.py",
        ("tests/rewards/people/test_acquisition.py", "tests/rewards/people/test_questions.py"),
    ),
    "conditioning": (
        "rlhf/policy/conditioning.py",
        ("tests/rlhf/policy/test_conditioning.py", "tests/rlhf/run/test_unread.py"),
    ),
    "fit": (
        "rewards/basis/fit.py",
        ("tests/rewards/basis/test_held_out.py", "tests/rewards/basis/test_fit.py"),
    ),
    "estimate": ("rlhf/train/rl/estimate.py", (f"{T}/test_update.py", f"{T}/test_twin.py")),
    "update": ("rlhf/train/rl/update.py", (f"{T}/test_update.py", f"{T}/test_twin.py")),
    "dpo_step": ("rlhf/train/dpo_step.py", ("tests/rlhf/train/test_dpo.py",)),
    "sampling": ("rlhf/policy/sampling.py", ("tests/rlhf/policy/test_sampling.py",)),
}
SWAPS = {
    "Add": ast.Sub,
    "Sub": ast.Add,
    "Mult": ast.Div,
    "Div": ast.Mult,
    "Lt": ast.GtE,
    "LtE": ast.Gt,
    "Gt": ast.LtE,
    "GtE": ast.Lt,
    "Eq": ast.NotEq,
    "NotEq": ast.Eq,
    "BitAnd": ast.BitOr,
}
CALLS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "argmax": "argmin",
    "sum": "mean",
}
# Changes that alter no result, with the reason. Keyed by module.function.
EQUAL: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One changed text: the whole source of `module` with the fault, and what was done to it."""

    module: str
    function: str
    change: str
    source: str


def places(function: ast.FunctionDef) -> list[tuple[ast.expr, str]]:
    """Nodes of a function's body that a change applies to, with the kind of change."""
    found: list[tuple[ast.expr, str]] = []
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(node, ast.BinOp) and type(node.op).__name__ in SWAPS:
                found.append((node, "operator"))
            elif isinstance(node, ast.Compare) and type(node.ops[0]).__name__ in SWAPS:
                found.append((node, "comparison"))
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
                found.append((node, "sign"))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "where" and len(node.args) == 3:
                    found.append((node, "branches"))
                elif node.func.attr in CALLS:
                    found.append((node, "call"))
    raised = {
        inner
        for statement in ast.walk(function)
        if isinstance(statement, ast.Raise)
        for inner in ast.walk(statement)
    }
    return [(node, kind) for node, kind in found if node not in raised]


def changed(source: str, node: ast.expr, kind: str) -> tuple[str, str]:
    """The source with one node changed, and what was changed."""
    before, new = ast.unparse(node), node
    match node:
        case ast.BinOp():
            node.op = SWAPS[type(node.op).__name__]()
        case ast.Compare():
            node.ops[0] = SWAPS[type(node.ops[0]).__name__]()
        case ast.UnaryOp():
            new = node.operand
        case ast.Call() if kind == "branches":
            node.args[1], node.args[2] = node.args[2], node.args[1]
        case ast.Call(func=ast.Attribute() as function):
            function.attr = CALLS[function.attr]
    after = ast.unparse(new)
    assert node.end_lineno is not None and node.end_col_offset is not None
    lines = source.splitlines(keepends=True)
    start = sum(len(line.encode()) for line in lines[: node.lineno - 1]) + node.col_offset
    end = sum(len(line.encode()) for line in lines[: node.end_lineno - 1]) + node.end_col_offset
    raw = source.encode()
    text = (raw[:start] + f"({after})".encode() + raw[end:]).decode()
    return text, f"line {node.lineno}: {before} → {after}"


def faults_of(module: str) -> list[Fault]:
    """One fault for every public function and method of the module that a change applies to."""
    source = (ROOT / MODULES[module][0]).read_text(encoding="utf-8")
    faults = []
    for index, function in enumerate(functions(ast.parse(source))):
        options = places(function)
        if not options:
            continue
        # Parsed anew, because a change is made in the tree.
        fresh = places(functions(ast.parse(source))[index])
        pick = int(hashlib.sha256(f"{module}.{function.name}".encode()).hexdigest(), 16) % len(fresh)
        text, change = changed(source, *fresh[pick])
        faults.append(Fault(module, function.name, change, text))
    return faults


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Public functions, and public methods (and `__call__`) of classes."""
    own = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    own += [
        node
        for outer in tree.body
        if isinstance(outer, ast.ClassDef)
        for node in outer.body
        if isinstance(node, ast.FunctionDef)
    ]
    return [node for node in own if not node.name.startswith("_") or node.name == "__call__"]


# Found unnoticed by a review: module, name, text, text with the fault.
NAMED = (
    (
        "users",
        "newton without damping",
        "taken = state[0] <= value - 1e-4 * size * decrement + 1e-6 * (1.0 + jnp.abs(value))",
        "taken = jnp.isfinite(state[0])",
    ),
    ("fit", "people left out inside the fit", "weight * ~outside", "weight"),
    (
        "fit",
        "all answers used to adapt",
        "np.minimum(config.adapt_answers, counts // 2)",
        "np.minimum(config.adapt_answers, counts)",
    ),
    (
        "acquisition",
        "Fisher information that ignores genuine",
        "slope = _column(model.genuine) * jax.nn.sigmoid(margin)",
        "slope = jax.nn.sigmoid(margin)",
    ),
    (
        "update",
        "a skipped step moves Adam's moments",
        "new._replace(params=kept[0], opt_state=kept[1])",
        "new._replace(params=kept[0])",
    ),
    (
        "update",
        "every epoch takes the same minibatches",
        "jax.random.split(key, ",
        "jnp.broadcast_to(key, ",
    ),
)


def named_of(module: str) -> list[Fault]:
    source = (ROOT / MODULES[module][0]).read_text(encoding="utf-8")
    faults = []
    for own, name, text, fault in NAMED:
        if own == module:
            assert source.count(text) == 1, f"{module}: {text!r} stands there {source.count(text)} times"
            faults.append(Fault(module, name, f"{text} → {fault}", source.replace(text, fault)))
    return faults


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
    start, caught, by = time.monotonic(), False, ""
    for tier in TIERS:
        if not caught:
            caught, by = caught_by(copy, fault.module, tier)
    path.write_text(before, encoding="utf-8")
    entry = {"module": fault.module, "function": fault.function, "change": fault.change, "caught": caught}
    return entry | {"by": by, "seconds": round(time.monotonic() - start)}


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
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "chorus"
        ignored = shutil.ignore_patterns(".git", "runs", ".venv", "__pycache__", "results")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for module in given.only:
            failing, by = caught_by(copy, module, TIERS[0])
            if failing:
                raise SystemExit(f"{module}: {by} fails without any fault")
        for fault in [fault for of in (named_of, faults_of) for module in given.only for fault in of(module)]:
            key = (fault.module, fault.function, fault.change)
            if key in results or time.monotonic() - start > given.seconds:
                continue
            results[key] = tested(copy, fault)
            verdict = "caught" if results[key]["caught"] else "MISSED"
            print(f"{verdict}  {fault.module}.{fault.function}: {fault.change}", flush=True)
            text = json.dumps(list(results.values()), ensure_ascii=False, indent=1) + "\n"
            given.output.write_text(text, encoding="utf-8")
    judged = [entry for key, entry in results.items() if f"{key[0]}.{key[1]}" not in EQUAL]
    caught = sum(bool(entry["caught"]) for entry in judged)
    print(f"{caught} of {len(judged)} faults caught ({caught / max(len(judged), 1):.1%})")


if __name__ == "__main__":
    main()
