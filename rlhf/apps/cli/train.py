"""chorus train sft|dpo|ppo|grpo."""

from rlhf.apps.cli.common import Subparsers, add_group, add_job


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(subparsers, "train", "train a policy; the same command again resumes")
    add_job(
        group,
        "sft",
        "supervised start: learn the completions of the data",
        "chorus train sft configs/electricity/sft.yaml train.steps=50",
        kind="sft",
        job="rlhf.train.sft:run",
    )
    add_job(
        group,
        "dpo",
        "one policy conditioned on people's coefficients, or a plain DPO-family policy",
        "chorus train dpo configs/electricity/dpo.yaml rewards=runs/electricity/rewards",
        kind="dpo",
        job="rlhf.train.dpo:run",
    )
    add_job(
        group,
        "ppo",
        "PPO with a vector critic on a reward run or reward functions, one policy for all people",
        "chorus train ppo configs/electricity/ppo.yaml train.steps=20",
        kind="ppo",
        job="rlhf.train.rl.trainer:run",
    )
    add_job(
        group,
        "grpo",
        "critic-free: centred, RLOO, GRPO, REINFORCE++ or GDPO advantages on the same rewards",
        "chorus train grpo configs/electricity/grpo.yaml algorithm.kind=rloo",
        kind="grpo",
        job="rlhf.train.rl.trainer:run",
    )
