"""Which sampled answers the data holds: both sides are read alike."""

import pytest

from rlhf.evaluation.policy import known_answers
from tests.rlhf.phi.columns.rows import pair, preferences

CASES = [
    # texts of the data for one prompt, what was sampled, whether it is known
    (("yes", "no"), "yes", True),
    (("yes ", "no"), "yes ", True),
    (("yes ", "no"), "yes", True),
    (("yes", "no"), " yes\n", True),
    (("\n\nyes", " no"), "\n\nyes", True),
    ((" no", "\tyes"), "yes", True),
    (("yes", "no"), "yes no", False),
    (("a  b", "no"), "a b", False),
    (("yes", "no"), "", False),
]


@pytest.mark.parametrize(("texts", "sampled", "known"), CASES)
def test_white_space_at_the_ends_counts_for_neither_side(tmp_path, texts, sampled, known):
    prefs = preferences(tmp_path, [pair("Q", *texts), pair("other", "elsewhere", "else")])
    first = prefs.prompts.index("Q")
    assert known_answers(prefs, [first, first], [sampled, "elsewhere"]).tolist() == [known, False]
    assert known_answers(prefs, [prefs.prompts.index("other")], [" elsewhere"]).all()
