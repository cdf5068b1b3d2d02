"""One line each on ordinary data, with what it ends with, beside TRL for the same job: docs/results/first_lines.md

    python scripts/results_first_lines.py [--only NAME …] [--trl FOLDER]

Makes four small sets in the shapes that people have, and runs `chorus` on each as a stranger would, in an empty folder, three
steps
on SmolLM2-135M. --trl: a folder where TRL is installed, to check the names in its scripts against its signatures.
"""

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pandas

REPO = Path(__file__).parents[1]
sys.path[:0] = [str(REPO)]

from rewards.files import read_json, write_json, write_text  # noqa: E402

PAGE = REPO / "docs" / "results" / "first_lines.md"
RECORD = PAGE.with_suffix(".json")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TOPICS = "tea rain bicycles bread chess tides owls maps salt trains ink bees clocks snow paper rivers".split()
REWARDS = """def short(completions, **kwargs):
    return [-len(text) / 100 for text in completions]


def example(completions, **kwargs):
    return [float("example" in text) for text in completions]
"""


class Job(NamedTuple):
    """A job: what the data look like, our line, TRL's script, and TRL's own command line (None: it takes no such file)."""

    title: str
    line: str
    script: str
    command: str


JOBS = {
    "dpo": Job(
        "Pairs without ids, a parquet file with `prompt`, `chosen`, `rejected`",
        "chorus train dpo --model smollm2-135m --data pairs.parquet train.steps=3",
        f"""from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

trainer = DPOTrainer(
    model="{MODEL}",
    args=DPOConfig(output_dir="out", max_steps=3),
    train_dataset=load_dataset("parquet", data_files="pairs.parquet", split="train"),
)
trainer.train()
""",
        f"trl dpo --model_name_or_path {MODEL} --dataset_name pairs --output_dir out --max_steps 3",
    ),
    "sft": Job(
        "Answers, a JSON-lines file with `prompt`, `completion`",
        "chorus train sft --model smollm2-135m --data answers.jsonl train.steps=3",
        f"""from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model="{MODEL}",
    args=SFTConfig(output_dir="out", max_steps=3),
    train_dataset=load_dataset("json", data_files="answers.jsonl", split="train"),
)
trainer.train()
""",
        f"trl sft --model_name_or_path {MODEL} --dataset_name answers --output_dir out --max_steps 3",
    ),
    "grpo": Job(
        "Prompts, and two reward functions of TRL's signature in own.py",
        "chorus train grpo --model smollm2-135m --data prompts.jsonl --reward own.py:short --reward own.py:example train.steps=3 "
        "rollout.max_new_tokens=16",
        f"""from datasets import load_dataset
from own import example, short
from trl import GRPOConfig, GRPOTrainer

trainer = GRPOTrainer(
    model="{MODEL}",
    reward_funcs=[short, example],
    args=GRPOConfig(output_dir="out", max_steps=3, max_completion_length=16),
    train_dataset=load_dataset("json", data_files="prompts.jsonl", split="train"),
)
trainer.train()
""",
        f"trl grpo --model_name_or_path {MODEL} --dataset_name prompts --reward_funcs own.short own.example "
        "--output_dir out --max_steps 3 --max_completion_length 16",
    ),
    "chats": Job(
        "Chats with `messages`, a folder of `Dataset.save_to_disk`",
        "chorus train sft --model smollm2-135m --data chats train.steps=3",
        f"""from datasets import load_from_disk
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model="{MODEL}",
    args=SFTConfig(output_dir="out", max_steps=3),
    train_dataset=load_from_disk("chats"),
)
trainer.train()
""",
        "",
    ),
}


def make_data(folder: Path) -> None:
    """The four sets and the file of reward functions."""
    import datasets

    rows = [
        {
            "prompt": f"Tell me about {topic}.",
            "chosen": f"{topic.capitalize()} is worth knowing: start with one example.",
            "rejected": f"I do not know anything about {topic}.",
        }
        for topic in TOPICS
    ]
    answers = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    pandas.DataFrame(rows).to_parquet(folder / "pairs.parquet")
    write_text(folder / "answers.jsonl", "".join(json.dumps(row) + "\n" for row in answers))
    write_text(
        folder / "prompts.jsonl", "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows)
    )
    write_text(folder / "own.py", REWARDS)
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in answers
    ]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(chats).save_to_disk(folder / "chats")


def run(job: Job, folder: Path) -> list[str]:
    """Run our line; what it says last, from `report` on."""
    words = [sys.executable, "-m", "rlhf", *shlex.split(job.line)[1:]]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lines = done.stdout.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("report ")) :]


def of_script(script: str) -> tuple[int, int]:
    """Lines that are not empty, and values that the writer must name: arguments of calls."""
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    keys = sum(
        len(call.args) + sum(not isinstance(word.value, ast.Call) for word in call.keywords) for call in calls
    )
    return sum(bool(line.strip()) for line in script.splitlines()), keys


def of_line(line: str) -> tuple[int, int]:
    """One line, and its values: options, and keys with a value."""
    words = shlex.split(line)
    return 1, sum(word.startswith("--") or "=" in word for word in words)


def check_names(script: str) -> None:
    """Every keyword in a script is one of the class that it is given to; needs TRL."""
    import inspect

    import trl

    for call in (node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and hasattr(trl, call.func.id):
            known = set(inspect.signature(getattr(trl, call.func.id)).parameters)
            unknown = {str(word.arg) for word in call.keywords} - known
            assert not unknown, f"{call.func.id} has no {', '.join(sorted(unknown))}"


def page(said: dict[str, list[str]], version: str) -> str:
    """The page."""
    lines = [
        "# One line on data of one's own",
        "",
        "`python scripts/results_first_lines.py`. Four ordinary sets of 16 rows each, SmolLM2-135M-Instruct, three "
        "steps, in an empty "
        "folder; no file of settings. Everything else is chosen: adapters on all linear maps, rate, warm-up, the rows "
        "of a step from the "
        "memory that there is, the output folder (of GRPO the length of completions is given: 128 tokens are long on "
        "two cores); the first line on the console says what, and `chorus config new` writes it as a file.",
        "",
        f"Beside it TRL {version} for the same job: its shortest script, and its own command line where it takes such data "
        "(as a folder or a name of the hub; it is one line as well). Lines without empty ones; keys are values that "
        "have to be given: "
        "options, arguments. TRL's defaults train all weights; adapters are three keys more.",
        "",
        "| job | Chorus: lines | keys | TRL script: lines | keys | TRL command: lines | keys |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, job in JOBS.items():
        command = of_line(job.command) if job.command else ("–", "–")
        cells = (*of_line(job.line), *of_script(job.script), *command)
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    for name, job in JOBS.items():
        lines += [
            "",
            f"## {job.title}",
            "",
            "```",
            job.line,
            "```",
            "",
            "ends with",
            "",
            "```",
            *said.get(name, ["(not run to its end yet)"]),
        ]
        lines += ["```", "", "TRL:", "", "```python", job.script.rstrip(), "```"]
        if job.command:
            lines += ["", "```", job.command, "```"]
    lines += ["", "own.py of the third job, the same for both:", "", "```python", REWARDS.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=JOBS, nargs="*", help="run these jobs again and keep what the others said"
    )
    parser.add_argument("--trl", type=Path, help="folder where TRL is installed")
    args = parser.parse_args()
    record = read_json(RECORD) if RECORD.is_file() else {"trl": "", "said": {}}
    if args.trl:
        sys.path.append(str(args.trl))
        import trl

        record["trl"] = trl.__version__
        for job in JOBS.values():
            check_names(job.script)
    with tempfile.TemporaryDirectory() as temporary:
        make_data(Path(temporary))
        for name in args.only or JOBS:
            record["said"][name] = run(JOBS[name], Path(temporary))
            write_json(RECORD, record)
    write_text(PAGE, page(record["said"], record["trl"]))


if __name__ == "__main__":
    main()
