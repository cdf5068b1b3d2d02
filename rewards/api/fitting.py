"""`rewards.fit`: preferences → `FittedRewards`. The command `chorus rewards fit` takes the same steps."""

import dataclasses

from rewards import methods
from rewards.api.encoders import Encoder, encoder_for
from rewards.api.fitted import Fit, FittedRewards
from rewards.api.reading import PreferenceSet
from rewards.basis import users
from rewards.basis.store import FittedBasis
from rewards.data.read import read_preferences, require_people
from rewards.data.sources import Source
from rewards.methods import AUTO
from rewards.methods.base import FittedModel, ItemTable, OnRound
from rewards.methods.linear import LinearFitted
from rewards.methods.store import extra_of, model_hash
from rewards.people.book import Book
from rewards.types import Preferences


def fit(
    prefs: Preferences | PreferenceSet | Source,
    *,
    encoder: Encoder | None = None,
    method: str = AUTO,
    seed: int = 0,
    on_round: OnRound | None = None,
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
    return fitted_rewards(model, items, train, encoder=reads, seed=seed)


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
