"""The stored completions of docs/results/style.md, measured again by the figures of `chorus evaluate --policies`."""

from pathlib import Path

import numpy as np
import pytest

from rlhf.evaluation.outputs import figures, judging, statistics, texts
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.policies import Source
from rlhf.evaluation.outputs.samples import Written
from rlhf.policy.generation import Completion
from scripts import pages

STORE = Path(__file__).parents[4] / "docs" / "results" / "style.json"
PAGE = STORE.with_suffix(".md").read_text()


def written(arms, labels, name):
    """What is stored of the completions for some people; of their texts only the number is known."""
    completions = [
        [
            [
                Completion(
                    f"{label} {prompt} {one}", int(tokens), float(logprob), bool(done), (0,) * int(tokens)
                )
                for one, (tokens, logprob, done) in enumerate(zip(*parts, strict=True))
            ]
            for prompt, parts in enumerate(
                zip(
                    *(
                        np.reshape(arms[label][key], (prompts, -1))
                        for key in ("tokens", "logprob", "finished")
                    ),
                    strict=True,
                )
            )
        ]
        for label in labels
        for prompts in (len(arms[label]["phi"]),)
    ]
    found = Written(Source(name, name, name, len(labels) > 1, False), completions)
    reference = np.array([arms[label]["ref_logprob"] for label in labels]).reshape(found.shape)
    return Written(found.source, completions, reference, found.array("num_tokens"), True)


@pytest.fixture(scope="module")
def style():
    stored = pages.read_numbers(STORE)
    arms, coef = stored["arms"], np.array(stored["coef"])
    phi = np.array([arms[label]["phi"] for label in stored["people"]])
    return stored, coef, phi, written(arms, stored["people"], "own")


def test_people_get_more_from_their_own_as_the_page_says(style):
    _, coef, phi, own = style
    index = np.arange(phi[..., 0].size).reshape(own.shape)
    worth = judging._worths(phi.reshape(-1, phi.shape[-1]), [Person("", "", w) for w in coef])
    matrix, gains = judging._swapped(worth, index)
    others = ~np.eye(len(matrix), dtype=bool)
    share = np.mean((np.diag(matrix)[:, None] > matrix)[others])
    assert f"Own is larger in {share:.0%} " in PAGE
    assert (
        f"own is the best of all {len(coef)} in {np.mean(matrix.argmax(axis=1) == np.arange(len(coef))):.0%} "
        in PAGE
    )
    assert statistics.interval(gains).low > 0


def test_the_completion_for_w_wins_over_that_for_its_opposite_as_the_page_says(style):
    stored, coef, phi, own = style
    values = (
        np.einsum("uk,uhnk->uhn", coef, phi),
        np.einsum("uk,uhnk->uhn", coef, phi[np.arange(len(phi)) ^ 1]),
    )
    pairs = slice(0, None, 2)  # rows 2i and 2i + 1 are w and −w
    halves = [written(stored["arms"], stored["people"][start::2], str(start)) for start in (0, 1)]
    found = figures.comparison(
        "own reward", ("w", "−w"), (values[0][pairs], values[1][pairs]), (halves[0], halves[1])
    )
    rate = found["win_rate"]
    assert f"| **all** | {rate['mean']:.0%} " in PAGE and found["outcome"] == "better"
    for label, share in zip(stored["people"][::2], found["per_person"], strict=True):
        assert f"| {label.removesuffix(' +')} | {share:.0%} " in PAGE
    # The page's interval is over prompts alone; that over people as well cannot be narrower by much.
    assert rate["low"] < 0.78 and rate["high"] > 0.83


def test_quality_of_every_persons_completions_is_that_of_the_page(style):
    stored, *_ = style
    for label in stored["people"]:
        one = texts.quality(written(stored["arms"], [label], label), [None] * 40, True)
        row = next(
            line for line in PAGE.splitlines() if line.startswith(f"| {label} | ") and line.count("|") == 9
        )
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        shown = [f"{one['kl_to_reference']:.1f}", f"{one['perplexity']:.1f}"]
        assert cells[:2] == shown and cells[5:] == [f"{1 - one['truncated']:.0%}", f"{one['tokens']:.0f}"]


def test_variety_does_not_fall_with_the_number_of_people(style):
    """One person's words twice are as varied for two people as for one."""
    stored, *_ = style
    label = stored["people"][0]
    one, two = written(stored["arms"], [label], "one"), written(stored["arms"], [label, label], "two")
    found = [texts.quality(these, [None] * 40, True) for these in (one, two)]
    assert (
        found[0]["distinct_1"] == found[1]["distinct_1"] and found[0]["distinct_2"] == found[1]["distinct_2"]
    )
