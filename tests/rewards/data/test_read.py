"""The reader: every accepted shape, every refused one, and what it makes of order and ids."""

import gzip
import json
import os
import threading
import time

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.data import columns, sources
from rewards.data.read import choice_events, read_preferences
from rewards.errors import UserError

BAD_ROWS = {
    "missing chosen": ({"chosen": ...}, "field 'chosen': is missing"),
    "null rejected": ({"rejected": None}, "field 'rejected': is missing"),
    "number as text": ({"chosen": 7}, "field 'chosen': is int 7"),
    "empty text": ({"rejected": "  \n"}, "field 'rejected': is empty ('  \\n')"),
    "empty prompt": ({"prompt": ""}, "field 'prompt': is empty"),
    "no prompt": ({"prompt": ...}, "field 'prompt': is missing"),
    "same text": ({"rejected": "The red one."}, "field 'rejected': is the same text as chosen"),
    "half a surrogate": ({"chosen": "a \ud800"}, "half a surrogate pair at 2"),
    "list against text": ({"rejected": ["The blue one."]}, "chosen is str, rejected is list"),
    "no user": ({"user_id": ...}, "field 'user_id': is missing"),
    "user is a float": ({"user_id": 1.5}, "field 'user_id': is 1.5"),
    "blank user": ({"user_id": " "}, "field 'user_id': is empty"),
    "outcome zero": ({"outcome": 0}, "field 'outcome': is 0; use 1"),
    "outcome true": ({"outcome": True}, "field 'outcome': is True"),
    "outcome text": ({"outcome": "1"}, "field 'outcome': is '1'"),
    "outcome NaN": ({"outcome": float("nan")}, "field 'outcome': is nan"),
    "NaN feature": ({"chosen_features": [1.0, float("nan")], "rejected_features": [1, 2]}, "number 1 is nan"),
    "infinite feature": ({"chosen_features": [1.0], "rejected_features": [float("inf")]}, "number 0 is inf"),
    "beyond float32": ({"chosen_features": [1.0], "rejected_features": [1e39]}, "number 0 is 1e+39"),
    "feature is text": (
        {"chosen_features": ["1"], "rejected_features": [1]},
        "field 'chosen_features': is ['1']",
    ),
    "feature is bool": ({"chosen_features": [True, 2], "rejected_features": [1, 2]}, "flat list of numbers"),
    "ragged features": (
        {"chosen_features": [[1], [2, 3]], "rejected_features": [1, 2]},
        "flat list of numbers",
    ),
    "no features": ({"chosen_features": [], "rejected_features": [1]}, "non-empty list"),
    "widths differ": (
        {"chosen_features": [1.0], "rejected_features": [1, 2]},
        "2 numbers, but chosen_features has 1",
    ),
    "one side only": ({"chosen_features": [1.0]}, "field 'rejected_features': is missing while"),
    "shown_first": ({"shown_first": "left"}, "field 'shown_first': is 'left'; use 'chosen' or 'rejected'"),
    "timestamp": ({"timestamp": "yesterday"}, "field 'timestamp': is 'yesterday'; write ISO 8601"),
    "reason": ({"reason": 3}, "field 'reason': is 3"),
    "attributes": ({"attributes": [1]}, "field 'attributes': is [1]"),
    "attribute widths": (
        {"attributes": {"feature_names": ["a", "b"], "chosen": [1], "rejected": [1, 2]}},
        "feature_names asks for 2 numbers",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_field_and_the_number_of_others(name, row, write):
    changes, expected = BAD_ROWS[name]
    # The good row has every column, so the file as a whole has nothing missing; it lacks features only.
    path = write([row(), row(**changes), row(), row(**changes)])
    with pytest.raises(UserError) as caught:
        read_preferences(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: row 2: field ")
    assert expected in message
    assert message.endswith("(1 more bad rows)")
    assert "\n" not in message


CHAT = [{"role": "user", "content": "Hi"}]


def answer(text):
    return {"role": "assistant", "content": text}


BAD_CHATS = {
    "role": ([{"role": "asistant", "content": "x"}], "did you mean 'assistant'"),
    "no content": ([{"role": "assistant", "contents": "x"}], "has 'contents'"),
    "plain list": (["x"], "message 0 is 'x'"),
    "user last": ([*CHAT], "must be the assistant's"),
    "empty list": ([], "is an empty list"),
    "image": (
        [{"role": "assistant", "content": [{"type": "image"}]}],
        "message 0: has a part of type 'image'",
    ),
    "other history": ([{"role": "user", "content": "Ho"}, answer("x")], "differs from chosen before"),
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_a_bad_conversation_is_refused(name, row, write):
    messages, expected = BAD_CHATS[name]
    with pytest.raises(UserError, match="row 1: field 'rejected'") as caught:
        read_preferences(write([row(prompt=..., chosen=[*CHAT, answer("a")], rejected=messages)]))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "context", "expected"),
    [
        (..., CHAT, (("user", "Hi"),)),  # implicit prompt
        (CHAT, [], (("user", "Hi"),)),  # explicit
        (CHAT, CHAT, (("user", "Hi"),)),  # both: not doubled
        ("Hi", CHAT, (("user", "Hi"),)),  # text beside whole conversations, as in UltraFeedback
        ("Hi", [], (("user", "Hi"),)),
        (CHAT, [answer("Yes?"), *CHAT], (("user", "Hi"), ("assistant", "Yes?"), ("user", "Hi"))),
    ],
)
def test_chat_rows_give_the_last_answer_and_the_shared_prompt(prompt, context, expected, row, write):
    prefs = read_preferences(
        write([row(prompt=prompt, chosen=[*context, answer("a")], rejected=[*context, answer("b")])])
    )
    assert prefs.prompts == (expected,)
    assert [prefs.item_text[prefs.chosen[0]], prefs.item_text[prefs.rejected[0]]] == ["a", "b"]


def test_chat_without_any_prompt_is_refused(row, write):
    with pytest.raises(UserError, match="field 'prompt': is missing"):
        read_preferences(write([row(prompt=..., chosen=[answer("a")], rejected=[answer("b")])]))


@pytest.mark.parametrize(
    "wrong", ["userId", "shown_frist", "time_stamp", "outcom", "Reason", "chosen_feature", "choice_contxt"]
)
def test_a_misspelt_column_is_refused_with_the_nearest_name(wrong, row, write):
    right = min(columns.KNOWN, key=lambda name: columns.slips(wrong.lower(), name))
    rows = [row(**{wrong: "x"})]
    if right == "user_id":
        rows = [row(user_id=..., userId="x")]
    with pytest.raises(UserError, match=f"column '{wrong}' is unknown; rename it to '{right}'"):
        read_preferences(write(rows))


def test_extra_columns_are_kept_even_when_they_resemble_a_present_one(row, write):
    prefs = read_preferences(
        write([row(item_id="a", item_idx=3, prompt_id="p", score_chosen=0.7), row(item_id="b")])
    )
    assert prefs.columns == {
        "item_id": ["a", "b"],
        "item_idx": [3, None],
        "prompt_id": ["p", None],
        "score_chosen": [0.7, None],
    }


@given(st.text("abcd", max_size=6), st.text("abcd", max_size=6))
@settings(max_examples=60, deadline=None)
def test_slips_agree_with_the_recursive_definition(a, b):
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        options = [distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0])]
        if len(a) > 1 and len(b) > 1 and a[0] == b[1] and a[1] == b[0]:
            options.append(distance(a[2:], b[2:]) + 1)
        return min(options)

    if abs(len(a) - len(b)) <= 2:
        assert columns.slips(a, b) == distance(a, b)


@pytest.mark.parametrize("column", ["chosen", "user_id"])
def test_a_missing_column_is_named_once_for_the_file(column, row, write):
    with pytest.raises(UserError, match=f"prefs.jsonl: column '{column}' is missing"):
        read_preferences(write([row(**{column: ...})] * 3))


def test_broken_files_are_named(tmp_path, row, write):
    good = "".join(json.dumps(row(chosen=f"text {i}")) + "\n" for i in range(2000)).encode()
    cases = {
        "cut.jsonl.gz": (gzip.compress(good)[:-30], "damaged gzip after line"),
        "flipped.jsonl.gz": (
            gzip.compress(good)[:200] + b"\xff\xff" + gzip.compress(good)[202:],
            "damaged gzip",
        ),
        "empty.jsonl": (b"", "holds no rows"),
        "blank.jsonl": (b"\n\n", "holds no rows"),
        "line.jsonl": (good + b"{oops}\n", "row 2001: field 'row': is not JSON"),
        "latin.jsonl": ("{'é'}\n".encode("latin-1"), "row 1: field 'row': is not UTF-8"),
        "list.jsonl": (b"[1]\n", "row 1: field 'row': must be a JSON object"),
        "array.json": (b'[{"prompt": 1,]', "not valid JSON"),
        "bad.parquet": (b"PAR1", "not a readable parquet file"),
        "prefs.odt": (b"a,b\n", "unknown kind of file"),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_preferences(str(tmp_path / name))
        assert str(caught.value).startswith(str(tmp_path / name)), name
        assert expected in str(caught.value), name
        assert "\n" not in str(caught.value), name


def test_places_and_splits_that_do_not_exist(tmp_path, row, write):
    path = write([row()])
    for place, split, expected in [
        (str(tmp_path / "none.jsonl"), "train", "no such file"),
        (str(tmp_path), "train", "is a folder"),
        (path, "test", "split 'test': a file is one split"),
        (f"hf:{tmp_path}/none", "train", "no such folder"),
        (f"tfds:{tmp_path}/none", "train", "no such folder"),
        (f"tfds:{tmp_path}", "train", "holds no features.json"),
        ("tfds:no_such_set", "train", "no such data set"),
    ]:
        with pytest.raises(UserError, match=expected):
            read_preferences(place, split)
    assert read_preferences(path, "all").num_comparisons == 1


def test_every_file_kind_gives_the_same_preferences(tmp_path, row, write):
    rows = [row(outcome=0.5, reason="why"), row(user_id="bob", chosen="The blue one.", rejected="Ünï")]
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\n")
    (tmp_path / "zip.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "lines.json").write_text(text)
    (tmp_path / "array.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    halves = {"train": datasets.Dataset.from_list(rows[:1]), "test": datasets.Dataset.from_list(rows[1:])}
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "dict"))
    expected = read_preferences(write(rows))
    assert expected.outcome.tolist() == [0.5, 1.0]
    assert expected.item_text == ("The red one.", "The blue one.", "Ünï")
    assert (expected.chosen.tolist(), expected.rejected.tolist()) == ([0, 1], [1, 2])
    places = ["bom.jsonl", "zip.jsonl.gz", "lines.json", "array.json", "table.parquet"]
    for place in [
        *(str(tmp_path / name) for name in places),
        f"hf:{tmp_path / 'saved'}",
        f"hf:{tmp_path / 'dict'}",
    ]:
        found = read_preferences(place, "all")
        assert found.item_text == expected.item_text, place
        assert found.user_ids == ("ann", "bob"), place
        assert found.outcome.tolist() == [0.5, 1.0], place
        assert found.columns == {"reason": ["why", None]}, place
        assert found.row.tolist() == [1, 2], place
    assert read_preferences(f"hf:{tmp_path / 'dict'}", "test").user_ids == ("bob",)
    with pytest.raises(UserError, match="no split 'dev'; choose one of train, test or 'all'"):
        read_preferences(f"hf:{tmp_path / 'dict'}", "dev")
    with pytest.raises(UserError, match="holds the one split 'train', not 'dev'"):
        read_preferences(f"hf:{tmp_path / 'saved'}", "dev")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("array", [False, True])
def test_a_pipe_and_standard_input_are_read_once(pack, array, tmp_path, row, write):
    rows = [row(), row(user_id="bob")]
    text = json.dumps(rows, indent=1) if array else "".join(json.dumps(one) + "\n" for one in rows)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(pack(text.encode()),))
    writer.start()
    assert read_preferences(str(pipe)).user_ids == ("ann", "bob")
    writer.join()
    kept = os.dup(0)
    (tmp_path / "input").write_bytes(pack(text.encode()))
    try:
        for name in ("-", "/dev/stdin"):
            with open(tmp_path / "input", "rb") as file:
                os.dup2(file.fileno(), 0)
            assert read_preferences(name).user_ids == ("ann", "bob")
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"hf:some/set split 'train': cannot be loaded \(ConnectionError: no route\)"
    ):
        read_preferences("hf:some/set")


def test_hub_names_carry_an_optional_configuration(monkeypatch, row):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or datasets.Dataset.from_list([row()])
    )
    read_preferences("hf:org/name/part", "train[:5]")
    read_preferences("hf:org/name")
    assert asked == [(("org/name", "part"), {"split": "train[:5]"}), (("org/name", None), {"split": "train"})]


def test_missing_datasets_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'chorus-rlhf\[hub\]'"):
        read_preferences("hf:some/set")


def test_another_user_column_and_whole_number_ids(row, write):
    path = write([row(user_id=..., worker=7), row(user_id=..., worker="7")])
    assert read_preferences(path, user_column="worker").user_ids == ("7",)
    with pytest.raises(UserError, match="column 'user_id' is missing.*user_column"):
        read_preferences(path)


def test_features_may_replace_text_and_must_have_one_width(row, write):
    bare = {"prompt": ..., "chosen": ..., "rejected": ...}
    rows = [
        row(**bare, chosen_features=[0.7, 1], rejected_features=[0.2, 0.1]),
        row(**bare, chosen_features=[0.2, 0.1], rejected_features=[0.7, 1]),
    ]
    prefs = read_preferences(write(rows))
    np.testing.assert_array_equal(prefs.item_features, np.float32([[0.7, 1], [0.2, 0.1]]))
    assert (prefs.chosen.tolist(), prefs.rejected.tolist()) == ([0, 1], [1, 0])
    wider = row(**bare, chosen_features=[1, 2, 3], rejected_features=[3, 2, 1])
    with pytest.raises(UserError, match="row 3: field 'chosen_features': has 3 numbers, but row 1 has 2"):
        read_preferences(write([*rows, wider]))
    with pytest.raises(UserError, match="row 2: field 'chosen_features': is missing, but row 1 has 2"):
        read_preferences(write([rows[0], row()]))


def test_choice_sets_are_one_event_and_order_beats_time_beats_file(row, write):
    def choices(rows):
        return read_preferences(write(rows)).choice.tolist()

    sets = [("ann", 9), ("ann", 9), ("bob", 4), ("ann", 2), ("bob", 30)]
    assert choices([row(user_id=u, choice_context={"choice_set": c}) for u, c in sets]) == [1, 1, 0, 0, 1]
    assert choices([row(choice_context={"order": n}) for n in (3, 1, 2)]) == [2, 0, 1]
    # 10:00+02:00 is before 09:00Z; a time without zone is UTC; equal times keep the file order.
    times = ["2024-01-01T09:00:00Z", "2024-01-01T10:00:00+02:00", "2024-01-01T09:00:00", 0]
    assert choices([row(timestamp=time) for time in times]) == [2, 1, 3, 0]
    mixed = [("ann", None), ("bob", "2024-01-02"), ("ann", "2020-01-01"), ("bob", "2024-01-01")]
    assert choices([row(user_id=u, timestamp=time) for u, time in mixed]) == [0, 1, 1, 0]
    assert choices([row()] * 3) == [0, 1, 2]
    with pytest.raises(UserError, match="choice_context.choice_set is missing in 1 rows"):
        choices([row(choice_context={"choice_set": 1}), row()])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_choice_events_agree_with_a_slow_loop(pairs):
    users = np.array([user for user, _ in pairs], np.int32)
    columns = {"choice_context": [{"choice_set": number} for _, number in pairs]}
    events = {u: sorted({number for user, number in pairs if user == u}) for u in set(users.tolist())}
    assert choice_events(users, columns, 4, "x").tolist() == [events[u].index(number) for u, number in pairs]


def test_shown_first_is_read_from_either_spelling(row, write):
    context = [row(choice_context={"chosen_shown": place}) for place in ("first", "B", None)]
    assert read_preferences(write(context)).columns["shown_first"] == ["chosen", "rejected", None]
    own = [row(shown_first=True), row(shown_first="rejected")]
    assert read_preferences(write(own)).columns["shown_first"] == ["chosen", "rejected"]


def test_fifty_thousand_rows_take_seconds(row, write):
    rows = [
        row(chosen=f"text {i % 997}", rejected=f"other {i % 991}", user_id=f"u{i % 503}")
        for i in range(50_000)
    ]
    path = write(rows)
    start = time.process_time()
    prefs = read_preferences(path)
    assert time.process_time() - start < 10  # about 1.5 here; the bound leaves room for slow machines
    assert (prefs.num_comparisons, prefs.num_users, prefs.num_items) == (50_000, 503, 997 + 991)


def test_blank_lines_do_not_shift_row_numbers(tmp_path, row):
    path = tmp_path / "gap.jsonl"
    path.write_text(f"\n{json.dumps(row())}\n\n{json.dumps(row(outcome=3))}\n")
    with pytest.raises(UserError, match="row 4: field 'outcome'"):
        read_preferences(str(path))
    assert [number for number, _ in sources.json_records(path)] == [2, 4]
