"""Policies of every kind: checkpoints, the person's answers in the prompt, best of N, models behind an address."""

import http.server
import json
import shutil
import threading

import jax
import numpy as np
import pytest

from rewards.errors import UserError
from rewards.types import Message
from rlhf.apps import cli
from rlhf.apps.evaluate import evaluate
from rlhf.evaluation.outputs import in_context, policies
from rlhf.evaluation.outputs.people import Answer
from rlhf.policy import store as policy_store
from tests.rlhf.api.world import table
from tests.rlhf.evaluation.outputs.test_run import options, rows_of


@pytest.fixture(scope="module")
def prefs(world):
    path = world / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table()))
    return path


@pytest.fixture(scope="module")
def trained(world, prefs):
    """A run of four steps with checkpoints after two and four."""
    words = [f"model.name={world / 'model'}", f"data.path={prefs}", f"rewards={world / 'rewards'}"]
    words += ["tune.lora_rank=2", "conditioner.rank=2", "train.steps=4", "train.checkpoint_every=2"]
    words += ["optimizer.learning_rate=0.05", f"output_dir={world / 'run'}", "seed=0"]
    assert cli.main(["train", "dpo", *words]) == 0
    return world / "run"


def leaves(policy):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((policy.params.lora, policy.params.conditioner))]


def test_a_checkpoint_is_the_policy_of_its_step(trained):
    two, four = policies.sources([f"a={trained}@2", f"b={trained}@4"], None, None)
    last, then, end = (leaves(one) for one in (policy_store.load_policy(trained), two.load(), four.load()))
    assert all(np.array_equal(a, b) for a, b in zip(last, end, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(last, then, strict=True))
    assert two.identity != four.identity and two.store != four.store
    with pytest.raises(UserError, match=r"no checkpoint of that step \(there: 2, 4\)"):
        policies.sources([f"{trained}@3"], None, None)


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    file = next((tmp_path / "run" / "checkpoints" / "00000002" / "arrays").rglob("_METADATA"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    [source] = policies.sources([f"a={tmp_path / 'run'}@2"], None, None)
    with pytest.raises(UserError, match="damaged .*_METADATA changed"):
        source.load()


PARTED = {
    "runs/a": ("runs-a", "runs/a", None, False, False, 1),
    "x=runs/a@300": ("x", "runs/a", 300, False, False, 1),
    "runs/a@300@aggregate": ("runs-a@300@aggregate", "runs/a", 300, True, False, 1),
    "reference@best-of-8": ("reference@best-of-8", "reference", None, False, False, 8),
    "me/model@in-context": ("me-model@in-context", "me/model", None, False, True, 1),
    "http://h:1/v1#a/b=c@best-of-2": ("a/b=c@best-of-2", "http://h:1/v1#a/b=c", None, False, False, 2),
    "gpt=https://h/v1#m": ("gpt", "https://h/v1#m", None, False, False, 1),
}


@pytest.mark.parametrize("text", PARTED)
def test_a_policy_is_named_in_parts(text):
    one = policies.parted(text)
    assert (one.name, one.place, one.step, one.aggregate, one.in_context, one.best_of) == PARTED[text]


REFUSED = {
    "a@2@4": "another of its kind",
    "a@best-of-0": "best of 0",
    "=a": "empty name",
    "x=": "names no policy",
    "MODEL@7": "is no policy run; @7 is for runs of chorus train",
    "MODEL@agregate": "@agregate is unknown; did you mean .*aggregate",
    "MODEL@best-of-2": "give rewards",
    "MODEL@in-context": "give rewards",
    "http://h/v1": "says no model; write ADDRESS#MODEL",
    "http://u:p@h/v1#m": "holds a user name or password",
    "http://h/v1#m@7": "@7 is for runs",
    "ftp://h/v1#m": "address 'ftp://h/v1' is none; write http://host:port/v1",
    "http://h/v1?key=x#m": "named by api_key_variable; after the address stands #MODEL",
    "http://h/v1#m@aggregate": "@aggregate is for runs",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_policy_that_is_none_is_named(text, world):
    with pytest.raises(UserError, match=REFUSED[text]) as error:
        policies.sources([text.replace("MODEL", str(world / "model"))], None, None)
    assert "u:p" not in str(error.value) and "\n" not in str(error.value)


def test_two_addresses_do_not_share_what_a_model_of_one_name_wrote():
    twice = ["a=http://h/v1#m", "b=http://h/v1#m@best-of-1", "c=HTTP://other/v1#m"]
    assert len(policies.sources(twice[:2], None, None)) == 2
    with pytest.raises(
        UserError, match="http://h/v1 and HTTP://other/v1 both name the model m.*different names"
    ):
        policies.sources(twice, None, None)


def test_answers_stand_before_the_prompt():
    answers = (Answer("Which?", "long", "short"), Answer((("user", "And?"),), "a", "b"))
    text = in_context.prompt_for("Now?", answers)
    assert text.endswith("\n\nNow?") and "Question: Which?\nPreferred: long\nNot preferred: short" in text
    assert "Question: user: And?" in text
    chat = in_context.prompt_for((Message("user", "Now?", '{"name": "x"}'), ("assistant", "So")), answers)
    assert chat[0][1] == text and chat[0].more == '{"name": "x"}' and chat[1] == ("assistant", "So")
    assert in_context.prompt_for("Now?", ()) == "Now?"


@pytest.fixture(scope="module")
def everything(world, prefs, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("every") / "out"
    model, run = world / "model", trained
    given = {
        "policies": [f"two={run}@2", f"four={run}", f"all={run}@aggregate", "reference",
                     "context=reference@in-context", "best=reference@best-of-8", f"plain={model}"],
        "rewards": str(world / "rewards"),
        "people": ["held-out", "extreme"],
        "count": 2,
        "answers": 1,
        "data.path": str(prefs),
        "data.held_out_people": 0.25,
        "prompts": str(world / "prompts.txt"),
        "sampling.max_new_tokens": 4,
        "output_dir": str(folder),
    }  # fmt: skip
    return evaluate(None, given, []), folder


def test_every_kind_in_one_evaluation(everything):
    result, folder = everything
    kinds = result["policies"]
    assert [name for name, one in kinds.items() if one["personal"]] == ["two", "four", "context", "best"]
    assert kinds["two"]["step"] == 2 and kinds["best"]["best_of"] == 8 and kinds["context"]["in_context"]
    rows = rows_of(folder)
    texts = {name: [row["text"] for row in rows if row["policy"] == name] for name in kinds}
    assert texts["reference"] == texts["plain"] and texts["two"] != texts["four"]
    people = {row["person"] for row in rows if row["policy"] == "context"}
    assert people == {one["name"] for one in result["persons"]} and len(people) == 4


def test_the_best_of_n_is_the_best_by_the_persons_own_reward(everything):
    result, folder = everything
    rows = rows_of(folder)
    worth = {name: one["worth"]["own reward"]["mean"]["mean"] for name, one in result["policies"].items()}
    assert worth["best"] > worth["reference"]
    # The first of every eight is one that the policy writes without a choice: nothing is sampled twice.
    plain = {(row["prompt_number"], row["text"]) for row in rows if row["policy"] == "reference"}
    best = {(row["prompt_number"], row["text"]) for row in rows if row["policy"] == "best"}
    assert best - plain and best & plain
    quality = result["policies"]["best"]["quality"]
    assert quality["kl_to_reference"] == pytest.approx(np.log(8) - 7 / 8, abs=1e-3)


def test_how_far_from_the_policy_for_everybody(everything):
    result, folder = everything
    kl = {name: one["quality"]["kl_to_aggregate"] for name, one in result["policies"].items()}
    assert kl["all"] == pytest.approx(0, abs=1e-4) and kl["reference"] is None and kl["context"] is None
    rows = [row for row in rows_of(folder) if row["policy"] == "four"]
    assert kl["four"] == pytest.approx(np.mean([row["logprob"] - row["aggregate_logprob"] for row in rows]))
    assert kl["four"] != 0


class Model:
    """Answers chat completions: `reply(body)` gives a text, an HTTP status or bytes."""

    def __init__(self, reply):
        self.bodies, self.keys = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                found = reply(body)
                self.send_response(found if isinstance(found, int) else 200)
                self.end_headers()
                message = {"message": {"role": "assistant", "content": found}, "finish_reason": "length"}
                whole = {"choices": [message], "usage": {"completion_tokens": 3}}
                self.wfile.write(found if isinstance(found, bytes) else json.dumps(whole).encode())

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHORUS_MODEL_KEY", "sk-secret")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    started = []

    def start(reply):
        started.append(Model(reply))
        return started[-1]

    yield start
    for one in started:
        one.http.shutdown()
        one.http.server_close()


def asked(world, server, folder, **changes):
    judges = [{"name": "shortness", "kind": "function", "function": f"{world / 'judge.py'}:shortness"}]
    (world / "judge.py").write_text(
        "def shortness(completions, **others):\n    return [-float(len(c)) for c in completions]\n"
    )
    given = {
        "policies": [f"far={server.address}#m", f"here={world / 'model'}"],
        "reference": str(world / "model"),
        "prompts": str(world / "prompts.txt"),
        "judges": judges,
        "server.api_key_variable": "CHORUS_MODEL_KEY",
        "server.retries": 1,
        "sampling.max_new_tokens": 4,
        "output_dir": str(folder),
    }
    return evaluate(None, given | changes, [])


def test_a_model_behind_an_address_is_asked_once_for_each_completion(world, serve, tmp_path):
    server = serve(lambda body: f"item {body['seed'] % 7}")
    result = asked(world, server, tmp_path / "out")
    assert len(server.bodies) == 12 and set(server.keys) == {"Bearer sk-secret"}
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 4, 1.0)
    assert body["messages"][0]["role"] == "user" and len({b["seed"] for b in server.bodies}) == 12
    quality = result["policies"]["far"]["quality"]
    assert quality["tokens"] == 3 and quality["truncated"] == 1.0
    assert quality["kl_to_reference"] is None and quality["perplexity"] > 1  # the text is read anew
    row = next(row for row in rows_of(tmp_path / "out") if row["policy"] == "far")
    assert row["logprob"] is None and row["text"].startswith("item ") and row["reference_logprob"] < 0
    # Kept by content: the same model at another address is not asked again.
    again = serve(lambda body: pytest.fail("asked again"))
    other = asked(world, again, tmp_path / "other")
    assert not again.bodies and other["comparisons"] == result["comparisons"]


FAULTS = {
    "key": (lambda body: 401, "refuses the key .HTTP 401.; put a valid one into .* CHORUS_MODEL_KEY"),
    "busy": (lambda body: 503, "answers HTTP 503"),
    "no chat": (lambda body: b"<html>", "something else than a chat completion"),
    "parts": (lambda body: [{"type": "text", "text": "x"}], "something else than a chat completion"),
    "deep": (lambda body: b"[" * 200_000, "something else than a chat completion"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_address_that_fails_is_one_line_and_keeps_what_came(fault, world, serve, tmp_path):
    reply, message = FAULTS[fault]
    count = []

    def first_well(body):
        count.append(1)
        return "item 3" if len(count) <= 4 else reply(body)

    server = serve(first_well)
    with pytest.raises(UserError, match=f"policies: .*{message}") as error:
        asked(world, server, tmp_path / "out", **{"server.parallel": 1})
    assert "\n" not in str(error.value) and "sk-secret" not in str(error.value)
    [file] = [p for p in (tmp_path / "cache" / "outputs").glob("*.jsonl")]
    assert len(file.read_text().splitlines()) == 4


def test_half_a_letter_and_a_count_beyond_belief_are_read(world, serve, tmp_path):
    choice = {"message": {"content": "half \ud800 <b>"}, "finish_reason": "stop"}
    whole = {"choices": [choice], "usage": {"completion_tokens": 10**30}}
    server = serve(lambda body: json.dumps(whole).encode())
    result = asked(world, server, tmp_path / "out", **{"sampling.top_p": 0.5})
    assert result["policies"]["far"]["quality"]["tokens"] == 3  # words, for the server does not count
    # What is drawn from a part of the distribution has no KL.
    assert result["policies"]["here"]["quality"]["kl_to_reference"] is None
    assert next(row for row in rows_of(tmp_path / "out") if row["policy"] == "far")["text"] == "half ? <b>"


def test_a_key_is_not_sent_to_a_strange_host(world, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    server = serve(lambda body: "x")
    with pytest.raises(UserError, match="OPENAI_API_KEY.* may not be sent"):
        asked(world, server, tmp_path / "out", **{"server.api_key_variable": "OPENAI_API_KEY"})
    assert not server.bodies


def test_exact_figures_are_those_of_the_evaluation_of_one_policy(world, prefs, trained, tmp_path):
    data = {"data.path": str(prefs), "data.held_out_people": 0.25, "rewards": str(world / "rewards")}
    places = {"policy": str(trained), "model.name": str(world / "model"), "seed": 0}
    sampling = {"sampling.max_new_tokens": 4, "sampling.num_samples": 1}
    old = {"output_dir": str(tmp_path / "old"), "enumerate": "true", "users.answers": 1}
    (tmp_path / "one.yaml").write_text("{}")
    words = [f"{name}={value}" for name, value in (data | places | sampling | old).items()]
    old = evaluate(str(tmp_path / "one.yaml"), {}, words)["enumerated"]
    given = {"policies": [f"four={trained}", "reference"], "enumerate": True, "answers": 1}
    given |= {"output_dir": str(tmp_path / "out")}
    result = evaluate(None, given | data | sampling, [])
    new = result["policies"]["four"]["exact"]
    assert (
        result["people"] == len(new["per_person"]["own_reward"]) > 1
        and "exact" not in result["policies"]["reference"]
    )
    for name in old.keys() - {"per_person"}:
        assert new[name] == pytest.approx(old[name], rel=1e-5, abs=1e-6), name
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Exact figures" in page and f"{new['own_reward']:.4g}" in page
    with pytest.raises(UserError, match="lists no answers to prompt 2"):
        evaluate(
            None,
            given
            | data
            | sampling
            | {"prompts": str(world / "prompts.txt"), "output_dir": str(tmp_path / "x")},
            [],
        )


def test_every_address_has_a_key_of_its_own(world, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_OTHER_KEY", "sk-other")
    first, second = serve(lambda body: "item 3"), serve(lambda body: "item 5")
    several = [f"one={first.address}#m", f"two={second.address}#n"]
    variables = {second.address: "CHORUS_OTHER_KEY"}
    asked(world, first, tmp_path / "out", policies=several, **{"server.api_key_variables": variables})
    assert set(first.keys) == {"Bearer sk-secret"} and set(second.keys) == {"Bearer sk-other"}
    for wrong, why in (
        ({"http://elsewhere/v1": "CHORUS_OTHER_KEY"}, "no policy is at 'http://elsewhere/v1'"),
        ({second.address: "HOME"}, "'HOME' may not be sent"),
    ):
        with pytest.raises(UserError, match=why):
            asked(world, first, tmp_path / "x", policies=several, **{"server.api_key_variables": wrong})


def test_a_policy_is_loaded_once_to_write_and_to_be_scored(world, tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    load, loaded = policy_store.load_policy, []
    monkeypatch.setattr(policy_store, "load_policy", lambda place: (loaded.append(place), load(place))[1])
    given = options(world, "a", output_dir=str(tmp_path / "out"))
    result = evaluate(None, given, [])
    [own] = result["policies"].values()
    assert own["quality"]["kl_to_aggregate"] is not None and loaded == [str(world / "a")]


def test_answers_to_the_prompt_that_is_asked_are_left_out_where_there_are_others():
    answers = (Answer("one", "a", "b"), Answer("two", "c", "d"))
    assert in_context.elsewhere(answers, "one") == [answers[1]]
    assert in_context.elsewhere(answers, "three") == list(answers)
    assert in_context.elsewhere(answers[:1], "one") == answers[:1]


def test_people_without_answers_are_named(world, prefs, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in table() if row["user_id"] > "p14"))
    given = options(world, "a", output_dir=str(tmp_path / "out"), **{"data.path": str(few)})
    given["policies"] = [f"x={world / 'model'}@in-context"]
    with pytest.raises(UserError, match="no answers of .* are in the data"):
        evaluate(None, given, [])
    for change, why in (({"answers": 0}, "answers is 0"), ({"people": ["population"]}, "the average person")):
        with pytest.raises(UserError, match=f"nobody's answers stand in a prompt .{why}"):
            evaluate(None, given | change, [])
