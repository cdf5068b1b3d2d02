"""Fixtures that more than one room of `rlhf` uses."""

import pytest


@pytest.fixture
def no_figures(monkeypatch):
    """Training writes an empty page: reports of many runs would take longer than their training."""
    monkeypatch.setattr(
        "rlhf.report.write_training_report", lambda folder, *rows: (folder / "report.html").touch()
    )
