"""Small tasks for policy gradients whose optimum is known, and one training run on them.

A two-layer decoder with random weights answers a two-token prompt with one or two tokens out of 16. All 241 answers can
be counted, so the KL divergence to the optimum π_ref·exp(w·φ/β) is exact.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rewards.basis.belief import Belief
from rlhf.models.adapters import AdapterSpec
from rlhf.models.config import ModelConfig
from rlhf.objectives.advantages import EstimatorName, GRPOAlgorithmConfig, PPOAlgorithmConfig
from rlhf.objectives.kl_control import KLConfig
from rlhf.policy.conditioning import Conditioning, Gate, Population, UserShares, UsersMixConfig
from rlhf.policy.logprobs import PolicyParams, init_adapters, structure
from rlhf.policy.sampling import SamplingSettings, left_pad
from rlhf.run.record import traced
from rlhf.train.optim import OptimizerConfig
from rlhf.train.rl.critic import CriticConfig, init_critic
from rlhf.train.rl.rollout import Prompts, Rollout
from rlhf.train.rl.settings import RLProgram, RLSettings, RolloutConfig
from rlhf.train.rl.update import init_state, iterate

VOCABULARY, STOP, LIKED, OTHER, K = 16, 2, 5, 7, 2
PROMPTS = ((1, 9), (1, 10))
GROUPS, GROUP_SIZE, BETA = 8, 8, 0.25
MIX = UsersMixConfig(posterior=0.4, prior=0.4, extremes=0.0, generic=0.2)
MODEL = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "rope_theta": 100.0,
    "tie_word_embeddings": False,
}
UNSEEN = np.array([[0.8, -0.6], [-0.5, 0.9], [0.7, 0.5], [-0.6, -0.6]], np.float32)
INTENSITIES = (0.25, 1.0, 4.0)
Algorithm = Literal["ppo"] | EstimatorName
Place = Literal["reward", "loss"]


class Probe(NamedTuple):
    """φ is the sum of `table` over an answer's tokens, plus `constant`.

    Attributes:
      table: float[V, V, K], of one token after one prompt's last token. constant: float[K].
      people: whose rewards are trained on.
      judged: float[U, K], whose policies are compared with their optima.
      beta: price of KL to π_ref.
    """

    table: np.ndarray
    constant: np.ndarray
    people: Population
    judged: np.ndarray
    beta: float = BETA


def table(**of_outputs: dict[tuple[int, int], float]) -> np.ndarray:
    """`first`, `second`: {(index of the prompt or −1 for all, token or −1 for all): reward}."""
    out = np.zeros((VOCABULARY, VOCABULARY, K), np.float32)
    for k, name in enumerate(("first", "second")):
        for (prompt, token), value in of_outputs.get(name, {}).items():
            rows = [PROMPTS[i][-1] for i in range(len(PROMPTS)) if prompt in (-1, i)]
            out[np.ix_(rows, range(VOCABULARY) if token < 0 else [token], [k])] += value
    return out


def one_person(coef: np.ndarray) -> Population:
    """Everybody is this person: z = 0 for all."""
    exact = Conditioning(
        np.asarray(coef, np.float32), np.zeros((K, K), np.float32), np.eye(K, dtype=np.float32)
    )
    twice = np.asarray([coef, coef], np.float32)  # as many as there are opposites: one shape, one compilation
    return Population(exact, twice, np.zeros((2, K, K), np.float32), np.float32(0))


def two_opposites() -> Population:
    prior = Belief.from_cov(np.zeros(K, np.float32), np.eye(K, dtype=np.float32))
    precision = 100 * np.eye(K, dtype=np.float32)
    people = [Belief.from_precision(np.array([s, -s], np.float32), precision, 9) for s in (1.0, -1.0)]
    return Population.from_posteriors(prior, people, extreme_sd=1.5)


FIRST, NOTHING = np.array([[1.0, 0.0]], np.float32), np.zeros(K, np.float32)
PROBES = {
    "constant reward": Probe(table(), np.ones(K, np.float32), one_person(FIRST[0]), FIRST),
    "one token": Probe(table(first={(-1, LIKED): 1.0}), NOTHING, one_person(FIRST[0]), FIRST),
    "by prompt": Probe(table(first={(0, LIKED): 1.0, (1, OTHER): 1.0}), NOTHING, one_person(FIRST[0]), FIRST),
    "by person": Probe(
        table(first={(-1, LIKED): 1.0}, second={(-1, OTHER): 1.0}), NOTHING, two_opposites(), UNSEEN
    ),
}


def intensity(factor: float) -> Probe:
    """One person who likes one token, `factor` times as strongly."""
    coef = np.array([factor, 0.0], np.float32)
    return Probe(PROBES["one token"].table, NOTHING, one_person(coef), coef[None], beta=1.0)


def table_reward(arrays: tuple[jax.Array, jax.Array], rollout: Rollout) -> jax.Array:
    """φ of the completions, float32[B, K], from a probe's (table, constant)."""
    prompt = rollout.tokens[:, -rollout.mask.shape[1] - 1]
    of_tokens, constant = arrays[0][prompt[:, None], rollout.completions], arrays[1]
    return jnp.sum(of_tokens * rollout.mask[..., None], axis=1) + constant


@functools.lru_cache
def model(seed: int) -> tuple[Any, Any, PolicyParams]:
    """Graph definitions with and without adapters, and a random base with fresh adapters."""
    config = ModelConfig.from_hf(MODEL)
    spec = AdapterSpec(lora_rank=4, lora_alpha=4.0, num_basis=K, basis_rank=4)
    graphdef, shapes = structure(config, (config.num_layers,), spec, "float32", False)
    reference = structure(config, (config.num_layers,), None, "float32", False)[0]
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(centre + 0.2 * rng.standard_normal(leaf.shape), jnp.float32)

    base = jax.tree_util.tree_map_with_path(fill, shapes.base)
    return graphdef, reference, PolicyParams(base, *init_adapters(graphdef, shapes, jax.random.key(seed)))


@functools.partial(jax.jit, static_argnums=0)
def token_logprobs(graphdef, params: PolicyParams, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log π of the first token [P, U, V], and of the second after each first [P, U, V, V], for people z[U, K]."""
    decoder, num_people = nnx.merge(graphdef, *params), z.shape[0]
    firsts = jnp.arange(VOCABULARY)
    out = []
    for prompt in PROMPTS:
        tokens = jnp.concatenate([jnp.tile(jnp.array(prompt), (VOCABULARY, 1)), firsts[:, None]], axis=1)
        rows, length = jnp.tile(tokens, (num_people, 1)), len(prompt) + 1
        positions = jnp.broadcast_to(jnp.arange(length), rows.shape)
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (len(rows), length, length))
        of_rows = jnp.repeat(z, VOCABULARY, axis=0)
        states, _ = decoder.run_stages(
            decoder.embed_tokens(rows), decoder.context(positions, mask, z=of_rows)
        )
        logprobs = jax.nn.log_softmax(decoder.logits(states[:, -2:], of_rows))
        logprobs = logprobs.reshape(num_people, VOCABULARY, 2, VOCABULARY)
        out.append((logprobs[:, 0, 0], logprobs[:, :, 1]))
    return jnp.stack([first for first, _ in out]), jnp.stack([second for _, second in out])


def answers(graphdef, params: PolicyParams, coef: np.ndarray, people: Population) -> np.ndarray:
    """log π of all 16 × 16 pairs of tokens [P, U, 256]; an answer that stops at once stands at its pair with token 0."""
    z = jnp.asarray(Gate(people.conditioning, 1.0, 0.0)(coef))
    first, second = (np.array(part, np.float64) for part in token_logprobs(graphdef, params, z))
    second[:, :, STOP] = -np.inf
    second[:, :, STOP, 0] = 0.0
    return (first[..., None] + second).reshape(*first.shape[:2], -1)


def judge(probe: Probe, graphdef, params: PolicyParams, start: PolicyParams) -> dict[str, float]:
    """Mean over prompts and judged people: KL to the optimum and to the reference, w·φ of policy and optimum, in nats."""
    own, reference = (answers(graphdef, p, probe.judged, probe.people) for p in (params, start))
    phi = np.stack([probe.table[prompt[-1]] for prompt in PROMPTS])
    pairs = (
        probe.constant
        + phi[:, :, None]
        + np.where(np.arange(VOCABULARY)[:, None, None] == STOP, 0.0, phi[:, None])
    )
    reward = np.einsum("pabk,uk->puab", pairs, probe.judged).reshape(own.shape)
    best = reference + reward / probe.beta
    best = best - np.logaddexp.reduce(best, axis=-1, keepdims=True)

    def expect(logprobs: np.ndarray, values: np.ndarray) -> float:
        return float(np.sum(np.where(np.isfinite(logprobs), np.exp(logprobs) * values, 0.0), axis=-1).mean())

    with np.errstate(invalid="ignore"):  # −inf − (−inf) at pairs that do not exist
        return {
            "kl_to_optimum": expect(own, own - best),
            "kl_to_reference": expect(own, own - reference),
            "optimum_kl_to_reference": expect(best, best - reference),
            "reward": expect(own, reward),
            "optimum_reward": expect(best, reward),
            "reference_reward": expect(reference, reward),
        }


def settings(
    kind: Algorithm,
    place: Place,
    beta: float,
    iterations: int,
    *,
    relabel: int = 0,
    relabel_limit: float = 1.0,
) -> RLSettings:
    """What a user gets who says nothing, but for the shape of the task, its short training and a fast small critic."""
    if kind == "ppo":
        algorithm, critic = (
            PPOAlgorithmConfig(epochs=2, minibatches=2),
            CriticConfig(backbone="shared", hidden=32, rate=3.0),
        )
    else:
        critic = None
        algorithm = GRPOAlgorithmConfig(
            epochs=2, minibatches=2, kind=kind, relabel=relabel, relabel_limit=relabel_limit
        )
    return RLSettings(
        algorithm=algorithm,
        critic=critic,
        rollout=RolloutConfig(completions=GROUP_SIZE, max_new_tokens=2),
        kl=KLConfig(coef=beta, place=place, estimator="k2" if place == "loss" else "k1"),
        optimizer=OptimizerConfig(learning_rate=0.01, schedule="linear", beta2=0.99, eps=1e-6),
        num_steps=4 * iterations,
    )


def train(
    probe: Probe,
    algorithm: Algorithm,
    seed: int,
    iterations: int,
    *,
    place: Place = "reward",
    every: int = 0,
    groups: int = GROUPS,
    relabel: int = 0,
    relabel_limit: float = 1.0,
) -> dict[str, Any]:
    """Train and judge; `every` > 0 adds a curve, judged every so many iterations; `relabel` as in `rl.relabel`."""
    graphdef, reference, start = model(seed)
    own = settings(algorithm, place, probe.beta, iterations, relabel=relabel, relabel_limit=relabel_limit)
    program, own = RLProgram(graphdef, reference, UserShares.of(MIX)), traced(own)
    parts = {"lora": start.lora, "conditioner": start.conditioner}
    if own.critic:
        key, width = jax.random.key(seed + 100), MODEL["hidden_size"]
        parts["critic"] = init_critic(own.critic, start, width, key, num_basis=K, personal=True)
    state = init_state(jax.tree.map(jnp.copy, parts), own, jax.random.key(seed))
    rows = np.repeat(np.resize(np.arange(len(PROMPTS)), groups), GROUP_SIZE)
    prompts = Prompts(*jax.device_put(left_pad([PROMPTS[row] for row in rows], multiple=1)))
    fixed = jax.tree.map(
        jnp.asarray, (prompts, probe.people, start, probe[:2], SamplingSettings.of(len(rows)))
    )
    curve, metrics = [], {}
    for number in range(iterations):
        if every and number % every == 0:
            policy = start._replace(**{name: state.params[name] for name in ("lora", "conditioner")})
            curve.append([number, judge(probe, graphdef, policy, start)["kl_to_optimum"]])
        state, metrics, _, _ = iterate(
            state, *fixed, jnp.array([STOP]), own, program=program, reward=table_reward
        )
    policy = start._replace(**{name: state.params[name] for name in ("lora", "conditioner")})
    final = judge(probe, graphdef, policy, start)
    if every:
        curve.append([iterations, final["kl_to_optimum"]])
    return final | {"curve": curve, "metrics": {name: float(value) for name, value in metrics.items()}}
