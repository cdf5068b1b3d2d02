"""samples.jsonl, samples.parquet, samples.csv: every completion with what it is worth, for people, pandas and spreadsheets."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rewards import jsonl
from rewards.files import JSONObject, atomic_path
from rewards.types import Prompt
from rlhf.evaluation.outputs import people
from rlhf.evaluation.outputs.judging import Judged
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.samples import Written
from rlhf.run.directory import plain

SAMPLES = "samples"


def sample_rows(
    whom: Sequence[Person], prompts: Sequence[Prompt], written: Sequence[Written], judged: Judged
) -> Iterator[JSONObject]:
    """Every completion, once for each person whom it was written for; the policies that answer all alike have "everybody".

    `worth` is by judge; for "everybody" the mean over people of what it is worth to each. `features` are φ by axis, where there
    are rewards: worth to a person by their own reward is w·φ.
    """
    for number, one in enumerate(written):
        shared = not one.source.personal
        shape = one.shape
        for person, prompt, sample in itertools.product(*map(range, shape)):
            completion = one.completions[person][prompt][sample]
            worth = {
                judge: values[number][:, prompt, sample].mean()
                if shared
                else values[number][person, prompt, sample]
                for judge, values in judged.values.items()
            }
            yield {
                "policy": one.source.name,
                "person": people.EVERYBODY if shared else whom[person].name,
                "prompt_number": prompt,
                "prompt": jsonl.prompt_value(prompts[prompt]),
                "sample": sample,
                "text": completion.text,
                "tokens": completion.num_tokens,
                "finished": completion.finished,
                "logprob": completion.logprob,
                "reference_logprob": _at(one.reference, person, prompt, sample),
                "aggregate_logprob": _at(one.aggregate, person, prompt, sample),
                "worth": {judge: float(value) for judge, value in worth.items()},
                "features": dict(
                    zip(judged.axes, _features(judged, number, person, prompt, sample), strict=True)
                ),
            }


def _features(judged: Judged, number: int, *place: int) -> list[float]:
    return judged.features[number][place].tolist() if judged.features else []


def _at(scores: np.ndarray | None, *place: int) -> float | None:
    return None if scores is None else float(scores[place])


def write(directory: Path, rows: Sequence[JSONObject]) -> None:
    """The same table three times."""
    import pyarrow
    import pyarrow.parquet

    rows = [plain(row) for row in rows]
    jsonl.write(directory / f"{SAMPLES}.jsonl", rows)
    flat = [
        {key: value for key, value in row.items() if key not in ("worth", "features", "prompt")}
        | {"prompt": row["prompt"] if isinstance(row["prompt"], str) else jsonl.line(row["prompt"]).strip()}
        | {f"worth: {judge}": value for judge, value in row["worth"].items()}
        | {f"feature: {axis}": value for axis, value in row["features"].items()}
        for row in rows
    ]
    flat = [{key: _unicode(value) for key, value in row.items()} for row in flat]
    with atomic_path(directory / f"{SAMPLES}.parquet") as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), temporary)
    with (
        atomic_path(directory / f"{SAMPLES}.csv") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        table_writer = csv.DictWriter(file, list(flat[0]))
        table_writer.writeheader()
        table_writer.writerows({key: _inert(value) for key, value in row.items()} for row in flat)


def _unicode(value: object) -> object:
    """Halves of surrogate pairs have no UTF-8."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _inert(value: object) -> object:
    """A spreadsheet takes a cell that begins like this for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
