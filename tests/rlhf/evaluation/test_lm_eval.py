"""Tasks of lm-eval-harness by a policy: the same numbers as lm-eval's own Hugging Face model, and a person's own ones."""

import functools
import json
import os
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

import lm_eval
from lm_eval.tasks import TaskManager

from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rlhf.api.policies import load_policy
from rlhf.evaluation import lm_eval as command
from rlhf.evaluation.lm_eval import ChorusLM
from rlhf.evaluation.outputs import people
from rlhf.models.fetch import fetch

CHOICE = """task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITE = """task: write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["{stop}"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""
READ = """task: read
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/read.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
TASKS = ["choice", "read", "write"]


def tasks(folder, questions, texts, stop):
    """A folder of three tasks over rows that are written there."""
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in questions]
    (folder / "choice.jsonl").write_text("\n".join(rows))
    (folder / "read.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for name, text in (("choice", CHOICE), ("write", WRITE), ("read", READ)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder, stop=stop))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))
    rng = np.random.default_rng(0)
    questions = [
        (f"Which {place} ?", [f" item {n}" for n in rng.choice(12, 3, replace=False)], int(rng.integers(3)))
        for place in range(8)
    ]
    texts = [
        " ".join(f"item {n}" for n in rng.choice(12, size)) for size in (3, 40, 90)
    ]  # the last in windows
    return tasks(tmp_path_factory.mktemp("tasks") / "t", questions, texts, "item")


def evaluated(model, folder):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=TASKS, task_manager=manager, bootstrap_iters=0)
    assert found is not None
    scores = {
        (task, doc["doc_id"]): [one[0] if isinstance(one, list) else one for one in doc["filtered_resps"]]
        for task, docs in found["samples"].items()
        for doc in docs
    }
    return found["results"], scores


def same(ours, theirs):
    (results, scores), (wanted, answers) = ours, theirs
    for task in TASKS:
        for metric, value in wanted[task].items():
            if isinstance(value, float) and "stderr" not in metric:
                assert results[task][metric] == pytest.approx(value, rel=2e-4), (task, metric)
    assert scores.keys() == answers.keys()
    for place, answer in answers.items():
        if place[0] == "write":
            assert scores[place] == answer
        else:
            np.testing.assert_allclose(
                np.array(scores[place], float).ravel(), np.array(answer, float).ravel(), rtol=1e-3, atol=1e-3
            )


def test_the_same_as_lm_evals_own_model(world, small):
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(world / "model"), device="cpu", dtype="float32", batch_size=1)
    same(evaluated(ChorusLM(str(world / "model"), batch_size=3), small), evaluated(theirs, small))


def test_a_person_has_numbers_of_their_own_and_they_are_the_policys(world, small):
    place = str(world / "a")
    everybody = ChorusLM(place, batch_size=4)
    rewards = load_reward_run(world / "rewards")
    name = people.load_people(rewards).user_ids[0]
    one = ChorusLM(place, person=name, batch_size=4)
    request = type("Request", (), {"args": ("Which ?", " item 3")})
    (score, _), (common, _) = one.loglikelihood([request])[0], everybody.loglikelihood([request])[0]
    assert score != pytest.approx(common, abs=1e-3)
    policy = load_policy(place)
    tokens = one.tok_encode("Which ? item 3")
    z = policy.signal(people.known(name, rewards).coef)
    assert score == pytest.approx(teacher(policy.loaded, tokens, z, 2), abs=1e-4)
    mean = ChorusLM(place, person="population").loglikelihood([request])[0][0]
    assert mean == pytest.approx(common, abs=1e-4)


def teacher(loaded, tokens, z, continuation):
    """log-prob of the last tokens by the packed path of the trainers."""
    from rlhf.policy.logprobs import all_logprobs
    from rlhf.policy.packing import Sequences, pack

    rows = pack([[Sequences(tuple(tokens[:-continuation]), (tuple(tokens[-continuation:]),))]])
    return float(all_logprobs(loaded.graphdef, loaded.params, rows, None, z=z[None])[0, 0])


REFUSED = [
    ("MODEL", "p00", "answers everybody alike; leave out person"),
    ("A@aggregate", "p00", "answers everybody alike"),
    ("A", "nobody", "knows nobody called 'nobody'"),
    ("http://h/v1#m", None, "ask for log-probs of one policy"),
    ("A@best-of-4", None, "ask for log-probs of one policy"),
    ("reference", None, "ask for log-probs of one policy"),
    ("nowhere", None, "nowhere: no such model"),
]


@pytest.mark.parametrize(("policy", "person", "message"), REFUSED)
def test_what_cannot_be_asked_is_named(world, policy, person, message):
    policy = policy.replace("MODEL", str(world / "model"))
    policy = policy.replace("A", str(world / "a"), 1) if policy.startswith("A") else policy
    with pytest.raises(UserError, match=message):
        ChorusLM(policy, person=person)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_length", value) for value in (0, 1, -4, 65, 10**12, "x", 1.5, True)),
        *(("batch_size", value) for value in (0, -1, "many", 2.5, 10**9)),
        *(("seed", value) for value in (-1, 2**32, "x", None)),
    ],
)
def test_numbers_of_the_model_are_in_their_range(world, name, value):
    with pytest.raises(UserError, match=f"lm-eval: {name} '.*': must be a whole number from "):
        ChorusLM(str(world / "model"), **{name: value})


def test_the_command_line_takes_lm_evals_options_and_writes_its_results(
    world, small, tmp_path, monkeypatch, capsys
):
    words = ["lm_eval", "--model", "chorus", "--model_args", f"policy={world / 'a'},person=population"]
    words += ["--tasks", "choice", "--limit", "3", "--include_path", str(small)]
    words += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    alone = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", alone
    )  # its own thousands of files take a minute to read
    monkeypatch.setattr(sys, "argv", list(words))  # lm-eval changes it
    assert command.main() == 0
    [file] = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text())
    assert "acc,none" in found["results"]["choice"] and found["config"]["model"] == "chorus"
    words[4] = "policy=nowhere"
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    assert command.main() == 2
    assert "chorus: error: nowhere: no such model" in capsys.readouterr().err


@pytest.mark.real_model
def test_smollm2_is_the_same_on_three_tasks(tmp_path):
    from lm_eval.models.huggingface import HFLM

    try:
        model = str(fetch("smollm2-135m"))
    except UserError as error:
        pytest.skip(f"no model: {error}")
    questions = [
        ("The capital of France is", [" Paris", " Rome", " a river"], 0),
        ("Two and two are", [" five", " four", " blue"], 1),
        ("The opposite of hot is", [" warm", " cold"], 1),
    ]
    texts = ["The quick brown fox jumps over the lazy dog.", "It was a bright cold day in April."]
    folder = tasks(tmp_path / "t", questions, texts, "\\n")
    theirs = evaluated(HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=1), folder)
    same(evaluated(ChorusLM(model, batch_size=3), folder), theirs)
