"""One iteration: scalar special cases, rewards that arrive as they were, one compilation, nothing on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.objectives.advantages import GRPOAlgorithmConfig, PPOAlgorithmConfig, RunningScale
from rlhf.objectives.kl_control import KLConfig
from rlhf.run.record import traced
from rlhf.train.rl import estimate as est
from rlhf.train.rl.critic import CriticConfig
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.settings import RLSettings, RolloutConfig
from rlhf.train.rl.update import iterate, update
from tests.rlhf.train import steps
from tests.rlhf.train.rl import setup

B, T, G = 6, 5, 3


def make_rollout(num_basis: int, seed: int = 0) -> Rollout:
    """Random numbers in the place of a rollout; everybody's weights are 1 where there is one output."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.permutation([1, 2, 3, 4, 5, 5])[:, None]

    def per_token(*shape):
        return jnp.asarray(
            rng.normal(size=(B, T, *shape)) * mask.reshape(B, T, *(1,) * len(shape)), jnp.float32
        )

    coef = np.ones((B, 1)) if num_basis == 1 else np.repeat(rng.normal(size=(B // G, num_basis)), G, axis=0)
    return Rollout(
        tokens=jnp.zeros((B, 4 + T), jnp.int32),
        starts=jnp.zeros(B, jnp.int32),
        mask=jnp.asarray(mask),
        logprobs=per_token(),
        ref_logprobs=per_token(),
        sampler_logprobs=per_token(),
        values=per_token(num_basis + 2),
        rows=None,
        coef=jnp.asarray(coef, jnp.float32),
        z=None,
        ended=jnp.asarray(rng.random(B) < 0.5),
    )


def make_settings(kind: str, kl: dict | None = None, **algorithm) -> RLSettings:
    """`kind` is ppo or an estimator without a critic."""
    ppo = kind == "ppo"
    return traced(
        RLSettings(
            algorithm=PPOAlgorithmConfig(**algorithm) if ppo else GRPOAlgorithmConfig(kind=kind, **algorithm),
            critic=CriticConfig() if ppo else None,
            rollout=RolloutConfig(completions=G, max_new_tokens=T),
            kl=KLConfig(**({"coef": 0.1} | (kl or {}))),
            optimizer=steps.make_optimizer(),
            num_steps=1,
        )
    )


@jax.jit
def run_estimate(rollout, rewards, settings, kl_coef):
    return est.estimate(rollout, rewards, kl_coef, RunningScale.start(), settings)


@pytest.mark.parametrize("num_basis", [1, 3])
def test_ppo_is_ordinary_ppo_on_the_scalar_reward(num_basis):
    """InstructGPT's PPO written for numbers: r_t = −β KL_t, the score at the end; GAE with the scalar value; whitening."""
    rollout, beta, penalty, discount, lam = make_rollout(num_basis), 0.3, 0.7, 0.9, 0.8
    rewards = np.random.default_rng(1).normal(size=(B, num_basis)).astype(np.float32)
    settings = make_settings(
        "ppo",
        centre=False,
        scaling="batch",
        discount=discount,
        gae_lambda=lam,
        missing_eos_penalty=penalty,
    )
    found = run_estimate(rollout, jnp.asarray(rewards), settings, jnp.float32(beta))

    mask, coef = np.asarray(rollout.mask), np.asarray(rollout.coef, np.float64)
    weights = np.concatenate([coef, np.full((B, 1), -beta), np.full((B, 1), -penalty)], axis=1)
    value = np.einsum("btc,bc->bt", np.asarray(rollout.values, np.float64), weights)
    advantages = np.zeros((B, T))
    for row in range(B):
        last = mask[row].sum() - 1
        running = 0.0
        for t in range(last, -1, -1):
            reward = -beta * float(rollout.logprobs[row, t] - rollout.ref_logprobs[row, t])
            if t == last:
                reward += coef[row] @ rewards[row] - (0.0 if rollout.ended[row] else penalty)
            following = value[row, t + 1] if t < last else 0.0
            running = reward + discount * following - value[row, t] + discount * lam * running
            advantages[row, t] = running
    np.testing.assert_allclose(np.asarray(found.unscaled)[mask], advantages[mask], atol=1e-5)
    returns = np.einsum("btc,bc->bt", np.asarray(found.returns, np.float64), weights)
    np.testing.assert_allclose(returns[mask], (advantages + value)[mask], atol=1e-5)
    real = advantages[mask]
    whitened = (real - real.mean()) / np.sqrt(real.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(np.asarray(found.advantages)[mask], whitened, atol=1e-5)
    assert not np.asarray(found.advantages)[~mask].any()


def test_rloo_is_ordinary_rloo_on_the_scalar_reward():
    """Ahmadian et al. 2024: reward minus β times the sequence's KL, minus the mean of the other completions."""
    rollout, beta = make_rollout(1), 0.2
    scores = np.random.default_rng(2).normal(size=(B, 1)).astype(np.float32)
    settings = make_settings("rloo", scaling="none")
    found = run_estimate(rollout, jnp.asarray(scores), settings, jnp.float32(beta))
    kl = np.sum(np.asarray(rollout.logprobs - rollout.ref_logprobs) * np.asarray(rollout.mask), axis=1)
    total = scores[:, 0] - beta * kl
    for row in range(B):
        others = [total[j] for j in range(B) if j // G == row // G and j != row]
        expected = np.where(rollout.mask[row], total[row] - np.mean(others), 0.0)
        np.testing.assert_allclose(found.advantages[row], expected, atol=1e-5)


@pytest.mark.parametrize(("algorithm", "share"), [("centred", 1 - 1 / G), ("rloo", 1.0), ("grpo", 1.0)])
def test_a_kl_term_in_the_loss_is_priced_in_the_units_of_the_advantages(algorithm, share):
    """centred(R) = (G−1)/G · rloo(R), so the KL next to it must shrink alike for both to have one optimum."""
    rollout, rewards = make_rollout(1), jnp.asarray(np.random.default_rng(3).normal(size=(B, 1)), jnp.float32)
    settings = make_settings(algorithm, {"place": "loss", "estimator": "k2"})
    found = run_estimate(rollout, rewards, settings, jnp.float32(0.2))
    mask = np.asarray(rollout.mask)
    divisor = 1.0 if algorithm == "grpo" else np.sqrt(np.mean(np.asarray(found.unscaled)[mask] ** 2))
    np.testing.assert_allclose(found.kl_factor, share / divisor, rtol=1e-5)
    assert not np.asarray(found.channels[..., 1]).any()


@pytest.mark.parametrize("per_token", [False, True])
def test_rewards_arrive_as_they_were(per_token):
    rollout = make_rollout(2)
    given = np.tile(np.array([[0.7, -1.9]], np.float32), (B, 1))
    rewards = np.zeros((B, T, 2), np.float32)
    rewards[:, 0] = given  # wherever it is given, the completion earns it
    channels = est.reward_channels(rollout, jnp.asarray(rewards if per_token else given), KLConfig(coef=0.1))
    np.testing.assert_array_equal(channels[..., :2].sum(axis=1), given)
    place = np.zeros(B, int) if per_token else np.asarray(rollout.mask).sum(axis=1) - 1
    np.testing.assert_array_equal(np.asarray(channels)[np.arange(B), place, :2], given)


def test_rewards_of_a_wrong_kind_are_refused():
    rollout, kl = make_rollout(2), KLConfig(coef=0.1)
    with pytest.raises(TypeError, match="int32"):
        est.reward_channels(rollout, jnp.ones((B, 2), jnp.int32), kl)
    with pytest.raises(ValueError, match="shape"):
        est.reward_channels(rollout, jnp.ones((B, 3)), kl)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRPOAlgorithmConfig(kind="pop"), "'centred', 'rloo', .*'grpo'"),
        (lambda: {"algorithm": PPOAlgorithmConfig()}, "critic: ppo needs one"),
        (lambda: {"critic": CriticConfig()}, "algorithm.kind centred has none"),
        (lambda: {"rollout": RolloutConfig(completions=1, max_new_tokens=T)}, "at least 2"),
        (
            lambda: {
                "algorithm": PPOAlgorithmConfig(),
                "critic": CriticConfig(),
                "rollout": RolloutConfig(completions=1, max_new_tokens=T),
            },
            "group of one",
        ),
        (lambda: KLConfig(coef=0.1, place="loss"), "k1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    whole = {
        "algorithm": GRPOAlgorithmConfig(),
        "rollout": RolloutConfig(completions=G, max_new_tokens=T),
        "kl": KLConfig(coef=0.1),
        "optimizer": steps.make_optimizer(),
        "num_steps": 1,
    }
    RLSettings(**whole)
    with pytest.raises(ValueError, match=message):
        RLSettings(**(whole | make()))


def changed(settings: RLSettings, number: int) -> RLSettings:
    """Every number of the settings another one, null ones among them."""
    leaves, tree = jax.tree.flatten(settings)
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in leaves)
    near = [jnp.where(jnp.isinf(leaf), 1e9, leaf) * (1.0 - 0.01 * number) for leaf in leaves]
    return jax.tree.unflatten(tree, [leaf + 0.001 * number for leaf in near])


def fixed_reward(arrays, rollout):
    return jnp.broadcast_to(arrays, rollout.coef.shape)


def test_an_iteration_compiles_once_for_all_people_and_numbers_and_stays_on_the_device():
    task = setup.make_task(
        prompts=[[1, 4, 5], [1, 9, 3, 7]],
        people=steps.make_population(),
        groups=4,
        group_size=2,
        critic={},
        algorithm={"epochs": 2, "minibatches": 2},
        kl={"controller": "adaptive"},
    )
    state, before = task.state, iterate._cache_size()
    key = jax.device_get(jax.random.key_data(state.key))
    reward = jnp.array([0.7, -1.9])
    seen = []
    for n in range(10):
        people = jax.device_put(steps.make_population(seed=n))
        settings = changed(task.settings, n)
        prompts, people, frozen, sampling, stop, settings = task._replace(
            people=people, settings=settings
        ).arguments()
        with jax.transfer_guard("disallow"):
            state, metrics, rollout, _ = iterate(
                state,
                prompts,
                people,
                frozen,
                reward,
                sampling,
                stop,
                settings,
                program=task.program,
                reward=fixed_reward,
            )
        seen.append(np.asarray(rollout.coef))
    assert iterate._cache_size() == before + 1
    assert int(state.iteration) == 10 and int(state.step) == 40
    assert len({coef.tobytes() for coef in seen}) == 10
    np.testing.assert_array_equal(jax.random.key_data(state.key), key)
    metrics = {name: float(value) for name, value in metrics.items()}
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert metrics["train/reward/0"] == pytest.approx(0.7, rel=1e-6)
    assert metrics["train/reward/1"] == pytest.approx(-1.9, rel=1e-6)
    assert metrics["train/reward_sd/1"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["train/zero_variance_share"] == 1.0
    assert metrics["train/kl_coef"] != pytest.approx(0.1, rel=1e-6)  # the controller moved it
    assert rollout.rows is None


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 2)])
def test_a_step_that_kl_stops_leaves_weights_and_moments_alone(epochs, minibatches):
    """Adam's moments would carry the gradient of a policy that was left behind into the next iteration."""
    task = setup.make_task(
        prompts=[[1, 4, 5]],
        people=steps.make_population(),
        groups=2,
        algorithm={"epochs": epochs, "minibatches": minibatches},
        kl={"stop_nats": 0.1},
    )
    rollout = setup.made_up_rollout(task)
    far = rollout._replace(logprobs=jnp.where(rollout.mask, rollout.logprobs - 2.0, 0.0))
    rewards = jnp.asarray(np.random.default_rng(0).normal(size=rollout.coef.shape), jnp.float32)
    before = jax.device_get((task.state.params, task.state.opt_state))
    state, metrics = update(task.state, far, rewards, task.frozen, task.settings, program=task.program)
    assert metrics["train/stopped_share"] == 1.0 and int(state.step) == epochs * minibatches
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get((state.params, state.opt_state)), before
    )  # the count of steps taken, too
