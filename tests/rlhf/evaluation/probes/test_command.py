"""`chorus probe` on a tiny random model, and whom it asks for."""

import json
import types

import numpy as np
import pytest

from rewards.basis.belief import Belief
from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.evaluation.probes import data
from rlhf.evaluation.probes.voices import bucket, voices_of
from rlhf.policy.conditioning import Conditioning, Gate
from tests.rlhf.evaluation.probes import sets
from tests.rlhf.tiny import write_model


def test_a_model_without_people_is_probed_and_reported(tmp_path, capsys):
    write_model(tmp_path / "model")
    sets.write(tmp_path / "sets")
    (tmp_path / "sets" / "prefeval" / "implicit_choice.jsonl").unlink()
    asked = [str(tmp_path / "model"), "--data", str(tmp_path / "sets"), "--items", "1"]
    only = ["--only", "two_sided,party,profile,people", "--output", str(tmp_path / "out")]
    assert cli.main(["probe", *asked, *only, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(result["buckets"]) == {"model"} and 0 <= result["buckets"]["model"]["probe/flip_rate"] <= 1
    assert {one["probe"] for one in result["skipped"]} == {"profile", "people"}
    stored = json.loads((tmp_path / "out" / "probes.json").read_text())
    assert stored["voices"] == result["voices"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Figures by kind of person" in page and "whose affirmer" in page
    assert cli.main(["probe", *asked, *only]) == 0
    assert "probe/flip_rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--data", "nowhere"], "--data nowhere: is no folder"),
        (["m", "--data", ".", "--only", "bia"], "--only bia"),
        (["m", "--data", ".", "--items", "0"], "--items 0: must be at least 1"),
        (["m", "--data", ""], "is no folder"),
        (["m", "--data", ".", "--only", ""], "--only : no such probe"),
        (["m", "--data", ".", "--only", "bias,"], "--only : no such probe"),
        (["m", "--data", ".", "--output", __file__], "is no folder; choose another"),
        (["m", "--data", ".", "--output", "/"], "--output /: not empty and no probing"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert cli.main(["probe", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


READERS = {
    "bias_probes/fff_human": (data.bias_pairs,),
    "bias_probes/anthropic_sycophancy_150": (data.claims,),
    "bias_probes/sycon_bench": (data.debates, data.pressures),
    "polis_english/votes": (data.conversations,),
    "polis_english/statements": (data.conversations,),
    "remesh_opinions/pairs": (data.party_choices,),
    "persona_statements/statements": (data.statements,),
    "prefeval/implicit_choice": (data.options,),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("wrong", ["nothing", 3, None, [], {}, "x"])
def test_a_row_of_something_else_is_named(name, wrong, tmp_path):
    """Every column that is read, lacking or of another kind, is a line and no traceback; none is passed over."""
    folder, file = name.split("/")
    sets.write(tmp_path)
    [place] = (tmp_path / folder).glob(f"{file}.jsonl*")
    rows = data.rows(tmp_path / folder, file)
    place.unlink()
    for number, row in enumerate(rows):
        for key in row:
            if key in ("opinion_group", "question") or type(wrong) is type(row[key]) and wrong != "nothing":
                continue  # may be anything, or is right as it is
            spoiled = {k: v for k, v in row.items() if k != key} if wrong == "nothing" else row | {key: wrong}
            if key == "vote" and wrong is None:
                continue  # passed over by the person who was asked
            lines = [json.dumps(one) + "\n" for one in (*rows[:number], spoiled, *rows[number + 1 :])]
            (tmp_path / folder / f"{file}.jsonl").write_text("".join(lines))
            with pytest.raises(UserError, match=f"row {number + 1}: .*; restore the file"):
                for reader in READERS[name]:
                    reader(tmp_path)


def test_without_the_people_of_the_rewards_voices_are_draws_from_the_prior():
    cov = np.diag([4.0, 1.0]).astype(np.float32)
    prior = Belief.from_cov(np.array([1.0, 0.0], np.float32), cov)
    record = {"prior": {"mean": [1.0, 0.0], "cov": cov.tolist()}, "rewards": None}
    gate = Gate(Conditioning.from_prior(prior), 1.0, 0.0)
    voices = voices_of(types.SimpleNamespace(gate=gate, record=record), 2, 0)
    assert [voice.name for voice in voices] == ["average", "median 1", "median 2", "extreme 1", "extreme 2"]
    assert voices[0].coef is None and {bucket(voice.name) for voice in voices} == {
        "average",
        "median",
        "extreme",
    }
    size = {voice.name: np.linalg.norm(gate(voice.coef.astype(np.float32))) for voice in voices[1:]}
    assert min(size["extreme 1"], size["extreme 2"]) > 2 > max(size["median 1"], size["median 2"])
