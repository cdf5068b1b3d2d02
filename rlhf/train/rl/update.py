"""The learning half of an iteration: epochs × minibatches of clipped policy gradients in one compiled scan.

    L = surrogate(A) + c_V · mean_c L_V,c − c_H · H   (+ β · KL in the advantages' units where `kl.place` is loss)

Advantages are computed once; permutations of whole rows make the minibatches. Once KL(old‖new) exceeds `kl.stop_nats` an
iteration makes no further updates. `draw` + host rewards + `update`, or `iterate` when the reward is compiled.

Shapes: see `rlhf.train.rl.settings`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from rlhf.mesh import place
from rlhf.objectives import surrogate as objectives
from rlhf.objectives.advantages import GRPOAlgorithmConfig, RunningScale
from rlhf.objectives.kl_control import next_kl_coef
from rlhf.phi.reward import Kernel
from rlhf.policy import logprobs as policy
from rlhf.policy.conditioning import Population, rail_metrics
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.sampling import SamplingSettings
from rlhf.policy.scoring import Rows
from rlhf.train import optim
from rlhf.train.guardrails import of_rollouts
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.rl import relabel
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl.diagnostics import Metrics, batch_metrics
from rlhf.train.rl.estimate import Estimate, estimate
from rlhf.train.rl.rollout import People, Prompts, Rollout
from rlhf.train.rl.settings import RLProgram, RLSettings


class RLState(NamedTuple):
    """What the next iteration needs; donated.

    Attributes:
      step: optimiser steps, skipped ones included, so a schedule depends on the iteration alone.
      params: trained parts by name ("lora", "conditioner", "base", "critic"); opt_state: of AdamW.
      key: the run's key, never consumed: iteration n uses fold_in(key, n).
      iteration: int32. kl_coef: β. scale: of the advantages. guard: what guardrails remember; None without.
    """

    step: jax.Array
    params: dict[str, PyTree]
    opt_state: optax.OptState
    key: jax.Array
    iteration: jax.Array
    kl_coef: jax.Array
    scale: RunningScale
    guard: GuardState | None = None


def init_state(
    params: dict[str, PyTree],
    settings: RLSettings,
    key: jax.Array,
    own: optim.Own = None,
    guard: GuardState | None = None,
) -> RLState:
    """State of iteration 0, all of it typed arrays (a Python number would compile a second time); `own` as in `optim`."""
    start = optim.init_state(params, settings.optimizer, key, own)
    state = RLState(
        start.step,
        start.params,
        start.opt_state,
        start.key,
        jnp.zeros((), jnp.int32),
        jnp.array(settings.kl.coef, jnp.float32),  # a copy: the state is donated, the settings stay
        RunningScale.start(),
        guard,
    )
    return place.state(params, state)


class Minibatch(NamedTuple):
    """Completions of one optimiser step: the rollout's (without `rows`), their tokens, their share of the estimate."""

    rollout: Rollout
    rows: Rows
    advantages: jax.Array
    returns: jax.Array


def loss_of(
    trained: dict[str, PyTree],
    frozen: PolicyParams,
    batch: Minibatch,
    kl_price: jax.Array,
    settings: RLSettings,
    program: RLProgram,
    extra: PyTree = None,
) -> tuple[jax.Array, Metrics]:
    """Loss of one minibatch, and its diagnostics as scalars.

    Args:
      kl_price: β in the units of the advantages, so that it keeps its meaning in the loss.
      extra: rows of `program.extra`, which adds to the loss; None for none.
    """
    old, mask, algorithm = batch.rollout, batch.rollout.mask, settings.algorithm
    trained = dict(trained)
    critic = trained.pop("critic", None)
    params = policy.merge(frozen, trained, program.dtype)
    logprobs, entropy, values = rollouts.score(settings, program, params, critic, batch.rows)

    def over_tokens(values: jax.Array) -> jax.Array:
        return objectives.aggregate(values, mask, algorithm.aggregation, settings.rollout.max_new_tokens)

    of_ratio = objectives.clipped_surrogate
    if isinstance(algorithm, GRPOAlgorithmConfig):
        of_ratio = objectives.SURROGATES[algorithm.surrogate]
    surrogate, diagnostics = of_ratio(
        logprobs, old.logprobs, batch.advantages, mask, algorithm.clip_low, algorithm.clip_high
    )
    policy_loss, entropy = over_tokens(surrogate), objectives.aggregate(entropy, mask, "token")
    value_loss = kl_loss = jnp.zeros(())
    value_coef = 0.0
    if values is not None and settings.critic is not None:
        value_coef, clip = settings.critic.coef, settings.critic.value_clip
        assert clip is not None, "no limit is inf in here"
        values = values if old.value_start is None else values + old.value_start
        of_channels = objectives.value_loss(values, old.values, batch.returns, clip)
        value_loss = objectives.aggregate(of_channels.mean(axis=-1), mask, "token")
    if settings.kl.place == "loss":
        kl_loss = over_tokens(objectives.kl_estimate(logprobs, old.ref_logprobs, mask, settings.kl.estimator))
    total = policy_loss + value_coef * value_loss - algorithm.entropy_coef * entropy + kl_price * kl_loss
    moved = objectives.kl_estimate(old.logprobs, logprobs, mask, "k3")
    more: Metrics = {}
    if program.extra is not None and extra is not None:
        term, more = program.extra(params, extra)
        total = total + term
    return total, more | {
        "train/loss/total": total,
        "train/loss/policy": policy_loss,
        "train/loss/value": value_loss,
        "train/loss/kl": kl_loss,
        "train/token_entropy_nats": entropy,
        "train/approx_kl_nats": objectives.aggregate(moved, mask, "token"),
        "train/clip_share": objectives.aggregate(diagnostics["clipped"], mask, "token"),
        "train/ratio_max": jnp.max(jnp.where(mask, diagnostics["ratio"], 0.0)),
    }


def optimise(
    state: optim.TrainState,
    batch: Minibatch,
    frozen: PolicyParams,
    kl_price: jax.Array,
    settings: RLSettings,
    program: RLProgram,
    extra: PyTree,
) -> tuple[optim.TrainState, jax.Array, Metrics]:
    """One optimiser step, or none when the policy is already too far: state, whether it stopped, metrics."""
    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (_, metrics), grads = gradient(state.params, frozen, batch, kl_price, settings, program, extra)
    new, norms = optim.apply_gradients(state, grads, settings.optimizer, settings.num_steps, program.own)
    if settings.critic is not None:
        # AdamW's step is linear in the rate, so the critic's own rate may be applied after. Not `optax.partition`: it
        # rounds elsewhere, p + rate·u, and its state has another tree, which no checkpoint of a run in progress fits.
        rate = settings.critic.rate
        faster = jax.tree.map(
            lambda old, moved: old + rate * (moved - old), state.params["critic"], new.params["critic"]
        )
        new = new._replace(params={**new.params, "critic": faster})
    stop = metrics["train/approx_kl_nats"] > settings.kl.stop_nats
    kept = jax.tree.map(
        lambda old, moved: jnp.where(stop, old, moved), (state.params, state.opt_state), new[1:3]
    )
    return new._replace(params=kept[0], opt_state=kept[1]), stop, metrics | norms


def minibatch_rows(key: jax.Array, batch: int, epochs: int, minibatches: int) -> jax.Array:
    """Rows of every optimiser step, int32[epochs · minibatches, rows]: each epoch visits all in an order of its own."""
    orders = jax.vmap(lambda key: jax.random.permutation(key, batch))(jax.random.split(key, epochs))
    return orders.reshape(epochs * minibatches, batch // minibatches)


def part_of(whole: Minibatch, order: jax.Array) -> Minibatch:
    """Some of its completions."""
    picked = place.rows(jax.tree.map(lambda leaf: leaf[order], whole._replace(rows=())))
    return picked._replace(rows=whole.rows.take(order))


def _epochs(
    state: optim.TrainState,
    whole: Minibatch,
    frozen: PolicyParams,
    kl_price: jax.Array,
    key: jax.Array,
    settings: RLSettings,
    program: RLProgram,
    extra: PyTree,
) -> tuple[optim.TrainState, Metrics]:
    """All epochs and minibatches; metrics are means over the optimiser steps that were made (ratio_max: the largest)."""
    batch, epochs, minibatches = (
        whole.advantages.shape[0],
        settings.algorithm.epochs,
        settings.algorithm.minibatches,
    )
    if batch % minibatches:
        raise ValueError(f"{minibatches} minibatches do not divide {batch} rows")
    orders = minibatch_rows(key, batch, epochs, minibatches)
    still = (
        minibatches == 1 and place.num_row_parts() > 1
    )  # an order of all rows moves them, and changes nothing

    def work(carry, order):
        state, _ = carry
        part = whole if still else part_of(whole, order)
        state, stop, metrics = optimise(state, part, frozen, kl_price, settings, program, extra)
        return (state, stop), metrics | {"made": jnp.ones(()), "applied": 1.0 - stop}

    shapes = jax.eval_shape(work, (state, jnp.zeros((), bool)), orders[0])[1]

    def skip(carry, order):
        state, stopped = carry
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return (state._replace(step=state.step + 1), stopped), empty

    def step(carry, order):
        return jax.lax.cond(carry[1], skip, work, carry, order)

    (state, _), series = jax.lax.scan(step, (state, jnp.zeros((), bool)), orders)
    made, applied = series.pop("made"), series.pop("applied")
    metrics = {name: jnp.sum(values * made) / jnp.sum(made) for name, values in series.items()}
    metrics["train/ratio_max"] = jnp.max(series["train/ratio_max"])
    return state, metrics | {"train/stopped_share": 1.0 - jnp.mean(applied)}


def _update(
    state: RLState,
    rollout: Rollout,
    rewards: jax.Array,
    frozen: PolicyParams,
    settings: RLSettings,
    program: RLProgram,
    extra: PyTree = None,
    people: People | None = None,
    checks: jax.Array | None = None,
) -> tuple[RLState, Metrics]:
    ready = prepared(state, rollout, rewards, frozen, settings, program, people, checks)
    found, metrics = ready.found, ready.metrics
    shuffle = rollouts.iteration_keys(state.key, state.iteration).shuffle
    # Its key is not read again; without it no step that is left out chooses between keys (members side by side).
    # The key stays with the iteration: nothing is drawn in an update.
    start = optim.TrainState(state.step, state.params, state.opt_state, None)  # pyright: ignore[reportArgumentType]
    trained, steps = _epochs(start, ready.whole, frozen, ready.kl_price, shuffle, settings, program, extra)
    kl_nats = metrics["train/kl_ref_nats"]
    kl_coef = next_kl_coef(settings.kl, state.kl_coef, kl_nats, completions=rollout.mask.shape[0])
    new = RLState(
        trained.step,
        trained.params,
        trained.opt_state,
        state.key,
        state.iteration + 1,
        kl_coef,
        found.scale,
        ready.guard,
    )
    new = place.pinned(state.params, new)
    metrics = metrics | steps | {"train/kl_coef": state.kl_coef}
    return optim.unless_finite(state, new, metrics) if program.skip else (new, metrics)


class Prepared(NamedTuple):
    """What all optimiser steps of an iteration share.

    Attributes:
      whole: every completion; found: its advantages; kl_price: as `loss_of` takes it.
      guard: what guardrails remember from here on. metrics: of the batch.
    """

    whole: Minibatch
    found: Estimate
    kl_price: jax.Array
    guard: GuardState | None
    metrics: Metrics


def prepared(
    state: RLState,
    rollout: Rollout,
    rewards: jax.Array,
    frozen: PolicyParams,
    settings: RLSettings,
    program: RLProgram,
    people: People | None = None,
    checks: jax.Array | None = None,
) -> Prepared:
    """From a rollout and its rewards to what is learned from it; arguments as of `update`."""
    algorithm, critic = settings.algorithm, settings.critic
    guard, size, acts, guarded = state.guard, settings.rollout.completions, None, {}
    if settings.guardrails is not None and guard is not None:
        if checks is None:
            raise ValueError("guardrails: give what completions were checked for")
        acts, guard, guarded = of_rollouts.guarded(
            settings.guardrails, guard, rollout, rewards, checks, people, state.kl_coef, size
        )
    added = None if acts is None else acts.added.reshape(-1)
    found: Estimate = estimate(rollout, rewards, state.kl_coef, state.scale, settings, added)
    metrics = batch_metrics(rollout, found, settings) | guarded
    if rollout.asked is not None and isinstance(people, Population):
        metrics |= rail_metrics(people.conditioning, rollout.asked)
    rows = rollout.rows
    assert rows is not None, "a rollout is learned from once"
    if critic is not None and critic.from_rewards and rollout.value_start is None:
        raise ValueError(
            "critic.from_rewards: give a rollout whose values start from rewards (rollout.valued_from)"
        )
    whole = Minibatch(rollout._replace(rows=None), rows, found.advantages, found.returns)
    if acts is not None:
        # Without tokens a group enters no term of the loss, neither surrogate nor KL, entropy or values.
        learned, weight = (jnp.repeat(each, size)[:, None] for each in (acts.learn, acts.weight))
        whole = whole._replace(
            rollout=whole.rollout._replace(mask=rollout.mask & learned), advantages=found.advantages * weight
        )
    if isinstance(algorithm, GRPOAlgorithmConfig) and algorithm.relabel:
        if people is None:
            raise ValueError("relabel draws other people: give the population")
        others, more = _relabelled(
            state, rollout, rewards, frozen, people, found, algorithm, settings, program
        )
        whole, metrics = _joined(whole, others), metrics | more
    return Prepared(whole, found, state.kl_coef * found.kl_factor, guard, metrics)


def _relabelled(
    state: RLState,
    rollout: Rollout,
    rewards: jax.Array,
    frozen: PolicyParams,
    people: People,
    found: Estimate,
    algorithm: GRPOAlgorithmConfig,
    settings: RLSettings,
    program: RLProgram,
) -> tuple[Minibatch, Metrics]:
    """The rollout as if it had been for other people, in the units of `found`."""
    trained = {name: part for name, part in state.params.items() if name != "critic"}
    params = policy.merge(frozen, trained, program.dtype)
    key = jax.random.fold_in(state.key, state.iteration)
    others = relabel.for_others(rollout, params, people, key, settings, program)
    weight = relabel.importance(rollout, others, algorithm.relabel_limit)
    rewards = jnp.concatenate([rewards] * algorithm.relabel)
    gains = relabel.advantages(others, rewards, weight, state.kl_coef, settings) / found.divisor
    gains = jnp.where(others.mask, gains[:, None], 0.0)
    nothing = jnp.zeros_like(found.returns)  # nobody reads them: no critic
    returns = jnp.concatenate([nothing] * algorithm.relabel)
    metrics = {
        "train/relabel_weight": weight.mean(),
        "train/relabel_effective_share": relabel.effective_share(weight),
    }
    assert others.rows is not None
    return Minibatch(others._replace(rows=None), others.rows, gains, returns), metrics


def _joined(first: Minibatch, second: Minibatch) -> Minibatch:
    """Both, one after the other; prompts of the second are counted on from those of the first."""
    moved = second._replace(rows=second.rows._replace(group=second.rows.group + len(first.rows.prompts)))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, moved)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def update(
    state: RLState,
    rollout: Rollout,
    rewards: jax.Array,
    frozen: PolicyParams,
    settings: RLSettings,
    *,
    program: RLProgram,
    extra: PyTree = None,
    people: People | None = None,
    checks: jax.Array | None = None,
) -> tuple[RLState, Metrics]:
    """All optimiser steps of one iteration on a rollout whose rewards are known; the state's buffers are donated.

    Args:
      rewards: float32[B, K] at the last token, or float32[B, T, K] token by token.
      frozen: the base, π_ref. settings: `traced`.
      extra: rows that `program.extra` turns into a further term of the loss, at every optimiser step (`rl.hints`).
      people: whom `algorithm.relabel` draws from, and whose average a floor is for; else of no use.
      checks: float32[B, C] with guardrails, what their checks say of the completions.
    """
    return _update(state, rollout, rewards, frozen, settings, program, extra, people, checks)


@functools.partial(jax.jit, static_argnames="program")
def draw(
    state: RLState,
    prompts: Prompts,
    people: People,
    frozen: PolicyParams,
    sampling: SamplingSettings,
    stop: jax.Array,
    settings: RLSettings,
    *,
    program: RLProgram,
) -> Rollout:
    """The first half of iteration `state.iteration`: its people and its rollout, from the state's own keys."""
    keys = rollouts.iteration_keys(state.key, state.iteration)
    coef, z = rollouts.people_rows(keys.users, people, prompts.tokens.shape[0], settings, program)
    rollout = rollouts.rollout(
        frozen, state.params, prompts, coef, z, keys.sample, sampling, stop, settings, program=program
    )
    if isinstance(people, Population) and people.conditioning.limits is not None:
        assert program.shares is not None, "a population needs shares"
        size = settings.rollout.completions
        asked = rollouts.drawn(keys.users, people, program.shares, len(coef) // size, size)
        rollout = rollout._replace(asked=asked)
    return rollout


@functools.partial(jax.jit, static_argnames=("program", "reward", "checks"), donate_argnames="state")
def iterate(
    state: RLState,
    prompts: Prompts,
    people: People,
    frozen: PolicyParams,
    reward_arrays: PyTree,
    sampling: SamplingSettings,
    stop: jax.Array,
    settings: RLSettings,
    *,
    program: RLProgram,
    reward: Kernel,
    extra: PyTree = None,
    checks: Kernel | None = None,
    check_arrays: PyTree = None,
) -> tuple[RLState, Metrics, Rollout, jax.Array]:
    """One whole iteration in one program: `draw`, the compiled reward, `update`; nothing visits the host.

    Args:
      extra: as `update` takes it. checks: of guardrails, as a compiled reward, and what it reads.
    Returns:
      state, metrics, the rollout without its activations, and its rewards (on the device, for whoever wants a sample).
    """
    rollout = draw(state, prompts, people, frozen, sampling, stop, settings, program=program)
    rewards = reward(reward_arrays, rollout)
    if settings.critic is not None and settings.critic.from_rewards:
        assert reward.reads_beginnings, "other rewards say nothing of half a completion"
        rollout = rollouts.valued_from(rollout, reward.beginnings(reward_arrays, rollout))
    checked = None if settings.guardrails is None else check_values(checks, check_arrays, rollout)
    state, metrics = _update(state, rollout, rewards, frozen, settings, program, extra, people, checked)
    return state, metrics, rollout._replace(rows=None), rewards


def check_values(checks: Kernel | None, arrays: PyTree, rollout: Rollout) -> jax.Array:
    """What compiled checks say of completions, float32[B, C]; C = 0 where guardrails have none."""
    if checks is None:
        return jnp.zeros((rollout.mask.shape[0], 0))
    values = checks(arrays, rollout)
    return values if values.ndim == 2 else jnp.sum(values, axis=1, where=rollout.mask[..., None])
