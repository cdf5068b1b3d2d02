"""Judges are checked before they count: one that reads the place or the length is named and judges nothing."""

import re

import numpy as np
import pytest

from rlhf.evaluation.outputs import figures, judging
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.policies import Source
from rlhf.evaluation.outputs.samples import Written
from rlhf.phi.reward import PromptRows
from rlhf.policy.generation import Completion
from rlhf.run.config.load import build
from tests.rlhf.phi.columns.test_judge import Server, longer

PROMPTS = tuple(f"question {number}" for number in range(12))
ASKED = PromptRows(PROMPTS, np.arange(1, 13, dtype=np.int32), {"answer": list("abcdefghijkl")}, "prompts")
RNG = np.random.default_rng(0)


def written(name, number=2):
    """Words of random length; the worth of one is its first letter."""
    texts = [
        ["".join(RNG.choice(list("abcdefgh"), RNG.integers(1, 30))) for _ in range(number)] for _ in PROMPTS
    ]
    completions = [[[Completion(text, 1, 0.0, True, (1,)) for text in own] for own in texts]]
    return Written(Source(name, name, name, False, False), completions)


WRITTEN = [written("one"), written("two")]
EVERYBODY = [Person("everybody", "everybody", None)]


def judged(*judges):
    values = {"seed": 0, "output_dir": "out", "policies": ["a"], "prompts": "p", "judges": list(judges)}
    config = build(values, OutputsConfig, "test")
    return judging.judge(config, WRITTEN, None, ASKED, EVERYBODY)


def by_letter(first, second):
    return "tie" if first[0] == second[0] else "A" if first[0] < second[0] else "B"


JUDGES = {
    "reads": (lambda first, second: f"Verdict: {by_letter(first, second)}", None),
    "first place": (lambda first, second: "Verdict: A", "agree in both orders on 0.0%"),
    "length": (longer, r"prefers the longer text in 100.0% of \d+ pairs"),
    "brevity": (lambda first, second: longer(second, first), "prefers the shorter text in 100.0%"),
}


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_that_reads_the_place_or_the_length_is_named_and_not_counted(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    reply, wrong = JUDGES[name]
    server = Server(reply)
    found = judged({"name": name, "kind": "judge", "model": "m", "address": server.address, "retries": 0})
    server.http.shutdown()
    server.http.server_close()
    if wrong is None:
        assert found.checks[name]["off"] is None and found.checks[name]["consistency"] == 1.0
        assert set(found.values) == {name} and 0.3 < found.checks[name]["longer_preferred"] < 0.7
    else:
        assert found.values == {} and found.checks[name]["off"] is not None
        assert re.search(wrong, found.checks[name]["off"])


def test_a_function_may_count_letters_and_reads_the_other_columns(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text(
        "def length(completions, **others):\n    return [float(len(c)) for c in completions]\n"
        "def right(completions, answer, **others):\n"
        "    return [float(c[0] == a) for c, a in zip(completions, answer, strict=True)]\n"
    )
    names = ("length", "right")
    found = judged(*({"name": n, "kind": "function", "function": f"{file}:{n}"} for n in names))
    assert found.checks["length"]["longer_preferred"] == 1.0 and found.checks["length"]["off"] is None
    for one, values, right in zip(WRITTEN, found.values["length"], found.values["right"], strict=True):
        assert values.tolist() == np.vectorize(len)(one.array("text")).tolist()
        wanted = [
            [float(c.text[0] == a) for c in own]
            for own, a in zip(one.completions[0], "abcdefghijkl", strict=True)
        ]
        assert right[0].tolist() == wanted


def beside(tmp_path, monkeypatch, reply, *others, own="http://far/v1#m"):
    """A judge `m`, and among the policies one that is the same model and marks its texts; the others do not."""
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    server = Server(reply)
    marked = [
        [[[c._replace(text=c.text + "!") for c in texts] for texts in prompts] for prompts in one.completions]
        for one in (written("own"),)
    ][0]
    policies = [Written(Source("own", own, "own", False, False), marked), *WRITTEN]
    judges = [
        {"name": "m", "kind": "judge", "model": "m", "address": server.address, "retries": 0, "opponents": 8}
    ]
    values = {"seed": 0, "output_dir": "out", "policies": ["a"], "prompts": "p", "judges": [*judges, *others]}
    found = judging.judge(build(values, OutputsConfig, "test"), policies, None, ASKED, EVERYBODY)
    server.http.shutdown()
    server.http.server_close()
    return found, policies


def vain(first, second):
    a, b = first.endswith("!"), second.endswith("!")
    return f"Verdict: {by_letter(first, second) if a == b else 'A' if a else 'B'}"


def fair(first, second):
    return f"Verdict: {by_letter(first, second)}"


@pytest.fixture
def letters(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text(
        "def letters(completions, **others):\n    return [-float(ord(c[0])) for c in completions]\n"
    )
    return {"name": "letters", "kind": "function", "function": f"{file}:letters"}


def test_a_judge_that_prefers_its_own_models_texts_is_named_and_does_not_compare_them(
    tmp_path, monkeypatch, letters
):
    found, policies = beside(tmp_path, monkeypatch, vain, letters)
    check = found.checks["m"]
    assert check["off"] is None and check["self"]["policies"] == ["own"] and check["self"]["preferred"] == 1.0
    assert re.search(
        "prefers its own model's texts in 100.0% of comparisons, the other judges in",
        check["self"]["partial"],
    )
    result = figures.figures(policies, found, EVERYBODY, PROMPTS, True)
    compared = {(one["judge"], *one["policies"]) for one in result["comparisons"]}
    assert compared == {
        ("m", "one", "two"), ("letters", "own", "one"), ("letters", "own", "two"), ("letters", "one", "two"),
    }  # fmt: skip


def test_a_judge_that_is_fair_to_its_own_model_counts(tmp_path, monkeypatch, letters):
    found, policies = beside(tmp_path, monkeypatch, fair, letters)
    assert (
        found.checks["m"]["self"]["partial"] is None
        and abs(found.checks["m"]["self"]["excess"]["mean"]) < 0.1
    )
    assert len(figures.figures(policies, found, EVERYBODY, PROMPTS, True)["comparisons"]) == 6


def test_no_judge_is_a_witness_in_its_own_cause(tmp_path, monkeypatch):
    found, _ = beside(tmp_path, monkeypatch, vain, own="models/m")
    assert "no other judge says that they are better" in found.checks["m"]["self"]["partial"]
    other, _ = beside(tmp_path, monkeypatch, vain, own="http://far/v1#other")
    assert "self" not in other.checks["m"] and not other.partial


def test_a_judge_that_is_silent_shows_nothing():
    one, two = written("one"), written("two")
    silent = np.full((1, 12, 2), np.nan)
    found = figures.comparison("j", ("one", "two"), (silent, silent), (one, two))
    assert found["judged"] == 0 and found["outcome"] == figures.TOO_FEW
    spoken = np.zeros((1, 12, 2))
    assert (
        figures.comparison("j", ("one", "two"), (spoken, spoken), (one, two))["outcome"] == figures.NOT_SHOWN
    )


def test_one_text_for_all_is_one_accident_however_many_people_judge_it():
    rng = np.random.default_rng(0)
    people, prompts = 40, 1
    personal = Written(
        Source("own", "own", "own", True, False),
        [[[Completion(f"text {u}", 1, 0.0, True, ())]] for u in range(people)],
    )
    shared = Written(Source("all", "all", "all", False, False), [[[Completion("same", 1, 0.0, True, ())]]])
    values = rng.normal(0.0, 1.0, (people, prompts, 1)), rng.normal(2.0, 0.1, (people, prompts, 1))
    found = figures.comparison("own reward", ("own", "all"), values, (personal, shared))
    assert found["outcome"] == figures.TOO_FEW
    assert "at least 6 prompts" in figures.sentence(found, people, prompts)
    # Texts of their own are as many accidents as there are people.
    other = Written(Source("other", "other", "other", True, False), personal.completions)
    assert figures.comparison("own reward", ("own", "other"), values, (personal, other))["outcome"] == "worse"
