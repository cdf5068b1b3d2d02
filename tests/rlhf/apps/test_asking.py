"""How a question stands on the terminal."""

from rlhf.apps.asking import WIDTH, wrapped


def test_long_texts_break_between_words_and_short_ones_stay():
    assert wrapped("one line") == "one line"
    assert wrapped("two\n\n  lines", "  [1] ", "      ") == "  [1] two\n\n        lines"
    text = "word " * 60 + "https://example.org/" + "x" * 200
    lines = wrapped(text, "  [1] ", "      ").split("\n")
    assert lines[0].startswith("  [1] word") and all(line.startswith("      ") for line in lines[1:])
    assert all(len(line) <= WIDTH for line in lines[:-1])
    assert "".join(line[6:].replace(" ", "") for line in lines) == text.replace(" ", "")
