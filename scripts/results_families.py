"""How far every family of models is from transformers: docs/results/families.md

    python scripts/results_families.py

Tiny random models that transformers makes (tests/rlhf/models/families.py: four layers, width 32, every parameter random, windows
shorter than a row), written to disk and loaded by Chorus.
"""

import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers

sys.path[:0] = [str(Path(__file__).parents[1])]

from rewards.files import write_text  # noqa: E402
from tests.rlhf.models import families  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "results" / "families.md"
NEW_TOKENS = 24
HEAD = f"""# Families of models beside transformers

`python scripts/results_families.py`, transformers {transformers.__version__}, on a CPU. Tiny random models of four layers whose
windows are shorter than the rows; logits of real tokens of right-padded rows. Float32: the largest difference of a logit, beside
the largest logit; {NEW_TOKENS} greedy tokens after two prompts, by `generate` of either. bfloat16: the mean difference from the
float32 logits of transformers, Chorus' and transformers' own (they round at other places).

| family | class | tied | window | largest logit | max \\|Δlogit\\| | greedy text | bfloat16: Chorus | transformers |
|---|---|---|---|---|---|---|---|---|
"""


def row(family: str) -> str:
    """A line of the table."""
    model = families.make_model(family)
    config = model.config
    tokens, real = families.padded_batch()
    exact = families.torch_logits(model, tokens, real)[real]
    prompts = families.greedy_prompts()
    text = families.torch_greedy(model, prompts, NEW_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = families.load_decoder(Path(folder))
        rounded = families.load_decoder(Path(folder), dtype=jnp.bfloat16)
    far = np.abs(families.decoder_logits(ours, tokens, real)[real] - exact).max()
    same = (families.decoder_greedy(ours, prompts, NEW_TOKENS) == text).all()
    strays = [
        np.abs(logits[real] - exact).mean()
        for logits in (
            families.decoder_logits(rounded, tokens, real),
            families.torch_logits(model.to(torch.bfloat16), tokens, real),
        )
    ]
    window = (
        getattr(config, "sliding_window", None) if family not in ("qwen2", "qwen3", "qwen3_moe") else None
    )
    return (
        f"| {family} | {type(model).__name__} | {'yes' if config.tie_word_embeddings else 'no'} | {window or '–'} | "
        f"{np.abs(exact).max():.1f} | {far:.1e} | {'the same' if same else '**differs**'} | {strays[0]:.3f} | {strays[1]:.3f} |"
    )


def main() -> None:
    rows = []
    for family in families.FAMILIES:
        rows.append(row(family))
        print(rows[-1], flush=True)
    write_text(PAGE, HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
