"""PPO on rewards fitted from people's choices; a person a row:  python scripts/examples/train_ppo.py --steps 20"""

import argparse

import rewards
import rlhf

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--data", default="electricity")
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()

prefs = rewards.read(args.data)
fitted = rewards.fit(prefs.training, encoder=rlhf.encoder(args.model), num_basis=2, dims=8)
start = rlhf.train_sft(
    args.model, prefs.training, steps=args.steps
)  # learns to answer with a contract: π_ref
policy = rlhf.train_ppo(
    start, prefs.training, rewards=fitted, steps=args.steps, max_new_tokens=32, prompts_per_step=4
)
first, last = policy.history[0], policy.history[-1]
print(f"reward {first['train/reward']:+.3f} → {last['train/reward']:+.3f} nats")
everybody, own = policy.generate("Which electricity supplier should I pick?", people=[None, fitted.people[0]])
print(everybody, own, sep="\n")
