"""Records transformers' greedy completions of the real model, so that the test need not wait for them.

    python -m tests.rlhf.models.record_greedy

writes smollm2_greedy.json beside this file. The record names the weights by hash; for other weights (the
hub's are not the package's 4-bit ones) the test generates anew, which takes a minute or two.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from rewards.files import read_json, sha256_file, write_text
from rlhf.models.fetch import MARKER, fetch
from rlhf.models.tokenizer import Tokenizer

RECORD = Path(__file__).with_name("smollm2_greedy.json")
NUM_NEW = 64
PROMPTS = [
    "What is the capital of France?",
    "Give me three tips for better sleep.",
    "Write a short poem about a river.",
    "Explain photosynthesis to a child.",
    "What is 12 times 8?",
    "Name two advantages of trains over cars.",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Suggest a title for a story about a lost dog.",
    "List the first five prime numbers.",
]


def generate(directory: Path) -> list[list[int]]:
    """Greedy completions of `PROMPTS` by `transformers.generate`, up to and including the stop token."""
    tokenizer = Tokenizer(directory)
    prompts = [tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    width = max(map(len, prompts))
    padded = np.array([[tokenizer.pad_id] * (width - len(ids)) + ids for ids in prompts])
    attention = np.array([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    with torch.no_grad():
        out = model.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(attention),
            max_new_tokens=NUM_NEW,
            do_sample=False,
        )
    completions = []
    for sampled in out[:, width:].tolist():
        stop = next((i + 1 for i, token in enumerate(sampled) if token in tokenizer.eos_ids), len(sampled))
        completions.append(sampled[:stop])
    return completions


def recorded(directory: Path) -> list[list[int]] | None:
    """The record, when it was made with the weights in `directory`."""
    record = read_json(RECORD)
    weights = read_json(directory / MARKER)["files"]["model.safetensors"]["sha256"]
    same = (
        record["weights_sha256"] == weights and record["prompts"] == PROMPTS and record["num_new"] == NUM_NEW
    )
    return record["completions"] if same else None


def main() -> None:
    directory = fetch("smollm2-135m")
    record = {
        "weights_sha256": sha256_file(directory / "model.safetensors"),
        "transformers": transformers.__version__,
        "num_new": NUM_NEW,
        "prompts": PROMPTS,
    }
    write_text(RECORD, json.dumps(record | {"completions": generate(directory)}) + "\n")


if __name__ == "__main__":
    main()
