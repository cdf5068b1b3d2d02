"""chorus train sft|dpo|ppo|grpo."""

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_group, add_job, show_values


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(subparsers, "train", "train a policy; the same command again resumes")
    add_job(
        group,
        "sft",
        "supervised start: learn the completions of the data",
        "chorus train sft --model smollm2-135m --data answers.jsonl",
        kind="sft",
        options=True,
        meshed=True,
        dry_run="rlhf.train.dry_run:run",
        show=show,
        job="rlhf.train.sft:run",
    )
    add_job(
        group,
        "dpo",
        "one policy conditioned on people's coefficients, or a plain DPO-family policy",
        "chorus train dpo --model smollm2-135m --data pairs.parquet train.epochs=2",
        kind="dpo",
        options=True,
        meshed=True,
        dry_run="rlhf.train.dry_run:run",
        show=show,
        job="rlhf.train.dpo:run",
    )
    add_job(
        group,
        "ppo",
        "PPO with a vector critic on a reward run or reward functions, one policy for all people",
        "chorus train ppo configs/electricity/ppo.yaml train.steps=20",
        kind="ppo",
        options=True,
        meshed=True,
        dry_run="rlhf.train.dry_run:run",
        show=show,
        job="rlhf.train.rl.trainer:run",
    )
    add_job(
        group,
        "grpo",
        "critic-free: centred, RLOO, GRPO, REINFORCE++ or GDPO advantages on the same rewards",
        "chorus train grpo --model smollm2-135m --data prompts.jsonl --reward own.py:short",
        kind="grpo",
        options=True,
        meshed=True,
        dry_run="rlhf.train.dry_run:run",
        show=show,
        job="rlhf.train.rl.trainer:run",
    )


def show(result: JSONObject) -> None:
    """The last figures, and what to do with the policy."""
    show_values(result)
    place = result["run_dir"]
    print(f"report  {place}/report.html")
    print(f'next    chorus generate --policy {place} --prompt "..."')
    print(f"        chorus export --policy {place} --output {place}/export")
