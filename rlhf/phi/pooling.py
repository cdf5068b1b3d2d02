"""Hidden states of completions inside a compiled program, pooled: e(x, y) as `rlhf.phi.encoder` computes it from text.

Where the policy shares its lower layers with the encoder, their activations are taken from the rows and not computed again.

Shapes: B rows, T completion slots, S slots of a text, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rewards.files import JSONObject
from rlhf.models.decoder import Decoder
from rlhf.models.layout import Tree
from rlhf.phi.encoder import num_layers_of, open_encoder
from rlhf.policy import scoring
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Static part of an encoder.

    Attributes:
      graphdef: its decoder. last: stages to run. final_norm: whether the final norm follows. pool: "mean" or "last".
      shared: whether hidden states of the rows are what its first stage gives, so that only later ones are run.
    """

    graphdef: nnx.GraphDef
    last: int
    final_norm: bool
    pool: str
    shared: bool = False


def pooled(pooling: Pooling, params: PolicyParams, rows: scoring.Rows, member: jax.Array) -> jax.Array:
    """e(x, y): hidden states of completions, pooled over member[B, T], float32[B, D]; from the rows' own where known."""
    return _pool(pooling, _hidden(pooling, params, rows), member)


def pooled_beginnings(
    pooling: Pooling, params: PolicyParams, rows: scoring.Rows, mask: jax.Array
) -> jax.Array:
    """Means over the first 1, 2, …, T tokens of every completion, float32[B, T, D]."""
    hidden = _hidden(pooling, params, rows)
    real = mask.astype(jnp.float32)[..., None]
    return jnp.cumsum(real * hidden, axis=1) / jnp.maximum(jnp.cumsum(real, axis=1), 1.0)


def _hidden(pooling: Pooling, params: PolicyParams, rows: scoring.Rows) -> jax.Array:
    """What is pooled, at the slots of the completions, float32[B, T, D]; from the rows' own activations where known."""
    decoder = nnx.merge(pooling.graphdef, *params)
    first = 0 if rows.hidden is None else 1
    return _normed(pooling, decoder, scoring.states_after(decoder, rows, first=first, last=pooling.last)[1])


def pooled_texts(
    pooling: Pooling, params: PolicyParams, tokens: jax.Array, starts: jax.Array, member: jax.Array
) -> jax.Array:
    """As `pooled`, of left-padded texts tokens[B, S] that share nothing, over member[B, S]."""
    decoder = nnx.merge(pooling.graphdef, *params)
    rows = scoring.rows_of(tokens, starts, None, 0)
    hidden = scoring.states_after(decoder, rows, last=pooling.last)[0]
    return _pool(pooling, _normed(pooling, decoder, hidden), member)


def _normed(pooling: Pooling, decoder: Decoder, hidden: jax.Array) -> jax.Array:
    return (decoder.final_norm(hidden) if pooling.final_norm else hidden).astype(jnp.float32)


def _pool(pooling: Pooling, hidden: jax.Array, member: jax.Array) -> jax.Array:
    if pooling.pool == "last":
        final = jnp.max(jnp.where(member, jnp.arange(member.shape[1]), -1), axis=1)
        return jnp.take_along_axis(hidden, final[:, None, None], axis=1)[:, 0]
    real = member.astype(jnp.float32)
    return jnp.einsum("bs,bsd->bd", real, hidden) / jnp.maximum(jnp.sum(real, axis=1), 1.0)[:, None]


def load_encoder(
    settings: JSONObject, policy: policy_store.Base | None = None
) -> tuple[policy_store.Base, Pooling, PolicyParams]:
    """The stored encoder of a basis, cut to the layers it needs; `policy` as for `cut_encoder`.

    Raises:
      UserError: its model cannot be loaded or is another than at the fit.
    """
    base = open_encoder(settings)
    return base, *cut_encoder(base, settings["layer"], settings["pool"], policy)


def cut_encoder(
    base: policy_store.Base, layer: int, pool: str, policy: policy_store.Base | None = None
) -> tuple[Pooling, PolicyParams]:
    """The first layers of a model as an encoder; the others and the output over the vocabulary are left out.

    Where the layers under the adapters of `policy` are the encoder's first, they are its first stage, and their
    activations can be shared.
    """
    total = base.config.num_layers
    needed = num_layers_of(layer, total)
    kept = max(needed, 1)  # a decoder has a layer, even where only the token embedding is read
    tree = policy_store.restage(base.tree, base.stages, (total,))
    tree = {name: part for name, part in tree.items() if name != "head"}
    tree["stages"] = {0: jax.tree.map(lambda leaf: leaf[:kept], tree["stages"][0])}
    config = dataclasses.replace(base.config.lowest(kept), tied=True)
    lower = 0 if policy is None or len(policy.stages) == 1 else policy.stages[0]
    shared = policy is not None and 0 < lower <= needed and _same_layers(tree, policy.tree, lower)
    stages = (lower, needed - lower) if shared and needed > lower else (kept,)
    tree = policy_store.restage(tree, (kept,), stages)
    cut = dataclasses.replace(base, config=config, tree=tree, stages=stages)
    graphdef, params, _ = policy_store.base_state(cut, None, "float32", False)
    return Pooling(graphdef, len(stages) if needed else 0, needed == total, pool, shared), params


def _same_layers(encoder: Tree, policy: Tree, count: int) -> bool:
    """Whether token embedding and first `count` layers hold the same numbers (and type)."""
    ours = {
        "embed": encoder["embed"],
        "layers": jax.tree.map(lambda leaf: leaf[:count], encoder["stages"][0]),
    }
    theirs = {"embed": policy["embed"], "layers": policy["stages"][0]}
    if jax.tree.map(jnp.shape, ours) != jax.tree.map(jnp.shape, theirs):
        return False
    equal = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool(jnp.array_equal(a, b)), ours, theirs)
    return all(jax.tree.leaves(equal))
