"""docs/results/mutation.md: which seeded faults the tests caught, and which change nothing."""

from pathlib import Path
from typing import Any

_SYMMETRIC = "the nodes of the quadrature lie symmetrically about 0: the sum runs over the same points"
_NOISE = "the noise is symmetric: its negative has the same distribution"
# Changes that alter no result, with the reason; keyed by module.function and the beginning of what was changed.
EQUAL: dict[str, str] = {
    "acquisition.information: mean[:, None] + deviation": _SYMMETRIC,
    "acquisition.observe: mean[:, None] + deviation": _SYMMETRIC,
    "acquisition.predicted_accuracy: mean[:, None] + deviation": _SYMMETRIC,
    "conditioning.coef_of_users: population.user_mean[user] +": _NOISE,
    "conditioning.drawn: self.conditioning.mean + noise": _NOISE,
    "users.solve: matrix.shape[0] > UNROLLED": "two ways to solve the same system; a test holds them against each other",
    "fit.build: -1": "fills the place of items that no comparison names; nothing reads it",
}


def reason(entry: dict[str, Any]) -> str | None:
    """Why a change alters no result; None where it does."""
    place = f"{entry['module']}.{entry['function']}: {entry['change']}"
    return next((why for start, why in EQUAL.items() if place.startswith(start)), None)


def shares(results: list[dict[str, Any]]) -> tuple[int, int]:
    """Faults caught, and faults that could be."""
    judged = [entry for entry in results if reason(entry) is None]
    return sum(bool(entry["caught"]) for entry in judged), len(judged)


def write(path: Path, results: list[dict[str, Any]]) -> None:
    """The page from the results."""
    caught, judged = shares(results)
    lines = [
        "# Seeded faults",
        "",
        "<!-- Made by scripts/faults/mutate.py. -->",
        "",
        "One fault was seeded into every public function of the mathematics (a sign, an operator, a comparison, the branches",
        "of a `where`, a sum, a number), besides those that a review had found unnoticed; the tests of the module ran on each.",
        f"**{caught} of {judged} were caught ({caught / max(judged, 1):.1%})**, "
        f"{sum(is_fast(entry) for entry in results)} of them by the fast tier.",
        "",
        "| module | faults | caught | missed |",
        "|---|---|---|---|",
    ]
    for module in dict.fromkeys(entry["module"] for entry in results):
        own = [entry for entry in results if entry["module"] == module and reason(entry) is None]
        missed = [entry for entry in own if not entry["caught"]]
        named = ", ".join(f"`{entry['function']}`" for entry in missed)
        lines.append(f"| {module} | {len(own)} | {len(own) - len(missed)} | {named} |")
    lines += ["", "Changes that alter no result:", ""]
    lines += [
        f"- `{entry['module']}.{entry['function']}`, `{entry['change'].replace('→', 'to')}`: {why}."
        for entry in results
        if (why := reason(entry)) is not None
    ]
    if missed := [entry for entry in results if reason(entry) is None and not entry["caught"]]:
        lines += ["", "Missed:", ""]
        lines += [f"- `{entry['module']}.{entry['function']}`, `{entry['change']}`" for entry in missed]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def is_fast(entry: dict[str, Any]) -> bool:
    return bool(entry["caught"]) and entry.get("tier", "not slow") == "not slow" and reason(entry) is None
