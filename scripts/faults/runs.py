"""Commands on a tiny model that are ended from outside, and what is left of them.

A `World` is a folder with inputs/ (of tests/golden/old_runs), caches of its own, and the directories of every command,
made once undisturbed; a disturbed command works in the same place, so that paths are equal, and `differences` holds what
it left against what the undisturbed one left.
"""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.numpy import load_file

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
INPUTS = ROOT / "tests" / "golden" / "old_runs" / "inputs"
LIMIT_SECONDS = 240
"""No command here takes a tenth of it: one that is still there hangs."""
TRAINING = "train.checkpoint_every={every}"
COMMANDS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    # name: (words, commands whose directories it reads, its directory)
    "fit": ("rewards fit inputs/rewards.yaml", (), "rewards"),
    "sft": (f"train sft inputs/sft.yaml {TRAINING}", (), "sft"),
    "dpo": (f"train dpo inputs/dpo.yaml {TRAINING}", ("fit", "sft"), "dpo"),
    "grpo": (f"train grpo inputs/grpo.yaml {TRAINING} train.steps=4", ("fit", "sft"), "grpo"),
    "ppo": (f"train ppo inputs/ppo.yaml {TRAINING} train.steps=4", ("fit", "sft"), "ppo"),
    "evaluate": ("evaluate inputs/evaluation.yaml", ("fit", "sft", "dpo"), "evaluation"),
    "quickstart": ("quickstart --output-dir runs/quickstart", (), "quickstart"),
}
TIMED = re.compile(r"perf/.*|.*seconds|time|timestamp|run_dir|started|(line_|policy_)?sha256")
"""What two undisturbed runs do not share, and hashes of records that hold it."""
PASSED_OVER = ("environment.json", "run.lock", ".lock")
SECTION = re.compile(r"<section><h2>(?:Speed|Where these numbers come from)</h2>.*?</section>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      status: as shells have it (143 for SIGTERM); None where it hung and was killed.
      seconds: from its start. after: from the last signal sent to it (or from its result) to its end.
      out, err: what it printed.
    """

    status: int | None
    seconds: float
    after: float
    out: str
    err: str


class Forked:
    """A command in a fork of this process: what was imported here need not be imported again.

    This process must have started neither JAX's backend nor threads of its own.
    """

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], out: int, err: int):
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _become(words, folder, environment, out, err)
            finally:
                os._exit(70)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            left = end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired("a forked command", timeout or 0.0)
            time.sleep(min(left, 0.005))
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(words: list[str], folder: Path, environment: dict[str, str], out: int, err: int) -> None:
    """The rest of a forked process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `rlhf.__main__` does first
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = [str(HERE / "process.py"), *words]
    import jax
    import process

    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    process.prepare()
    process.start()


def preload() -> None:
    """Import what commands import, for `Forked`."""
    rlhf = importlib.import_module("rlhf").__file__ or ""
    assert rlhf.startswith(str(ROOT)), f"{rlhf} is not of {ROOT}"
    for name in (
        *("rlhf.phi.fit", "rlhf.phi.evaluate", "rlhf.train.sft", "rlhf.train.dpo", "rlhf.train.rl.trainer"),
        *("rlhf.evaluation.policy", "rlhf.apps.quickstart", "rlhf.report", "tensorboardX", "process"),
        *("orbax.checkpoint.experimental.v1", "transformers", "sklearn.linear_model", "scipy.optimize"),
    ):
        importlib.import_module(name)
    importlib.import_module("transformers").PreTrainedTokenizerFast  # noqa: B018  it imports late


@dataclasses.dataclass
class Changes:
    """So many changes of the run directory's files; `seen` of them."""

    count: int
    seen: int = 0


class World:
    """A folder in which commands run."""

    def __init__(self, folder: Path, *, every: int = 1, compiled: Path | None = None, forked: bool = True):
        """Args:
        every: train.checkpoint_every. compiled: JAX's cache of compiled programs; the folder's own by default.
        """
        self.folder, self.every, self.forked = folder, every, forked
        self.compiled = compiled or folder / "compiled"
        self.seconds: dict[str, float] = {}
        self.changes: dict[str, int] = {}
        self.imports = 0.0  # seconds
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "inputs").exists():
            shutil.copytree(INPUTS, folder / "inputs")

    def directory(self, name: str) -> Path:
        return self.folder / "runs" / str(COMMANDS[name][2])

    def make(self, name: str) -> None:
        """Run a command undisturbed, after those that it needs, twice (the second time it compiles nothing); keep it."""
        if name in self.seconds:
            return
        for other in COMMANDS[name][1]:
            self.make(other)
        for _ in range(2):
            self.forget(name)
            watched = Changes(1_000_000)
            ended = self.run(name, [(watched, 0)])
            if ended.status != 0:
                raise SystemExit(f"{name}: status {ended.status} undisturbed\n{ended.err}")
        self.seconds[name], self.changes[name] = ended.seconds, watched.seen
        shutil.rmtree(self._kept(name), ignore_errors=True)
        shutil.copytree(self.directory(name), self._kept(name))

    def forget(self, name: str) -> None:
        """No session of this command has been here, and nothing is remembered."""
        shutil.rmtree(self.directory(name), ignore_errors=True)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def restore(self, name: str) -> None:
        """Put the undisturbed directory back."""
        self.forget(name)
        shutil.copytree(self._kept(name), self.directory(name))

    def _kept(self, name: str) -> Path:
        return self.folder / "kept" / name

    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            "CHORUS_CACHE": str(self.folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, name: str, *, forked: bool) -> "subprocess.Popen[bytes] | Forked":
        """A command in a process of its own; forked: from this one, which has imported what it needs."""
        words = [*COMMANDS[name][0].format(every=self.every).split(), "--json"]
        own = self.environment()
        with (self.folder / "out.txt").open("wb") as out, (self.folder / "err.txt").open("wb") as err:
            if forked:
                return Forked(words, self.folder, own, out.fileno(), err.fileno())
            return subprocess.Popen(
                [sys.executable, str(HERE / "process.py"), *words],
                cwd=self.folder,
                env=os.environ | own,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def run(
        self, name: str, plan: Sequence[tuple[float | Changes, int]] = (), *, forked: bool | None = None
    ) -> Ended:
        """Run a command and send it signals: (what to wait for, number) one after the other."""
        began = time.monotonic()
        process = self.start(name, forked=self.forked if forked is None else forked)
        last = None
        for pause, number in plan:
            if self._ends_within(name, process, pause):
                break
            last = time.monotonic()
            process.send_signal(number)
        status = self._wait(process, LIMIT_SECONDS)
        now = time.monotonic()
        out, err = (self.folder / file for file in ("out.txt", "err.txt"))
        since = last if last is not None else began + (out.stat().st_mtime - time.time() + now - began)
        return Ended(
            status, now - began, now - since, out.read_text(errors="replace"), err.read_text(errors="replace")
        )

    def _ends_within(
        self, name: str, process: "subprocess.Popen[bytes] | Forked", pause: "float | Changes"
    ) -> bool:
        if isinstance(pause, Changes):
            before = None
            while pause.seen < pause.count:
                if process.poll() is not None:
                    return True
                now = _state_of(self.directory(name))
                pause.seen += now != before and before is not None
                before = now
                time.sleep(0.001)
            return process.poll() is not None
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _wait(self, process: "subprocess.Popen[bytes] | Forked", seconds: float) -> int | None:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            with (self.folder / "err.txt").open("a") as err:
                for task in sorted(Path(f"/proc/{process.pid}/task").iterdir()):
                    err.write(
                        f"{task.name} {(task / 'comm').read_text().strip()} {(task / 'wchan').read_text()}\n"
                    )
            process.send_signal(signal.SIGUSR1)
            time.sleep(3)
            process.kill()
            process.wait()
            return None
        return 128 - status if status < 0 else status

    def differences(self, name: str, ended: Ended) -> list[str]:
        """What a command left that the undisturbed one did not leave, or left otherwise; leftovers of killed processes."""
        kept, now = contents(self._kept(name)), contents(self.directory(name))
        found = [path for path in sorted(kept.keys() | now.keys()) if kept.get(path) != now.get(path)]
        found += [f"left over: {path.relative_to(self.folder)}" for path in self.leftovers()]
        result = json.loads(ended.out.splitlines()[-1]) if ended.status == 0 else None
        if name != "quickstart" and result is not None:
            stored = json.loads((self._kept(name) / "metrics.json").read_text())
            if _untimed(result) != _untimed(stored):
                found.append("printed result")
        return found

    def leftovers(self) -> Iterator[Path]:
        for folder in ("runs", "cache"):
            yield from (self.folder / folder).rglob("*.tmp")

    def checkpoint(self, name: str) -> int:
        """Number of the newest whole checkpoint, 0 for none."""
        found = self.directory(name).glob("**/checkpoints/*/COMPLETE")
        return max((int(path.parent.name) for path in found), default=0)

    def steps(self, name: str) -> int:
        """Steps whose numbers are written."""
        rows = 0
        for path in self.directory(name).glob("**/metrics.jsonl"):
            rows = max(rows, len(path.read_text().splitlines()))
        return rows


def contents(directory: Path) -> dict[str, object]:
    """Everything in a directory that two undisturbed runs share, by file."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if not path.is_file() or path.name in PASSED_OVER or "tensorboard" in path.parts:
            continue
        if "checkpoints" in path.parts:  # Orbax names its files by chance: read below, as arrays
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: (value.shape, value.tobytes()) for key, value in load_file(path).items()}
        elif path.suffix == ".json":
            found[name] = _untimed(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [_untimed(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".html":
            found[name] = SECTION.sub("", path.read_text())
        else:
            found[name] = path.read_bytes()
    for folder in directory.glob(
        "**/checkpoints"
    ):  # the newest: which older ones there are depends on the past
        described = json.loads(max(folder.glob("*/manifest.json")).read_text())
        found[str(folder.relative_to(directory))] = (described["step"], described["leaves"])
    return found


def _state_of(directory: Path) -> frozenset[tuple[str, int, int]]:
    """Names, sizes and times of change of everything in a directory."""
    found, waiting = set(), [str(directory)]
    while waiting:
        try:
            for entry in os.scandir(waiting.pop()):
                status = entry.stat(follow_symlinks=False)
                found.add((entry.path, status.st_size, status.st_mtime_ns))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        except OSError:  # not there (yet), or not any more
            continue
    return frozenset(found)


def _untimed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _untimed(part) for key, part in value.items() if not TIMED.fullmatch(key)}
    return [_untimed(part) for part in value] if isinstance(value, list) else value
