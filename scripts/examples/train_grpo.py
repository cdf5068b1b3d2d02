"""GRPO with two reward functions in TRL's signature, on rows in memory:  python scripts/examples/train_grpo.py --steps 50"""

import argparse

import rlhf

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--steps", type=int, default=50)
args = parser.parse_args()

rows = [
    {"prompt": "Name a colour.", "wanted": "blue"},
    {"prompt": "Name an animal.", "wanted": "cat"},
    {"prompt": "Name a city.", "wanted": "Rome"},
]


def says_it(completions, wanted, **columns):
    """1 where the completion holds what its row asks for; a column of the rows is an argument of its name."""
    return [float(word.lower() in text.lower()) for text, word in zip(completions, wanted, strict=True)]


def brevity(completions, **columns):
    return [-len(text.split()) / 10 for text in completions]


policy = rlhf.train_grpo(
    args.model,
    rows,
    rewards=[says_it, brevity],
    steps=args.steps,
    max_new_tokens=8,
    prompts_per_step=3,
    rollout={"completions": 4},
    callbacks=[lambda step, metrics: print(step, f"{metrics['train/reward']:+.3f}")],
)
print(policy.generate([row["prompt"] for row in rows], max_new_tokens=8, greedy=True))
