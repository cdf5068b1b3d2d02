"""VPL and SPL: a person is a latent z that a network reads off their answers.

    z = E q_ψ(z | answers),   r_u(x, y) = r_θ(e(x, y), z)

Adaptation is one pass of the network, with 0, 1, … answers. Such latents are known to die in silence: the decoder
learns to do without z and every person gets the same reward. So a fit reports, for people it has not seen,

    active_units     latent dimensions with Var_people(E q[z]) > 0.01 (Burda et al. 2016, arXiv:1509.00519)
    swap_loss        accuracy with a person's own context less that with another person's context
    kl_nats          KL(q(z | context) ‖ N(0, I)) with its ½, before the flow

and `warnings` says in words when the model ignores the person.

Letters in shapes: I items, D embedding width, P input width, U people, n answers, T pairs, L latent width.
Source: `variational_net`.
"""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from rewards import hashed
from rewards.basis.reduce import whitened_components
from rewards.data.order import by_content
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import variational_data as around
from rewards.methods import variational_net as network
from rewards.methods.base import Comparisons, FittedModel, ItemTable, OnRound, RewardModel
from rewards.types import Preferences

CELLS = 1 << 22  # people × answers² (or pairs) of one compiled call

Count = Annotated[int, pydantic.Field(ge=1, le=1_000_000)]
Positive = Annotated[float, pydantic.Field(gt=0, le=1e9)]
NonNegative = Annotated[float, pydantic.Field(ge=0, le=1e9)]


@dataclasses.dataclass(frozen=True)
class Latents:
    """People of a variational model: mean[U, L], the z they are served with, and scale[U, L], s of q(z)."""

    mean: np.ndarray
    scale: np.ndarray


@dataclasses.dataclass(frozen=True)
class VPLFitted(FittedModel):
    """A fitted network.

    Attributes:
      shape: sizes of the network; `params` its arrays by name, float32.
      input_mean[D], projection[D, P]: x = projectionᵀ (e − input_mean), the network's inputs.
      latents: the training people.
      hyper: settings of the estimator; `report` the numbers of the fit and the monitors above.
    """

    kind: ClassVar[str] = "vpl"
    policy_refusal: ClassVar[str | None] = (
        "the reward is not linear in a coefficient vector, which is what conditions a policy; score pairs with this "
        "model and fit kind house on the scores instead"
    )

    shape: network.Shape
    params: dict[str, np.ndarray]
    input_mean: np.ndarray
    projection: np.ndarray
    latents: Latents
    hyper: JSONObject
    report: JSONObject

    def _adapt(self, table: ItemTable, answers: Comparisons) -> Latents:
        graph, params = around.module(self.shape, self.params)
        x = self._inputs(table)
        people, length = answers.weight.shape
        if length == 0:
            answers = Comparisons(*(np.zeros((people, 1), part.dtype) for part in around.parts(answers)))
        size = max(1, CELLS // max(1, length) ** 2)
        mean, scale, _ = around.in_chunks(lambda part: network.encode(graph, params, x, part), answers, size)
        return Latents(mean, scale)

    def seen(self) -> Latents:
        return self.latents

    def _margins(self, table: ItemTable, people: Latents, pairs: Comparisons) -> np.ndarray:
        if pairs.weight.size == 0:
            return np.zeros(pairs.weight.shape, np.float32)
        graph, params = around.module(self.shape, self.params)
        x, size = self._inputs(table), max(1, CELLS // (16 * pairs.weight.shape[1]))
        (values,) = around.in_chunks(
            lambda part, latent: (network.margins(graph, params, x, latent, part),), pairs, size, people.mean
        )
        return values

    def tensors(self) -> dict[str, np.ndarray]:
        own = {
            "input.mean": self.input_mean,
            "input.projection": self.projection,
            "people.mean": self.latents.mean,
            "people.scale": self.latents.scale,
        }
        return {name: np.asarray(value, np.float32) for name, value in own.items()} | {
            f"net.{name}": value for name, value in self.params.items()
        }

    def settings(self) -> JSONObject:
        return {
            "kind": self.kind,
            "shape": dataclasses.asdict(self.shape),
            "hyper": self.hyper,
            "report": self.report,
        }

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray], settings: JSONObject) -> "VPLFitted":
        shape = around.check_settings(cls.kind, settings)
        width, people = (
            around.length(cls.kind, tensors, "input.mean"),
            around.length(cls.kind, tensors, "people.mean"),
        )
        expected = {
            "input.mean": (width,),
            "input.projection": (width, shape.inputs),
            "people.mean": (people, shape.latent),
            "people.scale": (people, shape.latent),
        } | {f"net.{name}": size for name, size in around.sizes(shape).items()}
        hashed.check_tensors(
            tensors, expected, f"{cls.kind} model", f"a {cls.kind} model", "restore or refit the model"
        )
        params = {name[4:]: value for name, value in tensors.items() if name.startswith("net.")}
        return cls(
            shape,
            params,
            tensors["input.mean"],
            tensors["input.projection"],
            Latents(tensors["people.mean"], tensors["people.scale"]),
            settings["hyper"],
            settings["report"],
        )

    def _inputs(self, table: ItemTable) -> np.ndarray:
        embeddings = np.asarray(table.embeddings)
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.input_mean):
            raise UserError(
                f"embeddings: shape {embeddings.shape}, but the {self.kind} model reads width "
                f"{len(self.input_mean)}; use the encoder it was fitted with"
            )
        return (embeddings.astype(np.float32) - self.input_mean) @ self.projection


@dataclasses.dataclass(frozen=True)
class SPLFitted(VPLFitted):
    """A fitted SPL network."""

    kind: ClassVar[str] = "spl"


@pydantic.dataclasses.dataclass(
    frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
)
class VPL(RewardModel):
    """Variational preference learning.

    Attributes:
      latent: L. `hidden`: width of the networks, a multiple of 4.
      dims: principal components of the embeddings (within prompts) that the networks read.
      max_context: most answers in a training context; 0 fits one reward for everyone (a Bradley–Terry MLP).
      targets: T, answers predicted from each context.
      kl_weight: β; 1 is the ELBO of T answers, 0 no variational term.
      batch: people a step. `steps`: optimiser steps, in `rounds` equal parts.
      held_out: share of the people kept for the monitors and the choice of the best round; 0 keeps none, and then
        both use the training people.
      seed: of initialisation, batches and the people held out.
    """

    kind: ClassVar[str] = "vpl"
    fitted: ClassVar[type[VPLFitted]] = VPLFitted

    latent: Count = 16
    hidden: Annotated[int, pydantic.Field(ge=network.HEADS, le=8_192, multiple_of=network.HEADS)] = 64
    dims: Count = 32
    max_context: Annotated[int, pydantic.Field(ge=0, le=100_000)] = 16
    targets: Count = 16
    kl_weight: NonNegative = 0.02
    batch: Count = 64
    steps: Count = 2000
    rounds: Count = 20
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 1.0
    held_out: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.15
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0

    def _fit(
        self,
        table: ItemTable,
        training: Preferences,
        *,
        weight: np.ndarray | None = None,
        on_round: OnRound | None = None,
    ) -> VPLFitted:
        answers = around.padded_answers(training, weight, self.seed)
        used = np.unique(np.concatenate([training.chosen, training.rejected]))
        embeddings = np.asarray(table.embeddings, np.float64)
        reduction = whitened_components(embeddings[used], training.item_prompt[used], self.dims)
        # One shift for all items, not one a prompt: an item's reward must not depend on the other items around.
        mean = embeddings[used].mean(axis=0)
        x = ((embeddings - mean) @ reduction.projection).astype(np.float32)
        place, _ = by_content(training)
        present = np.flatnonzero(answers.weight.sum(axis=1) > 0)
        shuffled = np.random.default_rng(self.seed).permutation(present[np.argsort(place[present])])
        kept = min(round(self.held_out * len(present)), len(present) - 2)
        held_out, people = (part[np.argsort(place[part])] for part in (shuffled[:kept], shuffled[kept:]))
        shape = self._shape(reduction.rank)
        params, report = self._train(shape, x, answers, people, held_out, on_round)
        empty = np.zeros((0, shape.latent), np.float32)
        hyper = dataclasses.asdict(self)
        model = self.fitted(
            shape,
            params,
            mean.astype(np.float32),
            reduction.projection.astype(np.float32),
            Latents(empty, empty),
            hyper,
            report,
        )
        return dataclasses.replace(model, latents=model.adapt(table, answers))

    def _shape(self, inputs: int) -> network.Shape:
        return network.Shape(inputs, self.latent, self.hidden)

    def _plan(self) -> network.Plan:
        steps = -(-self.steps // self.rounds)
        return network.Plan(
            batch=self.batch,
            max_context=self.max_context,
            targets=self.targets,
            guided=isinstance(self, SPL),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            total_steps=steps * self.rounds,
        )

    def _train(self, shape, x, answers, people, held_out, on_round):
        """Rounds of steps; the parameters of the round that predicts best, and the monitors."""
        plan, watched = self._plan(), around.take(answers, held_out if len(held_out) >= 2 else people)
        watched = around.shuffled(watched, self.seed)
        graph, params = around.module(shape, around.initial(shape, self.seed))
        opt_state = network.optimiser(plan).init(params)
        device = network.Answers(
            *(jax.device_put(part) for part in around.parts(around.take(answers, people)))
        )
        key, steps = jax.random.key(self.seed + 1), plan.total_steps // self.rounds
        weights = network.Weights(jnp.float32(self.kl_weight), jnp.float32(getattr(self, "guidance", 0.0)))
        best, best_loss, best_round = params, np.inf, -1
        for number in range(self.rounds):
            params, opt_state, metrics = network.train_steps(
                graph, plan, steps, params, opt_state, x, device, weights, jax.random.fold_in(key, number)
            )
            values = {name: float(value) for name, value in metrics.items()}
            if not all(map(np.isfinite, values.values())):
                raise UserError(
                    f"{self.kind} fit: {values} in round {number}; lower learning_rate (now {self.learning_rate})"
                )
            values["watched_loss_nats"] = around.prediction_loss(graph, params, x, watched, self.max_context)
            if values["watched_loss_nats"] < best_loss:
                best, best_loss, best_round = params, values["watched_loss_nats"], number
            if on_round:
                on_round(number, values)
        report = {"best_round": best_round, "watched_loss_nats": best_loss, "held_out_people": len(held_out)}
        report |= around.monitors(graph, best, x, watched, self.max_context)
        return around.flat(best), report


@pydantic.dataclasses.dataclass(
    frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
)
class SPL(VPL):
    """VPL with swapped-label guidance, FiLM and flow layers against posterior collapse.

    Attributes:
      guidance: γ, weight of the mirror condition on contexts with swapped answers.
      flows: inverse autoregressive layers.
    """

    kind: ClassVar[str] = "spl"
    fitted: ClassVar[type[VPLFitted]] = SPLFitted

    guidance: NonNegative = 0.01
    flows: Annotated[int, pydantic.Field(ge=0, le=1_000)] = 2

    def _shape(self, inputs: int) -> network.Shape:
        return network.Shape(inputs, self.latent, self.hidden, flows=self.flows, film=True)
