"""The comparison's table and the report's first line, from figures made up for the purpose."""

import pytest

from rlhf.report import comparison, rewards_verdict, write_rewards_report
from tests.rlhf.report.test_report import HOSTILE, Page, interval, self_contained


def model(accuracy, gain, **changes):
    counts = {"0": 0.6, "10": accuracy}
    values = {
        "accuracy": {n: interval(value) for n, value in counts.items()},
        "gain": {n: interval(gain) for n in counts},
        "loss_nats": {n: interval(0.5) for n in counts},
        "cells": {"unseen_seen": {"accuracy": interval(accuracy), "gain": interval(gain), "people": 40}},
        "swapped": interval(0.6),
        "own_minus_swapped": interval(accuracy - 0.6),
        "swap_flip_rate": interval(0.3),
        "label_flip_rate": interval(0.4),
        "ignores_user": False,
        "worst_decile": 0.4,
        "gaining": 0.7,
        "losing": 0.2,
        "controls": {
            "identical_people": {"gain": interval(-0.03), "learned": interval(0.0), "passed": True},
            "planted_tastes": {"gain": interval(0.2), "learned": interval(0.2), "passed": True},
        },
    }
    return values | changes


def result(house=None, **evaluation):
    board = {
        "judged": "house",
        "answers": 10,
        "people": 40,
        "helps": True,
        "sentence": "Personalisation helps on this data (house).",
        "missing_cells": {"seen_unseen": "the data has one prompt"},
        "unavailable": {"card": f"needs a language model {HOSTILE}"},
        "base_rewards": {"length": {"accuracy": interval(0.55), "gain": interval(-0.05)}},
        "models": {"aggregate": model(0.6, 0.0, ignores_user=True), "house": house or model(0.8, 0.2)},
    }
    board |= {key: evaluation.pop(key) for key in list(evaluation) if key in board}
    return {"evaluation": {"accuracy": {"10": interval(0.8)}, "comparison": board} | evaluation}


def test_the_sentence_is_the_verdict():
    assert rewards_verdict(result()) == ("won", "Personalisation helps on this data (house).")
    assert rewards_verdict(result(helps=False)).status == "lost"


def test_a_model_that_ignores_the_user_is_named_first():
    said = "Personalisation lost on this data (house): the model ignores the user"
    verdict = rewards_verdict(result(house=model(0.6, 0.0, ignores_user=True), sentence=said))
    assert verdict == ("lost", said)


def test_a_leak_outranks_every_figure():
    leak = {"alarm": True, "message": "ALARM: the rendering gives the choice away"}
    verdict = rewards_verdict(result(leak=leak))
    assert verdict.status == "lost" and verdict.text.startswith(
        "Leak alarm, so no figure below may be believed: the"
    )
    assert rewards_verdict(result(leak={"alarm": False, "message": "silent"})).status == "won"


@pytest.mark.parametrize(
    ("control", "helps", "status", "said"),
    [
        ("identical_people", True, "unknown", "Not to be believed: "),
        ("planted_tastes", False, "lost", "Nor were planted tastes found"),
    ],
)
def test_a_failed_control_is_said(control, helps, status, said):
    house = model(0.8, 0.2)
    house["controls"][control] = {"gain": interval(0.1), "learned": interval(0.0), "passed": False}
    verdict = rewards_verdict(result(house=house, helps=helps))
    assert verdict.status == status and said in verdict.text


def test_the_page_holds_the_table_and_no_markup_of_others(tmp_path):
    write_rewards_report(tmp_path, result(leak={"alarm": False, "message": "no artefact found"}))
    page = Page(tmp_path)
    self_contained(page)
    assert page.verdict() == "Personalisation helps on this data (house)."
    for text in (
        "0.800 (0.780 to 0.820)",
        "+0.200 passed",
        "the data has one prompt",
        "no artefact found",
        HOSTILE,
    ):
        assert text in page.text


def test_best_first_and_the_terminal_gets_fewer_columns():
    board = result()["evaluation"]["comparison"]
    head, rows = comparison.table(board)
    brief_head, brief_rows = comparison.brief_table(board)
    assert [row[0] for row in rows] == ["house", "aggregate"] and len(head) == len(rows[0])
    assert len(brief_head) == len(brief_rows[0]) < len(head)


def test_a_model_that_chooses_no_questions_does_not_claim_to(tmp_path):
    """Its one curve is of random questions; the column of chosen ones is left out."""
    curve = {"0": interval(0.6), "10": interval(0.8)}
    for chosen, said in ((curve, False), (curve | {"10": interval(0.9)}, True)):
        write_rewards_report(tmp_path, result(accuracy=chosen, accuracy_random=curve))
        page = (tmp_path / "report.html").read_text()
        assert (
            "random questions" in page
            and ("<th>chosen questions" in page or ">chosen questions<" in page) == said
        )


def test_axes_that_are_columns_are_not_said_to_be_tastes_found(tmp_path):
    axes = {"axes": ["length"], "prior_mean": [0.1], "prior_sd": [1.0]}
    for name, said in (("columns", False), ("house", True)):
        write_rewards_report(tmp_path, result() | axes | {"model": name})
        assert ("Axis 0 is the direction" in (tmp_path / "report.html").read_text()) == said
