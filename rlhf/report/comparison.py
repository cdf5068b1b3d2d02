"""The comparison of reward models, for report.html and the terminal: one table, four cells, controls."""

from rewards.files import JSONObject
from rlhf.report import page

_CELLS = {
    "seen_seen": "seen person, seen prompt",
    "seen_unseen": "seen person, unseen prompt",
    "unseen_seen": "unseen person, seen prompt",
    "unseen_unseen": "unseen person, unseen prompt",
}
_COLUMNS = {
    "accuracy": "share of unseen people's last choices predicted right; mean over people, 95 % over people",
    "gain": "accuracy minus that of the aggregate model, person by person; above zero throughout: it helps",
    "n = 0": "accuracy before any answer: a gain here is a better model, not a personal one",
    "chosen": "gain when the questions are chosen by expected information gain (models with a Gaussian belief)",
    "swapped": "accuracy with another person's answers: as high as one's own, and the answers say nothing",
    "turns": "share of predictions that turn with another's answers / when one's own answers are inverted",
    "worst tenth": "mean accuracy of the tenth of people predicted worst",
    "gain / lose": "shares of people predicted better / worse than by the aggregate model",
    "loss": "−log P of a choice, nats; a coin has 0.693",
    "identical people": "gain when all answers are redrawn from the aggregate model: it must not exceed zero",
    "planted tastes": "gain when all answers are redrawn from known, widely spread tastes: it must exceed zero",
}


def sections(evaluation: JSONObject) -> list[str]:
    """Sections of the page; none without a comparison."""
    board = evaluation.get("comparison")
    if not board:
        return []
    leak = evaluation.get("leak") or {}
    head, rows = table(board)
    curve_head, curve_rows = curve(board)
    cell_head, cell_rows = cells(board)
    return [
        page.section(
            "Which reward model helps on this data?",
            page.table(head, rows),
            page.paragraph(board["sentence"]),
            _unavailable(board),
            page.details("What the columns mean", page.table(["column", "meaning"], _COLUMNS.items())),
        ),
        page.section(
            "How many answers, model by model?", page.table(curve_head, curve_rows, numbers=_all(curve_head))
        ),
        page.section(
            "Seen and unseen people, seen and unseen prompts",
            page.table(cell_head, cell_rows),
            *(
                page.paragraph(f"{_CELLS[cell]}: not available, {why}.", "note")
                for cell, why in _missing(board)
            ),
        ),
        page.section(
            "Is anything given away?",
            page.paragraph(f"Leak check of the texts: {leak['message']}.") if leak else "",
            _base(board),
        ),
    ]


def table(board: JSONObject) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the one table, best accuracy first; cells are text."""
    answers = str(board["answers"])
    head = ["model", f"accuracy, n = {answers}", *list(_COLUMNS)[1:]]
    models = sorted(
        board["models"].items(), key=lambda item: item[1]["accuracy"][answers]["mean"], reverse=True
    )
    return head, [_row(name, model, answers) for name, model in models]


def brief_table(board: JSONObject) -> tuple[list[str], list[list[str]]]:
    """The columns of `table` that a terminal has room for."""
    head, rows = table(board)
    kept = [head.index(name) for name in head if name not in ("n = 0", "chosen", "turns", "loss")]
    return [head[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _row(name: str, model: JSONObject, answers: str) -> list[str]:
    ignoring = " (ignores the user)" if model["ignores_user"] and name != "aggregate" else ""
    controls = model.get("controls", {})
    return [
        name + ignoring,
        span(model["accuracy"][answers]),
        span(model["gain"][answers], "+"),
        f"{next(iter(model['accuracy'].values()))['mean']:.3f}" if "0" in model["accuracy"] else "",
        span(model["gain_chosen"][answers], "+") if "gain_chosen" in model else "",
        f"{model['swapped']['mean']:.3f}",
        f"{model['swap_flip_rate']['mean']:.0%} / {model['label_flip_rate']['mean']:.0%}",
        f"{model['worst_decile']:.3f}",
        f"{model['gaining']:.0%} / {model['losing']:.0%}",
        f"{model['loss_nats'][answers]['mean']:.3f}",
        _control(controls.get("identical_people")),
        _control(controls.get("planted_tastes")),
    ]


def _control(result: JSONObject | None) -> str:
    if result is None:
        return ""
    if "gain" not in result:
        return f"not fitted: {result['reason']}"
    return f"{result['gain']['mean']:+.3f} {'passed' if result['passed'] else 'FAILED'}"


def curve(board: JSONObject) -> tuple[list[str], list[list[object]]]:
    """Accuracy after every number of random answers."""
    counts = list(next(iter(board["models"].values()))["accuracy"])
    rows = [[name, *(model["accuracy"][n] for n in counts)] for name, model in board["models"].items()]
    return ["model", *(f"n = {n}" for n in counts)], rows


def cells(board: JSONObject) -> tuple[list[str], list[list[str]]]:
    """Accuracy and gain in every cell that exists."""
    first = next(iter(board["models"].values()))["cells"]
    rows = [
        [
            name,
            *(
                f"{span(model['cells'][cell]['accuracy'])}; gain {span(model['cells'][cell]['gain'], '+')}"
                for cell in first
            ),
        ]
        for name, model in board["models"].items()
    ]
    return ["model", *(f"{_CELLS[cell]} ({first[cell]['people']} people)" for cell in first)], rows


def span(interval: dict[str, float], sign: str = "") -> str:
    """mean (low to high) with three decimals."""
    mean, low, high = (f"{round(interval[part], 3) + 0.0:{sign}.3f}" for part in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _missing(board: JSONObject) -> list[tuple[str, str]]:
    return list(board["missing_cells"].items())


def _unavailable(board: JSONObject) -> str:
    return page.table(["not fitted", "why"], board["unavailable"].items())


def _base(board: JSONObject) -> str:
    rows = [
        [name, span(values["accuracy"]), span(values["gain"], "+")]
        for name, values in board["base_rewards"].items()
    ]
    note = (
        "Rewards that know no person: the text's length, with the sign that fits the training people, and the share of "
        "its training comparisons an item won. No reward model was given."
    )
    return page.paragraph(note, "note") + page.table(["base reward", "accuracy", "gain"], rows)


def _all(head: list[str]) -> tuple[int, ...]:
    return tuple(range(1, len(head)))
