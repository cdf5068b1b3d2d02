"""YAML 1.2 as Chorus reads and writes it: text stays text, nothing grows, every refusal is one line."""

import time
import tracemalloc

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.errors import UserError
from rlhf.run.config.document import dump, parse, parse_value
from rlhf.run.config.load import load
from rlhf.run.directory import Run
from rlhf.train.config import SFTConfig

SFT = "seed: 1\noutput_dir: out\ndata: {path: d}\nmodel: {name: m}\ntrain: {steps: 3}\noptimizer: {learning_rate: 1e-4}\n"
LEFTOVERS = [  # what YAML 1.1 read as something else
    ("yes", "yes"),
    ("No", "No"),
    ("on", "on"),
    ("OFF", "OFF"),
    ("y", "y"),
    ("010", 10),
    ("-017", -17),
    ("0o17", 15),
    ("1:30", "1:30"),
    ("190:20:30", "190:20:30"),
    ("1:30.5", "1:30.5"),
    ("1_000", "1_000"),
    ("0b11", "0b11"),
    ("2026-01-01", "2026-01-01"),
    ("2026-01-01 10:00:00", "2026-01-01 10:00:00"),
    ("1e-5", 1e-5),
    ("3E8", 3e8),
    ("=", "="),
    ("08", 8),
    ("0x1F", 31),
]


@pytest.mark.parametrize(("text", "expected"), LEFTOVERS)
def test_leftovers_of_yaml_1_1(text, expected):
    for value in (parse_value(text, "k"), parse(f"k: {text}", "f")[0]["k"], parse(f"[{text}]", "f")[0][0]):
        assert value == expected and type(value) is type(expected)
    assert parse(f"'k': '{text}'", "f")[0]["k"] == text
    assert parse("%YAML 1.1\n---\nk: " + text, "f")[0]["k"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/sweep #1", "runs/sweep #1"),
        ("a: b", "a: b"),
        ("&a [*a]", "&a [*a]"),
        ("!!int 5", "!!int 5"),
        ("- 1", "- 1"),
        ("100% true", "100% true"),
        ("*", "*"),
        ("@home", "@home"),
        ("'a #b'", "a #b"),
        ('"a\\tb"', "a\tb"),
        ("[1, 'x #y']", [1, "x #y"]),
        ("{steps: 5}", {"steps": 5}),
        (" 5 ", 5),
        ("null", None),
        ("'null'", "null"),
    ],
)
def test_an_override_is_all_the_text_behind_the_equals_sign(text, expected):
    assert parse_value(text, "k") == expected


def test_two_runs_whose_names_differ_behind_a_hash_sign_have_two_folders(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(SFT)
    names = [load(path, [f"output_dir={tmp_path}/sweep #{n}"], SFTConfig).output_dir for n in (1, 2)]
    assert names == [f"{tmp_path}/sweep #1", f"{tmp_path}/sweep #2"]


BOMB = "a: &a [1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(['*a' + str(i - 1 or '')] * 10)}]\n" for i in range(1, 9)
)
REFUSED = [
    ("a: &a [*a]", "f.yaml:1: an alias (*) inside its own anchor (&)"),
    ("a: &a {b: {c: *a}}", "f.yaml:1: an alias (*) inside its own anchor (&)"),
    (BOMB, "more than 100000 values"),
    ("a: 1\nb: \x00", "f.yaml:2: holds the control character U+0000"),
    ("a: \x1b[31m", "f.yaml:1: holds the control character U+001B"),
    ("a: '\x07'", "U+0007"),
    ("a: \ud800", "U+D800"),
    ("a: " + "[" * 100_000, "more than 50 levels"),
    ("- " * 5_000 + "1", "more than 50 levels"),
    ("a: " + "9" * 5_000, "not valid YAML"),
    ("x" * 2_000_000, "at most 1000000"),
    ("a: !!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd is not read"),
    ("a: !mine 5", "the tag !mine is not read"),
    ("a: !!int five", "the tag !!int is not read"),
    ("a: !!binary aGk=", "the tag !!binary is not read"),
    ("a: 1\n---\nb: 2", "another document"),
    ("? [a]\n: 1", "a key is a word"),
    ("a: 1\nb: {c: 1, c: 2}", "b.c [f.yaml:2]: key given twice"),
    ("a: *b", "undefined alias"),
    ("a: [1", "not valid YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_one_clear_line_at_once_and_no_memory(text, expected):
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        parse(text, "f.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    line = str(caught.value)
    assert expected in line and "\n" not in line and line.isprintable() and len(line) < 300
    assert time.monotonic() - start < 20 and peak < 100e6


@pytest.mark.parametrize(
    "override", ["seed=&a [*a]", "seed=[1] x", "seed=\x07", "seed='\x00'", "seed=[[", ".".join("a" * 60_000) + "=1",
                 "a." * 30 + "b=1", "seed=" + "9" * 5_000, "seed=!!python/name:os.system", "output_dir=\udcff"]
)  # fmt: skip
def test_a_hostile_override_is_one_line(tmp_path, override):
    path = tmp_path / "a.yaml"
    path.write_text(SFT)
    with pytest.raises(UserError) as caught:
        load(path, [override], SFTConfig)
    line = str(caught.value)
    assert "command line" in line and line.isprintable() and len(line) < 600


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(_VALUES)
@example({":0": None})
@example({":": {":-": ":x"}, "<<": {"?x": []}})
def test_what_is_written_reads_back_equal(value):
    for flow in (False, True):
        assert parse(dump(value, flow=flow), "f")[0] == value
    assert "\n" not in dump(value, flow=True)


def test_anchors_and_merge_keys_still_read():
    text = "base: &base {steps: 5, rate: .1}\ntrain: {<<: *base, steps: 7}\n"
    assert parse(text, "f")[0]["train"] == {"steps": 7, "rate": 0.1}


def test_a_run_written_under_yaml_1_1_is_the_same_run(tmp_path):
    source = tmp_path / "a.yaml"
    source.write_text(SFT)
    for name in ("1e5", "0o7", "08", "yes", "1:30", "2026-01-01", "0b1", "plain"):
        overrides = [f"data.path='{name}'", f"output_dir={tmp_path}/{name}", "optimizer.learning_rate=1e-5"]
        config = load(source, overrides, SFTConfig)
        Run.open(config.output_dir, config, "sft").close()
        stored = parse((tmp_path / name / "config.yaml").read_text(), "c")[0]
        text = "# chorus sft\n" + yaml.safe_dump(stored, sort_keys=False, width=100)  # as Chorus wrote then
        (tmp_path / name / "config.yaml").write_text(text)
        with Run.open(config.output_dir, config, "sft") as run:
            assert run.resumed
