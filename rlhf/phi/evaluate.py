"""`chorus rewards evaluate`: the run's own replay, then the comparison of models with its controls."""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np

from rewards.basis.fit import fit_pooled
from rewards.basis.readout import Readout
from rewards.comparison import compare, replay, scoreboard
from rewards.comparison.measures import SHARES, Interval, bootstrap
from rewards.data.leak import leak_check
from rewards.data.split import last_choices
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods.base import ItemTable, RewardModel
from rewards.methods.linear import LinearFitted
from rewards.types import Preferences
from rlhf.phi import encoder
from rlhf.phi.config import RewardsConfig
from rlhf.phi.fit import close, divided, embedded, read_by, settled, stored_model
from rlhf.phi.folds import divisions_of, folds_of
from rlhf.phi.methods import AUTO, HOUSE, check_names, item_table, make_model, model_names, training_answers
from rlhf.run import inputs
from rlhf.run.config.load import load, to_dict
from rlhf.run.directory import CONFIG, RESULT, Run, read_result

_LOG = logging.getLogger("chorus")


def evaluate_rewards(config: RewardsConfig) -> JSONObject:
    """Replay held-out people with the run of the same configuration; adds `evaluation` to its metrics.json.

    `evaluation` may differ from what the run was fitted with; all else must not.
    Raises:
      UserError: the run has not been fitted, or was fitted with another configuration; an unknown model.
    """
    directory = Path(config.output_dir)
    if not (directory / RESULT).is_file():
        raise UserError(
            f"output_dir {directory}: no finished reward run; first `chorus rewards fit` this configuration"
        )
    config = settled(config)
    judged = config.fit.model if config.fit.model != AUTO else read_result(directory)["model"]
    models = compared_models(config, judged)
    prefs, training, held_out = divided(config)
    fitted = dataclasses.replace(config, evaluation=load(directory / CONFIG, [], RewardsConfig).evaluation)
    with Run.open(directory, fitted, "rewards") as run:
        inputs.check(run, read_by(config, prefs), begun=True)
        model = stored_model(directory)
        if isinstance(model, LinearFitted):
            encoded_with = model.basis.encoder
            embeddings = encoder.embed_items(prefs, encoded_with)
        else:
            embeddings, encoded_with = embedded(config, prefs)
        evaluation: JSONObject = {}
        in_folds = folds_of(config, prefs) > 1 and bool(
            models
        )  # the run's own replay would be of a few people alone
        if isinstance(model, LinearFitted) and model.kind == HOUSE and not in_folds:
            phi = Readout.of(model.basis).features(embeddings, prefs.item_prompt)
            pooled = fit_pooled(prefs.select(training), embeddings, config.fit.house())
            evaluation = evaluate_people(config, prefs, held_out, phi, model, pooled)
        if models:
            board = compare_models(config, models, item_table(prefs, embeddings, encoded_with), judged)
            if evaluation:
                evaluation["differs"] = differs(config, board)
            else:
                evaluation = replay_of(board)
            evaluation |= {"comparison": board, "leak": leak_check(prefs)}
        evaluation["settings"] = to_dict(config.evaluation)
        evaluation.setdefault("tested_choices", config.data.last_choices)
        return close(run, read_result(directory) | {"evaluation": evaluation})


def replay_of(board: JSONObject) -> JSONObject:
    """The figures of `evaluate_people` for a model without the house posterior, from the comparison: the judged
    model fitted on the comparison's training cell."""
    own, answers = board["models"][board["judged"]], board["answers"]
    return {
        "people": board["people"],
        "tested_choices": board["tested_choices"],
        "pooled_accuracy": board["models"][compare.AGGREGATE]["accuracy"][answers],
        "accuracy": own.get("accuracy_chosen", own["accuracy"]),
        "accuracy_random": own["accuracy"],
        "loss_nats": own["loss_nats"],
        "swap": {
            "answers": answers,
            "own": own["accuracy"][answers],
            "swapped": own["swapped"],
            "flip_rate": own["swap_flip_rate"],
            "difference": own["own_minus_swapped"],
        },
    }


def differs(config: RewardsConfig, board: JSONObject) -> str:
    """Why the replay of the stored model and the comparison's row of the same name are not one number."""
    kept = [
        "everybody's last choices",
        *(["held-out prompts or texts"] if len(board["missing_cells"]) < 2 else []),
    ]
    return (
        f"The replay is of the stored model, fitted on all answers of the training people; for the comparison {board['judged']} "
        f"was fitted again without {' and '.join(kept)}, like every model beside it, so its figures differ a little. The "
        "first line goes by the comparison."
    )


def compared_models(config: RewardsConfig, judged: str) -> dict[str, RewardModel]:
    """Name → estimator of `evaluation.models`, the aggregate model and the `judged` one always among them.

    Raises:
      UserError: an unknown model or setting.
    """
    check_names(config)
    wanted = config.evaluation.models
    if wanted == () and judged == HOUSE:
        return {}
    names = model_names() if wanted == "all" else tuple(wanted or ())
    names = tuple(dict.fromkeys((compare.AGGREGATE, judged, *names)))
    return {name: make_model(config, name) for name in names}


def compare_models(
    config: RewardsConfig, models: dict[str, RewardModel], table: ItemTable, judged: str
) -> JSONObject:
    """The scoreboard on the division of `config`, or on its folds of people."""
    settings = config.evaluation
    return scoreboard.compare(
        models,
        table,
        divisions_of(config, table.prefs),
        scoreboard.Settings(settings.counts, settings.seeds, config.seed, settings.controls),
        judged=judged,
        weigh=lambda table, training: training_answers(config, table, training)[0],
        report=_LOG.info,
    )


def evaluate_people(
    config: RewardsConfig,
    prefs: Preferences,
    held_out: np.ndarray,
    phi: np.ndarray,
    model: LinearFitted,
    pooled: np.ndarray,
) -> JSONObject:
    """Cold-start curve with chosen and random questions, swap and pooled model, on people under `held_out`.

    Random orders are repeated `evaluation.seeds` times and averaged by person before the interval is taken.
    """
    settings = config.evaluation
    test = last_choices(prefs, config.data.last_choices) & held_out
    people = np.unique(prefs.user_index[held_out])
    # One key each: a key is consumed once.
    chosen_key, random_key, average_key, pooled_key, swap_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    common: JSONObject = {"people": people, "counts": settings.counts, "lapse": model.rule.lapse}
    chosen = replay.cold_start(model.prior, prefs, phi, test, key=chosen_key, **common)
    random = [
        replay.cold_start(model.prior, prefs, phi, test, key=key, method="random", **common)
        for key in jax.random.split(random_key, settings.seeds)
    ]
    result: JSONObject = {
        "people": len(chosen.people),
        "pooled_accuracy": _interval(
            replay.pooled_accuracy(pooled, prefs, test, key=pooled_key, people=people)
        ),
        "accuracy": {n: _interval(value) for n, value in chosen.accuracy.items()},
        "accuracy_random": {
            n: _interval(
                bootstrap(
                    np.mean([draw.person_accuracy[n] for draw in random], axis=0), average_key, within=SHARES
                )
            )
            for n in settings.counts
        },
        "loss_nats": {n: _interval(value) for n, value in chosen.loss_nats.items()},
        "fully_asked": chosen.fully_asked,
        "person_accuracy": chosen.person_accuracy,
    }
    answers = max((n for n in settings.counts if n <= 10), default=settings.counts[0])
    if answers > 0 and len(chosen.people) > 1:
        swap = replay.swap(chosen, prefs, phi, test, key=swap_key, count=answers)
        result["swap"] = {"answers": answers} | {
            field.name: _interval(getattr(swap, field.name)) for field in dataclasses.fields(swap)
        }
    return result


def _interval(interval: Interval) -> dict[str, float]:
    return dataclasses.asdict(interval)
