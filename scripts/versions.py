"""Which versions of Python and of the libraries Chorus runs with: docs/results/versions.md.

    python scripts/versions.py FOLDER                          # every Python that is found here, lowest and newest
    python scripts/versions.py FOLDER --python 3.13 --bounds newest --no-quickstart
    python scripts/versions.py FOLDER --write                  # the page again from the stored table

For each Python and bound: a fresh environment in FOLDER, the built wheel installed in it (`lowest`: every direct dependency at
the lower bound of pyproject.toml, what these need as new as pip likes; `newest`: all as new as the bounds allow), `chorus
quickstart` in an empty folder outside the checkout, then tests of the checkout against the installed wheel. A row that is
stored is not made again unless `--again`.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "docs" / "results" / "versions.json"
PYTHONS, BOUNDS = ("3.11", "3.12", "3.13"), ("lowest", "newest")
NEEDED = ("pytest>=9", "hypothesis>=6.140", "beartype>=0.22", "optuna>=5,<6", "cmaes>=0.11")
TESTS = (
    "tests/rewards/basis",
    "tests/rlhf/objectives/test_advantages.py",
    "tests/rlhf/sweep/test_config.py",
    "tests/rlhf/sweep/test_measures.py",
    "tests/rlhf/policy/test_decoding.py",
)
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "pydantic", "optuna")


def lowest() -> list[str]:
    """Every direct dependency at its lower bound."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    found = (re.match(r"([\w.\[\]-]+)\s*>=\s*([\w.]+)", one) for one in listed)
    return [f"{one[1]}=={one[2]}" for one in found if one]


def interpreter(version: str) -> str | None:
    """A Python of this version; asked, for a shim may stand for one that is not there."""
    named = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}*/bin/python")]
    for path in filter(None, named):
        words = [str(path), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(words, capture_output=True, text=True).stdout.strip() == version:
            return str(path)
    return None


def said(words: Sequence[str | Path], folder: Path, log: Path) -> tuple[str, float]:
    """ "yes", or the last line of what went wrong; and the seconds it took."""
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    begin = time.monotonic()
    with open(log, "a", encoding="utf-8") as out:
        status = subprocess.run(
            [*map(str, words)], cwd=folder, env=outside, stdout=out, stderr=out
        ).returncode
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return "yes" if status == 0 else f"status {status}: {lines[-1][:120]}", time.monotonic() - begin


def tried(folder: Path, wheel: Path, version: str, bound: str, quickstart: bool) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"python": version, "bound": bound, "installs": "no interpreter here"}
    if (python := interpreter(version)) is None:
        return row
    place, log = folder / f"{version}-{bound}", folder / f"{version}-{bound}.log"
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([python, "-m", "venv", place], check=True)
    own = place / "bin" / "python"
    exact = lowest() if bound == "lowest" else []
    install = [own, "-m", "pip", "install", "--disable-pip-version-check", "-q", wheel, *NEEDED, *exact]
    row["installs"], row["install_seconds"] = said(install, folder, log)
    if row["installs"] != "yes":
        return row
    listed = subprocess.run(
        [own, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    installed = {one["name"].lower(): one["version"] for one in json.loads(listed.stdout)}
    row["versions"] = {name: installed.get(name, "–") for name in SHOWN}
    if quickstart:
        empty = place / "empty"
        empty.mkdir()
        row["quickstart"], row["quickstart_seconds"] = said(
            [place / "bin" / "chorus", "quickstart"], empty, log
        )
    row["tests"], row["tests_seconds"] = said(
        [own, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *TESTS],
        folder / "checkout",
        log,
    )
    return row


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/results/versions.md"""
    names = " | ".join(SHOWN)
    lines = [
        "# Versions",
        "",
        "<!-- Made by scripts/versions.py. -->",
        "",
        "The built wheel in a fresh environment: *lowest* has every direct dependency at its lower bound of `pyproject.toml`,",
        "*newest* all as new as the bounds allow. The quickstart runs in an empty folder; tests are those of bases, objectives,",
        "decoding and sweeps.",
        "",
        f"| Python | bound | installs | quickstart | tests | {names} |",
        "|---" * (5 + len(SHOWN)) + "|",
    ]
    for row in rows:
        versions = " | ".join(row.get("versions", {}).get(name, "–") for name in SHOWN)
        cells = " | ".join(row.get(key, "not tried") for key in ("installs", "quickstart", "tests"))
        lines.append(f"| {row['python']} | {row['bound']} | {cells} | {versions} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", nargs="+", default=PYTHONS)
    parser.add_argument("--bounds", nargs="+", choices=BOUNDS, default=BOUNDS)
    parser.add_argument("--no-quickstart", action="store_true")
    parser.add_argument("--again", action="store_true", help="also what is stored")
    parser.add_argument("--write", action="store_true", help="only the page")
    args = parser.parse_args()
    stored = json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else []
    rows = {(row["python"], row["bound"]): row for row in stored}
    if not args.write:
        folder = args.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
        subprocess.run([*map(str, build)], check=True)
        [wheel] = folder.glob("chorus_rlhf-*.whl")
        # Tests of the same moment, in a copy without the packages: what they import is the wheel.
        shutil.rmtree(folder / "checkout", ignore_errors=True)
        for part in ("tests", "configs", "scripts", "docs"):
            shutil.copytree(ROOT / part, folder / "checkout" / part)
        shutil.copy(ROOT / "pyproject.toml", folder / "checkout")
        for version in args.python:
            for bound in args.bounds:
                if args.again or (version, bound) not in rows:
                    row = tried(folder, wheel, version, bound, not args.no_quickstart)
                    rows[version, bound] = row | {"machine": platform.machine()}
                    print(json.dumps(row), flush=True)
                    kept = [rows[key] for key in sorted(rows)]
                    STORE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    STORE.with_suffix(".md").write_text(page([rows[key] for key in sorted(rows)]), encoding="utf-8")


if __name__ == "__main__":
    main()
