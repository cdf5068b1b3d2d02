"""Reports: verdicts that can say no, pages that ask for nothing, every number explained."""

import ast
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from rewards.types import Preferences
from rlhf.report import (
    axis_items,
    console_table,
    evaluation_verdict,
    plots,
    rewards_verdict,
    write_evaluation_report,
    write_rewards_report,
    write_training_report,
)
from rlhf.report.figures import Enumerated, normalise, summarise_enumerated
from rlhf.report.training import grouped, training_verdict
from rlhf.run import metric_docs

ROOT = Path(__file__).parents[3]
HOSTILE = '<script>alert(1)</script><img src="http://evil.example/x.png" onerror="x()">'
VOID = {"meta", "img", "br", "wbr", "link", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and the text seen by a reader; every element must be closed where it should be."""

    def __init__(self, directory: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.open = "", []
        self.source = (directory / "report.html").read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def verdict(self):
        return self.text.strip().split("\n")[1]


def self_contained(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src", "xlink:href", "action"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:image/png;base64,"))
    for address in re.findall(r"url\(([^)]*)\)", page.source):
        assert address.startswith("#")
    assert "@import" not in page.source
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', page.source)
    assert set(used) <= set(ids)


def planted(num_people=12, *, ignores=False, seed=0):
    """A policy near the optimum of people with different tastes, or one that ignores them."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(20, 3))
    coef = np.array([0.5, 0.0, 0.0]) + rng.normal(size=(num_people, 3)) * [0.3, 1.2, 0.8]
    reference = normalise(rng.normal(size=20) * 0.3)
    generic = normalise(reference + 0.5 * phi[:, 0])
    own = np.tile(generic, (num_people, 1)) if ignores else normalise(reference + coef @ phi.T)
    exact, matrix = summarise_enumerated(Enumerated(own, generic, reference), phi, coef, coef, 1.0)
    people = [f"person {u}" for u in range(num_people)]
    examples = [
        {"person": name, "answer": f"answer to {name} {HOSTILE}", "coefficients": coef[u]}
        for u, name in enumerate(people)
    ]
    return (
        {"people": people, "beta": 1.0, "enumerated": exact, "sampled": {"words": 11.7}},
        matrix,
        people,
        examples,
    )


def interval(mean, half=0.02):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def rewards_result(**changes):
    evaluation = {
        "people": 40,
        "pooled_accuracy": interval(0.66),
        "accuracy": {0: interval(0.66), 3: interval(0.75), 10: interval(0.81), 20: interval(0.83)},
        "accuracy_random": {0: interval(0.66), 3: interval(0.71), 10: interval(0.79), 20: interval(0.83)},
        "swap": {"answers": 10}
        | {name: interval(0.2) for name in ("own", "swapped", "flip_rate", "difference")},
    }
    return {"axes": ["aggregate", "taste 1"], "evaluation": evaluation | changes}


# --- verdicts ---


def test_a_policy_that_serves_people_wins():
    result, matrix, _, _ = planted()
    verdict = evaluation_verdict(result, matrix)
    assert verdict.status == "won" and verdict.text.startswith("Personalisation helps")
    own, aggregate = (
        np.array(result["enumerated"]["per_person"][f"{k}_reward"]) for k in ("own", "aggregate")
    )
    assert f"own minus aggregate: {np.mean(own - aggregate):+.2f}" in verdict.text


def test_a_policy_that_ignores_the_user_is_named_so():
    result, matrix, _, _ = planted(ignores=True)
    verdict = evaluation_verdict(result, matrix)
    assert verdict.status == "lost" and "this policy ignores the user" in verdict.text
    rng = np.random.default_rng(0)  # tiny but perfectly consistent gains are no service either
    tiny = rng.normal(size=(12, 1)) + 0.01 * np.eye(12)
    assert "ignores the user" in evaluation_verdict({}, tiny).text


def test_policies_dealt_to_the_wrong_people_lose():
    result, matrix, _, _ = planted()
    people, worst = np.arange(len(matrix)), np.argmin(matrix, axis=1)
    wrong = matrix.copy()
    wrong[people, people], wrong[people, worst] = matrix[people, worst], matrix[people, people]
    assert evaluation_verdict(result, wrong).status == "lost"
    worse = evaluation_verdict({}, 1.0 - np.eye(8)).text
    assert "served better by other people's coefficients" in worse


def test_noise_rarely_wins():
    """A 95 % interval lets one in forty pass by chance, somewhat more with few people; seeds are fixed."""
    verdicts = [
        evaluation_verdict({}, np.random.default_rng(seed).normal(size=(12, 12))) for seed in range(200)
    ]
    assert np.mean([verdict.status == "won" for verdict in verdicts]) < 0.08
    assert np.mean(["not shown that they change in the person's favour" in v.text for v in verdicts]) > 0.85


def test_losing_to_the_aggregate_is_a_loss():
    result, matrix, _, _ = planted()
    per_person = result["enumerated"]["per_person"]
    own = np.array(per_person["own_reward"])
    per_person["aggregate_reward"] = (own + 0.3).tolist()
    verdict = evaluation_verdict(result, matrix)
    assert verdict.status == "lost" and "one policy for everybody serves people better" in verdict.text
    per_person["aggregate_reward"] = (own + np.resize([1.0, -1.0], len(own))).tolist()
    assert "not shown" in evaluation_verdict(result, matrix).text


def test_what_was_not_measured_is_not_claimed():
    _, matrix, _, _ = planted()
    assert "aggregate policy was not measured" in evaluation_verdict({}, matrix).text
    assert evaluation_verdict({}, matrix[:1, :1]).status == "unknown"
    assert evaluation_verdict({}, np.full((3, 3), np.nan)).status == "unknown"
    assert "Only 3 people" in evaluation_verdict({}, np.eye(3)).text
    assert "30% of the probability" in evaluation_verdict({"enumerated": {"valid_mass": 0.3}}, matrix).text


def test_rewards_verdict():
    assert rewards_verdict({}).status == "unknown"
    assert rewards_verdict(rewards_result()).status == "won"
    assert "81.0% of the last choices predicted after 10 answers" in rewards_verdict(rewards_result()).text
    close = rewards_verdict(rewards_result(pooled_accuracy=interval(0.8)))
    assert close.status == "lost" and "one model for everybody" in close.text
    swap = rewards_result()["evaluation"]["swap"] | {"difference": interval(0.01)}
    assert "another person's coefficients predict as well" in rewards_verdict(rewards_result(swap=swap)).text
    # The same overlapping intervals settle the matter when people are compared with themselves.
    pooled = np.linspace(0.6, 1.0, 40)
    paired = {"person_accuracy": {"10": pooled + 0.01}, "pooled_person_accuracy": pooled}
    assert rewards_verdict(rewards_result(pooled_accuracy=interval(0.8), **paired)).status == "won"
    assert rewards_verdict(rewards_result(accuracy={0: interval(0.6)}, swap=None)).status == "unknown"


def test_few_people_leave_it_open_and_many_settle_it():
    """Not shown: unknown, with the power, where a relevant difference could have been missed; lost where not."""
    for people, half, status in ((16, 0.15, "unknown"), (400, 0.02, "lost")):
        swap = {"answers": 10, "difference": interval(0.01, half)}
        verdict = rewards_verdict(rewards_result(people=people, swap=swap, tested_choices=3))
        assert verdict.status == status
        said = verdict.text.startswith(f"Unknown: {people} people cannot show a difference below ")
        assert said == (status == "unknown") and " points; another person's" in verdict.text or not said
        pooled = interval(0.80, half)
        again = rewards_verdict(rewards_result(people=people, pooled_accuracy=pooled))
        assert again.status == status and "one model for everybody" in again.text
    # Shown to harm is lost, however few they are.
    swap = {"answers": 10, "difference": interval(-0.4, 0.3)}
    assert rewards_verdict(rewards_result(people=5, swap=swap)).status == "lost"
    # Before anybody is asked: what so few can show at best.
    assert "3 people cannot show a difference below" in rewards_verdict({"held_out_people": 3}).text
    assert "cannot show" not in rewards_verdict({"held_out_people": 200}).text
    noise = evaluation_verdict({}, np.random.default_rng(2).normal(size=(12, 12)))
    assert noise.status == "unknown" and "12 people cannot show a difference below" in noise.text
    assert " nats; answers change with the person" in noise.text


def test_twenty_points_planted_are_found_with_sixteen_people():
    rng = np.random.default_rng(0)
    pooled = rng.binomial(10, 0.6, 16) / 10
    own = np.minimum(pooled + rng.binomial(10, 0.2, 16) / 10, 1.0)
    verdict = rewards_verdict(
        rewards_result(
            people=16, swap=None, accuracy={10: interval(own.mean(), 0.1)}, pooled_accuracy=interval(pooled.mean(), 0.1),
            person_accuracy={"10": own}, pooled_person_accuracy=pooled,
        )
    )  # fmt: skip
    assert verdict.status == "won"


def test_training_verdict():
    steps = np.arange(1, 51)
    falling, flat = np.linspace(1, 0.2, 50), np.ones(50)
    assert training_verdict({"train/loss/total": (steps, falling)}).status == "won"
    assert "did not fall" in training_verdict({"train/loss/total": (steps, flat)}).text
    drained = training_verdict({"train/loss/total": (steps, falling), "train/group_mass": (steps, falling)})
    assert drained.status == "lost" and "loss.nll_coef" in drained.text
    negative = {"train/loss/total": (steps, falling), "train/kl_ref_nats": (steps, falling - 0.5)}
    assert "KL divergence is negative (-0.3)" in training_verdict(negative).text
    broken = {
        "train/loss/total": (steps, falling),
        "train/margin": (steps, np.where(steps == 7, np.nan, 1.0)),
    }
    assert "train/margin" in training_verdict(broken).text
    assert training_verdict({}).status == "unknown"


# --- pages ---


def test_evaluation_page_escapes_and_asks_for_nothing(tmp_path):
    result, matrix, people, examples = planted(30)
    people[0] = examples[0]["person"] = f"$x_{HOSTILE}"
    (tmp_path / "environment.json").write_text(
        json.dumps({"seed": 41, "sessions": [{"command": ["chorus", HOSTILE], "versions": {"jax": "9.8.7"}}]})
    )
    (tmp_path / "config.yaml").write_text(f"data: '{HOSTILE}'\n")
    write_evaluation_report(tmp_path, result, matrix, people, examples)
    page = Page(tmp_path)
    self_contained(page)
    assert len(page.source.encode()) < 1_000_000
    assert page.source.index('<p class="verdict won"') < page.source.index("<h1>")
    assert "Personalisation helps here" in page.text and HOSTILE in page.text
    for piece in ("jax 9.8.7", "41", "before training", metric_docs.METRICS["kl_to_optimum"].meaning):
        assert piece in page.text
    assert f"{result['enumerated']['kl_to_reference']:.4g}" in page.text
    assert "8 of 30 people" in page.text and "by the first taste axis" in page.text
    # Those at the ends of the taste axis are the ones shown.
    ends = sorted(range(30), key=lambda u: examples[u]["coefficients"][1])
    shown = [int(person) for person in re.findall(r"answer to person (\d+)", page.text)]
    assert shown == ends[:4] + ends[-4:]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_evaluation_page_without_optional_parts(tmp_path):
    write_evaluation_report(tmp_path, {"sampled": {"words": 3.25}}, np.eye(2), ["a", "b"], [])
    page = Page(tmp_path)
    self_contained(page)
    assert "3.25" in page.text and "aggregate policy was not measured" in page.text
    assert "best possible policy" not in page.text and "kl_to_optimum" not in page.text
    assert "in the order of the data" in page.text
    write_evaluation_report(tmp_path, {"sampled": {"words": None}}, np.full((2, 2), np.nan), ["a", "b"], [])
    assert "not finite" in Page(tmp_path).text
    with pytest.raises(ValueError, match="3 people"):
        write_evaluation_report(tmp_path, {}, np.eye(2), ["a", "b", "c"], [])


def test_large_and_small_evaluations_stay_small(tmp_path):
    for num_people in (2, 200):
        write_evaluation_report(tmp_path, *planted(num_people))
        page = Page(tmp_path)
        self_contained(page)
        assert len(page.source.encode()) < 600_000


def test_rewards_page(tmp_path):
    result = rewards_result(person_accuracy={10: np.linspace(0.5, 1, 40)}) | {
        "prior_mean": np.array([1.5, 0.0]),
        "prior_sd": np.array([0.7, 1.25]),
        "axis_items": [{"largest": [HOSTILE], "smallest": ["dull $5 text"]}] * 2,
        "candidates": [
            {"num_basis": k, "dims": 8, "loss_nats": 0.51234, "loss_se": 0.01, "chosen": k == 4}
            for k in (2, 4)
        ],
        "fit": {"objective": 123.25, "loss_nats": 0.44},
    }
    write_rewards_report(tmp_path, result)
    page = Page(tmp_path)
    self_contained(page)
    for piece in (
        HOSTILE,
        "1.25",
        "0.5123",
        "0.81 (0.79 to 0.83)",
        "123.2",
        "worst decile",
        "random questions",
    ):
        assert piece in page.text.replace("_\n", "_")
    write_rewards_report(tmp_path, {"axes": ["aggregate"]})
    assert "Not judged yet" in Page(tmp_path).text and "Person by person" not in Page(tmp_path).text


def test_training_page_begins_with_what_is_said_then_reward_and_kl(tmp_path):
    names = ("perf/step_seconds", "train/clip_share", "train/loss/total", "train/kl_ref_nats", "train/reward")
    rows = [{"step": step, "train/kl_coef": 0.05} | dict.fromkeys(names, 0.25) for step in (1, 2)]
    samples = [
        {"step": step, "prompt": prompt, "completion": f"said at {step} {HOSTILE}", "reward": step / 2}
        for step in (1, 2)
        for prompt in ("one?", [{"role": "user", "content": f"two? {HOSTILE}"}])
    ]
    write_training_report(tmp_path, rows, (), samples)
    page = Page(tmp_path)
    self_contained(page)
    places = [
        page.text.index(piece)
        for piece in (
            "said at 1",
            "said at 2",
            "train/reward",
            "train/kl_ref_nats",
            "train/loss/total",
            "train/clip_share",
            "perf/step_seconds",
        )
    ]
    assert places == sorted(places) and page.text.count("one?") == 1
    assert "at the end 25.0%" in page.text and "Too short to judge" in page.text
    assert sorted(sum(grouped([*names, "novel"]).values(), [])) == sorted([*names, "novel"])


def test_training_page_is_small_however_long_the_run(tmp_path):
    steps = range(1, 20_001)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20_000, len(metric_docs.TRAINING)))
    rows = [
        {"step": step, "time": 1.0} | dict(zip(metric_docs.TRAINING, noise[step - 1].tolist(), strict=True))
        for step in steps
    ]
    rows[5]["train/margin"] = None
    rows[-1]["train/novel"] = 7.125
    write_training_report(tmp_path, rows)
    page = Page(tmp_path)
    self_contained(page)
    assert len(page.source.encode()) < 1_000_000
    assert "not finite at some step: train/margin" in page.text
    assert "7.125" in page.text and "Not explained here" in page.text
    for doc in metric_docs.TRAINING.values():
        assert doc.meaning in page.text
    write_training_report(tmp_path, [])
    assert "Not to be judged" in Page(tmp_path).text


# --- plots ---


def test_plots_leave_no_state_and_are_deterministic():
    before = dict(matplotlib.rcParams)
    first, second = (plots.histogram(np.arange(9.0), "x", {"mean": 4.0}) for _ in range(2))
    assert first == second and dict(matplotlib.rcParams) == before
    assert "var(--blue)" in first and "#0102" not in first


def test_heat_map_keeps_names_with_dollars_and_rows_at_their_place():
    matrix = np.array([[2.0, 1.0], [5.0, 6.0]])
    drawn = plots.heat_map(matrix, ["$a$ & <b>", "日本\x07"], "as given")
    assert "$a$ &amp; &lt;b&gt;" in drawn and "日本" in drawn


def test_thinning_keeps_means_and_running_mean_is_the_slow_one():
    steps, values = np.arange(1000), np.random.default_rng(0).normal(size=1000)
    x, y = plots.thin(steps, values)
    assert len(x) == len(y) <= 300
    np.testing.assert_allclose(y[0], values[: int(2 * x[0]) + 1].mean())
    values[3] = np.nan
    slow = [np.nanmean(values[max(0, i - 1) : i + 2]) for i in range(12)]
    smooth = plots.running_mean(values, 3)[:12]
    np.testing.assert_allclose(np.delete(smooth, 3), np.delete(slow, 3))
    assert np.isnan(smooth[3])


def test_axis_items_are_the_extremes():
    texts = ("low", "middle", "high", "unused", "high")
    prefs = Preferences(
        prompts=("p", "q"),
        item_prompt=np.array([0, 0, 0, 0, 1]),
        item_text=texts,
        item_features=None,
        user_ids=("a",),
        user_index=np.zeros(3, np.int32),
        chosen=np.array([2, 1, 4]),
        rejected=np.array([0, 0, 0]),
        outcome=np.ones(3, np.float32),
        choice=np.arange(3),
        row=np.arange(1, 4),
        columns={},
        source="x",
    )
    phi = np.array([[-2.0, 1.0], [0.3, 0.0], [1.5, -1.0], [9.0, 9.0], [1.4, -1.0]])
    items = axis_items(prefs, phi, count=2)
    assert items[0] == {"largest": ["high", "middle"], "smallest": ["low", "middle"]}
    assert items[1]["largest"][0] == "low"


def test_console_table_is_plain_without_a_terminal():
    stream = io.StringIO()
    console_table(
        "people [red]",
        ["id", "reward"],
        [["a[/b]:smile:", 1.23456], ["b", interval(0.5)], ["c", None]],
        stream=stream,
    )
    text = stream.getvalue()
    assert "a[/b]:smile:" in text and "people [red]" in text and "\x1b" not in text
    assert "1.235" in text and "0.5 (0.48 to 0.52)" in text and "not finite" in text


# --- explanations ---


def keys_of(path: str, function: str) -> set[str]:
    """String keys of the dictionaries in a function, and of assignments such as result["x"] = ..."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    body = next(
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function
    )
    keys = [key for node in ast.walk(body) if isinstance(node, ast.Dict) for key in node.keys]
    keys += [
        target.slice
        for node in ast.walk(body)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Subscript)
    ]
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def test_every_metric_path_in_the_sources_is_explained():
    literal = re.compile(r"""["']((?:train|perf|fit|eval)/[a-z0-9_/]+)["']""")
    found = {
        name
        for folder in ("rlhf", "rewards")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "metric_docs.py" and path.parent.name != "report"
        for name in literal.findall(path.read_text(encoding="utf-8"))
    }
    assert {"train/loss/total", "train/kl_ref_nats", "perf/step_seconds"} <= found
    assert found - set(metric_docs.METRICS) == set()


def test_metrics_of_sampled_runs_have_explanations_of_their_own():
    literal = re.compile(r"""["'](train/[a-z0-9_/]+)["']""")
    files = [ROOT / "rlhf" / "train" / "rl" / name for name in ("update.py", "diagnostics.py")]
    found = {name for path in files for name in literal.findall(path.read_text(encoding="utf-8"))}
    assert "train/approx_kl_nats" in found and found - set(metric_docs.RL) == set()
    assert metric_docs.explained("train/reward/length") is metric_docs.RL["train/reward/NAME"]
    assert metric_docs.explained("train/accuracy") is None


def test_verdict_of_sampled_runs():
    """The reward less its price decides; the loss may rise, and an estimate of the KL may be negative."""
    steps, rising = np.arange(1, 21), np.linspace(0.0, 4.0, 20)
    curves = {
        "train/loss/total": (steps, rising),
        "train/reward": (steps, rising),
        "train/kl_ref_nats": (steps, 0.5 * rising - 0.1),
        "train/kl_coef": (steps, np.ones(20)),
    }
    assert training_verdict(curves).status == "won"
    assert training_verdict(curves | {"train/reward": (steps, -rising)}).status == "lost"
    dear = training_verdict(curves | {"train/kl_coef": (steps, np.full(20, 3.0))})
    assert dear.status == "lost" and "the KL cost more" in dear.text


def test_every_figure_of_the_results_is_explained():
    parts = {"people", "per_person", "prompts"}
    evaluation = keys_of("rlhf/report/figures.py", "summarise_enumerated") | keys_of(
        "rlhf/report/figures.py", "summarise_samples"
    )
    assert "kl_to_optimum" in evaluation and evaluation - set(metric_docs.EVALUATION) - parts == set()
    rounds = keys_of("rewards/basis/joint.py", "optimise") | keys_of("rewards/basis/fit.py", "run_rounds")
    assert "objective" in rounds and {f"fit/{name}" for name in rounds} - set(metric_docs.FIT) == set()
    nested = {"run_dir", "axes", "candidates", "fit", "swap", "answers", "counts", "lapse", "axis_items"}
    nested |= {"model", "policy_refusal", "choice"}  # words
    by_person = {"person_accuracy", "pooled_person_accuracy"}
    fitted = keys_of("rlhf/phi/fit.py", "_fit_result") | keys_of("rlhf/phi/evaluate.py", "evaluate_people")
    assert "pooled_accuracy" in fitted
    assert fitted - set(metric_docs.REWARDS) - nested - by_person - parts == set()


def test_explanations_are_complete_sentences():
    for name, doc in metric_docs.METRICS.items():
        assert doc.meaning.endswith(".") and doc.wrong.endswith("."), name
        assert "|" not in "".join(doc), name  # would break the table of docs/metrics.md


def test_metrics_page_is_current():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metric_docs.markdown(), "run: python scripts/metrics_page.py"
