"""One PPO or GRPO iteration of Chorus after the other, as `chorus train` makes it with a reward on the host:
`draw`, completions decoded and rewarded, `update`. Started by `rl.py`.
"""

import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from rlhf.models.adapters import AdapterSpec
from rlhf.objectives.advantages import GRPOAlgorithmConfig, PPOAlgorithmConfig
from rlhf.objectives.kl_control import KLConfig
from rlhf.policy import sampling, scoring, vocabulary
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import init_adapters, structure
from rlhf.run.record import traced
from rlhf.train.optim import OptimizerConfig
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl import update as updates
from rlhf.train.rl.critic import CriticConfig, init_critic
from rlhf.train.rl.rollout import Prompts, Rollout
from rlhf.train.rl.settings import RLProgram, RLSettings, RolloutConfig
from rlhf.train.sft import trained_parts
from scripts.bench.rl_common import Side, Stopwatch, reward

DTYPE = "float32"
NEVER = -1  # a token that no model samples: completions have full length


class Trainer:
    """State and fixed arguments of the two halves of an iteration."""

    def __init__(self, task: dict[str, Any]):
        self.base = policy_store.load_base(
            task["model"], adapter_layers=task.get("adapter_layers"), dtype=DTYPE
        )
        spec = AdapterSpec(task["lora_rank"], task["lora_alpha"])
        graphdef, params, shapes = policy_store.base_state(self.base, spec, DTYPE, remat=False)
        lora, conditioner = init_adapters(graphdef, shapes, jax.random.key(0))
        self.frozen = params._replace(lora=lora, conditioner=conditioner)
        ppo = task["algorithm"] == "ppo"
        critic = None
        if ppo:
            critic = CriticConfig(backbone="separate" if task.get("critic") == "separate" else "shared")
        settings = RLSettings(
            algorithm=PPOAlgorithmConfig()
            if ppo
            else GRPOAlgorithmConfig(kind=task["algorithm"], aggregation="sequence"),
            critic=critic,
            rollout=RolloutConfig(completions=task["group_size"], max_new_tokens=task["new_tokens"]),
            kl=KLConfig(coef=task["beta"])
            if ppo
            else KLConfig(coef=task["beta"], place="loss", estimator="k3"),
            optimizer=OptimizerConfig(learning_rate=task["learning_rate"], schedule="constant"),
            num_steps=1,
        )
        reference = structure(self.base.config, self.base.stages, None, DTYPE, False)[0]
        self.program, self.settings = RLProgram(graphdef, reference), traced(settings)
        trained = trained_parts(self.frozen, full=False)
        if critic is not None:
            trained["critic"] = init_critic(
                critic, self.frozen, self.base.config.width, jax.random.key(1), num_basis=1, personal=False
            )
        self.state = updates.init_state(trained, self.settings, jax.random.key(2))
        self.rows, self.group_size = task["num_prompts"] * task["group_size"], task["group_size"]
        self.sampling = jax.device_put(sampling.SamplingSettings.of(self.rows))
        self.stop, self.weights = jax.device_put((np.array([NEVER], np.int32), np.ones(1, np.float32)))

    def prompts(self, texts: list[str]) -> Prompts:
        # Plain text as the other sides get it: no chat template, no end.
        ids = [self.base.tokenizer.encode_completion(text)[:-1] for text in texts]
        tokens, starts = sampling.left_pad([row for row in ids for _ in range(self.group_size)])
        return Prompts(*jax.device_put((tokens, starts)))

    def prompt_logprob(self, text: str) -> float:
        """Mean log-prob of a prompt's tokens after the first, nats: the same number on every side, or models differ."""
        tokens = jax.numpy.array([self.base.tokenizer.encode_completion(text)[:-1]])
        decoder, later = nnx.merge(self.program.graphdef, *self.frozen), tokens.shape[1] - 1
        states = scoring.completion_states(
            decoder, scoring.rows_of(tokens, jax.numpy.zeros(1, int), None, later)
        )
        return float(vocabulary.token_scores(decoder, states, tokens[:, 1:], None)[0].mean())

    def draw(self, prompts: Prompts) -> Rollout:
        arguments = (prompts, self.weights, self.frozen, self.sampling, self.stop, self.settings)
        return updates.draw(self.state, *arguments, program=self.program)

    def iterate(self, texts: list[str], watch: Stopwatch) -> dict[str, int]:
        """One iteration; shapes of what was sampled."""
        prompts = self.prompts(texts)
        rollout = jax.block_until_ready(self.draw(prompts))
        mask, completions = np.asarray(rollout.mask), np.asarray(rollout.completions)
        texts = [self.base.tokenizer.decode(row[kept]) for row, kept in zip(completions, mask, strict=True)]
        rewards = jax.device_put(np.array([[reward(text)] for text in texts], np.float32))
        watch.mark("rollout")
        self.state, metrics = updates.update(
            self.state, rollout, rewards, self.frozen, self.settings, program=self.program
        )
        jax.block_until_ready((self.state.params, metrics))
        lengths = {"prompt_tokens": prompts.tokens.shape[1], "completion_tokens": int(mask.sum(axis=1).max())}
        return {"rows": len(texts), **lengths}

    def parts(self, texts: list[str], repeats: int) -> dict[str, list[float]]:
        """Processor seconds of the parts of `draw`, each compiled on its own, first call left out."""
        prompts = self.prompts(texts)
        rollout = self.draw(prompts)
        trained = dict(self.state.params)
        critic = trained.pop("critic", None)
        params, keys = self.frozen._replace(**trained), jax.random.split(jax.random.key(3), self.rows)
        score = jax.jit(rollouts.score, static_argnums=1)
        reference = jax.jit(rollouts.reference_logprobs, static_argnums=0)
        lower = jax.jit(scoring.with_lower_states, static_argnums=0)
        rows = rollout.rows
        assert rows is not None
        plain = rows._replace(prompt_hidden=None, hidden=None)

        def generate():
            return sampling.generate(
                params, *prompts, None, keys, self.sampling, self.stop,
                graphdef=self.program.graphdef, max_new_tokens=self.settings.rollout.max_new_tokens, filtered=False,
                group_size=self.group_size,
            )  # fmt: skip

        parts = {
            "generation": generate,
            "lower_layers": lambda: lower(self.program.graphdef, params, plain),
            "logprobs_and_values": lambda: score(self.settings, self.program, params, critic, rows),
            "reference": lambda: reference(self.program, params, rows),
        }
        if rows.hidden is None:
            del parts["lower_layers"]
        return {name: _seconds(part, repeats) for name, part in parts.items()}


def _seconds(work, repeats: int) -> list[float]:
    jax.block_until_ready(work())
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(work())
        seconds.append(time.process_time() - start)
    return seconds


def main() -> None:
    with Side() as side:
        trainer, iteration = Trainer(side.task), 0
        count = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params["lora"]))
        side.ready(trained_parameters=count, prompt_logprob=trainer.prompt_logprob(side.prompts(0)[0]))
        while side.wait():
            watch = Stopwatch()
            shapes = trainer.iterate(side.prompts(iteration), watch)
            side.report(watch.stop(), **shapes)
            iteration += 1
        if side.task.get("parts"):
            side.report({"parts": trainer.parts(side.prompts(0), side.task["parts"])})


if __name__ == "__main__":
    main()
