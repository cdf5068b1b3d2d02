"""The comparison of reward models, for report.html and the terminal: one table, four cells, controls."""

from rewards.files import JSONObject
from rlhf.report import page

_CELLS = {
    "seen_seen": "known people, known texts",
    "seen_unseen": "known people, new texts",
    "unseen_seen": "new people, known texts",
    "unseen_unseen": "new people, new texts",
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
    "off by": "mean distance between stated probabilities and what happens, percentage points; + in brackets: too sure",
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
            _same_thing(evaluation),
            _references_note(board),
            _unavailable(board),
            page.details("What the columns mean", page.table(["column", "meaning"], _COLUMNS.items())),
        ),
        page.section(
            "How many answers, model by model?", page.table(curve_head, curve_rows, numbers=_all(curve_head))
        ),
        page.section(
            "Known and new people, known and new texts",
            page.paragraph(
                "A policy writes its own texts: what counts for it stands under new texts. Known people were part of the fit, "
                "new ones answer questions first; no comparison with a new text was part of the fit (where single texts are held "
                "out instead of prompts, the other text of a pair may be known).",
                "note",
            ),
            page.table(cell_head, cell_rows),
            *(
                page.paragraph(f"{_CELLS[cell]}: not available, {why}.", "note")
                for cell, why in _missing(board)
            ),
        ),
        page.section(
            "Is anything given away?",
            page.paragraph(f"Leak check of the texts: {leak['message']}.") if leak else "",
            _repeated(board),
            _base(board),
        ),
        page.section("What could this data have shown?", _planted(board)),
    ]


def table(board: JSONObject) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the one table, best accuracy first; cells are text."""
    answers = str(board["answers"])
    head = ["model", f"accuracy, n = {answers}", *list(_COLUMNS)[1:]]
    rows = sorted(
        everything(board).items(), key=lambda item: item[1]["accuracy"][answers]["mean"], reverse=True
    )
    return head, [
        _row(name, model, answers, name in board["models"] and name != "aggregate") for name, model in rows
    ]


def everything(board: JSONObject) -> JSONObject:
    """Models and the references that know no person."""
    return board["models"] | board.get("references", {})


def brief_table(board: JSONObject) -> tuple[list[str], list[list[str]]]:
    """The columns of `table` that a terminal has room for."""
    head, rows = table(board)
    kept = [
        head.index(name) for name in head if name not in ("n = 0", "chosen", "turns", "off by", "gain / lose")
    ]
    return [head[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _row(name: str, model: JSONObject, answers: str, personal: bool) -> list[str]:
    ignoring = " (ignores the user)" if model["ignores_user"] and personal else ""
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
        _off_by(model.get("reliability")),
        _control(controls.get("identical_people")),
        _control(controls.get("planted_tastes")),
    ]


def _off_by(found: JSONObject | None) -> str:
    return f"{100 * found['error']:.1f} ({100 * found['surer']:+.1f})" if found else ""


def _control(result: JSONObject | None) -> str:
    if result is None:
        return ""
    if "gain" not in result:
        return f"not fitted: {result['reason']}"
    return f"{result['gain']['mean']:+.3f} {'passed' if result['passed'] else 'FAILED'}"


def curve(board: JSONObject) -> tuple[list[str], list[list[object]]]:
    """Accuracy after every number of random answers."""
    counts = list(next(iter(board["models"].values()))["accuracy"])
    rows = [[name, *(model["accuracy"][n] for n in counts)] for name, model in everything(board).items()]
    return ["model", *(f"n = {n}" for n in counts)], rows


def cells(board: JSONObject) -> tuple[list[str], list[list[str]]]:
    """Accuracy and gain in every cell that exists."""
    first = next(iter(board["models"].values()))["cells"]
    rows = [
        [
            name,
            *(
                f"{span(model['cells'][cell]['accuracy'])}; gain {span(model['cells'][cell]['gain'], '+')}"
                + (
                    f"; {model['cells'][cell]['loss_nats']['mean']:.3f} nats"
                    if "loss_nats" in first[cell]
                    else ""
                )
                for cell in first
            ),
        ]
        for name, model in everything(board).items()
    ]
    return ["model", *(f"{_CELLS[cell]} ({first[cell]['people']} people)" for cell in first)], rows


def span(interval: dict[str, float], sign: str = "") -> str:
    """mean (low to high) with three decimals."""
    mean, low, high = (f"{round(interval[part], 3) + 0.0:{sign}.3f}" for part in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _same_thing(evaluation: JSONObject) -> str:
    return page.paragraph(evaluation["differs"], "note") if evaluation.get("differs") else ""


def _references_note(board: JSONObject) -> str:
    if not board.get("references"):
        return ""
    return page.paragraph(
        "Item Bradley–Terry gives each text one strength from how often it won, with text it adds what the text says; "
        "nothing of either is personal. A gain over one model for everybody that is none over these is about the texts.",
        "note",
    )


def _repeated(board: JSONObject) -> str:
    found = board.get("repeated_texts")
    if not found:
        return ""
    if found["share"] == 0:
        return page.paragraph("No tested comparison holds a text that the same person was asked about.")
    said = f"{found['share']:.0%} of the tested comparisons hold a text that the same person was asked about"
    if "gain_without" in found:
        said += f"; on the others the gain of {board['judged']} is {span(found['gain_without'], '+')}"
    return page.paragraph(f"{said}. evaluation.distinct_texts=true uses each text once a person.")


def _planted(board: JSONObject) -> str:
    rows = [
        [f"{size['points']:g} points", span(size["gain"], "+"), "found" if size["found"] else "not found"]
        for size in board.get("planted") or []
    ]
    note = (
        "All answers are redrawn from known tastes over the same texts, people and questions. A taste is worth as many points "
        "as knowing it predicts more choices than knowing what all people share. Found: answers are shown to help."
    )
    found = page.table(["planted taste", f"gain of {board['judged']}", ""], rows)
    return page.paragraph(note, "note") + found if rows else ""


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
