"""Text ↔ token ids, with the model's chat template."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from rewards.errors import UserError
from rewards.files import read_json
from rewards.types import Prompt

_PROBE = "\u2042completion\u2042"  # an answer no template contains, to find what follows an answer


class Tokenizer:
    """A Hugging Face fast tokenizer (tokenizer.json) and what its model ends a turn with.

    Prompt and completion are tokenised apart and joined as ids, so the tokens of a prompt never depend on the
    completion that follows, and log-probs of sampled and of given completions are over the same tokens.

    Attributes:
      end_id: token that closes a completion: the one the chat template puts after an assistant's message,
        else the end-of-text token.
      eos_ids: every token at which the model stops, `end_id` first.
      pad_id: filler; never attended to, so which id it is has no effect.
      vocab_size: number of ids, added tokens included.
      has_chat_template: whether prompts are put into a chat.
    """

    def __init__(self, directory: str | Path):
        """Read the tokenizer of a model directory.

        Raises:
          UserError: no tokenizer.json, a damaged one, or a model that defines no end-of-text token.
        """
        from transformers import PreTrainedTokenizerFast  # a second to import, so not before it is needed

        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{path}: missing; a model directory needs the fast tokenizer's file next to config.json"
            )
        read_json(path)  # a damaged file is named with line and column
        try:
            # Not AutoTokenizer: for some model types it rebuilds the tokenizer by the rules of a class and so
            # departs from what tokenizer.json says.
            self._fast = PreTrainedTokenizerFast.from_pretrained(self.directory)
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot use
            raise UserError(
                f"{path}: not a tokenizer ({' '.join(str(error).split())}); download it again"
            ) from None
        self.has_chat_template = bool(self._fast.chat_template)
        self.vocab_size = len(self._fast)
        settings = [self._settings("generation_config.json"), self._settings("config.json")]
        own_eos = _ids([self._fast.eos_token_id])
        eos_ids = _ids(s.get("eos_token_id") for s in settings) + own_eos
        end_id = self._end_of_turn() if self.has_chat_template else None
        if end_id is None:
            end_id = next(iter(own_eos + eos_ids), None)
        if end_id is None:
            raise UserError(
                f"{self.directory}/generation_config.json: eos_token_id: missing; "
                "name the token that ends a text"
            )
        self.end_id: int = end_id
        self.eos_ids = tuple(dict.fromkeys([self.end_id, *eos_ids]))
        pad_ids = _ids([self._fast.pad_token_id, *(s.get("pad_token_id") for s in settings)])
        self.pad_id = pad_ids[0] if pad_ids else self.end_id

    def _settings(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        raw = read_json(path) if path.is_file() else {}
        return {**raw.get("text_config", {}), **raw}

    def _render(self, messages: Sequence[tuple[str, str]], *, add_generation_prompt: bool) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._fast.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(role for role, _ in messages)
            raise UserError(
                f"{self.directory}: the chat template refuses messages of {roles} ({error}); change the roles"
            ) from None

    def _end_of_turn(self) -> int | None:
        """First special token after an assistant's message, None where the template puts none."""
        text = self._render([("user", "x"), ("assistant", _PROBE)], add_generation_prompt=False)
        after = self._fast.encode(text.partition(_PROBE)[2], add_special_tokens=False)
        special = set(self._fast.all_special_ids) | {
            index for index, token in self._fast.added_tokens_decoder.items() if token.special
        }
        return next((token for token in after if token in special), None)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, up to where the model starts to answer.

        A plain string is one user message where the model has a chat template, else plain text (with the
        beginning-of-text token if the tokenizer adds one).

        Raises:
          UserError: chat messages for a model without a template, or roles the template refuses.
        """
        if isinstance(prompt, str):
            if not self.has_chat_template:
                return list(self._fast.encode(prompt, add_special_tokens=True))
            prompt = (("user", prompt),)
        if not self.has_chat_template:
            raise UserError(
                f"{self.directory}: no chat template for a prompt of messages; give the prompt as one string"
            )
        # The template writes the special tokens itself.
        return list(
            self._fast.encode(self._render(prompt, add_generation_prompt=True), add_special_tokens=False)
        )

    def encode_completion(self, text: str) -> list[int]:
        """Ids of a completion and the token that closes it; special tokens spelt out in `text` stay text."""
        return [*self._fast.encode(text, add_special_tokens=False, split_special_tokens=True), self.end_id]

    def encode_conversation(self, prompt: Prompt, completion: str) -> list[int]:
        """Ids of a finished conversation, tokenised in one piece as reward models are given it.

        With a chat template it is the rendered messages, without a generation prompt; else prompt, completion and the
        end-of-text token.

        Raises:
          UserError: chat messages for a model without a template, or roles the template refuses.
        """
        if not self.has_chat_template:
            self.encode_prompt(prompt)  # refuses messages
            return [*self._fast.encode(f"{prompt}{completion}", add_special_tokens=True), self.end_id]
        messages = (("user", prompt),) if isinstance(prompt, str) else prompt
        text = self._render((*messages, ("assistant", completion)), add_generation_prompt=False)
        return list(self._fast.encode(text, add_special_tokens=False))

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """What every plain prompt starts with: the template up to the user's words, a beginning-of-text token, nothing."""
        prompts = [self.encode_prompt(text) for text in ("1", "a", "Which")]
        return tuple(os.path.commonprefix(prompts))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=True)


def _ids(values: Iterable[Any]) -> list[int]:
    """Flatten settings that hold one id, several, or none."""
    flat: list[int] = []
    for value in values:
        flat += (
            []
            if value is None
            else [int(v) for v in value]
            if isinstance(value, list | tuple)
            else [int(value)]
        )
    return flat
