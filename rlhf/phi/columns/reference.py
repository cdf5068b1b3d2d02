"""Certainty of a reference answer as a column, or as a gate: how sure π_ref is of it after reading a completion.

    r(x, y_i) = Σ_t w_t log π_ref(a_t | x, y_i, a_<t),   w_t = σ_t / Σ σ,   σ_t = std_i log π_ref(a_t | x, y_i, a_<t)

a is the reference answer, i runs over the completions of x. Tokens whose certainty does not depend on the completion
(spelling, punctuation, copied words) get no weight; where no token's does, or there is one completion, w_t = 1/T.
Nats per token, at most 0. The weights depend on which completions of the prompt are in the table.

Source: Xu et al. 2025, Direct Reasoning Optimization (R3), arXiv:2506.13351. Differs: weights are proportional to the
standard deviation, for the paper's weighting function is not public; no length penalty.

Letters in shapes: n completions of a prompt, T tokens of its reference answer.
"""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rewards.errors import UserError
from rewards.files import sha256_json
from rewards.types import Preferences
from rlhf.phi.columns.hidden import CHUNK, ROW_LENGTH
from rlhf.phi.columns.items import Measured, data_column, first_rows, groups_of, place, remembered, texts_of
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import chunks, token_logprobs
from rlhf.policy.packing import PackedRows, Sequences, fill_rows, pack

FLAT = 1e-4  # nats; smaller spreads are rounding of float32 sums


@dataclasses.dataclass(frozen=True)
class ReferenceColumn:
    """`model` is π_ref, `reference` the data column that holds the answers."""

    name: str
    model: str
    reference: str

    def identity(self) -> str:
        """Hash of weights, tokenizer and settings of the model."""
        files = policy_store.files_under(self.model)
        return sha256_json([policy_store.fingerprint_of(self.model), self.reference, files])

    def former_identities(self) -> tuple[str, ...]:
        """Of before tokenizer and settings were a part of it."""
        return (sha256_json([policy_store.fingerprint_of(self.model), self.reference]),)

    def parts(self) -> dict[str, str]:
        return policy_store.parts_of(self.model)

    def outputs(self) -> tuple[str, ...]:
        return (self.name,)

    def measure(self, prefs: Preferences, *, fitting: bool) -> Measured:
        first = first_rows(prefs)
        answers = self._answers(prefs, first)

        def compute() -> np.ndarray:
            base = policy_store.load_base(self.model, adapter_layers=None, dtype="float32")
            return certainty(prefs, answer_logprobs(base, prefs, answers, first))

        values = remembered([self.identity(), answers, texts_of(prefs)], compute)
        return Measured((self.name,), values[:, None], {"prompts": len(groups_of(prefs))})

    def _answers(self, prefs: Preferences, first: np.ndarray) -> list[str]:
        """The reference answer of every item, the same for all completions of a prompt."""
        if self.reference not in prefs.columns:
            have = ", ".join(prefs.columns) or "none"
            raise UserError(
                f"column {self.name!r}: {prefs.source} has no column {self.reference!r} with the reference answers "
                f"(columns: {have[:120]}); add it or name another one in reference"
            )
        answers = data_column(prefs, self.reference, first, constant=True)
        known: dict[int, str] = {}
        for item, (prompt, answer) in enumerate(zip(prefs.item_prompt, answers, strict=True)):
            if not isinstance(answer, str) or not answer.strip():
                raise UserError(
                    f"{place(prefs, first, item)}: {self.reference} is {answer!r}; column {self.name!r} needs a "
                    "reference answer in every row"
                )
            if known.setdefault(int(prompt), answer) != answer:
                raise UserError(
                    f"{place(prefs, first, item)}: {self.reference} differs from that of another row with the same "
                    "prompt; give every prompt one reference answer"
                )
        return answers


def certainty(prefs: Preferences, logprobs: list[np.ndarray]) -> np.ndarray:
    """r(x, y) of every item from the log-probs of its answer's tokens, float64[I]."""
    values = np.empty(prefs.num_items)
    for group in groups_of(prefs):
        table = np.stack([logprobs[item] for item in group])
        values[group] = table @ token_weights(table)
    return values


def token_weights(logprobs: np.ndarray) -> np.ndarray:
    """w[T] from log-probs[n, T]: proportional to their standard deviation over completions, equal where none varies."""
    spread = logprobs.std(axis=0)
    if spread.max() <= FLAT:
        return np.full(logprobs.shape[1], 1.0 / logprobs.shape[1])
    return spread / spread.sum()


def answer_logprobs(
    base: policy_store.Base, prefs: Preferences, answers: list[str], first: np.ndarray
) -> list[np.ndarray]:
    """log π_ref of every token of each item's answer, which follows the completion in the same turn, nats.

    Raises:
      UserError: prompt, completion and answer are longer than the model's context.
    """
    prompts = [tuple(base.tokenizer.encode_prompt(prompt)) for prompt in prefs.prompts]
    items: dict[Sequences, list[int]] = {}
    for item, (prompt, text) in enumerate(zip(prefs.item_prompt, prefs.item_text, strict=True)):
        # Without the token that closes a turn: the answer stands in the same turn, and its end is not judged.
        read = (*prompts[prompt], *base.tokenizer.encode_completion(text)[:-1])
        answer = tuple(base.tokenizer.encode_completion("\n" + answers[item])[:-1])
        if len(read) + len(answer) > base.config.max_positions:
            raise UserError(
                f"{place(prefs, first, item)}: prompt, completion and reference have {len(read) + len(answer)} tokens, "
                f"the context of {base.name} holds {base.config.max_positions}; shorten the text"
            )
        items.setdefault(Sequences(read, (answer,)), []).append(item)
    longest = max(len(s.prompt) + len(s.completions[0]) for s in items)
    rows = fill_rows(items, max(ROW_LENGTH, longest))
    packed = pack(rows)
    graphdef, params, _ = policy_store.base_state(base, None, "float32", False)
    out = [np.zeros(0)] * prefs.num_items
    for index in chunks(len(rows), CHUNK, "score references"):
        part = packed.take(index)
        values = np.asarray(_token_logprobs(graphdef, params, part), np.float64)
        for row, number in enumerate(index):
            for place_in_row, group in enumerate(rows[number]):
                # Scored nodes of one completion stand in the order of its tokens: a row is depth-first.
                own = values[row, part.member[row, place_in_row]]
                for item in items[group]:
                    out[item] = own
    return out


@functools.partial(jax.jit, static_argnums=0)
def _token_logprobs(graphdef: nnx.GraphDef, params: PyTree, rows: PackedRows) -> jax.Array:
    return token_logprobs(graphdef, params, rows, None)[0]
