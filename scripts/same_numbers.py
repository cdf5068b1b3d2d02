"""Do the commands still give the numbers they gave? Seeded runs through the command line, held against recorded ones.

    python scripts/same_numbers.py                     # everything; the first difference of every command and run
    python scripts/same_numbers.py --tiny              # the tiny random model alone
    python scripts/same_numbers.py --record            # write scripts/bench/results/same_numbers.json
    python scripts/same_numbers.py --checkout ../old --record --file old.json
    python scripts/same_numbers.py --file old.json     # against an older checkout on this machine

Three parts: `tiny` and `kinds` (every loss, conditioner, estimator and reward model a few steps) on the tiny random model
of tests/golden/old_runs/inputs, `real` on configs/electricity with SmolLM2-135M. A part is one process that calls what
the checkout's pyproject.toml installs as `chorus`, on two cores, in a folder and with a cache of its own. Equality is
exact, so the file holds for one kind of CPU and one set of versions; elsewhere record the older checkout first.

Left out: what depends on time or place (DROPPED), and what no two runs share (environment.json, TensorBoard, reports).
"""

import argparse
import datetime
import gzip
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  makes NumPy know bfloat16
import numpy as np
from pages import write_numbers
from safetensors.numpy import load_file
from same_numbers_runs import PARTS, QUESTION

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "scripts" / "bench" / "results" / "same_numbers.json"
INPUTS = ROOT / "tests" / "golden" / "old_runs" / "inputs"
VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn", "transformers", "tokenizers")
DROPPED = re.compile(
    r"perf/.*|.*seconds|time|timestamp|run_dir|path|output"
    r"|(policy_|line_)?sha256|timed"  # hashes of files that hold paths or times
)
CACHED = ("embeddings", "ref_logprobs")  # what the one array of a cache was called once
LONG = 24
"""Longer lists of numbers are kept as shape, mean, root mean square and hash."""
DRIVER = """
import contextlib, io, json, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # sums are cut by the number of threads
from {module} import {function} as main
if not (file := sys.modules["{module}"].__file__).startswith("{checkout}/"):
    sys.exit(f"{{file}} ran, which is not of {checkout}")
for name, words in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main([*words, "--json"])
    if status:
        sys.exit(f"{{name}}: chorus {{' '.join(words)}}: status {{status}}")
    print(json.dumps([name, json.loads(printed.getvalue().strip().splitlines()[-1])]), flush=True)
"""


def run_part(name: str, checkout: Path, work: Path) -> dict[str, Any]:
    """Run the commands of a part in `work`; returns their results and the numbers of the run directories."""
    prepare(name, checkout, work)
    shipped = f"{checkout}/configs/"
    commands = [(key, shlex.split(words.replace("configs/", shipped))) for key, words in PARTS[name]]
    out: dict[str, Any] = {}
    for line in call(checkout, work, work / "cache", commands).splitlines():
        key, result = json.loads(line)
        out[key] = {"result": cleaned(result)}
    for directory in sorted((work / "runs").iterdir()):
        out[f"{directory.name}/"] = of_directory(directory)
    out["embeddings/"] = tensors_in(work / "cache" / "embeddings")
    return out


def prepare(name: str, checkout: Path, work: Path) -> None:
    """The files the commands of a part read: the tiny model's inputs, or model and data of the user's own cache."""
    (work / "runs").mkdir(parents=True)
    (work / "cache").mkdir()
    if name != "real":
        shutil.copytree(INPUTS, work / "inputs")
        return
    own = Path(os.environ.get("CHORUS_CACHE") or Path.home() / ".cache" / "chorus")
    fetched = [("model", ["models", "fetch", "smollm2-135m"]), ("data", ["data", "fetch", "electricity"])]
    call(checkout, work, own, fetched)
    for folder in ("models", "data"):
        (work / "cache" / folder).symlink_to(own / folder)
    with gzip.open(own / "data" / "electricity.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    person = sorted({row["user_id"] for row in rows})[-1]
    ada = [row | {"user_id": "ada"} for row in rows if row["user_id"] == person]
    texts = [{"prompt": QUESTION, "completion": row["chosen"]} for row in ada[::6]]
    for file_name, lines in {"ada": ada, "completions": texts}.items():
        (work / f"{file_name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def call(checkout: Path, work: Path, cache: Path, commands: list[tuple[str, list[str]]]) -> str:
    """Call the command line of a checkout with every command in turn, all in one process; what they print."""
    target = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["scripts"]["chorus"]
    module, _, function = target.partition(":")
    if (module, function) == ("rlhf.__main__", "start"):  # that one ends the process
        module, function = "rlhf.apps.cli", "main"
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    settings |= {"PYTHONPATH": str(checkout), "CHORUS_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(module=module, function=function, checkout=checkout)],
        cwd=work,
        env=settings,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"same_numbers: a command failed in {checkout}:\n{done.stderr[-3000:]}")
    return done.stdout


def of_directory(directory: Path) -> dict[str, Any]:
    """The numbers of a run: metrics by step, tensors, samples, people, calibration, questions, matrix.

    Its metrics.json is what the command printed.
    """
    numbers: dict[str, Any] = {}
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (directory / name).is_file():
            lines = (directory / name).read_text(encoding="utf-8").splitlines()
            numbers[name] = {f"line {n}": cleaned(json.loads(line)) for n, line in enumerate(lines, 1)}
    for name in ("matrix.json", "calibration.json", "questions.json"):
        if (directory / name).is_file():
            content = cleaned(json.loads((directory / name).read_text(encoding="utf-8")))
            numbers[name] = digest(content) if name == "questions.json" else content
    people = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("users/*.json"))]
    if people:
        numbers["people"] = {"count": len(people), "records": digest(cleaned(people))}
        numbers["people"] |= {person["user_id"]: person["coef_mean"] for person in people[:3]}
    return numbers | {"tensors": tensors_in(directory)}


def tensors_in(directory: Path) -> dict[str, Any]:
    """Every array of the safetensors files below a folder; hashes in file names stand for settings, and go."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*.safetensors")):
        file = re.sub(r"[0-9a-f]{16,}", "", str(path.relative_to(directory).with_suffix("")))
        for name, array in sorted(load_file(path).items()):
            key = f"{file}:{'values' if name in CACHED else name}"
            while key in found:
                key += "'"
            found[key] = summary(array)
    return found


def summary(array: np.ndarray) -> dict[str, Any]:
    """Shape, mean, root mean square and the beginning of a hash over every byte."""
    wide = np.asarray(array, np.float64)
    return {
        "shape": f"{array.dtype}{list(array.shape)}",
        "mean": float(wide.mean()) if wide.size else 0.0,
        "rms": float(np.sqrt(np.mean(wide**2))) if wide.size else 0.0,
        "sha256": sha256(np.ascontiguousarray(array).tobytes()),
    }


def digest(value: Any) -> dict[str, str]:
    return {"sha256": sha256(json.dumps(value, sort_keys=True).encode())}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def cleaned(value: Any) -> Any:
    """JSON without what depends on time or place, long lists of numbers as their summary."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items() if not DROPPED.fullmatch(key)}
    if isinstance(value, list):
        if len(value) > LONG and all(isinstance(item, int | float) for item in value):
            return summary(np.array(value, np.float64))
        return [cleaned(item) for item in value]
    return value


def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of every leaf."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(item, f"{place} › {key}" if place else str(key))
        if not value:
            yield place, None
    else:
        yield place, value


def same(old: Any, new: Any, place: str, tolerance: float) -> bool:
    """Exactly the same; with a tolerance relative to the larger one, and hashes say nothing."""
    if tolerance and place.endswith("sha256"):
        return True
    if tolerance and isinstance(old, float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance)
    return old == new and type(old) is type(new)


def compare(part: str, recorded: dict[str, Any], fresh: dict[str, Any], tolerance: float) -> int:
    """Print the first difference of every command and run; returns how many of them differ."""
    differing = 0
    for key, old in recorded.items():
        now, absent = dict(flat(fresh.get(key, {}))), "absent"
        pairs = [(place, value, now.get(place, absent)) for place, value in flat(old)]
        wrong = [(place, a, b) for place, a, b in pairs if not same(a, b, place, tolerance)]
        more = len(now.keys() - {place for place, *_ in pairs})
        note = f"; {more} new quantities" if more else ""
        if not wrong:
            print(f"{part} {key}: {len(pairs)} quantities the same{note}")
            continue
        differing += 1
        place, a, b = wrong[0]
        print(f"{part} {key}: {len(wrong)} of {len(pairs)} quantities DIFFER{note}; first:\n    {place}")
        print(f"    recorded {a!r}\n    now      {b!r}")
    return differing


def circumstances(checkout: Path) -> dict[str, Any]:
    """Versions, processor, date, revision of the checkout."""
    processors = re.findall(
        r"^model name\s*: (.*)$|^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M
    )
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    revision = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": revision or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "cpu": next((model for model, _ in processors if model), platform.machine()),
        "cpu_flags_sha256": sha256(next((f for _, f in processors if f), "").encode()),
        "cores": min(2, len(os.sched_getaffinity(0))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkout", type=Path, default=ROOT, help="checkout whose code runs (default: this one)"
    )
    parser.add_argument("--tiny", action="store_true", help="the part `tiny` alone")
    parser.add_argument("--part", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--record", action="store_true", help="write the numbers instead of comparing them")
    parser.add_argument("--check", action="store_true", help="compare (the default)")
    parser.add_argument(
        "--file", type=Path, default=RECORDED, help=f"recorded numbers (default {RECORDED.name})"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="relative; 0 (default): exactly the same"
    )
    args = parser.parse_args()
    checkout, parts = args.checkout.resolve(), ["tiny"] if args.tiny else args.part or list(PARTS)
    stored = json.loads(args.file.read_text(encoding="utf-8")) if args.file.is_file() else {}
    here, differing = circumstances(checkout), 0
    for part in parts:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="same_numbers_") as work:
            fresh = run_part(part, checkout, Path(work))
        print(f"{part}: ran in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if args.record:
            stored[part] = {"circumstances": here, "numbers": fresh}
            write_numbers(args.file, stored)
            continue
        if part not in stored:
            raise SystemExit(
                f"same_numbers: {args.file} holds no numbers of {part}; write them with --record"
            )
        for key, value in stored[part]["circumstances"].items():
            if key not in ("date", "revision") and value != here[key]:
                print(f"{part}: recorded with another {key}: {value}, here {here[key]}")
        differing += compare(part, stored[part]["numbers"], fresh, args.tolerance)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
