"""Style rewards on texts whose markers can be counted by hand."""

import pytest

from rlhf.phi.columns import style

PLAIN = "The cat sat on the mat near the old red door."  # 11 words, no marker of any kind
LIST = "# Plan\n- first\n- second\n\nThat is all."


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        (style.length_words, PLAIN, 11.0),
        (style.length_words, "don't stop", 2.0),
        (style.structure_share, PLAIN, 0.0),
        (style.structure_share, LIST, 0.75),  # three of the four lines with text
        (style.structure_share, "", 0.0),
        (style.formality, PLAIN, 0.0),
        (style.formality, "However, we must therefore stop.", 100 * 2 / 5),
        (style.formality, "yeah it's cool!", -100 * 4 / 3),
        (style.warmth, "Please feel free to ask, thank you.", 100 * 3 / 7),
        (style.warmth, PLAIN, 0.0),
        (style.certainty, "It is certainly true.", 25.0),
        (style.certainty, "Perhaps it might rain.", -50.0),
        (style.certainty, "", 0.0),
    ],
)
def test_by_hand(function, text, expected):
    assert function([text]) == pytest.approx([expected])
    chat = [{"role": "assistant", "content": text}]
    assert function(completions=[chat], prompts=["?"]) == pytest.approx([expected])


def test_a_marker_is_a_whole_word():
    # hence/hencefort, may/maybe, must/mustard
    assert style.certainty(["Mustard, likelihood."]) == [0.0]
    assert style.formality(["thusly hencefort"]) == [0.0]
