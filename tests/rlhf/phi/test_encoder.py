"""Encoders that need no language model."""

import json

import numpy as np
import pytest

from rewards.data.read import read_preferences
from rewards.errors import UserError
from rlhf.phi import encoder

ROWS = [
    {
        "prompt": "Which?",
        "chosen": f"trip {n}",
        "rejected": f"trip {n + 1}",
        "user_id": f"p{n}",
        "attributes": {
            "feature_names": ["price", "minutes"],
            "chosen": [n, 0.5 * n],
            "rejected": [n + 1, 0.5 * (n + 1)],
        },
    }
    for n in range(4)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_preferences(str(path))


def test_attributes_become_the_items_features(tmp_path):
    prefs = write(tmp_path / "pairs.jsonl", ROWS)
    features, settings = encoder.prepare(prefs, "attributes", None, -1, "mean")
    number = np.array([int(text.split()[1]) for text in prefs.item_text])
    np.testing.assert_allclose(features, np.stack([number, 0.5 * number], axis=1))
    np.testing.assert_allclose(encoder.embed_items(prefs, settings), features)


@pytest.mark.parametrize(
    "attributes", [{"feature_names": ["price"], "chosen": [1.0], "rejected": [2.0]}, None, {}]
)
def test_attributes_that_differ_are_named(tmp_path, attributes):
    rows = [*ROWS[:2], ROWS[2] | {"attributes": attributes}]
    with pytest.raises(UserError, match=r"row 3: attributes: .*encoder\.kind=lm"):
        encoder.prepare(write(tmp_path / "pairs.jsonl", rows), "attributes", None, -1, "mean")


def test_a_missing_column_is_said(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "attributes"} for row in ROWS]
    with pytest.raises(UserError, match="no attributes column"):
        encoder.prepare(write(tmp_path / "pairs.jsonl", rows), "attributes", None, -1, "mean")
