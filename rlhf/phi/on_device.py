"""Rewards inside the compiled iteration: a fitted basis over the policy's own tokens, or jittable columns.

φ is read as `rewards.basis.readout` says, with the stored mean as its centre. e is computed as `rlhf.phi.encoder` computes
it from text: the prompt, the completion and the token that closes it, pooled over the completion; whatever token stopped
the completion is read as that closing token, and one that was cut off gets it. So for tokens that are their text's own
tokenisation, φ is the φ of the decoded text. (Sampled tokens need not be: `samples.jsonl` says how many are.)

Shapes: B rows, W prompt slots, T completion slots, S = W + T + 1 slots with the closing token, D width, K outputs, C columns.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rewards.basis.readout import Folded, Readout
from rewards.basis.store import FittedBasis
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import RewardBasis
from rlhf.models.layout import HostOrDevice
from rlhf.models.tokenizer import Tokenizer
from rlhf.phi.columns import jit as jit_columns
from rlhf.phi.pooling import Pooling, load_encoder, pooled, pooled_beginnings
from rlhf.phi.reward import Compiled, Completions
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams


class EncoderArrays(NamedTuple):
    """params: the encoder's layers; readout: head and gauge."""

    params: PolicyParams
    readout: Folded


@dataclasses.dataclass(frozen=True)
class EncoderKernel:
    """A fitted basis over the policy's own tokens, `(arrays, completions) -> φ float32[B, K]`; `end_id` closes a completion."""

    pooling: Pooling
    end_id: int
    per_token = False

    def __call__(self, arrays: EncoderArrays, completions: Completions) -> jax.Array:
        assert completions.rows is not None, "an encoder reads tokens"
        rows = completions.rows._replace(z=None)
        tokens, member = closed(rows.tokens, completions.mask, completions.ended, self.end_id)

        def whole() -> jax.Array:
            anew = rows._replace(tokens=tokens, prompt_hidden=None, hidden=None)
            return pooled(self.pooling, arrays.params, anew, member)

        if not self.pooling.shared or rows.hidden is None:
            return arrays.readout(whole())

        def rest() -> jax.Array:
            return pooled(self.pooling, arrays.params, rows, member[:, :-1])

        # The policy's activations are those of the closed completion where each one closed itself with that very token.
        same = jnp.all(tokens[:, :-1] == rows.tokens, where=member[:, :-1]) & jnp.all(completions.ended)
        return arrays.readout(jax.lax.cond(same, rest, whole))

    @property
    def reads_beginnings(self) -> bool:
        """Whether `beginnings` has something to read."""
        return self.pooling.pool == "mean"

    def beginnings(self, arrays: EncoderArrays, completions: Completions) -> jax.Array:
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
        assert completions.rows is not None, "an encoder reads tokens"
        rows = completions.rows._replace(z=None)
        if not self.pooling.shared:
            rows = rows._replace(prompt_hidden=None, hidden=None)
        phi = arrays.readout(pooled_beginnings(self.pooling, arrays.params, rows, completions.mask))
        return jnp.pad(phi[:, :-1], [(0, 0), (1, 0), (0, 0)])


def closed(
    tokens: HostOrDevice, mask: jax.Array, ended: jax.Array, end_id: int
) -> tuple[jax.Array, jax.Array]:
    """tokens[B, T + 1] in which `end_id` follows the text of completions[B, T], and bool[B, T + 1] on text and it."""
    slot = (jnp.sum(mask, axis=1) - ended)[:, None]
    slots = jnp.arange(tokens.shape[1] + 1)[None, :]
    tokens = jnp.pad(tokens, [(0, 0), (0, 1)])
    return jnp.where(slots == slot, end_id, tokens), slots <= slot


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids to everything: their files and templates agree."""

    def content(tokenizer: Tokenizer) -> list[bytes | None]:
        names = ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json")
        paths = [tokenizer.directory / name for name in names]
        return [path.read_bytes() if path.is_file() else None for path in paths]

    return one.end_id == other.end_id and content(one) == content(other)


class ColumnArrays(NamedTuple):
    """φ = values·weight − shift over raw columns: weight[C, K], shift[K]."""

    weight: jax.Array
    shift: jax.Array


@dataclasses.dataclass(frozen=True)
class ColumnKernel:
    """Jittable columns as a compiled reward, `(arrays, completions) -> φ float32[B, T, K]`.

    A number a completion stands at its last token, a number a token where it belongs; the shift at the last.
    """

    functions: tuple[Callable[..., jax.Array], ...]
    reads_beginnings = False
    per_token = True

    def beginnings(self, arrays: ColumnArrays, completions: Completions) -> jax.Array:
        """Raises ValueError: a column reads whole completions."""
        raise ValueError("columns say nothing of half a completion")

    def __call__(self, arrays: ColumnArrays, completions: Completions) -> jax.Array:
        num_slots = completions.mask.shape[1]
        prompt = completions.tokens[:, :-num_slots]
        real = jnp.arange(prompt.shape[1]) >= completions.starts[:, None]
        completion = jnp.where(completions.mask, completions.tokens[:, -num_slots:], 0)
        values = [
            jit_columns.per_token(
                function(completion, completions.mask, jnp.where(real, prompt, 0), real), completions.mask
            )
            for function in self.functions
        ]
        product = jnp.matmul(jnp.stack(values, axis=-1), arrays.weight, precision=jax.lax.Precision.HIGHEST)
        last = jit_columns.per_token(jnp.ones(completions.mask.shape[0]), completions.mask)
        return product - last[..., None] * arrays.shift


def compiled_columns(settings: JSONObject, basis: RewardBasis | None) -> Compiled:
    """The compiled reward of stored jittable columns, read through the gauge of `basis` (None: as they are)."""
    rewards = [entry["settings"] for entry in settings["columns"] if entry["settings"]["gate"] is None]
    functions = tuple(jit_columns.checked(own["name"], own["function"]) for own in rewards)
    if basis is None:
        size = len(functions)
        return Compiled(ColumnKernel(functions), ColumnArrays(jnp.eye(size), jnp.zeros(size)))
    readout = Readout.of(basis).folded()
    if readout.square is not None:
        raise UserError("rewards: an ideal-point basis over columns cannot be compiled; fit house or columns")
    return Compiled(ColumnKernel(functions), ColumnArrays(readout.weight, readout.shift))


def compiled_basis(run: FittedBasis, policy: policy_store.Base) -> Compiled | None:
    """The compiled reward of a run over hidden states; None when its encoder reads other tokens than the policy writes.

    Raises:
      UserError: the encoder cannot be loaded or has changed; a basis that depends on the prompt.
    """
    base, pooling, params = load_encoder(run.basis.encoder, policy)
    if not same_tokens(base.tokenizer, policy.tokenizer):
        return None
    arrays = EncoderArrays(params, Readout.of(run.basis).folded())
    return Compiled(EncoderKernel(pooling, base.tokenizer.end_id), arrays)
