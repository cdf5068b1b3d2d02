"""PPO on dialogues: two channels of reward, curiosity turn by turn and the outcome at the end.

The same estimators and losses train language models here (`advantages`, `objectives`): GAE of both channels, scalarised
once, clipped surrogate, value loss a channel.

Shapes: see `scripts.experiments.dialogue`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf.objectives import advantages as adv
from rlhf.objectives import surrogate as objectives
from rlhf.train import optim
from scripts.experiments import potentials as curiosity
from scripts.experiments.dialogue import (
    NUM_FEATURES,
    DialogueProgram,
    Dialogues,
    World,
    action_logits,
    converse,
    state_size,
    summary,
)

VALUE_COEF = 0.5


class DialogueNumbers(NamedTuple):
    """Float32 scalars: γ, λ, clip range, entropy bonus, and the weights of the two channels, curiosity and outcome."""

    discount: jax.Array
    gae_lambda: jax.Array
    clip: jax.Array
    entropy_coef: jax.Array
    weights: jax.Array

    @classmethod
    def of(
        cls, *, curious: float, outcome: float, discount: float = 1.0, entropy_coef: float = 0.01
    ) -> "DialogueNumbers":
        gamma, gae_lambda, clip, entropy = map(jnp.float32, (discount, 0.95, 0.2, entropy_coef))
        return cls(gamma, gae_lambda, clip, entropy, jnp.asarray([curious, outcome], jnp.float32))


def init_params(key: jax.Array, num_basis: int, width: int = 32) -> dict[str, jax.Array]:
    """Networks of one hidden layer; outputs start at 0: a uniform policy and values 0 for both channels."""
    policy_key, value_key = jax.random.split(key)
    he = jax.nn.initializers.he_normal()
    return {
        "policy_in": he(policy_key, (NUM_FEATURES, width), jnp.float32),
        "policy_out": jnp.zeros(width),
        "value_in": he(value_key, (state_size(num_basis), width), jnp.float32),
        "value_bias": jnp.zeros(width),
        "value_out": jnp.zeros((width, 2)),
    }


def reward_channels(dialogues: Dialogues, hyper: DialogueNumbers, static: DialogueProgram) -> jax.Array:
    """float32[B, N, 2]: the curiosity of every turn, and the outcome (−regret) at the last."""
    curious = curiosity.turn_rewards(
        dialogues.potentials, hyper.discount, static.num_turns, closed=static.closed
    )
    outcome = jnp.zeros_like(curious).at[:, -1].set(-dialogues.regret)
    return jnp.stack([curious, outcome], axis=-1)


class _Rows(NamedTuple):
    features: jax.Array
    state: jax.Array
    action: jax.Array
    logprobs: jax.Array
    values: jax.Array
    advantages: jax.Array
    returns: jax.Array


def channel_values(params: dict[str, jax.Array], state: jax.Array) -> jax.Array:
    """V[..., 2] of both channels."""
    return jnp.tanh(state @ params["value_in"] + params["value_bias"]) @ params["value_out"]


def _taken(
    params: dict[str, jax.Array], features: jax.Array, action: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logprobs = jax.nn.log_softmax(action_logits(params, features))
    spread = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    return jnp.take_along_axis(logprobs, action[..., None], axis=-1)[..., 0], spread


def _loss(params: dict[str, jax.Array], rows: _Rows, hyper: DialogueNumbers) -> jax.Array:
    mask = jnp.ones(rows.action.shape, bool)
    logprobs, spread = _taken(params, rows.features, rows.action)
    surrogate, _ = objectives.clipped_surrogate(
        logprobs, rows.logprobs, rows.advantages, mask, hyper.clip, hyper.clip
    )
    errors = objectives.value_loss(channel_values(params, rows.state), rows.values, rows.returns, jnp.inf)
    parts = surrogate + VALUE_COEF * errors.mean(axis=-1) - hyper.entropy_coef * spread
    return objectives.aggregate(parts, mask, "token")


@functools.partial(jax.jit, static_argnames="static", donate_argnames="state")
def iterate(
    state: optim.TrainState,
    world: World,
    hyper: tuple[optim.OptimizerConfig, DialogueNumbers],
    *,
    static: DialogueProgram,
) -> tuple[optim.TrainState, dict[str, jax.Array]]:
    """One iteration of PPO in one program: dialogues, GAE of both channels, epochs of clipped updates.

    `state.step` counts iterations; its key is never consumed, iteration n uses fold_in(key, n).
    """
    rates, own = hyper  # of the optimiser, whose schedule is constant, and of this page
    talk_key, order_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    talks = converse(state.params, world, talk_key, static=static)
    mask = jnp.ones(talks.action.shape, bool)
    values = channel_values(state.params, talks.state)
    channels = reward_channels(talks, own, static)
    vector, returns = adv.generalised_advantages(channels, values, mask, own.discount, own.gae_lambda)
    weights = jnp.broadcast_to(own.weights, (static.num_dialogues, 2))
    advantages = adv.masked_whiten(adv.scalarise(vector, weights), mask)
    logprobs, spread = _taken(state.params, talks.features, talks.action)
    rows = _Rows(talks.features, talks.state, talks.action, logprobs, values, advantages, returns)

    def step(inner, order):
        part = jax.tree.map(lambda leaf: leaf[order], rows)
        grads = jax.grad(_loss)(inner.params, part, own)
        return optim.apply_gradients(inner, grads, rates, jnp.ones(()))[0], None

    keys = jax.random.split(order_key, static.epochs)
    orders = jax.vmap(lambda key: jax.random.permutation(key, static.num_dialogues))(keys)
    inner, _ = jax.lax.scan(step, state, orders.reshape(static.epochs * static.minibatches, -1))
    metrics = summary(talks) | {
        "return": jnp.mean(adv.scalarise(channels, weights).sum(axis=1)),
        "spread": spread.mean(),
    }
    return inner._replace(step=state.step + 1), metrics
