"""A Hugging Face sequence-classification reward model as columns: our decoder with the checkpoint's `score` head.

    r(x, y) = scoreᵀ h_last,   h_last the final hidden state at the last token of the conversation (x, y)

as transformers' `…ForSequenceClassification` computes it, pooling included: trailing tokens that equal the
configuration's pad token are not counted. A model with several labels gives one column a label.
Numbers are the model's logits, not normalised.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rewards.errors import UserError
from rewards.files import JSONObject, sha256_json
from rewards.types import Preferences
from rlhf.models.config import ModelConfig
from rlhf.models.families import FAMILIES, classifier_architecture
from rlhf.models.load import load_params, read_hf_config, resolve_model
from rlhf.models.save import score_leaf
from rlhf.models.tokenizer import Tokenizer
from rlhf.phi.columns.hidden import pooled_states
from rlhf.phi.columns.items import Measured, first_rows, place, remembered, texts_of
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import stages_of
from rlhf.policy.packing import Sequences

SUPPORTED = tuple(map(classifier_architecture, FAMILIES))


@dataclasses.dataclass(frozen=True)
class ClassifierColumn:
    """`name` in the report, `model` a directory or hub id."""

    name: str
    model: str

    def identity(self) -> str:
        """Hash of the weights and of what turns text into tokens."""
        directory = resolve_model(self.model)
        check_architecture(directory, read_hf_config(directory))
        return sha256_json(self.parts())

    def former_identities(self) -> tuple[str, ...]:
        """Of before all files that a tokenizer is read from were a part of it."""
        directory = resolve_model(self.model)
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        texts = [
            (directory / name).read_text(encoding="utf-8") if (directory / name).is_file() else None
            for name in names
        ]
        return (sha256_json([policy_store.fingerprint(directory), texts]),)

    def parts(self) -> dict[str, str]:
        return policy_store.parts_of(self.model)

    def outputs(self) -> tuple[str, ...]:
        labels = self._labels()
        return (self.name,) if len(labels) == 1 else tuple(f"{self.name}.{label}" for label in labels)

    def measure(self, prefs: Preferences, *, fitting: bool) -> Measured:
        values = remembered(
            [self.identity(), texts_of(prefs)], lambda: _loaded(self.model, self.identity()).logits(prefs)
        )
        return Measured(self.outputs(), values, {"labels": list(self._labels())})

    def _labels(self) -> tuple[str, ...]:
        directory = resolve_model(self.model)
        return labels_of(read_hf_config(directory), f"{directory}/config.json")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """base: the decoder below the head; kernel: float32[D, L]; labels: L names; pad_id: −1 for none."""

    base: policy_store.Base
    kernel: np.ndarray
    labels: tuple[str, ...]
    pad_id: int

    def logits(self, prefs: Preferences) -> np.ndarray:
        """float64[I, L] for every item.

        Raises:
          UserError: a conversation is longer than the model's context.
        """
        sequences = conversations(prefs, self.base, self.pad_id)
        hidden = pooled_states(self.base, sequences, self.base.config.num_layers, "last")
        return np.asarray(jnp.matmul(hidden, self.kernel, precision=jax.lax.Precision.HIGHEST), np.float64)


def conversations(prefs: Preferences, base: policy_store.Base, pad_id: int) -> list[Sequences]:
    """Token ids of every item's whole conversation, pooled at its last token; `pad_id` at its end is not counted.

    Raises:
      UserError: a conversation is longer than the model's context.
    """
    first = first_rows(prefs)
    sequences = []
    for item, (prompt, text) in enumerate(zip(prefs.item_prompt, prefs.item_text, strict=True)):
        ids = base.tokenizer.encode_conversation(prefs.prompts[prompt], text)
        if len(ids) > base.config.max_positions:
            raise UserError(
                f"{place(prefs, first, item)}: prompt and completion have {len(ids)} tokens, the context of "
                f"{base.name} holds {base.config.max_positions}; shorten the text"
            )
        while len(ids) > 2 and ids[-1] == pad_id:
            ids.pop()
        sequences.append(Sequences(tuple(ids[:1]), (tuple(ids[1:]),)))
    return sequences


@functools.lru_cache(maxsize=2)
def _loaded(name: str, identity: str) -> Classifier:
    """A classifier stays loaded while it is the same; every training iteration asks for it."""
    return load_classifier(name)


def load_classifier(name: str) -> Classifier:
    """Read a sequence-classification model.

    Raises:
      UserError: another architecture, or weights that do not fit.
    """
    directory = resolve_model(name)
    raw = read_hf_config(directory)
    check_architecture(directory, raw)
    source = f"{directory}/config.json"
    # There is no output over the vocabulary: as with tied weights, none is looked for.
    config = dataclasses.replace(ModelConfig.from_hf(raw, source), tied=True)
    labels = labels_of(raw, source)
    stages = stages_of(config, None)
    tree = load_params(directory, config, stages, jnp.float32, extra=(score_leaf(config, len(labels)),))
    kernel = np.asarray(tree.pop("score")["kernel"])
    base = policy_store.Base(
        name, directory, config, tree, stages, Tokenizer(directory), policy_store.fingerprint(directory)
    )
    return Classifier(base, kernel, labels, pad_of(raw))


def pad_of(raw: JSONObject) -> int:
    """The pad token of a configuration, which a classifier does not read; −1 for none."""
    pad_id = raw.get("pad_token_id")
    return -1 if pad_id is None else int(pad_id)


def check_architecture(directory: str | Path, raw: JSONObject) -> None:
    """Refuse anything but a supported decoder with a classification head."""
    found = (raw.get("architectures") or ["none"])[0]
    if found not in SUPPORTED:
        raise UserError(
            f"{directory}/config.json: architectures: {found!r} cannot be a classifier column; "
            f"supported: {', '.join(SUPPORTED)}"
        )


def labels_of(raw: JSONObject, source: str) -> tuple[str, ...]:
    """Names of the outputs; transformers writes `id2label` unless there are the two default ones."""
    named = raw.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        return tuple(str(named[str(index)]) for index in range(len(named)))
    except (KeyError, TypeError):
        raise UserError(
            f"{source}: id2label: {str(named)[:60]} must number the labels from 0; take the file of the model"
        ) from None
