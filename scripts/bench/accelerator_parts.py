"""What `accelerator.py` measures: a model of random weights on the device, and one number after the other from it.

Shapes: B rows, T tokens.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rewards.basis.belief import Belief
from rlhf.mesh import rules
from rlhf.models.adapters import AdapterSpec
from rlhf.models.config import ModelConfig
from rlhf.objectives.advantages import GRPOAlgorithmConfig
from rlhf.objectives.kl_control import KLConfig
from rlhf.objectives.preference import PreferenceLossConfig
from rlhf.policy import decoding, sampling
from rlhf.policy.batches import PairRows
from rlhf.policy.conditioning import Population, UserShares
from rlhf.policy.logprobs import PolicyParams, hash_path, init_adapters, structure
from rlhf.policy.packing import Sequences, pack
from rlhf.run.record import traced
from rlhf.train import dpo_step, memory, optim
from rlhf.train.optim import OptimizerConfig
from rlhf.train.rl import update as updates
from rlhf.train.rl.rollout import Prompts
from rlhf.train.rl.settings import RLProgram, RLSettings, RolloutConfig
from rlhf.train.sft import trained_parts

NUM_BASIS = 4
LORA = AdapterSpec(16, 32.0)
CONDITIONED = AdapterSpec(16, 32.0, NUM_BASIS, basis_rank=4)
_NEVER = np.array([-1], np.int32)  # a token that no model samples: completions have full length


def shape(name: str) -> ModelConfig:
    """A Llama of this size: vocabulary, width, MLP, layers, heads, key/value heads."""
    sizes = {
        "tiny": (512, 64, 128, 2, 4, 2),
        "smollm2-135m": (49152, 576, 1536, 30, 9, 3),
        "1.7b": (49152, 2048, 8192, 24, 32, 32),
        "8b": (128256, 4096, 14336, 32, 32, 8),
        "14b": (151936, 5120, 17408, 40, 40, 8),
        "32b": (151936, 5120, 25600, 64, 64, 8),
    }[name]
    vocab, width, mlp, layers, heads, kv = sizes
    raw = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": 128 if name == "32b" else width // heads,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": vocab == 49152,
        "hidden_act": "silu",
    }
    return ModelConfig.from_hf(raw, name)


class Model(NamedTuple):
    """A policy of random weights; count: of its base."""

    config: ModelConfig
    graphdef: nnx.GraphDef
    params: PolicyParams
    count: int
    dtype: str


def model(name: str, spec: AdapterSpec, dtype: str = "bfloat16", remat: bool = False) -> Model:
    """Made on the device, so that no host holds it."""
    config = shape(name)
    graphdef, shapes = structure(config, (config.num_layers,), spec, dtype, remat)

    @jax.jit
    def made(key: jax.Array) -> Any:
        def leaf(path: Any, one: Any) -> jax.Array:
            if rules.names_of(path)[-1] == "scale":
                return jnp.ones(one.shape, one.dtype)
            own = jax.random.fold_in(key, hash_path(path))
            return (0.02 * jax.random.normal(own, one.shape, jnp.bfloat16)).astype(one.dtype)

        return jax.tree_util.tree_map_with_path(leaf, shapes.base)

    lora, conditioner = init_adapters(graphdef, shapes, jax.random.key(1))
    base = made(jax.random.key(0))
    return Model(config, graphdef, PolicyParams(base, lora, conditioner), _count(shapes.base), dtype)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def pairs(config: ModelConfig, rows: int, prompt: int, completion: int) -> dpo_step.DPOBatch:
    """One micro-batch of random pairs, leaves [1, B, …]; each row holds a prompt and its two completions."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(1, config.vocab_size, count).tolist())

    packed = pack(
        [[Sequences(tokens(prompt), (tokens(completion), tokens(completion)))] for _ in range(rows)]
    )
    each = PairRows(
        packed,
        np.tile(np.arange(2, dtype=np.int32), (rows, 1)),
        np.tile(np.array([[0, 1]], np.int32), (rows, 1, 1)),
        np.ones((rows, 1), np.float32),
        np.ones((rows, 1), np.float32),
        np.full(rows, -1, np.int32),
    )
    phi = rng.normal(size=(rows, 2, NUM_BASIS)).astype(np.float32)
    batch = dpo_step.DPOBatch(each, np.full((rows, 2), -100.0, np.float32), phi, None)
    return jax.tree.map(lambda leaf: leaf[None], batch)


class Step(NamedTuple):
    """A DPO step: the compiled function's arguments, and the function."""

    state: optim.TrainState
    rest: tuple[Any, ...]
    program: dpo_step.DPOProgram

    def run(self) -> "Step":
        state, _ = dpo_step.step(self.state, *self.rest, program=self.program)
        return self._replace(state=jax.block_until_ready(state))


def dpo(made: Model, conditioned: bool, batch: dpo_step.DPOBatch) -> Step:
    optimizer = OptimizerConfig(learning_rate=1e-5)
    loss = PreferenceLossConfig(kind="soft" if conditioned else "dpo")
    settings = traced(dpo_step.DPOSettings(loss=loss, optimizer=optimizer, num_steps=100))
    drawn = shares = None
    if conditioned:
        drawn = Population.from_posteriors(Belief.from_cov(np.zeros(NUM_BASIS), np.eye(NUM_BASIS)), [], 2.0)
        shares = UserShares(0, 1, 0, 0)
    else:
        batch = batch._replace(basis_rewards=batch.basis_rewards[..., :0])
    trained = jax.tree.map(jnp.copy, trained_parts(made.params, False, conditioned))
    state = optim.init_state(trained, settings.optimizer, jax.random.key(2))
    program = dpo_step.DPOProgram(made.graphdef, shares=shares, dtype=made.dtype)
    return Step(state, (jax.device_put(batch), made.params, drawn, settings), program)


def seconds(work: Callable[[Any], Any], start: Any, repeats: int) -> float:
    """Of one call, the median; the first, which compiles, is left out."""
    state, times = work(start), []
    for _ in range(repeats):
        begun = time.perf_counter()
        state = work(state)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def training(
    name: str, rows: int, length: int, repeats: int, remat: bool, peak: float | None
) -> dict[str, Any]:
    """DPO with LoRA, without and with a conditioner: tokens a second, share of the peak, cost of the conditioner."""
    found: dict[str, Any] = {"rows": rows, "tokens_a_row": length}
    for conditioned in (False, True):
        made = model(name, CONDITIONED if conditioned else LORA, remat=remat)
        step = dpo(made, conditioned, pairs(made.config, rows, length // 2, length // 4))
        took = seconds(Step.run, step, repeats)
        speed = rows * length / took
        found["conditioned" if conditioned else "plain"] = {
            "step_seconds": took,
            "tokens_per_second": speed,
            # Forward, and backward to what feeds the adapters: the frozen weights have no gradient of their own.
            "share_of_peak": None if peak is None else (6 if remat else 4) * made.count * speed / peak,
        }
        found["parameters"] = made.count
    plain, other = found["plain"]["step_seconds"], found["conditioned"]["step_seconds"]
    return found | {"conditioning_overhead": other / plain - 1}


def grpo(name: str, prompts: int, group: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """One iteration: completions drawn and scored, then learned from; rewards are random numbers."""
    made = model(name, LORA, remat=True)
    settings = traced(
        RLSettings(
            algorithm=GRPOAlgorithmConfig(kind="grpo"),
            critic=None,
            rollout=RolloutConfig(completions=group, max_new_tokens=new),
            kl=KLConfig(coef=0.05),
            optimizer=OptimizerConfig(learning_rate=1e-6),
            num_steps=100,
        )
    )
    reference = structure(made.config, (made.config.num_layers,), None, made.dtype, True)[0]
    program = RLProgram(made.graphdef, reference, dtype=made.dtype)
    trained = jax.tree.map(jnp.copy, trained_parts(made.params, False))
    state = updates.init_state(trained, settings, jax.random.key(3))
    rows = prompts * group
    asked = np.random.default_rng(0).integers(1, made.config.vocab_size, (prompts, prompt)).astype(np.int32)
    given = Prompts(*jax.device_put((np.repeat(asked, group, axis=0), np.zeros(rows, np.int32))))
    people, stop = jnp.ones(1, jnp.float32), jnp.asarray(_NEVER)
    draws = jax.device_put(sampling.SamplingSettings.of(rows))
    rewards = jax.random.normal(jax.random.key(4), (rows, 1))

    def iterate(state: Any) -> Any:
        drawn = updates.draw(state, given, people, made.params, draws, stop, settings, program=program)
        state, _ = updates.update(state, drawn, rewards, made.params, settings, program=program)
        return jax.block_until_ready(state)

    took = seconds(iterate, state, repeats)
    return {
        "rows": rows,
        "new_tokens": new,
        "iteration_seconds": took,
        "tokens_per_second": rows * new / took,
    }


def decode(name: str, rows: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of sampling, prompts included in the time."""
    made = model(name, AdapterSpec())
    graphdef, params = decoding.apart(made.graphdef, made.params)
    tokens = np.random.default_rng(0).integers(1, made.config.vocab_size, (rows, prompt)).astype(np.int32)
    keys, settings = sampling.row_keys(0, np.arange(rows)), sampling.SamplingSettings.of(rows)

    def run(_: Any) -> Any:
        return jax.block_until_ready(
            sampling.generate(
                params,
                tokens,
                np.zeros(rows, np.int32),
                None,
                keys,
                settings,
                _NEVER,
                graphdef=graphdef,
                max_new_tokens=new,
                filtered=False,
            )  # fmt: skip
        )

    took = seconds(run, None, repeats)
    return {"rows": rows, "new_tokens": new, "seconds": took, "tokens_per_second": rows * new / took}


def needed(name: str, length: int, remat: bool = True) -> dict[str, Any]:
    """Gigabytes that a DPO step with LoRA of one pair takes, from the compiled program; nothing is allocated."""
    config = shape(name)
    graphdef, shapes = structure(config, (config.num_layers,), LORA, "bfloat16", remat)
    optimizer, loss = OptimizerConfig(learning_rate=1e-5), PreferenceLossConfig(kind="dpo")
    settings = traced(dpo_step.DPOSettings(loss=loss, optimizer=optimizer, num_steps=100))
    batch = pairs(config, 1, length // 2, length // 4)
    batch = batch._replace(basis_rewards=batch.basis_rewards[..., :0])
    start = functools.partial(optim.init_state, optimizer=settings.optimizer, key=jax.random.key(0))
    state = jax.eval_shape(start, trained_parts(shapes, False))
    program = dpo_step.DPOProgram(graphdef, dtype="bfloat16")
    analysis = (
        dpo_step.step.lower(state, batch, shapes, None, settings, program=program).compile().memory_analysis()
    )
    assert analysis is not None, "every backend here analyses its programs"
    fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = (analysis.argument_size_in_bytes + fresh + analysis.temp_size_in_bytes) / memory.GIGABYTE
    return {
        "parameters": _count(shapes.base),
        "gigabytes": total,
        "fits": total * memory.GIGABYTE <= memory.device_bytes(),
    }
