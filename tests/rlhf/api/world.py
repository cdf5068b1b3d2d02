"""A tiny model, people of two tastes about numbered items, and rewards fitted on them."""

import numpy as np

ITEMS = 12
QUESTION = "Which ?"
FIT = {"num_basis": 2, "dims": 4, "rounds": 3}


def table(num_people=16, pairs=14):
    """Half of the people like large numbers, half small ones."""
    rng, rows = np.random.default_rng(0), []
    for person in range(num_people):
        for _ in range(pairs):
            a, b = rng.choice(ITEMS, 2, replace=False)
            if (a > b) != (person % 2 == 0):
                a, b = b, a
            texts = {"prompt": QUESTION, "chosen": f"item {a}", "rejected": f"item {b}"}
            rows.append(texts | {"user_id": f"p{person:02}"})
    return rows
