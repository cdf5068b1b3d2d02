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
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
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
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transposed: bool


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
    # The families disagree on what `post_attention_layernorm` means: with post-norms (Gemma 2, 3) it closes
    # the attention block, without them it opens the MLP.
    norms = {"pre_attn": "input_layernorm", "pre_mlp": "post_attention_layernorm"}
    if config.post_norms:
        norms |= {
            "post_attn": "post_attention_layernorm",
            "pre_mlp": "pre_feedforward_layernorm",
            "post_mlp": "post_feedforward_layernorm",
        }
    leaves = [Leaf((key, "scale"), f"{name}.weight", (width,), False) for key, name in norms.items()]
    for key, num_in, num_out, bias in (
        ("q", width, heads, config.attention_bias),
        ("k", width, groups, config.attention_bias),
        ("v", width, groups, config.attention_bias),
        ("o", heads, width, config.output_bias),
    ):
        leaves.append(Leaf(("attn", key, "kernel"), f"self_attn.{key}_proj.weight", (num_in, num_out), True))
        if bias:
            leaves.append(Leaf(("attn", key, "bias"), f"self_attn.{key}_proj.bias", (num_out,), False))
    if config.qk_norm:
        for key in ("q_norm", "k_norm"):
            leaves.append(Leaf(("attn", key, "scale"), f"self_attn.{key}.weight", (config.head_dim,), False))
    for key, shape in (
        ("gate", (width, config.mlp_width)),
        ("up", (width, config.mlp_width)),
        ("down", (config.mlp_width, width)),
    ):
        leaves.append(Leaf(("mlp", key, "kernel"), f"mlp.{key}_proj.weight", shape, True))
    return leaves


def layer_name(layer: int, leaf: Leaf) -> str:
    """Full Hugging Face name of one layer's tensor."""
    return f"model.layers.{layer}.{leaf.name}"


def file_shape(leaf: Leaf) -> tuple[int, ...]:
    """Shape as stored by Hugging Face."""
    return leaf.shape[::-1] if leaf.transposed else leaf.shape


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
