"""Settings of the whole suite: shapes checked at run time, key reuse refused, the user's cache left alone, programs kept."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rewards.files import cache_dir
from rlhf.run.programs import processor

# Files compile the same tiny programs again and again, in two workers and in processes of their own: one cache for all, and for
# other checkouts on this machine. JAX's key covers the program and the versions; what is two weeks old goes (`pytest_configure`).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "compiled_by_tests" / processor()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Tests compile much and compute little: half the time to compile, slower programs, in every process that a test starts, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Two workers on two cores: threads of OpenBLAS (in every step of SciPy's L-BFGS) and of torch would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Workers, and hundreds of commands that tests start, read the same modules: compiled once, whatever the machine says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jax
import pytest
import threadpoolctl
from jaxtyping import install_import_hook

from tests import shapes

# Every module that annotates shapes is checked against the arrays it gets; set before the imports. Not the door where what
# users bring is refused by our own words: its tests bring what is no array.
ROOT = Path(__file__).parents[1]
DOOR = "rewards/methods/base.py"
CHECKED = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("rewards", "rlhf")
    for file in sorted((ROOT / package).rglob("*.py"))
    if "\nfrom jaxtyping import " in file.read_text(encoding="utf-8") and file != ROOT / DOOR
]
sys.modules["shapes"] = shapes  # pytest puts another `tests` in the place of the one that holds it
install_import_hook(CHECKED, "shapes.checked")

# Tests kill processes, not machines: to wait until a disk has written shows nothing, and takes minutes beside others that write.
os.fsync = lambda descriptor: None
threadpoolctl.threadpool_limits(1)  # what a plugin has loaded already
jax.config.update("jax_debug_key_reuse", True)
# Tests compile much and compute little. LLVM has far less to read without these; sums may differ in the last digits.
# From 0.11 on XLA knows the flag no more, and ends the process.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # SimPO lives in trl.experimental

_CACHE = os.environ.get("CHORUS_CACHE")


def pytest_configure(config: pytest.Config) -> None:
    from rewards.shown import speak

    speak()  # as a command does
    if not hasattr(config, "workerinput"):  # not in each worker
        old = time.time() - 14 * 24 * 3600
        for program in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache"):
            if program.stat().st_mtime < old:
                program.unlink(missing_ok=True)
    config.addinivalue_line("markers", "real_model: needs a published model; uses the user's own cache")
    config.addinivalue_line("markers", "slow: left to `make test-all`; tests/slow.txt says which")
    config.addinivalue_line("markers", "download: needs the package index; uses the user's own cache")
    config.addinivalue_line("filterwarnings", r"error:::(rlhf|rewards)(\..*)?$")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow tier (tests/slow.txt, made by scripts/slow_tests.py); its files come first, in the order of the list."""
    listed = Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").split()
    place = {test.partition("::")[0]: number for number, test in reversed(list(enumerate(listed)))}
    slow = set(listed)
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker("slow")
    # Two workers end together when the dearest files are given out first.
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(listed)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Point $CHORUS_CACHE at a folder of the session, before any fixture of the test reads it."""
    if item.get_closest_marker("real_model") or item.get_closest_marker("download"):
        if _CACHE is None:
            os.environ.pop("CHORUS_CACHE", None)
        else:
            os.environ["CHORUS_CACHE"] = _CACHE
        return
    factory = item.config._tmp_path_factory  # the fixture's factory; fixtures themselves are not set up yet
    os.environ["CHORUS_CACHE"] = str(factory.getbasetemp() / "chorus_cache")


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop compiled programs after every file: each holds memory maps, a process may have 65,530, and XLA dies of one more."""
    yield
    jax.clear_caches()
