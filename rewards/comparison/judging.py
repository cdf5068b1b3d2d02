"""What a comparison says: won, lost or unknown, and one sentence about whom and after how many answers.

A win has to stand against everything that knows no person: one reward of the text (aggregate), and how often each text won
(`references`). Where tested comparisons hold texts that the person was asked about, it has to stand on the others.
"""

from rewards.comparison.compare import AGGREGATE
from rewards.comparison.power import RELEVANT, Power, cannot_show, least_half_width, power
from rewards.comparison.references import ITEMS_TEXT
from rewards.files import JSONObject

NO_SIGNAL = "No personal signal here"
SILENT = "for people left out of the fit, earlier answers are not shown to predict later ones, so everybody gets one ordering"
REPEATED = 0.05
"""Share of tested comparisons with a text from a question above which a gain has to be shown without them."""


def best_of(board: JSONObject) -> str:
    """The model with the highest accuracy after `answers` answers."""
    answers = board["answers"]
    return max(board["models"], key=lambda name: board["models"][name]["accuracy"][answers]["mean"])


def helps(board: JSONObject) -> bool:
    """The judged model listens to the person, beats the aggregate one and the counted texts after `answers` answers, and
    beats itself with another person's answers, by intervals above zero; and no answers are carried over (`carried`)."""
    own = board["models"][board["judged"]]
    gains = (own["gain"][board["answers"]], own["own_minus_swapped"], *filter(None, [over_reference(board)]))
    return bool(not own["ignores_user"] and all(gain["low"] > 0 for gain in gains) and not carried(board))


def over_reference(board: JSONObject) -> JSONObject | None:
    """Gain of the judged model over the strengths of texts; None on boards that have none (of before there were any)."""
    found = board.get("references", {}).get(ITEMS_TEXT)
    return found["judged_minus"] if found else None


def carried(board: JSONObject) -> bool:
    """Tested comparisons hold texts from questions, and without those no gain over one model for everybody is shown."""
    found = board.get("repeated_texts")
    if not found or found["share"] <= REPEATED:
        return False
    return "gain_without" not in found or found["gain_without"]["low"] <= 0


def power_of(board: JSONObject) -> Power:
    """What the people of the comparison could have shown of the judged model against the aggregate one."""
    gain = board["models"][board["judged"]]["gain"][board["answers"]]
    people, choices = board["people"], board["tested_choices"]
    half = max((gain["high"] - gain["low"]) / 2, least_half_width(people, choices))
    return power(-half, half, people, choices=choices)


def found_no_taste(fitted: object) -> bool:
    """The fit itself asked people left out for tastes, and found none: the scale c of the crossed model is 0."""
    return getattr(fitted, "report", {}).get("scale") == 0


def status(board: JSONObject) -> str:
    """won, lost or unknown: not shown, though so few people could hardly have shown it; or carried over; or the fit found no
    taste, so that nothing personal was tried."""
    own = board["models"][board["judged"]]
    if board["helps"]:
        return "won"
    if board.get("silent"):
        return "unknown"
    # What was below one model for everybody before any answer is a worse base; answers harm where they lower it.
    worse, learned = own["gain"][board["answers"]]["high"] < 0, own.get("learned")
    if own["own_minus_swapped"]["high"] < 0 or (worse and (learned is None or learned["high"] < 0)):
        return "lost"
    if carried(board) and own["gain"][board["answers"]]["low"] > 0:
        return "unknown"
    # A taste of the relevant size was planted, and these people, questions and this model did not find it.
    missed = any(
        size["points"] >= 100 * RELEVANT and not size["found"] for size in board.get("planted") or []
    )
    return "lost" if Power(**board["power"]).shows(RELEVANT) and not missed else "unknown"


def sentence(board: JSONObject) -> str:
    """One sentence: whether personalisation helps on this data, for whom, after how many answers."""
    answers, name = board["answers"], board["judged"]
    own, general = board["models"][name], board["models"][AGGREGATE]
    gain = own["gain"][answers]
    folds = board.get("folds", 1)
    who = (
        f"{board['people']} people never seen"
        if folds == 1
        else f"{board['people']} people, each held out once,"
    )
    figures = (
        f"{own['accuracy'][answers]['mean']:.1%} of the choices of {who} are "
        f"predicted after {answers} random questions against {general['accuracy'][answers]['mean']:.1%} by one "
        f"model for everybody ({points(gain)}); "
        f"{own['gaining']:.0%} of people gain and {own['losing']:.0%} lose, and the worst-predicted tenth stands "
        f"at {own['worst_decile']:.0%} (one model: {own['worst_decile_aggregate']:.0%})"
    )
    if board["helps"]:
        enough = own["enough_answers"]
        when = f"from {enough} {'answer' if enough == 1 else 'answers'} on"
        return f"Personalisation helps on this data ({name}), {when}: {figures}."
    if board.get("silent"):
        return f"{NO_SIGNAL} ({name}): {SILENT}; {figures}{said_planted(board)}."
    reason, over = "it is not shown to beat one model for everybody", over_reference(board)
    if own["ignores_user"]:
        reason = "the model ignores the user, whose answers another person's may replace without any change"
        if board.get("status") == "unknown":
            reason = "the fit found no taste in which people differ, so answers change nothing"
    elif gain["high"] < 0 and own.get("learned") and own["learned"]["high"] >= 0:
        before = own["gain"][min(own["gain"], key=int)]
        reason = (
            f"it is worse than one model for everybody before any answer already ({points(before)}), so its base is, and "
            "answers are not shown to change that"
        )
    elif gain["low"] > 0 and own["own_minus_swapped"]["low"] <= 0:
        reason = "another person's answers serve as well as one's own"
    elif gain["low"] > 0 and over and over["low"] <= 0:
        counted = board["references"][ITEMS_TEXT]["accuracy"][answers]["mean"]
        reason = (
            f"counting how often each text wins, with nothing personal, predicts {counted:.1%}, and it is not shown to "
            f"beat that ({points(over)})"
        )
    if board.get("status") == "unknown":
        if carried(board) and gain["low"] > 0:
            found = board["repeated_texts"]
            left = f"({points(found['gain_without'])})" if "gain_without" in found else "(there are none)"
            return (
                f"Unknown: {found['share']:.0%} of the tested comparisons hold a text that the same person was asked about, "
                f"so answers carry over from question to test, and on the others no gain is shown {left}; "
                f"evaluation.distinct_texts=true asks and tests each text once. As it stands ({name}), {figures}."
            )
        can = cannot_show(Power(**board["power"])) + said_planted(board)
        return f"Unknown: {can}. On this data ({name}) {reason}; {figures}."
    return f"Personalisation lost on this data ({name}): {reason}; {figures}."


def said_planted(board: JSONObject) -> str:
    """What the same people, questions and model find of tastes that were planted."""
    planted = board.get("planted") or []
    found = [size["points"] for size in planted if size["found"]]
    missed = [size["points"] for size in planted if not size["found"]]
    said = ""
    if found and missed and min(found) < max(missed):
        less, more = (
            [size for size in found if size < max(missed)],
            [size for size in missed if size > min(found)],
        )
        return f"; planted tastes worth {_list(more)} points are not found, so that those worth {_list(less)} are is chance"
    if found:
        said += f"; planted tastes worth {_list(found)} points are found"
    if missed:
        said += f"{', ' if found else '; planted tastes worth '}{_list(missed)} {'' if found else 'points '}are not found"
    return said


def _list(sizes: list[float]) -> str:
    said = [f"{size:g}" for size in sizes]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def points(interval: JSONObject) -> str:
    """A difference of shares as percentage points with its interval."""
    mean, low, high = (f"{round(100 * interval[part], 1) + 0.0:+.1f}" for part in ("mean", "low", "high"))
    return f"{mean} points, 95 % {low} to {high}"
