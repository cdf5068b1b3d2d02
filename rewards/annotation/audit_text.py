"""An audit in words: one sentence on what the answers are worth, and what to do."""

from rewards.annotation.audit import flip_rate_of_agreement, flip_rate_of_cycles
from rewards.annotation.planner import AUDIT_SHARE
from rewards.files import JSONObject

NOISY = 0.15  # flip rate from which weighting and more answers matter
GAP = 0.05  # repeats that move with the condition


def verdict(result: JSONObject) -> str:
    """One sentence: consistency, what pushes the answers, who stands out."""
    parts = [_consistency(result)]
    pushes = _pushes(result)
    if pushes:
        parts.append("moved by " + " and ".join(pushes))
    elif result["order"] or result["frames"]:
        parts.append("not moved by what was recorded of the questions")
    odd = result["random"]["named"]
    if odd:
        parts.append(f"{odd} of {result['random']['tested']} people tested answer like a coin")
    apart = _disagreement(result)
    return "; ".join(parts + ([apart] if apart else [])) + "."


def _consistency(result: JSONObject) -> str:
    repeats, cycles = result["repeats"], result["cycles"]
    if repeats and (not cycles or repeats["couples"] >= cycles["triads"]):
        where = f"{repeats['couples']:,} repeats ({repeats['agreement']:.1%} agree)"
        rate, worst = repeats["flip_rate"], flip_rate_of_agreement(repeats["interval"][0])
    elif cycles:
        where = f"{cycles['triads']:,} triads ({cycles['rate']:.1%} cyclic)"
        rate, worst = cycles["flip_rate"], flip_rate_of_cycles(cycles["interval"][1])
    else:
        return "Consistency unknown: nobody was asked a pair twice or compared three items all ways"
    if rate < NOISY <= worst:  # a handful of lucky triads is no consistency
        return f"Consistency not shown: flip rate about {rate:.0%}, perhaps {worst:.0%}, from only {where}"
    word = "consistent" if rate < 0.08 else "fairly consistent" if rate < NOISY else "noisy"
    return f"Answers are {word}: flip rate about {rate:.0%}, from {where}"


def _pushes(result: JSONObject) -> list[str]:
    found = []
    for name, part in [("what stood first", result["order"]), *(result["frames"] or {}).items()]:
        if part and not part["interval"][0] <= 0.5 <= part["interval"][1]:
            found.append(f"{name} (wins {part['share']:.1%})")
    if (result["repeats"] or {}).get("constructed_gap", 0.0) > GAP:
        found.append("the condition of the question (repeats agree less across conditions)")
    return found


def _disagreement(result: JSONObject) -> str:
    """Do people differ more than their own noise explains?"""
    two, own = result["agreement"], result["cycles"] or result["repeats"]
    if not two or not own:
        return ""
    share = f"two people agree on {two['rate']:.1%} of pairs"
    if two["flip_rate"] > 2 * own["flip_rate"]:
        return f"{share}, which one shared order would need a flip rate of {two['flip_rate']:.0%} for: people differ"
    return f"{share}, about what their own noise explains"


def to_do(result: JSONObject) -> list[str]:
    """What to do next, most important first."""
    lines = []
    if result["random"]["named"]:
        lines.append(
            f"look at {', '.join(result['random']['user_ids'][:3])}"
            f"{' and others' if result['random']['named'] > 3 else ''}, who answer like a coin; leave them out or "
            "let loss.annotation=mixture weigh them down"
        )
    position = result["position"]
    if position and (position["always_first"] or position["always_second"]):
        who = position["always_first"] + position["always_second"]
        lines.append(
            f"{len(who)} people take the same place on the screen whatever stands there: {', '.join(who[:3])}"
        )
    if _pushes(result):
        lines.append(
            "randomise order and frame, and train with loss.annotation=mixture, which takes the push out"
        )
    if not result["order"]:
        lines.append(
            "record what stood first (shown_first) and randomise it: without it a push cannot be seen"
        )
    if not result["repeats"]:
        lines.append(
            f"put {AUDIT_SHARE:.0%} of the questions again later, in the other order: only repeats tell an "
            "attitude from a coin"
        )
    return lines or ["nothing: train on it as it is"]


def table(result: JSONObject) -> list[str]:
    """The audit as lines `what  value  interval  meaning`; what was not recorded says so."""
    lines = []

    def line(name: str, value: str, meaning: str = "") -> None:
        lines.append(f"{name:<26} {value:<26} {meaning}".rstrip())

    def share(part: JSONObject, key: str) -> str:
        low, high = part["interval"]
        return f"{part[key]:.1%} ({low:.1%}–{high:.1%})"

    line("comparisons, people", f"{result['comparisons']:,}, {result['users']:,}")
    repeats = result["repeats"]
    if repeats:
        line("repeats agree", share(repeats, "agreement"), _implied(repeats, "couples"))
        for name in ("same_condition", "other_condition"):
            if repeats.get(name):
                line(
                    f"  {name.replace('_', ' ')}",
                    share(repeats[name], "agreement"),
                    _implied(repeats[name], "couples"),
                )
    else:
        line("repeats agree", "not recorded")
    for name, part in [("first shown wins", result["order"]), *(result["frames"] or {}).items()]:
        line(
            name,
            share(part, "share") if part else "not recorded",
            f"{part['rows']:,} answers" if part else "",
        )
    cycles = result["cycles"]
    line(
        "triads cyclic",
        share(cycles, "rate") if cycles else "no complete triad",
        _implied(cycles, "triads") if cycles else "",
    )
    two = result["agreement"]
    line(
        "two people agree",
        f"{two['rate']:.1%}" if two else "no shared pair",
        _implied(two, "people_pairs") if two else "",
    )
    odd = result["random"]
    line("answer like a coin", f"{odd['named']} of {odd['tested']} tested", ", ".join(odd["user_ids"][:5]))
    position = result["position"]
    if position:
        who = position["always_first"] + position["always_second"]
        line("always the same place", f"{len(who)} of {position['tested']} tested", ", ".join(who[:5]))
    seconds = result["seconds"]
    if seconds:
        line(
            "median seconds",
            f"{seconds['median']:.1f}",
            f"{len(seconds['fast_user_ids'])} people under a third of it",
        )
    return lines


def _implied(part: JSONObject, count: str) -> str:
    return f"flip rate {part['flip_rate']:.1%}, {part[count]:,} {count.replace('_', ' ')}"
