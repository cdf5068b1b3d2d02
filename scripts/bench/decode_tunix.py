"""Tunix's side of `decode.py`: its sampler on its Llama class, rotary θ as the model has it (see `rl_tunix`)."""

# pyright: reportMissingImports=false
import json

import jax
import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler

from scripts.bench.decode_common import serve
from scripts.bench.rl_tunix import NEVER, base_model


class Numbers:
    """A tokenizer of texts that are lists of token ids."""

    def encode(self, text, **_):
        return json.loads(text)

    def decode(self, ids, **_):
        return ""

    def bos_id(self):
        return None

    def eos_id(self):
        return 2

    def pad_id(self):
        return 0


def load(task):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
    model, samplers = base_model(task | {"algorithm": "grpo"}, mesh), {}
    config = model.config

    def generate(prompts, new_tokens):
        length = len(prompts[0])
        if length + new_tokens not in samplers:
            cache = CacheConfig(length + new_tokens, config.num_layers, config.num_kv_heads, config.head_dim)
            samplers[length + new_tokens] = Sampler(model, Numbers(), cache)
        out = samplers[length + new_tokens](
            [json.dumps(row) for row in prompts],
            max_generation_steps=new_tokens,
            max_prompt_length=length,
            eos_tokens=[NEVER],
            temperature=1.0,
            top_p=1.0,
            seed=0,
        )
        return sum(len(np.asarray(row)) for row in out.tokens)

    return generate


if __name__ == "__main__":
    serve(load, "google-tunix", "jax")
