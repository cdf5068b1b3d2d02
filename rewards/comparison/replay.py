"""Replay of people never seen: ask, adapt, predict their last choices; and the controls that can say no.

Every person's comparisons fall into a pool (what may be asked) and a test set (what is predicted). Questions
come from the person's own pool, so every answer is one they gave. Accuracies are means over people of each
person's share of right predictions; ties are not scored, a margin of exactly 0 counts half. Intervals
resample people, not comparisons (`measures`).

Letters in shapes: U people scored, Q pool size and T test size (padded), S questions, K basis outputs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rewards.basis import likelihood, users
from rewards.basis.belief import Belief
from rewards.comparison.measures import SHARES, Interval, bootstrap, padded_rows, person_accuracy, person_mean
from rewards.errors import UserError
from rewards.methods.base import Comparisons
from rewards.people import acquisition, questions
from rewards.people.acquisition import AnswerModel
from rewards.types import Preferences

COUNTS = (0, 1, 2, 3, 5, 10, 20)
SWAP_DRAWS = 20


@dataclasses.dataclass(frozen=True)
class ColdStart:
    """Accuracy and loss after n answers, of people never seen.

    Attributes:
      people: int[U], indices into the user table of those with a pool and an untied test comparison.
      accuracy, loss_nats: n → interval; loss is −log P of the test answers at the posterior mean.
      person_accuracy: n → float[U].
      coef: n → float32[U, K], posterior means after n answers (as many as the person has, if fewer).
      fully_asked: n → number of people whose pool had n questions.
      questions: int[U, S], the comparison rows in the order asked; −1 once a pool is used up.
    """

    method: str
    people: np.ndarray
    accuracy: dict[int, Interval]
    loss_nats: dict[int, Interval]
    person_accuracy: dict[int, np.ndarray]
    coef: dict[int, np.ndarray]
    fully_asked: dict[int, int]
    questions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Swap:
    """Every person scored with the coefficients of another, after the same number of answers.

    Attributes:
      own, swapped: accuracy with one's own and with somebody else's coefficients.
      flip_rate: share of test predictions that change sign with the other's coefficients.
      difference: own − swapped, paired by person.
    """

    own: Interval
    swapped: Interval
    flip_rate: Interval
    difference: Interval


def cold_start(
    prior: Belief,
    prefs: Preferences,
    phi: np.ndarray,
    test_mask: np.ndarray,
    *,
    key: Key[Array, ""],
    people: np.ndarray | None = None,
    counts: tuple[int, ...] = COUNTS,
    method: str = "information",
    lapse: float = 0.0,
) -> ColdStart:
    """Replay the answers of `people` and predict their test comparisons after each of `counts` answers.

    Args:
      phi: float[I, K] features of every item, in the gauge of `prior`.
      test_mask: bool[N], comparisons that are predicted and never asked.
      key: of the random order of questions and of the bootstrap.
      people: user indices, all by default.
      method: "information" (expected information gain) or "random".
    Raises:
      UserError: unknown method, nobody with a test comparison, or nothing left to ask about.
    """
    if method not in ("information", "random"):
        raise UserError(f"method: {method!r} is unknown; use 'information' or 'random'")
    replay = _Replay.build(prefs, phi, test_mask, people)
    allowed = replay.pool.weight > 0
    if max(counts) > 0 and not allowed.any():
        raise UserError(
            f"{prefs.source}: every comparison of the {len(replay.people)} people is predicted and none is left "
            "to ask about; lower data.last_choices"
        )
    order_key, bootstrap_key = jax.random.split(key)
    orders = _random_orders(order_key, replay.people, replay.pool_rows.shape[1])
    steps = min(max(counts), allowed.shape[1])  # nobody has more answers, and nothing changes after the last
    coef, asked = _replay(
        np.asarray(prior.mean, np.float32),
        prior.precision,
        replay.pool_delta,
        replay.pool.outcome,
        allowed,
        orders,
        np.float32(lapse),
        steps=steps,
        informed=method == "information",
    )
    coef, asked = np.asarray(coef), np.asarray(asked)
    rows = np.where(asked >= 0, np.take_along_axis(replay.pool_rows, np.maximum(asked, 0), axis=1), -1)
    after = {n: coef[:, min(n, steps)] for n in counts}
    accuracy = {n: replay.accuracy(after[n]) for n in counts}
    loss = {n: replay.loss(after[n], lapse) for n in counts}
    return ColdStart(
        method=method,
        people=replay.people,
        accuracy={n: bootstrap(values, bootstrap_key, within=SHARES) for n, values in accuracy.items()},
        loss_nats={n: bootstrap(values, bootstrap_key, within=(0.0, np.inf)) for n, values in loss.items()},
        person_accuracy=accuracy,
        coef=after,
        fully_asked={n: int(np.sum(allowed.sum(axis=1) >= n)) for n in counts},
        questions=rows,
    )


def pooled_accuracy(
    scores: np.ndarray,
    prefs: Preferences,
    test_mask: np.ndarray,
    *,
    key: Key[Array, ""],
    people: np.ndarray | None = None,
) -> Interval:
    """Accuracy of one score for everybody, float[I] over items (such as `fit.fit_pooled`), same people."""
    replay = _Replay.build(prefs, np.asarray(scores, np.float32)[:, None], test_mask, people)
    return bootstrap(replay.accuracy(np.ones((len(replay.people), 1))), key, within=SHARES)


def swap(
    result: ColdStart,
    prefs: Preferences,
    phi: np.ndarray,
    test_mask: np.ndarray,
    *,
    key: Key[Array, ""],
    count: int = 10,
) -> Swap:
    """Score everybody with somebody else's coefficients after `count` answers.

    The mean over `SWAP_DRAWS` pairings; each is a random cyclic order of people, so nobody gets their own.
    Raises:
      UserError: one person only, or `count` was not replayed.
    """
    if count not in result.coef:
        raise UserError(f"swap: {count} answers were not replayed; use one of {sorted(result.coef)}")
    replay = _Replay.build(prefs, phi, test_mask, result.people)
    coef, num_people = result.coef[count], len(result.people)
    if num_people < 2:
        raise UserError("swap: one held-out person has nobody to swap with; hold out at least two people")
    order_key, bootstrap_key = jax.random.split(key)
    own_margin = replay.margins(coef)
    accuracy, flips = np.zeros(num_people), np.zeros(num_people)
    for draw_key in jax.random.split(order_key, SWAP_DRAWS):
        order = np.asarray(jax.random.permutation(draw_key, num_people))
        partner = np.empty(num_people, np.int64)
        partner[order] = np.roll(order, 1)
        accuracy += replay.accuracy(coef[partner]) / SWAP_DRAWS
        flipped = np.sign(replay.margins(coef[partner])) != np.sign(own_margin)
        flips += person_mean(flipped, replay.test) / SWAP_DRAWS
    own = replay.accuracy(coef)
    return Swap(
        own=bootstrap(own, bootstrap_key, within=SHARES),
        swapped=bootstrap(accuracy, bootstrap_key, within=SHARES),
        flip_rate=bootstrap(flips, bootstrap_key, within=SHARES),
        difference=bootstrap(own - accuracy, bootstrap_key),
    )


@dataclasses.dataclass(frozen=True)
class _Replay:
    """Pools and test sets of the people scored, with Δφ of every comparison in them."""

    people: np.ndarray
    pool: Comparisons
    pool_rows: np.ndarray
    pool_delta: Float[np.ndarray, "U Q K"]
    test: Comparisons
    test_delta: Float[np.ndarray, "U T K"]

    @classmethod
    def build(
        cls, prefs: Preferences, phi: np.ndarray, test_mask: np.ndarray, people: np.ndarray | None
    ) -> "_Replay":
        test_mask = np.asarray(test_mask, bool)
        scored = test_mask & (prefs.outcome != 0.5)
        wanted = np.arange(prefs.num_users) if people is None else np.asarray(people)
        has = np.bincount(prefs.user_index[scored], minlength=prefs.num_users) > 0
        kept = wanted[has[wanted]]
        if len(kept) == 0:
            raise UserError(
                f"{prefs.source}: nobody among {len(wanted)} people has a test comparison that is not a tie; "
                "check the split"
            )
        pool_rows = padded_rows(prefs.user_index, ~test_mask, kept)
        pool = Comparisons.of(prefs, pool_rows)
        test = Comparisons.of(prefs, padded_rows(prefs.user_index, scored, kept))
        return cls(kept, pool, pool_rows, _delta(phi, pool), test, _delta(phi, test))

    def margins(self, coef: np.ndarray) -> np.ndarray:
        """w_u · Δφ of every test comparison, [U, T], for coef[U, K]."""
        return np.einsum("utk,uk->ut", self.test_delta, coef)

    def accuracy(self, coef: np.ndarray) -> np.ndarray:
        """Share of each person's test comparisons predicted right by coef[U, K]; float64[U]."""
        return person_accuracy(self.margins(coef), self.test)

    def loss(self, coef: np.ndarray, lapse: float) -> np.ndarray:
        margins = self.margins(coef).astype(np.float32)
        loss = likelihood.negative_log_likelihood(margins, self.test.outcome, lapse)
        return person_mean(np.asarray(loss), self.test)


def _delta(phi: np.ndarray, pairs: Comparisons) -> np.ndarray:
    return np.asarray(phi[pairs.chosen] - phi[pairs.rejected], np.float32) * pairs.weight[..., None]


@functools.partial(jax.jit, static_argnames=("steps", "informed"))
def _replay(
    mean: Float[Array, " K"],
    prior_precision: Float[Array, "K K"],
    pool: Float[Array, "U Q K"],
    outcome: Float[Array, "U Q"],
    mask: Array,
    order: Float[Array, "U Q"],
    lapse: Float[Array, ""],
    *,
    steps: int,
    informed: bool,
):
    """Coefficients after 0..steps answers, [U, steps + 1, K], and the pool index asked at each, [U, steps].

    Answers are given weights 0 or 1 in the fixed pool, so one program serves every number of answers.
    """

    def person(pool, outcome, mask, order):
        def ask(carry, _):
            asked, coef, precision = carry
            scores = order
            if informed:
                belief = Belief.from_precision(coef, precision)
                scores = acquisition.information(belief, pool, AnswerModel.lapsing(lapse))
            allowed = mask & ~asked
            index = questions.best(scores, allowed)
            left = jnp.any(allowed)
            asked = asked.at[index].set(asked[index] | left)
            coef, precision = users.newton(
                mean, prior_precision, pool, outcome, asked.astype(jnp.float32), lapse
            )
            return (asked, coef, precision), (coef, jnp.where(left, index, -1))

        start = (jnp.zeros_like(mask), mean, prior_precision)
        _, (coefs, indices) = jax.lax.scan(ask, start, None, length=steps)
        return jnp.concatenate([mean[None], coefs]), indices

    return jax.vmap(person)(pool, outcome, mask, order)


def _random_orders(key: Key[Array, ""], people: np.ndarray, size: int) -> np.ndarray:
    """Scores whose falling order is a random order of each pool; a person's depends only on key and index."""

    def order(person):
        return jax.random.permutation(jax.random.fold_in(key, person), size)

    return np.asarray(jax.vmap(order)(jnp.asarray(people)), np.float32)


def chosen_order(
    prior: Belief,
    delta: np.ndarray,
    outcome: np.ndarray,
    present: np.ndarray,
    steps: int,
    lapse: float = 0.0,
) -> np.ndarray:
    """Questions in the order in which expected information gain asks them; int[U, steps], −1 when used up.

    Args:
      delta: float[U, Q, K], Δφ of what may be asked, in the gauge of `prior`; outcome[U, Q] its answers;
        present: bool[U, Q].
    """
    _, index = _replay(
        np.asarray(prior.mean, np.float32),
        prior.precision,
        np.asarray(delta, np.float32),
        np.asarray(outcome, np.float32),
        np.asarray(present, bool),
        np.zeros(present.shape, np.float32),
        np.float32(lapse),
        steps=steps,
        informed=True,
    )
    return np.asarray(index)
