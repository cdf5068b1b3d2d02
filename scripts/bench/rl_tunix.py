"""One PPO or GRPO iteration of Tunix after the other; started by `rl.py` with the Python of Tunix's environment.

LoRA through qwix over a base that the reference shares; PPO's critic is a copy of the policy with adapters of its own.
Three things are done for Tunix that its Llama class does not do by itself: rotary embeddings get the model's θ instead of
1e6; PPO's `segment_ids` is accepted (`as_installed` leaves that out and shows the error); for PPO the tied embedding is
copied into an output head, which a critic replaces. Left as it is: PPO adds rewards to an array of integers, so the
fractions of this reward are lost, which costs no time.
"""

# pyright: reportMissingImports=false
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from tokenizers import Tokenizer
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl import rl_cluster as clusters
from tunix.rl import utils
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

from scripts.bench.rl_common import Side, Stopwatch, reward

ADAPTED = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NEVER = -1  # a token that no model samples: completions have full length


class Words:
    """The model's tokenizer with the methods Tunix asks for; no token opens a prompt."""

    def __init__(self, directory: str):
        self._tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))

    def encode(self, text: str, **_) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids, **_) -> str:
        return self._tokenizer.decode([int(token) for token in ids])

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return 2

    def pad_id(self) -> int:
        return 0


def accept_segments() -> None:
    """Let the Llama class take (and ignore) the argument that PPO's scoring passes."""
    original = llama.Llama3.__call__

    def call(self, input_tokens, positions, cache, attention_mask, segment_ids=None):
        return original(self, input_tokens, positions, cache, attention_mask)

    llama.Llama3.__call__ = call


def base_model(task: dict[str, Any], mesh: jax.sharding.Mesh) -> llama.Llama3:
    """The published weights; with an output head of its own for PPO."""
    stored = json.loads((Path(task["model"]) / "config.json").read_text())
    llama.apply_rope.__defaults__ = (stored["rope_theta"],)
    config = llama.ModelConfig(
        num_layers=stored["num_hidden_layers"],
        vocab_size=stored["vocab_size"],
        embed_dim=stored["hidden_size"],
        hidden_dim=stored["intermediate_size"],
        num_heads=stored["num_attention_heads"],
        head_dim=stored["head_dim"],
        num_kv_heads=stored["num_key_value_heads"],
        norm_eps=stored["rms_norm_eps"],
        rope_theta=stored["rope_theta"],
        weight_tying=True,
    )
    model = llama_params.create_model_from_safe_tensors(task["model"], config, mesh, dtype=jnp.float32)
    if task["algorithm"] == "ppo" and not task.get("as_installed"):
        model.config = dataclasses.replace(config, weight_tying=False)
        shape = (config.embed_dim, config.vocab_size)
        model.lm_head = llama.Einsum(
            "BTD,DV->BTV", shape, rngs=nnx.Rngs(0), sharding=config.shd_config.emb_dv
        )
        model.lm_head.w = nnx.Param(model.embedder.input_embedding[...].T)
    return model


def with_adapters(model: llama.Llama3, task: dict[str, Any]) -> llama.Llama3:
    provider = qwix.LoraProvider(module_path=ADAPTED, rank=task["lora_rank"], alpha=task["lora_alpha"])
    return qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())


def optimizer(task: dict[str, Any]) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(task["learning_rate"], weight_decay=0.0))


def cluster_of(task: dict[str, Any]) -> clusters.RLCluster:
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
    ppo, role = task["algorithm"] == "ppo", clusters.Role
    base = base_model(task, mesh)
    with mesh:
        actor = with_adapters(base, task)
        critic = with_adapters(utils.create_critic_model(base), task) if ppo else None
    roles = [role.ACTOR, role.REFERENCE, role.ROLLOUT, *([role.CRITIC] if ppo else [])]
    return clusters.RLCluster(
        actor=actor,
        critic=critic,
        reference=base,
        tokenizer=Words(task["model"]),
        cluster_config=clusters.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=clusters.RLTrainingConfig(
                actor_optimizer=optimizer(task),
                critic_optimizer=optimizer(task) if ppo else None,
                eval_every_n_steps=1_000_000,
                max_steps=1_000_000,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=task["new_tokens"],
                max_prompt_length=task["prompt_tokens"],
                kv_cache_size=task["prompt_tokens"] + task["new_tokens"],
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                eos_tokens=[NEVER],
            ),
        ),
    )


def rewarded(prompts, completions, **_) -> list[float]:
    return [reward(text) for text in completions]


def learner_of(task: dict[str, Any], cluster: clusters.RLCluster) -> GRPOLearner | PPOLearner:
    if task["algorithm"] == "ppo":
        config = PPOConfig(beta=task["beta"], num_iterations=1, kl_method="kl")
        return PPOLearner(cluster, config, reward_fns=rewarded)
    config = GRPOConfig(
        num_generations=task["group_size"], num_iterations=1, beta=task["beta"], kl_loss_mode="low_var_kl"
    )
    return GRPOLearner(cluster, config, reward_fns=rewarded)


def prompt_logprob(model: llama.Llama3, ids: list[int]) -> float:
    """Mean log-prob of a prompt's tokens after the first, nats: the same number on every side, or models differ."""
    tokens, count = jnp.array([ids]), len(ids)
    causal = jnp.tril(jnp.ones((1, count, count), bool))
    logits, _ = model(tokens, jnp.arange(count)[None], None, causal)
    logprobs = jax.nn.log_softmax(logits[0, :-1])
    return float(jnp.take_along_axis(logprobs, tokens[0, 1:, None], axis=1).mean())


def main() -> None:
    with Side() as side:
        task = side.task
        if not task.get("as_installed"):
            accept_segments()
        cluster = cluster_of(task)
        learner = learner_of(task, cluster)
        generate, score = cluster.generate, learner._generate_and_compute_advantage
        watch, shapes = Stopwatch(), {}

        def timed_generate(*args, **kwargs):
            output = generate(*args, **kwargs)
            watch.mark("generation")
            shapes.update(
                rows=len(output.tokens),
                prompt_tokens=output.left_padded_prompt_tokens.shape[1],
                completion_tokens=max(map(len, output.tokens)),
            )
            return output

        def timed_score(*args, **kwargs):
            example = jax.block_until_ready(score(*args, **kwargs))
            watch.mark("rollout")
            return example

        cluster.generate, learner._generate_and_compute_advantage = timed_generate, timed_score
        trainers = [cluster.actor_trainer, *([cluster.critic_trainer] if task["algorithm"] == "ppo" else [])]
        # PPO has no groups: it is given every prompt as often as GRPO repeats it.
        repeats = task["group_size"] if task["algorithm"] == "ppo" else 1

        def turns():
            nonlocal watch
            iteration = 0
            while side.wait():
                watch = Stopwatch()
                yield {"prompts": np.repeat(np.array(side.prompts(iteration)), repeats)}
                jax.block_until_ready([nnx.state(trainer.model) for trainer in trainers])
                side.report(watch.stop(), **shapes)
                iteration += 1

        actor = cluster.actor_trainer.model
        side.ready(
            trained_parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(actor, nnx.LoRAParam))),
            prompt_logprob=prompt_logprob(actor, Words(task["model"]).encode(side.prompts(0)[0])),
        )
        learner.train(turns())


if __name__ == "__main__":
    main()
