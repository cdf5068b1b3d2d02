"""Logits of every family against transformers, float32."""

import numpy as np
import pytest

from tests.rlhf.models import families
from tests.rlhf.models.families import FAMILIES

WINDOWED = ("mistral", "qwen2_window", "gemma2", "gemma3_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    reference = families.make_model(family)
    reference.save_pretrained(tmp_path)
    tokens, real = families.padded_batch()
    expected = families.torch_logits(reference, tokens, real)[real]
    # One family in two stages, so that the order of the layers across stages is tested, too.
    stages = (3, 1) if family == "gemma3_text" else (4,)
    actual = families.decoder_logits(families.load_decoder(tmp_path, stages), tokens, real)[real]
    assert np.abs(expected).max() > 1.0  # a model that says something
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("family", WINDOWED)
def test_parity_rows_feel_the_window(family):
    """The rows above are long enough that a decoder that ignores the window would be found out."""
    tokens, real = families.padded_batch()
    narrow = families.torch_logits(families.make_model(family), tokens, real)
    wide = families.torch_logits(families.make_model(family, sliding_window=1000), tokens, real)
    assert np.abs(narrow - wide)[real].max() > 0.01


@pytest.mark.parametrize("family", ["llama3_rope", "llama_linear_rope"])
def test_parity_rows_feel_the_rope_scaling(family):
    tokens, real = families.padded_batch()
    theta = FAMILIES[family][1]["rope_parameters"]["rope_theta"]
    plain = {"rope_type": "default", "rope_theta": theta}
    scaled = families.torch_logits(families.make_model(family), tokens, real)
    unscaled = families.torch_logits(families.make_model(family, rope_parameters=plain), tokens, real)
    assert np.abs(scaled - unscaled)[real].max() > 0.01
