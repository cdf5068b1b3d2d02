"""The same figures and samples in the forms that other tools open.

report.md            the verdict and the tables, for a pull request or a letter
inspect/NAME.json    one log of Inspect a policy (`inspect view --log-dir RUN/inspect`), where `inspect_logs` asks for it
trackers             figures, and a table of samples where the tracker shows tables

Source: Inspect's EvalLog, version 2 (https://inspect.aisi.org.uk/eval-logs.html): one sample a prompt and person, one epoch a
completion, one score a judge.
"""

import datetime
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewards import jsonl
from rewards.files import JSONObject, write_json, write_text
from rlhf.run.trackers import Trackers

MARKDOWN, INSPECT = "report.md", "inspect"
MOST_ROWS = 10_000
"""Of samples in a tracker's table; W&B shows no more."""


def write_markdown(directory: Path, result: JSONObject) -> None:
    """report.md: the verdict, every comparison, every policy."""
    lines = [f"# What policies write: {_cell(result['verdict']['text'])}", ""]
    lines += _table(
        ["policies", "judge", "win rate", "95 % interval", "people who gain", "the first is"],
        (
            [
                " against ".join(one["policies"]),
                one["judge"],
                *_shares(one["win_rate"]),
                f"{one['people_who_gain']:.0%}",
                one["outcome"],
            ]
            for one in result["comparisons"]
        ),
    )
    quality = list(next(iter(result["policies"].values()))["quality"])
    lines += _table(
        ["policy", *result["judges"], *quality],
        (
            [name]
            + [f"{one['worth'][judge]['mean']['mean']:.4g}" for judge in result["judges"]]
            + ["–" if one["quality"][key] is None else f"{one['quality'][key]:.4g}" for key in quality]
            for name, one in result["policies"].items()
        ),
    )
    lines += [
        f"{result['people']} people, {result['prompts']} prompts, {result['samples']} completions of each. "
        "Every figure: docs/metrics.md; the texts: report.html.",
        "",
    ]
    write_text(directory / MARKDOWN, "\n".join(lines).encode("utf-8", "replace").decode("utf-8"))


def _shares(found: JSONObject) -> tuple[str, str]:
    span = (
        "–" if found["low"] is None or found["high"] is None else f"{found['low']:.1%} to {found['high']:.1%}"
    )
    return f"{found['mean']:.1%}", span


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    cells = [[_cell(cell) for cell in row] for row in rows]
    if not cells:
        return []
    return [
        *(f"| {' | '.join(row)} |" for row in [[_cell(one) for one in head], ["---"] * len(head), *cells]),
        "",
    ]


def _cell(text: str) -> str:
    """Text in which Markdown and HTML find nothing to act on."""
    return re.sub(r"([\\`*_\[\]<>|#&!~$])", r"\\\1", " ".join(text.split()))


def write_inspect(directory: Path, result: JSONObject, rows: Sequence[JSONObject]) -> None:
    """inspect/NAME.json of each policy, by its number where the name is no file name."""
    by_policy: dict[str, list[JSONObject]] = {name: [] for name in result["policies"]}
    for row in rows:
        by_policy[row["policy"]].append(row)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    (directory / INSPECT).mkdir(exist_ok=True)
    for number, (name, own) in enumerate(by_policy.items()):
        file = f"{number}-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)[:80]}.json"
        write_json(directory / INSPECT / file, inspect_log(result, name, own, now))


def inspect_log(result: JSONObject, policy: str, rows: Sequence[JSONObject], now: str) -> JSONObject:
    """One policy's completions as Inspect's EvalLog."""
    samples, epochs = [], dict[str, int]()
    for row in rows:
        place = f"{row['prompt_number']} {row['person']}"
        epochs[place] = epochs.get(place, 0) + 1
        samples.append(_sample(row, place, epochs[place], policy))
    scores = []
    for judge in result["judges"]:
        known = [row["worth"][judge] for row in rows if row["worth"][judge] is not None]
        mean = {"mean": {"name": "mean", "value": statistics.fmean(known)}} if known else {}
        scores.append({"name": judge, "scorer": judge, "scored_samples": len(known), "metrics": mean})
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "created": now,
            "task": "chorus outputs",
            "dataset": {"name": "prompts", "samples": len(epochs), "sample_ids": list(epochs)},
            "model": policy,
            "model_args": {
                key: value for key, value in result["policies"][policy].items() if key in ("source", "sha256")
            },
            "config": {"epochs": max(epochs.values(), default=1)},
        },
        "plan": {"name": "chorus evaluate", "steps": []},
        "results": {"total_samples": len(samples), "completed_samples": len(samples), "scores": scores},
        "stats": {"started_at": now, "completed_at": now},
        "samples": samples,
    }


def _sample(row: JSONObject, place: str, epoch: int, policy: str) -> JSONObject:
    stop = "stop" if row["finished"] else "max_tokens"
    message = {"role": "assistant", "content": row["text"], "source": "generate"}
    return {
        "id": place,
        "epoch": epoch,
        "input": row["prompt"] if isinstance(row["prompt"], str) else jsonl.line(row["prompt"]).strip(),
        "target": "",
        "messages": [message],
        "output": {
            "model": policy,
            "choices": [{"message": message, "stop_reason": stop}],
            "completion": row["text"],
        },
        "scores": {
            judge: {"value": value, "answer": row["text"]}
            for judge, value in row["worth"].items()
            if value is not None
        },
        "metadata": {"person": row["person"], "prompt": row["prompt_number"], "features": row["features"]},
    }


def track(directory: Path, names: Sequence[str], result: JSONObject, rows: Sequence[JSONObject]) -> None:
    """Figures at step 0 and a table `samples`."""
    trackers = Trackers(names, directory, 0, -1)
    trackers.write(0, dict(_scalars(result)))
    judges = result["judges"]
    columns = ["policy", "person", "prompt", "text", *(f"worth: {judge}" for judge in judges)]
    trackers.table(
        "samples",
        columns,
        [
            [
                row["policy"],
                row["person"],
                str(row["prompt"]),
                row["text"],
                *(row["worth"][judge] for judge in judges),
            ]
            for row in rows[:MOST_ROWS]
        ],
    )
    trackers.close()


def _scalars(result: JSONObject) -> Iterator[tuple[str, float]]:
    for policy, one in result["policies"].items():
        for judge, worth in one["worth"].items():
            yield f"{policy}/{judge}", worth["mean"]["mean"]
        yield from ((f"{policy}/{key}", value) for key, value in one["quality"].items() if value is not None)
    for one in result["comparisons"]:
        yield f"win_rate/{' against '.join(one['policies'])}/{one['judge']}", one["win_rate"]["mean"]
