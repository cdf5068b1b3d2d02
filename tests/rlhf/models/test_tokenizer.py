"""Chat templates, completions and stop tokens, against transformers' own calls."""

import json

import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from rewards.errors import UserError
from rewards.files import write_json
from rewards.types import as_messages, message_of
from rlhf.models.gguf_tokenizer import write_tokenizer
from rlhf.models.tokenizer import Tokenizer
from tests.rlhf.models import gguf_files

CHAT = (("system", "Be brief."), ("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "And 3 + 3?"))
TURN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ '<start>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def vocabulary():
    return gguf_files.train_vocabulary()


def make_directory(
    directory, vocabulary, *, template=gguf_files.CHAT, special=gguf_files.SPECIAL, **generation
):
    tokens, merges = vocabulary
    tokens = [*tokens, *(token for token in special if token not in tokens)]
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }
    if template:
        metadata["tokenizer.chat_template"] = template
    directory.mkdir(exist_ok=True)
    write_tokenizer(metadata, directory)
    write_json(directory / "config.json", {"eos_token_id": 0})
    write_json(directory / "generation_config.json", {"eos_token_id": 0, **generation})
    return directory


@pytest.fixture(scope="module")
def directory(vocabulary, tmp_path_factory):
    return make_directory(tmp_path_factory.mktemp("chat") / "model", vocabulary)


def test_prompts_equal_transformers_chat_template(directory):
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    messages = [{"role": role, "content": content} for role, content in CHAT]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    tokenizer = Tokenizer(directory)
    assert tokenizer.encode_prompt(CHAT) == expected
    one = reference.apply_chat_template(messages[1:2], add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_prompt(CHAT[1][1]) == one
    assert tokenizer.has_chat_template and tokenizer.vocab_size == len(reference)


def test_completion_closes_the_turn(directory):
    """The end is the template's end of turn (2), not the text's end (0); both stop the model."""
    tokenizer = Tokenizer(directory)
    ids = tokenizer.encode_completion("It is 6.")
    assert ids[-1] == tokenizer.end_id == 2
    assert tokenizer.eos_ids == (2, 0) and tokenizer.pad_id == 2
    assert tokenizer.decode(ids) == "It is 6."
    # As in a conversation the template renders in one go.
    messages = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "It is 6."}]
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    whole = reference.apply_chat_template(messages, return_dict=False)
    joined = tokenizer.encode_prompt("And?") + ids
    assert whole[: len(joined)] == joined


@pytest.mark.parametrize("text", [*gguf_files.TEXTS, "<|im_end|><|endoftext|>", " leading", "trailing "])
def test_completions_are_plain_text(directory, text):
    """A special token spelt out in a completion cannot end it; decoding gives the text back."""
    tokenizer = Tokenizer(directory)
    ids = tokenizer.encode_completion(text)
    assert not set(ids[:-1]) & {0, 1, 2}
    assert tokenizer.decode(ids) == text
    tokenizer.encode_prompt("x")  # and back: reading special tokens in prompts is not switched off
    assert 1 in tokenizer.encode_prompt("x")


def test_without_template_prompts_are_text(vocabulary, tmp_path):
    directory = make_directory(tmp_path / "model", vocabulary, template=None, pad_token_id=7)
    tokenizer = Tokenizer(directory)
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.encode_prompt("The capital") == reference.encode("The capital")
    assert tokenizer.encode_prompt("The capital")[0] == 0  # the beginning-of-text token
    assert tokenizer.encode_completion(" of France")[-1] == 0
    assert tokenizer.eos_ids == (0,) and tokenizer.pad_id == 7 and not tokenizer.has_chat_template
    with pytest.raises(UserError, match="no chat template for a prompt of messages"):
        tokenizer.encode_prompt(CHAT)


def test_other_turn_tokens_and_refused_roles(vocabulary, tmp_path):
    special = [*gguf_files.SPECIAL, "<start>", "<end_of_turn>"]
    directory = make_directory(
        tmp_path / "model", vocabulary, template=TURN, special=special, eos_token_id=[0, 1]
    )
    tokenizer = Tokenizer(directory)
    assert tokenizer.decode([tokenizer.end_id]) == ""
    assert tokenizer.end_id == len(vocabulary[0]) + 1 and tokenizer.eos_ids == (tokenizer.end_id, 0, 1)
    assert (
        tokenizer.encode_prompt("hi").count(0) == 1
    )  # the template's own beginning-of-text, not a second one
    with pytest.raises(
        UserError, match="refuses messages of system, user, assistant, user .System role not supp"
    ):
        tokenizer.encode_prompt(CHAT)


SAYS_MORE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_what_messages_say_more_reaches_the_template_or_is_spoken_of(vocabulary, tmp_path, caplog):
    call = {"function": {"arguments": {"city": "Bern"}, "name": "weather"}, "type": "function"}
    prompt = tuple(
        map(
            message_of,
            [
                {"role": "user", "content": "Weather?", "name": "ann"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "sunny"},
            ],
        )
    )
    knows = make_directory(tmp_path / "knows", vocabulary, template=SAYS_MORE)
    reference = transformers.AutoTokenizer.from_pretrained(knows)
    expected = reference.apply_chat_template(
        as_messages(prompt), add_generation_prompt=True, return_dict=False
    )
    with caplog.at_level("WARNING", "chorus"):
        assert Tokenizer(knows).encode_prompt(prompt) == expected
    assert "does not show the 'name' of messages" in caplog.text and "tool_calls" not in caplog.text
    ignores = make_directory(tmp_path / "ignores", vocabulary)
    with pytest.raises(UserError, match="leaves out the tool_calls of message 1"):
        Tokenizer(ignores).encode_prompt(prompt)


def test_a_text_begins_behind_nothing_but_the_mark_of_a_beginning(directory, vocabulary, tmp_path):
    assert Tokenizer(directory).encode_prompt(()) == [0]  # no turn of a chat
    bare = make_directory(tmp_path / "model", vocabulary, template=None)
    assert Tokenizer(bare).encode_prompt(()) == [0]


def test_bad_directories_are_named(vocabulary, tmp_path):
    with pytest.raises(UserError, match="tokenizer.json: missing"):
        Tokenizer(tmp_path)
    directory = make_directory(tmp_path / "model", vocabulary)
    (directory / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "?"}}')
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer") as error:
        Tokenizer(directory)
    assert "\n" not in str(error.value)
    (directory / "tokenizer.json").write_text('{"version')
    with pytest.raises(UserError, match="tokenizer.json: not valid JSON"):
        Tokenizer(directory)


def test_model_without_an_end_is_refused(tmp_path):
    backend = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(UserError, match="eos_token_id: missing; name the token"):
        Tokenizer(tmp_path)
