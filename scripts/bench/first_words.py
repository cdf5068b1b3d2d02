"""How long each command is silent: docs/results/first_words.md

    python scripts/bench/first_words.py [--only WORDS]

A tiny random model, pairs of five people, and what the commands make of them (a reward run, a policy, a person, an
evaluation). Then each
command is started as a process of its own, until the first byte on either stream comes or it ends; wall time, and processor
time of
the process until then (of a machine that has other work, the second is what counts). Stops what it started.
"""

import argparse
import json
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO)]

from rewards.files import write_text  # noqa: E402
from tests.rlhf import tiny  # noqa: E402

PAGE = REPO / "docs" / "results" / "first_words.md"
LIMIT = 2.0
SHORT = "train.steps=2"
MAKE = (
    "rewards fit --model model --data pairs.jsonl --output-dir rewards fit.num_basis=2 fit.dims=4",
    f"train dpo --model model --data pairs.jsonl --output-dir dpo {SHORT}",
    f"train grpo --model model --data pairs.jsonl --reward own.py:short --output-dir grpo rollout.max_new_tokens=4 {SHORT}",
    "users update ada --rewards rewards --answers answers.jsonl",
    "launch local --name first -- data check pairs.jsonl",
)
COMMANDS = {
    "quickstart": "quickstart --output-dir quick",
    "replay": "replay grpo",
    "probe": "probe dpo --data probes --output probed",
    "data check": "data check pairs.jsonl",
    "data fetch": "data fetch nothing",
    "data audit": "data audit pairs.jsonl",
    "data plan": "data plan --labels 6000",
    "models fetch": "models fetch smollm2-135m",
    "rewards fit": "rewards fit --model model --data pairs.jsonl --output-dir rewards2 fit.num_basis=2 fit.dims=4",
    "rewards train": f"rewards train --model model --data pairs.jsonl --output-dir reward {SHORT}",
    "rewards evaluate": "rewards evaluate rewards/config.yaml",
    "rewards score": "rewards score --rewards rewards --input pairs.jsonl --output scored.jsonl",
    "rewards rails": "rewards rails --rewards rewards",
    "users ask": "users ask eve --rewards rewards",
    "users card": "users card p0 --rewards rewards",
    "users update": "users update bob --rewards rewards --answers answers.jsonl",
    "users show": "users show p0 --rewards rewards",
    "users edit": "users edit p0 --rewards rewards --axis 'taste 1=1'",
    "users list": "users list --rewards rewards",
    "users forget": "users forget p1 --rewards rewards",
    "train sft": f"train sft --model model --data pairs.jsonl --output-dir sft {SHORT}",
    "train dpo": f"train dpo --model model --data pairs.jsonl --output-dir dpo2 {SHORT}",
    "train ppo": f"train ppo --model model --data pairs.jsonl --reward own.py:short --output-dir ppo {SHORT}",
    "train grpo": f"train grpo --model model --data pairs.jsonl --reward own.py:short --output-dir grpo2 {SHORT}",
    "generate": 'generate --policy dpo --prompt "Which ?" --max-new-tokens 4',
    "evaluate": "evaluate --policies dpo --prompts pairs.jsonl --output-dir judged",
    "compare": "compare dpo grpo",
    "export": "export --policy dpo --output exported",
    "sweep": "sweep dpo/config.yaml sweep.trials=1",
    "launch kubernetes": f"launch kubernetes --image a:1 --queue q --volume v:/w --dry-run -- train dpo dpo/config.yaml {SHORT}",
    "launch local": "launch local --name second --dry-run -- data check pairs.jsonl",
    "launch ray": "launch ray --address http://127.0.0.1:9 --dry-run -- data check pairs.jsonl",
    "launch requeue": "launch requeue first",
    "launch skypilot": "launch skypilot --accelerator H100 --dry-run -- data check pairs.jsonl",
    "launch slurm": "launch slurm --dry-run -- train dpo dpo/config.yaml",
    "launch status": "launch status first",
    "launch logs": "launch logs first",
    "launch cancel": "launch cancel first",
    "config describe": "config describe dpo",
    "config new": "config new dpo --model model --data pairs.jsonl",
}


def make(folder: Path) -> None:
    """The model, the files, and what commands make of them; a command that fails is said and leaves its followers to fail."""
    tiny.write_model(folder / "model")
    rows = [
        {
            "prompt": "Which ?",
            "chosen": f"item {n % 7}",
            "rejected": f"item {7 + n % 5}",
            "user_id": f"p{n % 5}",
        }
        for n in range(60)
    ]
    write_text(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    answers = [row | {"user_id": "ada"} for row in rows[:3]]
    write_text(folder / "answers.jsonl", "".join(json.dumps(row) + "\n" for row in answers))
    write_text(
        folder / "own.py",
        "def short(completions, **kwargs):\n    return [-float(len(text)) for text in completions]\n",
    )
    for words in MAKE:
        done = subprocess.run(started(words), cwd=folder, env=environment(), capture_output=True, text=True)
        if done.returncode:
            print(f"{words}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)


def started(words: str) -> list[str]:
    return [sys.executable, "-m", "rlhf", *shlex.split(words)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"}


def silence(words: str, folder: Path) -> tuple[float, float, str]:
    """Seconds and processor seconds until the first output, and that output's first line."""
    begun = time.perf_counter()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        started(words),
        cwd=folder,
        env=environment(),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        (key, _), *_ = selector.select(300) or [(None, None)]
    wall = time.perf_counter() - begun
    parts = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    busy = (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    said = os.read(key.fd, 400).decode(errors="replace").strip().splitlines() if key is not None else []
    os.killpg(process.pid, 9)
    process.wait()
    return wall, busy, said[0] if said else ""


def page(rows: list[tuple[str, float, float, str]]) -> str:
    lines = [
        "# How long a command is silent",
        "",
        "`python scripts/bench/first_words.py`: from the start of the process to the first byte on either stream, of a "
        "tiny model and small "
        f"files; {os.cpu_count()} CPU cores that other work shared, so wall time is from above and processor time is "
        f"what a quiet machine takes. "
        f"Wanted: {LIMIT:g} s.",
        "",
        "| command | seconds | processor seconds | the first line |",
        "|---|---|---|---|",
    ]
    for name, wall, busy, said in rows:
        text = said.replace(str(Path.home()), "~").replace("|", "\\|")
        text = f"{text[:80]}…" if len(text) > 80 else text
        lines.append(f"| {name} | {wall:.1f} | {busy:.1f} | `{text}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="commands that begin so; nothing is written")
    args = parser.parse_args()
    folder, rows = Path(tempfile.mkdtemp()), []
    try:
        make(folder)
        for name, words in COMMANDS.items():
            if args.only is None or name.startswith(args.only):
                rows.append((name, *silence(words, folder)))
                print("{}: {:.1f} s, {:.1f} s of processor: {}".format(*rows[-1]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.only is None:
        write_text(PAGE, page(rows))


if __name__ == "__main__":
    main()
