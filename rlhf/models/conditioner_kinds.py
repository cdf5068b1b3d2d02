"""What is true of each kind of conditioner: what it costs, and whether one person's policy is an ordinary model.

Letters: L adapted layers, K basis outputs, r rank, D width, M slots, H heads, G key/value heads, h head width,
V vocabulary, W words' tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from rewards.errors import UserError
from rlhf.models import layout
from rlhf.models.adapters import AdapterSpec, merged_kernel
from rlhf.models.config import ModelConfig
from rlhf.models.layout import Tree
from rlhf.run.record import record

MAX_INNER = 64
"""K·r above which the low-rank conditioner costs more than about 15 % of the layers' work."""


@record
class ConditionerConfig:
    """How coefficients act on the policy."""

    kind: Literal["low_rank", "film", "prefix", "logit_heads", "text"] = Field(
        default="low_rank",
        description="How coefficients act: a low-rank change of every linear map, scale and shift of normed inputs, "
        "extra attention slots, heads that add to the logits, or words in front of the prompt.",
    )
    rank: int = Field(
        default=4,
        ge=1,
        le=1_024,
        description="Rank r of each axis's direction: ΔW = Σ_k z_k B_k A_k with A_k, B_k of this rank "
        "(low_rank, logit_heads).",
    )
    slots: int = Field(
        default=8, ge=1, le=4_096, description="Extra attention slots in every adapted layer (prefix only)."
    )
    shift: bool = Field(
        default=True,
        description="Shift normed inputs as well as scale them; without, one person's policy can be exported "
        "(film only).",
    )

    @model_validator(mode="after")
    def _keys_of_the_kind(self):
        for key, kinds in (
            ("rank", ("low_rank", "logit_heads")),
            ("slots", ("prefix",)),
            ("shift", ("film",)),
        ):
            default = type(self).__dataclass_fields__[key].default.default
            if getattr(self, key) != default and self.kind not in kinds:
                raise ValueError(
                    f"{key} is for kind {' and '.join(kinds)}, not {self.kind}; remove it or change kind"
                )
        return self


@dataclasses.dataclass(frozen=True)
class Cost:
    """On top of the model without people: parameters; FLOPs of a forward pass, a multiplication and an addition each.

    Attributes:
      per_token: for every token (logit heads: every token whose logits are read).
      per_row: once a row, however long it is.
    """

    parameters: int
    per_token: int
    per_row: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way of conditioning.

    Attributes:
      fresh_is_reference: before training, every z gives the policy that nobody's adapters have touched.
      cost: what `spec` costs on `num_layers` adapted layers.
      refusal: why one person's policy cannot be written as an ordinary model, with the way out; None when it can.
      fold: puts the conditioner at one z[K] into the weights; given (weights, conditioner, spec, config, z, top stage).
    """

    fresh_is_reference: bool
    cost: Callable[[AdapterSpec, ModelConfig, int], Cost]
    refusal: Callable[[AdapterSpec, ModelConfig], str | None]
    fold: Callable[[Tree, Tree, AdapterSpec, ModelConfig, np.ndarray, int], Tree]


def linear_shapes(config: ModelConfig) -> list[tuple[int, ...]]:
    """[in, out] of the seven linear maps of a layer."""
    return [leaf.shape for leaf in layout.layer_leaves(config) if leaf.path[-1] == "kernel"]


def _low_rank_cost(spec: AdapterSpec, config: ModelConfig, num_layers: int) -> Cost:
    inner = spec.num_basis * spec.basis_rank
    parameters = num_layers * inner * sum(sum(shape) for shape in linear_shapes(config))
    return Cost(parameters, 2 * parameters, 0)


def _film_cost(spec: AdapterSpec, config: ModelConfig, num_layers: int) -> Cost:
    parameters = num_layers * 2 * (1 + spec.shift) * spec.num_basis * config.width
    return Cost(parameters, num_layers * 2 * (2 + spec.shift) * config.width, 2 * parameters)


def _prefix_cost(spec: AdapterSpec, config: ModelConfig, num_layers: int) -> Cost:
    slot = num_layers * spec.slots * config.num_kv_heads * config.head_dim
    per_token = num_layers * 4 * spec.slots * config.num_heads * config.head_dim
    return Cost((1 + spec.num_basis) * slot, per_token, 2 * spec.num_basis * slot)


def _logit_cost(spec: AdapterSpec, config: ModelConfig, num_layers: int) -> Cost:
    parameters = spec.num_basis * spec.basis_rank * (config.width + config.vocab_size)
    return Cost(parameters, 2 * parameters, 0)


def _text_cost(spec: AdapterSpec, config: ModelConfig, num_layers: int) -> Cost:
    """Every place in the table counts, written or not: shapes do not depend on z."""
    assert spec.words is not None, "text is made of words"
    width = sum(max(map(len, axis)) for axis in spec.words.phrases)
    attention = 4 * width * config.num_heads * config.head_dim * config.num_layers
    layers = 2 * config.num_layers * sum(int(np.prod(shape)) for shape in linear_shapes(config))
    length = width + len(spec.words.begin)
    return Cost(0, attention, length * layers + 4 * length**2 * config.num_heads * config.head_dim)


def _fold_nothing(
    weights: Tree, conditioner: Tree, spec: AdapterSpec, config: ModelConfig, z: np.ndarray, top: int
) -> Tree:
    return weights


def _fold_film(
    weights: Tree, conditioner: Tree, spec: AdapterSpec, config: ModelConfig, z: np.ndarray, top: int
) -> Tree:
    """scale ← scale ⊙ (1 + Σ_k z_k γ_k) of the two norms; Gemma stores scale − 1."""
    stage, film = dict(weights["stages"][top]), conditioner["stages"][top]
    offset = 1.0 if config.norm_plus_one else 0.0
    for norm, module in (("pre_attn", "film_attn"), ("pre_mlp", "film_mlp")):
        old = stage[norm]["scale"]
        factor = 1.0 + jnp.einsum("k,nkd->nd", z, film[module]["film_scale"])
        stage[norm] = {"scale": (old.astype(jnp.float32) + offset) * factor - offset}
    return {**weights, "stages": {**weights["stages"], top: stage}}


def _fold_heads(
    weights: Tree, conditioner: Tree, spec: AdapterSpec, config: ModelConfig, z: np.ndarray, top: int
) -> Tree:
    """unembedding ← unembedding + Σ_k z_k A_k B_k; a tied model gets a head of its own."""
    kernel = weights["embed"]["embedding"].T if config.tied else weights["head"]["kernel"]
    heads = conditioner["logit_heads"]
    change = (heads["heads_a"] * jnp.repeat(jnp.asarray(z), spec.basis_rank)) @ heads["heads_b"]
    return {**weights, "head": {"kernel": kernel.astype(jnp.float32) + change}}


def _film_refusal(spec: AdapterSpec, config: ModelConfig) -> str | None:
    if not spec.shift:
        return None
    return (
        "its FiLM conditioner shifts the inputs of layers that have no biases; train with conditioner.shift=false "
        "or conditioner.kind=low_rank, or export the aggregate policy"
    )


def _prefix_refusal(spec: AdapterSpec, config: ModelConfig) -> str:
    return (
        "its prefix conditioner adds slots to attention, for which an ordinary model has no place; train with "
        "conditioner.kind=low_rank, or export the aggregate policy"
    )


def _logit_refusal(spec: AdapterSpec, config: ModelConfig) -> str | None:
    if config.final_softcap is None:
        return None
    return (
        f"{config.family} caps its logits before its logit heads add theirs; train with conditioner.kind=low_rank, "
        "or export the aggregate policy"
    )


def _text_refusal(spec: AdapterSpec, config: ModelConfig) -> str:
    return (
        "its text conditioner writes into the prompt and changes no weight; export the aggregate policy and put the "
        "words in front of your prompts"
    )


def _never(spec: AdapterSpec, config: ModelConfig) -> None:
    return None


KINDS = {
    "low_rank": Kind(True, _low_rank_cost, _never, _fold_nothing),  # `merged_kernel` folds it with LoRA
    "film": Kind(True, _film_cost, _film_refusal, _fold_film),
    "prefix": Kind(True, _prefix_cost, _prefix_refusal, _fold_nothing),
    "logit_heads": Kind(True, _logit_cost, _logit_refusal, _fold_heads),
    "text": Kind(False, _text_cost, _text_refusal, _fold_nothing),
}


def merge(
    weights: Tree,
    lora: Tree,
    conditioner: Tree,
    spec: AdapterSpec,
    config: ModelConfig,
    z: np.ndarray | None,
    top: int,
) -> Tree:
    """Base weights with the adapters of stage `top`, and the conditioner at one z[K] (None: nobody), folded in.

    What was changed is float32 (see `merged_kernel`), the rest as it was. The result has a "head" of its own where logit
    heads were folded into a tied model.

    Raises:
      UserError: this kind of conditioner is no change of weights.
    """
    kind = KINDS[spec.kind]
    personal = z is not None and spec.num_basis > 0
    reason = kind.refusal(spec, config) if personal else None
    if reason:
        raise UserError(f"one person's policy cannot be merged: {reason}")

    def fold(weights: Tree, low_rank: Tree, basis: Tree) -> Tree:
        if "kernel" in weights:
            return {**weights, "kernel": merged_kernel({**low_rank, **basis, **weights}, spec, z)}
        return {
            name: fold(value, low_rank.get(name, {}), basis.get(name, {}))
            if isinstance(value, dict)
            else value
            for name, value in weights.items()
        }

    def of_top(tree: Tree) -> Tree:
        return tree.get("stages", {}).get(top, {})

    stage = fold(weights["stages"][top], of_top(lora), of_top(conditioner))
    merged = {**weights, "stages": {**weights["stages"], top: stage}}
    return merged if z is None or not personal else kind.fold(merged, conditioner, spec, config, z, top)
