"""Completions of a policy behind an OpenAI-compatible address.

A prompt that is a text is one user message. The seed of a request is that of the draw, as far as the server heeds it. How likely
a completion was is not known: no KL, and its perplexity under π_ref is that of the text read anew.
"""

import concurrent.futures
import math
from collections.abc import Callable, Sequence

from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Message, Prompt
from rlhf.evaluation.outputs.config import ServerConfig, WritingConfig
from rlhf.phi.columns.chat import ChatClient
from rlhf.policy.generation import Completion


def write(
    place: tuple[str, str],
    asked: Sequence[tuple[Prompt, int]],
    settings: WritingConfig,
    server: ServerConfig,
    done: Callable[[int, Completion], None],
) -> None:
    """Ask for one completion of each (prompt, draw); `done` hears of each as it comes, by its number.

    Raises:
      UserError: a prompt that cannot be sent, or an address that fails; what came before was heard.
    """
    url, served = place
    bodies = [_body(served, prompt, draw, settings) for prompt, draw in asked]
    client = ChatClient(
        f"policies: {url}#{served}",
        url,
        server.variable_of(url),
        timeout_seconds=server.timeout_seconds,
        retries=server.retries,
    )
    with concurrent.futures.ThreadPoolExecutor(server.parallel) as pool:
        futures = {pool.submit(client.ask, body): number for number, body in enumerate(bodies)}
        try:
            for future in concurrent.futures.as_completed(futures):
                reply = future.result()
                count = len(reply.text.split()) if reply.num_tokens is None else reply.num_tokens
                completion = Completion(reply.text, count, math.nan, reply.finished, ())
                done(futures[future], completion)
        except BaseException:  # one failure is the failure of all: do not ask the rest
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _body(served: str, prompt: Prompt, draw: int, settings: WritingConfig) -> JSONObject:
    messages = (("user", prompt),) if isinstance(prompt, str) else prompt
    if not messages:
        raise UserError(f"prompts: an empty one cannot be sent to {served}; leave it out")
    if any(isinstance(one, Message) for one in messages):
        raise UserError(
            f"prompts: messages with names or tool calls are not sent to {served}; give role and content only"
        )
    return {
        "model": served,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": draw % 2**31,
    }
