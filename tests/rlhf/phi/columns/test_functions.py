"""Python functions with TRL's signature as columns."""

import dataclasses
import re

import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.phi.columns import table
from rlhf.phi.columns.config import ColumnConfig, plain
from rlhf.phi.columns.functions import FunctionColumn, call, load_function
from tests.rlhf.phi.columns.rows import pair, preferences

HEAD = '"""Rewards."""\nimport asyncio\n'


def column(folder, body, name="f"):
    (folder / "mine.py").write_text(HEAD + body)
    return FunctionColumn("mine", f"{folder / 'mine.py'}:{name}")


def values(folder, body, rows=None):
    prefs = preferences(folder, rows or ROWS)
    return column(folder, body).measure(prefs, fitting=True).values[:, 0], prefs


ROWS = [
    pair("Q", "one", "two words", solution="a"),
    pair("Q", "two words", "now three words", user="bob", solution="a"),
    pair([{"role": "user", "content": "Chat"}], "hello", "hello there", solution="b"),
]


def test_values_arrive_unchanged_and_in_the_order_of_the_items(tmp_path):
    numbers = {"one": 0.7, "two words": -1.9, "now three words": 12345.678, "hello": 0.1, "hello there": 3}
    got, prefs = values(
        tmp_path,
        f"TABLE = {numbers!r}\n"
        "def f(prompts, completions, **columns):\n"
        "    return [TABLE[c if isinstance(c, str) else c[0]['content']] for c in completions]\n",
    )
    assert got.tolist() == [numbers[text] for text in prefs.item_text]


def test_prompts_and_completions_have_trls_two_formats(tmp_path):
    body = (
        "def f(prompts, completions, **columns):\n"
        "    return [float(p == 'Q' and isinstance(c, str)) if isinstance(p, str) else\n"
        "            float(p == [{'role': 'user', 'content': 'Chat'}] and c[0]['role'] == 'assistant') * 2\n"
        "            for p, c in zip(prompts, completions)]\n"
    )
    got, prefs = values(tmp_path, body)
    assert got.tolist() == [1.0 if prefs.prompts[p] == "Q" else 2.0 for p in prefs.item_prompt]


def test_columns_of_the_data_are_arguments(tmp_path):
    body = "def f(completions, solution, **columns):\n    return [ord(s) for s in solution]\n"
    got, prefs = values(tmp_path, body)
    assert got.tolist() == [ord("a") if prefs.prompts[p] == "Q" else ord("b") for p in prefs.item_prompt]
    body = "def f(completions, solution=None):\n    return [float(s is not None) for s in solution]\n"
    assert values(tmp_path, body)[0].all()
    got, _ = values(tmp_path, "def f(prompts, completions):\n    return [1.5] * len(prompts)\n")
    assert got.tolist() == [1.5] * 5


def test_async_functions_are_awaited_also_inside_a_running_loop(tmp_path):
    import asyncio

    body = "async def f(completions, **columns):\n    await asyncio.sleep(0)\n    return [0.25] * len(completions)\n"
    assert values(tmp_path, body)[0].tolist() == [0.25] * 5

    async def inside():
        return values(tmp_path, body)[0]

    assert asyncio.run(inside()).tolist() == [0.25] * 5


def test_none_means_nothing_to_say_and_arrays_are_lists(tmp_path):
    body = "def f(completions, **columns):\n    return [None if len(c) > 5 else 1 for c in completions]\n"
    got, prefs = values(tmp_path, body)
    assert np.isnan(got).tolist() == [
        isinstance(t, str) and len(t) > 5 and p == 0
        for t, p in zip(prefs.item_text, prefs.item_prompt, strict=True)
    ]  # chat completions are lists of one message
    body = "import numpy as np\ndef f(completions, **c):\n    return np.arange(len(completions)) * 0.5\n"
    assert values(tmp_path, body)[0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(completions, **c):\n    return [1.0]\n", "returned 1 values for 5 completions"),
        ("def f(completions, **c):\n    return 1.0\n", "returned a float for 5 completions"),
        ("def f(completions, **c):\n    return [0, 0, float('nan'), 0, 0]\n", "'nan' for .*row 2"),
        ("def f(completions, **c):\n    return [0, 0, 0, float('inf'), 0]\n", "'inf' for .*row 3"),
        ("def f(completions, **c):\n    return ['high'] * len(completions)\n", "'high' for .*row 1"),
        (
            "def f(completions, **c):\n    return [1 / (len(x) - 3) for x in completions]\n",
            r"failed on .*row 1, ZeroDivisionError: .* in line 4; mend",
        ),
        (
            "async def f(completions, **c):\n    raise KeyError('gone')\n",
            r"failed on .*row 1, KeyError: 'gone' in line 4",
        ),
        ("def f(completions, gold):\n    return []\n", "needs the column 'gold'.*columns: solution"),
        ("g = 1\n", "no function 'f'"),
        ("def ff(completions):\n    return []\n", "did you mean 'ff'"),
        ("f = 3\n", "no function 'f'"),
        ("raise RuntimeError('at import')\n", "importing .* failed, RuntimeError: at import in line 3"),
        ("def f(:\n", "importing .* failed, SyntaxError"),
    ],
)
def test_what_goes_wrong_is_one_line_with_function_and_row(tmp_path, body, message):
    with pytest.raises(UserError, match=message) as caught:
        values(tmp_path, body)
    assert "\n" not in str(caught.value) and "mine.py:f" in str(caught.value)


LEAVES = {
    "sys.exit": (
        "import sys\ndef f(completions, **c):\n    sys.exit()\n",
        "row 1, SystemExit(: 0)? in line 5",
    ),  # wandb in the same process: 0
    "sys.exit(0) for one": (
        "import sys\ndef f(completions, **c):\n    return [sys.exit(0) if len(x) == 9 else 1.0 for x in completions]\n",
        "row 1, SystemExit: 0 in line 5",
    ),
    "exit with a text": (
        "def f(completions, **c):\n    raise SystemExit('done')\n",
        "row 1, SystemExit: done in line 4",
    ),
    "interrupt": (
        "def f(completions, **c):\n    raise KeyboardInterrupt\n",
        "row 1, KeyboardInterrupt in line 4",
    ),
    "no Exception": (
        "class Odd(BaseException): pass\ndef f(completions, **c):\n    raise Odd('x')\n",
        "row 1, Odd: x in line 5",
    ),
    "unprintable": (
        "class Odd(BaseException):\n    def __str__(self): raise SystemExit\ndef f(completions, **c):\n    raise Odd\n",
        "row 1, Odd: .it cannot be printed",
    ),
    "generator": ("def f(completions, **c):\n    yield 1.0\n", "returned a generator for 5 completions"),
    "closed generator": (
        "def f(completions, **c):\n    raise GeneratorExit\n",
        "row 1, GeneratorExit in line 4",
    ),
    "recursion": ("def f(completions, **c):\n    return f(completions)\n", "row 1, RecursionError: "),
    "async exit": (
        "async def f(completions, **c):\n    raise SystemExit(3)\n",
        "row 1, SystemExit: 3 in line 4",
    ),
    "exit in tolist": (
        "class A:\n    def tolist(self): raise SystemExit\ndef f(completions, **c):\n    return A()\n",
        "row 1, SystemExit in line 4",
    ),
    "too large": (
        "def f(completions, **c):\n    return [10**400] * len(completions)\n",
        "returned '1000.* for .*row 1",
    ),
    "endless": (
        # Busy, but not for ever: a thread cannot be ended, and every later test of the worker would wait for its turn.
        "import time\nend = time.monotonic() + 8\ndef f(completions, **c):\n    while time.monotonic() < end: pass\n",
        "row 1, no result after 2 s .limit_seconds",
    ),
    "endless for one": (
        "import time\nend = time.monotonic() + 8\ndef f(completions, **c):\n"
        "    while 'now three words' in completions and time.monotonic() < end: time.sleep(0.01)\n"
        "    return [1.0] * len(completions)\n",
        "row 2, no result after 2 s",
    ),
    "exit at import": (
        "raise SystemExit(0)\ndef f(completions): pass\n",
        "importing .* failed, SystemExit: 0 in line 3",
    ),
    "quit at import": ("quit()\ndef f(completions): pass\n", "importing .* failed, SystemExit: "),
    "interrupt at import": ("raise KeyboardInterrupt\n", "importing .* failed, KeyboardInterrupt in line 3"),
}


@pytest.mark.parametrize("case", LEAVES)
def test_code_that_leaves_is_one_line_and_nothing_else(tmp_path, capsys, case):
    """The command goes on to its one line and status 2; what the code printed stays."""
    body, message = LEAVES[case]
    prefs, own = preferences(tmp_path, ROWS), column(tmp_path, "print('its own words')\n" + body)
    own = dataclasses.replace(own, limit_seconds=2.0 if case.startswith("endless") else 30.0)
    message = re.sub(r"in line (\d+)", lambda found: f"in line {int(found[1]) + 1}", message)
    with pytest.raises(UserError, match=message) as caught:
        own.measure(prefs, fitting=True)
    assert "\n" not in str(caught.value) and "mine.py:f" in str(caught.value)
    assert capsys.readouterr().out == "its own words\n"


def test_a_time_limit_is_stored_only_where_it_was_set(tmp_path):
    given = {"name": "x", "kind": "function", "function": "a.py:f"}
    assert plain(ColumnConfig(**given)) == {
        "name": "x",
        "kind": "function",
        "gate": None,
        "function": "a.py:f",
    }
    stored = plain(ColumnConfig(**given, limit_seconds=5))
    assert stored["limit_seconds"] == 5 and table.make(stored).limit_seconds == 5
    assert table.make(plain(ColumnConfig(**given))).limit_seconds == 600


@pytest.mark.parametrize("spec", ["nothing", "no_such_module_x:f", "missing.py:f", "os.path:", ":f", "a:b c"])
def test_a_spec_that_names_nothing_is_refused_before_anything_runs(spec):
    with pytest.raises(UserError, match="function"):
        FunctionColumn("x", spec).identity()


def test_a_data_column_that_differs_for_one_completion_cannot_be_used(tmp_path):
    rows = [pair("Q", "a", "b", solution="x"), pair("Q", "b", "c", solution="y")]
    with pytest.raises(UserError, match="rows 1 and 2: column 'solution' differs"):
        values(tmp_path, "def f(completions, solution):\n    return [0.0] * len(solution)\n", rows)
    body = "def f(completions, **columns):\n    return [float(s == 'x') for s in columns['solution']]\n"
    assert values(tmp_path, body, rows)[0].tolist() == [1.0, 1.0, 0.0]  # the first row with the completion
    rows = [pair("Q", "b", "a", solution="x"), pair("Q", "c", "b", solution="y")]
    assert values(tmp_path, body, rows)[0].tolist() == [1.0, 1.0, 0.0]


def test_identity_follows_source_and_name_without_running_it(tmp_path):
    marker = tmp_path / "ran"
    body = f"open({str(marker)!r}, 'w')\ndef f(completions): return []\ndef g(completions): return []\n"
    first = column(tmp_path, body).identity()
    assert column(tmp_path, body, "g").identity() != first
    assert column(tmp_path, body + "# more\n").identity() != first
    assert column(tmp_path, body).identity() == first and not marker.exists()


def test_a_function_of_an_installed_module(tmp_path):
    prefs = preferences(tmp_path, ROWS[:2])
    function = load_function("rlhf.phi.columns.style:length_words")
    assert call(function, "rlhf.phi.columns.style:length_words", prefs).tolist() == [1.0, 2.0, 3.0]
