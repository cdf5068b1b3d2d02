"""TensorFlow Datasets without TensorFlow, and the order in which Grain visits comparisons."""

import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import chisquare

from rewards.data.order import epoch_order, grain_source, row_at
from rewards.data.read import read_preferences
from rewards.data.tfds_builder import build
from rewards.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_equal(found, expected):
    for field in fields(expected):
        if field.name != "source":
            left, right = getattr(found, field.name), getattr(expected, field.name)
            same = np.array_equal(left, right) if isinstance(right, np.ndarray) else left == right
            assert same, field.name


def test_a_file_comes_back_from_tfds_exactly(row, write, cache):
    chat = [{"role": "user", "content": "Hällo\nyou"}]
    rows = [
        row(chosen=f"text {n}", user_id=f"u{n % 3}", outcome=(1, 0.5)[n % 2], item_id=str(n))
        for n in range(40)
    ]
    rows += [
        row(prompt=chat, chosen="a", rejected="b", attributes={"x": [1, 2.5, None]}, timestamp="2024-01-01")
    ]
    rows += [row(prompt='[{"looks": "like chat"}]', reason="", choice_context={"kind": "x"})]
    path = write(rows)
    folder = build(path)
    assert str(cache) in str(folder)
    expected = read_preferences(path)
    assert_equal(read_preferences(f"tfds:{folder}"), expected)
    assert_equal(read_preferences(f"tfds:{folder.parent}", "all"), expected)  # a folder above will do
    assert read_preferences(f"tfds:{folder}", "train[:10%]").num_comparisons == 4
    with pytest.raises(UserError, match="has no split 'test'; choose one of train or 'all'"):
        read_preferences(f"tfds:{folder}", "test")


def test_features_without_text_come_back(row, write, cache):
    bare = {"prompt": ..., "chosen": ..., "rejected": ...}
    path = write([row(**bare, chosen_features=[0.1, n], rejected_features=[n, 0.7]) for n in range(3)])
    assert_equal(read_preferences(f"tfds:{build(path)}"), read_preferences(path))


def test_a_changed_file_is_another_data_set(row, write, cache):
    first = build(write([row()]))
    assert build(write([row()])) == first
    second = build(write([row(chosen="Other.")]))
    assert second != first
    assert read_preferences(f"tfds:{second}").item_text[0] == "Other."


def test_a_bad_file_leaves_no_data_set(row, write, cache):
    with pytest.raises(UserError, match="row 2: field 'chosen'"):
        build(write([row(), row(chosen=" ")]))
    assert not list(cache.rglob("features.json"))
    with pytest.raises(UserError, match="no such file or set; use electricity, train-trips"):
        build("electrcity")


def test_damaged_folders_are_one_line(row, write, cache):
    folder = build(write([row(chosen=f"t{n}") for n in range(50)]))
    shard = next(folder.glob("*array_record*"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="tfds:") as caught:
        read_preferences(f"tfds:{folder}")
    assert "\n" not in str(caught.value)
    shard.write_bytes(content)
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match="damaged data set folder") as caught:
        read_preferences(f"tfds:{folder}")
    assert "\n" not in str(caught.value)


def test_several_data_sets_in_a_folder_must_be_told_apart(row, write, cache):
    build(write([row()], "a.jsonl"))
    build(write([row()], "b.jsonl"))
    with pytest.raises(UserError, match="it holds several: name one of"):
        read_preferences(f"tfds:{cache}")


def test_foreign_features_are_understood(tmp_path):
    """A folder built by somebody else: typed, nested features, chat messages, no `row`; in a process of its
    own.
    """
    script = """
import sys, json
import numpy as np, tensorflow_datasets as tfds
class Foreign(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    def _info(self):
        messages = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "chosen": messages, "rejected": messages, "user_id": np.int64, "timestamp": tfds.features.Text(),
            "choice_context": {"order": np.int64}, "chosen_features": tfds.features.Tensor(shape=(2,),
            dtype=np.float32), "rejected_features": tfds.features.Tensor(shape=(None,), dtype=np.float32)}))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        hi = {"role": "user", "content": "Hi"}
        for n in range(5):
            yield n, {"chosen": [hi, {"role": "assistant", "content": f"a{n}"}], "timestamp": "",
                      "rejected": [hi, {"role": "assistant", "content": "b"}], "user_id": n % 2,
                      "choice_context": {"order": 9 - n}, "chosen_features": np.float32([n, 0.5]),
                      "rejected_features": np.float32([0.25, 0.5])}
builder = Foreign(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
assert "tensorflow" not in sys.modules
from rewards.data.read import read_preferences
prefs = read_preferences(f"tfds:{builder.data_path}")
assert "tensorflow" not in sys.modules
print(json.dumps([sorted(prefs.item_text), list(prefs.prompts), sorted(prefs.user_ids),
prefs.columns["timestamp"],
                  sorted(zip([prefs.item_text[i] for i in prefs.chosen], prefs.choice.tolist()))]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    items, prompts, users, times, choice = json.loads(result.stdout.splitlines()[-1])
    assert items == ["a0", "a1", "a2", "a3", "a4", "b"]
    assert prompts == [[["user", "Hi"]]]
    assert users == ["0", "1"]
    assert times == [None] * 5
    assert choice == [["a0", 2], ["a1", 1], ["a2", 1], ["a3", 0], ["a4", 0]]


def test_every_epoch_is_a_permutation_of_its_own():
    orders = {tuple(epoch_order(97, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert all(sorted(order) == list(range(97)) for order in orders)
    np.testing.assert_array_equal(epoch_order(97, 3, 2), epoch_order(97, 3, 2))
    assert epoch_order(1, 0, 5).tolist() == [0]


def test_the_order_is_fair():
    """Which row comes first, over 400 epochs of six rows: uniform by χ² at p > 1e-4 (seeds fixed)."""
    first = np.bincount([row_at(6, 11, 6 * epoch) for epoch in range(400)], minlength=6)
    assert chisquare(first).pvalue > 1e-4


def test_a_position_needs_no_history():
    order = np.concatenate([epoch_order(10, 4, epoch) for epoch in range(3)])
    assert [row_at(10, 4, position) for position in range(30)] == order.tolist()


def test_grain_batches_are_a_function_of_seed_and_position(row, write):
    prefs = read_preferences(write([row(chosen=f"c{n}", user_id=f"u{n % 4}") for n in range(10)]))
    batches = grain_source(prefs, seed=4).batch(5)
    order = np.concatenate([epoch_order(10, 4, epoch) for epoch in range(3)])
    for step in (5, 0, 3):  # any order: nothing is remembered
        batch = batches[step]
        expected = order[5 * step : 5 * step + 5]
        np.testing.assert_array_equal(batch["comparison"], expected)
        np.testing.assert_array_equal(batch["chosen"], prefs.chosen[expected])
        np.testing.assert_array_equal(batch["user_index"], prefs.user_index[expected])
        assert batch["outcome"].dtype == np.float32
    iterator = iter(batches.to_iter_dataset())
    next(iterator)
    state = iterator.get_state()
    second = next(iterator)["comparison"]
    iterator = iter(batches.to_iter_dataset())
    iterator.set_state(state)
    np.testing.assert_array_equal(next(iterator)["comparison"], second)
