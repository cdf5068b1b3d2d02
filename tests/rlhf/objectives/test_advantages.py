"""Advantages against rlax, plain loops and the identities that make vector rewards safe."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from rlhf.objectives import advantages as adv

B, T, K, G = 6, 7, 3, 3
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_silent_broadcasting():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def rollout():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, T + 1, B)
    mask = np.arange(T) < lengths[:, None]
    rewards, values = rng.normal(size=(2, B, T, K + 1)).astype(np.float32)
    return rewards, values, mask


def slow_gae(rewards, values, mask, discount, gae_lambda):
    """One row, one channel, one token at a time, in float64."""
    out = np.zeros(rewards.shape)
    for b in range(len(rewards)):
        length = int(mask[b].sum())
        for c in range(rewards.shape[2]):
            carry = 0.0
            for t in reversed(range(length)):
                following = values[b, t + 1, c] if t + 1 < length else 0.0
                delta = float(rewards[b, t, c]) + discount * float(following) - float(values[b, t, c])
                carry = delta + discount * gae_lambda * carry
                out[b, t, c] = carry
    return out


@pytest.mark.parametrize("discount,gae_lambda", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_a_slow_loop(rollout, discount, gae_lambda):
    rewards, values, mask = rollout
    got, returns = adv.generalised_advantages(rewards, values, mask, discount, gae_lambda)
    want = slow_gae(rewards, values, mask, discount, gae_lambda)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(returns, want + values * mask[..., None], atol=1e-5)


def test_gae_equals_rlax(rollout):
    rlax = pytest.importorskip("rlax", reason="rlax is not installed; it pins a nightly package")
    rewards, values, mask = rollout
    got, _ = adv.generalised_advantages(rewards, values, mask, 0.97, 0.9)
    for b in range(B):
        length = int(mask[b].sum())
        for c in range(K + 1):
            discounts = np.full(length, 0.97, np.float32)
            discounts[-1] = 0.0
            padded = np.append(values[b, :length, c], 0.0)
            want = rlax.truncated_generalized_advantage_estimation(
                jnp.asarray(rewards[b, :length, c]), jnp.asarray(discounts), 0.9, jnp.asarray(padded)
            )
            np.testing.assert_allclose(got[b, :length, c], want, atol=1e-5)


def test_padding_changes_nothing(rollout):
    rewards, values, mask = rollout
    got, _ = adv.generalised_advantages(rewards, values, mask, 1.0, 0.95)
    dirty = np.where(mask[..., None], rewards, np.nan), np.where(mask[..., None], values, np.inf)
    again, returns = adv.generalised_advantages(*dirty, mask, 1.0, 0.95)
    np.testing.assert_array_equal(got, again)
    assert np.isfinite(returns).all() and not np.any(np.asarray(again)[~mask])


def test_vector_gae_then_weights_is_scalar_gae(rollout):
    rewards, values, mask = rollout
    weights = adv.channel_weights(jnp.asarray(RNG.normal(size=(B, K - 1)), jnp.float32), 0.05, 0.4)
    np.testing.assert_allclose(weights[:, -2:], [[-0.05, -0.4]] * B)
    vector, _ = adv.generalised_advantages(rewards, values, mask, 1.0, 0.95)
    one = [np.asarray(adv.scalarise(jnp.asarray(x), weights))[..., None] for x in (rewards, values)]
    scalar, _ = adv.generalised_advantages(*one, mask, 1.0, 0.95)
    np.testing.assert_allclose(adv.scalarise(vector, weights), scalar[..., 0], atol=1e-5)


def test_centring_uses_only_the_tokens_of_the_group(rollout):
    _, _, mask = rollout
    values = RNG.normal(size=(B, T)).astype(np.float32)
    got = np.asarray(adv.centre_tokens(values, mask, G))
    for start in range(0, B, G):
        rows = slice(start, start + G)
        want = values[rows] - values[rows][mask[rows]].mean()
        np.testing.assert_allclose(got[rows], np.where(mask[rows], want, 0.0), atol=1e-6)


def test_whitening(rollout):
    _, _, mask = rollout
    values = (5 + 3 * RNG.normal(size=(B, T))).astype(np.float32)
    got = np.asarray(adv.masked_whiten(values, mask))[mask]
    assert abs(got.mean()) < 1e-6 and abs(got.std(ddof=1) - 1) < 1e-5
    kept = np.asarray(adv.masked_whiten(values, mask, shift=False))[mask]
    np.testing.assert_allclose(kept.mean(), values[mask].mean(), rtol=1e-5)


def test_running_scale_is_unbiased_from_the_first_batch():
    mask = np.ones((4, 2), bool)
    scale = adv.RunningScale.start()
    assert scale.value == 1.0
    for _ in range(3):
        scale = scale.update(np.full((4, 2), 3.0, np.float32), mask, 0.9)
        np.testing.assert_allclose(scale.value, 3.0, rtol=1e-6)
    scale = scale.update(np.full((4, 2), 1.0, np.float32), mask, 0.9)
    assert 1.0 < scale.value < 3.0


RETURNS = np.random.default_rng(5).normal(size=(B, K + 1)).astype(np.float32)
WEIGHTS = np.repeat(np.random.default_rng(6).normal(size=(B // G, K + 1)), G, axis=0).astype(np.float32)


def loop_estimates(name):
    """Every estimator written out in float64, group by group."""
    total = np.sum(RETURNS.astype(float) * WEIGHTS, axis=1)
    out = np.zeros(B)
    for start in range(0, B, G):
        rows = range(start, start + G)
        group = total[start : start + G]
        for i in rows:
            if name in ("centred", "reinforce++"):
                out[i] = total[i] - group.mean()
            elif name == "rloo":
                out[i] = total[i] - np.mean([total[j] for j in rows if j != i])
            elif name == "grpo":
                out[i] = (total[i] - group.mean()) / (group.std(ddof=1) + 1e-4)
            else:
                channels = RETURNS[start : start + G].astype(float)
                z = (RETURNS[i] - channels.mean(0)) / (channels.std(0, ddof=1) + 1e-4)
                out[i] = np.sum(z * WEIGHTS[i])
    if name in ("reinforce++", "gdpo"):
        out = (out - out.mean()) / (out.std(ddof=1) + 1e-4)
    return out


@pytest.mark.parametrize("name", sorted(adv.ESTIMATORS))
def test_critic_free_estimators_equal_their_equations(name):
    got = adv.ESTIMATORS[name].advantage(jnp.asarray(RETURNS), jnp.asarray(WEIGHTS), G)
    np.testing.assert_allclose(got, loop_estimates(name), atol=1e-5)


@pytest.mark.parametrize("name", sorted(adv.ESTIMATORS))
def test_what_each_does_to_the_strength_of_a_taste(name):
    """Person 0's coefficients × 4: centring keeps the factor, the group's deviation erases it."""
    stronger = WEIGHTS.copy()
    stronger[:G] *= 4.0
    estimate = adv.ESTIMATORS[name].advantage
    before = np.asarray(estimate(jnp.asarray(RETURNS), jnp.asarray(WEIGHTS), G))
    after = np.asarray(estimate(jnp.asarray(RETURNS), jnp.asarray(stronger), G))
    ratio = np.linalg.norm(after[:G]) / np.linalg.norm(before[:G])
    between = ratio / (np.linalg.norm(after[G:]) / np.linalg.norm(before[G:]))
    expected = {"centred": 4.0, "rloo": 4.0, "grpo": 1.0, "reinforce++": 4.0, "gdpo": 4.0}[name]
    np.testing.assert_allclose(between, expected, rtol=2e-3)


def test_the_documentation_has_the_estimators_of_the_table():
    page = (Path(__file__).parents[3] / "docs" / "rl.md").read_text(encoding="utf-8").splitlines()
    start = page.index("| `algorithm.kind` | advantage | a taste four times as strong |") + 2
    default = adv.GRPOAlgorithmConfig().kind
    rows = [
        f"| `{name}`{' (default)' if name == default else ''} | {own.formula} | {own.strength} |"
        for name, own in adv.ESTIMATORS.items()
    ]
    assert page[start : start + len(rows) + 1] == [*rows, ""]


def test_what_depends_on_the_estimator_is_derived_from_the_table():
    for name, own in adv.ESTIMATORS.items():
        assert adv.GRPOAlgorithmConfig(kind=name).scaled == (own.factor is not None) == (name in adv.SCALED)
        np.testing.assert_allclose(own.kl_share(4), 0.75 if name == "centred" else 1.0)
    with pytest.raises(pydantic.ValidationError, match="'centred', 'rloo'"):
        adv.GRPOAlgorithmConfig(kind="centered")


CONSTANTS = [0.35, -0.35, 1 / 3, 0.1, 7.3e-6, 1e6 + 0.1, -123.456, 0.0]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("name", sorted(adv.ESTIMATORS))
def test_equal_rewards_are_no_signal(name, size):
    """The mean of three times 0.35 is not 0.35 in float32; what is left must never be learned from."""
    for constant in CONSTANTS:
        for other in (0.7, -1.1):  # a second output, equal too, and a person's weights
            returns = jnp.tile(jnp.array([constant, other * constant, 0.0], jnp.float32), (3 * size, 1))
            weights = jnp.tile(jnp.array([0.9, other, -0.1], jnp.float32), (3 * size, 1))
            got = adv.ESTIMATORS[name].advantage(returns, weights, size)
            np.testing.assert_array_equal(got, 0.0, err_msg=f"{constant}, {other}")
            scale = adv.RunningScale.start().update(got[:, None], jnp.ones((3 * size, 1), bool), 0.9)
            assert scale.value == 1.0


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("name", sorted(adv.ESTIMATORS))
def test_small_differences_are_a_signal(name, size):
    """A ten-thousandth of the reward is far above its resolution, and a group without a signal mutes no other."""
    for constant in CONSTANTS:
        rewards = np.full((2, size), constant, np.float32)
        rewards[1, 0] += max(1e-4 * abs(constant), 1e-4)
        returns = jnp.stack([rewards.reshape(-1), np.zeros(2 * size)], axis=1)
        got = adv.ESTIMATORS[name].advantage(returns, jnp.ones((2 * size, 2)), size).reshape(2, size)
        assert got[1, 0] > 0 and (got[1, 1:] < got[1, 0]).all()
        np.testing.assert_allclose(got[0], got[0, 0])


@pytest.mark.parametrize("size", [2, 3, 5, 7])
@pytest.mark.parametrize("constant", CONSTANTS)
def test_equal_token_advantages_are_no_signal(constant, size):
    mask = np.arange(4) < np.random.default_rng(size).integers(1, 5, (2 * size, 1))
    values = jnp.full((2 * size, 4), constant, jnp.float32)
    np.testing.assert_array_equal(adv.centre_tokens(values, mask, size), 0.0)
    np.testing.assert_array_equal(adv.masked_whiten(values, mask), 0.0)
    moved = values.at[0, 0].add(max(1e-3 * abs(constant), 1e-3))
    assert adv.centre_tokens(moved, mask, size)[0, 0] > 0 and adv.masked_whiten(moved, mask)[0, 0] > 0


@pytest.mark.parametrize("num_basis", [1, 2, 7])
def test_channels_are_the_outputs_and_two_prices(num_basis):
    weights = adv.channel_weights(jnp.ones((3, num_basis)), 0.1, 0.5)
    assert adv.num_channels(num_basis) == num_basis + 2 == weights.shape[1]


@pytest.mark.parametrize(
    ("names", "said"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c", "d"], "a, b, c and d")]
)
def test_names_in_a_sentence(names, said):
    assert adv.listed(names) == said


def test_gdpo_in_raw_units_disagrees_with_the_persons_own_order():
    """Dossier figure: 70–75 % agreement in raw units, 100 % when scalarised first (2,000 groups of 4)."""
    rng = np.random.default_rng(0)
    groups, size = 2000, 4
    scale = np.array([5.0, 1.0, 1.0, 1.0])
    returns = (rng.normal(size=(groups * size, 4)) * scale).astype(np.float32)
    weights = np.repeat(rng.normal(size=(groups, 4)), size, axis=0).astype(np.float32)
    truth = np.sum(returns * weights, axis=1).reshape(groups, size)

    def agreement(name):
        got = np.asarray(adv.ESTIMATORS[name].advantage(jnp.asarray(returns), jnp.asarray(weights), size))
        got, i, j = got.reshape(groups, size), *np.triu_indices(size, 1)
        return np.mean(np.sign(got[:, i] - got[:, j]) == np.sign(truth[:, i] - truth[:, j]))

    assert agreement("centred") > 0.999
    assert agreement("gdpo") < 0.85
