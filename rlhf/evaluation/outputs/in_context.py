"""A person's answers in the prompt: the control that needs no training, only room.

    ANSWERS   what was asked, which of two answers was preferred, one after another
    PROMPT    as it is, after a line that asks to write for the same person

Answers to the very prompt that is asked are left out, where there are others: the preferred text would be the answer. Where
the prompt is a list of messages, this stands before the words of the first one. Somebody who has given no answers is asked with
the prompt alone.
"""

from collections.abc import Sequence

from rewards.types import Message, Prompt
from rlhf.evaluation.outputs.people import Answer

HEAD = "One person compared answers to questions. This is what they preferred:"
NEXT = "Write for the same person what they would prefer."


def prompt_for(prompt: Prompt, answers: Sequence[Answer]) -> Prompt:
    """The prompt with a person's answers before it."""
    if not answers:
        return prompt
    blocks = [
        f"Question: {_text(one.prompt)}\nPreferred: {one.preferred}\nNot preferred: {one.other}"
        for one in answers
    ]
    before = "\n\n".join([HEAD, *blocks, NEXT])
    if isinstance(prompt, str):
        return f"{before}\n\n{prompt}"
    if not prompt:
        return before
    role, content = prompt[0]
    more, content = getattr(prompt[0], "more", None), f"{before}\n\n{content}"
    first = (role, content) if more is None else Message(role, content, more)
    return (first, *prompt[1:])


def elsewhere(answers: Sequence[Answer], prompt: Prompt) -> Sequence[Answer]:
    """Those to other prompts; all where there are none."""
    return [one for one in answers if one.prompt != prompt] or answers


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{role}: {said}" for role, said in prompt)
