"""Reward models end to end: the loss and the compiled step.

    r_u(x, y) = h(x, y)ᵀ (v + V δ_u)                        h: state of the model, pooled over the completion
    L = −mean_n [o log σ(m) + (1 − o) log σ(−m)] + λ_c mean_n (r(chosen) + r(rejected))²
        + Σ_u |δ_u|² / (2 s² N),     m = r_u(chosen) − r_u(rejected) − margin

o is 1, or ½ for a tie; s the prior standard deviation of a person's coefficients and N the number of comparisons, so the last
term is −log N(0, s² I) of everybody, once an epoch. With K = 0 there are no people: the ordinary reward model of Bradley and
Terry (Ouyang et al. 2022), with the margin of Touvron et al. (2023) and the centring of Eisenstein et al. (2023), the loss of
TRL's RewardTrainer.

Shapes: A micro-batches, B rows (one comparison each), N scored nodes, D width, K tastes, U people.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree
from pydantic import Field

from rlhf.models.layout import HostOrDevice
from rlhf.phi.columns.hidden import pooled_nodes
from rlhf.policy.logprobs import PolicyParams, merge
from rlhf.policy.packing import PackedRows
from rlhf.run.record import Count, record
from rlhf.train import optim

Head = dict[str, jax.Array]  # shared [D, 1], tastes [D, K], people [U, K]; the last two where K > 0


@record
class HeadConfig:
    """What is read off the model's last layer."""

    num_basis: int = Field(
        default=0,
        ge=0,
        le=1_024,
        description="Directions of taste (K) besides the shared one, with coefficients of every training person; 0 is an "
        "ordinary reward model.",
    )
    pool: Literal["last", "mean"] = Field(
        default="last", description="State of the completion's last token, or the mean over its tokens."
    )
    centring: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="λ_c: weight of (r(chosen) + r(rejected))², which keeps rewards near 0.",
    )
    margin_column: str | None = Field(
        default=None,
        min_length=1,
        description="Column of the data with the margin by which the chosen completion should win; null: none.",
    )
    prior_sd: float = Field(
        default=1.0,
        gt=0,
        le=1e3,
        description="s: prior standard deviation of a person's coefficients (num_basis above 0).",
    )


class RewardRows(NamedTuple):
    """Comparisons, one a row.

    Attributes:
      packed: the prompt with completions (chosen, rejected).
      user: int32[R], index of who chose among the training people; −1 for somebody without coefficients.
      outcome: float32[R], 1, or 0.5 for a tie.
      margin: float32[R]. weight: float32[R], 0 where a row does not count.
    """

    packed: PackedRows
    user: HostOrDevice
    outcome: HostOrDevice
    margin: HostOrDevice
    weight: HostOrDevice


@record
class RewardSettings:
    """What compiled code reads besides; `traced` before it goes there. num_rows: N comparisons of an epoch."""

    optimizer: optim.OptimizerConfig
    num_steps: Count
    centring: float
    prior_sd: float
    num_rows: Count


@dataclasses.dataclass(frozen=True)
class RewardProgram:
    """What fixes the program besides the settings; `own` a user's own optimiser, `skip` as in `SFTProgram`."""

    graphdef: nnx.GraphDef
    pool: str
    dtype: str = "float32"
    own: optim.Own = None
    skip: bool = False


def init_head(config: HeadConfig, width: int, num_users: int, key: jax.Array) -> Head:
    """Small normal numbers, 0.02 as transformers begins a `score` head; K = 0 has the shared direction alone."""
    shared, tastes, people = jax.random.split(key, 3)
    head = {"shared": 0.02 * jax.random.normal(shared, (width, 1))}
    if config.num_basis:
        head["tastes"] = 0.02 * jax.random.normal(tastes, (width, config.num_basis))
        head["people"] = 0.1 * config.prior_sd * jax.random.normal(people, (num_users, config.num_basis))
    return head


def rewards_of(program: RewardProgram, params: PolicyParams, head: Head, rows: RewardRows) -> jax.Array:
    """r_u of (chosen, rejected), float32[B, 2]; somebody without coefficients has δ = 0."""
    states = pooled_nodes(program.graphdef, params, rows.packed, pool=program.pool)
    rewards = (states @ head["shared"])[..., 0]
    if "tastes" in head:
        user = jnp.asarray(rows.user)
        delta = jnp.where(user[:, None] >= 0, head["people"][jnp.maximum(user, 0)], 0.0)
        rewards += jnp.einsum("bcd,dk,bk->bc", states, head["tastes"], delta)
    return rewards


def comparison_losses(
    rewards: jax.Array, outcome: HostOrDevice, margin: HostOrDevice, centring: jax.Array | float
) -> jax.Array:
    """Loss of every comparison in nats, float32[B], from rewards[B, 2] of (chosen, rejected)."""
    ahead = rewards[:, 0] - rewards[:, 1] - margin
    right = jnp.asarray(outcome)
    loss = -(right * jax.nn.log_sigmoid(ahead) + (1.0 - right) * jax.nn.log_sigmoid(-ahead))
    return loss + centring * jnp.sum(rewards, axis=1) ** 2


def loss_of(
    trained: dict[str, PyTree],
    frozen: PolicyParams,
    rows: RewardRows,
    total: jax.Array,
    settings: RewardSettings,
    program: RewardProgram,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This micro-batch's share of the batch loss, and metrics that add up over micro-batches."""
    head = trained["score"]
    params = merge(frozen, {name: part for name, part in trained.items() if name != "score"}, program.dtype)
    rewards = rewards_of(program, params, head, rows)
    share = rows.weight / total
    pair = jnp.sum(share * comparison_losses(rewards, rows.outcome, rows.margin, settings.centring))
    prior = jnp.zeros(())
    if "people" in head:
        prior = jnp.sum(head["people"] ** 2) / (2.0 * settings.prior_sd**2 * settings.num_rows)
    ahead = rewards[:, 0] - rewards[:, 1]
    metrics = {
        "train/loss/pair": pair,
        "train/accuracy": jnp.sum(share * ((ahead > 0) + 0.5 * (ahead == 0))),
        "train/margin": jnp.sum(share * ahead),
        "train/reward_mean": jnp.sum(share[:, None] * rewards) / 2.0,
    }
    return pair + prior * jnp.sum(share), metrics | {"train/loss/total": pair + prior * jnp.sum(share)}


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def step(
    state: optim.TrainState,
    batch: RewardRows,
    frozen: PolicyParams,
    settings: RewardSettings,
    *,
    program: RewardProgram,
) -> tuple[optim.TrainState, dict[str, jax.Array]]:
    """One optimiser step over A micro-batches; the state's buffers are donated."""
    total = jnp.sum(batch.weight)

    def gradient(micro: RewardRows) -> tuple[PyTree, dict[str, jax.Array]]:
        return jax.grad(loss_of, has_aux=True)(state.params, frozen, micro, total, settings, program)

    grads, metrics = optim.accumulate(gradient, batch)
    new, norms = optim.apply_gradients(state, grads, settings.optimizer, settings.num_steps, program.own)
    metrics = {name: jnp.sum(values) for name, values in metrics.items()} | norms
    return optim.unless_finite(state, new, metrics) if program.skip else (new, metrics)


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    trained: dict[str, PyTree],
    batch: RewardRows,
    frozen: PolicyParams,
    settings: RewardSettings,
    *,
    program: RewardProgram,
) -> dict[str, jax.Array]:
    """Loss and accuracy of a whole data set, of A micro-batches; rows that do not count have weight 0."""
    total = jnp.sum(batch.weight)

    def measure(micro: RewardRows) -> dict[str, jax.Array]:
        return loss_of(trained, frozen, micro, total, settings, program)[1]

    found = {name: jnp.sum(values) for name, values in jax.lax.map(measure, batch).items()}
    return {f"eval/{name}": found[f"train/{name}"] for name in ("loss/pair", "accuracy")}
