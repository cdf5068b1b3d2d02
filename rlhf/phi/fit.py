"""`chorus rewards fit`: read, divide, embed, fit, store."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from rewards.api.fitting import fitted_rewards, with_probes
from rewards.basis import projection, rails, store
from rewards.comparison.measures import padded_rows
from rewards.data.completions import read_completions
from rewards.data.read import read_preferences
from rewards.data.split import keep_people, split_people
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods.base import Comparisons, FittedModel, ItemTable
from rewards.methods.linear import LinearFitted
from rewards.methods.store import load_model
from rewards.types import Preferences
from rlhf.phi import encoder, sentence
from rlhf.phi.columns import table as columns
from rlhf.phi.columns.table import made_of
from rlhf.phi.columns.table import summary as columns_summary
from rlhf.phi.config import RewardsConfig
from rlhf.phi.folds import folds_of, judged_on
from rlhf.phi.methods import (
    AUTO,
    HOUSE,
    check_names,
    item_table,
    make_model,
    num_rounds,
    training_answers,
    unread_settings,
)
from rlhf.policy import store as policy_store
from rlhf.run import inputs
from rlhf.run.config.load import load
from rlhf.run.directory import CONFIG, REPORT, RESULT, Run, read_result
from rlhf.run.metrics import FILE as METRICS
from rlhf.run.metrics import MetricWriter

_LOG = logging.getLogger("chorus")


def fit(config: RewardsConfig) -> JSONObject:
    """Fit basis, population and training people; writes the reward run and returns its metrics.json.

    A finished run is not fitted again; an unfinished one starts over (the fit is short and deterministic).
    """
    check_names(config)  # what is wrong is named before anything is embedded
    config = settled(config)
    estimator = make_model(config, config.fit.model)
    prefs, training, held_out = divided(config)
    folds_of(config, prefs)  # what cannot be judged afterwards is refused now
    with Run.open(config.output_dir, config, "rewards") as run:
        done = run.resumed and (run.directory / RESULT).is_file()
        inputs.check(run, read_by(config, prefs), begun=done)
        if done:
            stored_model(run.directory)
            if not (run.directory / REPORT).is_file():
                close(run, read_result(run.directory))
            return run.stored_result()
        if note := unread_settings(config):
            _LOG.warning(note)
        embeddings, settings = embedded(config, prefs)
        table, train = item_table(prefs, embeddings, settings), prefs.select(training)
        answers, kinds = training_answers(config, table, train)
        try:
            with MetricWriter(
                run.directory, num_steps=num_rounds(estimator), title="fit", track=config.track
            ) as writer:
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
        fitted = _named(config, table, fitted)
        made = fitted_rewards(fitted, table, train, encoder=None, seed=config.seed)
        made.write(run.directory)
        if config.rails:
            set_rails(run.directory, config.rails)
        result = _fit_result(config, table, train, held_out, fitted)
        result["judged_on"] = judged_on(config, prefs, held_out)
        if kinds:
            result["annotation"] = kinds
        if settings["kind"] == "columns":
            result["columns"] = columns_summary(settings)
        if made.fit is not None:
            result |= _axes_result(prefs, made.fit.phi, made.fit.people)
            if config.probes:
                result["probes"] = made.fit.people.report["probes"]
            result["axis_meanings"] = {
                name: {"words": found.words, "explained": found.explained}
                for name, found in made.meanings.items()
            }
        return close(run, result)


def _named(config: RewardsConfig, table: ItemTable, fitted: FittedModel) -> FittedModel:
    """The model with axes named after `probes`, where there are any; says which of them φ does not show."""
    if not config.probes:
        return fitted
    measured = columns.evaluate(table.prefs, columns.as_they_are(config.probes))
    made = with_probes(fitted, table, measured.names, measured.values)
    for name, probe in made.report["probes"].items():
        if probe["refused"]:
            _LOG.warning(f"probes: no axis is named {name!r}: {probe['refused']}")
    return made


def settled(config: RewardsConfig) -> RewardsConfig:
    """A folder fitted when house was the default holds that run still: auto there is house."""
    path = Path(config.output_dir) / CONFIG
    if config.fit.model != AUTO or not path.is_file():
        return config
    try:
        stored = load(path, [], RewardsConfig).fit.model
    except UserError:
        return config  # what is wrong with it is said when the run is opened
    return (
        dataclasses.replace(config, fit=dataclasses.replace(config.fit, model=HOUSE))
        if stored == HOUSE
        else config
    )


def set_rails(directory: Path, given: JSONObject) -> None:
    """Put the rails of a configuration beside the basis that was just fitted.

    Raises:
      UserError: the model has no basis, an axis that is none, or limits that no coefficients meet.
    """
    run = store.load_reward_run(directory)
    found = projection.stated_for(given, run.basis.gauge.names, run.hash, run.prior, "rails")
    rails.write(directory, found, "the configuration of the fit")


def read_by(config: RewardsConfig, prefs: Preferences) -> dict[str, dict[str, str]]:
    """What a fit reads: the answers, and what its encoder is made of."""
    found = {"data.path": {str(config.data.path): inputs.content(prefs)}}
    name = config.model.name
    if config.encoder.kind in encoder.MODELS and name is not None:
        of = sentence.parts_of if config.encoder.kind == sentence.KIND else policy_store.parts_of
        found["model.name"] = of(name)
    if config.encoder.reference is not None:
        place = config.encoder.reference
        found["encoder.reference"] = {place: inputs.content(read_completions(place))}
    return found | made_of((*config.encoder.columns, *config.probes))


def stored_model(directory: Path) -> FittedModel:
    """The model of a finished run; names what is damaged, of the files that others read too."""
    fitted = load_model(directory)
    if isinstance(fitted, LinearFitted):
        store.load_reward_run(directory)
    return fitted


def divided(config: RewardsConfig) -> tuple[Preferences, np.ndarray, np.ndarray]:
    """The preferences of `config.data`, and bool[N] masks of training and of held-out people."""
    prefs = read_preferences(config.data.path, config.data.split, columns=config.data.columns)
    prefs = keep_people(prefs, config.data.min_comparisons, config.data.max_people)
    return prefs, *split_people(prefs, config.data.held_out_people, config.data.split_seed)


def embedded(config: RewardsConfig, prefs: Preferences) -> tuple[np.ndarray, JSONObject]:
    """Embeddings of all items, and the settings that rebuild them."""
    part = config.encoder
    return encoder.prepare(
        prefs, part.kind, config.model.name, part.layer, part.pool, part.columns, part.reference
    )


def close(run: Run, result: JSONObject) -> JSONObject:
    """Write report.html and then metrics.json; returns the latter as it was written."""
    from rlhf.report import rewards_verdict, write_rewards_report

    result = result | {"verdict": rewards_verdict(result)._asdict()}
    write_rewards_report(run.directory, result)
    run.write_result(result)
    return read_result(run.directory)


def _fit_result(
    config: RewardsConfig, table: ItemTable, train: Preferences, held_out: np.ndarray, fitted: FittedModel
) -> JSONObject:
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
        "last_choices": config.data.last_choices,
        "training_comparisons": train.num_comparisons,
        "training_accuracy": float(np.nansum(right * np.sum(rows >= 0, axis=1)) / np.sum(rows >= 0)),
        "policy_refusal": fitted.policy_refusal,
        "candidates": report.pop("candidates", []),
        "choice": report.pop("choice", None),
        "fit": {name: value for name, value in report.items() if isinstance(value, int | float)},
    }


def _axes_result(prefs: Preferences, phi: np.ndarray, fitted: LinearFitted) -> JSONObject:
    """What metrics.json says besides about a model with a basis."""
    from rlhf.report import axis_items

    return {
        "num_basis": fitted.basis.num_basis,
        "axes": list(fitted.basis.gauge.names),
        "prior_mean": fitted.prior.mean,
        "prior_sd": fitted.prior.sd,
        "axis_items": axis_items(prefs, phi),
    }
