"""Stand-ins for the published model and data set that the documentation names: a tiny model, few and small choices."""

import json

import pytest

from tests.docs.pages import NAMES
from tests.rlhf import tiny
from tests.rlhf.api.world import table


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(name, what stands for it): a model and a file of choices."""
    folder = tmp_path_factory.mktemp("docs")
    rows = "".join(json.dumps(row) + "\n" for row in table(20, 16))
    (folder / "choices.jsonl").write_text(rows)
    config = tiny.write_model(folder / "model") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 256}))
    stand_ins = (str(config.parent), str(folder / "choices.jsonl"))
    return dict(zip(NAMES, stand_ins, strict=True))
