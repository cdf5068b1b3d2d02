"""A judge behind a real HTTP server on this machine, with the faults servers have."""

import http.server
import json
import re
import threading
import time

import numpy as np
import pytest

from rewards.errors import UserError
from rewards.files import cache_dir
from rlhf.phi.columns.judge import JudgeColumn, bradley_terry, choose_pairs, parse
from rlhf.phi.config import RewardsConfig
from rlhf.run.config.address import may_send
from rlhf.run.config.load import load
from tests.rlhf.phi.columns.rows import completions

SECRET = "sk-test-0123456789"


class Server:
    """Answers with `reply(first, second)`, a text or an HTTP status; `requests` holds the bodies it got."""

    def __init__(self, reply):
        self.requests, self.headers = [], []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                text = body["messages"][-1]["content"]
                pair = re.findall(r"<completion_[ab]>\n(.*?)\n</completion_[ab]>", text, flags=re.S)
                answer = reply(*pair)
                if isinstance(answer, int):
                    self.send_response(answer)
                    self.end_headers()
                    self.wfile.write(b"busy\nagain later")
                    return
                data = (
                    answer
                    if isinstance(answer, bytes)
                    else json.dumps(
                        {"choices": [{"message": {"role": "assistant", "content": answer}}]}
                    ).encode()
                )
                self.send_response(200)
                self.end_headers()
                try:
                    self.wfile.write(data)
                except BrokenPipeError:  # the client gave up waiting
                    pass

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHORUS_JUDGE_KEY", SECRET)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "from-the-environment")
    started = []

    def start(reply):
        started.append(Server(reply))
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()
        server.thread.join()


def column(server, **changes):
    settings = dict(
        model="m",
        address=server.address,
        api_key_variable="CHORUS_JUDGE_KEY",
        question="Which completion is longer?",
        opponents=4,
        min_consistency=0.95,
        parallel=4,
        timeout_seconds=5.0,
        retries=2,
        max_tokens=64,
    )
    return JudgeColumn("judge", **settings | changes)


def longer(first, second):
    verdict = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f"I compare their lengths: {len(first)} and {len(second)}.\nVerdict: {verdict}"


TEXTS = {"P": ["a", "bb", "ccc", "dddd"], "Q": ["xx", "yy"], "alone": ["only one"]}


def test_scores_follow_the_verdicts_and_are_those_of_bradley_terry(tmp_path, serve):
    server = serve(longer)
    prefs = completions(tmp_path, TEXTS)
    measured = column(server).measure(prefs, fitting=True)
    scores = measured.values[:, 0]
    assert (np.diff(scores[:4]) > 0).all() and np.isnan(scores[6])
    np.testing.assert_allclose(scores[4:6], 0.0, atol=1e-6)
    # Stationarity of the ridge likelihood, written out: Σ_j (t_ij − σ(s_i − s_j)) = s_i.
    for i in range(4):
        pull = sum(float(i > j) - 1 / (1 + np.exp(scores[j] - scores[i])) for j in range(4) if j != i)
        assert pull == pytest.approx(scores[i], abs=1e-4)
    assert measured.off is None
    assert measured.report == {"pairs": 7, "unreadable": 0, "consistency": 1.0}
    assert len(server.requests) == 14  # each pair in both orders
    body = server.requests[0]
    assert body["model"] == "m" and body["temperature"] == 0 and body["max_tokens"] == 64
    assert "Which completion is longer?" in body["messages"][0]["content"]


def test_the_key_is_sent_and_stored_nowhere(tmp_path, serve):
    server = serve(longer)
    column(server).measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    files = [path for path in cache_dir().rglob("*") if path.is_file()]
    assert files and not any(SECRET in path.read_text() for path in files)


def test_without_a_key_none_is_sent(tmp_path, serve, monkeypatch):
    monkeypatch.delenv("CHORUS_JUDGE_KEY")
    server = serve(longer)
    column(server).measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)
    assert "authorization" not in server.headers[0]


def test_nothing_else_of_the_environment_is_sent(tmp_path, serve, monkeypatch):
    server = serve(longer)
    column(server).measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)
    monkeypatch.delenv("CHORUS_JUDGE_KEY")
    column(server, model="n").measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)
    assert len(server.headers) == 4 and "from-the-environment" not in str(server.headers)


@pytest.mark.parametrize(
    "variable", ["OPENAI_API_KEY", "HOME", "AWS_SECRET_ACCESS_KEY", "GROQ_API_KEY", "chorus_key", "X_CHORUS_"]
)
def test_a_variable_of_another_host_is_not_sent(tmp_path, serve, monkeypatch, variable):
    monkeypatch.setenv(variable, "secret")
    server = serve(longer)
    with pytest.raises(
        UserError, match=f"'{variable}' may not be sent to .*a variable that begins with CHORUS_"
    ) as caught:
        column(server, api_key_variable=variable).measure(
            completions(tmp_path, {"P": ["a", "bb"]}), fitting=True
        )
    assert not server.requests and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["https://user:PASS@host/v1", "https://PASS@host", "http://u:PASS@127.0.0.1:9/v1", "https://h/v1?api_key=PASS",
     "https://h/v1#PASS", "https://u:P@PASS@h/v1"],
)  # fmt: skip
def test_credentials_in_an_address_are_refused_and_shown_nowhere(tmp_path, serve, address):
    with pytest.raises(UserError, match="api_key_variable") as caught:
        column(serve(longer), address=address)
    assert "PASS" not in str(caught.value)
    path = tmp_path / "a.yaml"
    path.write_text("seed: 0\noutput_dir: o\ndata: {path: d}\n")
    judge = f"{{name: j, kind: judge, model: m, address: '{address}'}}"
    for override in (f"encoder.columns=[{judge}]", f"encoder.columns=[{judge[:-1]}, oops: 1}}]"):
        with pytest.raises(UserError) as caught:
            load(path, ["encoder.kind=columns", override], RewardsConfig)
        assert "PASS" not in str(caught.value) and "encoder.columns" in str(caught.value)


@pytest.mark.parametrize(
    "address", ["ftp://h/v1", "localhost:8000/v1", "http://", "h", "http://h:port/v1", "http://[::1/v1"]
)
def test_what_is_no_address(serve, address):
    with pytest.raises(UserError, match="write http://host:port/v1"):
        column(serve(longer), address=address)


@pytest.mark.parametrize(
    ("variable", "address", "allowed"),
    [
        ("OPENAI_API_KEY", "https://api.openai.com/v1", True),
        ("OPENAI_API_KEY", "http://api.openai.com/v1", False),
        ("OPENAI_API_KEY", "https://api.openai.com.evil.org/v1", False),
        ("OPENAI_API_KEY", "https://evil.org/api.openai.com", False),
        ("AZURE_OPENAI_API_KEY", "https://me.openai.azure.com/openai/v1", True),
        ("AZURE_OPENAI_API_KEY", "https://meopenai.azure.com/v1", False),
        ("MISTRAL_API_KEY", "https://api.mistral.ai/v1", True),
        ("MISTRAL_API_KEY", "https://api.openai.com/v1", False),
        ("CHORUS_MINE", "http://localhost:8000/v1", True),
        ("PATH", "https://api.openai.com/v1", False),
    ],
)
def test_which_variable_goes_where(variable, address, allowed):
    assert may_send(variable, address) == allowed


def test_verdicts_are_remembered_and_damaged_ones_asked_again(tmp_path, serve):
    server = serve(longer)
    prefs = completions(tmp_path, TEXTS)
    first = column(server).measure(prefs, fitting=True)
    again = column(server).measure(prefs, fitting=True)
    np.testing.assert_array_equal(first.values, again.values)
    assert len(server.requests) == 14
    next(path for path in cache_dir().rglob("*.json")).write_text("{")
    column(server).measure(prefs, fitting=True)
    assert len(server.requests) == 15
    column(server, question="Which is shorter?").measure(prefs, fitting=True)
    assert len(server.requests) == 29


def test_a_judge_that_reads_the_order_is_switched_off(tmp_path, serve):
    server = serve(lambda first, second: "The first one reads well.\nVerdict: A")
    measured = column(server).measure(completions(tmp_path, TEXTS), fitting=True)
    assert measured.report["consistency"] == 0.0
    assert "agree in both orders on 0.0% of 7 pairs, below min_consistency 95.0%" in measured.off


@pytest.mark.parametrize(("swapped", "off"), [(1, False), (2, True)])
def test_the_threshold_is_a_share_of_pairs(tmp_path, serve, swapped, off):
    """20 pairs of which `swapped` get another verdict in the other order: 0.95 stays, 0.90 goes."""
    texts = {f"p{n}": ["a" * (n + 1), "b" * (n + 2)] for n in range(20)}

    def reply(first, second):
        biased = max(len(first), len(second)) <= swapped + 1
        return "Verdict: A" if biased else longer(first, second)

    measured = column(serve(reply)).measure(completions(tmp_path, texts), fitting=True)
    assert measured.report["consistency"] == pytest.approx(1 - swapped / 20)
    assert (measured.off is not None) == off


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("Verdict: A", 1.0),
        ("Because.\n\n  Verdict: B  \n", 0.0),
        ("Verdict: tie", 0.5),
        ("Verdict: A\nVerdict: B", 0.0),
        ("Verdict: a", np.nan),
        ("Verdict: A.", np.nan),
        ("Verdict: A or B", np.nan),
        ("Verdict: A\nI hope this helps", np.nan),
        ("A", np.nan),
        ("", np.nan),
    ],
)
def test_only_an_exact_last_line_is_a_verdict(reply, value):
    np.testing.assert_equal(parse(reply), value)


def test_garbage_switches_it_off_and_is_asked_again_next_time(tmp_path, serve):
    server = serve(lambda first, second: "As a model I cannot decide.")
    prefs = completions(tmp_path, {"P": ["a", "bb", "ccc"]})
    for turn in (1, 2):
        measured = column(server).measure(prefs, fitting=True)
        assert "3 of 3 pairs got no readable verdict" in measured.off
        assert len(server.requests) == 6 * turn


def test_busy_servers_are_asked_again(tmp_path, serve):
    lock, counts = threading.Lock(), {}

    def reply(first, second):
        with lock:
            counts[first, second] = counts.get((first, second), 0) + 1
            return {1: 500, 2: 429}.get(counts[first, second], None) or longer(first, second)

    measured = column(serve(reply)).measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)
    assert measured.off is None and set(counts.values()) == {3}


def test_a_server_that_stays_down_ends_in_one_line_and_what_it_said_is_kept(tmp_path, serve):
    down = threading.Event()

    def reply(first, second):
        return 503 if down.is_set() else longer(first, second)

    server = serve(reply)
    column(server).measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)
    down.set()
    with pytest.raises(UserError, match=r"HTTP 503 \(busy again later\).*the same command goes on") as caught:
        column(server).measure(completions(tmp_path, {"P": ["a", "bb", "ccc"]}), fitting=True)
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)
    down.clear()
    count = len(server.requests)
    column(server).measure(completions(tmp_path, {"P": ["a", "bb", "ccc"]}), fitting=True)
    assert len(server.requests) == count + 4  # the first pair is remembered


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (401, "refuses the key .HTTP 401.; put a valid one into the environment variable CHORUS_JUDGE_KEY"),
        (404, "answers HTTP 404"),
        (b"<html>welcome</html>", "something else than a chat completion.*usually ends in /v1"),
        (b'{"choices": []}', "something else than a chat completion"),
    ],
)
def test_answers_that_no_patience_mends(tmp_path, serve, reply, message):
    server = serve(lambda first, second: reply)
    with pytest.raises(UserError, match=message):
        column(server, parallel=1).measure(completions(tmp_path, TEXTS), fitting=True)
    assert len(server.requests) < 14  # the rest is not asked


def test_silence_times_out(tmp_path, serve):
    server = serve(lambda first, second: time.sleep(0.6) or longer(first, second))
    slow = column(server, timeout_seconds=0.1, retries=1, parallel=2)
    with pytest.raises(UserError, match="no answer from .*timed out, after 1 retries"):
        slow.measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)


def test_nobody_listens(tmp_path, serve):
    server = serve(longer)
    gone = column(server, address="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(UserError, match="no answer from http://127.0.0.1:9/v1/chat/completions"):
        gone.measure(completions(tmp_path, {"P": ["a", "bb"]}), fitting=True)


def test_nothing_to_compare_switches_it_off(tmp_path, serve):
    prefs = completions(tmp_path, {"P": ["a", "a"], "Q": ["b"]})
    measured = column(serve(longer)).measure(prefs, fitting=True)
    assert "no prompt with two different completions" in measured.off


def test_pairs_are_a_ring_that_does_not_depend_on_the_order_of_the_file(tmp_path):
    texts = [f"text {n}" for n in range(9)]
    both = []
    for order in (texts, texts[::-1]):
        prefs = completions(tmp_path, {"P": order})
        pairs = choose_pairs(prefs, 4)
        both.append({frozenset((prefs.item_text[a], prefs.item_text[b])) for a, b in pairs})
        assert np.bincount(pairs.ravel()).tolist() == [4] * 9 and len(pairs) == 18
    assert both[0] == both[1]
    assert len(choose_pairs(completions(tmp_path, {"P": texts[:5]}), 4)) == 10  # all with all


def test_repeated_texts_share_a_score(tmp_path, serve):
    prefs = completions(tmp_path, {"P": ["a", "bb", "a"]})
    scores = column(serve(longer)).measure(prefs, fitting=True).values[:, 0]
    assert scores[0] == scores[2] < scores[1]


def test_bradley_terry_of_nothing_is_nothing():
    assert np.isnan(bradley_terry(np.zeros((0, 2), int), np.zeros(0), 3)).all()


def test_identity_follows_the_instructions_and_not_the_address(tmp_path, serve):
    server = serve(longer)
    identity = column(server).identity()
    assert column(server, address="http://elsewhere/v1", parallel=1).identity() == identity
    assert column(server, question="Other?").identity() != identity
    assert column(server, model="n").identity() != identity
