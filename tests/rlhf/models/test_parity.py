"""Logits of every family against transformers, float32."""

import numpy as np
import pytest

from tests.rlhf.models import families
from tests.rlhf.models.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    reference = families.make_model(family)
    reference.save_pretrained(tmp_path)
    tokens, real = families.padded_batch()
    expected = families.torch_logits(reference, tokens, real)[real]
    # Two stages, so that the order of the layers is tested, too.
    actual = families.decoder_logits(families.load_decoder(tmp_path, stages=(3, 1)), tokens, real)[real]
    assert np.abs(expected).max() > 1.0  # a model that says something
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("family", ["mistral", "qwen2_window", "gemma2", "gemma3_text"])
def test_window_is_felt(family, tmp_path):
    """The parity rows are long enough that a decoder without the window would differ."""
    families.save_model(family, tmp_path)
    tokens, real = families.padded_batch()
    with_window = families.decoder_logits(families.load_decoder(tmp_path), tokens, real)
    families.rewrite_config(tmp_path, sliding_window=1000)
    without = families.decoder_logits(families.load_decoder(tmp_path), tokens, real)
    assert np.abs(with_window - without)[real].max() > 0.01
