"""Directive feedback as a loss: the policy that has read a hint teaches the policy that has not.

    L_hint = Σ_rows weight · Σ_t min(ρ_t, 2) · D(π_T(·|x, hint, z, y_<t) ‖ π_θ(·|x, z, y_<t)),   ρ_t = π_θ(y_t)/π_old(y_t)

The same completion y is read twice, after the prompt with the hint (teacher) and without (student). The teacher is
whatever weights `teach` is given and does not learn: those from before the hints, or a slow average, which learns sooner
but applies the hint to what the hint has already changed. The ratio weighs prefixes by how likely the present policy is to
reach them; it is no path for gradients.

The term is a sum that any loss can take in beside its own (PPO, GRPO, DPO): `HintTerm()(params, rows)`.

Whom a hint may move. By default the gradient reaches the conditioner only: with a kind of conditioner that is 0 at z = 0,
the generic policy then stays what it was, exactly. Other people share the conditioner's directions, so their policies
are held by *anchor* rows: the same divergence with their own z, taught by their own policy of before.

Shapes: H rows (hinted or anchors), L slots (left-padded prompt | completion), T completion slots, K basis outputs.
Sources: OpenClaw-RL, arXiv:2603.10165 (hints re-score the same tokens); SDPO, arXiv:2601.20802 (ratio clipped at 2).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models.decoder import Decoder
from rlhf.models.layout import HostOrDevice
from rlhf.objectives import distill
from rlhf.objectives.distill import Kind, Target
from rlhf.policy import sampling, scoring, vocabulary
from rlhf.policy.logprobs import PolicyParams

LARGEST_RATIO = 2.0


class Reading(NamedTuple):
    """Completions as somebody reads them.

    Attributes:
      tokens: int32[H, L], prompt | completion; starts: int32[H], slot of the first token.
      z: float32[H, K], or None without people.
    """

    tokens: HostOrDevice
    starts: HostOrDevice
    z: HostOrDevice | None


class HintRows(NamedTuple):
    """What the term learns from; all arrays, so it can be handed to a compiled step.

    Attributes:
      student: how the learning policy reads the rows: without hints.
      mask: bool[H, T], completion tokens up to and including the stop token.
      logprobs: float32[H, T], log π_old of the completion's tokens; by_ratio: bool[H], whether ρ counts (else it is 1).
      target: the teacher at every completion slot, [H, T, …].
      weight: float32[H], what a token of this row counts.
    """

    student: Reading
    mask: HostOrDevice
    logprobs: jax.Array
    by_ratio: jax.Array
    target: Target
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """How much of the teacher is kept (`distill.keep`): `top` tokens (None: all of them), `draws` from the rest."""

    top: int | None = None
    draws: int = 0


@dataclasses.dataclass(frozen=True)
class HintTerm:
    """The loss term, hashable: a static part of a compiled step.

    Attributes:
      graphdef: of the policy. num_slots: T.
      target: as given to `teach`.
      kind, alpha: of the divergence.
      moves: parts of the policy that the term may change.
    """

    graphdef: nnx.GraphDef
    num_slots: int
    target: TargetSpec = TargetSpec()
    kind: Kind = "forward"
    alpha: float = 0.5
    moves: tuple[str, ...] = ("conditioner",)

    def __call__(self, params: PolicyParams, rows: HintRows) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Σ weight · ρ · D over all tokens, and metrics; differentiable in the parts that `moves` names."""
        held = {
            part: jax.lax.stop_gradient(getattr(params, part))
            for part in PolicyParams._fields
            if part not in self.moves
        }
        decoder = nnx.merge(self.graphdef, *params._replace(**held))
        per_token, logprobs = slot_divergence(decoder, rows.student, rows.target, self)
        counted = rows.mask & rows.by_ratio[:, None]
        difference = jnp.where(counted, jax.lax.stop_gradient(logprobs) - rows.logprobs, 0.0)
        ratio = jnp.exp(jnp.minimum(difference, np.log(LARGEST_RATIO)))
        per_token = jnp.where(rows.mask, per_token, 0.0)
        loss = jnp.sum(rows.weight[:, None] * ratio * per_token)
        active = rows.mask & (rows.weight[:, None] > 0)
        return loss, {
            "train/loss/hint": loss,
            "train/hint_kl_nats": jnp.sum(jnp.where(active, per_token, 0.0)) / jnp.maximum(active.sum(), 1),
        }


@functools.partial(jax.jit, static_argnames="term")
def teach(params: PolicyParams, reading: Reading, key: jax.Array, *, term: HintTerm) -> Target:
    """The teacher's distribution at every completion slot of its own reading, as much as `term.target` keeps.

    Args:
      params: of the teacher: the policy as it is, or an average over the past that the caller keeps.
      reading: for a hint, prompts with the hint; for an anchor, without.
      key: of the draws from the rest; otherwise unused.
    """
    decoder = nnx.merge(term.graphdef, *params)
    states = scoring.completion_states(decoder, scoring.rows_of(*reading, term.num_slots))
    spec, vocab = term.target, decoder.config.vocab_size

    def keep(states, slots):
        top = vocab if spec.top is None else spec.top
        own = jax.random.fold_in(key, slots[0, 0]) if spec.draws else None
        return distill.keep(decoder.logits(states, reading.z), top, draws=spec.draws, key=own), ()

    slots = jnp.broadcast_to(jnp.arange(term.num_slots), states.shape[:2])
    return vocabulary.in_chunks(keep, vocab, states, slots)[0]


def slot_divergence(
    decoder: Decoder, student: Reading, target: Target, term: HintTerm
) -> tuple[jax.Array, jax.Array]:
    """D(teacher ‖ student) and log π of the taken token at every completion slot, float32[H, T] each."""
    states = scoring.completion_states(decoder, scoring.rows_of(*student, term.num_slots))
    taken = student.tokens[:, -term.num_slots :]

    def score(states, target, taken):
        logits = decoder.logits(states, student.z)
        value = distill.kept_divergence(target, logits, term.kind, term.alpha, drawn=term.target.draws > 0)
        own = jnp.take_along_axis(logits, taken[..., None], axis=-1)[..., 0]
        return (value, own - jax.nn.logsumexp(logits, axis=-1)), ()

    return vocabulary.in_chunks(score, decoder.config.vocab_size, states, target, taken)[0]


def with_hint(
    prompts: Sequence[Sequence[int]],
    hints: Sequence[Sequence[int]],
    completions: np.ndarray,
    z: HostOrDevice | None,
) -> Reading:
    """How a teacher reads completions int32[H, T]: each prompt's tokens, its hint's tokens, the completion."""
    both = [[*prompt, *hint] for prompt, hint in zip(prompts, hints, strict=True)]
    tokens, starts = sampling.left_pad(both)
    return Reading(np.concatenate([tokens, completions], axis=1), starts, z)


def hint_rows(
    params: PolicyParams,
    student: Reading,
    teacher: Reading,
    mask: HostOrDevice,
    logprobs: jax.Array | None,
    coef: float | jax.Array,
    key: jax.Array,
    *,
    term: HintTerm,
) -> HintRows:
    """Rows of which `params` is the teacher.

    Args:
      logprobs: float32[H, T], log π_old of the completions; None where the ratio shall not count.
      coef: weight in the loss of the mean over all tokens of these rows, λ.

    Rows of an empty mask teach nothing, so a batch may be padded with them.
    """
    target = teach(params, teacher, key, term=term)
    weight = coef * jnp.any(mask, axis=1) / jnp.maximum(mask.sum(), 1)
    by_ratio = jnp.full(mask.shape[0], logprobs is not None)
    logprobs = jnp.zeros(mask.shape, jnp.float32) if logprobs is None else logprobs
    return HintRows(student, mask, logprobs, by_ratio, target, weight.astype(jnp.float32))


def anchor_rows(
    params: PolicyParams,
    reading: Reading,
    mask: HostOrDevice,
    coef: float | jax.Array,
    key: jax.Array,
    *,
    term: HintTerm,
) -> HintRows:
    """Rows that hold people (or nobody, z = 0) where they were: the teacher is `params` reading the very same."""
    return hint_rows(params, reading, reading, mask, None, coef, key, term=term)


def join(parts: Sequence[HintRows]) -> HintRows:
    """Rows of several kinds, of the same T and the same width L, as one batch."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
