"""The networks of the variational models and their one compiled training loop.

    encoder   answers of a person → q(z | answers) = N(m, diag s²), invariant to their order
    flow      (SPL) two inverse autoregressive layers after it
    decoder   r(x, z), a reward that need not be linear in z

Training draws people, and for each of them 0 … max_context answers as the context and others as targets, so
one fitted model serves people with any number of answers, none included:

    L = [Σ_targets −log P(y | r(x_c, z) − r(x_r, z)) + β Σ_people KL(q(z | context) ‖ N(0, I))
         + γ Σ_people guidance] / number of targets,      z ~ q(z | context)

Guidance (SPL) compares the context with its answers swapped: the mean has to flip its sign and the variance to
stay, which an encoder that ignores its input cannot do except by m = 0 for everyone.

Letters in shapes: I items, P input width, B people of a batch, U people, M answers (padded), n context answers,
T targets, L latent width.
Source: Poddar et al. 2024, arXiv:2408.10075 (VPL); SPL, arXiv:2603.12595; the random contexts are those of neural
processes (Kobalczyk et al. 2024, arXiv:2412.13998). Differs: the latent is never rescaled, in training or later,
so that adaptation reads what training wrote, and KL has its ½.
"""

import dataclasses
import functools
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from rewards.basis.joint import Kind
from rewards.basis.likelihood import negative_log_likelihood

HEADS = 4
LOG_SCALE_BOUND = 5.0  # log s is kept within ±5 by a tanh: exp cannot overflow and never loses its gradient


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes that decide the parameters; `flows` > 0 or `film` is SPL's."""

    inputs: int
    latent: int
    hidden: int
    flows: int = 0
    film: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """Static settings of the loop: people a step B, n, T, whether there is guidance, and the optimiser's."""

    batch: int
    max_context: int
    targets: int
    guided: bool
    learning_rate: float
    weight_decay: float
    total_steps: int


class Weights(NamedTuple):
    """β and γ of the loss; arrays, so that trying others compiles nothing."""

    kl: Float[Array, ""]
    guidance: Float[Array, ""]


class Answers(NamedTuple, Generic[Kind]):
    """Answers of U people; weight 0 pads. outcome is 1 when `chosen` was preferred, ½ for a tie."""

    chosen: Int[Kind, "U M"]
    rejected: Int[Kind, "U M"]
    outcome: Float[Kind, "U M"]
    weight: Float[Kind, "U M"]


class Latent(NamedTuple):
    """q(z | answers) before the flow, and what the flow may read of the answers."""

    mean: Float[Array, "B L"]
    log_scale: Float[Array, "B L"]
    context: Float[Array, "B H"]


class Encoder(nnx.Module):
    """Pair MLP → masked self-attention → pool → N(m, s²)."""

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        hidden = shape.hidden
        self.pair_in = nnx.Linear(2 * shape.inputs + 1, hidden, rngs=rngs)
        self.pair_out = nnx.Linear(hidden, hidden, rngs=rngs)
        self.query = nnx.Linear(hidden, hidden, rngs=rngs)
        self.key = nnx.Linear(hidden, hidden, rngs=rngs)
        self.value = nnx.Linear(hidden, hidden, rngs=rngs)
        self.merge = nnx.Linear(hidden, hidden, rngs=rngs)
        self.pooled = nnx.Linear(hidden + 1, hidden, rngs=rngs)
        self.latent = nnx.Linear(hidden, 2 * shape.latent, rngs=rngs)

    def __call__(self, first, second, outcome, weight) -> Latent:
        """first[B, n, P], second[B, n, P], outcome[B, n], weight[B, n] → q; the order of answers is immaterial."""
        strength = (2.0 * outcome - 1.0)[..., None]
        # An answer "rejected was better" is the same answer read the other way round.
        swap = strength < 0
        pair = jnp.concatenate(
            [jnp.where(swap, second, first), jnp.where(swap, first, second), jnp.abs(strength)], axis=-1
        )
        h = self.pair_out(nnx.gelu(self.pair_in(pair)))
        heads = (*h.shape[:2], HEADS, h.shape[-1] // HEADS)
        # log weight as bias: a padded answer is not attended to and half an answer half as much. All of them
        # padded gives a uniform, finite average, which the pooling below weighs with 0.
        present = weight > 0
        bias = jnp.where(present, jnp.log(jnp.where(present, weight, 1.0)), -1e9)[:, None, None, :]
        attended = jax.nn.dot_product_attention(
            self.query(h).reshape(heads), self.key(h).reshape(heads), self.value(h).reshape(heads), bias=bias
        )
        h = nnx.gelu(h + self.merge(attended.reshape(h.shape)))
        # Σ h / (1 + n): 0 without answers, bounded for any number of them, and together with n / (1 + n) it
        # determines the sum, so that certainty may grow with n.
        count = jnp.sum(weight, axis=1, keepdims=True)
        pooled = jnp.sum(h * weight[..., None], axis=1) / (1.0 + count)
        context = nnx.gelu(self.pooled(jnp.concatenate([pooled, count / (1.0 + count)], axis=-1)))
        mean, raw = jnp.split(self.latent(context), 2, axis=-1)
        return Latent(mean, LOG_SCALE_BOUND * jnp.tanh(raw / LOG_SCALE_BOUND), context)


class Flow(nnx.Module):
    """z′_i = σ_i z_i + (1 − σ_i) a_i with a, σ from z_{<i} and the context: log |det| = Σ log σ_i.

    Source: Kingma et al. 2016, arXiv:1606.04934, Eqs. 13–14; one masked linear layer instead of a MADE.
    """

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        self.previous = nnx.Linear(shape.latent, 2 * shape.latent, use_bias=False, rngs=rngs)
        self.context = nnx.Linear(shape.hidden, 2 * shape.latent, rngs=rngs)

    def __call__(self, z, context):
        width = z.shape[-1]
        below = jnp.triu(jnp.ones((width, width)), 1)  # kernel[input, output]: output i reads inputs before i
        kernel = self.previous.kernel[...] * jnp.concatenate([below, below], axis=1)
        shift, gate = jnp.split(z @ kernel + self.context(context), 2, axis=-1)
        gate = gate + 2.0  # starts near the identity
        kept = nnx.sigmoid(gate)
        return kept * z + (1.0 - kept) * shift, jnp.sum(nnx.log_sigmoid(gate), axis=-1)


class Decoder(nnx.Module):
    """r(x, z): an MLP on [x, z], or one on x whose layers z scales and shifts (FiLM)."""

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        hidden, self.film = shape.hidden, shape.film
        self.first = nnx.Linear(shape.inputs + (0 if shape.film else shape.latent), hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.third = nnx.Linear(hidden, 1, rngs=rngs)
        if shape.film:
            self.modulate = nnx.Linear(shape.latent, 4 * hidden, rngs=rngs)

    def __call__(self, x, z):
        """x[B, T, P], z[B, L] → r[B, T]."""
        if not self.film:
            z = jnp.broadcast_to(z[:, None], (*x.shape[:2], z.shape[-1]))
            h = nnx.gelu(self.first(jnp.concatenate([x, z], axis=-1)))
            return self.third(nnx.gelu(self.second(h)))[..., 0]
        scale_1, shift_1, scale_2, shift_2 = jnp.split(self.modulate(z)[:, None], 4, axis=-1)
        h = nnx.gelu((1.0 + scale_1) * self.first(x) + shift_1)
        return self.third(nnx.gelu((1.0 + scale_2) * self.second(h) + shift_2))[..., 0]


class Net(nnx.Module):
    """Encoder, flow layers and decoder."""

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        self.encoder = Encoder(shape, rngs=rngs)
        self.flows = nnx.List([Flow(shape, rngs=rngs) for _ in range(shape.flows)])
        self.decoder = Decoder(shape, rngs=rngs)

    def encode(self, x, answers: Answers[Array]) -> Latent:
        return self.encoder(x[answers.chosen], x[answers.rejected], answers.outcome, answers.weight)

    def transform(self, z, context):
        """The flow: z[B, L] → z′[B, L] and log |det|[B]; the identity for VPL."""
        log_det = jnp.zeros(z.shape[0])
        for flow in self.flows:
            z, change = flow(z, context)
            z, log_det = z[:, ::-1], log_det + change  # reversed, so that the next layer reads the others
        return z, log_det

    def point(self, q: Latent):
        """The latent used after training: the mean of q, through the flow."""
        return self.transform(q.mean, q.context)[0]

    def margin(self, x, z, pairs: Answers[Array]):
        return self.decoder(x[pairs.chosen], z) - self.decoder(x[pairs.rejected], z)


def kl_to_prior(q: Latent) -> Float[Array, " B"]:
    """KL(N(m, s²) ‖ N(0, I)) = ½ Σ (m² + s² − 1 − log s²), nats a person; the ½ is often forgotten."""
    return 0.5 * jnp.sum(q.mean**2 + jnp.exp(2.0 * q.log_scale) - 1.0 - 2.0 * q.log_scale, axis=-1)


def person_kl(net: Net, q: Latent, noise: Float[Array, "B L"]):
    """z ~ q and its KL[B] to N(0, I): exact without a flow, else log q(z) − log p(z) of the one sample."""
    base = q.mean + jnp.exp(q.log_scale) * noise
    if not net.flows:
        return base, kl_to_prior(q)
    z, log_det = net.transform(base, q.context)
    log_q = -jnp.sum(q.log_scale, axis=-1) - 0.5 * jnp.sum(noise**2, axis=-1) - log_det
    return z, log_q + 0.5 * jnp.sum(z**2, axis=-1)


def episode(key: Array, people: Answers[Array], plan: Plan) -> tuple[Answers[Array], Answers[Array]]:
    """Draw B people, a context of 0 … max_context of their answers, and targets among the others."""
    person_key, order_key, size_key = jax.random.split(key, 3)
    chosen = jax.random.randint(person_key, (plan.batch,), 0, people.weight.shape[0])
    batch = Answers(*(part[chosen] for part in people))
    present = batch.weight > 0
    order = jnp.argsort(jax.random.uniform(order_key, present.shape) + 2.0 * ~present, axis=1)
    batch = Answers(*(jnp.take_along_axis(part, order, axis=1) for part in batch))
    count = jnp.sum(present, axis=1)
    largest = jnp.minimum(plan.max_context, count - 1)  # one answer at least remains to be predicted
    size = jnp.floor(jax.random.uniform(size_key, count.shape) * (largest + 1)).astype(jnp.int32)
    return split(batch, size, plan.max_context, plan.targets)


def split(
    answers: Answers[Array], size: Int[Array, " B"], max_context: int, targets: int
) -> tuple[Answers[Array], Answers[Array]]:
    """The first `size` answers of each person as context, the next `targets` as targets; padded answers last."""
    length = answers.weight.shape[1]
    context = Answers(*(part[:, : max(1, min(max_context, length))] for part in answers))
    mask = jnp.arange(context.weight.shape[1]) < size[:, None]
    position = size[:, None] + jnp.arange(min(targets, length))
    inside = position < length
    rest = Answers(
        *(jnp.take_along_axis(part, jnp.minimum(position, length - 1), axis=1) for part in answers)
    )
    return context._replace(weight=context.weight * mask), rest._replace(weight=rest.weight * inside)


def objective(net: Net, x, key: Array, people: Answers[Array], plan: Plan, weights: Weights):
    """L above for one batch, and its parts."""
    episode_key, noise_key = jax.random.split(key)
    context, targets = episode(episode_key, people, plan)
    q = net.encode(x, context)
    z, kl = person_kl(net, q, jax.random.normal(noise_key, q.mean.shape))
    nll = negative_log_likelihood(net.margin(x, z, targets), targets.outcome)
    number = jnp.maximum(jnp.sum(targets.weight), 1.0)
    fit = jnp.sum(nll * targets.weight) / number
    loss = fit + weights.kl * jnp.sum(kl) / number
    if plan.guided:
        mirrored = net.encode(x, context._replace(outcome=1.0 - context.outcome))
        apart = (q.mean + mirrored.mean) ** 2 + (q.log_scale - mirrored.log_scale) ** 2
        loss = loss + weights.guidance * jnp.sum(apart) / number
    return loss, {"loss_nats": fit, "kl_nats": jnp.mean(kl)}


def optimiser(plan: Plan) -> optax.GradientTransformation:
    warm_up = max(1, plan.total_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, plan.learning_rate, warm_up, max(plan.total_steps, warm_up + 1)
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=plan.weight_decay))


@functools.partial(jax.jit, static_argnames=("graph", "plan", "steps"))
def train_steps(
    graph, plan: Plan, steps: int, params, opt_state, x, people: Answers[Array], weights: Weights, key: Array
):
    """`steps` optimiser steps in one scan, compiled once; means of the metrics over them."""
    solver = optimiser(plan)

    def loss(params, step_key):
        return objective(nnx.merge(graph, params), x, step_key, people, plan, weights)

    def step(carry, step_key):
        params, opt_state = carry
        (_, metrics), grad = jax.value_and_grad(loss, has_aux=True)(params, step_key)
        updates, opt_state = solver.update(grad, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics

    (params, opt_state), metrics = jax.lax.scan(step, (params, opt_state), jax.random.split(key, steps))
    return params, opt_state, {name: jnp.mean(values) for name, values in metrics.items()}


@functools.partial(jax.jit, static_argnames=("graph",))
def encode(graph, params, x, answers: Answers[Array]):
    """Point latents[U, L], scales of q before the flow[U, L] and exact KL of that part[U], nats."""
    net = nnx.merge(graph, params)
    q = net.encode(x, answers)
    return net.point(q), jnp.exp(q.log_scale), kl_to_prior(q)


@functools.partial(jax.jit, static_argnames=("graph",))
def margins(graph, params, x, latents: Float[Array, "U L"], pairs: Answers[Array]) -> Float[Array, "U T"]:
    """r(x_c, z_u) − r(x_r, z_u); 0 for padding."""
    return nnx.merge(graph, params).margin(x, latents, pairs) * (pairs.weight > 0)
