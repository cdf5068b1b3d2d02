"""The small language of `scripts.experiments.hints`, a model that knows it, and what person A thinks of its answers.

A topic is answered by a chain of words, six to ten of them but for a small share of answers of two; after the token for
"shorter, please" 97 of 100 have two.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models.adapters import AdapterSpec
from rlhf.models.config import ModelConfig
from rlhf.models.decoder import Decoder
from rlhf.objectives.advantages import GRPOAlgorithmConfig
from rlhf.objectives.kl_control import KLConfig
from rlhf.policy import scoring, vocabulary
from rlhf.policy.logprobs import PolicyParams, init_adapters, structure
from rlhf.policy.sampling import SamplingSettings
from rlhf.run.record import traced
from rlhf.train import optim
from rlhf.train.hints import loss as hints
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl.rollout import Prompts
from rlhf.train.rl.settings import RLProgram, RLSettings, RolloutConfig
from rlhf.train.sft_step import SFTSettings

VOCABULARY, BEGIN, STOP, TOPICS, SHORTER, WORDS = 32, 1, 2, (3, 4, 5, 6), 7, 10
T, K, ROWS, GROUP, JUDGED = 12, 4, 8, 4, 64
SHORT = 3  # words; A is content with two or three right ones
MODEL = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rope_theta": 100.0,
    "tie_word_embeddings": False,
}


class World(NamedTuple):
    """A model that knows the language, and the program's fixed parts."""

    frozen: PolicyParams
    program: RLProgram
    term: hints.HintTerm


def chain(topic: int, length: int) -> list[int]:
    """The words of a topic in their order, and the stop token."""
    return [WORDS + (7 * topic + 3 * i) % (VOCABULARY - WORDS) for i in range(length)] + [STOP]


def sentences(
    rng: np.random.Generator, count: int, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens[N, 3 + T], starts[N], mask[N, T]: half of the prompts carry the hint."""
    tokens, starts = np.zeros((count, 3 + T), np.int32), np.zeros(count, np.int32)
    mask = np.zeros((count, T), bool)
    for row in range(count):
        topic, hinted = int(rng.choice(TOPICS)), row % 2 == 0
        short = rng.random() < (0.97 if hinted else share)
        words = chain(topic, 2 if short else int(rng.integers(6, 11)))
        prompt = [BEGIN, topic, SHORTER] if hinted else [BEGIN, topic]
        starts[row] = 3 - len(prompt)
        tokens[row, starts[row] : 3] = prompt
        tokens[row, 3 : 3 + len(words)] = words
        mask[row, : len(words)] = True
    return tokens, starts, mask


@functools.partial(jax.jit, static_argnames="graphdef")
def _teach_language(state, batch, settings: SFTSettings, *, graphdef):
    tokens, starts, mask = batch

    def loss(base):
        decoder = nnx.merge(graphdef, base, nnx.State({}), nnx.State({}))
        states = scoring.completion_states(decoder, scoring.rows_of(tokens, starts, None, T))
        logprobs, _ = vocabulary.token_scores(decoder, states, tokens[:, -T:], None)
        return -jnp.sum(jnp.where(mask, logprobs, 0.0)) / jnp.sum(mask)

    value, grads = jax.value_and_grad(loss)(state.params)
    return optim.apply_gradients(state, grads, settings.optimizer, settings.num_steps)[0], value


def make_optimizer(rate: float, schedule: Literal["constant", "cosine"]) -> optim.OptimizerConfig:
    return optim.OptimizerConfig(learning_rate=rate, schedule=schedule, beta2=0.99, eps=1e-6)


def make_settings(rate: float = 0.01, steps: int = 1) -> RLSettings:
    """No price on KL (`KLConfig.coef` has to be above 0), and a mean over tokens."""
    return traced(
        RLSettings(
            algorithm=GRPOAlgorithmConfig(aggregation="token"),
            rollout=RolloutConfig(completions=GROUP, max_new_tokens=T),
            kl=KLConfig(coef=1e-9),
            optimizer=make_optimizer(rate, "constant"),
            num_steps=steps,
        )
    )


def make_world(seed: int, share: float, steps: int = 600) -> tuple[World, float]:
    """A fresh model that has learned the language with that share of short answers, and its loss, nats a token."""
    config = ModelConfig.from_hf(MODEL)
    stages = (config.num_layers,)
    bare = structure(config, stages, None, "float32", False)[0]
    decoder = Decoder(config, stages=stages, spec=None, dtype=jnp.float32, remat=False, rngs=nnx.Rngs(seed))
    base = nnx.split(decoder, nnx.Param)[1]
    rng = np.random.default_rng(seed)
    settings = traced(SFTSettings(optimizer=make_optimizer(0.005, "cosine"), num_steps=steps))
    state = optim.init_state(base, settings.optimizer, jax.random.key(seed))
    losses = []
    for _ in range(steps):
        state, loss = _teach_language(state, sentences(rng, 64, share), settings, graphdef=bare)
        losses.append(loss)
    spec = AdapterSpec(4, 4.0, K, 4)
    graphdef, shapes = structure(config, stages, spec, "float32", False)
    adapters = init_adapters(graphdef, shapes, jax.random.key(seed))
    term = hints.HintTerm(graphdef, T)
    program = RLProgram(graphdef, bare, extra=term)
    return World(PolicyParams(state.params, *adapters), program, term), float(np.mean(losses[-50:]))


def draw(world: World, trained: dict, z: np.ndarray, key: jax.Array, rows: int) -> rollouts.Rollout:
    """Completions for one person (z[K]) or several (z[rows, K]); every group of four has one topic."""
    order = np.random.default_rng(np.asarray(jax.random.key_data(key))).choice(TOPICS, rows // GROUP)
    topics = np.repeat(order, GROUP)
    prompts = np.stack([np.full(rows, BEGIN), topics], axis=1).astype(np.int32)
    coef = np.tile(np.eye(K, dtype=np.float32)[0], (rows, 1))
    return rollouts.rollout(
        world.frozen,
        trained,
        Prompts(jnp.asarray(prompts), jnp.zeros(rows, jnp.int32)),
        jnp.asarray(coef),
        jnp.asarray(np.broadcast_to(z, (rows, K)), jnp.float32),
        key,
        SamplingSettings.of(rows),
        jnp.asarray([STOP]),
        make_settings(),
        program=world.program,
    )


def judge(rollout: rollouts.Rollout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of words, A's grade in [0, 1], and whether A is content, of every completion."""
    tokens, mask = np.asarray(rollout.completions), np.asarray(rollout.mask)
    topics = np.asarray(rollout.tokens[:, -T - 1])
    words = mask.sum(axis=1) - np.asarray(rollout.ended)
    right = np.array(
        [
            ended and row[:count].tolist() == chain(int(topic), count)[:-1]
            for row, topic, count, ended in zip(tokens, topics, words, np.asarray(rollout.ended), strict=True)
        ]
    )
    fits = right & (words >= 2)
    return words, np.where(fits, 1.0 - (words - 2) / T, 0.0), fits & (words <= SHORT)


def student_reading(rollout: rollouts.Rollout, z: Any = None) -> hints.Reading:
    return hints.Reading(rollout.tokens, rollout.starts, rollout.z if z is None else jnp.asarray(z))


def teacher_reading(rollout: rollouts.Rollout) -> hints.Reading:
    prompts = np.asarray(rollout.tokens[:, :-T])
    hint = np.full((len(prompts), 1), SHORTER, np.int32)
    tokens = jnp.concatenate([prompts, hint, rollout.completions], axis=1)
    return hints.Reading(tokens, rollout.starts, rollout.z)
