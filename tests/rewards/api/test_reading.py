"""`rewards.read`: every kind of table gives the same preferences; people are held out, or prompts without people."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow
import pytest

import rewards


def rows(num_people=10, pairs=4):
    return [
        {
            "prompt": f"Question {n % 3}?",
            "chosen": f"answer {n % 5}",
            "rejected": f"answer {n % 5 + 1 + person % 2}",
            "user_id": f"p{person}",
            "shown_first": ["chosen", None][n % 2],
        }
        for person in range(num_people)
        for n in range(pairs)
    ]


def hugging_face(table):
    return pytest.importorskip("datasets").Dataset.from_list(table)


TABLES = {
    "columns": lambda table: {name: [row[name] for row in table] for name in table[0]},
    "pandas": pd.DataFrame,
    "pyarrow": pyarrow.Table.from_pylist,
    "datasets": hugging_face,
    "generator": iter,
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_kind_of_table_gives_the_same_preferences(kind):
    expected, found = rewards.read(rows()), rewards.read(TABLES[kind](rows()))
    for name in ("prompts", "item_text", "user_ids", "columns"):
        assert getattr(found.all, name) == getattr(expected.all, name)
    for name in ("user_index", "chosen", "rejected", "outcome", "row"):
        np.testing.assert_array_equal(getattr(found.all, name), getattr(expected.all, name))
    np.testing.assert_array_equal(found.held_out.row, expected.held_out.row)


def test_missing_values_of_pandas_are_not_recorded():
    frame = pd.DataFrame(rows())
    frame["frame"] = [None, "loss"] * (len(frame) // 2)
    frame.loc[3, "shown_first"] = np.nan
    found = rewards.read(frame).all
    assert found.columns["frame"][:2] == [None, "loss"] and found.columns["shown_first"][3] is None


def test_people_are_held_out_and_the_parts_share_their_tables():
    prefs = rewards.read(rows(), held_out=0.3)
    people = [set(part.user_index.tolist()) for part in (prefs.training, prefs.held_out)]
    assert prefs.by == "people" and [len(own) for own in people] == [7, 3] and not people[0] & people[1]
    assert prefs.training.item_text is prefs.held_out.item_text
    again = rewards.read(rows()[::-1], held_out=0.3)
    names = [{part.user_ids[u] for u in part.user_index} for part in (prefs.held_out, again.held_out)]
    assert names[0] == names[1], "who is held out depends on names and seed alone"


def test_pairs_without_people_are_divided_by_prompt():
    bare = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows()]
    prefs = rewards.read(bare, held_out=0.34)
    assert prefs.by == "prompts" and not prefs.all.has_people
    prompts = [set(part.item_prompt[part.chosen].tolist()) for part in (prefs.training, prefs.held_out)]
    assert len(prompts[1]) == 1 and not prompts[0] & prompts[1]
    one = rewards.read(bare[:1])
    assert one.by == "nothing" and one.training.num_comparisons == 1 and one.held_out.num_comparisons == 0
    with pytest.raises(rewards.UserError, match="user_id.*rewards.fit needs.*user_column"):
        rewards.fit(prefs.training)


def test_columns_may_have_other_names():
    renamed = [
        {{"user_id": "worker", "prompt": "question"}.get(k, k): v for k, v in row.items()} for row in rows()
    ]
    before = [dict(row) for row in renamed]
    found = rewards.read(renamed, user_column="worker", prompt_column="question")
    assert found.all.prompts == rewards.read(rows()).all.prompts
    assert renamed == before, "the caller's rows stay as they are"
    with pytest.raises(rewards.UserError, match="no column 'query'.*question"):
        rewards.read(renamed, user_column="worker", prompt_column="query")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (7, "a int is no table"),
        ({"prompt": ["a"], "chosen": ["b", "c"]}, "different lengths .prompt 1, chosen 2."),
        ({"prompt": "a"}, "column 'prompt' is a str"),
        ([], "holds no rows"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b", "user_id": "u"}], "data: row 1: field 'rejected'"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "usr_id": "u"}], "rename it to 'user_id'"),
    ],
)
def test_mistakes_are_named(source, complaint):
    with pytest.raises(rewards.UserError, match=complaint):
        rewards.read(source)


def test_a_split_of_a_dictionary_of_datasets():
    datasets = pytest.importorskip("datasets")
    parts = datasets.DatasetDict(train=hugging_face(rows()), test=hugging_face(rows(4)))
    assert rewards.read(parts, split="test").all.num_comparisons == 16
    with pytest.raises(rewards.UserError, match="no split 'dev'; choose one of train, test"):
        rewards.read(parts, split="dev")


def test_the_package_lists_what_is_public_and_imports_nothing_heavy():
    code = "import sys, rewards; assert not {'jax', 'pydantic', 'numpy'} & set(sys.modules); print(*dir(rewards))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == rewards.__all__
    with pytest.raises(AttributeError, match="no attribute 'reed'; public are"):
        rewards.reed  # noqa: B018
    assert all(getattr(rewards, name) is not None for name in rewards.__all__)
