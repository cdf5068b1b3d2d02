"""Preferences that are read when they are visited: the numbers of those that are read at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlhf
from rewards.data.stream import Stream
from rewards.errors import UserError
from rlhf.policy import store
from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import made
from rlhf.train import dpo, sft, streamed
from rlhf.train.callbacks import Function
from tests.rlhf import tiny
from tests.rlhf.api.world import table
from tests.rlhf.run.jobs import Job


def rows(count: int) -> list[dict[str, str]]:
    """Distinct pairs of several lengths."""
    texts = [" ".join(f"item {(n + k) % 12}" for k in range(1 + n % 4)) for n in range(count)]
    return [
        {"prompt": f"Which {n % 5} ?", "chosen": f"{text} {n}", "rejected": f"item {n % 7}"}
        for n, text in enumerate(texts)
    ]


@pytest.fixture
def world(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=48)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(24)))

    def config(output: str, **keys):
        values = {
            "seed": 3,
            "output_dir": str(tmp_path / output),
            "data": {"path": str(path)} | keys.pop("data", {}),
            "model": {"name": str(model)},
            "loss": {"kind": "dpo"},
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-3},
            "train": {"steps": 4, "batch_rows": 4, "accumulation_steps": 2, "log_every": 1, **keys},
        }
        return made(values, schema_of("dpo"), "test", {})

    return config


def weights(config) -> dict[str, np.ndarray]:
    policy = rlhf.load_policy(config.output_dir).loaded
    return store.flatten(policy.params.lora)


def test_a_stream_trains_what_the_whole_set_does(world):
    whole, stream = world("whole"), world("stream", data={"stream": True})
    a, b = dpo.run(whole), dpo.run(stream)
    assert a["train/loss/total"] == pytest.approx(b["train/loss/total"], abs=1e-5)
    one, two = weights(whole), weights(stream)
    assert all(np.abs(one[name] - two[name]).max() < 1e-5 for name in one)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Rewards of people of two tastes, by an encoder with a model of its own."""
    job = Job(tmp_path_factory.mktemp("people"))
    job.fit()
    return job.folder


def personal(fitted: Path, tmp_path: Path, **loss: Any) -> Callable[[str, bool], Any]:
    """Configurations on rows each of which has a prompt of its own, in whole files and in streams."""
    rows = [row | {"prompt": f"Which {n} ?"} for n, row in enumerate(table()[:24])]
    rows[5]["user_id"] = "somebody else"  # whose own labels are left out
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(output: str, stream: bool):
        values = {
            "seed": 3,
            "output_dir": str(tmp_path / output),
            "data": {"path": str(path), "stream": stream},
            "model": {"name": str(fitted / "model")},
            "rewards": str(fitted / "rewards"),
            "loss": loss,
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-3},
            "train": {"steps": 3, "batch_rows": 4, "log_every": 1},
        }
        return made(values, schema_of("dpo"), "test", {})

    return config


@pytest.mark.parametrize("kind", ["soft", "observed"])
def test_people_in_a_stream_are_those_of_the_whole_set(fitted, tmp_path, kind):
    config = personal(fitted, tmp_path, kind=kind, nll_coef=0.1)
    a, b = dpo.run(config("whole", False)), dpo.run(config("stream", True))
    assert a["train/loss/total"] == pytest.approx(b["train/loss/total"], abs=1e-5)
    assert a["num_rows"] == b["num_rows"] == (24 if kind == "soft" else 23)
    one, two = (
        store.flatten(rlhf.load_policy(tmp_path / name).loaded.params.conditioner)
        for name in ("whole", "stream")
    )
    assert one and all(np.abs(one[name] - two[name]).max() < 1e-5 for name in one)


def test_a_row_that_does_not_say_who_chose_has_no_label_of_its_own(fitted, tmp_path):
    config = personal(fitted, tmp_path, kind="observed")("out", True)
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "Which ?", "chosen": "item 1", "rejected": "item 2"}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"pairs.jsonl: row 25: field 'user_id': is missing; say who chose"):
        dpo.run(config)
    path.write_text(json.dumps(row | {"user_id": "somebody else"}) + "\n")
    with pytest.raises(UserError, match="none of its people was in the fit of the reward run"):
        dpo.run(config)


def test_what_needs_all_rows_is_refused(world):
    with pytest.raises(UserError, match=r"train\.evaluate_every 2: needs all rows at once"):
        dpo.run(world("out", data={"stream": True}, evaluate_every=2))


def test_shards_are_one_stream_and_bad_rows_are_named(tmp_path):
    given = [json.dumps(row) for row in rows(5)]
    (tmp_path / "a-1.jsonl").write_text("\n".join(given[:3]) + "\n\n")
    (tmp_path / "a-2.jsonl").write_text("\n".join([given[3], '{"prompt": "x"']))
    stream = Stream(str(tmp_path / "a-*.jsonl"))
    assert len(stream) == 5 and stream.pair(3)[1] == rows(4)[3]["chosen"]
    with pytest.raises(UserError, match=r"row 5: .*is not JSON"):
        stream.pair(4)
    with pytest.raises(UserError, match="cannot be read row by row"):
        (tmp_path / "b.csv").write_text("prompt,chosen,rejected\n")
        Stream(str(tmp_path / "b.csv"))


def test_parquet_gives_the_same_rows(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    table = pyarrow.Table.from_pylist([row | {"source": row["prompt"]} for row in rows(5)])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    stream = Stream(str(tmp_path / "a.parquet"), {"prompt": "source"})
    assert [stream.pair(n)[0] for n in range(5)] == [row["prompt"] for row in rows(5)]


def test_array_record_gives_the_same_rows(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for text in [*(json.dumps(row) for row in rows(5)), '{"prompt": "x"']:
        writer.write(text.encode())
    writer.close()
    stream = Stream(str(tmp_path / "*.array_record"))
    assert len(stream) == 6 and [stream.pair(n)[1] for n in range(5)] == [row["chosen"] for row in rows(5)]
    with pytest.raises(UserError, match="row 6: .*is not JSON"):
        stream.pair(5)
    (tmp_path / "b.array_record").write_text("{}\n" * 100)
    with pytest.raises(UserError, match=r"b\.array_record: not a readable array_record file"):
        Stream(str(tmp_path / "b.array_record"))


@pytest.mark.parametrize("blank", ["\n", "\r\n", "  \n", "\t\r\n"])
def test_blank_lines_are_no_rows_and_a_torn_last_line_is_one(tmp_path, blank):
    row = '{"prompt": "Which ?", "chosen": "item 1", "rejected": "item 2"}\n'
    path = tmp_path / "rows.jsonl"
    path.write_text(blank + row + blank + row + blank)
    rows = Stream(str(path))
    assert len(rows) == 2 and rows.pair(0) == rows.pair(1)
    path.write_text(row + blank + row + "{")
    rows = Stream(str(path))
    assert len(rows) == 3 and rows.pair(1)
    with pytest.raises(UserError, match="row 3: .*is not JSON"):
        rows.pair(2)


@pytest.fixture
def examples(tmp_path):
    """Examples of one length, in the order in which packing sorts them, each of which fills a row."""
    model = tiny.write_model(tmp_path / "model", vocab_size=48)
    path = tmp_path / "examples.jsonl"
    given = [{"prompt": f"item {n} ?", "completion": f"item {n} item"} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))

    def config(output: str, **keys):
        values = {
            "seed": 3,
            "output_dir": str(tmp_path / output),
            "data": {"path": str(path)} | keys.pop("data", {}),
            "model": {"name": str(model)},
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-3},
            "completions": keys.pop("completions", "chosen"),
            "train": {"steps": 4, "batch_rows": 4, "accumulation_steps": 2, "log_every": 1, "row_length": 8}
            | keys,
        }
        return made(values, schema_of("sft"), "test", {})

    return config


def test_a_stream_of_examples_trains_what_the_whole_set_does(examples):
    whole, stream = examples("whole"), examples("stream", data={"stream": True})
    a, b = sft.run(whole), sft.run(stream)
    assert a["train/loss/total"] == pytest.approx(b["train/loss/total"], abs=1e-5)
    one, two = weights(whole), weights(stream)
    assert all(np.abs(one[name] - two[name]).max() < 1e-5 for name in one)


def test_a_stream_of_examples_goes_on_where_it_was(examples):
    """The position is the step of the checkpoint."""
    whole, broken = (
        examples("whole", data={"stream": True}),
        examples("broken", data={"stream": True}, checkpoint_every=1),
    )
    sft.run(whole)

    def stop(step, metrics):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft.run(broken, callbacks=[Function(stop)])
    sft.run(broken)
    one, two = weights(whole), weights(broken)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_rows_of_every_kind_are_examples(tmp_path, examples):
    path = tmp_path / "kinds.jsonl"
    rows = [
        {"prompt": "Which ?", "completion": "item 1"},
        {"messages": [{"role": "user", "content": "Which ?"}, {"role": "assistant", "content": "item 2"}]},
        {"text": "item 3"},
        {"prompt": "Which ?", "chosen": "item 4", "rejected": "item 5"},
        {"prompt": "Which ?", "chosen": "item 4", "rejected": "item 5", "outcome": 0.5},
        {"prompt": "Which ?", "completion": 7},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = Stream(str(path))
    found = [stream.example(n)[1] for n in range(5)]
    assert found[:3] == [{"item 1": 1.0}, {"item 2": 1.0}, {"item 3": 1.0}]
    assert found[3:] == [{"item 4": 1.0, "item 5": 0.0}, {"item 4": 0.5, "item 5": 0.5}]
    with pytest.raises(UserError, match=r"kinds.jsonl: row 6: .*completion"):
        stream.example(5)
    config = examples("kinds", data={"stream": True})
    base = sft.open_base(config)
    index = np.array([0, 3, 4])
    assert streamed.example_rows(config, stream, index, base).weight.tolist() == [[1, 0], [1, 0], [0.5, 0.5]]
    learned = examples("kinds", data={"stream": True}, completions="all")
    assert streamed.example_rows(learned, stream, index, base).weight.tolist() == [[1, 0], [1, 1], [1, 1]]
    short = examples("kinds", data={"stream": True}, row_length=8)
    path.write_text(json.dumps({"prompt": "Which ?", "completion": "item " * 9}) + "\n")
    with pytest.raises(UserError, match="train.row_length: 8 tokens cannot hold an example of"):
        streamed.example_rows(short, Stream(str(path)), np.array([0]), base)


def test_a_stream_of_examples_holds_nothing_out(examples):
    with pytest.raises(UserError, match=r"train\.evaluate_every 2: needs all rows at once"):
        sft.run(examples("out", data={"stream": True}, evaluate_every=2))
