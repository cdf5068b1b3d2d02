"""Pooled hidden states of ever new completions: right, and without a new program for each set of them."""

import numpy as np

from rlhf.phi.columns import hidden
from rlhf.policy.packing import Sequences
from tests.rlhf.tiny import make_base, make_config


def test_new_completions_meet_few_programs():
    base, rng = make_base(make_config()), np.random.default_rng(0)
    prompt = (1, 7, 9)
    before = hidden._pooled._cache_size()
    for size in (12, 9, 11, 10, 12, 9):
        completions = [tuple(rng.integers(3, 29, rng.integers(3, 5)).tolist()) for _ in range(size)]
        sequences = [Sequences(prompt, (completion,)) for completion in completions]
        together = hidden.pooled_states(base, sequences, 2, "mean")
        alone = hidden.pooled_states(base, sequences[:1], 2, "mean")
        np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 1e-3
    assert hidden._pooled._cache_size() - before <= 4
