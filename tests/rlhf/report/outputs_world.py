"""An evaluation of policies made of random words, without a model: what `write_outputs_report` is given."""

import dataclasses

import numpy as np

from rlhf.evaluation.outputs import run, tables
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.evaluation.outputs.judging import Judged, _swapped
from rlhf.evaluation.outputs.people import Person
from rlhf.evaluation.outputs.policies import Source
from rlhf.evaluation.outputs.samples import Written
from rlhf.phi.reward import PromptRows
from rlhf.policy.generation import Completion
from rlhf.run.config.load import build
from rlhf.run.directory import plain

AXES = ("warmth", "taste 1 (longer, says “price”)")
POLICIES = ("own", "all", "reference", "best")


def made(people=4, prompts=5, number=1, words=30, text=lambda plain: plain, name=lambda plain: plain):
    """(result, matrices, names of people, rows); `text` and `name` change what policies and prompts, and people, are."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{number}" for number in range(500)])
    asked = tuple(text(f"prompt {place} of many?") for place in range(prompts))
    written = []
    for place, policy in enumerate(POLICIES):
        personal = policy in ("own", "best")
        shape = (people if personal else 1, prompts, number)
        completions = [
            [
                [
                    Completion(text(" ".join(rng.choice(vocabulary, words))), words, -60.0 - place, True, ())
                    for _ in range(number)
                ]
                for _ in range(prompts)
            ]
            for _ in range(shape[0])
        ]
        source = Source(
            name(policy), "here", "f" * 64, policy == "own", False, best_of=8 if policy == "best" else 1
        )
        reference, tokens = np.full(shape, -62.0), np.full(shape, words)
        written.append(Written(source, completions, reference, tokens, True))
    features = [rng.normal(0.3 * place, 1.0, (*one.shape, 2)) for place, one in enumerate(written)]
    coefs = rng.normal(0.7, 1.0, (people, 2))
    worth = [
        np.einsum("uk,uhnk->uhn", coefs, np.broadcast_to(phi, (people, *phi.shape[1:]))) for phi in features
    ]
    matrices, gains = zip(
        *(
            _swapped(
                rng.normal(size=(people, people * prompts * number)),
                np.arange(people * prompts * number).reshape(people, prompts, number),
            )
            if one.source.personal
            else (None, None)
            for one in written
        ),
        strict=True,
    )
    judged = Judged(
        {"own reward": worth}, list(matrices), list(gains), {}, axes=tuple(map(text, AXES)), features=features
    )
    whom = [Person(name(f"person {place}"), "held-out", coefs[place]) for place in range(people)]
    rows = PromptRows(asked, np.arange(1, prompts + 1, dtype=np.int32), {}, "here")
    world = run.World([one.source for one in written], written[2].source, None, whom, rows, None)
    values = {"seed": 0, "output_dir": "out", "policies": list(POLICIES), "prompts": "p"}
    config = build(values, OutputsConfig, "test")
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, num_samples=number))
    result = plain(run.summary(config, world, written, judged))
    shown = {
        one.source.name: matrix.tolist()
        for one, matrix in zip(written, matrices, strict=True)
        if matrix is not None
    }
    return (
        result,
        shown,
        [one.name for one in whom],
        [plain(row) for row in tables.sample_rows(whom, asked, written, judged)],
    )
