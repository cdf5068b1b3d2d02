"""Tiny random models: a decoder of each kind with a toy tokenizer, a model directory for tests of whole commands,
and a forward pass without packing or caches.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from rlhf.models import layout
from rlhf.models.adapters import AdapterSpec
from rlhf.models.config import ModelConfig
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams, stages_of, structure

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 100.0,
    "tie_word_embeddings": True,
}
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
KINDS = {
    "llama": _LLAMA,
    "qwen3": {**_LLAMA, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": False},
    # A window of 3 is felt in every row; the caps bend the small logits of a random model.
    "gemma2": {
        **_LLAMA,
        "model_type": "gemma2",
        "head_dim": 8,
        "sliding_window": 3,
        "layer_types": _LAYERS,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3": {
        **_LLAMA,
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 3,
        "layer_types": _LAYERS,
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 10.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}


class ToyTokenizer:
    """Letters a–z are tokens 3–28, a space 29; 1 begins a prompt, 2 ends a completion."""

    end_id, eos_ids, pad_id, vocab_size, has_chat_template = 2, (2,), 0, 32, False
    begin_ids = (1,)

    def _ids(self, text: str) -> list[int]:
        return [29 if letter == " " else ord(letter) - ord("a") + 3 for letter in text]

    def encode_prompt(self, prompt: str) -> list[int]:
        return [1, *self._ids(prompt)]

    def encode_completion(self, text: str) -> list[int]:
        return [*self._ids(text), self.end_id]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        said = [i for i in ids if 3 <= i <= 29 or not skip_special_tokens]
        return "".join(" " if i == 29 else chr(i - 3 + ord("a")) if 3 <= i <= 29 else f"<{i}>" for i in said)


def make_config(kind: str = "llama", **changes) -> ModelConfig:
    """`changes` are keys of a Hugging Face config.json."""
    return ModelConfig.from_hf({**KINDS[kind], **changes})


WORDS = ["<unk>", "<eos>", "Which", "?", "item", *map(str, range(40))]


def write_model(directory: Path, seed: int = 0, **changes) -> Path:
    """Write a Hugging Face directory of the Llama family: two layers, 64 tokens of context, a word tokenizer.

    `changes` are keys of its config.json.
    """
    directory.mkdir(parents=True)
    raw = {
        **_LLAMA,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(WORDS),
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "eos_token_id": 1,
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(raw))
    config, rng, tensors = ModelConfig.from_hf(raw), np.random.default_rng(seed), {}
    names = {leaf.name: leaf for leaf in layout.top_leaves(config)}
    for layer in range(config.num_layers):
        each = [one for leaf in layout.layer_leaves(config) for one in leaf.each_expert()]
        names |= {layout.layer_name(layer, leaf): leaf for leaf in each}
    for name, leaf in names.items():
        shape = layout.file_shape(leaf)
        tensors[name] = (rng.normal(size=shape) * 0.1 + (len(shape) == 1)).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "<eos>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def make_base(
    config: ModelConfig, *, adapter_layers: int | None = None, dtype: str = "float32", seed: int = 0
):
    """A `Base` of random weights, norms too; the same weights however they are cut into stages."""
    shapes = nnx.to_pure_dict(structure(config, (config.num_layers,), None, "float32", False)[1].base)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = str(path[-1].key)
        centre = 1.0 if name == "scale" and not config.norm_plus_one else 0.0
        return jnp.asarray(centre + 0.3 * rng.standard_normal(leaf.shape), jnp.dtype(dtype))

    tree = jax.tree_util.tree_map_with_path(fill, shapes)
    stages = stages_of(config, adapter_layers)
    tree = policy_store.restage(tree, (config.num_layers,), stages)
    return policy_store.Base("tiny", Path("tiny"), config, tree, stages, ToyTokenizer(), "tiny")


def make_policy(
    base: policy_store.Base,
    spec: AdapterSpec | None,
    *,
    scale: float = 0.15,
    seed: int = 1,
    gate=None,
) -> policy_store.Policy:
    """A policy whose adapters are all random with standard deviation `scale`, as after training."""
    dtype = base.tree["embed"]["embedding"].dtype.name
    graphdef, params, shapes = policy_store.base_state(base, spec, dtype, False)
    rng = np.random.default_rng(seed)
    lora, conditioner = jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype),
        (shapes.lora, shapes.conditioner),
    )
    params = params._replace(lora=lora, conditioner=conditioner)
    return policy_store.Policy(base, graphdef, params, spec, gate, {})


@functools.partial(jax.jit, static_argnums=0)
def causal_logits(
    graphdef: nnx.GraphDef, params: PolicyParams, tokens: jax.Array, z: jax.Array | None
) -> jax.Array:
    """Logits [B, T, V] of right-padded rows: a causal mask, every layer, no cache, no tree."""
    decoder = nnx.merge(graphdef, *params)
    batch, length = tokens.shape
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    hidden, _ = decoder.run_stages(decoder.embed_tokens(tokens), decoder.context(positions, mask, z=z))
    return decoder.logits(hidden, z)


def separate_rows(prompts, completions, *, length: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded rows of one completion each: tokens [N, T], and 1.0 [N, T−1] where one is predicted."""
    tokens, counted = (
        np.zeros((len(prompts), length), np.int32),
        np.zeros((len(prompts), length - 1), np.float32),
    )
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        both = [*prompt, *completion]
        tokens[row, : len(both)] = both
        counted[row, len(prompt) - 1 : len(both) - 1] = 1.0
    return tokens, counted


@functools.partial(jax.jit, static_argnums=0)
def separate_logprobs(graphdef, params, rows: tuple[jax.Array, jax.Array], z=None) -> jax.Array:
    """Summed log-probs [N] of the rows of `separate_rows`; differentiable in params and z."""
    tokens, counted = rows
    logprobs = jax.nn.log_softmax(causal_logits(graphdef, params, tokens, z)[:, :-1])
    taken = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(taken * counted, axis=1)
