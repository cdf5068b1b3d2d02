"""`chorus rewards fit` and `chorus rewards evaluate`: read, divide, embed, fit, store, replay."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rewards import evaluate as replay
from rewards import gauge, population, records, store
from rewards.data.read import read_preferences
from rewards.data.split import last_choices, split_people
from rewards.errors import UserError
from rewards.files import read_json, write_json
from rewards.fit import FitResult, fit_basis, fit_pooled
from rewards.types import Preferences, UserPosterior
from rlhf import encoder
from rlhf.metrics import MetricWriter
from rlhf.run import RESULT, Run

QUESTIONS, USERS = "questions.json", "users"
MAX_QUESTIONS = 2000


def fit(config: Any) -> dict[str, Any]:
    """Fit basis, population and training people; writes the reward run and returns its metrics.json.

    A finished run is not fitted again; an unfinished one starts over (the fit is short and deterministic).
    """
    prefs = read_preferences(config.data.path, config.data.split)
    training, held_out = split_people(prefs, config.data.held_out_people, config.data.split_seed)
    with Run.open(config.output_dir, config, "rewards") as run:
        if run.resumed and (run.directory / RESULT).is_file():
            store.load_reward_run(run.directory)  # names what is damaged
            return read_json(run.directory / RESULT)
        embeddings, settings = encoder.prepare(
            prefs, config.encoder.kind, config.model.name, config.encoder.layer, config.encoder.pool
        )
        train = prefs.select(training)
        with MetricWriter(run.directory, num_steps=config.fit.rounds, title="fit") as writer:
            fitted = fit_basis(
                train,
                embeddings,
                config.fit,
                encoder=settings,
                encoder_hash=settings["fingerprint"],
                on_round=lambda number, metrics: writer.write(
                    number + 1, {f"fit/{name}": value for name, value in metrics.items()}
                ),
            )
        # The lapse belongs to the likelihood under which coefficients were estimated, so it travels along.
        store.save_reward_run(run.directory, fitted.basis, fitted.prior, extra={"lapse": config.fit.lapse})
        phi = gauge.features(fitted.basis, embeddings, prefs.item_prompt)
        _write_questions(run.directory, prefs, phi)
        _write_people(run.directory, train, phi, fitted)
        _write_population(run.directory, train, fitted)
        result = _fit_result(config, prefs, train, held_out, phi, fitted)
        return _close(run, result)


def evaluate_rewards(config: Any) -> dict[str, Any]:
    """Replay held-out people with the run of the same configuration; adds `evaluation` to its metrics.json.

    Raises:
      UserError: the run has not been fitted, or was fitted with another configuration.
    """
    directory = Path(config.output_dir)
    if not (directory / RESULT).is_file():
        raise UserError(
            f"output_dir {directory}: no finished reward run; first `chorus rewards fit` this configuration"
        )
    prefs = read_preferences(config.data.path, config.data.split)
    training, held_out = split_people(prefs, config.data.held_out_people, config.data.split_seed)
    with Run.open(directory, config, "rewards") as run:
        stored = store.load_reward_run(directory)
        embeddings = encoder.embed_items(prefs, stored.basis.encoder)
        phi = gauge.features(stored.basis, embeddings, prefs.item_prompt)
        pooled = fit_pooled(prefs.select(training), embeddings, config.fit)
        evaluation = evaluate_people(config, prefs, held_out, phi, stored.prior, pooled)
        return _close(run, read_json(directory / RESULT) | {"evaluation": evaluation})


def _close(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """Write metrics.json and report.html; returns the former as it was written."""
    from rlhf.report import write_rewards_report  # matplotlib takes a second to import

    run.write_result(result)
    result = read_json(run.directory / RESULT)
    write_rewards_report(run.directory, result)
    return result


def evaluate_people(
    config: Any, prefs: Preferences, held_out: np.ndarray, phi: np.ndarray, prior: Any, pooled: np.ndarray
) -> dict[str, Any]:
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
    common: dict[str, Any] = {"people": people, "counts": settings.counts, "lapse": config.fit.lapse}
    chosen = replay.cold_start(prior, prefs, phi, test, key=chosen_key, **common)
    random = [
        replay.cold_start(prior, prefs, phi, test, key=key, method="random", **common)
        for key in jax.random.split(random_key, settings.seeds)
    ]
    result: dict[str, Any] = {
        "people": len(chosen.people),
        "pooled_accuracy": _interval(
            replay.pooled_accuracy(pooled, prefs, test, key=pooled_key, people=people)
        ),
        "accuracy": {n: _interval(value) for n, value in chosen.accuracy.items()},
        "accuracy_random": {
            n: _interval(
                replay.bootstrap(np.mean([draw.person_accuracy[n] for draw in random], axis=0), average_key)
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


def _interval(interval: replay.Interval) -> dict[str, float]:
    return dataclasses.asdict(interval)


def _fit_result(
    config: Any,
    prefs: Preferences,
    train: Preferences,
    held_out: np.ndarray,
    phi: np.ndarray,
    fitted: FitResult,
) -> dict[str, Any]:
    """What metrics.json says after the fit."""
    from rlhf.report import axis_items  # matplotlib takes a second to import

    margin = np.sum(fitted.coef_mean[train.user_index] * (phi[train.chosen] - phi[train.rejected]), axis=1)
    untied = train.outcome != 0.5
    return {
        "run_dir": str(config.output_dir),
        "num_basis": fitted.basis.num_basis,
        "axes": list(fitted.basis.gauge.names),
        "num_items": prefs.num_items,
        "training_people": len(np.unique(train.user_index)),
        "held_out_people": len(np.unique(prefs.user_index[held_out])),
        "training_comparisons": train.num_comparisons,
        "training_accuracy": float(np.mean(margin[untied] > 0)),
        "prior_mean": fitted.prior.mean,
        "prior_sd": np.sqrt(np.diag(fitted.prior.cov)),
        "candidates": [dataclasses.asdict(candidate) for candidate in fitted.candidates],
        "fit": fitted.metrics,
        "axis_items": axis_items(prefs, phi),
    }


def _write_questions(directory: Path, prefs: Preferences, phi: np.ndarray) -> None:
    """The pairs that may be asked: every distinct pair of the data, evenly thinned to MAX_QUESTIONS."""
    pairs = np.unique(np.sort(np.stack([prefs.chosen, prefs.rejected], axis=1), axis=1), axis=0)
    kept = (
        pairs[np.unique(np.linspace(0, len(pairs) - 1, MAX_QUESTIONS).astype(int))]
        if len(pairs) > MAX_QUESTIONS
        else pairs
    )
    questions = [
        {
            "prompt": prefs.prompts[prefs.item_prompt[a]],
            "first": prefs.item_text[a],
            "second": prefs.item_text[b],
            "delta_features": (phi[a] - phi[b]).astype(float).tolist(),
        }
        for a, b in kept.tolist()
    ]
    write_json(
        directory / QUESTIONS, {"basis": store.load_reward_run(directory).hash, "questions": questions}
    )


def _write_people(directory: Path, train: Preferences, phi: np.ndarray, fitted: FitResult) -> None:
    """One record for every training person, with the answers it was computed from."""
    identity = store.load_reward_run(directory).hash
    order = np.lexsort((np.arange(train.num_comparisons), train.choice, train.user_index))
    rows = np.split(order, np.flatnonzero(np.diff(train.user_index[order])) + 1)
    for own in rows:
        user = int(train.user_index[own[0]])
        answers = tuple(answer_of(train, phi, int(row)) for row in own)
        posterior = UserPosterior(fitted.coef_mean[user], fitted.coef_precision[user], len(answers))
        record = records.UserRecord(train.user_ids[user], identity, posterior, answers)
        write_json(records.path_of(directory / USERS, record.user_id), records.to_json(record))


def _write_population(directory: Path, train: Preferences, fitted: FitResult) -> None:
    """The training people's posteriors in one file: what training a policy draws coefficients from.

    `users/` grows with everybody who answers questions later; this file stays what was fitted.
    """
    counts = np.bincount(train.user_index, minlength=train.num_users)
    kept = np.flatnonzero(counts)
    population.save_people(
        directory,
        store.load_reward_run(directory).hash,
        [train.user_ids[user] for user in kept],
        fitted.coef_mean[kept],
        fitted.coef_precision[kept],
        counts[kept].tolist(),
    )


def answer_of(prefs: Preferences, phi: np.ndarray, row: int) -> records.Answer:
    """A comparison as an answer, with the time the data gives it."""
    chosen, rejected = int(prefs.chosen[row]), int(prefs.rejected[row])
    stamps = prefs.columns.get("timestamp")
    return records.make_answer(
        prefs.prompts[prefs.item_prompt[chosen]],
        prefs.item_text[chosen],
        prefs.item_text[rejected],
        float(prefs.outcome[row]),
        phi[chosen] - phi[rejected],
        None if stamps is None or stamps[row] is None else str(stamps[row]),
    )
