"""Dialogues with a simulated person: in every turn the policy picks a question, the person answers, the belief moves.

A turn offers C pairs of texts, each of which may be put neutrally or *leadingly* (one way more: "you would prefer the first,
wouldn't you?"): C·W actions, W ways. What the person says follows the annotation mixture of that way: genuine, a coin, or
made up from how it was put. What the belief assumes about a way is a model of its own, so that a belief that takes
leading answers at face value can be compared with one that knows better.

The policy is a softmax over the actions by a small network on features of belief and question (`dialogue_ppo` trains it). The
turns are choices among written questions, not text that a language model writes: `curiosity.at_turn_ends` is what carries
turn rewards over to tokens.

Shapes: B dialogues, N turns, C pairs offered, W ways, A = C·W actions, K basis outputs, M pairs of the pool, F features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rewards.basis.belief import Belief
from rewards.people.acquisition import AnswerModel, probability
from scripts.experiments import potentials as curiosity

NUM_FEATURES = 8


class World(NamedTuple):
    """Arrays that fix the people, the questions and how answers come about.

    Attributes:
      prior: what is believed before the first answer.
      pool: float32[M, K], Δφ of the pairs that may be asked. pairs: float32[R, K], those that choices are judged by.
      people: float32[U, K], true coefficients.
      actual, assumed: `AnswerModel`s of [W] numbers: how people answer, and how the belief thinks they do.
    """

    prior: Belief
    pool: jax.Array
    pairs: jax.Array
    people: jax.Array
    actual: AnswerModel
    assumed: AnswerModel


Potential = Callable[[Belief, jax.Array, jax.Array], jax.Array]  # (beliefs, true coef, pairs) → Φ; hashable
Chooser = Callable[
    [Any, "Offer", jax.Array], jax.Array
]  # (params, offers of B dialogues, key) → int32[B]; hashable


class Offer(NamedTuple):
    """What a policy sees: features float32[B, A, F], the pairs float32[B, C, K], the belief, what it assumes, turns left."""

    features: jax.Array
    questions: jax.Array
    belief: Belief
    assumed: AnswerModel
    left: jax.Array


class Dialogues(NamedTuple):
    """B finished dialogues.

    Attributes:
      features: float32[B, N, A, F]; state: float32[B, N, S], what the critic sees; action: int32[B, N].
      way: int32[B, N], how each question was put.
      potentials: float32[B, N + 1]. log_accuracy, entropy: of the beliefs, nats, [B, N + 1].
      regret: float32[B], what choices by the last mean lose against choices by the true coefficients.
      accuracy: float32[B], share of the pairs on which the two agree.
    """

    features: jax.Array
    state: jax.Array
    action: jax.Array
    way: jax.Array
    potentials: jax.Array
    log_accuracy: jax.Array
    entropy: jax.Array
    regret: jax.Array
    accuracy: jax.Array


@dataclasses.dataclass(frozen=True)
class DialogueProgram:
    """What fixes the program.

    Attributes:
      num_dialogues: B. num_turns: N. num_offered: C.
      potential: Φ, or None for none. closed: Φ = 0 at the end (`curiosity.turn_rewards`).
      epochs, minibatches: of an update (`dialogue_ppo`).
    """

    num_dialogues: int
    num_turns: int
    num_offered: int
    potential: Potential | None
    closed: bool
    epochs: int = 4
    minibatches: int = 4


def action_logits(params: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Unnormalised log-probabilities of the actions, [..., A] from [..., A, F]."""
    return jnp.tanh(features @ params["policy_in"]) @ params["policy_out"]


def sampled_action(params: dict[str, jax.Array], offer: Offer, key: jax.Array) -> jax.Array:
    """The learning policy, drawn from."""
    return jax.random.categorical(key, action_logits(params, offer.features))


def offer_features(
    belief: Belief, questions: jax.Array, num_ways: int, left: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Features [A, F] of the actions of one dialogue, action c·W + w, and the critic's [S].

    Of a pair: the predicted margin, its size, the standard deviation of the margin and how undecided the answer is; of a
    way: whether it leads, alone and times three of these. What an answer is worth is not among them; that is to be learned.
    """
    margin = questions @ belief.mean
    spread = jnp.sqrt(jnp.maximum(jnp.sum((questions @ belief.cov) * questions, axis=-1), 0.0))
    undecided = 4.0 * jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
    of_pair = jnp.stack([margin / 3.0, jnp.abs(margin) / 3.0, spread, undecided], axis=-1)
    leads = jnp.arange(num_ways, dtype=jnp.float32)
    shape = (len(questions), num_ways)
    wide = jnp.broadcast_to(of_pair[:, None], (*shape, 4))
    lead = jnp.broadcast_to(leads[None, :, None], (*shape, 1))
    features = jnp.concatenate([wide, lead, lead * wide[..., 0::2], lead * left], axis=-1)
    sd = jnp.sqrt(jnp.diagonal(belief.cov))
    state = jnp.concatenate([sd, jnp.abs(belief.mean), left[None], jnp.square(left)[None]])
    return features.reshape(-1, NUM_FEATURES), state


def state_size(num_basis: int) -> int:
    """S, what the critic sees."""
    return 2 * num_basis + 2


@functools.partial(jax.jit, static_argnames=("static", "chooser"))
def converse(
    params: Any, world: World, key: jax.Array, *, static: DialogueProgram, chooser: Chooser = sampled_action
) -> Dialogues:
    """B dialogues of N turns with people drawn from `world.people`.

    Pairs are offered at random, either side first, and not again in the same dialogue once asked.
    """
    batch, num_ways = static.num_dialogues, jnp.size(world.actual.genuine)
    people_key, turns_key = jax.random.split(key)
    coef = world.people[jax.random.randint(people_key, (batch,), 0, world.people.shape[0])]

    def turn(carry, step):
        belief, asked = carry
        offer_key, side_key, choice_key, answer_key = jax.random.split(jax.random.fold_in(turns_key, step), 4)
        noise = jax.random.gumbel(offer_key, (batch, world.pool.shape[0]))
        _, offered = jax.lax.top_k(jnp.where(asked, -jnp.inf, noise), static.num_offered)
        side = jax.random.rademacher(side_key, offered.shape, jnp.float32)
        questions = world.pool[offered] * side[..., None]
        left = 1.0 - step / static.num_turns
        features, state = jax.vmap(offer_features, (0, 0, None, None))(belief, questions, num_ways, left)
        action = chooser(params, Offer(features, questions, belief, world.assumed, left), choice_key)
        pair, way = action // num_ways, action % num_ways
        row = jnp.arange(batch)
        question = questions[row, pair]
        up = _yes(
            jnp.sum(question * coef, axis=-1), AnswerModel(*(jnp.asarray(part)[way] for part in world.actual))
        )
        answer = (jax.random.uniform(answer_key, (batch,)) < up).astype(jnp.float32)
        assumed = AnswerModel(*(jnp.asarray(part)[way] for part in world.assumed))
        after = jax.vmap(curiosity.learn)(belief, question, answer, assumed)
        asked = asked.at[row, offered[row, pair]].set(True)
        return (after, asked), (features, state, action, way, belief)

    start = jax.tree.map(lambda part: jnp.broadcast_to(part, (batch, *part.shape)), world.prior)
    carry = (start, jnp.zeros((batch, world.pool.shape[0]), bool))
    (last, _), (*chosen, before) = jax.lax.scan(turn, carry, jnp.arange(static.num_turns))
    beliefs = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, last)
    features, state, action, way = (jnp.moveaxis(part, 0, 1) for part in chosen)
    potentials = jnp.zeros((static.num_turns + 1, batch))
    if static.potential is not None:
        potentials = static.potential(beliefs, coef, world.pairs)
    served, wanted = last.mean @ world.pairs.T, coef @ world.pairs.T
    return Dialogues(
        features,
        state,
        action,
        way,
        potentials.T,
        curiosity.log_accuracy(beliefs, coef).T,
        entropy(beliefs).T,
        jnp.mean(jnp.maximum(wanted, 0.0) - jnp.where(served > 0, wanted, 0.0), axis=1),
        jnp.mean((served > 0) == (wanted > 0), axis=1),
    )


def entropy(belief: Belief) -> jax.Array:
    """H(b), nats: how unsure a belief is, right or wrong."""
    size = belief.mean.shape[-1]
    return 0.5 * (
        size * (1.0 + jnp.log(2.0 * jnp.pi)) + curiosity.distance(belief, jnp.asarray(belief.mean))[1]
    )


def _yes(margin: jax.Array, model: AnswerModel) -> jax.Array:
    return probability(margin[:, None], model)[0][:, 0]


def summary(talks: Dialogues) -> dict[str, jax.Array]:
    """Means over dialogues: what was learned about people, how they are served, how often questions led them."""
    return {
        "log_accuracy_gain": jnp.mean(talks.log_accuracy[:, -1] - talks.log_accuracy[:, 0]),
        "entropy_drop": jnp.mean(talks.entropy[:, 0] - talks.entropy[:, -1]),
        "regret": talks.regret.mean(),
        "accuracy": talks.accuracy.mean(),
        "leading_share": jnp.mean(talks.way > 0),
    }
