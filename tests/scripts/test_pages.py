"""Stored numbers of the pages: nothing is lost, few lines, the same bytes again; every page is that of its numbers."""

import gzip
import importlib
import json
from pathlib import Path

import numpy as np
import pages
import pytest
import results_people
import results_rl
import results_sentiment_page
from matplotlib.figure import Figure
from PIL import Image

from rewards.errors import UserError

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def numbers(runs: int, steps: int) -> dict:
    rng = np.random.default_rng(0)
    series = [{"seed": seed, "curve": rng.normal(size=steps).tolist(), "none": None} for seed in range(runs)]
    return {
        "made": "“then”",
        "seeds": [*range(runs)],
        "arms": {"a, β": series, "b": []},
        "few": {"x": [[1], {}]},
    }


@pytest.mark.parametrize("steps", [0, 3, 30, 300])
@pytest.mark.parametrize("raw", [(), ("arms",), ("arms", "absent")])
def test_numbers_come_back_as_they_were(tmp_path, steps, raw):
    path, written = tmp_path / "page.json", numbers(4, steps)
    pages.write_numbers(path, written, raw)
    assert pages.read_numbers(path) == written
    plain = json.loads(path.read_text())
    assert plain == {key: part for key, part in written.items() if key not in raw}
    assert (tmp_path / "page.json.gz").exists() == bool(raw)


def test_a_run_is_a_line(tmp_path):
    pages.write_numbers(tmp_path / "page.json", numbers(50, 40))
    lines = (tmp_path / "page.json").read_text().splitlines()
    assert sum('"curve"' in line for line in lines) == 50 and len(lines) < 65
    pages.write_numbers(tmp_path / "long.json", {"curve": list(range(5000))})
    assert len((tmp_path / "long.json").read_text().splitlines()) == 3


def test_the_same_numbers_give_the_same_files_and_old_series_go(tmp_path):
    path, packed = tmp_path / "page.json", tmp_path / "page.json.gz"
    pages.write_numbers(path, numbers(4, 30), ("arms",))
    first = path.read_bytes(), packed.read_bytes()
    assert first[1][4:8] == bytes(4)  # no time of writing
    pages.write_numbers(path, numbers(4, 30), ("arms",))
    assert (path.read_bytes(), packed.read_bytes()) == first
    pages.write_numbers(path, {"arms": 1})
    assert pages.read_numbers(path) == {"arms": 1} and not packed.exists()


@pytest.mark.parametrize("damage", ["cut", "no gzip", "no JSON", "changed"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path, packed = tmp_path / "page.json", tmp_path / "page.json.gz"
    pages.write_numbers(path, numbers(4, 30), ("arms",))
    whole = packed.read_bytes()
    parts = {
        "cut": whole[:-20],
        "no gzip": b"{}",
        "no JSON": gzip.compress(b"{"),
        "changed": whole[:40] + whole[60:],
    }
    packed.write_bytes(parts[damage])
    with pytest.raises(UserError, match="page.json.gz: not compressed JSON") as caught:
        pages.read_numbers(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        pages.read_numbers(tmp_path / "other.json")


def test_pictures_keep_their_colours_and_their_bytes(tmp_path):
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.imshow(np.linspace(-1, 1, 600).reshape(20, 30), cmap="RdBu")
    for name in "ab":
        pages.save(figure, tmp_path / f"{name}.png", dpi=100)
    figure.savefig(tmp_path / "plain.png", dpi=100, facecolor="white")
    drawn, plain = (
        np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("a.png", "plain.png")
    )
    assert drawn.shape == plain.shape and np.abs(drawn - plain).max() < 16
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def page_of(name: str):
    """The function that makes docs/results/NAME.md of the stored numbers."""
    scripts = {
        "people": lambda found: results_people.page(
            found, f"{found['made']}; {found['versions']}; {found['machine']}."
        ),
        "electricity_rl": results_rl.markdown,
        "sentiment": results_sentiment_page.page,
    }
    if name in scripts:
        return scripts[name]
    module = importlib.import_module(f"scripts.experiments.{name}")
    return module.page if name == "annotation" else module.markdown


EXPERIMENTS = "annotation cold_start conditioners curiosity hints relabel rl_faults rl_probes".split()


@pytest.mark.parametrize("name", [*EXPERIMENTS, "people", "electricity_rl", "sentiment"])
def test_the_committed_page_is_that_of_the_committed_numbers(name):
    assert page_of(name)(pages.read_numbers(RESULTS / f"{name}.json")) == (RESULTS / f"{name}.md").read_text()
