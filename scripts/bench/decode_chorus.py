"""Chorus's side of `decode.py`: `sampling.generate` as `chorus generate` calls it, weights cut for decoding beforehand."""

import numpy as np

from rlhf.policy import decoding, sampling
from rlhf.policy import store as policy_store
from scripts.bench.decode_common import serve

NEVER = np.array([-1], np.int32)  # a token that no model samples


def load(task):
    base = policy_store.load_base(task["model"], adapter_layers=None, dtype="float32")
    graphdef, params = decoding.apart(*policy_store.base_state(base, None, "float32", False)[:2])

    def generate(prompts, new_tokens):
        rows = len(prompts)
        tokens, starts = sampling.left_pad(prompts)
        keys, settings = sampling.row_keys(0, np.arange(rows)), sampling.SamplingSettings.of(rows)
        samples = sampling.generate(
            params, tokens, starts, None, keys, settings, NEVER,
            graphdef=graphdef, max_new_tokens=new_tokens, filtered=False,
        )  # fmt: skip
        return int(np.asarray(samples.mask).sum())

    return generate


if __name__ == "__main__":
    serve(load, "jax", "flax")
