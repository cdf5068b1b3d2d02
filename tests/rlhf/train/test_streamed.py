"""Preferences that are read when they are visited: the numbers of those that are read at once."""

import json

import numpy as np
import pytest

import rlhf
from rewards.data.stream import Stream
from rewards.errors import UserError
from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import made
from rlhf.train import dpo
from tests.rlhf import tiny


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
    from rlhf.policy.store import flatten

    return flatten(policy.params.lora)


def test_a_stream_trains_what_the_whole_set_does(world):
    whole, stream = world("whole"), world("stream", data={"stream": True})
    a, b = dpo.run(whole), dpo.run(stream)
    assert a["train/loss/total"] == pytest.approx(b["train/loss/total"], abs=1e-5)
    one, two = weights(whole), weights(stream)
    assert all(np.abs(one[name] - two[name]).max() < 1e-5 for name in one)


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
