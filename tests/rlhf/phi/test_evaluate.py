"""`chorus rewards evaluate`: models compared through the command line, alarms in the report's first line."""

import html
import json
import re

import numpy as np
import pytest
import yaml

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.phi import methods as reward_models
from rlhf.phi.config import RewardsConfig
from rlhf.run.config.load import load
from tests.rlhf.apps.test_rewards_users import answers_of, write_rows


def rows_of(marker: str = ""):
    """Sixty people of two opposite tastes; `marker` is left at the end of every chosen text."""
    rng = np.random.default_rng(1)
    rows = [
        row
        for person in range(60)
        for row in answers_of(f"p{person:02}", np.array([1.5, 3.0 * (-1) ** person, 0, 0]), 24, rng)
    ]
    return [row | {"chosen": row["chosen"] + marker} for row in rows]


def write_config(folder, rows, **changes):
    write_rows(folder / "pairs.jsonl", rows)
    config = {
        "seed": 0,
        "output_dir": str(folder / "run"),
        "data": {"path": str(folder / "pairs.jsonl"), "last_choices": 8},
        "encoder": {"kind": "precomputed"},
        "fit": {"num_basis": 2, "dims": 4, "rounds": 6},
        "evaluation": {"counts": [0, 5, 10], "seeds": 2, "controls": False},
    }
    for section, values in changes.items():
        config[section] = config[section] | values
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def first_line(folder):
    page = (folder / "run" / "report.html").read_text()
    return re.search(r'<p class="verdict (\w+)">([^<]*)</p>', page).groups()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A fitted run, evaluated with the default models and controls."""
    folder = tmp_path_factory.mktemp("house")
    path = write_config(folder, rows_of(), evaluation={"controls": True})
    assert cli.main(["rewards", "fit", str(path)]) == 0
    assert cli.main(["rewards", "evaluate", str(path)]) == 0
    return folder


def test_the_sentence_is_the_first_line_and_the_old_figures_stay(house):
    evaluation = json.loads((house / "run" / "metrics.json").read_text())["evaluation"]
    board = evaluation["comparison"]
    assert set(board["models"]) == {"aggregate", "house"} and board["helps"]
    controls = board["models"]["house"]["controls"]
    assert controls["identical_people"]["passed"] and controls["planted_tastes"]["learned"]["mean"] > 0.05
    status, text = first_line(house)
    assert status == "won" and text.startswith("Personalisation helps on this data (house), from ")
    assert {"accuracy", "accuracy_random", "pooled_accuracy", "swap", "loss_nats", "people"} <= set(
        evaluation
    )
    # Two programs, two divisions of the training people, one answer about the same people.
    assert board["people"] == evaluation["people"] == 12 and "fitted again without" in evaluation["differs"]
    assert evaluation["differs"] in html.unescape((house / "run" / "report.html").read_text())
    assert board["models"]["house"]["accuracy"]["10"]["mean"] == pytest.approx(
        evaluation["accuracy_random"]["10"]["mean"], abs=0.1
    )


def test_few_people_are_each_held_out_once_and_one_line_says_what_they_can_show(tmp_path, capsys):
    """Eight people of one taste: unknown, with the power, in console, report and metrics.json alike."""
    rng = np.random.default_rng(2)
    rows = [
        row for person in range(8) for row in answers_of(f"p{person:02}", np.array([1.5, 0.3, 0, 0]), 10, rng)
    ]
    path = write_config(
        tmp_path,
        rows,
        data={"last_choices": 3},
        evaluation={"counts": [0, 5], "seeds": 1, "held_out_texts": 0},
        fit={"rounds": 2},
    )
    assert cli.main(["rewards", "fit", str(path)]) == 0
    fitted = json.loads((tmp_path / "run" / "metrics.json").read_text())["verdict"]["text"]
    assert "holds each of 8 people out once" in fitted and "8 people cannot show a difference below" in fitted
    capsys.readouterr()
    assert cli.main(["rewards", "evaluate", str(path)]) == 0
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    evaluation, (status, text) = result["evaluation"], first_line(tmp_path)
    assert evaluation["people"] == evaluation["comparison"]["people"] == 8
    assert evaluation["tested_choices"] == evaluation["comparison"]["tested_choices"] == 5
    assert status == "unknown" and text.startswith("Unknown: 8 people cannot show a difference below ")
    assert result["verdict"]["text"] == text and text in capsys.readouterr().out


def test_evaluation_may_differ_from_the_fit_and_all_else_may_not(house, capsys):
    path = str(house / "config.yaml")
    assert cli.main(["rewards", "evaluate", path, "evaluation.models=[]", "evaluation.seeds=1"]) == 0
    evaluation = json.loads((house / "run" / "metrics.json").read_text())["evaluation"]
    assert "comparison" not in evaluation and evaluation["settings"]["seeds"] == 1
    capsys.readouterr()
    assert cli.main(["rewards", "evaluate", path, "fit.ridge=3.0"]) == 2
    assert "fit.ridge is 10.0 there, 3.0 here" in capsys.readouterr().err


def test_an_unknown_model_or_setting_names_the_nearest(house, capsys):
    path = str(house / "config.yaml")
    for override, said in (
        ("evaluation.models=[lorre]", "did you mean 'lore'?"),
        ("evaluation.models=[hous]", "did you mean 'house'?"),
    ):
        assert cli.main(["rewards", "evaluate", path, override]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    arguments = ["evaluation.models=[lore]", "evaluation.settings.lore.num_base=3"]
    assert cli.main(["rewards", "evaluate", path, *arguments]) == 2
    assert "did you mean 'num_basis'?" in capsys.readouterr().err


def test_what_nobody_would_read_is_refused_before_anything_is_computed(house, tmp_path, capsys):
    """A misspelt model or setting at the fit, not after its embeddings; the run does not come into being."""
    path, folder = str(house / "config.yaml"), tmp_path / "new"
    for overrides, said in (
        (["fit.model=loer"], "did you mean 'lore'?"),
        (["fit.model=lore", "fit.settings={num_base: 3}"], "did you mean 'num_basis'?"),
        (
            ["fit.model=lore", "fit.settings={ridge: .inf}"],
            "fit.settings.ridge [command line]: must be a finite number",
        ),
        (
            ["evaluation.models=[lore, vlp]"],
            "evaluation.models: model: 'vlp' is unknown; did you mean 'vpl'?",
        ),
        (["evaluation.settings={loer: {num_basis: 3}}"], "evaluation.settings: model: 'loer' is unknown"),
        (["evaluation.settings={house: {num_basis: 3}}"], "whose settings stand in fit itself"),
        (
            ["fit.model=lore", "fit.settings={seed: 1}", "evaluation.settings={lore: {dims: 3}}"],
            "whose settings stand in fit.settings",
        ),
    ):
        changes = [*overrides, "data.path=no.jsonl", f"output_dir={folder}"]
        assert cli.main(["rewards", "fit", path, *changes]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not folder.exists()


def test_after_a_fit_that_failed_the_mended_one_may_use_the_same_place(house, tmp_path, capsys, monkeypatch):
    class Fails:
        rounds = 3

        def fit(self, table, training, *, weight, on_round):
            on_round(0, {"loss_nats": 0.7})
            raise UserError("basis: too many outputs; choose fewer")

    monkeypatch.setattr("rlhf.phi.fit.make_model", lambda config, name: Fails())
    folder = tmp_path / "new"
    assert cli.main(["rewards", "fit", str(house / "config.yaml"), f"output_dir={folder}"]) == 2
    error = capsys.readouterr().err
    assert "fit step 1/3" in error and error.endswith("chorus: basis: too many outputs; choose fewer\n")
    assert not folder.exists()


def test_the_house_model_is_compared_with_its_own_settings(house):
    overrides = ["fit.model=lore", "evaluation.settings={house: {num_basis: 3, dims: [3, 4]}}"]
    config = load(house / "config.yaml", overrides, RewardsConfig)
    model = reward_models.make_model(config, "house")
    assert (model.num_basis, model.dims) == (3, (3, 4))


def test_another_model_is_fitted_and_judged(tmp_path, capsys):
    path = write_config(tmp_path, rows_of(), fit={"model": "mixture", "settings": {"num_groups": 2}})
    assert cli.main(["rewards", "fit", str(path), "fit.ridge=3.0"]) == 0
    assert (
        "note: mixture does not read fit.ridge, fit.rounds; its own stand in fit.settings"
        in capsys.readouterr().err
    )
    assert cli.main(["rewards", "evaluate", str(path), "fit.ridge=3.0"]) == 0
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["model"] == "mixture" and result["training_accuracy"] > 0.8
    evaluation = result["evaluation"]
    assert evaluation["comparison"]["judged"] == "mixture"
    assert evaluation["accuracy"]["10"]["mean"] > evaluation["pooled_accuracy"]["mean"] + 0.1
    assert len(list((tmp_path / "run" / "users").glob("*.json"))) == 48


def test_a_leaked_copy_raises_the_alarm_in_the_first_line(tmp_path):
    rows = [row | {"prompt": f"Which of set {number % 12}?"} for number, row in enumerate(rows_of(" </s>"))]
    path = write_config(tmp_path, rows)
    assert cli.main(["rewards", "fit", str(path)]) == 0
    assert cli.main(["rewards", "evaluate", str(path), "evaluation.seeds=1"]) == 0
    status, text = first_line(tmp_path)
    assert status == "lost" and text.startswith("Leak alarm, so no figure below may be believed: ")


def test_shared_settings_reach_other_models(house):
    config = load(
        house / "config.yaml",
        ["fit.dims=[2, 3]", "fit.lapse=0.1", "evaluation.settings={lore: {num_basis: 5}}"],
        RewardsConfig,
    )
    lore = reward_models.make_model(config, "lore")
    assert (lore.dims, lore.num_basis, lore.lapse) == (3, 5, 0.1)
    fitted = load(
        house / "config.yaml", ["fit.model=lore", "evaluation.settings={lore: {num_basis: 5}}"], RewardsConfig
    )
    assert reward_models.make_model(fitted, "lore").num_basis == 5
    assert reward_models.make_model(config, "house").dims == (2, 3)
    with pytest.raises(UserError, match="fit.settings holds x"):
        load(house / "config.yaml", ["fit.settings={x: 1}"], RewardsConfig)
