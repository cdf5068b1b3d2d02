"""Text of users that spells a control token (`<|im_end|>`, `</s>`) stays text.

Such a text is encoded by the same tokenizer whose control tokens have other names, made of private characters that no
text holds. Before a template is rendered, control tokens spelt out in messages become placeholders; in the rendered text,
those of the template get their other names, and the placeholders become text again. Everything else about the tokenizer
(how it cuts, what it strips beside a control token) stays as it is, so ids of ordinary text do not change.
"""

import functools
import json
import re
from typing import Any

from tokenizers import Tokenizer

from rewards.errors import UserError

_OPEN, _CLOSE, _HELD = "\U000f0000", "\U000f0001", "\U000f0002"
_PRIVATE = re.compile(f"[{_OPEN}{_CLOSE}{_HELD}]")


class ControlTokens:
    """The control tokens of a tokenizer, given as the text of its tokenizer.json.

    Args:
      source: gives that text; called when the first text spells a control token out.
      names: what the control tokens are written as.
    """

    def __init__(self, backend: Tokenizer, names: set[str]):
        self._backend = backend
        self._names = sorted(filter(None, names), key=lambda name: (-len(name), name))
        self._any = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")

    def spelt(self, text: str) -> bool:
        """Whether a text holds the name of a control token."""
        return self._any.search(text) is not None

    def hide(self, text: str) -> str:
        """The text with placeholders for control tokens that it spells.

        Raises:
          UserError: it holds one of the private characters, with which it could spell the other names.
        """
        found = _PRIVATE.search(text)
        if found:
            raise UserError(
                f"a text holds the private character U+{ord(found[0]):05X}, which stands for control tokens; remove it"
            )
        return self._any.sub(lambda name: f"{_HELD}{self._names.index(name[0])}{_CLOSE}", text)

    def encode(self, rendered: str) -> list[int]:
        """Ids of a text: names of control tokens in it are such tokens, placeholders are the text they stand for."""
        named = self._any.sub(lambda name: self._other(name[0]), rendered)
        text = re.sub(f"{_HELD}([0-9]+){_CLOSE}", lambda held: self._names[int(held[1])], named)
        return self._renamed.encode(text, add_special_tokens=False).ids

    def _other(self, name: str) -> str:
        return f"{_OPEN}{self._names.index(name)}{_CLOSE}"

    @functools.cached_property
    def _renamed(self) -> Tokenizer:
        """The tokenizer with the other names, in its list of tokens and in its vocabulary alike."""
        content = json.loads(self._backend.to_str())
        other = {name: self._other(name) for name in self._names}
        for token in content["added_tokens"]:
            token["content"] = other.get(token["content"], token["content"])
        model: dict[str, Any] = content["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {other.get(piece, piece): index for piece, index in model["vocab"].items()}
        else:  # Unigram: pieces with their scores
            model["vocab"] = [[other.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in other:
            model["unk_token"] = other[model["unk_token"]]
        content["post_processor"] = content["truncation"] = content["padding"] = None
        return Tokenizer.from_str(json.dumps(content))
