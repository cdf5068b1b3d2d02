"""One language model fine-tuned for many people.

    policy = rlhf.train_dpo("smollm2-135m", prefs.training, rewards=fitted, steps=60)
    print(policy.generate("Which supplier should I pick?", people=[ada, None]))

Names are imported when they are used, so importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewards.errors import UserError
    from rlhf.api.completions import Completions
    from rlhf.api.encoders import encoder
    from rlhf.api.evaluating import Evaluation, evaluate
    from rlhf.api.policies import Policy, load_policy
    from rlhf.api.training import train_dpo, train_grpo, train_ppo, train_sft
    from rlhf.train.callbacks import Callback

__all__ = [
    "Callback",
    "Completions",
    "Evaluation",
    "Policy",
    "UserError",
    "encoder",
    "evaluate",
    "load_policy",
    "train_dpo",
    "train_grpo",
    "train_ppo",
    "train_sft",
]
_HOMES = {
    "Callback": "rlhf.train.callbacks",
    "Completions": "rlhf.api.completions",
    "Evaluation": "rlhf.api.evaluating",
    "Policy": "rlhf.api.policies",
    "UserError": "rewards.errors",
    "encoder": "rlhf.api.encoders",
    "evaluate": "rlhf.api.evaluating",
    "load_policy": "rlhf.api.policies",
    "train_dpo": "rlhf.api.training",
    "train_grpo": "rlhf.api.training",
    "train_ppo": "rlhf.api.training",
    "train_sft": "rlhf.api.training",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlhf' has no attribute {name!r}; public are {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
