"""Configuration: exact reading, and every mistake named with its place and its mend."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from rewards.errors import UserError
from rewards.names import no_name
from rlhf.phi.config import RewardsConfig
from rlhf.run.config.describe import KINDS, describe, schema_of
from rlhf.run.config.document import parse
from rlhf.run.config.load import load, to_dict, to_yaml
from rlhf.train.config import DPOConfig, PairTrainConfig, SFTConfig

DPO = """\
seed: 1
output_dir: out
data: {path: pairs.jsonl}
model:
  name: smollm2-135m
rewards: runs/rewards
optimizer:
  learning_rate: 1e-4
train:
  steps: 10
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="a.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def message(path, overrides=(), schema=DPOConfig):
    with pytest.raises(UserError) as caught:
        load(path, overrides, schema)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_come_from_the_file_then_the_command_line_then_the_defaults(write):
    config = load(
        write(DPO), ["train.steps=20", "train.steps=30", "rail.eta=.5", "optimizer.beta2=99e-2"], DPOConfig
    )
    assert config.train.steps == 30 and config.rail.eta == 0.5 and config.optimizer.beta2 == 0.99
    assert config.optimizer.learning_rate == 1e-4  # text in YAML 1.1
    assert config.data.path == "pairs.jsonl" and config.data.split == "train" and config.tune.lora_rank == 16


def test_configurations_hash_by_value_and_are_frozen(write):
    first, second = load(write(DPO), [], DPOConfig), load(write(DPO), [], DPOConfig)
    assert first == second and hash(first) == hash(second) and first is not second
    assert first != load(write(DPO), ["seed=2"], DPOConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.seed = 3


def test_lists_become_tuples(write):
    text = "seed: 0\noutput_dir: o\ndata: {path: d}\nmodel: {name: m}\nevaluation: {counts: [0, 4]}\n"
    assert load(write(text), [], RewardsConfig).evaluation.counts == (0, 4)


def test_a_mapping_as_override_replaces_the_section(write):
    path = write(DPO + "  log_every: 3\n")
    assert load(path, [], DPOConfig).train.log_every == 3
    assert load(path, ["train={steps: 5}"], DPOConfig).train == PairTrainConfig(steps=5)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(1e-12, 1e3),
    eta=st.just(0.0) | st.floats(1e-30, 1e6),
    name=st.text(min_size=1).filter(
        lambda text: text.strip() and no_name(text) is None and text[0] != "~"
    ),  # paths
    completions=st.none() | st.integers(2, 99),
)
def test_resolved_yaml_reads_back_equal(tmp_path_factory, seed, rate, eta, name, completions):
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_text(DPO)
    config = load(path, [], DPOConfig)
    config = dataclasses.replace(
        config,
        seed=seed,
        output_dir=name,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        rail=dataclasses.replace(config.rail, eta=eta),
        groups=dataclasses.replace(config.groups, completions=completions),
    )
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(path, [], DPOConfig) == config
    assert to_dict(config) == parse(to_yaml(config), "c.yaml")[0]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda s: s + "  step: 4\n", "train.step [a.yaml:11]: unknown key; did you mean 'steps'?"),
        (
            lambda s: s + "lerning_rate: 4\n",
            "lerning_rate [a.yaml:11]: unknown key; did you mean 'optimizer.learning_rate'?",
        ),
        (lambda s: s + "xyzzy: 4\n", "xyzzy [a.yaml:11]: unknown key; known here: seed, output_dir, data,"),
        (
            lambda s: s.replace("steps: 10", "steps: ten"),
            'train.steps [a.yaml:10]: input should be a valid integer (got "ten")',
        ),
        (
            lambda s: s.replace("steps: 10", "steps: '10'"),
            'train.steps [a.yaml:10]: input should be a valid integer (got "10")',
        ),
        (
            lambda s: s.replace("steps: 10", "steps: true"),
            "train.steps [a.yaml:10]: input should be a valid integer (got true)",
        ),
        (
            lambda s: s.replace("steps: 10", "steps: 0"),
            "train.steps [a.yaml:10]: input should be greater than or equal to 1 (got 0)",
        ),
        (
            lambda s: s.replace("1e-4", ".inf"),
            "optimizer.learning_rate [a.yaml:8]: input should be a finite number",
        ),
        (
            lambda s: s.replace("  steps: 10", "  log_every: 2"),
            "train [a.yaml:9]: steps is required; give a number of steps, or epochs",
        ),
        (lambda s: s.replace("seed: 1\n", ""), "seed [a.yaml]: field required"),
        (
            lambda s: s.replace("{path: pairs.jsonl}", "pairs.jsonl"),
            "data [a.yaml:3]: input should be a section of keys",
        ),
        (lambda s: s + "seed: 3\n", "seed [a.yaml:11]: key given twice (first in line 1); remove one"),
        (
            lambda s: s + "loss: {kind: softt}\n",
            "loss.kind [a.yaml:11]: input should be 'soft', 'regression', ",
        ),
        (
            lambda s: s + "users: {prior: 0.9}\n",
            "users [a.yaml:11]: posterior + prior + extremes + generic must be 1, not 1.6",
        ),
        (lambda s: s + "users: [\n", "a.yaml:12: not valid YAML"),
        (lambda s: s + "users: !!python/object/apply:os.getcwd []\n", "a.yaml:11: not valid YAML"),
        (
            lambda s: s.replace("rewards: runs/rewards\n", ""),
            "[a.yaml]: rewards is required for loss.kind soft",
        ),
        (
            lambda s: s + "loss: {kind: observed}\ngroups: {completions: 3}\n",
            "[a.yaml]: groups.completions 3 is for loss.kind soft and regression",
        ),
        (lambda s: s + "  row_length: 64\n", "train.row_length [a.yaml:11]: unknown key"),  # sft's alone
        (lambda s: s + "model.name: x\n", "model.name [a.yaml:11]: unknown key; write it as a section"),
        (lambda s: "- 1\n", "a configuration is `key: value` lines, not a list"),
        (lambda s: "1: 2\n", "1 [a.yaml:1]: unknown key"),
    ],
)
def test_a_mistake_in_the_file(write, edit, expected):
    assert expected in message(write(edit(DPO)))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stpes=3", "train.stpes [command line]: unknown key; did you mean 'steps'?"),
        (
            "train.steps.x=3",
            "train.steps.x [command line]: train.steps is a single value, not a section; write train.steps=",
        ),
        ("train.steps=x", 'train.steps [command line]: input should be a valid integer (got "x")'),
        ("train={steps: x}", 'train.steps [command line]: input should be a valid integer (got "x")'),
        ("train.steps", "'train.steps' [command line]: an override is key.sub=value"),
        ("=3", "'=3' [command line]: an override is key.sub=value"),
        ("train..steps=3", "an override is key.sub=value"),
        ("train.steps=", "train.steps [command line]: no value after '='"),
        ("train.steps=[1", "train.steps [command line]: not valid YAML"),
        ("train=3", "train [command line]: input should be a section of keys (got 3)"),
        ("optimizer.warmup_steps=10", "optimizer.warmup_steps (10) must be smaller than train.steps (10)"),
        ("model.name=''", "model.name [command line]: string should have at least 1 character"),
    ],
)
def test_a_mistake_on_the_command_line(write, override, expected):
    assert expected in message(write(DPO), [override])


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Inner:
    depth: int = 0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Middle:
    inner: Inner = Inner()


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Outer:
    middle: Middle | None = None


def test_a_misspelt_key_at_depth_three(write):
    path = write("middle:\n  inner: {dept: 3}\n")
    assert message(path, schema=Outer) == "middle.inner.dept [a.yaml:2]: unknown key; did you mean 'depth'?"
    assert "middle.inner.dpeth [command line]" in message(write("{}"), ["middle.inner.dpeth=1"], Outer)
    assert load(write("{}"), ["middle.inner.depth=1"], Outer) == Outer(Middle(Inner(1)))


def test_several_mistakes_are_listed_and_the_rest_counted(write):
    text = message(write(DPO), ["train.a=1", "tune.b=1", "loss.c=1", "rail.d=1", "e=1"])
    assert all(name in text for name in ("train.a", "tune.b", "loss.c")) and text.endswith("(and 2 more)")


def test_a_file_that_cannot_be_read(tmp_path):
    assert "no such configuration file" in message(tmp_path / "no.yaml")
    assert "is a folder, not a file" in message(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in message(tmp_path / "b.yaml")


def test_a_language_model_encoder_needs_a_model(write):
    text = "seed: 0\noutput_dir: o\ndata: {path: d}\n"
    assert "model.name is required when encoder.kind is lm" in message(write(text), schema=RewardsConfig)
    assert load(write(text), ["encoder.kind=precomputed"], RewardsConfig).model.name is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind):
    entries = describe(schema_of(kind))
    always = {"seed", "output_dir", "data.path"} | (set() if kind == "outputs" else {"model.name"})
    always = {"command", "trials"} if kind == "sweep" else always
    assert always <= {entry.key for entry in entries}
    for entry in entries:
        assert len(entry.doc) > 10, entry.key


def test_described_defaults_are_the_real_ones(write):
    config = to_dict(load(write(DPO.replace("rewards: runs/rewards\n", "")), [], SFTConfig))
    for entry in describe(SFTConfig):
        value = config
        for name in entry.key.split("."):
            value = value[name]
        if (
            not entry.required and entry.key != "train.steps"
        ):  # the file gives it: steps or epochs must be there
            assert value == entry.default, entry.key
