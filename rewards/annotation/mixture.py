"""Genuine, non-attitude or constructed: what kind of answer each question got, by EM.

A question is a pair put to a person, measured M ≥ 1 times under recorded cues c_m (direction towards the first
side). With s the margin of the first side, k the number of answers for it and slip rate e, its answers have
probability

    genuine        σ(s)(1−e)^k e^{M−k} + σ(−s) e^k (1−e)^{M−k}      an attitude, measured with slips
    non-attitude   2^{−M}                                           a coin
    constructed    Π_m σ(±κ·c_m)                                    made up from how the question was put

and kind j has probability π_u,j for person u. π_u is drawn to the population's π like a Dirichlet of
`concentration`; κ (one number a kind of cue) and e are shared by all. E-step: responsibilities ρ of the three
kinds, and the attitude behind a genuine answer, ã = σ((2k−M) log((1−e)/e) + s). M-step of the rewards: the
weighted Bradley–Terry loss −Σ ρ_G [ã log σ(s) + (1−ã) log σ(−s)].

What single answers cannot tell is held fixed. One answer has probability π_G σ(s) + π_N/2 + π_C σ(κ·c): e only
moves mass from π_G to π_N, so it is 0 without repeats; κ only moves mass between π_C and π_N, so it is `CUE_NATS`
unless enough questions were put twice under the same cue. Without a recorded cue the constructed kind is
nothing but a coin, and is left out.

Letters in shapes: N comparisons (rows), Q questions, U people, F kinds of cue.
Source: a latent class model (Dempster, Laird & Rubin 1977) of the three kinds of response that survey research
distinguishes (Converse 1964; Zaller & Feldman 1992).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import ArrayLike, Bool, Float, Int

from rewards.annotation import em
from rewards.annotation.em import CONSTRUCTED, GENUINE, NON_ATTITUDE
from rewards.annotation.measurements import Measurements, measure, same_cue
from rewards.basis import joint
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people.acquisition import AnswerModel
from rewards.types import Preferences

SAME_CUE = 50  # questions put twice under the same cue that κ is learned from at least
STEPS_IN_TURN = 20  # EM steps between two fits of the rewards: they move together, so neither runs ahead

Margins = tuple[np.ndarray, np.ndarray]
FitMargins = Callable[[np.ndarray, np.ndarray], Margins]
"""(weight[N], outcome[N]) → mean[N] and variance[N] of the margins chosen − rejected after fitting with them."""


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class MixtureConfig:
    """Settings of `fit_mixture`.

    Attributes:
      concentration: questions that the population counts for in every person's π_u.
      threshold: a person is abstained on when their share of genuine answers falls below it.
      cue_sd: prior standard deviation of every κ around `CUE_NATS`, nats.
      rounds: alternations with the fit of the rewards; the kinds are harder to tell without repeats, and it then
        takes more rounds.
      max_steps: EM steps when the margins are given.
    """

    concentration: Annotated[float, pydantic.Field(gt=0)] = 20.0
    threshold: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.35
    cue_sd: Annotated[float, pydantic.Field(gt=0)] = 2.0
    rounds: Annotated[int, pydantic.Field(ge=1)] = 20
    max_steps: Annotated[int, pydantic.Field(ge=1)] = 500


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A fitted mixture.

    Attributes:
      share: float[3], π of the population: genuine, non-attitude, constructed.
      kappa: float[F], nats a unit of cue; `kinds` names the cues.
      slip: e, share of genuine answers that miss the attitude.
      user_share: float[U, 3], π_u; the population's for people without questions.
      responsibility: float[N, 3], ρ of every row's question; π_u for ties, whose answer says nothing of its kind.
      attitude: float[N], P(the attitude is for `chosen`); ½ for ties.
      repeat: float[N], rows that share the row's question, the weight 1/M of each included.
      user_questions: int[U].
      abstain: bool[U], π_u,G below the threshold: use the population's taste for them.
      loss_nats: −log-likelihood a question. steps: EM steps used.
    """

    share: Float[np.ndarray, " 3"]
    kappa: Float[np.ndarray, " F"]
    kinds: tuple[str, ...]
    slip: float
    user_share: Float[np.ndarray, "U 3"]
    responsibility: Float[np.ndarray, "N 3"]
    attitude: Float[np.ndarray, " N"]
    repeat: Float[np.ndarray, " N"]
    user_questions: Int[np.ndarray, " U"]
    abstain: Bool[np.ndarray, " U"]
    loss_nats: float
    steps: int

    @property
    def weight(self) -> Float[np.ndarray, " N"]:
        """ρ_G of every row, divided among the rows of its question: weights for a fit on rows."""
        return (self.responsibility[:, GENUINE] * self.repeat).astype(np.float32)

    def record(self) -> JSONObject:
        """What the population's parameters are, as JSON."""
        return {
            "genuine": float(self.share[GENUINE]),
            "non_attitude": float(self.share[NON_ATTITUDE]),
            "constructed": float(self.share[CONSTRUCTED]),
            "kappa": dict(zip(self.kinds, self.kappa.tolist(), strict=True)),
            "slip": self.slip,
            "abstained_people": int(np.sum(self.abstain)),
        }

    def answer_model(self, cues: Mapping[str, Float[ArrayLike, "*M"]]) -> AnswerModel:
        """How the population answers a question once; `cues` by kind, each towards the first text.

        Slips are coin flips: π_G [(1−2e) σ(s) + e] = π_G (1−2e) σ(s) + 2e π_G/2. A kind of cue that was not recorded
        pulls nobody.
        """
        kappa = dict(zip(self.kinds, map(float, self.kappa), strict=True))
        pull = sum((kappa.get(kind, 0.0) * np.asarray(cue) for kind, cue in cues.items()), np.float64(0.0))
        genuine, non_attitude, constructed = map(float, self.share)
        flips = 2.0 * self.slip * genuine
        return AnswerModel(genuine - flips, non_attitude + flips, constructed, pull)


def fit_mixture(
    prefs: Preferences, margins: Margins | np.ndarray | FitMargins, config: MixtureConfig | None = None
) -> Mixture:
    """Fit the mixture to the answers of `prefs`.

    Args:
      margins: r_u(chosen) − r_u(rejected) of every row in nats, float[N], or with variances as a pair of
        arrays; or a function that fits the rewards with given weights and soft outcomes and returns such a
        pair. Then the two are fitted in turn, `config.rounds` times.
    Raises:
      UserError: no untied comparison, or margins that do not fit or are not finite.
    """
    config = config or MixtureConfig()
    data = measure(prefs)
    if not data.measured.any():
        raise UserError(
            f"{prefs.source}: all {prefs.num_comparisons} comparisons are ties; their kind of answer cannot be told"
        )
    if not callable(margins):
        return _em(prefs, data, _checked(prefs, margins), config, None, config.max_steps)
    mixture = None
    weight, outcome = row_weights(data), prefs.outcome
    for _ in range(config.rounds):
        mixture = _em(prefs, data, _checked(prefs, margins(weight, outcome)), config, mixture, STEPS_IN_TURN)
        weight, outcome = mixture.weight, mixture.attitude
    assert mixture is not None
    return mixture


def row_weights(data: Measurements) -> Float[np.ndarray, " N"]:
    """1/M for the M rows of a question, ties included; 0 for exact copies, which are no further answer."""
    rows = np.bincount(data.question, ~data.copy, len(data.user))
    return np.where(data.copy, 0.0, 1.0 / np.maximum(rows[data.question], 1)).astype(np.float32)


def genuine_by_topic(
    mixture: Mixture, prefs: Preferences, topic: Int[np.ndarray, " N"], config: MixtureConfig | None = None
) -> tuple[Float[np.ndarray, "U T"], Int[np.ndarray, "U T"]]:
    """π_G of every person on every topic, drawn to π_u,G like `concentration` questions, and their number.

    `topic` numbers each row's topic from 0 (such as `prefs.item_prompt[prefs.chosen]`). Where the result falls
    below the threshold on enough questions, use μ there.
    """
    config = config or MixtureConfig()
    counted = mixture.repeat * (prefs.outcome != 0.5)
    shape = (prefs.num_users, int(np.max(topic)) + 1)
    total, genuine = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (prefs.user_index, topic), counted)
    np.add.at(genuine, (prefs.user_index, topic), counted * mixture.responsibility[:, GENUINE])
    prior = config.concentration * mixture.user_share[:, GENUINE]
    share = (genuine + prior[:, None]) / (total + config.concentration)
    return share, np.rint(total).astype(np.int64)


def _em(
    prefs: Preferences,
    data: Measurements,
    margins: Margins,
    config: MixtureConfig,
    start: Mixture | None,
    max_steps: int,
) -> Mixture:
    on_device, repeats = _device_data(data, margins), bool(np.any(data.num_answers > 1))
    learned = same_cue(data) >= SAME_CUE
    num_kinds = len(data.kinds)
    if start is None:
        share = np.array([0.7, 0.2, 0.1]) if num_kinds else np.array([0.8, 0.2, 0.0])
        parts = (
            share,
            np.tile(share, (prefs.num_users, 1)),
            np.full(num_kinds, em.CUE_NATS),
            0.05 if repeats else 0.0,
        )
    else:
        parts = (start.share, start.user_share, start.kappa, start.slip)
    state = em.MixtureState(*(jnp.asarray(part, jnp.float32) for part in parts))
    fixed = (config.concentration, config.cue_sd, repeats, learned)
    settings = em.MixtureSettings(*(jnp.asarray(part, jnp.float32) for part in fixed))
    state, rho, attitude, loss, steps = em.fit(state, on_device, settings, max_steps)
    return _mixture(prefs, data, config, state, (np.asarray(rho), np.asarray(attitude)), loss, steps)


def _device_data(data: Measurements, margins: Margins) -> em.Questions:
    """Questions with E[log σ(±s)] under the belief about their margin."""
    num_questions = len(data.user)
    mean, var = (np.asarray(part, np.float32) for part in margins)
    sign = np.where(data.turned, -1.0, 1.0).astype(np.float32)
    rows = np.bincount(data.question, minlength=num_questions)
    s = (np.bincount(data.question, mean * sign, num_questions) / rows).astype(np.float32)
    v = (np.bincount(data.question, var, num_questions) / rows).astype(np.float32)
    one, zero = np.ones_like(s), np.float32(0)
    log_up = -joint.expected_loss(jnp.asarray(s), jnp.asarray(v), one, zero)
    log_down = -joint.expected_loss(jnp.asarray(-s), jnp.asarray(v), one, zero)
    cue, pattern = np.unique(data.cue, axis=0, return_inverse=True)
    count = np.zeros((num_questions, len(cue)), np.float32)
    np.add.at(count, (data.question, pattern.reshape(-1)), data.measured)
    wins = np.bincount(data.question, data.measured & ~data.turned, num_questions).astype(np.float32)
    answers = data.num_answers.astype(np.float32)
    return em.Questions(*map(jnp.asarray, (cue, count, data.user, wins, answers, log_up, log_down)))


def _mixture(
    prefs, data: Measurements, config: MixtureConfig, state: em.MixtureState, found, loss, steps
) -> Mixture:
    rho, attitude = found
    user_share = np.asarray(state.user_share, np.float64)
    tie = prefs.outcome == 0.5
    of_row = np.where(tie[:, None], user_share[prefs.user_index], rho[data.question])
    toward = np.where(data.turned, 1.0 - attitude[data.question], attitude[data.question])
    questions = np.bincount(data.user, data.num_answers > 0, prefs.num_users)
    return Mixture(
        share=np.asarray(state.share, np.float64),
        kappa=np.asarray(state.kappa, np.float64),
        kinds=data.kinds,
        slip=float(state.slip),
        user_share=user_share,
        responsibility=of_row,
        attitude=np.where(tie, 0.5, toward).astype(np.float32),
        repeat=row_weights(data),
        user_questions=questions.astype(np.int64),
        abstain=user_share[:, GENUINE] < config.threshold,
        loss_nats=float(loss),
        steps=int(steps),
    )


def _checked(prefs: Preferences, margins: Margins | np.ndarray) -> Margins:
    mean, var = margins if isinstance(margins, tuple) else (margins, np.zeros(len(margins)))
    mean, var = np.asarray(mean, np.float32), np.asarray(var, np.float32)
    if mean.shape != (prefs.num_comparisons,) or var.shape != mean.shape:
        raise UserError(
            f"margins: shape {mean.shape} for the {prefs.num_comparisons} comparisons of {prefs.source}; "
            "give one number a row"
        )
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        bad = int(np.flatnonzero(~(np.isfinite(mean) & np.isfinite(var)))[0])
        raise UserError(f"margins: row {prefs.row[bad]} of {prefs.source} has {mean[bad]}; it must be finite")
    return mean, var
