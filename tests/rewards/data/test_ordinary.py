"""Data as people have it: TRL's formats under any column names, tables with commas, saved folders, tools in chats."""

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rewards.data.examples import read_examples
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.people.pool import prompt_of
from rewards.types import Message, as_messages

PAIR = {"prompt": "Which one?", "chosen": "The red one.", "rejected": "The blue one."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TALK = [
    {"role": "user", "content": "Weather?", "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    {"role": "assistant", "content": "Sunny."},
]


def texts(prefs):
    prompts = [prefs.prompts[prefs.item_prompt[item]] for item in prefs.chosen]
    return list(zip(prompts, [prefs.item_text[item] for item in prefs.chosen], strict=True))


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"prompt": "2 + 2?", "completion": "4"}, ("2 + 2?", "4")),
        (
            {
                "prompt": [{"role": "user", "content": "2 + 2?"}],
                "completion": [{"role": "assistant", "content": "4"}],
            },
            ((("user", "2 + 2?"),), "4"),
        ),
        (
            {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]},
            ((("user", "2 + 2?"),), "4"),
        ),
        ({"text": "Once upon a time."}, ((), "Once upon a time.")),
        (PAIR, ("Which one?", "The red one.")),
    ],
)
def test_every_shape_teaches_its_completion(record, expected, write):
    assert texts(read_examples(write([record]))) == [expected]


def test_columns_go_by_the_names_that_they_have(write):
    path = write([{"question": "2 + 2?", "answer": "4", "id": 7}])
    prefs = read_examples(path, columns={"prompt": "question", "completion": "answer"})
    assert texts(prefs) == [("2 + 2?", "4")] and prefs.columns == {"id": [7]}
    with pytest.raises(
        UserError, match=r"nothing to learn in its columns \(question, answer, id\).*completion_column"
    ):
        read_examples(path)
    with pytest.raises(UserError, match="no column 'reply'.*name the one that holds the completion"):
        read_examples(path, columns={"completion": "reply"})


def test_pairs_without_ids_are_nobodys_and_named_where_people_matter(write):
    path = write([PAIR])
    assert not read_preferences(path, people=False).has_people
    with pytest.raises(UserError, match="column 'user_id' is missing.*user_column"):
        read_preferences(path)
    with pytest.raises(UserError, match="column 'rejected' is missing.*rejected_column"):
        read_preferences(write([{"prompt": "a", "chosen": "b", "worse": "c"}]), people=False)
    assert read_preferences(write([{**PAIR, "rater": 3}]), columns={"user_id": "rater"}).user_ids == ("3",)


def test_a_csv_file_holds_text_numbers_of_outcome_and_lists(tmp_path):
    path = tmp_path / "pairs.csv"
    chat = [{"role": "user", "content": 'Say "hi",\nplease'}]
    rows = [
        {**PAIR, "user_id": "007", "outcome": "0.5", "chosen_id": ""},
        {**PAIR, "prompt": json.dumps(chat), "user_id": "7", "outcome": "", "chosen_id": "x"},
    ]
    write_csv(path, rows)
    prefs = read_preferences(str(path))
    assert prefs.user_ids == ("007", "7") and prefs.outcome.tolist() == [0.5, 1.0]
    assert prefs.prompts[1] == (("user", 'Say "hi",\nplease'),)
    assert prefs.columns == {"chosen_id": [None, "x"]}


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("prompt,completion\nlong, text,ha\n", "row 1: .*1 cells more"),
        ("prompt,completion\nshort\n", "row 1: .*fewer cells"),
        ('prompt,completion\n"a" b,c\n', "line 2: not readable"),
        ("prompt,prompt\na,b\n", "two columns have one name"),
        ("prompt,completion\n", "holds no rows"),
    ],
)
def test_a_broken_csv_file_is_named(text, expected, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=f"a.csv: {expected}"):
        read_examples(str(tmp_path / "a.csv"))


def test_one_content_in_every_kind_of_file_is_one_table(tmp_path, write):
    rows = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}"} for n in range(5)]
    expected = texts(read_examples(write(rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "dict")
    write_csv(tmp_path / "a.csv", rows)
    (tmp_path / "a.tsv").write_text(
        "prompt\tcompletion\n" + "".join(f"{n} + 1?\t{n + 1}\n" for n in range(5))
    )
    for name in ("a.parquet", "saved", "dict", "a.csv", "a.tsv"):
        assert texts(read_examples(str(tmp_path / name))) == expected, name
    assert texts(read_examples(str(tmp_path / "dict"), "test")) == expected[:1]


def test_a_name_of_the_hub_is_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="trl-lib/tldr: no such file; write hf:trl-lib/tldr"):
        read_examples("trl-lib/tldr")
    with pytest.raises(UserError, match="no such file; check data.path"):
        read_examples("data/pairs.jsonl")


def test_messages_keep_names_and_tool_calls(write, tmp_path):
    prefs = read_examples(write([{"messages": TALK}]))
    ((prompt, text),) = texts(prefs)
    assert text == "Sunny." and [role for role, _ in prompt] == ["user", "assistant", "tool"]
    assert as_messages(prompt) == [
        {"role": "user", "content": "Weather?", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]
    assert prompt_of(as_messages(prompt)) == prompt
    bare = tuple(tuple(message) for message in prompt)
    assert prompt != bare and hash(prompt) != hash(bare)
    datasets.Dataset.from_list([{"messages": TALK}]).save_to_disk(
        tmp_path / "saved"
    )  # gives all messages all fields
    assert texts(read_examples(str(tmp_path / "saved")))[0][0] == prompt


@pytest.mark.parametrize(
    "message, expected",
    [
        ({"role": "user", "content": "a", "weight": 0}, "message 0 has 'weight'"),
        ({"role": "user", "content": "a", "name": 3}, "message 0: name is 3"),
        ({"role": "assistant", "content": "", "tool_calls": "x"}, "message 0: tool_calls is 'x'"),
        ({"role": "user", "content": ""}, "message 0: is empty"),
        ({"role": "user", "content": [{"type": "image"}]}, "message 0: has a part of type 'image'"),
    ],
)
def test_messages_that_say_what_is_not_read_are_refused(message, expected, write):
    with pytest.raises(UserError, match=expected):
        read_examples(write([{"messages": [message, TALK[-1]]}]))
    with pytest.raises(UserError, match="the last message calls a tool"):
        read_examples(write([{"messages": TALK[:2]}]))


def test_content_in_parts_is_their_text(write):
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    prefs = read_examples(write([{"messages": [{"role": "user", "content": parts}, TALK[-1]]}]))
    assert prefs.prompts == ((("user", "2 + 2?"),),)


def test_a_message_equals_only_its_like():
    one = Message("user", "a", '{"name": "x"}')
    assert one == Message("user", "a", '{"name": "x"}') != Message("user", "a", '{"name": "y"}')
    assert one != ("user", "a") and ("user", "a") != one
