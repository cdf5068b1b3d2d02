"""The whole command on a tiny world: figures, files, cache, resumption, and what is refused."""

import csv
import json
import re
import shutil

import numpy as np
import pyarrow.parquet
import pytest

from rewards import jsonl
from rewards.basis.readout import Readout
from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.apps.evaluate import evaluate
from rlhf.evaluation.outputs import policies, samples, store
from rlhf.phi import encoder
from rlhf.policy import store as policy_store
from rlhf.report import outputs as report
from tests.rlhf.phi.columns.rows import pair, preferences


def options(world, *policies, **changes):
    given = {
        "policies": [
            str(world / name) if (world / name.split("@")[0]).exists() else name for name in policies
        ],
        "rewards": str(world / "rewards"),
        "prompts": str(world / "prompts.txt"),
        "people": ["extreme", "sparse", "population"],
        "count": 3,
        "sampling.max_new_tokens": 6,
    }
    return given | changes


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """The result of four policies, and its folder."""
    folder = tmp_path_factory.mktemp("run") / "out"
    judge = world / "judge.py"
    judge.write_text(
        "def shortness(completions, **others):\n    return [-float(len(c)) for c in completions]\n"
    )
    judges = [{"name": "shortness", "kind": "function", "function": f"{judge}:shortness"}]
    given = options(world, "a", "a@aggregate", "b", "reference", output_dir=str(folder), judges=judges)
    return evaluate(None, given | {"inspect_logs": True}, []), folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_every_pair_is_compared_by_every_judge(run):
    result, _ = run
    names = list(result["policies"])
    assert len(names) == 4 and names[1] == f"{names[0]}@aggregate" and names[3] == "reference"
    pairs = {(*one["policies"], one["judge"]) for one in result["comparisons"]}
    assert len(pairs) == len(result["comparisons"]) == 2 * 6
    assert result["people"] == len(result["persons"]) and result["prompts"] == 6
    assert result["policies"][names[0]]["personal"] and not result["policies"]["reference"]["personal"]


def test_the_worth_of_a_sample_is_the_persons_own_reward_of_its_text(run, world, tmp_path):
    _, folder = run
    fitted = load_reward_run(world / "rewards")
    mean = np.asarray(fitted.prior.mean)
    row = next(row for row in rows_of(folder) if row["person"] == "population" and row["text"].strip())
    prefs = preferences(tmp_path, [pair(row["prompt"], row["text"], "else")])
    phi = Readout.of(fitted.basis).features(encoder.embed_items(prefs, fitted.basis.encoder))
    assert row["worth"]["own reward"] == pytest.approx(float(phi[prefs.chosen[0]] @ mean), abs=1e-4)
    assert row["worth"]["shortness"] == -len(row["text"])


def test_numbers_are_those_of_the_samples(run):
    result, folder = run
    rows = rows_of(folder)
    assert len(rows) == result["completions"]
    a, _, b, _ = result["policies"]
    worth = {}
    for row in rows:
        place = (row["policy"], row["person"], row["prompt_number"])
        worth.setdefault(place, []).append(row["worth"]["own reward"])
    cells = [place[1:] for place in worth if place[0] == a]
    won = np.mean(
        [
            np.mean([(x > y) + 0.5 * (x == y) for x in worth[a, *cell] for y in worth[b, *cell]])
            for cell in cells
        ]
    )
    found = next(
        one for one in result["comparisons"] if one["policies"] == [a, b] and one["judge"] == "own reward"
    )
    assert found["win_rate"]["mean"] == pytest.approx(won)
    gain = np.mean([np.mean(worth[a, *cell]) - np.mean(worth[b, *cell]) for cell in cells])
    assert found["difference"]["mean"] == pytest.approx(gain)
    # The matrix' diagonal is what each gets of their own.
    matrix = json.loads((folder / "matrix.json").read_text())
    own = np.diag(matrix["policies"][a])
    np.testing.assert_allclose(own, result["policies"][a]["worth"]["own reward"]["per_person"])


def test_the_reference_is_no_distance_from_itself(run):
    result, folder = run
    assert result["policies"]["reference"]["quality"]["kl_to_reference"] == pytest.approx(0, abs=1e-4)
    trained = next(iter(result["policies"].values()))["quality"]
    assert trained["perplexity"] > 1 and np.isfinite(trained["kl_to_reference"])
    assert all(np.isfinite(row["reference_logprob"]) for row in rows_of(folder))


def test_three_files_hold_the_same_samples(run):
    _, folder = run
    rows = rows_of(folder)
    table = pyarrow.parquet.read_table(folder / "samples.parquet").to_pylist()
    with (folder / "samples.csv").open(newline="", encoding="utf-8") as file:
        sheet = list(csv.DictReader(file))
    assert [row["text"] for row in table] == [row["text"] for row in rows]
    assert [row["text"] for row in sheet] == [row["text"] for row in rows]
    assert table[0]["worth: shortness"] == rows[0]["worth"]["shortness"]


def test_numbers_in_the_report_are_those_of_metrics_json(run):
    result, folder = run
    page = (folder / "report.html").read_text()
    assert page.index(result["verdict"]["text"].replace("'", "&#39;")) < page.index("<h1>")
    first = result["comparisons"][0]["win_rate"]
    assert f"{100 * first['mean']:.3g}%" in page
    data = json.loads(re.search(r'id="outputs-data">(.*?)</script>', page, re.S)[1])
    shown = {data["texts"][text] for cell in data["cells"] for texts in cell["t"] for text in texts}
    assert shown == {row["text"] for row in rows_of(folder)}


def test_reasons_by_axis_add_up_to_what_a_text_is_worth_to_the_person(run):
    """Σ_k w_k · (φ_k − mean over the prompt's completions) = worth − mean worth of the prompt's completions."""
    result, folder = run
    page = (folder / "report.html").read_text()
    data = json.loads(re.search(r'id="outputs-data">(.*?)</script>', page, re.S)[1])
    assert data["axes"] == result["axes"] and len(data["axes"]) == 2
    rows = rows_of(folder)
    for cell in data["cells"]:
        person = result["persons"][cell["p"]]
        coef = np.array(person["coefficients"])
        asked = [row for row in rows if row["prompt_number"] == cell["q"]]
        phi = np.array([list(row["features"].values()) for row in asked])
        worth = dict(zip((row["text"] for row in asked), phi @ coef, strict=True))
        for name, texts, shown in zip(data["policies"], cell["t"], cell["w"], strict=True):
            own = [worth[data["texts"][text]] for text in texts]
            assert shown == pytest.approx(np.mean(own), abs=1e-3), name  # this person's, also of what all get
            reasons = [np.dot(data["coef"][cell["p"]], data["phi"][text]) for text in texts]
            assert reasons == pytest.approx(np.array(own) - (phi @ coef).mean(), abs=1e-2)


def test_the_same_again_samples_nothing_and_neither_does_another_evaluation(
    run, world, tmp_path, monkeypatch
):
    result, folder = run
    monkeypatch.setattr(samples, "_write", lambda *args: pytest.fail("sampled again"))
    judge = f"{world / 'judge.py'}:shortness"
    judges = [{"name": "shortness", "kind": "function", "function": judge}]
    given = options(world, "a", "a@aggregate", "b", "reference", output_dir=str(folder), judges=judges)
    assert evaluate(None, given | {"inspect_logs": True}, []) == result
    assert len(list((folder / "inspect").iterdir())) == 4 and (folder / "report.md").is_file()
    other = evaluate(None, options(world, "b", "a", output_dir=str(tmp_path / "other")), [])
    a, b = list(result["policies"])[0], list(result["policies"])[2]
    was = next(
        one for one in result["comparisons"] if one["policies"] == [a, b] and one["judge"] == "own reward"
    )
    now = other["comparisons"][0]
    assert now["policies"] == [b, a]
    assert now["win_rate"]["mean"] == pytest.approx(1 - was["win_rate"]["mean"])


def test_what_was_written_before_a_kill_is_kept_and_the_rest_is_the_same(run, world, tmp_path, monkeypatch):
    result, folder = run
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    given = options(world, "a", "b", output_dir=str(tmp_path / "out")) | {"sampling.batch": 16}
    add, calls = store.Store.add, []

    def killed(kept, found):
        calls.append(len(found))
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(kept, found)

    monkeypatch.setattr(store.Store, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(None, given, [])
    [file] = (tmp_path / "cache" / "outputs").glob("*.jsonl")
    lines = file.read_bytes().splitlines()
    assert len(lines) == 32
    # The machine stopped in the middle of a line, and a bit of another was lost.
    damaged = lines[3].replace(b'"text": "', b'"text": "x')
    file.write_bytes(b"\n".join([*lines[:3], damaged, *lines[4:31], lines[31][:40]]))
    calls.clear()
    monkeypatch.setattr(store.Store, "add", lambda kept, found: (calls.append(len(found)), add(kept, found)))
    evaluate(None, given, [])
    a = list(result["policies"])[0]
    of = [row for row in rows_of(folder) if row["policy"] == a]
    assert sum(calls) == 2 * len(of) - 30
    again = [row for row in rows_of(tmp_path / "out") if row["policy"] == a]
    assert [row["text"] for row in again] == [row["text"] for row in of]


def test_a_policy_against_itself_is_no_difference(world, tmp_path):
    given = options(world, "a", output_dir=str(tmp_path / "out"))
    given["policies"] = [f"one={world / 'a'}", f"two={world / 'a'}"]
    [found] = evaluate(None, given, [])["comparisons"]
    assert found["win_rate"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["outcome"] == "no difference shown"


def test_plain_models_without_rewards(world, tmp_path):
    judges = [{"name": "shortness", "kind": "function", "function": f"{world / 'judge.py'}:shortness"}]
    given = {
        "policies": [f"one={world / 'model'}", f"two={world / 'a'}"],
        "prompts": str(world / "prompts.txt"),
        "judges": judges,
        "sampling.max_new_tokens": 4,
        "output_dir": str(tmp_path / "out"),
    }
    result = evaluate(None, given, [])
    assert [one["name"] for one in result["persons"]] == ["everybody"]
    assert result["judges"] == ["shortness"]


REFUSED = [
    (("a", "a"), {}, "twice; give them names"),
    (("nowhere",), {}, "nowhere"),
    (("rewards",), {}, "rewards"),
    (("model@aggregate",), {}, "is no policy run"),
    (("a",), {"people": ["p1"]}, "knows nobody called 'p1'"),
    (("a",), {"people": ["held-out"]}, "give data"),
    (("a",), {"prompts": None}, "give prompts"),
    (("a",), {"judges": ["judge.py:nope"]}, "judge.py"),
    (("model", "reference"), {}, "nothing says what π_ref is"),
    (("a",), {"sampling.max_new_tokens": 62}, "lower sampling.max_new_tokens"),
]


@pytest.mark.parametrize(("policies", "changes", "message"), REFUSED)
def test_mistakes_are_named(world, tmp_path, policies, changes, message):
    given = options(world, *policies, output_dir=str(tmp_path / "out")) | changes
    with pytest.raises(UserError, match=message):
        evaluate(None, given, [])
    assert not (tmp_path / "out").exists()


def test_the_reference_is_found_where_run_and_model_were_moved_together(world, tmp_path):
    shutil.copytree(world, tmp_path / "moved")
    record = tmp_path / "moved" / "a" / "policy" / "policy.json"
    assert policies.reference_of([f"x={record.parents[1]}"], None) == str(
        policy_store.load_policy(record.parents[1]).record["base"]
    )


def test_from_the_command_line(world, tmp_path, capsys):
    words = ["evaluate", "--policies", str(world / "a"), "reference", "--rewards", str(world / "rewards")]
    words += ["--prompts", str(world / "prompts.txt"), "--people", "extreme", "2", "--max-new-tokens", "6"]
    assert cli.main([*words, "--output-dir", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["persons"]) == 2
    assert cli.main(["evaluate"]) == 2
    assert "give CONFIG" in capsys.readouterr().err
    # The resolved configuration is a file that gives the same evaluation.
    shutil.copy(tmp_path / "out" / "config.yaml", tmp_path / "again.yaml")
    assert (
        cli.main(["evaluate", str(tmp_path / "again.yaml"), f"output_dir={tmp_path / 'again'}", "--json"])
        == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert again["comparisons"] == result["comparisons"]


NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>{{7*7}}${7*7}",
    "\u2028\u2029\x00\x1b[31m",
    "\ud800 half",
    "javascript:alert(1)",
    "'\"><svg/onload=alert(1)>",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_that_people_or_models_wrote_becomes_markup(tmp_path, nasty, run):
    result, folder = run
    rows = [row | {"text": nasty, "prompt": nasty} for row in rows_of(folder)]
    people = [one["name"] + nasty for one in result["persons"]]
    persons = [one | {"name": name} for one, name in zip(result["persons"], people, strict=True)]
    policies = {name + nasty: one for name, one in result["policies"].items()}
    comparisons = [
        one | {"policies": [name + nasty for name in one["policies"]]} for one in result["comparisons"]
    ]
    rows = [row | {"policy": row["policy"] + nasty} for row in rows]
    changed = result | {"persons": persons, "policies": policies, "comparisons": comparisons}
    changed["verdict"] = {"status": "won", "text": nasty}
    report.write_outputs_report(tmp_path, changed, {nasty: np.eye(len(people)).tolist()}, people, rows)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert "<img" not in page and "<svg/" not in page and "onerror=alert(1)>" not in page.replace("&gt;", "")
    data = json.loads(re.search(r'id="outputs-data">(.*?)</script>', page, re.S)[1])
    kept = nasty.encode("utf-8", "replace").decode()  # half a surrogate pair has no UTF-8
    assert set(data["texts"]) == {kept}
    assert "script-src &#39;sha256-" in page or "script-src 'sha256-" in page


def test_a_store_forgets_nothing_of_a_text(tmp_path):
    kept = store.Store("one", tmp_path)
    odd = samples.Completion("a\nb\u2028\ud800 c", 2, -1.5, True, (3, 4))
    kept.add([("key", odd)])
    kept.add([("other", odd._replace(text=""))])
    again = store.Store("one", tmp_path)
    assert again.known == {"key": odd, "other": odd._replace(text="")}
    assert len(list(jsonl.raw_lines(again.path))) == 2
