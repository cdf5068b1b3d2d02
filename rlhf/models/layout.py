"""Where each tensor of a Hugging Face checkpoint lives in the parameter tree: one table to load and save by.

Letters: n layers of a stage, V vocabulary, D width, H heads, G key/value heads, h head width, F MLP width.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from rlhf.models.config import ModelConfig

HostOrDevice = jax.Array | np.ndarray
"""An array on the device, or on the host on its way there."""
Tree = dict[Any, Any]
"""A parameter tree: nested dictionaries of arrays, whose keys are names, and numbers of stages."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


class Leaf(NamedTuple):
    """One tensor.

    Attributes:
      path: keys in the tree; relative to the layer for a layer's tensors.
      name: Hugging Face name; relative to `model.layers.{i}.` for a layer's tensors.
      shape: in the tree, of one layer.
      transposed: Hugging Face stores [out, in], the tree [in, out].
      experts: of a mixture of experts their number, the first axis of `shape`; each is a tensor of its own in the file, whose
        name has the number in the place of `{expert}`.
      part: (first row, rows) where the file's tensor holds others as well (Phi-3's q, k and v in one).
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transposed: bool
    part: tuple[int, int] | None = None
    experts: int = 0

    def each_expert(self) -> list["Leaf"]:
        """One leaf a tensor of the file: this one, or those of the experts."""
        if not self.experts:
            return [self]
        return [
            self._replace(name=self.name.format(expert=expert), shape=self.shape[1:], experts=0)
            for expert in range(self.experts)
        ]


def top_leaves(config: ModelConfig) -> list[Leaf]:
    """Tensors outside the layers."""
    leaves = [
        Leaf(("embed", "embedding"), "model.embed_tokens.weight", (config.vocab_size, config.width), False),
        Leaf(("final_norm", "scale"), "model.norm.weight", (config.width,), False),
    ]
    if not config.tied:
        leaves.append(Leaf(("head", "kernel"), "lm_head.weight", (config.width, config.vocab_size), True))
    return leaves


def layer_leaves(config: ModelConfig) -> list[Leaf]:
    """Tensors of one layer."""
    width, heads, groups = (
        config.width,
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
    # The families disagree on what `post_attention_layernorm` means: with post-norms (Gemma 2, 3, OLMo 2, 3) it closes
    # the attention block, without them it opens the MLP.
    norms = {}
    if config.pre_norms:
        opens = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
        norms |= {"pre_attn": "input_layernorm", "pre_mlp": opens}
    if config.post_norms:
        norms |= {"post_attn": "post_attention_layernorm", "post_mlp": "post_feedforward_layernorm"}
    leaves = [Leaf((key, "scale"), f"{name}.weight", (width,), False) for key, name in norms.items()]
    outputs = {"q": heads, "k": groups, "v": groups}
    leaves += _together(
        "attn", "self_attn", width, outputs, config.attention_bias, "qkv" if config.fused else None
    )
    leaves += _together("attn", "self_attn", heads, {"o": width}, config.output_bias)
    if config.qk_norm != "none":
        one = config.qk_norm == "head"
        for key, whole in (("q_norm", heads), ("k_norm", groups)):
            size = config.head_dim if one else whole
            leaves.append(Leaf(("attn", key, "scale"), f"self_attn.{key}.weight", (size,), False))
    if config.num_experts:
        return leaves + _experts(config)
    hidden = {"gate": config.mlp_width, "up": config.mlp_width}
    leaves += _together("mlp", "mlp", width, hidden, config.mlp_bias, "gate_up" if config.fused else None)
    return leaves + _together("mlp", "mlp", config.mlp_width, {"down": width}, config.mlp_bias)


def _experts(config: ModelConfig) -> list[Leaf]:
    """Router and experts of one layer; Mixtral has names of its own for them."""
    count, width, hidden = config.num_experts, config.width, config.mlp_width
    mixtral = config.family == "mixtral"
    block = "block_sparse_moe" if mixtral else "mlp"
    names = {"gate": "w1", "up": "w3", "down": "w2"} if mixtral else {}
    leaves = [Leaf(("mlp", "router"), f"{block}.gate.weight", (width, count), True)]
    for key, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
        name = f"{block}.experts.{{expert}}.{names.get(key, f'{key}_proj')}.weight"
        leaves.append(Leaf(("mlp", key), name, (count, *shape), True, experts=count))
    return leaves


def _together(
    block: str, name: str, num_in: int, outputs: dict[str, int], bias: bool, fused: str | None = None
) -> list[Leaf]:
    """Projections of one input; `fused` names the tensor of the file that holds them one below the other."""
    leaves, first, total = [], 0, sum(outputs.values())
    for key, num_out in outputs.items():
        part = None if fused is None else (first, total)
        file = f"{name}.{fused or key}_proj"
        leaves.append(Leaf((block, key, "kernel"), f"{file}.weight", (num_in, num_out), True, part))
        if bias:
            leaves.append(Leaf((block, key, "bias"), f"{file}.bias", (num_out,), False, part))
        first += num_out
    return leaves


def layer_name(layer: int, leaf: Leaf) -> str:
    """Full Hugging Face name of one layer's tensor."""
    return f"model.layers.{layer}.{leaf.name}"


def file_shape(leaf: Leaf) -> tuple[int, ...]:
    """Shape as stored by Hugging Face, of the whole tensor."""
    shape = leaf.shape[::-1] if leaf.transposed else leaf.shape
    return shape if leaf.part is None else (leaf.part[1], *shape[1:])


def put(tree: Tree, path: tuple[str | int, ...], value: ArrayLike) -> None:
    """Set tree[path[0]][path[1]]…, making the dictionaries on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def get(tree: Tree, path: tuple[str | int, ...]) -> PyTree:
    """tree[path[0]][path[1]]…; KeyError names the whole path."""
    for depth, key in enumerate(path):
        if key not in tree:
            raise KeyError(".".join(map(str, path[: depth + 1])))
        tree = tree[key]
    return tree
