"""transformers' side of `decode.py`: `generate` with its dynamic cache."""

# pyright: reportMissingImports=false
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from scripts.bench.decode_common import serve


def load(task):
    torch.set_num_threads(1)
    # transformers' own types do not let its models generate.
    model: Any = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(prompts, new_tokens):
        ids = torch.tensor(prompts)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        return (out.shape[1] - ids.shape[1]) * len(out)

    return generate


if __name__ == "__main__":
    serve(load, "transformers", "torch")
