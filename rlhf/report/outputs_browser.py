"""The part of an evaluation's report in which its texts stand side by side: person × policy × prompt, with reasons."""

import json
from collections.abc import Sequence

import numpy as np

from rewards.files import JSONObject

MOST_BYTES = 2_500_000
"""Of texts in the page's browser, as they stand in the page; the files beside it have all of them."""
LONGEST_TEXT = 2_000
OWN = "own reward"
FEATURE_BYTES = 8
"""Of one number of φ in the page."""


def browser(result: JSONObject, people: Sequence[str], rows: Sequence[JSONObject]) -> tuple[JSONObject, str]:
    """What the page's browser reads, and what it does not hold.

    A cell is a person and a prompt: for each policy its completions and their mean worth, to this person by their own reward
    where there are rewards; d, the disagreement, is the greatest less the least worth. Where all texts would not fit, the
    cells with the greatest disagreement are kept.

    Reasons: worth by a person's own reward is Σ_k w_k φ_k. `coef` are w, and `phi`, text by text, φ less its mean over all
    completions of the prompt, of which only differences mean something; the page multiplies them.
    """
    policies, axes = list(result["policies"]), list(result.get("axes", []))
    judge = result["judges"][0] if result["judges"] else None
    by_axis = bool(axes) and judge == OWN
    coef = (
        np.array([one["coefficients"] for one in result["persons"]])
        if by_axis
        else np.zeros((len(people), 0))
    )
    prompts: dict[int, str] = {}
    told: dict[tuple[str, int], dict[str, list[JSONObject]]] = {}
    features: dict[int, list[list[float]]] = {}
    for row in rows:
        prompts.setdefault(row["prompt_number"], _prompt(row["prompt"]))
        told.setdefault((row["person"], row["prompt_number"]), {}).setdefault(row["policy"], []).append(row)
        features.setdefault(row["prompt_number"], []).append(_features(row) if by_axis else [])
    middle = {prompt: np.mean(found, axis=0) for prompt, found in features.items()}
    cells = []
    for number, person in enumerate(people):
        for prompt in prompts:
            shared = told.get(("everybody", prompt), {})
            own = told.get((person, prompt), {})
            texts = [own.get(policy) or shared.get(policy) or [] for policy in policies]
            worth = [_worth(part, judge, coef[number]) for part in texts]
            known = [value for value in worth if value is not None]
            spread = max(known) - min(known) if known else 0.0
            cells.append((spread, number, prompt, texts, worth))
    cells.sort(key=lambda cell: -cell[0])
    table: dict[tuple[int, str], int] = {}
    phi: list[list[float]] = []
    used, kept, room = set(), [], MOST_BYTES
    for spread, number, prompt, texts, worth in cells:
        wanted = [[_cut(row["text"]) for row in part] for part in texts]
        new = {text for part in wanted for text in part if (prompt, text) not in table}
        room -= sum(_size(text) + FEATURE_BYTES * coef.shape[1] for text in new)
        room -= 0 if prompt in used else _size(prompts[prompt])
        room -= 60 + sum(8 * len(part) + 10 for part in wanted)
        if room < 0 and kept:
            break
        used.add(prompt)
        for row, text in (
            (row, text) for pair in zip(texts, wanted, strict=True) for row, text in zip(*pair, strict=True)
        ):
            if (prompt, text) not in table:
                table[prompt, text] = len(table)
                phi.append(np.round(_features(row) - middle[prompt], 3).tolist() if by_axis else [])
        places = [[table[prompt, text] for text in part] for part in wanted]
        kept.append({"p": number, "q": prompt, "d": round(spread, 4), "t": places, "w": worth})
    asked = [prompts[place] if place in used else "" for place in range(max(prompts, default=-1) + 1)]
    said = f"All {len(cells):,} pairs of person and prompt."
    if len(kept) < len(cells):
        said = (
            f"The {len(kept):,} pairs of person and prompt with the greatest disagreement, of {len(cells):,}; "
            "samples.jsonl has all."
        )
    if by_axis:
        said += " Under an answer: which axes of the person's own reward speak for it or against it, in nats more than the mean "
        said += "answer to the prompt."
    data: JSONObject = {"policies": policies, "people": list(people), "prompts": asked}
    data |= {"texts": [text for _, text in table], "cells": kept}
    if by_axis:
        data |= {"axes": axes, "coef": np.round(coef, 4).tolist(), "phi": phi}
    return data, said


def _features(row: JSONObject) -> list[float]:
    return list(row["features"].values())


def _size(text: str) -> int:
    """Bytes of a text in the page's script, where < and > take six."""
    written = json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
    return len(written) + 5 * (written.count(b"<") + written.count(b">"))


def _worth(part: Sequence[JSONObject], judge: str | None, coef: np.ndarray) -> float | None:
    """Mean worth of completions, by a person's own coefficients where φ is known."""
    if judge is None:
        return None
    if coef.size:
        known = [float(np.dot(coef, _features(row))) for row in part]
    else:
        known = [row["worth"][judge] for row in part if np.isfinite(row["worth"][judge])]
    return round(float(np.mean(known)), 4) if known else None


def _prompt(prompt: object) -> str:
    if isinstance(prompt, str):
        return _cut(prompt)
    assert isinstance(prompt, list), "messages"
    return _cut("\n".join(f"{message['role']}: {message['content']}" for message in prompt))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"
