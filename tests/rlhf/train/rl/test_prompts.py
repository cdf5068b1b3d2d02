"""Prompts of a run: which rows, which columns, how long, and in which order."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.train.rl import prompts as rl_data
from tests.rlhf.tiny import ToyTokenizer


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def config(path, **changes):
    rollout = {"prompts_per_step": 2, "users_per_prompt": 2, "completions": 3, "max_prompt_tokens": 8}
    rollout |= {"max_new_tokens": 4} | changes
    data = SimpleNamespace(path=path, split="train", columns={}, too_long=rollout.pop("too_long", "error"))
    return SimpleNamespace(seed=5, data=data, rollout=SimpleNamespace(**rollout))


def base(max_positions=32):
    return SimpleNamespace(tokenizer=ToyTokenizer(), config=SimpleNamespace(max_positions=max_positions))


def test_a_preference_file_gives_its_distinct_prompts(tmp_path):
    pair = {"chosen": "yes", "rejected": "no", "user_id": "u", "outcome": 1.0, "hint": None}
    rows = [{"prompt": name, **pair, "answer": number} for number, name in enumerate("abacb")]
    found = rl_data.read_prompts(write(tmp_path / "pairs.jsonl", rows))
    assert found.prompts == ("a", "b", "c") and found.row.tolist() == [1, 2, 4]
    assert found.columns == {"hint": [None] * 3, "answer": [0, 1, 3]}


def test_a_file_of_prompts_keeps_every_row_with_its_columns(tmp_path):
    chat = [{"role": "user", "content": "a"}]
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "a", "answer": 2}, {"prompt": chat, "level": "x"}]
    found = rl_data.read_prompts(write(tmp_path / "prompts.jsonl", rows))
    assert found.prompts == ("a", "a", (("user", "a"),))
    assert found.columns == {"answer": [1, 2, None], "level": [None, None, "x"]}


def test_prompts_go_by_other_names_and_stand_in_conversations(tmp_path):
    rows = [{"question": "a", "answer": 1}, {"question": "b", "answer": 2}]
    path = write(tmp_path / "questions.jsonl", rows)
    found = rl_data.read_prompts(path, columns={"prompt": "question"})
    assert found.prompts == ("a", "b") and found.columns == {"answer": [1, 2]}
    with pytest.raises(UserError, match=r"'prompt' is missing \(columns: question, answer\).*prompt_column"):
        rl_data.read_prompts(path)
    waits, ends = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    other = {"role": "user", "content": "c"}
    talks = write(tmp_path / "talks.jsonl", [{"messages": [other]}, {"messages": [waits, ends]}])
    assert rl_data.read_prompts(talks).prompts == ((("user", "c"),), (("user", "a"),))


BAD = {
    "no prompt": ([{"prompt": "a"}, {"answer": 1}], r"bad.jsonl: row 2: field 'prompt'"),
    "empty": ([{"prompt": " "}], r"row 1: field 'prompt': is empty"),
    "not an object": (["[1]"], r"row 1: field 'row': must be a JSON object"),
    "not JSON": (["{", "{"], r"row 1: .*\(1 more bad rows\)"),
    "a wrong role": ([{"prompt": [{"role": "bot", "content": "x"}]}], "role 'bot'"),
    "nothing": ([], "holds no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_prompts(tmp_path, name):
    rows, expected = BAD[name]
    with pytest.raises(UserError, match=expected):
        rl_data.read_prompts(write(tmp_path / "bad.jsonl", rows))


def test_long_prompts_stop_the_run_or_are_dropped_and_counted(tmp_path, capsys):
    path = write(
        tmp_path / "p.jsonl",
        [{"prompt": "ab", "n": 1}, {"prompt": "abcdefgh", "n": 2}, {"prompt": "c", "n": 3}],
    )
    with pytest.raises(
        UserError, match=r"p.jsonl row 2: prompt of 9 tokens exceeds rollout.max_prompt_tokens 8"
    ):
        rl_data.prompt_set(config(path), base())
    found = rl_data.prompt_set(config(path, too_long="drop"), base())
    assert "1 of 3 prompts exceed" in capsys.readouterr().err
    assert found.dropped == 1 and found.rows.prompts == ("ab", "c") and found.rows.columns == {"n": [1, 3]}
    with pytest.raises(UserError, match="all 3 prompts exceed rollout.max_prompt_tokens 1"):
        rl_data.prompt_set(config(path, too_long="drop", max_prompt_tokens=1), base())
    with pytest.raises(
        UserError,
        match="row 2: prompt of 9 tokens and rollout.max_new_tokens 4 exceed the model's context of 12",
    ):
        rl_data.prompt_set(config(path, max_prompt_tokens=9), base(max_positions=12))


def test_a_step_holds_whole_groups_and_depends_on_its_number_alone(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": letters} for letters in ("a", "bb", "ccc", "dddd", "e")])
    settings = config(path)
    prompts = rl_data.prompt_set(settings, base())
    batches = [rl_data.batches(settings, prompts)(number) for number in range(5)]
    for number, batch in enumerate(batches):
        assert batch.number == number and batch.prompts.tokens.shape == (12, prompts.tokens.shape[1])
        assert (batch.index.reshape(2, 6) == batch.index.reshape(2, 6)[:, :1]).all()
        np.testing.assert_array_equal(batch.prompts.tokens, prompts.tokens[batch.index])
        np.testing.assert_array_equal(batch.index, rl_data.batches(settings, prompts)(number).index)
    visited = np.concatenate([batch.index[::6] for batch in batches])
    assert sorted(visited[:5]) == sorted(visited[5:]) == list(range(5))  # two epochs
