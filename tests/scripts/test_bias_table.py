"""The table of Flattery, Fluff, and Fog: its arithmetic always, its numbers where the data is."""

import json
import os
from pathlib import Path

import pytest

from rewards.errors import UserError
from scripts.experiments import bias_table

PUBLISHED = {
    "length": (33.7, 0.513),
    "structure": (89.5, 0.734),
    "jargon": (20.9, 0.640),
    "vagueness": (14.3, 0.727),
    "sycophancy": (49.4, 0.544),
}
PAGE = Path(__file__).parents[2] / "docs" / "results" / "bias_table.md"


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def small(tmp_path):
    """Four pairs of every bias: people prefer the biased one once, the model three times."""
    pairs, votes = [], []
    for bias in bias_table.BIASES:
        for n in range(4):
            pairs.append(
                {
                    "bias": bias,
                    "prompt": f"{bias} {n}",
                    "human_prefers_biased": n == 0,
                    "reward_model_prefers_biased": n < 3,
                }
            )
            said = ["Response 1", "response_1 ", "Response 2"] if n else ["Tie", "Response 1", "Response 1"]
            votes.append({"bias": bias, "annotators": [{"preference": one} for one in said]})
    lines(tmp_path / "data/bias_probes/fff_human.jsonl", pairs)
    lines(tmp_path / "data/bias_probes/fff_annotators.jsonl", votes)
    return tmp_path


def test_shares_are_over_pairs_and_agreement_over_votes_that_are_no_ties(small):
    row = bias_table.table(small / "data")["jargon"]
    assert row["human_skew"] == 25 and row["model_skew"] == 75 and row["model_miscalibration"] == 50
    assert row["agreement"] == pytest.approx((3 * 1 + 1) / (3 * 3 + 1))


def test_scores_before_and_after_are_joined_by_prompt_and_averaged_over_models(small):
    def scores(name, up):
        rows = [
            {"query": f"length {n}", "base_score": 0.0, "perturbed_score": 1.0 if n < up else -1.0}
            for n in range(4)
        ]
        lines(
            small / "scores/length" / name,
            [*rows, {"query": "of no majority", "base_score": 1, "perturbed_score": 2}],
        )

    scores("length_scored_2B.jsonl", 4)
    scores("length_scored_8B.jsonl", 2)
    scores("length_scored_fine_tuned_2B_1000_3.jsonl", 1)
    found = bias_table.table(small / "data", small / "scores")
    assert found["length"]["before"] == {"models": 2, "skew": 75, "miscalibration": 50}
    assert found["length"]["after"] == {"models": 1, "skew": 25, "miscalibration": 0}
    assert "before" not in found["jargon"]
    lines(
        small / "scores/jargon/jargon_scored_2B.jsonl",
        [{"query": "?", "base_score": 0, "perturbed_score": 0}],
    )
    with pytest.raises(UserError, match="no query of it has a majority"):
        bias_table.table(small / "data", small / "scores")


def test_the_released_judgements_give_the_published_table_to_a_tenth():
    place = os.environ.get("CHORUS_PROBE_DATA")
    if not place:
        pytest.skip("CHORUS_PROBE_DATA names no folder with bias_probes; its licence forbids shipping it")
    found = bias_table.table(Path(place))
    for bias, (skew, agreement) in PUBLISHED.items():
        row = found[bias]
        assert round(row["human_skew"], 1) == skew and row["agreement"] == pytest.approx(
            agreement, abs=0.0006
        )
        cells = (
            row["human_skew"],
            row["model_skew"],
            row["model_skew"] - row["human_skew"],
            row["model_miscalibration"],
        )
        said = "| {} | {} | {:.1f} | {:.1f} | {:+.1f} | {:.1f} | {:.3f} |".format(
            bias, row["pairs"], *cells, row["agreement"]
        )
        assert said in PAGE.read_text(encoding="utf-8"), "the page"
