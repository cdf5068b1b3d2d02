"""Direct preference optimisation of one policy conditioned on coefficients, and of ordinary policies.

A row holds completions y_c of one prompt and the coefficients w of one person:
    h_c = β (log π(y_c|x,z) − log π_ref(y_c|x)),   target_c = w_eff·φ(x, y_c)
Every pair teaches every person, because φ says what each person would answer:
    soft        −t log σ(Δh) − (1−t) log σ(−Δh),  t = σ(Δtarget)
    regression  (Δh − Δtarget)²
    observed    DPO on the person's own labels, with the mixture reference when the rail is on
    dpo, ipo, cdpo, simpo   no person: K = 0, z absent
Pairs fix only differences, so probability can drain out of all of them at once; `nll_coef` adds
    −Σ_c p_c log π(y_c),  p = softmax_c(log π_ref(y_c) + target_c/β)  (observed labels: p = share of wins),
which for soft and regression has its optimum at the same differences and keeps the mass on the row's completions.

Shapes: A micro-batches, B rows, C completions, P pairs, K basis outputs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from rlhf.models.layout import HostOrDevice
from rlhf.objectives import preference as losses
from rlhf.objectives.preference import PreferenceLossConfig
from rlhf.policy.batches import PairRows
from rlhf.policy.conditioning import (
    GENERIC,
    Gate,
    Population,
    RailConfig,
    UserShares,
    coef_of_users,
    rail_metrics,
    sample_coef,
)
from rlhf.policy.logprobs import PolicyParams, completion_sums, merge, real_heads, token_logprobs
from rlhf.run.record import Count, record
from rlhf.train import optim
from rlhf.train.guardrails import of_rows
from rlhf.train.guardrails.acts import Found, GuardState, moved
from rlhf.train.guardrails.config import GuardrailsConfig


class DPOBatch(NamedTuple):
    """One optimiser step's data; every leaf starts with [A, B].

    Attributes:
      rows: completions, pairs and labels.
      ref_logprobs: float32[A, B, C], summed log π_ref, nats; 0 on padding.
      basis_rewards: float32[A, B, C, K].
      hidden: activations under the trained layers, or None.
      checks: float32[A, B, C, Q], what the Q checks of guardrails say; None without guardrails.
    """

    rows: PairRows
    ref_logprobs: HostOrDevice
    basis_rewards: HostOrDevice
    hidden: HostOrDevice | None
    checks: HostOrDevice | None = None


@record
class DPOSettings:
    """The sections of a run that compiled code reads, as they stand in its configuration; `traced` before they go there.

    Attributes:
      guardrails: null for none. num_steps: optimiser steps of the run.
    """

    loss: PreferenceLossConfig = PreferenceLossConfig()
    rail: RailConfig = RailConfig()
    guardrails: GuardrailsConfig | None = None
    optimizer: optim.OptimizerConfig
    num_steps: Count


@dataclasses.dataclass(frozen=True)
class DPOProgram:
    """What fixes the compiled program besides the settings; static.

    Attributes:
      shares: how many rows are drawn for whom; None without people.
      with_nll, with_rail: whether these terms are computed; their weights are numbers.
      dtype: what trained base weights are computed in (`policy.merge`).
      extra: a further term of the loss, (params, rows) → (scalar, metrics), hashable; used where a step is given rows.
      own: a user's own optimiser (`optim.apply_gradients`).
      skip: a step that is not finite is left out (`optim.unless_finite`).
    """

    graphdef: nnx.GraphDef
    shares: UserShares | None = None
    with_nll: bool = False
    with_rail: bool = False
    dtype: str = "float32"
    extra: Callable[[PolicyParams, PyTree], tuple[jax.Array, dict[str, jax.Array]]] | None = None
    own: optim.Own = None
    skip: bool = False


def row_coef(
    kind: str, shares: UserShares, population: Population, users: HostOrDevice, key: jax.Array
) -> jax.Array:
    """Coefficients of the rows of one micro-batch, [B, K].

    Observed labels need their own person's; the generic share of the rows still belongs to nobody (w = μ), so the
    aggregate policy is trained as well.
    """
    batch = users.shape[0]
    if kind != "observed":
        return sample_coef(key, population, shares, batch)
    draw_key, kind_key = jax.random.split(key)
    coef = coef_of_users(draw_key, population, users)
    generic = shares.kinds(kind_key, batch) == GENERIC
    return jnp.where(generic[:, None], population.conditioning.mean, coef)


def pair_losses(
    loss_config: PreferenceLossConfig,
    rail: RailConfig,
    rows: PairRows,
    logprobs: jax.Array,
    reference: HostOrDevice,
    target: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each row, [B], and [B]-shaped diagnostics, from log-probs [B, C].

    Args:
      logprobs: log π, summed over tokens (or per-token means when lengths are normalised).
      reference: log π_ref in the same form, or the mixture reference.
      target: w_eff·φ [B, C], for soft and regression.
    """

    def difference(values: jax.Array) -> jax.Array:
        first, second = (jnp.take_along_axis(values, rows.pairs[..., side], axis=1) for side in (0, 1))
        return first - second

    kind = loss_config.kind
    beta = loss_config.dpo_beta + (rail.eta if kind == "observed" else 0.0)
    margin = difference(logprobs - reference)
    h = beta * margin
    weight = rows.pair_weight / jnp.maximum(jnp.sum(rows.pair_weight, axis=1, keepdims=True), 1e-9)
    if kind in ("soft", "regression"):
        assert target is not None, "the coefficients say what is wanted"
        goal = difference(target)
        loss = losses.soft_label(h, goal) if kind == "soft" else losses.regression(h, goal)
        agree = jnp.sign(h) * jnp.sign(goal)
        h = h * jnp.sign(goal)
    else:
        smoothing = loss_config.label_smoothing if kind in ("observed", "cdpo") else 0.0

        def one_way(margin: jax.Array) -> jax.Array:
            if kind == "ipo":
                return losses.ipo(margin, beta)
            if kind == "simpo":
                return losses.simpo(margin, beta, loss_config.simpo_gamma)
            return losses.dpo(beta * margin, smoothing)

        # A tie (outcome 0.5) counts half in either direction.
        margin = difference(logprobs) if kind == "simpo" else margin
        h = beta * margin
        loss = rows.outcome * one_way(margin) + (1.0 - rows.outcome) * one_way(-margin)
        agree = jnp.sign(h) * jnp.sign(rows.outcome - 0.5)
    pair_loss = jnp.sum(weight * loss, axis=1)
    if rows.label_weight is not None:
        pair_loss = rows.label_weight * pair_loss
    diagnostics = {
        "train/loss/pair": pair_loss,
        # Undecided on either side counts half, so a policy that has not moved scores 0.5.
        "train/accuracy": jnp.sum(weight * 0.5 * (1.0 + agree), axis=1),
        "train/margin": jnp.sum(weight * h, axis=1),
    }
    return diagnostics["train/loss/pair"], diagnostics


def supervised_target(rows: PairRows, ref_logprobs: HostOrDevice, scores: jax.Array | None) -> jax.Array:
    """Distribution p[B, C] that the supervised term pulls a row's completions towards.

    soft, regression: softmax_c(log π_ref + target/β), the optimum restricted to the row. Others: the share of the
    row's comparisons that a completion won.
    """
    valid = rows.item >= 0
    if scores is not None:
        return jax.nn.softmax(jnp.where(valid, ref_logprobs + scores, -jnp.inf), axis=1)
    row = jnp.arange(valid.shape[0])[:, None]
    wins = jnp.zeros(valid.shape).at[row, rows.pairs[..., 0]].add(rows.pair_weight * rows.outcome)
    wins = wins.at[row, rows.pairs[..., 1]].add(rows.pair_weight * (1.0 - rows.outcome))
    return wins / jnp.maximum(jnp.sum(wins, axis=1, keepdims=True), 1e-9)


def within_row(
    logprobs: jax.Array, ref_logprobs: HostOrDevice, valid: HostOrDevice
) -> tuple[jax.Array, jax.Array]:
    """The policy renormalised over the row's completions, q[B, C], and KL(q‖q_ref)[B] in nats."""
    log_q = jax.nn.log_softmax(jnp.where(valid, logprobs, -jnp.inf), axis=1)
    log_ref = jax.nn.log_softmax(jnp.where(valid, ref_logprobs, -jnp.inf), axis=1)
    q = jnp.exp(log_q)
    return q, jnp.sum(jnp.where(valid, q * (log_q - log_ref), 0.0), axis=1, where=valid)


def row_metrics(
    trained: dict[str, PyTree],
    frozen: PolicyParams,
    batch: DPOBatch,
    population: Population | None,
    key: jax.Array,
    settings: DPOSettings,
    program: DPOProgram,
    guard: GuardState | None = None,
    drawn: jax.Array | None = None,
) -> tuple[dict[str, jax.Array], Found | None]:
    """Loss and metrics of every row of one micro-batch, [B] each, and what guardrails found.

    Args:
      drawn: float32[B, K], what `row_coef` gives for `key` and these rows; None draws it here.
    """
    loss_config, rail = settings.loss, settings.rail
    params = merge(frozen, trained, program.dtype)
    rows = batch.rows
    valid = rows.item >= 0
    coef = z = target = None
    moved_by_rails: dict[str, jax.Array] = {}
    if loss_config.personal:
        assert population is not None and program.shares is not None, "people, and how many rows are whose"
        coef = drawn
        if coef is None:
            coef = row_coef(loss_config.kind, program.shares, population, rows.user, key)
        if population.conditioning.limits is not None:
            moved_by_rails = rail_metrics(population.conditioning, coef)
        coef, z = Gate(population.conditioning, loss_config.dpo_beta, rail.eta).compose(coef)
        target = jnp.einsum("bk,bck->bc", coef, batch.basis_rewards)
    token, entropy = token_logprobs(program.graphdef, params, rows.packed, z, batch.hidden)
    summed = completion_sums(token, rows.packed)
    length = jnp.maximum(jnp.sum(rows.packed.member, axis=2), 1).astype(jnp.float32)
    reference = batch.ref_logprobs
    if loss_config.kind == "observed" and program.with_rail:
        generic, _ = token_logprobs(program.graphdef, params, rows.packed, None, batch.hidden)
        generic = jax.lax.stop_gradient(completion_sums(generic, rows.packed))
        reference = (loss_config.dpo_beta * reference + rail.eta * generic) / (
            loss_config.dpo_beta + rail.eta
        )
    acts = found = None
    guarded: dict[str, jax.Array] = {}
    if settings.guardrails is not None and guard is not None:
        acts, found, guarded = of_rows.guarded(
            settings.guardrails,
            guard,
            of_rows.RowsSeen(target, batch.basis_rewards, batch.checks, batch.ref_logprobs, summed, valid, z),
            population,
            loss_config.dpo_beta,
        )
        target = None if target is None else target + acts.added
        rows = of_rows.relabelled(settings.guardrails, rows, batch.checks)
    scale = 1.0 / length if loss_config.length_normalise or loss_config.kind == "simpo" else 1.0
    loss, metrics = pair_losses(loss_config, rail, rows, summed * scale, reference * scale, target)
    pulled = loss_config.kind in ("soft", "regression")
    scores = target / loss_config.dpo_beta if target is not None and pulled else None
    wanted = supervised_target(rows, batch.ref_logprobs, scores)
    supervised = -jnp.sum(wanted * jnp.where(valid, summed, 0.0), axis=1)
    if program.with_nll:
        loss = loss + loss_config.nll_coef * supervised
    if acts is not None:
        loss = jnp.where(acts.learn, acts.weight * loss, 0.0)
    used = valid.astype(jnp.float32)
    q, kl = jax.lax.stop_gradient(within_row(summed, batch.ref_logprobs, valid))
    log_ratio = jnp.where(valid, summed - batch.ref_logprobs, 0.0)
    metrics |= {
        "train/loss/total": loss,
        "train/loss/nll": supervised,
        "train/token_entropy_nats": jnp.mean(entropy, axis=1, where=real_heads(rows.packed)),
        "train/completion_logprob_nats": jnp.sum(used * summed, axis=1) / jnp.sum(used, axis=1),
        "train/log_ratio_nats": jnp.sum(log_ratio, axis=1) / jnp.sum(used, axis=1),
        "train/kl_ref_nats": kl,
        "train/group_mass": jnp.sum(jnp.where(valid, jnp.exp(summed), 0.0), axis=1),
        "train/completion_tokens": jnp.sum(length * used, axis=1) / jnp.sum(used, axis=1),
    }
    if target is not None and z is not None:
        metrics["train/reward"] = jnp.sum(q * target, axis=1)
        metrics["train/z_norm"] = jnp.linalg.norm(z, axis=1)
    return metrics | guarded | moved_by_rails, found


def _loss(*args: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Found | None]]:
    """Mean loss of one micro-batch, its metrics and what guardrails found; arguments as of `row_metrics`."""
    rows, found = row_metrics(*args)
    metrics = {name: jnp.mean(value) for name, value in rows.items()}
    return metrics["train/loss/total"], (metrics, found)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def step(
    state: optim.TrainState,
    batch: DPOBatch,
    frozen: PolicyParams,
    population: Population | None,
    settings: DPOSettings,
    *,
    program: DPOProgram,
    extra: PyTree = None,
) -> tuple[optim.TrainState, dict[str, jax.Array]]:
    """One optimiser step over A micro-batches (gradients averaged); the state's buffers are donated.

    `settings` are `traced`. `extra` holds rows of `program.extra`, whose term joins the loss once a step; None for none.
    """
    key, before = jax.random.fold_in(state.key, state.step), state

    def gradient(inputs: tuple[DPOBatch, jax.Array]) -> tuple[PyTree, PyTree]:
        micro, micro_key = inputs
        return jax.grad(_loss, has_aux=True)(
            state.params, frozen, micro, population, micro_key, settings, program, state.guard
        )

    num_micro = batch.ref_logprobs.shape[0]
    grads, (metrics, found) = optim.accumulate(gradient, (batch, jax.random.split(key, num_micro)))
    grads = jax.tree.map(lambda g: g / num_micro, grads)  # of one, the compiler leaves it out
    metrics = jax.tree.map(jnp.mean, metrics)
    if settings.guardrails is not None and found is not None:
        means = jax.tree.map(lambda each: jnp.mean(each, axis=0), found)
        state = state._replace(guard=moved(settings.guardrails, state.guard, means))
    further = program.extra
    if further is not None and extra is not None:
        term = jax.value_and_grad(
            lambda trained: further(merge(frozen, trained, program.dtype), extra), has_aux=True
        )
        (value, more), own = term(state.params)
        grads = jax.tree.map(jnp.add, grads, own)
        metrics |= more | {"train/loss/total": metrics["train/loss/total"] + value}
    state, norms = optim.apply_gradients(state, grads, settings.optimizer, settings.num_steps, program.own)
    metrics |= norms
    return optim.unless_finite(before, state, metrics) if program.skip else (state, metrics)


MEASURED = ("loss/total", "loss/pair", "accuracy", "margin", "reward", "kl_ref_nats")
"""What `evaluate` gives, `reward` with people only."""


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    trained: dict[str, PyTree],
    batch: DPOBatch,
    real: HostOrDevice,
    frozen: PolicyParams,
    population: Population | None,
    key: jax.Array,
    settings: DPOSettings,
    *,
    program: DPOProgram,
    guard: GuardState | None = None,
) -> dict[str, jax.Array]:
    """Means over the rows of a whole data set, of A micro-batches.

    Args:
      real: float32[A, B], 1 for rows that count. key: of the people that rows are drawn for. guard: of the training state.
    """

    def sums(inputs: tuple[DPOBatch, HostOrDevice, jax.Array]) -> dict[str, jax.Array]:
        micro, counts, micro_key = inputs
        rows, _ = row_metrics(trained, frozen, micro, population, micro_key, settings, program, guard)
        return {
            f"eval/{name}": jnp.sum(counts * rows[f"train/{name}"])
            for name in MEASURED
            if f"train/{name}" in rows
        }

    found = jax.lax.map(sums, (batch, real, jax.random.split(key, real.shape[0])))
    return {name: jnp.sum(values) / jnp.sum(real) for name, values in found.items()}
