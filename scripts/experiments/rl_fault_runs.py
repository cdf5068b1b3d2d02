"""Faults of reinforcement learning, made on purpose on a task of seconds: see `rl_faults`.

A tiny random decoder (32 words, 3 layers) answers three prompts with up to eight tokens; four words end an answer. Two
reward outputs are the shares of wanted words, from two disjoint sets. Every fault changes one thing of a healthy run.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from rlhf.policy.conditioning import UserShares
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.update import RLState, draw, iterate, update
from tests.rlhf import tiny
from tests.rlhf.train import steps
from tests.rlhf.train.rl.setup import Task, make_task

ITERATIONS, GROUPS, GROUP_SIZE, LENGTH = 60, 12, 4, 8
PROMPTS = [[1, 4, 5], [1, 9, 3, 7], [1, 12]]
STOPS, UNSAYABLE = (2, 3, 4, 5), (99, 99, 99, 99)
WANTED = (range(8, 16), range(16, 24))
PEAKED = 2.5  # output weights against a random decoder's: entropies like a language model's
LEARNING_RATE, KL_COEF = 0.003, 0.3
NOTHING = dict.fromkeys(("words", "one", "length", "unended", "noise", "outliers", "constant"), 0.0)
WEIGHTS = NOTHING | {"words": 1.0}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What differs from the healthy run.

    Attributes:
      expected: the finding that must name it; "" for a healthy run.
      words: what was done. shows: metrics that the picture shows.
      setup: arguments of `make_task`. rewards: of what the reward is made, see `WEIGHTS`.
      fading: what is left of the words' weight after each iteration.
      stale: sample with the weights of so many iterations ago, as a worker that missed its update would.
    """

    expected: str
    words: str
    shows: tuple[str, ...] = ()
    setup: dict[str, Any] = dataclasses.field(default_factory=dict)
    rewards: dict[str, float] = dataclasses.field(default_factory=dict)
    stop: tuple[int, ...] = STOPS
    temperature: float = 1.0
    fading: float = 1.0
    stale: int = 0


CRITIC: dict[str, Any] = {"critic": {"coef": 1.0}}
UNTRAINED: dict[str, Any] = {"critic": {"coef": 1e-12}}  # far below AdamW's eps
PERSONAL = CRITIC | {"people": steps.make_population()}
EVERYBODY_AVERAGE = UserShares(0.0, 0.0, 0.0, 1.0)
FREE = {"kl": {"coef": 1e-9}}
# A key that is said here and is not what users get (`critic.coef`, `algorithm.scale_decay`) is what the detectors were
# measured with.
ALGORITHM = {"epochs": 2, "minibatches": 2, "scale_decay": 0.99}


def rate(factor: float) -> dict[str, Any]:
    return {"optimizer": {"learning_rate": factor * LEARNING_RATE}}


def algorithm(**changes: Any) -> dict[str, Any]:
    return {"algorithm": ALGORITHM | changes}


FAULTS: dict[str, Fault] = {
    "healthy": Fault("", "PPO with a critic, nothing changed", (), CRITIC),
    "healthy_centred": Fault("", "no critic, centred advantages", (), algorithm(aggregation="constant")),
    "healthy_personal": Fault("", "PPO, two opposite people, one policy", (), PERSONAL),
    "nan_reward": Fault(
        "not_finite", "a reward that is not a number", ("reward",), CRITIC, {"constant": math.nan}
    ),
    "stale_sampler": Fault(
        "sampler_mismatch",
        "samples come from weights 5 iterations old, learning rate × 2",
        ("sampler_gap_nats", "kl_ref_nats", "reward"),
        CRITIC | rate(2),
        stale=5,
    ),
    "zero_rate": Fault(
        "nothing_trained", "learning rate 10⁻⁹", ("kl_ref_nats", "ratio_max", "reward"), CRITIC | rate(1e-7)
    ),
    "constant_reward": Fault(
        "no_signal",
        "every completion earns 1",
        ("zero_variance_share", "reward_sd", "advantage_sd"),
        CRITIC,
        {"words": 0.0, "constant": 1.0},
    ),
    "high_rate": Fault(
        "large_updates",
        "learning rate × 30",
        ("approx_kl_nats", "ratio_max", "clip_share"),
        CRITIC | rate(30),
    ),
    "cold_sampling": Fault(
        "negative_kl",
        "temperature 0.3, entropy bonus 0.3, β = 1, a weak reward",
        ("kl_ref_nats", "token_entropy_nats", "reward"),
        CRITIC | algorithm(entropy_coef=0.3) | {"kl": {"coef": 1.0}},
        {"words": 0.3},
        temperature=0.3,
    ),
    "no_price": Fault(
        "exploding_kl",
        "β = 0 and learning rate × 5",
        ("kl_ref_nats", "reward", "token_entropy_nats"),
        CRITIC | rate(5) | FREE,
    ),
    "certainty": Fault(
        "entropy_collapse",
        "one word alone is paid; grpo (advantages divided by the group's deviation), β = 0, learning rate × 5",
        ("token_entropy_nats", "zero_variance_share", "reward"),
        rate(5) | FREE | algorithm(kind="grpo", aggregation="sequence"),
        {"words": 0.0, "one": 4.0},
    ),
    "entropy_bonus": Fault(
        "entropy_rise",
        "entropy bonus 0.5",
        ("token_entropy_nats", "reward", "kl_ref_nats"),
        CRITIC | algorithm(entropy_coef=0.5),
    ),
    "random_reward": Fault(
        "no_progress",
        "the reward is noise; β = 0, learning rate × 5",
        ("reward", "kl_ref_nats", "explained_variance/0"),
        CRITIC | rate(5) | FREE,
        {"words": 0.0, "noise": 1.0},
    ),
    "pays_length": Fault(
        "length_hacking",
        "the reward is the length",
        ("completion_tokens", "reward", "reward_length_correlation"),
        CRITIC,
        {"words": 0.0, "length": 4.0},
    ),
    "unsayable_stop": Fault(
        "cut_short",
        "stop tokens that the model never says",
        ("eos_share", "completion_tokens", "reward"),
        CRITIC,
        stop=UNSAYABLE,
    ),
    "pays_going_on": Fault(
        "forgot_stop",
        "a completion without a stop token earns 4 more",
        ("eos_share", "completion_tokens", "reward"),
        CRITIC,
        {"unended": 4.0},
    ),
    "no_value_loss": Fault(
        "dead_critic",
        "critic.coef 1e-12: the critic is not trained",
        ("explained_variance/0", "explained_variance/1", "loss/value"),
        UNTRAINED,
    ),
    "tight_clip": Fault(
        "narrow_clip",
        "clip 0.01, 8 epochs",
        ("clip_share", "approx_kl_nats", "reward"),
        CRITIC | algorithm(clip_low=0.01, clip_high=0.01, epochs=8),
    ),
    "many_epochs": Fault(
        "large_updates",
        "8 epochs on each rollout, no clip",
        ("ratio_max", "approx_kl_nats", "reward"),
        CRITIC | algorithm(clip_low=100.0, clip_high=100.0, epochs=8),
    ),
    "outliers": Fault(
        "gradient_spikes",
        "eight completions in a thousand earn 100 more; the critic is not trained",
        ("grad_norm", "advantage_sd", "reward"),
        UNTRAINED,
        {"outliers": 100.0},
    ),
    "target_out_of_reach": Fault(
        "kl_coef_runaway",
        "controller target with 0.01 nats a completion",
        ("kl_coef", "kl_ref_nats", "reward"),
        CRITIC | {"kl": {"coef": KL_COEF, "target_nats": 0.01, "controller": "target"}},
    ),
    "everybody_average": Fault(
        "impersonal",
        "only the average person is drawn",
        ("z_norm", "reward"),
        PERSONAL | {"shares": EVERYBODY_AVERAGE},
    ),
    "other_start": Fault(
        "wrong_reference",
        "starts from adapters that the reference lacks",
        ("kl_ref_nats", "reward"),
        CRITIC | {"scale": 0.3},
    ),
    "early_stop": Fault(
        "early_stops",
        "kl.stop_nats 0.0002 a token",
        ("stopped_share", "approx_kl_nats", "reward"),
        CRITIC | {"kl": {"coef": KL_COEF, "stop_nats": 0.0002}},
    ),
    "fading_reward": Fault(
        "faded_advantages",
        "no critic; the reward loses a tenth with every iteration; β = 0, learning rate × 0.3",
        ("advantage_sd", "advantage_scale", "reward"),
        rate(0.3) | FREE | algorithm(aggregation="constant"),
        fading=0.9,
    ),
}


def reward(arrays: dict[str, jax.Array], rollout: Rollout) -> jax.Array:
    """float32[B, 2]: a mixture of shares of wanted words, length, missing ends, noise, outliers and a constant."""
    mask, said = rollout.mask, rollout.completions
    length = mask.sum(axis=1).astype(jnp.float32)
    shares = [
        jnp.sum(mask & (said >= words.start) & (said < words.stop), axis=1) / length for words in WANTED
    ]
    noise_key, outlier_key = jax.random.split(arrays["key"])
    noise = jax.random.normal(noise_key, rollout.coef.shape)
    outliers = jax.random.bernoulli(outlier_key, 0.008, length.shape)
    common = (
        arrays["constant"]
        + arrays["one"] * jnp.sum(mask & (said == WANTED[0].start), axis=1) / length
        + arrays["length"] * length / LENGTH
        + arrays["unended"] * (1.0 - rollout.ended)
        + arrays["outliers"] * outliers
    )
    return arrays["words"] * 4.0 * jnp.stack(shares, axis=1) + arrays["noise"] * noise + common[:, None]


def sharp_base() -> Any:
    base = tiny.make_base(tiny.make_config(tie_word_embeddings=False), adapter_layers=2)
    base.tree["head"] = jax.tree.map(lambda leaf: PEAKED * leaf, base.tree["head"])
    return base


def make(fault: Fault, seed: int, base: Any) -> Task:
    arguments: dict[str, Any] = {
        "prompts": PROMPTS,
        "people": [1.0, 0.5],
        "groups": GROUPS,
        "group_size": GROUP_SIZE,
        "max_new_tokens": LENGTH,
        "base": base,
        "kl": {"coef": KL_COEF},
        "optimizer": {"learning_rate": LEARNING_RATE},
        "algorithm": ALGORITHM,
        "seed": seed,
    }
    task = make_task(**(arguments | fault.setup))
    sampling = type(task.sampling).of(task.prompts.tokens.shape[0], fault.temperature)
    stop = jnp.asarray(fault.stop, jnp.int32)
    return task._replace(stop=stop, sampling=jax.tree.map(jnp.asarray, sampling))


def train(fault: Fault, seed: int, base: Any, iterations: int = ITERATIONS) -> list[dict[str, Any]]:
    """One run; its rows are those of metrics.jsonl."""
    task = make(fault, seed, base)
    arrays = {name: jnp.float32(value) for name, value in (WEIGHTS | fault.rewards).items()}
    state, rows, old = task.state, [], []
    for number in range(iterations):
        arrays["key"] = jax.random.fold_in(jax.random.key(seed + 1), number)
        if fault.stale:
            old = [*old, jax.tree.map(jnp.copy, state.params)][-fault.stale - 1 :]
            rollout = stale_rollout(task, state, old[0])
            earned = reward(arrays, rollout)
            state, metrics = update(state, rollout, earned, task.frozen, task.settings, program=task.program)
        else:
            first, rest = (task.prompts, task.people, task.frozen), (task.sampling, task.stop, task.settings)
            state, metrics, *_ = iterate(state, *first, arrays, *rest, program=task.program, reward=reward)
        arrays["words"] = arrays["words"] * fault.fading
        rows.append(metrics)
    return [
        {"step": step}
        | {name: value if math.isfinite(value := float(raw)) else None for name, raw in row.items()}
        for step, row in enumerate(jax.device_get(rows), 1)
    ]


def stale_rollout(task: Task, state: RLState, old: dict[str, Any]) -> Rollout:
    """A rollout sampled with `old` parameters and scored with the present ones."""
    rollout = draw(state._replace(params=old), *task.arguments(), program=task.program)
    trained = dict(state.params)
    critic = trained.pop("critic", None)
    logprobs, _, values = _score(
        task.settings, task.program, task.frozen._replace(**trained), critic, rollout
    )
    mask = rollout.mask
    return rollout._replace(
        logprobs=jnp.where(mask, logprobs, 0.0), values=jnp.where(mask[..., None], values, 0.0)
    )


def _scores(settings: Any, program: Any, params: Any, critic: Any, rollout: Rollout) -> Any:
    assert rollout.rows is not None
    return rollouts.score(settings, program, params, critic, rollout.rows)


_score = jax.jit(_scores, static_argnums=1)
