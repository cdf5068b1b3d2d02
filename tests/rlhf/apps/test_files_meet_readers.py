"""Every file that Chorus writes is taken by the readers of its kind, whatever texts stand in it."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import jsonl
from rewards.data.completions import read_completions, read_records
from rewards.data.prompts import read_prompts
from rewards.errors import UserError
from rewards.people.pool import Question
from rlhf.apps import asking
from rlhf.run.metrics import MetricWriter, read_metrics
from rlhf.train.hints import rows as hint_rows
from rlhf.train.hints.lessons import FILE as HINTS
from rlhf.train.rl import samples
from rlhf.train.rl.prompts import read_prompts as read_training_prompts

ANY = st.text(st.sampled_from('ab "\\{}[é\u2028\u2029\x85\x0b\x0c\x1c\r\n\x1b\ufeff'), max_size=8)
FULL = ANY.map(lambda text: f"q{text}")  # prompts say something
PROMPT = FULL | st.lists(st.tuples(st.sampled_from(["system", "user"]), FULL), min_size=1, max_size=3).map(
    tuple
)


def entry(step, prompt, completion):
    return {
        "step": step,
        "row": 1,
        "prompt": jsonl.prompt_value(prompt),
        "completion": completion,
        "coef": [1.0],
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(PROMPT, ANY), min_size=1, max_size=4))
def test_samples_and_reference_completions(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("s") / "samples.jsonl"
    jsonl.write(path, [entry(1, *row) for row in rows])
    table, records = read_records(str(path))
    assert list(table.item_text) == [completion for _, completion in rows]
    assert [table.prompts[n] for n in table.item_prompt] == [prompt for prompt, _ in rows]
    assert [record["completion"] for record in records] == [completion for _, completion in rows]
    assert read_prompts(str(path)) == [prompt for prompt, _ in rows]
    assert set(read_training_prompts(str(path)).prompts) == {prompt for prompt, _ in rows}
    jsonl.write(path, records)  # as `rewards score` writes them
    assert read_completions(str(path)).item_text == table.item_text


def sample_writer(folder, prompts):
    tokenizer = types.SimpleNamespace(
        decode=lambda ids: "".join(map(chr, ids)), encode_completion=lambda text: [*map(ord, text), 0]
    )
    source = types.SimpleNamespace(names=("a",))
    known = types.SimpleNamespace(prompts=prompts, row=np.arange(1, 1 + len(prompts)))
    config = types.SimpleNamespace(
        train=types.SimpleNamespace(steps=9, samples_every=1, sample_rows=8),
        rollout=types.SimpleNamespace(completions=1, skip_special_tokens=True),
    )
    return samples.Samples(folder, tokenizer, source, known, config)


def take(writer, number, texts):
    width = max(len(text) for text in texts) + 1
    tokens, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text) + 1] = [*map(ord, text)], True
    n = len(texts)
    rollout = samples.Rollout(
        **{name: None for name in samples.Rollout._fields}
        | {"tokens": tokens, "mask": mask, "ended": np.ones(n, bool), "coef": np.ones((n, 1)), "z": None}
    )
    writer.take(types.SimpleNamespace(number=number, index=np.arange(n)), rollout, np.full((n, 1), np.nan))


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r", ""])
def test_a_resumed_run_keeps_samples_that_hold_ends_of_lines(tmp_path, end):
    prompts = ("q", (("system", "s"), ("user", f"q{end}q")))
    take(sample_writer(tmp_path, prompts), 0, [f"a{end}b", ""])
    take(sample_writer(tmp_path, prompts), 1, ["c", "d"])
    found = jsonl.rows(tmp_path / "samples.jsonl")
    assert [(row["step"], row["completion"]) for row in found] == [
        (1, f"a{end}b"),
        (1, ""),
        (2, "c"),
        (2, "d"),
    ]
    assert found[0]["reward"] is None  # a number that is not finite
    assert set(read_training_prompts(str(tmp_path / "samples.jsonl")).prompts) == set(prompts)
    assert read_prompts(str(tmp_path / "samples.jsonl")) == [*prompts, *prompts]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(PROMPT, ANY, ANY), min_size=1, max_size=4, unique=True), st.data())
def test_questionnaires(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("q") / "ada.jsonl"
    pool = [Question(prompt, one, two, (1.0,)) for prompt, one, two in rows]
    questions = asking.questionnaire("ada", 0, pool, np.arange(len(pool)))
    replies = [data.draw(st.sampled_from(["1", "2", "tie", "skip", ""])) for _ in questions]
    jsonl.write(path, [row | {"preferred": reply} for row, reply in zip(questions, replies, strict=True)])
    assert asking.is_questionnaire(str(path))
    if len({question.key for question in pool}) < len(pool):
        return
    answers, skipped, empty = asking.read_questionnaire(str(path), "ada", pool)
    assert (len(answers), len(skipped), empty) == (
        sum(reply in ("1", "2", "tie") for reply in replies), replies.count("skip"), replies.count(""),
    )  # fmt: skip
    assert len(read_prompts(str(path))) == len(pool)


def test_a_questionnaire_that_is_not_utf_8_is_one_line(tmp_path):
    path = tmp_path / "ada.jsonl"
    path.write_bytes(b'{"user_id": "ada", "preferred": ""}\n{"user_id": "\xe9"}\n')
    assert asking.is_questionnaire(str(path))
    with pytest.raises(UserError, match="row 1: must hold"):
        asking.read_questionnaire(str(path), "ada", [])
    path.write_bytes(b'{"user_id": "\xe9"}\n')
    with pytest.raises(UserError, match="row 1: is not UTF-8"):
        asking.read_questionnaire(str(path), "ada", [])


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0c", "\x1e"])
def test_decisions_about_hints_are_read_when_a_run_goes_on(tmp_path, end):
    entries = [dict.fromkeys(hint_rows.LINE) | {"hint": f"short{end}er", "sha256": "x"}]
    jsonl.write(tmp_path / HINTS, entries)
    row = types.SimpleNamespace(sha256="x")
    assert hint_rows.as_started([row], tmp_path / HINTS, "hints") == entries  # type: ignore[list-item]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"fine\n\xe9t\xe9\n", b'{"prompt": "\xe9"}\n'])
def test_prompts_that_are_not_utf_8_are_one_line(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_prompts(str(tmp_path / "p"))
    assert "line" in str(caught.value) and "\n" not in str(caught.value)


def test_metrics_are_read_back(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0, "bad": float("nan"), "odd\u2028name": 2.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0, "bad": None, "odd\u2028name": 2.0}]
