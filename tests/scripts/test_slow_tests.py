"""The slow tier: what a timed run makes of it, and that what it lists is there."""

import slow_tests

SECONDS = {
    "a.py": {"test_long": 9.0, "test_short": 1.0},
    "b.py": {"test_only": 20.0},
    "c.py": {"test_x": 2.0, "test_y": 1.0},
}


def test_the_dearest_are_left_out_until_the_budget_holds_and_every_file_is_touched():
    assert slow_tests.chosen(SECONDS, budget=40) == []
    assert slow_tests.chosen(SECONDS, budget=30) == ["a.py::test_long"]
    assert slow_tests.chosen(SECONDS, budget=0) == ["a.py::test_long", "c.py::test_x"]
    assert slow_tests.chosen(SECONDS | {"d.py": {"test_dear": 50.0}}, budget=0)[0] == "d.py::test_dear"


def test_cases_of_a_function_are_counted_together(tmp_path):
    report = tmp_path / "timed.xml"
    cases = [
        ("tests.test_a", "test_x[1]", 2),
        ("tests.test_a", "test_x[a\nb]", 3),
        ("tests.test_a", "test_y", 1),
    ]
    rows = "".join(
        f'<testcase classname="{c}" name="{n}" time="{t}"/>'.replace("\n", "&#10;") for c, n, t in cases
    )
    report.write_text(f'<testsuite>{rows}<testcase time="0.1"/></testsuite>')
    assert slow_tests.durations(report) == {"tests/test_a.py": {"test_x": 5.0, "test_y": 1.0}}


def test_what_is_listed_is_there():
    for line in slow_tests.LIST.read_text(encoding="utf-8").split():
        file, _, name = line.partition("::")
        assert f"def {name}(" in (slow_tests.ROOT / file).read_text(encoding="utf-8"), (
            f"{line}: run scripts/slow_tests.py"
        )
