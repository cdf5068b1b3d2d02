"""What a trial is judged by: held-out metrics are those of the policy that is kept."""

import json

import pytest

from rlhf.sweep import measures


def test_a_held_out_metric_needs_measurements():
    name, base = "eval/accuracy", {"train": {"steps": 10, "evaluate_every": 5}}
    assert measures.unknown(name, "train dpo", base) is None
    assert measures.unknown("eval/reward", "train grpo", base) is None
    assert "train.evaluate_every" in str(measures.unknown(name, "train dpo", {"train": {"steps": 10}}))
    assert "no metric" in str(measures.unknown("eval/accuracy", "train sft", base))


@pytest.mark.parametrize(("kept", "value"), [(0.75, 0.75), (None, 0.5)])
def test_it_is_the_kept_policys(tmp_path, kept, value):
    rows = [{"step": step, "eval/accuracy": of} for step, of in ((1, 0.25), (2, 0.75), (3, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {} if kept is None else {"eval/accuracy": kept, "best": {"step": 2}}
    (tmp_path / "metrics.json").write_text(json.dumps(result))
    assert measures.final(tmp_path, "eval/accuracy") == value
