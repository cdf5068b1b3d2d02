"""Rewards between the halves of an iteration: what functions are given, what they may return, and how they fail."""

import dataclasses
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from rewards.errors import UserError
from rewards.methods.columns import column_basis
from rlhf.objectives import advantages as adv
from rlhf.phi import on_host
from rlhf.phi.columns.config import ColumnConfig
from rlhf.phi.columns.table import Table, as_they_are
from rlhf.phi.on_host import ColumnFeatures, HostReward, filled, side_by_side
from rlhf.phi.reward import HostConfig, PromptRows
from rlhf.run import processes
from rlhf.train.rl.rollout import Rollout
from tests.rlhf.tiny import ToyTokenizer

LIMITS = HostConfig(parallel=4, timeout_seconds=20.0, retries=0)
FUNCTIONS = """
def exact(prompts, completions):
    return [0.7 if text == "b" else -1.9 for text in completions]

def sees(prompts, completions, answer, level=None, **columns):
    assert prompts == ["which", "which", "what", "what"], prompts
    assert answer == ["x", "x", "y", "y"] and level == [1, 1, 2, 2] and columns.pop("note") == [None, None, "n", "n"]
    assert list(map(len, columns.pop("completion_ids"))) and set(columns) == {"trainer_state", "log_metric", "log_extra"}
    return [float(len(text)) for text in completions]

def sometimes(completions):
    return [None if text == "b" else 4.0 for text in completions]

def raises(completions):
    return [1.0 / (len(text) - 1) for text in completions]

def short(completions):
    return [1.0]

def nan(completions):
    return [float("nan") if text == "cc" else 0.0 for text in completions]

def needs(completions, gold):
    return [0.0 for _ in completions]

async def later(completions):
    return [1.5 for _ in completions]


"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "host_rewards.py"
    path.write_text(FUNCTIONS)
    return path


def rows():
    columns = {"answer": ["x", "x", "y", "y"], "level": [1, 1, 2, 2], "note": [None, None, "n", "n"]}
    return PromptRows(("which", "which", "what", "what"), np.array([3, 3, 8, 8]), columns, "prompts.jsonl")


def rollout():
    """Completions a, b, cc and (cut off) dd."""
    tokenizer = ToyTokenizer()
    ids = [tokenizer.encode_completion(text) for text in ("a", "b", "cc")] + [tokenizer._ids("ddd")[:3]]
    tokens, mask = np.zeros((4, 5), np.int32), np.zeros((4, 3), bool)
    for row, own in enumerate(ids):
        tokens[row, :2], tokens[row, 2 : 2 + len(own)], mask[row, : len(own)] = (1, 4), own, True
    zeros = jnp.zeros((4, 3))
    ended = jnp.asarray([True, True, True, False])
    return Rollout(
        *(jnp.asarray(tokens), jnp.zeros(4, jnp.int32), jnp.asarray(mask)),
        *(zeros, zeros, zeros, zeros[..., None], None, jnp.zeros((4, 1)), None, ended),
    )


def columns(functions, *names):
    return as_they_are(
        [ColumnConfig(name=name, kind="function", function=f"{functions}:{name}") for name in names]
    )


def reward_of(functions, *names, limits=LIMITS, basis=None):
    features = ColumnFeatures(columns(functions, *names), basis, limits)
    return HostReward(features, ToyTokenizer())(rollout(), rows()).phi


def test_numbers_arrive_as_they_are(functions):
    """0.7 and −1.9, not 0 and −1: a framework once cast rewards to integers."""
    found = reward_of(functions, "exact", "later")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32([[-1.9, 1.5], [0.7, 1.5], [-1.9, 1.5], [-1.9, 1.5]]))


def test_each_process_of_a_job_rewards_its_own_groups_and_all_get_all(functions, monkeypatch):
    """Two processes played one after the other: rewards, counts and logged numbers are those of one."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    reward = HostReward(
        ColumnFeatures(columns(functions, "exact", "sometimes"), None, LIMITS), ToyTokenizer(), 2
    )
    items = rows().with_texts(on_host.texts_of(rollout(), ToyTokenizer()))
    items = dataclasses.replace(items, columns={**items.columns, "completion_ids": on_host.ids_of(rollout())})
    parts = []
    for index in (0, 1):
        monkeypatch.setattr(processes, "index", lambda index=index: index)
        monkeypatch.setattr(processes, "together", lambda work: parts.append(work()) or parts)
        found = reward._shared(items)
    assert [len(part["phi"]) for part in parts] == [2, 2]
    whole = reward._computed(items)
    np.testing.assert_array_equal(found.phi, whole.phi)
    assert found.left_out == whole.left_out


def test_a_function_gets_prompts_texts_and_the_columns_of_its_row(functions):
    np.testing.assert_array_equal(reward_of(functions, "sees")[:, 0], [1, 1, 2, 3])


SPECIAL = [  # ids of a completion, whether it stopped by itself, and what rewards see without and with special tokens
    ([30, 3, 31, 2], True, ("a", "<30>a<31>")),
    ([30, 4, 31], False, ("b", "<30>b<31>")),
    ([2], True, ("", "")),
    ([1, 1, 2], True, ("", "<1><1>")),
    ([3, 29, 4, 2], True, ("a b", "a b")),
    ([3, 30], False, ("a", "a<30>")),
]


@pytest.mark.parametrize(("ids", "stopped", "said"), SPECIAL)
@pytest.mark.parametrize("skip", [True, False])
def test_rewards_see_special_tokens_where_they_are_asked_for(ids, stopped, said, skip):
    """All but the token that ends a completion."""
    tokens, mask = np.zeros((1, 6), np.int32), np.zeros((1, 4), bool)
    tokens[0, :2], tokens[0, 2 : 2 + len(ids)], mask[0, : len(ids)] = (1, 4), ids, True
    given = rollout()._replace(tokens=tokens, mask=mask, ended=np.array([stopped]))
    seen = []

    def features(items, group_size):
        seen.extend(items.item_text)
        return on_host.Rewards(np.zeros((1, 1), np.float32), {})

    HostReward(features, ToyTokenizer(), skip_special_tokens=skip)(given, rows().take([0]))
    assert seen == [said[not skip]]


def test_nothing_to_say_counts_zero_or_the_mean(functions):
    """None is TRL's "does not apply": 0 as it is, the column's mean (φ = 0) where columns are standardised."""
    np.testing.assert_array_equal(reward_of(functions, "sometimes")[:, 0], [4, 0, 4, 4])
    settings = columns(functions, "sometimes")
    settings["columns"][0]["fill"] = [3.0]
    basis = column_basis(("sometimes",), np.array([3.0]), np.array([2.0]), settings, "")
    features = ColumnFeatures(settings, basis, LIMITS)
    np.testing.assert_array_equal(
        HostReward(features, ToyTokenizer())(rollout(), rows()).phi[:, 0], [0.5, 0, 0.5, 0.5]
    )


N = np.nan
LEFT_OUT = [
    # values of two rewards for groups of the size, in the order of the completions
    (2, [[1.0, N], [3.0, 5.0]]),
    (2, [[N, N], [N, 2.0], [0.1, N], [N, 0.7]]),
    (3, [[10.0, N], [N, N], [N, N]]),
    (3, [[1.0, 0.5], [N, 0.5], [4.0, -1.0], [N, N], [N, N], [N, N]]),
    (4, [[10.0, 1.0], [N, 2.0], [10.0, N], [12.0, 4.0]]),
    (5, [[-1.0, N], [-1.0, N], [N, 3.0], [2.0, 3.0], [0.0, N]]),
]


@pytest.mark.parametrize(("size", "values"), LEFT_OUT)
@pytest.mark.parametrize("estimator", ["centred", "rloo"])
def test_a_reward_that_does_not_apply_is_left_out_of_its_group(size, values, estimator):
    """Σ_k w_k (r_ik − mean of r_k over those it applies to), and nothing from the rewards that do not apply to i."""
    raw, weights = np.array(values), np.array([0.8, -0.3])
    found = Table(("a", "b"), np.nan_to_num(raw, nan=0.0), raw, {}, {})
    given = filled(found, size).astype(np.float32)
    wanted = np.zeros(len(raw))
    for start in range(0, len(raw), size):
        group = raw[start : start + size]
        for k in range(2):
            known = ~np.isnan(group[:, k])
            for i in np.flatnonzero(known):
                wanted[start + i] += weights[k] * (group[i, k] - group[known, k].mean())
    got = adv.ESTIMATORS[estimator].advantage(given, np.tile(weights, (len(raw), 1)).astype(np.float32), size)
    factor = size / (size - 1) if estimator == "rloo" else 1.0
    np.testing.assert_allclose(got, factor * wanted, atol=1e-5)


def test_how_often_a_reward_says_nothing_is_said_once(functions, caplog):
    features = ColumnFeatures(columns(functions, "exact", "sometimes"), None, LIMITS)
    reward = HostReward(features, ToyTokenizer(), group_size=2)
    for _ in range(2):
        found = reward(rollout(), rows())
        assert found.left_out == {"sometimes": 1}
        np.testing.assert_array_equal(found.phi[:, 1], 4.0)
    assert len(caplog.messages) == 1
    assert "column 'sometimes': says nothing about 1 of 4 completions" in caplog.messages[0]


FAILURES = {
    "raises": r"^column 'raises': function '.*': failed on prompts.jsonl row 3, ZeroDivisionError: .* in line 15; mend",
    "short": r"^column 'short': function '.*': returned 1 values for 4 completions",
    "nan": r"^column 'nan': function '.*': returned 'nan' for prompts.jsonl row 8; return a finite number",
    "needs": r"^column 'needs': function '.*': needs the column 'gold', which prompts.jsonl does not have",
}


@pytest.mark.parametrize(
    "value", ["1e300", "-1e39", "10**400", "float('inf')", "'1'", "1j", "[1.0]", "Broken(1.0)"]
)
def test_what_float32_does_not_hold_is_named_with_function_and_row(tmp_path, value):
    file = tmp_path / "odd.py"
    broken = "class Broken(float):\n    def __float__(self):\n        return 1 / 0\n"
    file.write_text(f"{broken}\ndef odd(completions):\n    return [{value}] * len(completions)\n")
    with pytest.raises(
        UserError, match=r"^column 'odd': function '.*': returned .* for prompts.jsonl row \d; return"
    ):
        reward_of(file, "odd")


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_function_is_one_line_with_column_and_row(functions, name):
    with pytest.raises(UserError, match=FAILURES[name]) as caught:
        reward_of(functions, "exact", name)
    assert "\n" not in str(caught.value)


def test_a_changed_function_is_refused(functions):
    settings = columns(functions, "exact")
    functions.write_text(FUNCTIONS.replace("0.7", "0.8"))
    with pytest.raises(UserError, match="column 'exact': .* is not what the rewards were fitted with"):
        ColumnFeatures(settings, None, LIMITS)


def test_it_is_tried_again(functions, monkeypatch):
    monkeypatch.setattr(on_host, "BACKOFF_SECONDS", 0.0)
    attempts = []

    def job():
        attempts.append(1)
        if len(attempts) < 3:
            raise UserError("gone")
        return "good"

    assert side_by_side([("c", job)], HostConfig(parallel=1, timeout_seconds=20.0, retries=2)) == ["good"]
    attempts.clear()
    with pytest.raises(UserError, match="^column 'c': gone$"):
        side_by_side([("c", job)], HostConfig(parallel=1, timeout_seconds=20.0, retries=1))
    assert len(attempts) == 2


def test_one_that_hangs_is_given_up(functions):
    release = threading.Event()
    begun = time.monotonic()
    with pytest.raises(UserError, match="^column 'slow': no rewards after 0.2 s"):
        side_by_side(
            [("fast", lambda: 1), ("slow", release.wait)],
            HostConfig(parallel=2, timeout_seconds=0.2, retries=0),
        )
    assert time.monotonic() - begun < 10
    release.set()


def test_columns_run_side_by_side_and_no_more_than_allowed():
    together, most, lock = [0], [0], threading.Lock()
    meet = threading.Barrier(2, timeout=20)

    def job():
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        meet.wait()  # passes only if two are here at a time
        time.sleep(0.2)  # a third would come meanwhile
        with lock:
            together[0] -= 1
        return 0

    assert (
        side_by_side(
            [(str(n), job) for n in range(4)], HostConfig(parallel=2, timeout_seconds=20.0, retries=0)
        )
        == [0] * 4
    )
    assert most == [2]
