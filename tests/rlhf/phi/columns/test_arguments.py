"""What reward functions with TRL's signature are given, and what is refused before they are called."""

import json

import numpy as np
import pytest

import rlhf
from rewards.errors import UserError
from rlhf.phi.columns import arguments
from rlhf.phi.columns.arguments import TrainerState, check, check_reads_completions, training
from rlhf.phi.columns.functions import call
from tests.rlhf import tiny
from tests.rlhf.phi.columns.rows import pair, preferences

ROWS = [pair("Q", "one", "two words", solution="a"), pair("P", "three", "four", solution="b")]


def test_everything_that_trl_gives_arrives(tmp_path):
    prefs = preferences(tmp_path, ROWS)
    seen = {}

    def all_of_it(prompts, completions, trainer_state, log_metric, log_extra, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        log_metric("half", 0.25)
        log_metric("half", np.float32(0.75))
        log_extra("words", [len(text.split()) for text in completions])
        return [float(trainer_state.global_step + trainer_state.max_steps)] * len(completions)

    with training(TrainerState(3, 10, 0.5), 4) as said:
        assert call(all_of_it, "f", prefs).tolist() == [13.0] * 4
    assert seen["solution"] == ["a", "a", "b", "b"] and seen["prompts"] == ["Q", "Q", "P", "P"]
    assert said.means("train") == {"train/logged/half": 0.5}
    assert said.extra == {"words": [len(text.split()) for text in seen["completions"]]}
    # Outside a training it stands at its beginning, and nobody reads what is logged.
    assert call(all_of_it, "f", prefs).tolist() == [0.0] * 4 and said.metrics["half"] == [0.25, 0.75]


def test_async_functions_keep_what_belongs_to_their_event_loop(tmp_path):
    import asyncio
    import threading

    prefs, barrier, loops = preferences(tmp_path, ROWS), [], []

    async def waits_for_the_other(completions):
        loops.append(asyncio.get_running_loop())
        if not barrier:
            barrier.append(asyncio.Event())
            await barrier[0].wait()
        else:
            barrier[0].set()  # an event of another loop would not wake anybody
        return [1.0] * len(completions)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(call(waits_for_the_other, "f", prefs, 20.0)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2 and loops[0] is loops[1]

    async def never(completions):
        await asyncio.sleep(60)

    async def leaves(completions):
        raise SystemExit(3)

    for function, said in ((never, "no result after 0.3 s"), (leaves, "SystemExit: 3")):
        with pytest.raises(UserError, match=said):
            call(function, "memory:f", prefs, 0.3)
    barrier[:] = []
    assert call(lambda completions: [2.0] * 4, "f", prefs).tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda completions, gold: 0,
            "needs the column 'gold', which data does not have .*columns: solution",
        ),
        (lambda completons: 0, "did you mean 'completions'"),
        (lambda completions, trainer_stat: 0, "did you mean 'trainer_state'"),
        (lambda completions, completion_ids: 0, "needs completion_ids.*where texts are scored"),
        (eval("lambda completions, /: 0"), "positional only"),
    ],
)
def test_what_it_asks_for_and_will_not_get_is_found_without_a_call(function, said):
    with pytest.raises(UserError, match=said):
        check(function, "f", ["solution"], "data")
    check(lambda completions, gold=None, **rest: 0, "f", [], "data")


@pytest.mark.parametrize("function", [lambda solution: 0, lambda *texts: 0, lambda prompts: 0])
def test_a_function_that_reads_no_completion_teaches_nothing(function):
    with pytest.raises(UserError, match="takes neither completions nor completion_ids"):
        check_reads_completions(function, "f")
    for fine in (lambda completion_ids: 0, lambda **all: 0):
        check_reads_completions(fine, "f")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda log_metric, log_extra: log_metric("x", float("nan")), "not a finite number"),
        (lambda log_metric, log_extra: log_metric(3, 1.0), "the name is 3"),
        (lambda log_metric, log_extra: log_extra("x", [1]), "1 values for 4 completions"),
    ],
)
def test_what_cannot_be_logged_names_the_function(tmp_path, work, said):
    def f(completions, log_metric, log_extra):
        work(log_metric, log_extra)

    with training(TrainerState(), 4), pytest.raises(UserError, match=said):
        call(f, "memory:f", preferences(tmp_path, ROWS))


def test_in_training(tmp_path, monkeypatch):
    model = tiny.write_model(tmp_path / "model")
    prompts = [{"prompt": f"item {n} ?", "wanted": n} for n in range(6)]
    seen = []

    async def reward(completions, completion_ids, wanted, trainer_state, log_metric, log_extra):
        seen.append(trainer_state)
        log_metric("tokens", sum(map(len, completion_ids)) / len(completion_ids))
        log_extra("wanted", wanted)
        assert all(isinstance(ids, list) and ids for ids in completion_ids)
        return [float(len(ids)) for ids in completion_ids]

    rlhf.train_grpo(
        model, prompts, rewards=reward, steps=2, prompts_per_step=2, rollout={"completions": 2}, max_new_tokens=4,
        lora_rank=2, output_dir=tmp_path / "run", samples_every=1, evaluate_every=2, evaluate_share=0.4,
    )  # fmt: skip
    assert [(state.global_step, state.max_steps, state.is_evaluation) for state in seen] == [
        (0, 2, False), (1, 2, False), (2, 2, True),
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:  # the reward is the length here
        assert line["train/logged/tokens"] == pytest.approx(line["train/completion_tokens"])
    assert lines[-1]["eval/logged/tokens"] == pytest.approx(lines[-1]["eval/completion_tokens"])
    for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        assert sample["extra"] == {"wanted": sample["row"] - 1} and sample["reward"] == sample["tokens"]
    monkeypatch.setattr("rlhf.train.rl.trainer.open_base", lambda config: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match="'gold'"):
        rlhf.train_grpo(
            str(model), prompts, rewards=lambda completions, gold: [], steps=1, output_dir=tmp_path / "other"
        )


def test_names_of_metrics_are_one_word():
    found = arguments.Call(TrainerState())
    found.log_metric("my own/number", 1)
    assert list(found.means("train")) == ["train/logged/my_own_number"]
