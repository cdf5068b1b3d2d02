"""Sentence encoders in the layout of sentence-transformers: text → one vector, as that library computes it.

    e(y) = pool over the tokens of y of BERT's last hidden states, then e / |e| where the model says so

Shapes: I texts, B rows, T tokens, D width.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rewards.errors import UserError
from rewards.files import JSONObject, read_json
from rlhf.models import bert
from rlhf.models.hf_values import cut
from rlhf.models.layout import HostOrDevice, Tree
from rlhf.models.load import read_hf_config

_LOG = logging.getLogger("chorus")
MODULES, POOLING = "modules.json", "1_Pooling/config.json"
FILES = (
    MODULES,
    POOLING,
    "config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Besides the weights, what decides the vectors."""
CHUNK = 32
"""Rows of a compiled call; short of that they are filled up, so that every bucket of lengths compiles once."""
SHORTEST = 16
"""Tokens of the smallest bucket; the others are its doubles up to the model's limit."""
# In the order in which sentence-transformers joins several.
_POOLS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}

# Of sentence_bert_config.json: written by newer versions of sentence-transformers, with the value that changes nothing.
_NEUTRAL: JSONObject = {
    **dict.fromkeys(("model_args", "model_kwargs", "config_args", "config_kwargs"), {}),
    **dict.fromkeys(("tokenizer_args", "tokenizer_kwargs", "processor_kwargs"), {}),
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
_WIDTHS = ("word_embedding_dimension", "embedding_dimension")  # the older spelling, the newer one


def is_one(directory: Path) -> bool:
    """Whether a model directory has the layout of sentence-transformers."""
    return (directory / MODULES).is_file()


@dataclasses.dataclass(frozen=True)
class Pooling:
    """pools: what is joined, of cls, max, mean, mean_sqrt_len_tokens. normalise: whether vectors have length 1."""

    pools: tuple[str, ...]
    normalise: bool

    @property
    def name(self) -> str:
        return "+".join(self.pools) + (" normalised" if self.normalise else "")


class SentenceEncoder:
    """A sentence encoder, loaded.

    Attributes:
      config, pooling, max_tokens: what texts are cut to, the two special tokens included. width: D.
    """

    def __init__(self, directory: str | Path):
        """Read a model directory.

        Raises:
          UserError: not the layout, a module, pooling or family that is not implemented, damaged files.
        """
        self.directory = Path(directory)
        raw = read_hf_config(self.directory)
        self.pooling = read_pooling(self.directory)
        self.config = bert.BertConfig.from_hf(raw, str(self.directory / "config.json"))
        settings = _object(self.directory / "sentence_bert_config.json")
        _check_settings(settings, self.directory / "sentence_bert_config.json")
        self._lower = settings.get("do_lower_case") or False
        if not isinstance(self._lower, bool):
            raise UserError(
                f"{self.directory}/sentence_bert_config.json: do_lower_case: must be true or false, not {cut(self._lower)}"
            )
        self.max_tokens = self._limit(settings)
        self._before = _default_prompt(self.directory)
        self._tokenizer = _tokenizer(self.directory, self.max_tokens)
        if self._tokenizer.get_vocab_size() > self.config.vocab_size:
            raise UserError(
                f"{self.directory}/tokenizer.json: has {self._tokenizer.get_vocab_size()} tokens, config.json "
                f"{self.config.vocab_size}; the two must be of one model"
            )
        self.params = bert.load(self.directory, self.config)
        self.width = self.config.width * len(self.pooling.pools)
        for key in _WIDTHS:
            if (given := _object(self.directory / POOLING).get(key, self.config.width)) != self.config.width:
                raise UserError(
                    f"{self.directory / POOLING}: {key}: {cut(given)}, but config.json has hidden_size "
                    f"{self.config.width}; the two must be of one model"
                )

    def _limit(self, settings: JSONObject) -> int:
        given = settings.get("max_seq_length")
        if given is None:
            own = _object(self.directory / "tokenizer_config.json").get("model_max_length")
            given = own if isinstance(own, int) and own <= self.config.max_positions else None
        if given is None:
            return self.config.max_positions
        if (
            isinstance(given, bool)
            or not isinstance(given, int)
            or not 3 <= given <= self.config.max_positions
        ):
            raise UserError(
                f"{self.directory}/sentence_bert_config.json: max_seq_length: must be a whole number from 3 to "
                f"{self.config.max_positions}, not {cut(given)}"
            )
        return given

    def tokens(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Token ids of each text as the model reads it, and how many texts were cut."""
        texts = [self._before + text.strip() for text in texts]
        texts = [text.lower() for text in texts] if self._lower else list(texts)
        encodings = self._tokenizer.encode_batch(texts)
        return [one.ids for one in encodings], sum(bool(one.overflowing) for one in encodings)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32[I, D]; texts longer than `max_tokens` are cut there, which is said."""
        ids, num_cut = self.tokens(texts)
        if num_cut:
            _LOG.warning(
                f"encoder: {num_cut} of {len(texts)} texts are longer than the {self.max_tokens} tokens that "
                f"{self.directory.name} reads; what follows is not embedded"
            )
        out = np.zeros((len(texts), self.width), np.float32)
        for size, index in buckets([len(one) for one in ids], self.max_tokens):
            for start in range(0, len(index), CHUNK):
                part = index[start : start + CHUNK]
                tokens = np.zeros((CHUNK, size), np.int32)
                real = np.zeros((CHUNK, size), bool)
                real[:, 0] = True  # rows that are filled up see one token: no softmax over nothing
                for row, item in enumerate(part):
                    tokens[row, : len(ids[item])], real[row, : len(ids[item])] = ids[item], True
                values = np.asarray(_vectors(self.config, self.pooling, self.params, tokens, real))
                out[part] = values[: len(part)]
        return out


def buckets(lengths: Sequence[int], longest: int) -> list[tuple[int, np.ndarray]]:
    """Padded length and members of each bucket of texts: doubles of `SHORTEST`, the last one `longest`."""
    sizes = [min(SHORTEST << max(0, math.ceil(math.log2(n / SHORTEST))), longest) for n in lengths]
    return [(size, np.flatnonzero(np.array(sizes) == size)) for size in sorted(set(sizes))]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _vectors(
    config: bert.BertConfig, pooling: Pooling, params: Tree, tokens: HostOrDevice, real: HostOrDevice
) -> jax.Array:
    hidden = bert.states(config, params, tokens, real)
    return pooled(pooling, hidden, real)


def pooled(pooling: Pooling, hidden: jax.Array, real: HostOrDevice) -> jax.Array:
    """Hidden states [B, T, D] over the real tokens → [B, D times the number of pools]."""
    seen = real[:, :, None]
    total = jnp.sum(jnp.where(seen, hidden, 0.0), axis=1)
    count = jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
    found = {
        "cls": hidden[:, 0],
        "max": jnp.max(jnp.where(seen, hidden, -jnp.inf), axis=1),
        "mean": total / count,
        "mean_sqrt_len_tokens": total / jnp.sqrt(count),
    }
    vectors = jnp.concatenate([found[name] for name in pooling.pools], axis=1)
    if not pooling.normalise:
        return vectors
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def read_pooling(directory: Path) -> Pooling:
    """modules.json and the configuration of its pooling.

    Raises:
      UserError: a module or a pooling that is not implemented; it is named.
    """
    path = directory / MODULES
    if not path.is_file():
        raise UserError(
            f"{path}: missing; a sentence encoder has the layout of sentence-transformers (encoder.kind: lm reads the "
            "hidden states of a language model)"
        )
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise UserError(f"{path}: must be a list of modules; download it again")
    names = [str(one.get("type")).rsplit(".", 1)[-1] for one in modules]
    for name in names:
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(
                f"{path}: module {cut(name)} is not implemented, only Transformer, Pooling and Normalize; use another "
                "model"
            )
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{path}: modules {', '.join(names) or '(none)'}: must be Transformer, Pooling and at most one Normalize, "
            "in this order"
        )
    for one, wanted in zip(modules, ("", "1_Pooling"), strict=False):
        if one.get("path") != wanted:
            raise UserError(f"{path}: path {cut(one.get('path'))} is not supported, only {wanted!r}")
    return Pooling(_pools(directory / POOLING), names[-1] == "Normalize")


def _pools(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"{path}: missing; download the whole model again")
    raw = _object(path)
    if raw.get("include_prompt", True) is not True:
        raise UserError(f"{path}: include_prompt: {cut(raw['include_prompt'])} is not supported, only true")
    for key, value in raw.items():
        if key.startswith("pooling_mode_") and not isinstance(value, bool):
            raise UserError(f"{path}: {key}: must be true or false, not {cut(value)}")
        if not key.startswith("pooling_mode") and key not in ("include_prompt", *_WIDTHS):
            raise UserError(
                f"{path}: {key}: is not known, so what it changes is not computed; use another model"
            )
    pools = [name for key, name in _POOLS.items() if raw.get(key) is True]
    given = raw.get("pooling_mode")  # the newer spelling: one name, or several in their order
    if given is not None:
        pools = [given] if isinstance(given, str) else list(given) if isinstance(given, list) else [given]
    others = [key for key, on in raw.items() if key.startswith("pooling_mode_") and on is True]
    unknown = [*(key for key in others if key not in _POOLS), *(p for p in pools if p not in _POOLS.values())]
    if unknown or not pools:
        raise UserError(
            f"{path}: {cut(unknown[0]) if unknown else 'no pooling mode is on'}: not implemented, only "
            f"{', '.join(_POOLS.values())}; use another model"
        )
    return tuple(str(name) for name in pools)


def _default_prompt(directory: Path) -> str:
    """What sentence-transformers puts before every text unless told otherwise."""
    path = directory / "config_sentence_transformers.json"
    raw = _object(path)
    name, prompts = raw.get("default_prompt_name"), raw.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(name, str) or not isinstance(prompts.get(name), str):
        raise UserError(f"{path}: default_prompt_name: {cut(name)} is none of prompts; download it again")
    return prompts[name]


def _check_settings(settings: JSONObject, path: Path) -> None:
    """Refuse what would change the vectors without this encoder knowing it."""
    for key, value in settings.items():
        if key not in ("max_seq_length", "do_lower_case") and value not in (_NEUTRAL.get(key, None), None):
            raise UserError(
                f"{path}: {key}: {cut(value)} is not known, so what it changes is not computed; use another model"
            )


def _object(path: Path) -> JSONObject:
    raw = read_json(path) if path.is_file() else {}
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a JSON object, not {type(raw).__name__}; download it again")
    return raw


def _tokenizer(directory: Path, max_tokens: int):
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: missing; a sentence encoder needs the fast tokenizer's file")
    read_json(path)  # a damaged file is named with line and column
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.enable_truncation(max_tokens)
        tokenizer.no_padding()
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot use
        raise UserError(
            f"{path}: not a tokenizer ({' '.join(str(error).split())}); download it again"
        ) from None
    return tokenizer
