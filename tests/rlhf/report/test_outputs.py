"""The report of an evaluation: its numbers, its size, the Pareto front, and what it is in a real browser."""

import html
import json
import re
import shutil
import time

import numpy as np
import pytest

from rlhf.report import outputs, plots
from tests.rlhf.report.outputs_world import made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def tables(page):
    """Rows of every table, by their heads: text of cells."""
    found = []
    for table in re.findall(r"<table.*?</table>", page, re.S):
        head = [html.unescape(one).replace("<wbr>", "") for one in re.findall(r"<th>(.*?)</th>", table, re.S)]
        for row in re.findall(r"<tr>(<td.*?)</tr>", table, re.S):
            cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
            found.append(dict(zip(head, (html.unescape(c).replace("<wbr>", "") for c in cells), strict=True)))
    return found


def test_numbers_are_those_of_metrics_json(tmp_path):
    result, matrices, people, rows = made()
    outputs.write_outputs_report(tmp_path, result, matrices, people, rows)
    shown = tables((tmp_path / "report.html").read_text())
    for one in result["comparisons"]:
        row = next(row for row in shown if row.get("policies") == " against ".join(one["policies"]))
        rate, gain = one["win_rate"], one["difference"]
        assert (
            row["win rate"]
            == f"{100 * rate['mean']:.3g}% ({100 * rate['low']:.3g} to {100 * rate['high']:.3g})"
        )
        assert row["difference"] == f"{gain['mean']:.3g} ({gain['low']:.3g} to {gain['high']:.3g})"
        assert (
            row["at equal length"] == f"{one['length_controlled']:.1%}"
            and row["the first is"] == one["outcome"]
        )
        assert row["worst tenth of people"] == f"{one['worst_tenth']:.1%}"
    for name, one in result["policies"].items():
        own = [row for row in shown if row.get("policy") == name]
        figures = {**one["quality"], **{f"likeness_{key}": value for key, value in one["likeness"].items()}}
        for row in own:
            for key in row.keys() & figures.keys():
                assert row[key] == ("–" if figures[key] is None else f"{figures[key]:.4g}")
        [worth] = [row for row in own if "worst tenth of people" in row]
        assert worth["worst tenth of people"] == f"{one['worth']['own reward']['worst_tenth']:.3g}"
        [place] = [row for row in own if "KL" in row]
        assert place["KL"] == f"{one['quality']['kl_to_reference']:.4g}"
    explained = {row["figure"] for row in shown if "figure" in row}
    assert explained >= set(outputs.TEXTS) | set(outputs.DISTANCES) and "chorus evaluate" in str(shown)


def test_the_front_is_what_no_other_beats_in_both():
    points = {"a": (0.0, 0.0), "b": (1.0, 2.0), "worse": (1.0, 1.0), "dear": (2.0, 2.0), "twin": (1.0, 2.0)}
    assert plots.pareto(points) == ["a", "b", "twin"]


def test_fifty_people_and_a_hundred_prompts_are_a_small_page_in_seconds(tmp_path):
    wide = lambda plain: plain + "<>" * 5 + "価格" * 60  # noqa: E731  three bytes a letter
    result, matrices, people, rows = made(50, 100, text=wide)
    begun = time.monotonic()
    outputs.write_outputs_report(tmp_path, result, matrices, people, rows)
    assert time.monotonic() - begun < 20
    page = (tmp_path / "report.html").read_bytes()
    assert len(page) < 5_000_000
    data = json.loads(re.search(rb'id="outputs-data">(.*?)</script>', page, re.S)[1])
    kept = [cell["d"] for cell in data["cells"]]
    assert kept == sorted(kept, reverse=True) and b"of 5,000; samples.jsonl has all" in page


def test_more_pairs_than_can_be_read_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "MOST_PAIRS", 2)
    result, matrices, people, rows = made()
    outputs.write_outputs_report(tmp_path, result, matrices, people, rows)
    assert "1 more are in metrics.json." in (tmp_path / "report.html").read_text()


NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "{{7*7}}${7*7}",
    "\u2028\u2029",
    "<a href='javascript:alert(1)'>x</a>",
    "'\"><svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>*{display:none}</style>",
    "<base href=http://x.invalid/>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "W" * 400,
]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def shown(browser, tmp_path):
    """(write and open a report → page, complaints): console errors and warnings, dialogs, requests."""
    complaints, pages = [], []

    def show(width=1200, **changes):
        outputs.write_outputs_report(tmp_path, *made(**changes))
        page = browser.new_page(viewport={"width": width, "height": 740})
        pages.append(page)
        page.on(
            "console",
            lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda asked: None if asked.url.startswith("file:") else complaints.append(asked.url)
        )
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield show, complaints
    for page in pages:
        page.close()


def test_filter_and_side_by_side_by_keyboard(shown):
    show, complaints = shown
    page = show()
    assert (
        page.locator("article").count() == 12
        and page.locator("[role=status]").inner_text() == "12 of 20 shown"
    )
    first = page.locator("article").first
    assert first.locator(".answer h4").count() == 4
    tops = {round(box.bounding_box()["y"]) for box in first.locator(".answer").all()}
    assert len(tops) == 1  # side by side
    focused = "[...document.querySelectorAll('article')].indexOf(document.activeElement)"
    for key, place in (("j", 0), ("j", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        assert page.evaluate(focused) == place
    for _ in range(12):
        page.keyboard.press("j")
    assert page.evaluate(focused) == 12 and page.locator("article").count() == 20
    page.keyboard.press("/")
    page.keyboard.type("prompt 3 of")
    assert page.locator("[role=status]").inner_text() == "4 of 4 shown"
    assert all("prompt 3 of many?" in text for text in page.locator(".asked").all_inner_texts())
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert page.evaluate(focused) == 0
    page.get_by_label("person").focus()
    page.keyboard.press("ArrowDown")
    assert set(page.locator("article h3").all_inner_texts()) == {"person 0"}
    assert page.locator("article").count() == 5  # Escape has emptied the filter
    page.get_by_label("policy").focus()
    page.keyboard.press("ArrowDown")
    heads = page.locator(".answer h4").all_inner_texts()
    assert len(heads) == 5 and all(head.startswith("own") for head in heads)
    assert not complaints


def test_reasons_stand_under_every_answer_the_strongest_first(shown):
    show, complaints = shown
    page = show()
    data = json.loads(page.locator("#outputs-data").text_content())
    cell, box = data["cells"][0], page.locator("article").first.locator(".answer")
    for policy, texts in enumerate(cell["t"]):
        parts = np.array(data["coef"][cell["p"]]) * data["phi"][texts[0]]
        wanted = [k for k in np.argsort(-np.abs(parts)) if abs(parts[k]) >= 0.05]
        said = "; ".join(
            f"{data['axes'][k]} {'+' if parts[k] > 0 else '−'}{abs(parts[k]):.2f}" for k in wanted
        )
        assert box.nth(policy).locator(".reasons").all_inner_texts() == ([said] if said else [])
    assert not complaints


def test_a_phone_needs_no_sideways_scroll_and_nothing_that_was_written_runs(shown):
    show, complaints = shown
    number = iter(range(10**6))

    def nasty(text):
        return NASTY[next(number) % len(NASTY)] + text

    page = show(width=360, text=nasty, name=lambda plain: plain + "".join(NASTY[:7]) + "N" * 90)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("button", has_text="more").click()
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("img, iframe, base, math, a").count() == 0 and page.locator("script").count() == 2
    assert page.locator("style").count() == 1 + page.locator("svg style").count()
    texts = page.locator(".answer .text").all_inner_texts()
    assert any("<img src=x onerror=alert(1)>" in text for text in texts)
    assert not complaints


def test_print_has_the_figures_and_not_the_controls(shown):
    show, complaints = shown
    page = show()
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible() and page.locator("article").first.is_visible()
    assert page.locator("figure svg").first.is_visible()
    assert len(page.pdf()) > 10_000 and not complaints
