"""What the guardrails do to the rewards of one batch; the same for sampled groups (PPO, GRPO) and packed rows (DPO).

    r′ = r − (λ* + λ) A + ν right + h honest + c calibrated + λ_μ r_μ

then the gates: a completion that fails gets at most the least r′ of its group.
Everything a batch is asked stands in `Seen`; what comes back is an addition to each reward, which groups are learned from,
and what each group counts for. The formulas are those of `rlhf.objectives.rails`.

Shapes: R groups (the completions of one prompt for one person), G completions of each, K basis outputs, S kinds of people.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.cluster.vq import kmeans2

from rlhf.objectives import calibration, rails
from rlhf.policy.conditioning import Gate, Population
from rlhf.train.guardrails.config import GuardrailsConfig

Metrics = dict[str, jax.Array]


class GuardState(NamedTuple):
    """What guardrails remember from step to step.

    Attributes:
      price: λ of the behaviour; floor: λ_μ. reference: [2], Σ of E_{π_ref}[A] over the steps so far, and their number.
      weights, centres: [S] and [S, K] of the kinds of people; S = 0 without.
    """

    price: jax.Array
    floor: jax.Array
    reference: jax.Array
    weights: jax.Array
    centres: jax.Array

    @classmethod
    def start(
        cls, config: GuardrailsConfig, people: object, beta: float = 1.0, eta: float = 0.0
    ) -> "GuardState":
        """Prices of 0, kinds that count alike; `beta` and `eta` as of the gate that makes z."""
        size, centres = 0 if config.worst is None else config.worst.groups, np.zeros((0, 0), np.float32)
        if size:
            assert isinstance(people, Population), "kinds of people need people"
            centres = kinds_of_people(people, size, Gate(people.conditioning, beta, eta))
        price, floor = (jnp.zeros((), jnp.float32) for _ in range(2))
        weights = jnp.full(size, 1.0 / max(size, 1), jnp.float32)
        return cls(price, floor, jnp.zeros(2, jnp.float32), weights, jnp.asarray(centres))


def kinds_of_people(people: Population, size: int, gate: Gate) -> Float[np.ndarray, "S K"]:
    """Centres of k-means over the z of the posterior means; with few people, over draws from the prior."""
    z = np.asarray(gate(np.asarray(people.user_mean)))
    if len(z) < 2 * size:
        noise = np.random.default_rng(0).normal(size=(64 * size, z.shape[1])).astype(np.float32)
        z = np.asarray(gate.drawn(noise))
    return kmeans2(z.astype(np.float64), size, minit="++", rng=np.random.default_rng(0))[0].astype(np.float32)


class Seen(NamedTuple):
    """A batch as guardrails see it.

    Attributes:
      reward: r = w·φ. average: r_μ = μ̃·φ; None without people.
      log_weight: log of what each completion counts for in an average over π_ref, −inf on padding.
      share: of the policy: 1/G of samples, else its probability among the G.
      checks: [R, G, C]. own_right, shared_right: [R], how often answers are right for this person and for the others.
      z: [R, K], whom a group is for; None without people.
    """

    reward: Float[Array, "R G"]
    average: Float[Array, "R G"] | None
    log_weight: Float[Array, "R G"]
    share: Float[Array, "R G"]
    checks: Float[Array, "R G C"]
    own_right: Float[Array, " R"] | None
    shared_right: Float[Array, " R"] | None
    z: Float[Array, "R K"] | None


class Acts(NamedTuple):
    """added: [R, G], to each reward; learn: bool[R]; weight: [R], of mean 1 over the batch."""

    added: Float[Array, "R G"]
    learn: Bool[Array, " R"]
    weight: Float[Array, " R"]


class Found(NamedTuple):
    """What the state is moved by: means over a batch, to be averaged over the batches of a step.

    Attributes:
      behaviour, behaviour_ref, average, average_ref: E under the policy and under π_ref of A and of r_μ.
      gain, count: [S], Σ over the groups of people of a kind of what they gain over π_ref, and their number.
    """

    behaviour: jax.Array
    behaviour_ref: jax.Array
    average: jax.Array
    average_ref: jax.Array
    gain: jax.Array
    count: jax.Array


def passed(config: GuardrailsConfig, checks: Float[Array, "... C"]) -> Bool[Array, "..."]:
    """Whether completions pass every gate."""
    passes = jnp.ones(checks.shape[:-1], bool)
    for gate in config.gates:
        assert gate.gate is not None, "what makes it a gate"
        passes &= checks[..., config.index(gate.name)] >= gate.gate
    return passes


def act(
    config: GuardrailsConfig, state: GuardState, seen: Seen, beta: Float[Array, ""] | float
) -> tuple[Acts, Found, Metrics]:
    """What the guardrails do to a batch, what they found, and how often they acted and at what cost."""
    real = seen.log_weight > -jnp.inf
    reference = jax.nn.softmax(seen.log_weight, axis=-1)

    def under(share: jax.Array, values: jax.Array) -> jax.Array:
        """Mean over groups of an average within each."""
        return jnp.mean(jnp.sum(jnp.where(real, share * values, 0.0), axis=-1))

    total, zero, metrics = seen.reward, jnp.zeros(()), {}
    behaviour = behaviour_ref = average = average_ref = zero
    if config.behaviour is not None:
        behaves = seen.checks[..., config.index(config.behaviour.check)] > 0.5
        flag = behaves.astype(jnp.float32)
        price = jnp.zeros(seen.reward.shape[:1])
        if config.behaviour.penalty != "dual":
            price = rails.exact_penalty(seen.reward, behaves, beta, seen.log_weight)
        if config.behaviour.penalty != "exact":
            price = price + state.price
        total = total - price[:, None] * flag
        behaviour, behaviour_ref = under(seen.share, flag), under(reference, flag)
        metrics |= {
            "behaviour_share": behaviour,
            "behaviour_ref_share": behaviour_ref,
            "penalised_share": jnp.mean((price > 0) & (behaves & real).any(axis=-1)),
            "penalty_nats": under(seen.share, price[:, None] * flag),
            "price_nats": state.price,
        }
    if config.truth is not None:
        assert seen.own_right is not None and seen.shared_right is not None, "known answers"
        right = (seen.checks[..., config.index(config.truth.check)] > 0.5).astype(jnp.float32)
        bonus = config.truth.weight * rails.truth_bonus(seen.own_right, seen.shared_right, beta)
        total = total + bonus[:, None] * right
        metrics |= {
            "truth_share": under(seen.share, right),
            "truth_gap": jnp.max(jnp.abs(seen.own_right - seen.shared_right)),
            "truth_lifted_share": jnp.mean(bonus > 0),
            "truth_bonus_nats": under(seen.share, bonus[:, None] * right),
        }
    if config.honesty is not None:
        paid, own = _honest(config, seen)
        total = total + paid
        metrics |= {f"honesty_{key}": under(seen.share, value) for key, value in own.items()}
    if config.calibration is not None:
        paid, away = _calibrated(config, seen)
        total = total + paid
        metrics |= {
            "calibration_nats": jnp.mean(away),
            "calibration_paid_nats": under(seen.share, jnp.abs(paid)),
        }
    if config.floor is not None:
        assert seen.average is not None, "the average person's reward needs people"
        total = total + state.floor * seen.average
        average, average_ref = under(seen.share, seen.average), under(reference, seen.average)
        metrics |= {"floor_slack_nats": average - average_ref + config.floor.nats, "floor_price": state.floor}
    learn = jnp.ones(total.shape[:1], bool)
    if config.gates:
        passes = passed(config, seen.checks) & real
        total, learn = rails.gated(jnp.where(real, total, jnp.inf), passes, config.refused)
        total = jnp.where(real, total, 0.0)
        metrics |= {
            "refused_share": under(seen.share, 1.0 - passes.astype(jnp.float32)),
            "skipped_share": 1.0 - jnp.mean(learn),
        }
    added = jnp.where(real, total - seen.reward, 0.0)
    weight, gain, count = _weights(state, seen, reference)
    if config.worst is not None:
        metrics |= {
            "worst_gain_nats": jnp.min(jnp.where(count > 0, gain / jnp.maximum(count, 1.0), jnp.inf)),
            "worst_weight": jnp.max(state.weights) * len(state.weights),
        }
    metrics["cost_nats"] = -under(seen.share, added)
    found = Found(behaviour, behaviour_ref, average, average_ref, gain, count)
    return (
        Acts(added, learn, weight),
        found,
        {f"train/guard/{name}": value for name, value in metrics.items()},
    )


def _honest(config: GuardrailsConfig, seen: Seen) -> tuple[jax.Array, Metrics]:
    """What honest disagreement is paid, [R, G], and what is told of it."""
    assert config.honesty is not None, "asked for where it is"
    part, checks = config.honesty, seen.checks
    corrects = (checks[..., config.index(part.check)] > 0.5).astype(jnp.float32)
    applies = jnp.ones_like(corrects) if part.where is None else checks[..., config.index(part.where)] > 0.5
    stated = None if part.confidence is None else checks[..., config.index(part.confidence)]
    paid = part.weight * applies * rails.honest_disagreement(corrects, stated)
    return paid, {"share": applies * corrects, "nats": paid}


def _calibrated(config: GuardrailsConfig, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """What completions are paid for the mix of their group, [R, G], and how far that is from the wanted one, [R].

    A group in which a kind is wanted that none of its completions is of, or that has one kind alone, has nothing to choose.
    """
    assert config.calibration is not None, "asked for where it is"
    places = jnp.array([config.index(name) for name in config.calibration.kinds])
    kinds = calibration.as_kinds(seen.checks[..., places])
    reward = jnp.where(seen.log_weight > -jnp.inf, seen.reward, 0.0)
    wanted = calibration.wanted_mix(reward, seen.log_weight, kinds, config.calibration.general)
    share = jnp.where(seen.log_weight > -jnp.inf, seen.share, 0.0)
    shown = jnp.einsum("rg,rgv->rv", share, kinds)
    paid = config.calibration.weight * calibration.credit(wanted, share, kinds)
    known = jnp.any(kinds > 0, axis=-1)
    return jnp.where(known, paid, 0.0), calibration.distance(wanted, shown)


def _weights(state: GuardState, seen: Seen, reference: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weight of each group, and of every kind the sum of gains over π_ref and the number of groups."""
    size = len(state.weights)
    if not size:
        return jnp.ones(seen.reward.shape[0]), jnp.zeros(0), jnp.zeros(0)
    assert seen.z is not None, "kinds of people need people"
    away = jnp.sum((seen.z[:, None] - state.centres) ** 2, axis=-1)
    kind = jax.nn.one_hot(jnp.argmin(away, axis=1), size)
    # The reward of padding is finite, and its shares are 0.
    gained = jnp.sum((seen.share - reference) * seen.reward, axis=-1)
    weight = size * kind @ state.weights
    return weight / jnp.maximum(weight.mean(), 1e-9), gained @ kind, kind.sum(axis=0)


def moved(config: GuardrailsConfig, state: GuardState, found: Found) -> GuardState:
    """The state after a step: dual ascent on the prices, exponentiated gradient on the weights."""
    price, floor, weights, reference = state.price, state.floor, state.weights, state.reference
    if config.behaviour is not None:
        reference = reference + jnp.stack([found.behaviour_ref, jnp.ones(())])
        if config.behaviour.penalty != "exact":
            assert config.behaviour.allowed is not None, "no limit is inf in here"
            limit = config.behaviour.allowed
            allowed = jnp.where(jnp.isfinite(limit), limit, reference[0] / reference[1])
            price = rails.dual_ascent(price, found.behaviour, allowed, config.behaviour.rate)
    if config.floor is not None:
        short = config.floor.nats - found.average_ref
        floor = rails.dual_ascent(floor, -found.average, short, config.floor.rate)
    if config.worst is not None:
        gain = jnp.where(found.count > 0, found.gain / jnp.maximum(found.count, 1.0), jnp.nan)
        # A kind of whom nobody was drawn moves as the mean of the others: not at all, relative to them.
        gain = jnp.where(jnp.isnan(gain), jnp.nanmean(gain), gain)
        weights = rails.worst_group_weights(weights, gain, config.worst.rate)
    return GuardState(price, floor, reference, weights, state.centres)
