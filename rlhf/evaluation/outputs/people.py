"""For whom policies write: people never seen, people by name, the average person, and the ends of the population.

sparse    the training people with the fewest answers
median    those nearest to the median distance from μ
extreme   those farthest from μ;  distance² = (w − μ)ᵀ Σ⁻¹ (w − μ)
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rewards.basis.store import RewardRun
from rewards.data.split import keep_people, split_people
from rewards.errors import UserError, meant
from rewards.people import records
from rewards.people.population import People as Known
from rewards.people.population import load_people
from rewards.types import Preferences, Prompt
from rlhf.evaluation import held_out
from rlhf.evaluation.outputs.config import OutputsConfig
from rlhf.phi import encoder
from rlhf.run.config.common import PeopleDataConfig

_LOG = logging.getLogger("chorus")
HELD_OUT, POPULATION = "held-out", "population"
BUCKETS = ("sparse", "median", "extreme")
DEFAULT_COUNT = 5
EVERYBODY = "everybody"


class Answer(NamedTuple):
    """What somebody preferred to what; a tie says nothing and is no answer."""

    prompt: Prompt
    preferred: str
    other: str


@dataclasses.dataclass(frozen=True)
class Person:
    """Attributes:
    name: as in tables, distinct. group: held-out, population, sparse, median, extreme or named.
    coef: float64[K] coefficients; None where nobody in particular is meant.
    answers: their own, in the order in which they were asked; empty where the data has none.
    """

    name: str
    group: str
    coef: np.ndarray | None
    answers: tuple[Answer, ...] = ()


def chosen(
    config: OutputsConfig, run: RewardRun | None, data: PeopleDataConfig | None, prefs: Preferences | None
) -> list[Person]:
    """The people of a configuration, each once, in its order.

    Raises:
      UserError: somebody unknown, or held-out people without the data they come from.
    """
    if run is None:
        return [Person(EVERYBODY, EVERYBODY, None)]
    found: dict[str, Person] = {}
    for word in config.people:
        for person in _group(word, config, run, data, prefs):
            found.setdefault(person.name, person)
    return [_answered(one, config, prefs) for one in found.values()]


def _answered(person: Person, config: OutputsConfig, prefs: Preferences | None) -> Person:
    """With the first of their answers in the data, but for held-out people, who have been asked, and the average person."""
    if person.answers or prefs is None or person.group == POPULATION or person.name not in prefs.user_ids:
        return person
    rows = np.flatnonzero(prefs.user_index == prefs.user_ids.index(person.name))
    rows = rows[np.argsort(prefs.choice[rows], kind="stable")]
    return dataclasses.replace(person, answers=_answers(prefs, rows)[: config.answers])


def _answers(prefs: Preferences, rows: np.ndarray) -> tuple[Answer, ...]:
    return tuple(
        Answer(
            prefs.prompts[prefs.item_prompt[prefs.chosen[row]]],
            prefs.item_text[prefs.chosen[row]],
            prefs.item_text[prefs.rejected[row]],
        )
        for row in rows
        if row >= 0 and prefs.outcome[row] != 0.5
    )


def _group(
    word: str,
    config: OutputsConfig,
    run: RewardRun,
    data: PeopleDataConfig | None,
    prefs: Preferences | None,
) -> list[Person]:
    if word == HELD_OUT:
        if prefs is None or data is None:
            raise UserError(
                f"people: held-out people come from preferences, and {run.directory} does not say which; give data"
            )
        return _held_out(config, run, data, prefs)
    if word == POPULATION:
        return [known(POPULATION, run)]
    if word in BUCKETS:
        trained = load_people(run)
        places = bucket(word, trained, run, config.count or DEFAULT_COUNT)
        return [_person(trained.user_ids[i], word, trained.posteriors[i].mean) for i in places]
    return [known(word, run)]


def bucket(word: str, known: Known, run: RewardRun, count: int) -> Sequence[int]:
    """Places among the training people."""
    away = np.stack([np.asarray(one.mean) for one in known.posteriors]) - np.asarray(run.prior.mean)
    distance = np.sqrt(np.einsum("uk,kl,ul->u", away, np.asarray(run.prior.precision), away))
    keys = {
        "sparse": np.array([one.num_answers for one in known.posteriors]),
        "median": np.abs(distance - np.median(distance)),
        "extreme": -distance,
    }
    return np.argsort(keys[word], kind="stable")[:count].tolist()


def known(name: str, run: RewardRun) -> Person:
    """Somebody by name, or the average person.

    Raises:
      UserError: nobody of this name has answered.
    """
    if name == POPULATION:
        return Person(POPULATION, POPULATION, np.asarray(run.prior.mean, np.float64))
    if records.path_of(run.users, name).is_file():
        return _person(name, "named", records.load(run.users, name, run).posterior.mean)
    trained = load_people(run)
    if name in trained.user_ids:
        return _person(name, "named", trained.posteriors[trained.user_ids.index(name)].mean)
    words = [HELD_OUT, POPULATION, *BUCKETS, *trained.user_ids]
    advice = meant(name, words, f"{', '.join(words[:5])}, or the name of somebody who has answered")
    raise UserError(f"people: {run.directory} knows nobody called {name!r}; {advice}")


def _held_out(
    config: OutputsConfig, run: RewardRun, data: PeopleDataConfig, prefs: Preferences
) -> list[Person]:
    """Coefficients after a few questions chosen among their recorded choices, and those answers."""
    prefs = keep_people(prefs, data.min_comparisons, data.max_people)
    _, held = split_people(prefs, data.held_out_people, data.split_seed)
    wanted = np.unique(prefs.user_index[held])[: config.count]
    found = held_out.asked(
        run,
        prefs,
        encoder.items_phi(run.basis, prefs),
        held,
        wanted,
        answers=config.answers,
        last=data.last_choices,
        seed=config.seed,
    )
    coef = found.coef[config.answers]
    if (short := len(found.people) - found.fully_asked[config.answers]) > 0:
        _LOG.warning(
            f"answers {config.answers}: {short} of {len(found.people)} held-out people have fewer; all of theirs are used"
        )
    return [
        dataclasses.replace(_person(prefs.user_ids[user], HELD_OUT, own), answers=_answers(prefs, rows))
        for user, own, rows in zip(found.people, coef, found.questions[:, : config.answers], strict=True)
    ]


def _person(name: str, group: str, coef: object) -> Person:
    return Person(name, group, np.asarray(coef, np.float64))
