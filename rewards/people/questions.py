"""Which question to ask next, which questions to ask at once, and when to stop: host side of `acquisition`.

Letters in shapes: M candidates, K basis outputs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.people import acquisition
from rewards.people.acquisition import AnswerModel

# Scores closer than this are the same question to us: rounding must not decide between twins.
TIE = 1e-5

POOL_SIZES = (64, 256, 1024, 2048)  # then multiples of the last
MAX_REFERENCE = 500  # pairs over which accuracy is predicted


def best(scores: Float[Array, " M"], allowed: Bool[Array, " M"]) -> Array:
    """Index of the first allowed candidate within `TIE` of the largest score. Traceable.

    `TIE` is in nats for information and d-optimal; it is relative where scores are larger than 1.
    """
    scores = jnp.where(allowed, scores, -jnp.inf)
    largest = jnp.max(scores)
    return jnp.argmax(scores >= largest - TIE * jnp.maximum(1.0, jnp.abs(largest)))


@functools.partial(jax.jit, static_argnames="rule")
def _scores(belief, population, candidates, allowed, model, key, *, rule):
    scores = acquisition.RULES[rule](belief, candidates, model, key, population)
    return scores, best(scores, allowed)


@functools.partial(jax.jit, static_argnames=("rule", "count"))
def _batch(belief, population, candidates, allowed, model, key, *, rule, count):
    """Greedy: choose, pretend that it was answered without knowing how, choose again; chosen[count], scores."""

    def pick(carry, step):
        belief, allowed = carry
        one_key = jax.random.fold_in(key, step)
        scores = acquisition.RULES[rule](belief, candidates, model, one_key, population)
        index = best(scores, allowed)
        one = AnswerModel(*(jnp.broadcast_to(part, allowed.shape)[index] for part in model))
        belief = acquisition.observe(belief, candidates[index], one)
        return (belief, allowed.at[index].set(False)), (index, scores[index])

    _, chosen = jax.lax.scan(pick, (belief, allowed), jnp.arange(count))
    return chosen


_accuracy_gain = jax.jit(acquisition.accuracy_gain)


def choose(
    posterior: Belief,
    candidates: np.ndarray,
    *,
    allowed: np.ndarray | None = None,
    lapse: float = 0.0,
    rule: str = "information",
    prior: Belief | None = None,
    model: AnswerModel | None = None,
    key: Key[Array, ""] | None = None,
) -> tuple[int, np.ndarray]:
    """The best candidate under a rule, and the score of every one, float32[M] (nats for information, d-optimal).

    Args:
      candidates: float[M, K], Δφ of every possible question.
      allowed: bool[M]; False for what was asked before. None allows all.
      rule: a name of `acquisition.RULES`.
      prior: tells what of the belief came from answers; only `pref` asks for it.
      model: how answers come about; by default genuine but for `lapse`.
      key: of a random rule; the others use none.
    Raises:
      UserError: nothing is left to ask, or no such rule.
    """
    acquisition.rule(rule)
    candidates, allowed = _checked(candidates, allowed)
    padded, mask = _pad(candidates, allowed)
    model = _model(model, lapse, len(candidates), len(padded))
    scores, index = _scores(*_beliefs(posterior, prior), padded, mask, model, _key(key, rule), rule=rule)
    return int(index), np.asarray(scores)[: len(candidates)]


def choose_batch(
    posterior: Belief,
    candidates: np.ndarray,
    count: int,
    *,
    allowed: np.ndarray | None = None,
    lapse: float = 0.0,
    rule: str = "information",
    prior: Belief | None = None,
    model: AnswerModel | None = None,
    key: Key[Array, ""] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` questions to ask at once, before any answer is seen: indices, and their scores as chosen.

    Greedy on the joint design (`acquisition.observe`): a question that repeats what an earlier one will tell is
    worth little, so the batch spreads over what is not known. Scores of information and d-optimal add up to the
    (approximate) joint information of the batch, nats.

    Raises:
      UserError: nothing is left to ask, no such rule, or count < 1.
    """
    acquisition.rule(rule)
    if count < 1:
        raise UserError(f"batch {count}: must be at least 1")
    candidates, allowed = _checked(candidates, allowed)
    count = min(count, int(allowed.sum()))
    padded, mask = _pad(candidates, allowed)
    model = _model(model, lapse, len(candidates), len(padded))
    beliefs = _beliefs(posterior, prior)
    chosen, scores = _batch(*beliefs, padded, mask, model, _key(key, rule), rule=rule, count=count)
    return np.asarray(chosen), np.asarray(scores)


def predicted_gain(
    posterior: Belief,
    question: np.ndarray,
    pairs: np.ndarray,
    *,
    lapse: float = 0.0,
    model: AnswerModel | None = None,
) -> tuple[float, float]:
    """Predicted accuracy on `pairs` float[M, K] now, and what asking `question` float[K] would add to it.

    The stop rule: asking is worth the person's time while the second number is large enough. Pools are thinned
    evenly to `MAX_REFERENCE` pairs.
    """
    pairs = np.asarray(pairs, np.float32)
    if len(pairs) > MAX_REFERENCE:
        pairs = pairs[np.linspace(0, len(pairs) - 1, MAX_REFERENCE).astype(int)]
    model = AnswerModel.lapsing(lapse) if model is None else model
    model = AnswerModel(*(np.asarray(part, np.float32) for part in model))
    now, gain = _accuracy_gain(_beliefs(posterior, None)[0], np.asarray(question, np.float32), pairs, model)
    return float(now), float(gain)


def _beliefs(posterior: Belief, prior: Belief | None) -> tuple[Belief, Belief]:
    """The person and the population, for compiled programs; without a population as if nothing had been answered."""
    person, population = (
        Belief.from_precision(np.asarray(belief.mean, np.float32), np.asarray(belief.precision, np.float32))
        for belief in (posterior, posterior if prior is None else prior)
    )
    return person, population


def _key(key: Key[Array, ""] | None, rule: str) -> Key[Array, ""]:
    if key is None and rule == "random":
        raise ValueError("rule 'random' needs a key")
    return jax.random.key(0) if key is None else key


def _pad(candidates: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """To one of a few sizes, so that a growing pool does not compile again and again."""
    size = next((size for size in POOL_SIZES if len(candidates) <= size), 0)
    size = size or POOL_SIZES[-1] * -(-len(candidates) // POOL_SIZES[-1])
    padded = np.zeros((size, candidates.shape[1]), np.float32)
    padded[: len(candidates)] = candidates
    mask = np.zeros(size, bool)
    mask[: len(candidates)] = allowed
    return padded, mask


def _model(model: AnswerModel | None, lapse: float, count: int, size: int) -> AnswerModel:
    """Parameters as arrays: other values compile nothing. Those of one value a candidate are padded."""
    if model is None:
        model = AnswerModel.lapsing(lapse)
    parts = [np.asarray(part, np.float32) for part in model]
    if any(part.ndim for part in parts):
        parts = [np.pad(np.broadcast_to(part, count), (0, size - count)) for part in parts]
    return AnswerModel(*parts)


def _checked(candidates: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    candidates = np.asarray(candidates, np.float32)
    mask = np.ones(len(candidates), bool) if allowed is None else np.asarray(allowed, bool)
    if not mask.any():
        raise UserError(
            f"questions: nothing left to ask ({len(candidates)} candidates, all used); add pairs of items"
        )
    return candidates, mask
