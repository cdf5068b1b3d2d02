"""Make tests/golden/old_runs: small runs as this version of Chorus leaves them, for later versions to read.

    python tests/golden/make_old_runs.py

Made once, by the version that `old_runs/made_with.json` names; whoever changes a format keeps reading these files and
does not make them again. A tiny random model, 24 made-up people; `inputs/` is what the commands were given (old names of
keys included), `runs/` what they wrote, without reports and TensorBoard files, which nothing reads. Paths inside are
below PLACE: a copy elsewhere has to rewrite them.
"""

import contextlib
import io
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

from rlhf import cli
from tests.rlhf.tiny import write_model

HERE = Path(__file__).parent / "old_runs"
PLACE = Path("/tmp/chorus_old_runs")
NUM_PEOPLE, NUM_ANSWERS, NUM_ITEMS = 24, 12, 10
UNREAD = ("report.html", "tensorboard", "run.lock", ".lock", "checkpoints")
FUNCTIONS = '''"""Rewards of `ppo_columns.yaml`, and jittable ones."""

import jax.numpy as jnp


def items(completions):
    return [float(text.split().count("item")) for text in completions]


def words(completions):
    return [0.3 * len(text.split()) for text in completions]


def jit_sum(completion_tokens, completion_mask):
    return 0.01 * jnp.sum(completion_tokens * completion_mask, axis=1).astype(jnp.float32)


def jit_first(completion_tokens):
    return 0.1 * completion_tokens[:, 0].astype(jnp.float32)
'''


def pairs() -> list[dict]:
    """Half the people like high numbers, half low ones; choices follow the logistic law."""
    rng, value = np.random.default_rng(0), np.linspace(-2, 2, NUM_ITEMS)
    rows = []
    for person in range(NUM_PEOPLE):
        taste = 1.5 if person % 2 else -1.5
        for _ in range(NUM_ANSWERS):
            a, b = rng.choice(NUM_ITEMS, 2, replace=False)
            if rng.random() > 1 / (1 + np.exp(-taste * (value[a] - value[b]))):
                a, b = b, a
            texts = {"chosen": f"item {a}", "rejected": f"item {b}"}
            rows.append({"prompt": "Which ?", **texts, "user_id": f"p{person:02}"})
    return rows


def configurations() -> dict[str, dict]:
    """Name → configuration; every section that a key may move out of is spelt out."""
    data = {"path": "inputs/pairs.jsonl", "split": "train"}
    people = {"held_out_people": 0.25, "split_seed": 0, "last_choices": 3, "min_comparisons": 1}
    model = {"name": "inputs/model", "dtype": "float32", "adapter_layers": 1, "remat": False}
    tune = {"mode": "lora", "lora_rank": 2, "lora_alpha": 4.0}
    optimizer = {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 1, "beta2": 0.99}
    train = {"steps": 8, "log_every": 1, "checkpoint_every": 4, "keep_checkpoints": 2}
    users = {"posterior": 0.5, "prior": 0.3, "extremes": 0.1, "generic": 0.1, "extreme_sd": 2.0}
    shared = {"seed": 0, "data": data, "model": model, "tune": tune, "optimizer": optimizer}
    personal = {"rewards": "runs/rewards", "conditioner": {"kind": "low_rank", "rank": 2}, "users": users}
    reinforced = {
        "model": model | {"name": "runs/sft"},
        "data": {"path": "inputs/prompts.jsonl", "split": "train", "too_long": "error"},
        "rollout": {"prompts_per_step": 2, "users_per_prompt": 2, "completions": 4, "max_new_tokens": 5},
        "kl": {"coef": 0.1, "controller": "fixed", "estimator": "k1", "place": "reward"},
        "train": train | {"steps": 3, "samples_every": 1, "sample_rows": 4},
        "rail": {"eta": 0.0},
    }
    columns = {
        "rewards": None,
        "columns": [
            {"name": name, "kind": "function", "function": f"inputs/functions.py:{name}"}
            for name in ("items", "words")
        ],
        "population": {"mean": [1.0, 0.0], "sd": [0.5, 1.0], "prompts": 4, "completions": 6},
    }
    grpo = shared | personal | reinforced
    grpo |= {"algorithm": {"kind": "centred", "minibatches": 2, "missing_eos_penalty": 1.0, "relabel": 1}}
    ppo = shared | personal | reinforced
    ppo |= {"algorithm": {"minibatches": 2, "gae_lambda": 0.95}, "critic": {"hidden": 8}}
    return {
        "rewards": {
            "seed": 0,
            "data": data | people,
            "model": {"name": "inputs/model"},
            "encoder": {"kind": "lm", "layer": 1, "pool": "mean"},
            "fit": {"num_basis": 2, "dims": [4, 6], "rounds": 6, "model": "house", "annotation": "none"},
            "evaluation": {"counts": [0, 3, 6], "seeds": 2, "controls": False},
        },
        "sft": shared | {"train": train | {"batch_rows": 1, "row_length": 64}, "completions": "all"},
        "dpo": shared
        | personal
        | {
            "model": model | {"name": "runs/sft"},
            "loss": {"kind": "soft", "dpo_beta": 1.0, "nll_coef": 1.0},
            "rail": {"eta": 0.1},
            "groups": {"completions": None},
            "train": train | {"batch_rows": 2, "accumulation_steps": 1},
        },
        "grpo": grpo,
        "ppo": ppo,
        "ppo_columns": ppo | columns,
        "evaluation": {
            "seed": 0,
            "policy": "runs/dpo",
            "rewards": "runs/rewards",
            "data": data | people,
            "model": {"name": "runs/sft"},
            "users": {"count": 4, "answers": 5},
            "sampling": {"num_samples": 2, "temperature": 1.0, "max_new_tokens": 6},
            "enumerate": True,
        },
    }


def write_inputs() -> None:
    """inputs/: model, data, functions, configurations."""
    inputs = PLACE / "inputs"
    write_model(inputs / "model")
    everybody = pairs()
    hints = [("p01", "shorter, please"), ("p04", "use a list"), ("p05", "be warmer")]
    rows = {
        "pairs": everybody,
        "ada": [row | {"user_id": "ada"} for row in everybody[:8]],
        "prompts": [{"prompt": f"item {number} ?"} for number in range(5)],
        "hints": [
            {"user_id": person, "prompt": "item 3 ?", "completion": "item 4 item 2", "hint": text}
            for person, text in hints
        ],
        "completions": [{"prompt": "Which ?", "completion": f"item {number}"} for number in range(4)],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (inputs / f"{name}.jsonl").write_text(text)
    (inputs / "functions.py").write_text(FUNCTIONS)
    for name, config in configurations().items():
        config |= {"output_dir": f"runs/{name}"}
        (inputs / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def chorus(*words: str) -> None:
    if cli.main(words):
        raise SystemExit(f"chorus {' '.join(words)} failed")


def make_runs() -> None:
    """runs/: everything finished but `dpo_unfinished`, which is what a kill after half of `dpo` leaves."""
    chorus("rewards", "fit", "inputs/rewards.yaml")
    chorus("rewards", "evaluate", "inputs/rewards.yaml")
    chorus("users", "update", "ada", "--rewards", "runs/rewards", "--answers", "inputs/ada.jsonl")
    chorus("users", "edit", "ada", "--rewards", "runs/rewards", "--axis", "aggregate=0.5")
    chorus("train", "sft", "inputs/sft.yaml")
    chorus("train", "dpo", "inputs/dpo.yaml")
    shutil.copytree("runs/dpo", "runs/dpo_unfinished", ignore=shutil.ignore_patterns(*UNREAD[:-1], "policy"))
    shutil.rmtree("runs/dpo_unfinished/checkpoints/00000008")
    Path("runs/dpo_unfinished/metrics.json").unlink()
    chorus("train", "grpo", "inputs/grpo.yaml")
    chorus("train", "ppo", "inputs/ppo.yaml")
    chorus("evaluate", "inputs/evaluation.yaml")
    write_answers()


def write_answers() -> None:
    """answers.json, scored.jsonl: what policies said and completions were worth, for later versions to repeat."""
    answers = {}
    for name in ("sft", "dpo", "grpo", "ppo"):
        who = [] if name == "sft" else ["--user", "ada"]
        prompts = ["--prompt", "Which ?", "--prompt", "item 3 ?", "--greedy", "--max-new-tokens", "4"]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            chorus("generate", "--policy", f"runs/{name}", *who, *prompts, "--json")
        answers[name] = json.loads(printed.getvalue())
    Path("answers.json").write_text(json.dumps(answers, indent=1) + "\n")
    words = ("--rewards", "runs/rewards", "--user", "ada", "--input", "inputs/completions.jsonl")
    chorus("rewards", "score", *words, "--output", "scored.jsonl")


def keep() -> None:
    """Copy what is read, without the names of this machine."""
    shutil.rmtree(HERE, ignore_errors=True)
    finished = shutil.ignore_patterns(*UNREAD, "__pycache__")
    shutil.copytree(PLACE / "inputs", HERE / "inputs", ignore=finished)
    for name in ("answers.json", "scored.jsonl"):
        shutil.copy(name, HERE / name)
    for run in sorted(Path("runs").iterdir()):
        ignored = shutil.ignore_patterns(*UNREAD[:-1]) if run.name == "dpo_unfinished" else finished
        shutil.copytree(run, HERE / "runs" / run.name, ignore=ignored)
    for path in HERE.rglob("environment.json"):
        record = json.loads(path.read_text())
        for session in record["sessions"]:
            session |= {"platform": "Linux", "command": ["chorus", *session["command"][1:]]}
        path.write_text(json.dumps(record, indent=1) + "\n")
    names = ("chorus-rlhf", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")
    made = {"place": str(PLACE), "versions": {name: version(name) for name in names}}
    (HERE / "made_with.json").write_text(json.dumps(made, indent=1) + "\n")


def main() -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    os.environ["CHORUS_CACHE"] = str(PLACE / "cache")
    PLACE.mkdir(parents=True)
    write_inputs()
    os.chdir(PLACE)
    make_runs()
    keep()


if __name__ == "__main__":
    main()
