"""Rewards inside the compiled iteration: a fitted basis over the policy's own tokens, or jittable columns.

    φ(x, y) = B (raw(x, y) − m),   raw = headᵀ e(x, y) [− |squareᵀ e|²],   B, m from the gauge record

e is computed as `rlhf.phi.encoder` computes it from text: the prompt, the completion and the token that closes it, pooled
over the completion; whatever token stopped the completion is read as that closing token, and one that was cut off gets
it. So for tokens that are their text's own tokenisation, φ is the φ of the decoded text. (Sampled tokens need not be:
`samples.jsonl` says how many are.)

Centring: a fitted φ is centred within prompts over the known items; one completion has no company, so the stored mean m
takes the place of the prompt's. The two differ by a shift per prompt, which cancels wherever completions of one prompt
are compared: in every advantage centred by (prompt, person), and in a critic's baseline.

Shapes: B rows, W prompt slots, T completion slots, S = W + T + 1 slots with the closing token, D width, K outputs, C columns.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rewards.basis import gauge
from rewards.basis.store import FittedBasis
from rewards.errors import UserError
from rewards.types import RewardBasis
from rlhf.phi.columns import jit as jit_columns
from rlhf.phi.encoder import num_layers_of
from rlhf.policy import scoring
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams
from rlhf.train.rl.rollout import Rollout


class Readout(NamedTuple):
    """φ = e·weight − |squareᵀ e|² · curve − shift: head and gauge in one, float32.

    Attributes:
      weight: [D, K]; square: [D, R] or None; curve: [K]; shift: [K].
    """

    weight: jax.Array
    square: jax.Array | None
    curve: jax.Array
    shift: jax.Array

    @classmethod
    def of(cls, basis: RewardBasis) -> "Readout":
        """Raises UserError for prototypes that depend on the prompt: they need a prompt's other completions."""
        if basis.quadratic is not None and basis.quadratic.prompt is not None:
            raise UserError(
                "rewards: the prototypes of this basis (pal_b) depend on the prompt, which no single completion can be "
                "rewarded by; fit pal_a or house"
            )
        change = gauge.matrix(basis.gauge)
        square = None if basis.quadratic is None else jnp.asarray(basis.quadratic.square, jnp.float32)
        return cls(
            jnp.asarray(np.asarray(basis.head, np.float64) @ change.T, jnp.float32),
            square,
            jnp.asarray(change.sum(axis=1), jnp.float32),
            jnp.asarray(change @ np.asarray(basis.gauge.mean, np.float64), jnp.float32),
        )

    def __call__(self, embeddings: jax.Array) -> jax.Array:
        """Embeddings [..., D] → φ [..., K]."""
        # The gauge cancels large common parts of e: TF32 would keep three digits of them.
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        phi = product(embeddings, self.weight) - self.shift
        if self.square is None:
            return phi
        return phi - jnp.sum(product(embeddings, self.square) ** 2, axis=-1, keepdims=True) * self.curve


class BasisArrays(NamedTuple):
    """params: the encoder's layers; readout: head and gauge."""

    params: PolicyParams
    readout: Readout


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Static part of an encoder.

    Attributes:
      graphdef: its decoder. last: stages to run. final_norm: whether the final norm follows. pool: "mean" or "last".
      shared: whether hidden states of `Rollout.rows` are what its first stage gives, so that only later ones are run.
    """

    graphdef: nnx.GraphDef
    last: int
    final_norm: bool
    pool: str
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class BasisReward:
    """A compiled reward, `(arrays, rollout) -> φ float32[B, K]`; `end_id` closes a completion."""

    pooling: Pooling
    end_id: int

    def __call__(self, arrays: BasisArrays, rollout: Rollout) -> jax.Array:
        rows = rollout.rows._replace(z=None)
        tokens, member = closed(rows.tokens, rollout.mask, rollout.ended, self.end_id)

        def whole() -> jax.Array:
            anew = rows._replace(tokens=tokens, prompt_hidden=None, hidden=None)
            return pooled(self.pooling, arrays.params, anew, member)

        if not self.pooling.shared or rows.hidden is None:
            return arrays.readout(whole())

        def rest() -> jax.Array:
            return pooled(self.pooling, arrays.params, rows, member[:, :-1])

        # The policy's activations are those of the closed completion where each one closed itself with that very token.
        same = jnp.all(tokens[:, :-1] == rows.tokens, where=member[:, :-1]) & jnp.all(rollout.ended)
        return arrays.readout(jax.lax.cond(same, rest, whole))

    @property
    def reads_beginnings(self) -> bool:
        """Whether `prefixes` has something to read."""
        return self.pooling.pool == "mean"

    def prefixes(self, arrays: BasisArrays, rollout: Rollout) -> jax.Array:
        """φ of the mean state of the completion's tokens before each token, float32[B, T, K]; 0 before the first.

        What a critic says that is the reward model: it reads every beginning as if it were the whole, but for the closing
        token. Before the first token there is nothing to read and 0 is the average over everything, so a prompt's shift
        (see above) counts with the first token until the heads have learned it.

        Raises:
          ValueError: a basis that reads the closing token alone, which no beginning has.
        """
        if not self.reads_beginnings:
            raise ValueError(
                "pool 'last' reads the closing token alone, which the beginning of a completion lacks"
            )
        rows = rollout.rows._replace(z=None)
        if not self.pooling.shared:
            rows = rows._replace(prompt_hidden=None, hidden=None)
        phi = arrays.readout(pooled_beginnings(self.pooling, arrays.params, rows, rollout.mask))
        return jnp.pad(phi[:, :-1], [(0, 0), (1, 0), (0, 0)])


def closed(tokens: jax.Array, mask: jax.Array, ended: jax.Array, end_id: int) -> tuple[jax.Array, jax.Array]:
    """tokens[B, T + 1] in which `end_id` follows the text of completions[B, T], and bool[B, T + 1] on text and it."""
    slot = (jnp.sum(mask, axis=1) - ended)[:, None]
    slots = jnp.arange(tokens.shape[1] + 1)[None, :]
    tokens = jnp.pad(tokens, [(0, 0), (0, 1)])
    return jnp.where(slots == slot, end_id, tokens), slots <= slot


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


def _normed(pooling: Pooling, decoder: Any, hidden: jax.Array) -> jax.Array:
    return (decoder.final_norm(hidden) if pooling.final_norm else hidden).astype(jnp.float32)


def _pool(pooling: Pooling, hidden: jax.Array, member: jax.Array) -> jax.Array:
    if pooling.pool == "last":
        final = jnp.max(jnp.where(member, jnp.arange(member.shape[1]), -1), axis=1)
        return jnp.take_along_axis(hidden, final[:, None, None], axis=1)[:, 0]
    real = member.astype(jnp.float32)
    return jnp.einsum("bs,bsd->bd", real, hidden) / jnp.maximum(jnp.sum(real, axis=1), 1.0)[:, None]


def load_encoder(
    settings: dict[str, Any], policy: policy_store.Base | None = None
) -> tuple[policy_store.Base, Pooling, PolicyParams]:
    """The stored encoder of a basis, cut to the layers it needs; `policy` as for `cut_encoder`.

    Raises:
      UserError: its model cannot be loaded or has other weights than at the fit.
    """
    base = policy_store.load_base(settings["model"], adapter_layers=None, dtype="float32")
    if base.fingerprint != settings["fingerprint"]:
        raise UserError(
            f"{settings['model']}: weights differ from those the reward basis was fitted with; restore them or fit again"
        )
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
    config = dataclasses.replace(base.config, num_layers=kept, sliding=base.config.sliding[:kept], tied=True)
    lower = 0 if policy is None or len(policy.stages) == 1 else policy.stages[0]
    shared = 0 < lower <= needed and _same_layers(tree, policy.tree, lower)
    stages = (lower, needed - lower) if shared and needed > lower else (kept,)
    tree = policy_store.restage(tree, (kept,), stages)
    cut = dataclasses.replace(base, config=config, tree=tree, stages=stages)
    graphdef, params, _ = policy_store.base_state(cut, None, "float32", False)
    return Pooling(graphdef, len(stages) if needed else 0, needed == total, pool, shared), params


def _same_layers(encoder: dict[str, Any], policy: dict[str, Any], count: int) -> bool:
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


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers give the same ids to everything: their files and templates agree."""

    def content(tokenizer: Any) -> list[Any]:
        names = ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json")
        paths = [tokenizer.directory / name for name in names]
        return [path.read_bytes() if path.is_file() else None for path in paths]

    return one.end_id == other.end_id and content(one) == content(other)


class ColumnArrays(NamedTuple):
    """φ = values·weight − shift over raw columns: weight[C, K], shift[K]."""

    weight: jax.Array
    shift: jax.Array


@dataclasses.dataclass(frozen=True)
class ColumnReward:
    """Jittable columns as a compiled reward, `(arrays, rollout) -> φ float32[B, T, K]`.

    A number a completion stands at its last token, a number a token where it belongs; the shift at the last.
    """

    functions: tuple[Callable[..., jax.Array], ...]

    def __call__(self, arrays: ColumnArrays, rollout: Rollout) -> jax.Array:
        num_slots = rollout.mask.shape[1]
        prompt = rollout.tokens[:, :-num_slots]
        real = jnp.arange(prompt.shape[1]) >= rollout.starts[:, None]
        completion = jnp.where(rollout.mask, rollout.tokens[:, -num_slots:], 0)
        values = [
            jit_columns.per_token(
                function(completion, rollout.mask, jnp.where(real, prompt, 0), real), rollout.mask
            )
            for function in self.functions
        ]
        product = jnp.matmul(jnp.stack(values, axis=-1), arrays.weight, precision=jax.lax.Precision.HIGHEST)
        last = jit_columns.per_token(jnp.ones(rollout.mask.shape[0]), rollout.mask)
        return product - last[..., None] * arrays.shift


def compiled_columns(
    settings: dict[str, Any], basis: RewardBasis | None
) -> tuple[ColumnReward, ColumnArrays]:
    """The compiled reward of stored jittable columns, read through the gauge of `basis` (None: as they are)."""
    rewards = [entry["settings"] for entry in settings["columns"] if entry["settings"]["gate"] is None]
    functions = tuple(jit_columns.checked(own["name"], own["function"]) for own in rewards)
    if basis is None:
        size = len(functions)
        return ColumnReward(functions), ColumnArrays(jnp.eye(size), jnp.zeros(size))
    readout = Readout.of(basis)
    if readout.square is not None:
        raise UserError("rewards: an ideal-point basis over columns cannot be compiled; fit house or columns")
    return ColumnReward(functions), ColumnArrays(readout.weight, readout.shift)


def compiled_basis(run: FittedBasis, policy: policy_store.Base) -> tuple[BasisReward, BasisArrays] | None:
    """The compiled reward of a run over hidden states; None when its encoder reads other tokens than the policy writes.

    Raises:
      UserError: the encoder cannot be loaded or has changed; a basis that depends on the prompt.
    """
    base, pooling, params = load_encoder(run.basis.encoder, policy)
    if not same_tokens(base.tokenizer, policy.tokenizer):
        return None
    arrays = BasisArrays(params, Readout.of(run.basis))
    return BasisReward(pooling, base.tokenizer.end_id), arrays
