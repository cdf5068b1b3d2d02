"""What other tools open: Markdown, Inspect's logs, a tracker's table of samples."""

import json
import re
import types

import pytest

from rlhf.evaluation.outputs import formats
from rlhf.run import trackers
from tests.rlhf.report.outputs_world import made


@pytest.fixture(scope="module")
def found():
    result, _, _, rows = made(3, 4, number=2)
    return result, rows


def test_inspect_has_one_sample_a_completion_and_one_score_a_judge(found, tmp_path):
    result, rows = found
    formats.write_inspect(tmp_path, result, rows)
    files = sorted((tmp_path / "inspect").iterdir())
    assert [file.name for file in files] == [
        f"{number}-{name}.json" for number, name in enumerate(result["policies"])
    ]
    for file, (name, one) in zip(files, result["policies"].items(), strict=True):
        log = json.loads(file.read_text())
        own = [row for row in rows if row["policy"] == name]
        assert log["eval"]["model"] == name and len(log["samples"]) == len(own)
        assert {(sample["id"], sample["epoch"]) for sample in log["samples"]} == {
            (f"{row['prompt_number']} {row['person']}", row["sample"] + 1) for row in own
        }
        [score] = log["results"]["scores"]
        mean = one["worth"]["own reward"]["mean"]["mean"]
        assert score["metrics"]["mean"]["value"] == pytest.approx(mean)
        sample = log["samples"][0]
        assert sample["output"]["completion"] == own[0]["text"]
        assert sample["scores"]["own reward"]["value"] == own[0]["worth"]["own reward"]


def test_inspect_reads_its_logs(found, tmp_path):
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    result, rows = found
    formats.write_inspect(tmp_path, result, rows)
    for file in (tmp_path / "inspect").iterdir():
        read = log.read_eval_log(str(file))
        assert read.status == "success" and len(read.samples) == read.results.total_samples


def test_markdown_has_the_numbers_and_nothing_that_acts(found, tmp_path):
    result, _ = found
    policies = {name + "|<b>[x](javascript:1)": one for name, one in result["policies"].items()}
    formats.write_markdown(tmp_path, result | {"policies": policies})
    page = (tmp_path / "report.md").read_text()
    for one in result["comparisons"]:
        assert f"{one['win_rate']['mean']:.1%}" in page and " against ".join(one["policies"]) in page
    for one in policies.values():
        assert f"{one['worth']['own reward']['mean']['mean']:.4g}" in page
    assert not re.search(r"(?<!\\)[<>]|(?<!\\)\[", page)
    heads = [line for line in page.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in heads}) == 2  # no cell broke a table


def test_wandb_gets_figures_and_a_table_of_samples(found, tmp_path, monkeypatch, caplog):
    """All but W&B's own service, which takes a minute to start on a busy machine."""
    pytest.importorskip("wandb", reason="needs wandb")
    logged = []

    class Offline(trackers.Wandb):
        def __init__(self, directory, name, mark):
            self._run = types.SimpleNamespace(
                log=lambda values, **_: logged.append(values), finish=lambda: None
            )

    monkeypatch.setitem(trackers._ELSEWHERE, "wandb", (Offline, "wandb"))
    result, rows = found
    formats.track(tmp_path, ("wandb", "tensorboard"), result, rows)
    assert not caplog.text
    [figures, tables] = logged
    own = result["policies"]["own"]
    assert figures["own/own reward"] == own["worth"]["own reward"]["mean"]["mean"]
    assert figures["own/distinct_1"] == own["quality"]["distinct_1"]
    assert [row[3] for row in tables["samples"].data] == [row["text"] for row in rows]
    assert tables["samples"].columns[:4] == ["policy", "person", "prompt", "text"]
    assert list((tmp_path / "tensorboard").iterdir())
