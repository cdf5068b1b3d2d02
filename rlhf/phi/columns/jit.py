"""A jittable function of tokens as a column: it stays inside the compiled training iteration.

    f(completion_tokens, completion_mask, prompt_tokens, prompt_mask) -> reward

named like a Python function column; it takes those of the four that its signature names, all by keyword:
    completion_tokens  int32[B, T], up to and including the stop token, 0 after it
    completion_mask    bool[B, T], True on those tokens
    prompt_tokens      int32[B, W], left-padded with 0;  prompt_mask  bool[B, W]
and returns numbers [B], one a completion, or [B, T], one a token (their sum is the completion's reward; PPO sees each
where it stands). It is traced once: no Python branches on values. Token ids are those of `model`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rewards.errors import UserError
from rewards.files import JSONObject, sha256_file, sha256_json
from rewards.types import Preferences
from rlhf.models.load import resolve_model
from rlhf.models.tokenizer import Tokenizer
from rlhf.phi.columns import user_code
from rlhf.phi.columns.functions import IMPORT_SECONDS, identity_of, load_function, parts_of, source_of
from rlhf.phi.columns.items import Measured
from rlhf.policy import store as policy_store
from rlhf.policy.sampling import left_pad

ARGUMENTS = ("completion_tokens", "completion_mask", "prompt_tokens", "prompt_mask")


@dataclasses.dataclass(frozen=True)
class JitColumn:
    """`spec` names the function, `model` the language model whose token ids it reads."""

    name: str
    spec: str
    model: str | None

    def identity(self) -> str:
        """sha256 over the function's name, what it is made of, and the tokenizer."""
        return identity_of(self.spec, sha256_file(self._directory() / "tokenizer.json"))

    def former_identities(self) -> tuple[str, ...]:
        """Of before imported files were a part of it."""
        path, function = source_of(self.spec)
        return (
            sha256_json([function, sha256_file(path), sha256_file(self._directory() / "tokenizer.json")]),
        )

    def parts(self) -> dict[str, str]:
        return parts_of(self.spec) | policy_store.files_of(self._directory())

    def outputs(self) -> tuple[str, ...]:
        return (self.name,)

    def measure(self, prefs: Preferences, *, fitting: bool) -> Measured:
        tokenizer = Tokenizer(self._directory())
        prompts = [tokenizer.encode_prompt(prefs.prompts[prompt]) for prompt in prefs.item_prompt]
        completions = [tokenizer.encode_completion(text) for text in prefs.item_text]
        prompt_tokens, starts = left_pad(prompts)
        flipped, lead = left_pad([ids[::-1] for ids in completions])
        slots = np.arange(flipped.shape[1])
        mask = slots < (flipped.shape[1] - lead)[:, None]
        values = _summed(
            checked(self.name, self.spec),
            np.where(mask, flipped[:, ::-1], 0),
            mask,
            prompt_tokens,
            np.arange(prompt_tokens.shape[1]) >= starts[:, None],
        )
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            item = int(np.flatnonzero(~np.isfinite(values))[0])
            raise UserError(
                f"column {self.name!r}: function {self.spec!r} returned {values[item]} for item {item} of "
                f"{prefs.source}; return finite numbers"
            )
        return Measured((self.name,), values[:, None])

    def _directory(self) -> Path:
        if self.model is None:
            raise UserError(
                f"column {self.name!r}: model is missing; name the language model whose tokens the function reads"
            )
        return tokenizer_directory(self.model)


def tokenizer_directory(model: str) -> Path:
    """The Hugging Face directory under a model or a training run."""
    name: str | Path = model
    while policy_store.is_run(name):
        name = policy_store.record_of(name)["base"]
    return resolve_model(name)


@functools.lru_cache(maxsize=64)
def checked(name: str, spec: str) -> Callable[..., jax.Array]:
    """The function, taking all four arguments by position; the same object every time, so nothing compiles twice.

    Raises:
      UserError: it cannot be imported, needs another argument, cannot be traced, or gives another shape.
    """
    function = load_function(spec)
    parameters = inspect.signature(function).parameters
    wanted = [p.name for p in parameters.values() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
    other = [parameter for parameter in wanted if parameter not in ARGUMENTS]
    if other:
        raise UserError(
            f"column {name!r}: function {spec!r} needs {other[0]!r}; a jit function takes {', '.join(ARGUMENTS)}"
        )
    taken = [argument for argument in ARGUMENTS if argument in parameters]

    def call(*arrays: jax.Array) -> jax.Array:
        given: dict[str, jax.Array] = dict(zip(ARGUMENTS, arrays, strict=True))
        return jnp.asarray(function(**{argument: given[argument] for argument in taken}))

    rows, new, width = 3, 5, 7
    shapes = ((rows, new), (rows, new), (rows, width), (rows, width))
    types = (jnp.int32, bool, jnp.int32, bool)
    probe = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    try:
        out = user_code.run(lambda: jax.eval_shape(call, *probe), IMPORT_SECONDS)
    except user_code.Failed as failure:
        said = user_code.said(failure, source_of(spec)[0], IMPORT_SECONDS, "tracing must not wait")
        raise UserError(
            f"column {name!r}: function {spec!r} cannot be traced, {said}; write it with jax.numpy, or use kind function"
        ) from None
    if out.shape not in ((rows,), (rows, new)):
        raise UserError(
            f"column {name!r}: function {spec!r} returns shape {list(out.shape)} for {rows} completions of {new} "
            f"tokens; return [{rows}] or [{rows}, {new}]"
        )
    return call


def per_token(value: jax.Array, mask: jax.Array) -> jax.Array:
    """[B] or [B, T] → float32[B, T], 0 outside the mask: one number a completion goes to its last token."""
    value = value.astype(jnp.float32)
    if value.ndim == 2:
        return jnp.where(mask, value, 0.0)
    last = jnp.arange(mask.shape[1]) == jnp.sum(mask, axis=1, keepdims=True) - 1
    return jnp.where(last, value[:, None], 0.0)


@functools.partial(jax.jit, static_argnums=0)
def _summed(call: Callable[..., jax.Array], tokens, mask, prompt_tokens, prompt_mask) -> jax.Array:
    return jnp.sum(per_token(call(tokens, mask, prompt_tokens, prompt_mask), mask), axis=1)


def only_jit(settings: Sequence[JSONObject]) -> bool:
    """Whether all columns of stored settings are jittable functions."""
    return bool(settings) and all(entry["settings"]["kind"] == "jit" for entry in settings)
