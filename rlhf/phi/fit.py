"""`chorus rewards fit`: read, divide, embed, fit, store."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rewards import hashed
from rewards.basis import store, users
from rewards.comparison.replay import padded_rows
from rewards.data.read import read_preferences
from rewards.data.split import keep_people, split_people
from rewards.errors import UserError
from rewards.methods.base import Comparisons, FittedModel, ItemTable
from rewards.methods.linear import LinearFitted
from rewards.methods.store import load_model, save_model
from rewards.people import population, records
from rewards.types import Preferences, UserPosterior
from rlhf.phi import calibrate, encoder
from rlhf.phi.columns.table import summary as columns_summary
from rlhf.phi.methods import (
    check_names,
    item_table,
    make_model,
    num_rounds,
    training_answers,
    unread_settings,
)
from rlhf.run.directory import RESULT, Run, read_result
from rlhf.run.metrics import FILE as METRICS
from rlhf.run.metrics import MetricWriter

QUESTIONS = "questions.json"
MAX_QUESTIONS = 2000


def fit(config: Any) -> dict[str, Any]:
    """Fit basis, population and training people; writes the reward run and returns its metrics.json.

    A finished run is not fitted again; an unfinished one starts over (the fit is short and deterministic).
    """
    check_names(config)  # what is wrong is named before anything is embedded
    estimator = make_model(config, config.fit.model)
    prefs, training, held_out = divided(config)
    with Run.open(config.output_dir, config, "rewards") as run:
        if run.resumed and (run.directory / RESULT).is_file():
            stored_model(run.directory)
            return run.stored_result()
        if note := unread_settings(config):
            print(note, file=sys.stderr, flush=True)
        embeddings, settings = embedded(config, prefs)
        table, train = item_table(prefs, embeddings, settings), prefs.select(training)
        answers, kinds = training_answers(config, table, train)
        try:
            with MetricWriter(run.directory, num_steps=num_rounds(estimator), title="fit") as writer:
                fitted = answers.fit(
                    estimator,
                    table,
                    on_round=lambda number, metrics: writer.write(
                        number + 1, {f"fit/{name}": value for name, value in metrics.items()}
                    ),
                )
        except UserError:
            # A fit starts over: with nothing kept of it, the mended configuration may use the same output_dir.
            (run.directory / METRICS).unlink(missing_ok=True)
            raise
        identity = save_model(run.directory, fitted)
        result = _fit_result(config, table, train, held_out, fitted)
        if kinds:
            result["annotation"] = kinds
        if settings["kind"] == "columns":
            result["columns"] = columns_summary(settings)
        if isinstance(fitted, LinearFitted):
            fitted = with_posteriors(fitted, table, train)
            phi = fitted.features(table)
            write_questions(run.directory, identity, prefs, phi)
            _write_people(run.directory, identity, train, phi, fitted)
            _write_population(run.directory, identity, train, fitted)
            calibrate.write(run.directory, identity, train, phi, fitted, config.seed)
            result |= _axes_result(prefs, phi, fitted)
        return close(run, result)


def stored_model(directory: Path) -> FittedModel:
    """The model of a finished run; names what is damaged, of the files that others read too."""
    fitted = load_model(directory)
    if isinstance(fitted, LinearFitted):
        store.load_reward_run(directory)
    return fitted


def with_posteriors(fitted: LinearFitted, table: ItemTable, train: Preferences) -> LinearFitted:
    """The same model with everybody's Laplace posterior under its population N(μ, Σ).

    Records are recomputable from their answers by that one rule, whatever rule the model itself adapts by; for
    the house model the two are the same.
    """
    phi = fitted.features(table)
    mean, precision = users.posteriors(
        fitted.prior,
        train.user_index,
        phi[train.chosen] - phi[train.rejected],
        train.outcome,
        num_users=train.num_users,
        lapse=fitted.rule.lapse,
    )
    return dataclasses.replace(fitted, coef_mean=mean, coef_precision=precision)


def divided(config: Any) -> tuple[Preferences, np.ndarray, np.ndarray]:
    """The preferences of `config.data`, and bool[N] masks of training and of held-out people."""
    prefs = read_preferences(config.data.path, config.data.split)
    prefs = keep_people(prefs, config.data.min_comparisons, config.data.max_people)
    return prefs, *split_people(prefs, config.data.held_out_people, config.data.split_seed)


def embedded(config: Any, prefs: Preferences) -> tuple[np.ndarray, dict[str, Any]]:
    """Embeddings of all items, and the settings that rebuild them."""
    part = config.encoder
    return encoder.prepare(
        prefs, part.kind, config.model.name, part.layer, part.pool, part.columns, part.reference
    )


def close(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """Write metrics.json and report.html; returns the former as it was written."""
    from rlhf.report import write_rewards_report

    run.write_result(result)
    result = read_result(run.directory)
    write_rewards_report(run.directory, result)
    return result


def _fit_result(
    config: Any, table: ItemTable, train: Preferences, held_out: np.ndarray, fitted: FittedModel
) -> dict[str, Any]:
    """What metrics.json says after the fit of any model."""
    prefs = table.prefs
    rows = padded_rows(train.user_index, train.outcome != 0.5, np.arange(train.num_users))
    right = fitted.score(table, fitted.seen(), Comparisons.of(train, rows))
    report = dict(getattr(fitted, "report", {}))
    return {
        "run_dir": str(config.output_dir),
        "model": fitted.kind,
        "num_items": prefs.num_items,
        "training_people": len(np.unique(train.user_index)),
        "held_out_people": len(np.unique(prefs.user_index[held_out])),
        "training_comparisons": train.num_comparisons,
        "training_accuracy": float(np.nansum(right * np.sum(rows >= 0, axis=1)) / np.sum(rows >= 0)),
        "policy_refusal": fitted.policy_refusal,
        "candidates": report.pop("candidates", []),
        "fit": {name: value for name, value in report.items() if isinstance(value, int | float)},
    }


def _axes_result(prefs: Preferences, phi: np.ndarray, fitted: LinearFitted) -> dict[str, Any]:
    """What metrics.json says besides about a model with a basis."""
    from rlhf.report import axis_items

    return {
        "num_basis": fitted.basis.num_basis,
        "axes": list(fitted.basis.gauge.names),
        "prior_mean": fitted.prior.mean,
        "prior_sd": np.sqrt(np.diag(fitted.prior.cov)),
        "axis_items": axis_items(prefs, phi),
    }


def write_questions(directory: Path, identity: str, prefs: Preferences, phi: np.ndarray) -> None:
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
    hashed.write_record(directory / QUESTIONS, {"basis": identity, "questions": questions})


def _write_people(
    directory: Path, identity: str, train: Preferences, phi: np.ndarray, fitted: LinearFitted
) -> None:
    """One record for every training person, with the answers it was computed from."""
    order = np.lexsort((np.arange(train.num_comparisons), train.choice, train.user_index))
    rows = np.split(order, np.flatnonzero(np.diff(train.user_index[order])) + 1)
    for own in rows:
        user = int(train.user_index[own[0]])
        answers = tuple(answer_of(train, phi, int(row)) for row in own)
        posterior = UserPosterior(fitted.coef_mean[user], fitted.coef_precision[user], len(answers))
        record = records.UserRecord(train.user_ids[user], identity, posterior, answers)
        records.write(directory / store.USERS, record)


def _write_population(directory: Path, identity: str, train: Preferences, fitted: LinearFitted) -> None:
    """The training people's posteriors in one file: what training a policy draws coefficients from.

    `users/` grows with everybody who answers questions later; this file stays what was fitted.
    """
    counts = np.bincount(train.user_index, minlength=train.num_users)
    kept = np.flatnonzero(counts)
    population.save_people(
        directory,
        identity,
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
