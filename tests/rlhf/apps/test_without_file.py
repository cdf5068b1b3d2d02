"""Runs without a file: what is chosen, that the file says the same, directories that do not collide, and that it trains."""

import json

import pytest

from rewards.errors import UserError
from rewards.files import write_text
from rlhf.apps.cli import main, parse
from rlhf.apps.cli.common import configuration
from rlhf.apps.defaults import FULL_RATE, LORA_RATE, commented, resolved
from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import load, to_dict, to_yaml
from rlhf.train.length import in_steps
from tests.rlhf import tiny

OPTIONS = {"model.name": "m", "data.path": "d/pairs.jsonl.gz"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(kind):
    columns = [{"name": "f", "kind": "function", "function": "own.py:f"}] if kind in ("ppo", "grpo") else None
    return OPTIONS | {"columns": columns}


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo", "grpo", "rewards"])
def test_the_written_file_is_the_run(kind, place):
    config, values = resolved(kind, options(kind), [])
    assert config.output_dir == f"runs/{kind}-pairs-m"
    text = commented(kind, values)
    write_text(place / "a.yaml", text)
    assert load(place / "a.yaml", [], schema_of(kind)) == config
    uncommented = [line for line in text.splitlines()[1:] if not line.lstrip().startswith("#")]
    keys = [
        number for number, line in enumerate(text.splitlines()) if line in uncommented and line[-1] != ":"
    ]
    assert all(text.splitlines()[number - 1].lstrip().startswith("#") for number in keys)


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo", "grpo"])
def test_rates_go_by_what_is_trained_and_overrides_count_more(kind):
    adapters, _ = resolved(kind, options(kind), [])
    full, _ = resolved(kind, options(kind), ["tune.mode=full"])
    assert adapters.optimizer.learning_rate == LORA_RATE[kind] == pytest.approx(10 * FULL_RATE[kind])
    assert full.optimizer.learning_rate == FULL_RATE[kind]
    assert (adapters.train.steps, adapters.train.epochs, adapters.optimizer.warmup_share) == (None, 1.0, 0.1)
    own, _ = resolved(
        kind, options(kind), ["train.steps=3", "optimizer.warmup_steps=1", "optimizer.learning_rate=1"]
    )
    assert (own.train.steps, own.train.epochs, own.optimizer.warmup_share) == (3, None, 0.0)
    assert own.optimizer.learning_rate == 1


def test_grpo_without_a_file_is_grpo_and_dpo_without_people_is_dpo():
    assert resolved("grpo", options("grpo"), [])[0].algorithm.kind == "grpo"
    assert resolved("grpo", options("grpo"), ["algorithm.kind=rloo"])[0].algorithm.kind == "rloo"
    assert resolved("dpo", OPTIONS, [])[0].loss.kind == "dpo"
    assert resolved("dpo", OPTIONS | {"rewards": "runs/r"}, [])[0].loss.kind == "soft"


def test_another_configuration_gets_another_directory_and_the_same_resumes(place):
    config, _ = resolved("dpo", OPTIONS, [])
    (place / config.output_dir).mkdir(parents=True)
    write_text(place / config.output_dir / "config.yaml", f"# chorus dpo\n{to_yaml(config)}")
    assert resolved("dpo", OPTIONS, [])[0].output_dir == config.output_dir
    assert resolved("dpo", OPTIONS, ["seed=1"])[0].output_dir == f"{config.output_dir}-2"
    assert resolved("dpo", OPTIONS, ["output_dir=mine"])[0].output_dir == "mine"


def test_options_are_keys_of_a_file_too(place):
    text = "seed: 1\noutput_dir: out\ndata: {path: d}\nmodel: {name: m}\ntrain: {steps: 3}\noptimizer: {learning_rate: 1}\n"
    write_text(place / "a.yaml", text)
    words = ["train", "sft", "a.yaml", "--model", "other", "seed=2", "--data", "1e5"]
    config = configuration(parse(words), "sft")
    assert (config.model.name, config.data.path, config.seed) == ("other", "1e5", 2)
    first = configuration(parse(["train", "sft", "train.steps=3", "--model", "m", "--data", "d"]), "sft")
    last = configuration(parse(["train", "sft", "--model", "m", "--data", "d", "train.steps=3"]), "sft")
    assert to_dict(first) == to_dict(last) and first.train.steps == 3


def test_one_message_names_all_that_is_missing(place):
    write_text(place / "a.yaml", "seed: 1\n")
    with pytest.raises(UserError) as caught:
        load(place / "a.yaml", [], schema_of("dpo"))
    for key in (
        "output_dir",
        "data.path",
        "model.name",
        "optimizer.learning_rate",
        "train.steps (or epochs)",
    ):
        assert key in str(caught.value)
    with pytest.raises(UserError, match="give CONFIG, a YAML file, or --model and --data"):
        resolved("dpo", {}, [])
    with pytest.raises(UserError, match="missing: model.name|model.name|model"):
        resolved("dpo", {"data.path": "d"}, [])


@pytest.mark.parametrize(
    "epochs, rows, per_step, steps, warm",
    [(1, 24, 8, 3, 0), (1.5, 24, 8, 5, 0), (3, 25, 8, 10, 1), (0.01, 5, 8, 1, 0)],
)
def test_epochs_and_shares_become_steps(epochs, rows, per_step, steps, warm):
    config, _ = resolved("dpo", OPTIONS, [f"train.epochs={epochs}"])
    found = in_steps(config, rows, per_step)
    assert (found.train.steps, found.train.epochs) == (steps, None)
    assert (found.optimizer.warmup_steps, found.optimizer.warmup_share) == (warm, 0.0)
    late, _ = resolved("dpo", OPTIONS, [f"train.epochs={epochs}", "optimizer.warmup_steps=10"])
    with pytest.raises(UserError, match="optimizer.warmup_steps 10: .*lower it"):
        in_steps(late, rows, per_step)


@pytest.mark.parametrize(
    "words", ["train.steps=3 train.epochs=1", "optimizer.warmup_steps=1 optimizer.warmup_share=.1"]
)
def test_two_lengths_are_refused(words):
    with pytest.raises(UserError, match="are both given; remove one"):
        resolved("dpo", OPTIONS, words.split())


def test_a_file_of_pairs_and_a_model_are_enough(place, capsys):
    tiny.write_model(place / "model")
    rows = [{"question": f"q {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(9)]
    write_text(place / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    words = "train dpo --model model --data pairs.jsonl data.prompt_column=question train.epochs=2 --json"
    assert main(words.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["step"] == 3 and result["run_dir"] == "runs/dpo-pairs-model"  # 9 rows twice, 8 a step
    assert main(["config", "new", "dpo", "--model", "m", "--data", "d", "--output", "a.yaml"]) == 0
    assert main(["config", "new", "dpo", "--model", "m", "--data", "d", "--output", "a.yaml"]) == 2
