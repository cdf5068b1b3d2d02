"""`fit.model columns`: named rewards as the basis, the population by empirical Bayes."""

import json

import numpy as np
import pytest

from rewards import methods as models
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.methods.base import Comparisons, ItemTable
from rewards.methods.columns import Columns
from rewards.methods.store import load_model, save_model
from tests.rlhf.phi.columns.rows import preferences, write_rows

MEAN, SD = np.array([1.0, -0.5, 0.3]), np.array([0.4, 1.2, 0.1])
SCALE = np.array([250.0, 0.7, 3.0])  # columns of very different units
NAMES = ["words", "warmth", "certainty"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """200 people with w ~ N(MEAN, SD²) over standardised columns, 40 answers each on 10 prompts."""
    rng = np.random.default_rng(3)
    raw = rng.normal(size=(10, 12, 3)) * SCALE + 40.0 * rng.normal(size=(10, 1, 3))
    centred = raw - raw.mean(axis=1, keepdims=True)
    units = centred / centred.reshape(-1, 3).std(axis=0)
    rows, values, true = [], {}, []
    for person in range(200):
        taste = MEAN + SD * rng.normal(size=3)
        true.append(taste)
        for _ in range(40):
            prompt = rng.integers(10)
            a, b = rng.choice(12, 2, replace=False)
            if rng.random() > 1 / (1 + np.exp(-(units[prompt, a] - units[prompt, b]) @ taste)):
                a, b = b, a
            for item in (a, b):
                values[f"P{prompt}", f"text {item}"] = raw[prompt, item]
            rows.append(
                {
                    "prompt": f"P{prompt}",
                    "chosen": f"text {a}",
                    "rejected": f"text {b}",
                    "user_id": f"u{person:03}",
                }
            )
    prefs = preferences(tmp_path_factory.mktemp("world"), rows)
    keys = zip(prefs.item_prompt, prefs.item_text, strict=True)
    embeddings = np.array([values[prefs.prompts[p], text] for p, text in keys])
    return ItemTable(prefs, embeddings, {"kind": "columns", "names": NAMES}, "hash"), np.array(true)


@pytest.fixture(scope="module")
def fitted(world):
    return Columns().fit(world[0], world[0].prefs)


def test_phi_is_every_column_in_standard_deviations_under_its_name(world, fitted):
    table, _ = world
    assert fitted.basis.gauge.names == tuple(NAMES)
    np.testing.assert_array_equal(fitted.basis.head, np.eye(3))
    np.testing.assert_array_equal(fitted.basis.gauge.rotation, np.eye(3))
    np.testing.assert_array_equal(fitted.basis.gauge.signs, np.ones(3))
    phi = Readout.of(fitted.basis).features(table.embeddings, table.prefs.item_prompt)
    centred = np.zeros_like(table.embeddings)
    for prompt in range(10):
        own = table.prefs.item_prompt == prompt
        centred[own] = table.embeddings[own] - table.embeddings[own].mean(axis=0)
    np.testing.assert_allclose(phi, centred / np.sqrt((centred**2).mean(axis=0)), rtol=1e-4, atol=1e-5)
    alone = Readout.of(fitted.basis).features(table.embeddings[:1])
    np.testing.assert_allclose(
        alone,
        (table.embeddings[:1] - table.embeddings.mean(axis=0)) / np.sqrt((centred**2).mean(axis=0)),
        rtol=1e-4,
    )


def test_the_population_is_recovered(world, fitted):
    """Standard errors with 200 people are below 0.1 for the mean; the spread is biased down a little by τ."""
    np.testing.assert_allclose(fitted.prior.mean, MEAN, atol=0.2)
    np.testing.assert_allclose(np.sqrt(np.diag(fitted.prior.cov)), SD, atol=0.2)
    correlation = [np.corrcoef(fitted.coef_mean[:, k], world[1][:, k])[0, 1] for k in (0, 1)]
    assert correlation[0] > 0.45 and correlation[1] > 0.9


def test_the_unit_of_a_column_does_not_matter(world, fitted):
    table, _ = world
    other = ItemTable(table.prefs, table.embeddings * 1000.0 + 7.0, table.encoder)
    again = Columns().fit(other, table.prefs)
    np.testing.assert_allclose(again.prior.mean, fitted.prior.mean, atol=2e-3)
    np.testing.assert_allclose(again.coef_mean, fitted.coef_mean, atol=5e-3)


def test_statistics_of_reference_samples_win(world):
    table, _ = world
    encoder = table.encoder | {"reference": {"mean": [1.0, 2.0, 3.0], "sd": [500.0, 0.5, 2.0]}}
    record = Columns(rounds=1).fit(ItemTable(table.prefs, table.embeddings, encoder), table.prefs).basis.gauge
    np.testing.assert_allclose(record.mean, [1, 2, 3])
    np.testing.assert_allclose(np.diag(record.whitening), [1 / 500, 2, 0.5])


def test_without_answers_one_is_the_population_and_weights_count(world, fitted):
    table, _ = world
    nobody = Comparisons.of(table.prefs, np.full((2, 3), -1))
    np.testing.assert_array_equal(fitted.adapt(table, nobody).mean, [fitted.prior.mean] * 2)
    weight = (table.prefs.user_index < 100).astype(np.float32)
    half = Columns().fit(table, table.prefs, weight=weight)
    np.testing.assert_allclose(half.coef_mean[150:], [half.prior.mean] * 50, atol=1e-6)


def test_it_is_one_of_the_models_and_survives_the_disk(world, fitted, tmp_path):
    assert models.make("columns", {"lapse": 0.1}) == Columns(lapse=0.1)
    save_model(tmp_path / "run", fitted)
    restored = load_model(tmp_path / "run")
    np.testing.assert_array_equal(restored.coef_mean, fitted.coef_mean)
    assert restored.basis.gauge.names == tuple(NAMES)


def test_a_column_that_tells_nothing_apart_is_named(world):
    table, _ = world
    constant = table.embeddings.copy()
    constant[:, 1] = table.prefs.item_prompt  # differs between prompts only
    with pytest.raises(UserError, match="column 'warmth': the same for all completions of every prompt"):
        Columns().fit(ItemTable(table.prefs, constant, table.encoder), table.prefs)
    with pytest.raises(UserError, match="65 numbers an item are an embedding, not at most 64 rewards"):
        Columns().fit(ItemTable(table.prefs, np.ones((table.prefs.num_items, 65)), {}), table.prefs)
    with pytest.raises(UserError, match="3 numbers|2 names for 3 columns"):
        Columns().fit(ItemTable(table.prefs, table.embeddings, {"names": ["a", "b"]}), table.prefs)


def test_fit_names_columns_from_a_configuration(tmp_path):
    """The whole way: configuration, two functions, a reward run whose axes are the columns."""
    from rlhf.apps import cli
    from rlhf.phi.score import score

    rows = [
        {
            "prompt": f"P{n % 3}",
            "chosen": "please " * (1 + n % 4) + "x",
            "rejected": "x y" + " z" * (n % 5),
            "user_id": f"u{n % 12}",
        }
        for n in range(96)
    ]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    samples = [
        {"prompt": "P0", "completion": text}
        for text in ("a", "a b c", "please a b", "please please thanks a")
    ]
    reference = write_rows(tmp_path / "samples.jsonl", samples)
    column = [
        {"name": "words", "kind": "function", "function": "rlhf.phi.columns.style:length_words"},
        {"name": "warmth", "kind": "function", "function": "rlhf.phi.columns.style:warmth"},
    ]
    probe = [{"prompt": "x", "completions": ["1", "1", "2"], "answer": 2}]
    column.append(
        {"name": "vote", "kind": "votes", "probe": str(write_rows(tmp_path / "probe.jsonl", probe))}
    )
    config = {
        "seed": 0,
        "output_dir": str(tmp_path / "run"),
        "data": {"path": str(path)},
        "fit": {"model": "columns"},
    }
    config["encoder"] = {"kind": "columns", "columns": column, "reference": str(reference)}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert cli.main(["rewards", "fit", str(tmp_path / "config.yaml")]) == 0
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["axes"] == ["words", "warmth"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "switched off" in page and "vote" in page
    assert "vote" in result["columns"]["off"]
    score(str(tmp_path / "run"), str(reference), str(tmp_path / "scored.jsonl"))
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    words = np.array([row["phi"]["words"] for row in scored])
    assert [row["raw"]["words"] for row in scored] == [1.0, 3.0, 3.0, 4.0]
    np.testing.assert_allclose(words, (np.array([1, 3, 3, 4]) - 2.75) / np.std([1, 3, 3, 4]), rtol=1e-5)
