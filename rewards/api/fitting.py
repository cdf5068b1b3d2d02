"""`rewards.fit`: preferences → `FittedRewards`. The command `chorus rewards fit` takes the same steps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from rewards import methods
from rewards.api.encoders import Encoder, encoder_for
from rewards.api.fitted import Fit, FittedRewards
from rewards.api.reading import PreferenceSet
from rewards.basis import users
from rewards.basis.gauge import axis_names
from rewards.basis.store import FittedBasis
from rewards.data.read import read_preferences, require_people
from rewards.data.sources import Source
from rewards.errors import UserError
from rewards.methods import AUTO
from rewards.methods.base import FittedModel, ItemTable, OnRound
from rewards.methods.linear import LinearFitted
from rewards.methods.store import extra_of, model_hash
from rewards.people.book import Book
from rewards.types import Preferences

Probe = Callable[..., Sequence[float]]


def fit(
    prefs: Preferences | PreferenceSet | Source,
    *,
    encoder: Encoder | None = None,
    method: str = AUTO,
    seed: int = 0,
    on_round: OnRound | None = None,
    probes: Mapping[str, Probe] | None = None,
    **settings: object,
) -> FittedRewards:
    """Fit what there is to like (φ), what people are like (the population), and everybody's coefficients.

    Args:
      prefs: `rewards.read(...).training`; or the whole set, whose held-out people are then left out of the fit but
        whose pairs may be asked about; or anything that `read_preferences` takes.
      encoder: how a text becomes numbers, `rlhf.encoder("smollm2-135m")`. None: the features or attributes that the
        data bring.
      method: "auto" fits house or crossed, whichever predicts people left out better (`rewards.methods.auto`), and
        `FittedRewards.method` says which; or a name: house, crossed, or a published model: aggregate, per_user, pref, rfm,
        lore, pal_a, pal_b, offset, mixture, columns, vpl, spl, card. Only those that are linear in coefficients have people
        and train policies.
      seed: of everything random in the fit.
      on_round: called as on_round(number, metrics) while it goes on.
      probes: what axes are to be named after: functions f(completions, prompts=…) → one number each, as TRL has them
        (`rewards.basis.named`); `rlhf.phi.columns.bank` has some.
      settings: of the method; for auto and house num_basis, dims, whitening, ridge, lapse, shrinkage, rounds, steps,
        held_out, adapt_answers, marginalised (`rewards.basis.fit.FitConfig`).
    Returns:
      the rewards, in memory.
    Raises:
      UserError: comparisons do not say who chose, no encoder reads the texts, no such method or setting.
    """
    if isinstance(prefs, PreferenceSet):
        table, train = prefs.all, prefs.training
    else:
        table = train = prefs if isinstance(prefs, Preferences) else read_preferences(prefs, people=False)
    require_people(train, "rewards.fit")
    known = {field.name for field in dataclasses.fields(methods.estimator(method))}
    if "seed" in known:
        settings = {"seed": seed} | settings
    estimator = methods.make(method, settings)
    reads = encoder_for(table, encoder)
    embeddings, stored = reads.prepare(table)
    items = ItemTable.of(table, embeddings, stored, reads.embed)
    model = estimator.fit(items, train, on_round=on_round)
    if probes:
        model = with_probes(model, items, list(probes), probed(table, probes))
    return fitted_rewards(model, items, train, encoder=reads, seed=seed)


def with_probes(
    model: FittedModel, table: ItemTable, names: Sequence[str], values: Float[np.ndarray, "I P"]
) -> LinearFitted:
    """A linear model with axes named after probes, whose values on every item are given.

    Raises:
      UserError: the model has no axes, or φ shows none of the probes.
    """
    if not isinstance(model, LinearFitted):
        raise UserError(f"probes: {model.kind} has no axes that could be named; remove probes, or fit house")
    if model.basis.gauge.names != axis_names(model.basis.num_basis):
        raise UserError(
            f"probes: the axes of {model.kind} have names ({', '.join(model.basis.gauge.names)}); remove probes"
        )
    return model.with_probes(table, values, names)


def probed(prefs: Preferences, probes: Mapping[str, Probe]) -> Float[np.ndarray, "I P"]:
    """What probes say of every item.

    Raises:
      UserError: one returns something else than a number for each completion.
    """
    texts, prompts = list(prefs.item_text), [prefs.prompts[prompt] for prompt in prefs.item_prompt]
    columns = []
    for name, probe in probes.items():
        try:
            column = np.asarray(probe(texts, prompts=prompts), np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"probes: {name!r} fails: {error}; it is called as f(completions, prompts=…)"
            ) from None
        if column.shape != (len(texts),):
            raise UserError(
                f"probes: {name!r} returns {column.shape}, not one number for each of {len(texts)} completions"
            )
        columns.append(column)
    return np.stack(columns, axis=1)


def fitted_rewards(
    model: FittedModel, table: ItemTable, train: Preferences, *, encoder: Encoder | None, seed: int
) -> FittedRewards:
    """A fitted model with its people, in memory.

    Args:
      table: all items with their embeddings, as in the fit. train: the comparisons that were fitted on.
      encoder: reads new texts. seed: of the simulated people behind the error bars.
    """
    report = getattr(model, "report", {})
    metrics = {name: float(value) for name, value in report.items() if isinstance(value, int | float)}
    if not isinstance(model, LinearFitted):
        return FittedRewards(model.kind, model, encoder, metrics, None, None)
    people = with_posteriors(model, table, train)
    made = Fit(table.prefs, train, people.features(table), people, seed)
    basis = FittedBasis(model.basis, model.prior, model_hash(model), extra_of(model))
    book = Book(basis, lambda: made.records(basis.hash))
    return FittedRewards(model.kind, model, encoder, metrics, basis, book, made)


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
