"""One client of an OpenAI-compatible address, for judges and for policies that are asked there."""

import json
import os
from typing import NamedTuple

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.run.config.address import may_send, refusal

MOST_TOKENS = 2**31
"""A count from which on a server is not believed."""


class Reply(NamedTuple):
    """text: empty where the model said nothing; finished: whether it stopped by itself; num_tokens: None where the server
    does not count."""

    text: str
    finished: bool
    num_tokens: int | None


class ChatClient:
    """Chat completions of one address, with retries; threads may share it.

    Args:
      who: who asks, the beginning of every error. api_key_variable: environment variable of the key; unset: none is sent.
      retries: further tries after a time-out, a 429 (as long as the server asks for) or a 5xx answer.
    Raises:
      UserError: no `openai` package, a key that may not be sent there, or one that no header can hold.
    """

    def __init__(
        self, who: str, address: str, api_key_variable: str, *, timeout_seconds: float, retries: int
    ):
        try:
            import openai
        except ImportError:
            raise UserError(
                f"{who}: a model behind an address needs the `openai` package; "
                "install it with pip install 'chorus-rlhf[judge]'"
            ) from None
        self._who, self._variable, self._retries = who, api_key_variable, retries
        self._url = f"{address.rstrip('/')}/chat/completions"
        key = _key(who, address, api_key_variable)
        # Left out, so that the client sends nothing that it finds in the environment.
        unsent = ["OpenAI-Organization", "OpenAI-Project", *([] if key else ["Authorization"])]
        self._unsent: JSONObject = {name: openai.Omit() for name in unsent}
        self._client = openai.OpenAI(
            base_url=address, api_key=key or "none", timeout=timeout_seconds, max_retries=retries
        )

    def ask(self, body: JSONObject) -> Reply:
        """What the model answers to one request.

        Raises:
          UserError: no answer, a refusal, or something else than a chat completion.
        """
        import openai

        try:
            answer = self._client.chat.completions.with_raw_response.create(
                **body, extra_headers=self._unsent
            )
            found = json.loads(answer.text)
            first = found["choices"][0]
            content, reason = first["message"]["content"], first.get("finish_reason", "stop")
            if not isinstance(content, str | None):
                raise TypeError("content is no text")
            usage = found.get("usage") or {}
            count = usage.get("completion_tokens")
        except openai.APIConnectionError as error:  # a time-out is one
            timed_out = isinstance(error, openai.APITimeoutError)
            reason = "timed out" if timed_out else type(error.__cause__ or error).__name__
            raise UserError(
                f"{self._who}: no answer from {self._url} ({reason}, after {self._retries} retries); "
                "check address and server, the same command goes on from here"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise UserError(
                    f"{self._who}: {self._url} refuses the key (HTTP {error.status_code}); "
                    f"put a valid one into the environment variable {self._variable}"
                ) from None
            said = " ".join(error.response.text.split())[:160]
            raise UserError(
                f"{self._who}: {self._url} answers HTTP {error.status_code} ({said}); "
                "check address and model, the same command goes on from here"
            ) from None
        except (
            openai.OpenAIError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            raise UserError(
                f"{self._who}: {self._url} answers something else than a chat completion; "
                "give an OpenAI-compatible address, which usually ends in /v1"
            ) from None
        counted = count if type(count) is int and 0 <= count < MOST_TOKENS else None
        text = (content or "").encode("utf-8", "replace").decode()  # JSON can hold halves of surrogate pairs
        return Reply(text, reason != "length", counted)


def _key(who: str, address: str, variable: str) -> str:
    """The key to send, empty for none.

    Raises:
      UserError: the variable may not be sent to that address, or holds what no header can.
    """
    key = os.environ.get(variable, "").strip()
    if key and not may_send(variable, address):
        raise UserError(f"{who}: {refusal(variable, address)}")
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{who}: the environment variable {variable} holds letters that no key has; copy the key again"
        )
    return key
