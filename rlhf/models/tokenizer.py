"""Text ↔ token ids, with the model's chat template."""

import datetime
import functools
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import opening
from rewards.errors import UserError
from rewards.files import JSONObject, read_json
from rewards.types import Message, Prompt, as_messages
from rlhf.models import chat
from rlhf.models.layout import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger("chorus")

_PROBE = "\u2042completion\u2042"  # an answer no template contains, to find what follows an answer
DATE = datetime.date(2025, 1, 1)
"""What templates that write today's date into prompts get: today's would give other ids tomorrow."""
OWN_DATE, OWN_TRUST = "chorus_template_date", "chorus_control_tokens_in_text"
"""Keys of tokenizer_config.json: another date for the template; true where prompts may spell control tokens."""
_ANCHORS = ("\n", ".", "a")
_AFTER_ANCHOR = ("x", " x", "1", "the end", "\u00e9")


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
      template_date: the date that the template writes into prompts (ISO 8601), None where it writes none.
    """

    def __init__(self, directory: str | Path, template_date: str | None = None):
        """Read the tokenizer of a model directory.

        Args:
          directory: of the model.
          template_date: for a template that asks for today's date; by default that of tokenizer_config.json
            (`chorus_template_date`), else a constant.
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
        for name in TOKENIZER_FILES:
            if os.path.lexists(self.directory / name):
                opening.check(self.directory / name, pipes=False)
        read_json(path)  # a damaged file is named with line and column
        try:
            # Not AutoTokenizer: for some model types it rebuilds the tokenizer by the rules of a class and so
            # departs from what tokenizer.json says.
            self._fast = PreTrainedTokenizerFast.from_pretrained(self.directory)
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot use
            raise UserError(
                f"{path}: not a tokenizer ({' '.join(str(error).split())}); download it again"
            ) from None
        self._kept: set[tuple[str, ...]] = set()
        self.has_chat_template = bool(self._fast.chat_template)
        own = self._settings("tokenizer_config.json")
        self._trusted = own.get(OWN_TRUST) is True
        self._date = _date(template_date or own.get(OWN_DATE), path.with_name("tokenizer_config.json"))
        dated = self.has_chat_template and "strftime_now" in str(self._fast.chat_template)
        self.template_date = self._date.isoformat() if dated else None
        if self.template_date is not None:
            _say_date(str(self.directory), self.template_date)
        self.vocab_size = len(self._fast)
        own_eos = _ids([self._fast.eos_token_id])
        eos_ids = [*self._named_ids("eos_token_id"), *own_eos]
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
        pad_ids = [
            *_ids([self._fast.pad_token_id]),
            *(n for n in self._named_ids("pad_token_id", lowest=-1) if n >= 0),
        ]
        self.pad_id = pad_ids[0] if pad_ids else self.end_id

    def dated(self, template_date: str | None) -> "Tokenizer":
        """This tokenizer with the date that a run has recorded; None: as it is."""
        if template_date is None or self.template_date in (None, template_date):
            return self
        return Tokenizer(self.directory, template_date)

    def _settings(self, name: str) -> JSONObject:
        path = self.directory / name
        raw = read_json(path) if path.is_file() else {}
        if not isinstance(raw, dict):
            raise UserError(f"{path}: must be a JSON object, not {type(raw).__name__}; download it again")
        text = raw.get("text_config", {})
        return {**(text if isinstance(text, dict) else {}), **raw}

    def _named_ids(self, key: str, lowest: int = 0) -> list[int]:
        """Token ids under a key of generation_config.json, then of config.json; one, several, or none.

        Raises:
          UserError: something else than token ids. `lowest` -1: some files write that for none.
        """
        found: list[int] = []
        for name in ("generation_config.json", "config.json"):
            given = self._settings(name).get(key)
            for token in given if isinstance(given, list) else [] if given is None else [given]:
                if isinstance(token, bool) or not isinstance(token, int) or not lowest <= token < 2**31:
                    raise UserError(
                        f"{self.directory / name}: {key}: must be a token id or a list of them, not {str(given)[:60]}; "
                        "download it again"
                    )
                found.append(token)
        return found

    def _template(self, messages: Sequence[tuple[str, str]], **how: bool) -> Any:
        conversation = as_messages(tuple(messages))
        try:
            letters = sum(
                len(one[1]) + (len(one.more) if isinstance(one, Message) else 0) for one in messages
            )
            with chat.bounded(self._date, letters):
                return self._fast.apply_chat_template(conversation, **how)
        except (
            Exception
        ) as error:  # a template is a program: it divides by zero, recurses, takes attributes of nothing
            roles = ", ".join(role for role, _ in messages)
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.directory}: the chat template refuses messages of {roles} ({reason}); change the roles"
            ) from None

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        """A finished conversation in the template."""
        return self._template(messages, tokenize=False)

    def _encode_messages(self, messages: Sequence[tuple[str, str]], *, open_end: bool) -> list[int]:
        """Ids of messages, up to where the model starts to answer or, without `open_end`, to their end.

        A conversation whose last message is the assistant's goes on in that message. Control tokens spelt out in
        messages stay text; the template writes its own.
        """
        self._check_kept(tuple(role for role, _ in messages))
        text = self._render(messages)
        _check_said(self.directory, messages, text)
        self._check_more(messages, text)
        go_on = open_end and messages[-1][0] == "assistant"
        ids = self._template(
            messages,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=open_end and not go_on,
            continue_final_message=go_on,
            sanitize_control_tokens=not self._trusted,
        )
        return list(ids)

    def _check_kept(self, roles: tuple[str, ...]) -> None:
        """Refuse roles whose messages the template leaves out without a word; raises UserError."""
        if roles not in self._kept:
            probes = [(role, f"\u2042message{n}\u2042") for n, role in enumerate(roles)]
            try:
                text = self._render(probes)
            except UserError:
                text = None  # it asks more of a message than to be text: `_check_said` looks at the real ones
            if text is not None:
                _check_said(self.directory, probes, text)
            self._kept.add(roles)

    def _check_more(self, messages: Sequence[tuple[str, str]], text: str) -> None:
        """Refuse tool calls that the template leaves out; a name that it leaves out is spoken of once."""
        for place, one in enumerate(messages):
            if not isinstance(one, Message):
                continue
            for field in json.loads(one.more):
                rest = {name: value for name, value in json.loads(one.more).items() if name != field}
                bare = Message(*one, json.dumps(rest)) if rest else (one[0], one[1])
                try:
                    left_out = self._render([*messages[:place], bare, *messages[place + 1 :]]) == text
                except UserError:  # the template cannot do without it, so it reads it
                    left_out = False
                if left_out and field == "tool_calls":
                    raise UserError(
                        f"{self.directory}: the chat template leaves out the tool_calls of message {place}; write them "
                        "into its content, or take a model whose template knows tools"
                    )
                if left_out:
                    _say_left_out(str(self.directory), field)

    def _end_of_turn(self) -> int | None:
        """First special token after an assistant's message, None where the template puts none."""
        text = self._render([("user", "x"), ("assistant", _PROBE)])
        after = self._fast.encode(text.partition(_PROBE)[2], add_special_tokens=False)
        special = set(self._fast.all_special_ids) | {
            index for index, token in self._fast.added_tokens_decoder.items() if token.special
        }
        return next((token for token in after if token in special), None)

    def _plain(self, text: str) -> list[int]:
        """Ids of a text in which no control token is read."""
        return list(self._fast.encode(text, add_special_tokens=False, split_special_tokens=True))

    @functools.cached_property
    def _begin(self) -> list[int]:
        """What the tokenizer puts before a text. What it would put behind (an end token) ends nothing yet."""
        whole, bare = self._fast.encode("x"), self._fast.encode("x", add_special_tokens=False)
        place = next(
            (n for n in range(len(whole)) if list(whole[n : n + len(bare)]) == list(bare)), len(whole)
        )
        return list(whole[:place])

    @functools.cached_property
    def _anchor(self) -> str | None:
        """A text behind which others are encoded as they go on in a text, where that differs from their beginning.

        SentencePiece puts a space before whatever it encodes: the completion " Paris" of a plain prompt would have two,
        and "Paris" one. None where the tokenizer puts none, or where a template says how an answer begins.
        """
        if self.has_chat_template:
            return None
        for anchor in _ANCHORS:
            start = self._plain(anchor)
            inside = [self._plain(anchor + text) for text in _AFTER_ANCHOR]
            if all(ids[: len(start)] == start for ids in inside):
                tails = [ids[len(start) :] for ids in inside]
                return None if tails == [self._plain(text) for text in _AFTER_ANCHOR] else anchor
        return None

    def _going_on(self, text: str) -> list[int]:
        """Ids of a text that goes on from another one."""
        if self._anchor is not None:
            start, whole = self._plain(self._anchor), self._plain(self._anchor + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return self._plain(text)

    @property
    def hugging_face(self) -> "PreTrainedTokenizerFast":
        """The tokenizer underneath, for libraries that want one of transformers: control tokens in texts are control tokens."""
        return self._fast

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, up to where the model starts to answer.

        A plain string is one user message where the model has a chat template, else plain text (with the
        beginning-of-text token if the tokenizer adds one). Messages that end in the assistant's are gone on with.
        Control tokens spelt out in the text stay text, unless tokenizer_config.json says
        `"chorus_control_tokens_in_text": true`.

        Without messages it is what stands before a text: the beginning-of-text token.

        Raises:
          UserError: chat messages for a model without a template, roles the template refuses or leaves out.
        """
        if not prompt:
            return self._beginning()
        if isinstance(prompt, str):
            if not self.has_chat_template:
                text = self._fast.encode(prompt, add_special_tokens=False) if self._trusted else None
                return [*self._begin, *(self._plain(prompt) if text is None else text)]
            prompt = (("user", prompt),)
        if not self.has_chat_template:
            raise UserError(
                f"{self.directory}: no chat template for a prompt of messages; give the prompt as one string"
            )
        return self._encode_messages(prompt, open_end=True)

    def _beginning(self) -> list[int]:
        """What stands before a plain text, in models that put nothing there the token that separates texts."""
        separator = _ids([self._fast.bos_token_id, self._fast.eos_token_id, self.end_id])
        return self._begin or separator[:1]

    def encode_completion(self, text: str) -> list[int]:
        """Ids of a completion and the token that closes it; special tokens spelt out in `text` stay text."""
        return [*self._going_on(text), self.end_id]

    def encode_conversation(self, prompt: Prompt, completion: str) -> list[int]:
        """Ids of a finished conversation, tokenised in one piece as reward models are given it.

        With a chat template it is the rendered messages, without a generation prompt; else prompt, completion and the
        end-of-text token. Control tokens spelt out in either stay text.

        Raises:
          UserError: chat messages for a model without a template, or roles the template refuses.
        """
        if not self.has_chat_template:
            self.encode_prompt(prompt)  # refuses messages
            return [*self._begin, *self._plain(f"{prompt}{completion}"), self.end_id]
        messages = (("user", prompt),) if isinstance(prompt, str) else prompt
        if messages[-1][0] == "assistant":
            return self._encode_messages(
                (*messages[:-1], ("assistant", messages[-1][1] + completion)), open_end=False
            )
        return self._encode_messages((*messages, ("assistant", completion)), open_end=False)

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """What every plain prompt starts with: the template up to the user's words, a beginning-of-text token, nothing."""
        prompts = [self.encode_prompt(text) for text in ("1", "a", "Which")]
        return tuple(os.path.commonprefix(prompts))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`, by default without special tokens."""
        plain = [int(i) for i in ids]
        if (
            self._anchor is not None
        ):  # behind other text, so that a leading space is not taken for the tokenizer's own
            start = self._plain(self._anchor)
            before, whole = (
                self._fast.decode(own, skip_special_tokens=skip_special_tokens)
                for own in (start, start + plain)
            )
            if whole.startswith(before):
                return whole[len(before) :]
        return self._fast.decode(plain, skip_special_tokens=skip_special_tokens)


def _check_said(directory: Path, messages: Sequence[tuple[str, str]], text: str) -> None:
    """Every message's words stand in the rendered text, as they are, trimmed, or as JSON; raises UserError."""
    squeezed: str | None = None
    for role, content in messages:
        # Templates leave out what a model thought in turns that are over.
        said = content.rpartition("</think>")[2] if role == "assistant" else content
        forms = (said.strip(), json.dumps(said)[1:-1], json.dumps(said, ensure_ascii=False)[1:-1])
        if any(form in text for form in forms):
            continue
        squeezed = squeezed if squeezed is not None else "".join(text.split())
        if "".join(said.split()) not in squeezed:
            raise UserError(
                f"{directory}: the chat template leaves out what a message of role {role!r} says; put it into a message "
                "of another role, or mend the template"
            )


def _date(value: str | None, path: Path) -> datetime.date:
    try:
        return DATE if value is None else datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise UserError(f"{path}: {OWN_DATE}: {value!r} is no date; write 2025-01-31") from None


@functools.cache
def _say_date(directory: str, date: str) -> None:
    """Once a model."""
    _LOG.warning(
        f"{directory}: the chat template writes today's date into prompts; it gets {date} at all times "
        f"({OWN_DATE} in tokenizer_config.json)"
    )


@functools.cache
def _say_left_out(directory: str, field: str) -> None:
    """Once a model and field."""
    _LOG.warning(f"note: {directory}: the chat template does not show the {field!r} of messages to the model")


def _ids(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]
