"""A rollout: prompts and people in, completions with log-probs, reference log-probs and values out; one compiled program.

Sampling is followed by one teacher-forced pass: activations under the adapters are computed once and serve the policy,
the reference, the critic and every epoch of the update. The reference is the base without LoRA and conditioner.
Log-probs are those of the untempered, unfiltered policy, scored by the same function as in the update, so ratios start at 1.

Shapes: see `rlhf.train.rl.settings`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from rlhf.objectives.advantages import EXTRA_CHANNELS, num_channels
from rlhf.policy import logprobs as policy
from rlhf.policy import scoring, vocabulary
from rlhf.policy.conditioning import Gate, Population, UserShares, sample_coef
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.sampling import SamplingSettings, generate
from rlhf.train.rl import critic as critics
from rlhf.train.rl.settings import RLProgram, RLSettings

People = Population | jax.Array  # whose coefficients are drawn, or fixed weights [K] without people


class Prompts(NamedTuple):
    """tokens int32[B, W] by `sampling.left_pad` with one width for the run; starts int32[B]: slot of the first token."""

    tokens: jax.Array
    starts: jax.Array


class Rollout(NamedTuple):
    """What the update learns from.

    Attributes:
      tokens: int32[B, L], prompt | completion; starts: int32[B].
      mask: bool[B, T], completion tokens up to and including the stop token.
      logprobs, ref_logprobs: float32[B, T] of the taken tokens, nats, 0 outside the mask; sampler_logprobs: the same
        as `logprobs`, as decoding with a cache computed them.
      values: float32[B, T, C]; 0 without a critic.
      rows: the same tokens, each prompt once, with the activations under the adapters; None once they are done with.
      coef: float32[B, K], w_eff: what scalarises. z: float32[B, K], what conditions, or None without people.
      ended: bool[B], a stop token was produced.
      asked: float32[B, K], the coefficients that were drawn, before the rails of the rewards; None where there are none.
      value_start: float32[B, T, C], the part of `values` that is not learned (`valued_from`); None without.
    """

    tokens: jax.Array
    starts: jax.Array
    mask: jax.Array
    logprobs: jax.Array
    ref_logprobs: jax.Array
    sampler_logprobs: jax.Array
    values: jax.Array
    rows: scoring.Rows | None
    coef: jax.Array
    z: jax.Array | None
    ended: jax.Array
    value_start: jax.Array | None = None
    asked: jax.Array | None = None

    @property
    def completions(self) -> jax.Array:
        """int32[B, T]; 0 outside the mask."""
        return self.tokens[:, -self.mask.shape[1] :]


class Keys(NamedTuple):
    """The three keys of one iteration, each consumed once."""

    users: jax.Array
    sample: jax.Array
    shuffle: jax.Array


def iteration_keys(key: jax.Array, iteration: jax.Array) -> Keys:
    """Keys of iteration n: fold_in(run key, n), split once."""
    return Keys(*jax.random.split(jax.random.fold_in(key, iteration), 3))


def user_rows(
    key: jax.Array,
    population: Population,
    shares: UserShares,
    groups: int,
    group_size: int,
    beta: jax.Array | float,
    eta: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Who is addressed: w_eff[B, K] and z[B, K], one draw a group, repeated for its G completions.

    The kinds of draw (posterior, prior, extremes, generic) are shuffled over the groups, so no prompt of the batch
    always belongs to the same kind.
    """
    coef, z = Gate(population.conditioning, beta, eta).compose(
        drawn(key, population, shares, groups, group_size)
    )
    return jnp.asarray(coef), jnp.asarray(z)


def drawn(
    key: jax.Array, population: Population, shares: UserShares, groups: int, group_size: int
) -> jax.Array:
    """Coefficients as they are drawn, before the gate, [B, K]."""
    draw_key, order_key = jax.random.split(key)
    coef = jax.random.permutation(order_key, sample_coef(draw_key, population, shares, groups))
    return jnp.repeat(coef, group_size, axis=0)


def people_rows(
    key: jax.Array, people: People, batch: int, settings: RLSettings, program: RLProgram
) -> tuple[jax.Array, jax.Array | None]:
    """`user_rows` of a population; fixed weights [K] for every row, and no z, where there is none."""
    if isinstance(people, Population):
        assert program.shares is not None, "a population needs shares"
        beta, eta = settings.kl.coef, settings.rail.eta
        size = settings.rollout.completions
        return user_rows(key, people, program.shares, batch // size, size, beta, eta)
    return jnp.broadcast_to(people, (batch, people.shape[0])), None


def score(
    settings: RLSettings,
    program: RLProgram,
    params: PolicyParams,
    critic: critics.Critic | None,
    rows: scoring.Rows,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Log-probs [B, T], entropies [B, T] and values [B, T, C] (None without a critic) of completions, differentiable."""
    decoder = nnx.merge(program.graphdef, *params)
    z = None if rows.z is None else rows.z[rows.group]
    states = scoring.completion_states(decoder, rows)
    logprobs, entropy = vocabulary.token_scores(decoder, states, rows.tokens, z)
    if critic is None or settings.critic is None:
        return logprobs, entropy, None
    own = critics.backbone(settings.critic, critic, params)
    if own is not None:
        decoder = nnx.merge(program.graphdef, *own)
        states = scoring.completion_states(decoder, rows)
    return logprobs, entropy, critics.channel_values(settings.critic, critic, decoder, states, z)


def valued_from(rollout: Rollout, phi: jax.Array) -> Rollout:
    """The rollout with φ[B, T, K] of the completion before each token as the start of its values; other channels from 0."""
    start = jnp.pad(phi, [(0, 0), (0, 0), (0, EXTRA_CHANNELS)])
    start = jnp.where(rollout.mask[..., None], start, 0.0)
    return rollout._replace(values=rollout.values + start, value_start=start)


def reference_logprobs(program: RLProgram, frozen: PolicyParams, rows: scoring.Rows) -> jax.Array:
    """log π_ref of the completion tokens, [B, T]: the frozen base, no adapters, nobody addressed."""
    empty = nnx.State({})
    decoder = nnx.merge(program.reference, frozen.base, empty, empty)
    states = scoring.completion_states(decoder, rows._replace(z=None))
    return vocabulary.token_scores(decoder, states, rows.tokens, None)[0]


@functools.partial(jax.jit, static_argnames="program")
def rollout(
    frozen: PolicyParams,
    trained: dict[str, PyTree],
    prompts: Prompts,
    coef: jax.Array,
    z: jax.Array | None,
    key: jax.Array,
    sampling: SamplingSettings,
    stop: jax.Array,
    settings: RLSettings,
    *,
    program: RLProgram,
) -> Rollout:
    """Sample a completion for each row and score it.

    Args:
      frozen: the base, π_ref; adapters that are not trained.
      trained: parts of the policy that replace the frozen ones, and "critic" where there is one.
      prompts: B rows, groups contiguous.
      coef, z: float32[B, K].
      stop: int32[S] tokens that end a completion.
    """
    trained = dict(trained)
    critic = trained.pop("critic", None)
    params = policy.merge(frozen, trained, program.dtype)
    batch = prompts.tokens.shape[0]
    num_slots, group_size = settings.rollout.max_new_tokens, settings.rollout.completions
    samples = generate(
        params,
        prompts.tokens,
        prompts.starts,
        z,
        jax.random.split(key, batch),
        sampling,
        stop,
        graphdef=program.graphdef,
        max_new_tokens=num_slots,
        filtered=program.filtered,
        group_size=group_size,
    )
    tokens, mask = jnp.concatenate([prompts.tokens, samples.tokens], axis=1), samples.mask
    rows = scoring.rows_of(tokens, prompts.starts, z, num_slots, group_size)
    if "base" not in trained:  # else training changes the lower stage too, and nothing could be kept
        rows = scoring.with_lower_states(program.graphdef, params, rows)
    logprobs, _, values = score(settings, program, params, critic, rows)
    reference = reference_logprobs(program, frozen, rows)
    if values is None:
        values = jnp.zeros((*mask.shape, num_channels(coef.shape[1])))
    is_stop = jnp.any(samples.tokens[..., None] == stop, axis=-1)
    return Rollout(
        tokens=tokens,
        starts=prompts.starts,
        mask=mask,
        logprobs=jnp.where(mask, logprobs, 0.0),
        ref_logprobs=jnp.where(mask, reference, 0.0),
        sampler_logprobs=samples.logprobs,
        values=jnp.where(mask[..., None], values, 0.0),
        rows=rows,
        coef=coef,
        z=z,
        ended=jnp.any(is_stop & mask, axis=1),
    )
