"""One GRPO iteration of TRL after the other; started by `rl.py` with the Python of TRL's environment.

LoRA through PEFT, whose base without adapters is the reference. Gradient checkpointing and bfloat16, on by default, are
off, as on the other sides. Completions have full length because no token ends them.
"""

# pyright: reportMissingImports=false
import importlib
import sys

from scripts.bench.rl_common import Side, Stopwatch, reward


def prompt_logprob(trainer, text: str) -> float:
    """Mean log-prob of a prompt's tokens after the first, nats: the same number on every side, or models differ."""
    import torch

    ids = torch.tensor([trainer.processing_class(text)["input_ids"]])
    with torch.no_grad():
        logprobs = trainer.model(ids).logits.log_softmax(-1)[0, :-1]
    return logprobs.gather(1, ids[0, 1:, None]).mean().item()


def main() -> None:
    with Side() as side:
        task = side.task
        if task["algorithm"] == "ppo":
            importlib.import_module("trl.trainer.ppo_trainer")  # gone since 1.13; the error is the result

        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        torch.set_num_threads(task["threads"])
        rows = task["num_prompts"] * task["group_size"]
        count = len(task["prompts"]) // task["num_prompts"] * task["num_prompts"]
        data = Dataset.from_list([{"prompt": text} for text in task["prompts"][:count]])
        watch = Stopwatch()
        shapes: dict[str, int] = {}

        class Turns(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                nonlocal watch
                if not side.wait():
                    sys.stderr.flush()
                    raise SystemExit(0)
                watch = Stopwatch()

            def on_step_end(self, args, state, control, **_):
                side.report(watch.stop(), **shapes)

        class Timed(GRPOTrainer):
            def _generate_single_turn(self, prompt_ids, *args, **kwargs):
                completions, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
                watch.mark("generation")
                shapes.update(
                    rows=len(completions),
                    prompt_tokens=max(map(len, prompt_ids)),
                    completion_tokens=max(map(len, completions)),
                )
                return completions, logprobs

            def _generate_and_score_completions(self, inputs):
                scored = super()._generate_and_score_completions(inputs)
                watch.mark("rollout")
                return scored

        model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
        model.generation_config.eos_token_id = None
        trainer = Timed(
            model=model,
            reward_funcs=lambda completions, **_: [reward(text) for text in completions],
            args=GRPOConfig(
                output_dir=task["scratch"],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=1,
                num_generations=task["group_size"],
                max_completion_length=task["new_tokens"],
                generation_kwargs={"eos_token_id": None},
                beta=task["beta"],
                learning_rate=task["learning_rate"],
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                loss_type="grpo",
                num_iterations=1,
                max_steps=10_000,
                shuffle_dataset=False,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(task["model"]),
            peft_config=LoraConfig(
                r=task["lora_rank"],
                lora_alpha=task["lora_alpha"],
                lora_dropout=0.0,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                task_type="CAUSAL_LM",
            ),
            callbacks=[Turns()],
        )
        assert trainer.model is not None
        trained = sum(leaf.numel() for leaf in trainer.model.parameters() if leaf.requires_grad)
        side.ready(trained_parameters=trained, prompt_logprob=prompt_logprob(trainer, side.prompts(0)[0]))
        trainer.train()


if __name__ == "__main__":
    main()
