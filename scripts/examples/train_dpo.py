"""One policy for many people, from recorded choices:  python scripts/examples/train_dpo.py --steps 60

The data are 12,924 choices of electricity contracts by 361 people; the model comes with `chorus models fetch smollm2-135m`.
"""

import argparse

import rewards
import rlhf

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--data", default="electricity")
parser.add_argument("--steps", type=int, default=60)
args = parser.parse_args()

prefs = rewards.read(args.data)
fitted = rewards.fit(prefs.training, encoder=rlhf.encoder(args.model), num_basis=2, dims=8)
ada = fitted.person("ada")
for _ in range(3):  # ada likes whatever stands first
    ada.answer(ada.ask(), "first")
print(ada.card())

policy = rlhf.train_dpo(args.model, prefs.training, rewards=fitted, steps=args.steps)
print(policy.generate("Which electricity supplier should I pick?", people=[ada, None], max_new_tokens=40))
