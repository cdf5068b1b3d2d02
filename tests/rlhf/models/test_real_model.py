"""The real SmolLM2-135M-Instruct: logits and greedy text against transformers.

Runs where the model is in the cache or can be fetched, else is skipped with the reason.
"""

import numpy as np
import pytest
import torch
import transformers

from rewards.errors import UserError
from rlhf.models.fetch import fetch
from rlhf.models.tokenizer import Tokenizer
from tests.rlhf.models import families, record_greedy

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def directory():
    try:
        return fetch("smollm2-135m")
    except UserError as error:
        pytest.skip(f"no model: {error}")


@pytest.fixture(scope="module")
def greedy(directory):
    """Prompts with transformers' greedy completions: right-padded tokens [10, T]; start and stop of each."""
    tokenizer = Tokenizer(directory)
    completions = record_greedy.recorded(directory) or record_greedy.generate(directory)
    prompts = [tokenizer.encode_prompt(prompt) for prompt in record_greedy.PROMPTS]
    bounds = np.array([(len(p), len(p) + len(c)) for p, c in zip(prompts, completions, strict=True)])
    rows = np.full((len(prompts), bounds.max()), tokenizer.pad_id)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        rows[row, : bounds[row, 1]] = prompt + completion
    return rows, bounds


@pytest.fixture(scope="module")
def logits(directory, greedy):
    """Our logits on these rows, one teacher-forced pass."""
    rows, bounds = greedy
    real = np.arange(rows.shape[1]) < bounds[:, 1:]
    return families.decoder_logits(families.load_decoder(directory), rows, real)


def test_greedy_text_equals_transformers(greedy, logits):
    """If the likeliest next token is transformers' all along its text, our greedy text is the same."""
    rows, bounds = greedy
    assert (bounds[:, 1] - bounds[:, 0]).max() == record_greedy.NUM_NEW  # some answers are long
    for row, (start, stop) in enumerate(bounds):
        np.testing.assert_array_equal(logits[row, start - 1 : stop - 1].argmax(-1), rows[row, start:stop])


def test_logits_equal_transformers(directory, greedy, logits):
    rows, bounds = greedy
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    row, num_tokens = 2, 64
    assert bounds[row, 1] >= num_tokens
    expected = families.torch_logits(model, rows[row : row + 1, :num_tokens], np.ones((1, num_tokens), bool))[
        0
    ]
    np.testing.assert_allclose(logits[row, :num_tokens], expected, atol=1e-3)
    np.testing.assert_array_equal(logits[row, :num_tokens].argmax(-1), expected.argmax(-1))


def test_answers_make_sense(directory, greedy):
    """A wrong tokenizer, or weights in a wrong order, would still agree with itself."""
    rows, bounds = greedy
    assert "Paris" in Tokenizer(directory).decode(rows[0, slice(*bounds[0])])
