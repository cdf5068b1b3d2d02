"""Whether answers are in the language of their prompt."""

from rewards.types import Message
from rlhf.evaluation.outputs import language

ENGLISH = "How do I get from the station to the old town on foot?"
GERMAN = "Gehen Sie geradeaus bis zum Marktplatz und dann links über die Brücke."
FRENCH = "Prenez la première rue à gauche, puis continuez tout droit jusqu'au pont."
JAPANESE = "駅を出てまっすぐ進み、橋を渡ってください。"


def test_languages_are_told_apart_and_what_has_none_is_not_guessed():
    assert language.languages([ENGLISH, GERMAN, FRENCH, JAPANESE]) == ["en", "de", "fr", "ja"]
    nothing = ["", "ok", "42 17 3.5", "def f(x): return x", "\ud800", "word12 word7 word33 word40"]
    assert language.languages(nothing) == [None] * len(nothing)


def test_a_prompt_is_asked_in_the_language_of_the_last_message_of_the_user():
    turns = (("user", GERMAN), ("assistant", FRENCH), Message("user", ENGLISH, "{}"), ("assistant", JAPANESE))
    assert language.of_prompts([FRENCH, turns]) == ["fr", "en"]


def test_only_pairs_with_two_clear_languages_count():
    assert language.other_language(["en", "en", "en", None], ["en", "de", None, "de"]) == 0.5
    assert language.other_language(["en", None], [None, "de"]) is None
