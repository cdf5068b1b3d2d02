"""BERT and MPNet as encoders: token ids → hidden states that see the whole text.

    h = LN(word + position + type);   per layer:  h = LN(h + attention(h)),   h = LN(h + W₂ gelu(W₁ h))

MPNet (Song et al. 2020, arXiv 2004.09297) has no types, counts positions from 2 (padding is token and position 1), and adds
to every
attention score a number by how far the two tokens are apart (`positions`), the same in all layers.

Shapes: B rows, T tokens, D width, H heads, n layers.
"""

import contextlib
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.models import positions
from rlhf.models.families import MAX_LAYERS, NO_EFFECT
from rlhf.models.hf_values import Values, cut
from rlhf.models.layout import SINGLE, HostOrDevice, Tree

_SHARED = frozenset(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "max_position_embeddings layer_norm_eps hidden_act".split()
)
_COMPUTED = {"bert": _SHARED | {"type_vocab_size"}, "mpnet": _SHARED}
_PADDING = 1  # token and position of MPNet
_NO_EFFECT = NO_EFFECT | {
    "tie_word_embeddings",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "classifier_dropout",
    "gradient_checkpointing",
    "bos_token_id",
    "eos_token_id",
}
_NEUTRAL = {
    "bert": {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    "mpnet": {
        "relative_attention_num_buckets": positions.BUCKETS,
        "is_decoder": False,
        "pad_token_id": _PADDING,
    },
}
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_IGNORED = (
    "pooler.",
    "embeddings.position_ids",
    "cls.",
    "lm_head.",
)  # heads, and a buffer of older transformers
# Of one layer: name in the tree → name in the file.
_MLP = {"up": "intermediate.dense", "down": "output.dense"}
_LAYER = {
    "bert": {
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
    }
    | _MLP,
    "mpnet": {name: f"attention.attn.{name}" for name in "qkvo"} | _MLP,
}
_NORMS = {
    "bert": {"attn_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"},
    "mpnet": {"attn_norm": "attention.LayerNorm", "mlp_norm": "output.LayerNorm"},
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """What fixes the computation; frozen, so that it can be static under jit.

    Attributes:
      family: bert or mpnet. max_positions: the longest text. num_types: 0 where the family has none.
    """

    family: str
    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    max_positions: int
    num_types: int
    norm_eps: float
    activation: str

    @classmethod
    def from_hf(cls, raw: JSONObject, source: str = "config.json") -> "BertConfig":
        """Read a Hugging Face configuration.

        Raises:
          UserError: another family, a key that changes the computation and is not known, a value out of range.
        """
        family = raw.get("model_type")
        if family not in ("bert", "mpnet"):
            raise UserError(
                f"{source}: model_type: {cut(family)} is no sentence encoder that is supported; use one of "
                "the families bert and mpnet, such as all-minilm-l6-v2"
            )
        values, neutral = Values(raw, family, source), _NEUTRAL[family]
        for key, value in raw.items():
            if key in neutral:
                if value == neutral[key]:
                    continue
            elif key in _COMPUTED[family] or key in _NO_EFFECT or value is None or key.startswith("_"):
                continue
            only = f"only {neutral[key]!r}; " if key in neutral else ""
            raise values.refuse(key, f"{cut(value)} is not supported for {family}, {only}use another model")
        width, heads = values.integer("hidden_size"), values.integer("num_attention_heads")
        if width % heads:
            raise values.refuse("num_attention_heads", f"{heads} does not divide hidden_size {width}")
        activation = values.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise values.refuse(
                "hidden_act", f"{cut(activation)} is not supported; use one of {', '.join(_ACTIVATIONS)}"
            )
        shift = _PADDING + 1 if family == "mpnet" else 0
        return cls(
            family=family,
            vocab_size=values.integer("vocab_size"),
            num_layers=values.integer("num_hidden_layers", high=MAX_LAYERS),
            width=width,
            num_heads=heads,
            mlp_width=values.integer("intermediate_size"),
            max_positions=values.integer("max_position_embeddings", low=shift + 1) - shift,
            num_types=0 if family == "mpnet" else values.integer("type_vocab_size", default=2),
            norm_eps=values.number("layer_norm_eps", 1e-12),
            activation=str(activation),
        )


def load(directory: Path, config: BertConfig) -> Tree:
    """float32 parameters of model.safetensors; kernels [in, out], layers stacked along axis 0.

    Raises:
      UserError: the file is missing or damaged, a tensor is missing, left over or of another shape.
    """
    path = directory / SINGLE
    if not path.is_file():
        raise UserError(f"{path}: missing; download the whole model again, as safetensors")
    width, hidden = config.width, config.mlp_width
    shapes = {
        "q": (width, width),
        "k": (width, width),
        "v": (width, width),
        "o": (width, width),
        "up": (hidden, width),
        "down": (width, hidden),
    }
    with _damage(path), safe_open(path, framework="numpy") as file:
        held = set(file.keys())
        prefix = f"{config.family}."
        if f"{prefix}embeddings.word_embeddings.weight" not in held:
            prefix = ""
        read: set[str] = set()

        def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
            name = prefix + name
            if name not in held:
                raise UserError(
                    f"{path}: tensor {name} missing; config.json and weights must be of one model"
                )
            read.add(name)
            array = file.get_tensor(name)
            if array.shape != shape:
                raise UserError(
                    f"{path}: tensor {name} has shape {list(array.shape)}, config.json asks for {list(shape)}"
                )
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise UserError(f"{path}: tensor {name} holds a value that is not finite; take other weights")
            return array

        def norm(name: str) -> Tree:
            return {
                "scale": tensor(f"{name}.weight", (width,)),
                "bias": tensor(f"{name}.bias", (width,)),
            }

        def layer(number: int) -> Tree:
            stem, parts = f"encoder.layer.{number}", {}
            for key, name in _LAYER[config.family].items():
                kernel = tensor(f"{stem}.{name}.weight", shapes[key])
                parts[key] = {
                    "kernel": kernel.T,
                    "bias": tensor(f"{stem}.{name}.bias", (shapes[key][0],)),
                }
            return parts | {key: norm(f"{stem}.{name}") for key, name in _NORMS[config.family].items()}

        sizes = {"word": config.vocab_size, "position": config.max_positions}
        if config.family == "mpnet":
            sizes["position"] += _PADDING + 1
        else:
            sizes["token_type"] = config.num_types
        embeddings = {
            key: tensor(f"embeddings.{key}_embeddings.weight", (size, width)) for key, size in sizes.items()
        }
        tree: Tree = {"embed": embeddings, "embed_norm": norm("embeddings.LayerNorm")}
        if config.family == "mpnet":
            shape = (positions.BUCKETS, config.num_heads)
            tree["relative"] = tensor("encoder.relative_attention_bias.weight", shape)
        layers = [layer(number) for number in range(config.num_layers)]
        tree["layers"] = jax.tree.map(lambda *each: np.stack(each), *layers)
        for name in sorted(held - read):
            if not name.removeprefix(prefix).startswith(_IGNORED):
                raise UserError(f"{path}: unexpected tensor {name}; config.json describes no such weight")
    return jax.tree.map(jnp.asarray, tree)


def states(config: BertConfig, params: Tree, tokens: HostOrDevice, real: HostOrDevice) -> jax.Array:
    """Last hidden states float32[B, T, D] of tokens int32[B, T], of which real[B, T] are seen."""
    parts = params["embed"]
    length = tokens.shape[1]
    if config.family == "mpnet":
        counted = jnp.asarray(real) & (jnp.asarray(tokens) != _PADDING)
        x = parts["word"][tokens] + parts["position"][jnp.cumsum(counted, axis=1) * counted + _PADDING]
        apart = jnp.moveaxis(params["relative"][positions.buckets(length)], -1, 0)
    else:
        x = parts["word"][tokens] + parts["position"][:length] + parts["token_type"][0]
        apart = 0.0
    x = _norm(x, params["embed_norm"], config.norm_eps)
    mask = real[:, None, None, :]

    def layer(x: jax.Array, own: Tree) -> tuple[jax.Array, None]:
        x = _norm(x + _attention(config, own, x, mask, apart), own["attn_norm"], config.norm_eps)
        inner = _activated(config.activation, _linear(own["up"], x))
        return _norm(x + _linear(own["down"], inner), own["mlp_norm"], config.norm_eps), None

    with jax.default_matmul_precision("highest"):  # TF32 keeps three digits
        return jax.lax.scan(layer, x, params["layers"])[0]


def _attention(
    config: BertConfig, own: Tree, x: jax.Array, mask: HostOrDevice, apart: jax.Array | float
) -> jax.Array:
    """apart: [H, T, T], added to the scores."""
    shape = (*x.shape[:2], config.num_heads, -1)
    query, key, value = (_linear(own[name], x).reshape(shape) for name in "qkv")
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1]) + apart
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
    return _linear(own["o"], jnp.einsum("bhts,bshd->bthd", weights, value).reshape(x.shape))


def _linear(own: Tree, x: jax.Array) -> jax.Array:
    return x @ own["kernel"] + own["bias"]


def _norm(x: jax.Array, own: Tree, eps: float) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * own["scale"] + own["bias"]


def _activated(name: str, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x) if name == "relu" else jax.nn.gelu(x, approximate=name != "gelu")


@contextlib.contextmanager
def _damage(path: Path):
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: truncated or damaged ({' '.join(str(error).split())}); download it again"
        ) from None
