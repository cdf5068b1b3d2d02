"""The DPO step against hand-written references, and what must not compile again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf.models.adapters import AdapterSpec
from rlhf.policy.conditioning import UserShares
from rlhf.policy.logprobs import sequence_logprobs
from rlhf.policy.sampling import SamplingSettings, generate, left_pad, row_keys
from rlhf.train import dpo_step as dpo
from rlhf.train import optim
from tests.rlhf import tiny
from tests.rlhf.train import steps

PLAIN = AdapterSpec(lora_rank=2, lora_alpha=2.0)
PERSONAL = AdapterSpec(lora_rank=2, lora_alpha=2.0, num_basis=steps.K, basis_rank=2)
BETA, ETA = 0.3, 0.2


@pytest.fixture(scope="module")
def plain():
    return tiny.make_policy(tiny.make_base(tiny.make_config()), PLAIN)


@pytest.fixture(scope="module")
def personal():
    return tiny.make_policy(tiny.make_base(tiny.make_config()), PERSONAL)


def copy(tree):
    return jax.tree.map(jnp.array, tree)


def run(policy, batch, settings, *, population=None, seed=0, state=None, **changes):
    """One step; `changes` are fields of the program."""
    program = dpo.DPOProgram(policy.graphdef, **changes)
    trained = {"lora": policy.params.lora}
    trained |= {"conditioner": policy.params.conditioner} if settings.loss.personal else {}
    state = state or optim.init_state(copy(trained), settings.optimizer, jax.random.key(seed))
    return dpo.step(state, batch, policy.params, population, settings, program=program)


def own_logprobs(policy, z=None):
    """[R, C] from rows of their own."""
    prompts = [p for p in steps.PROMPTS for _ in range(steps.NUM_COMPLETIONS)]
    arrays = tiny.separate_rows(prompts, [c for row in steps.COMPLETIONS for c in row])

    def logprobs(params):
        each = None if z is None else jnp.repeat(z, steps.NUM_COMPLETIONS, axis=0)
        return tiny.separate_logprobs(policy.graphdef, params, arrays, each).reshape(steps.NUM_ROWS, -1)

    return logprobs


def pair_mean(per_pair):
    """Weights 2 and 1 of the two pairs, then the mean over rows."""
    return jnp.mean((2 * per_pair[:, 0] + per_pair[:, 1]) / 3)


def margins(values):
    return jnp.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 1]], axis=1)


def test_a_plain_step_equals_optax_by_hand(plain):
    batch, settings = steps.make_batch(plain, num_basis=0), steps.make_settings("dpo")
    reference, outcome = batch.ref_logprobs[0], batch.rows.outcome[0]
    logprobs = own_logprobs(plain)

    @jax.jit
    def loss(lora):
        h = BETA * margins(logprobs(plain.params._replace(lora=lora)) - reference[:, :3])
        return pair_mean(-outcome * jax.nn.log_sigmoid(h) - (1 - outcome) * jax.nn.log_sigmoid(-h))

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, 0.9, 0.99, 1e-6, weight_decay=0.1))
    lora = plain.params.lora
    tx_state, value_and_grad = tx.init(lora), jax.jit(jax.value_and_grad(loss))
    state = optim.init_state({"lora": copy(lora)}, settings.optimizer, jax.random.key(0))
    for _ in range(3):
        wanted, grads = value_and_grad(lora)
        updates, tx_state = tx.update(grads, tx_state, lora)
        lora = optax.apply_updates(lora, updates)
        state, metrics = run(plain, batch, settings, state=state)
        np.testing.assert_allclose(metrics["train/loss/total"], wanted, rtol=1e-5)
        np.testing.assert_allclose(metrics["train/grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    for mine, theirs in zip(jax.tree.leaves(state.params["lora"]), jax.tree.leaves(lora), strict=True):
        # Adam divides by √v near eps = 1e-6, which magnifies float32 rounding of the gradient.
        np.testing.assert_allclose(mine, theirs, atol=5e-5)
    moved = max(
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(lora), jax.tree.leaves(plain.params.lora), strict=True)
    )
    assert moved > 0.02


def test_accumulated_gradients_are_those_of_the_whole_batch(plain):
    results = []
    for accumulation in (1, 2):
        batch = steps.make_batch(plain, num_basis=0, accumulation=accumulation)
        results.append(run(plain, batch, steps.make_settings("ipo", nll_coef=0.3), with_nll=True))
    (whole, metrics), *parts = results
    for state, part_metrics in parts:
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
        for name in metrics:
            np.testing.assert_allclose(part_metrics[name], metrics[name], rtol=2e-4, atol=1e-5, err_msg=name)


def test_the_old_state_is_given_up(plain):
    settings = steps.make_settings("dpo")
    state = optim.init_state({"lora": copy(plain.params.lora)}, settings.optimizer, jax.random.key(0))
    leaves = jax.tree.leaves((state.params, state.opt_state))
    run(plain, steps.make_batch(plain, num_basis=0), settings, state=state)
    assert all(leaf.is_deleted() for leaf in leaves if leaf.ndim)


@pytest.mark.parametrize("kind", ["regression", "observed"])
def test_personal_losses_with_the_rail_by_hand(personal, kind):
    """Posteriors are sharp, so the coefficients a row was trained with are known; the last row is generic."""
    population = steps.make_population(spread=False)
    mean = population.conditioning.mean
    batch = steps.make_batch(personal)
    shares = UserShares(0, 0, 0, 1)
    if kind == "observed":
        shares = UserShares(0.75, 0, 0, 0.25)
        coef = np.concatenate([population.user_mean[[0, 1, 0]], mean[None]])
    else:
        coef = np.tile(mean, (4, 1))
    settings = steps.make_settings(kind, eta=ETA)
    _, metrics = run(personal, batch, settings, population=population, shares=shares, with_rail=True)

    shrunk = (BETA * coef + ETA * mean) / (BETA + ETA)
    z = (shrunk - mean) @ population.conditioning.inverse_sqrt
    policy = own_logprobs(personal, z)(personal.params)
    aggregate = own_logprobs(personal)(personal.params)
    reference = batch.ref_logprobs[0, :, :3]
    target = jnp.einsum("bk,bck->bc", shrunk, batch.basis_rewards[0, :, :3])
    if kind == "observed":
        mixture = (BETA * reference + ETA * aggregate) / (BETA + ETA)
        h, outcome = (BETA + ETA) * margins(policy - mixture), batch.rows.outcome[0]
        wanted = pair_mean(-outcome * jax.nn.log_sigmoid(h) - (1 - outcome) * jax.nn.log_sigmoid(-h))
    else:
        h, goal = BETA * margins(policy - reference), margins(target)
        wanted = pair_mean((h - goal) ** 2)
    np.testing.assert_allclose(metrics["train/loss/pair"], wanted, rtol=1e-4)
    q = jax.nn.softmax(policy, axis=1)
    np.testing.assert_allclose(metrics["train/reward"], jnp.mean(jnp.sum(q * target, axis=1)), atol=1e-4)
    kl = jnp.sum(q * (jnp.log(q) - jax.nn.log_softmax(reference, axis=1)), axis=1)
    np.testing.assert_allclose(metrics["train/kl_ref_nats"], jnp.mean(kl), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        metrics["train/group_mass"], jnp.mean(jnp.sum(jnp.exp(policy), axis=1)), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["train/log_ratio_nats"], jnp.mean(policy - reference), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(metrics["train/completion_tokens"], 11 / 3, rtol=1e-6)


def test_the_stop_gradient_of_the_mixture_reference(personal):
    """π_agg in the reference teaches nothing: the gradient is that with a constant in its place."""
    population, batch = steps.make_population(spread=False), steps.make_batch(personal)
    settings, shares = steps.make_settings("observed", eta=ETA), UserShares(0, 0, 0, 1)
    _, metrics = run(personal, batch, settings, population=population, shares=shares, with_rail=True)
    aggregate = own_logprobs(personal)(personal.params)
    mixture = (BETA * batch.ref_logprobs[0, :, :3] + ETA * aggregate) / (BETA + ETA)
    outcome, logprobs = batch.rows.outcome[0], own_logprobs(personal)

    @jax.jit
    @jax.grad
    def gradient(lora):
        h = (BETA + ETA) * margins(logprobs(personal.params._replace(lora=lora)) - mixture)
        return pair_mean(-outcome * jax.nn.log_sigmoid(h) - (1 - outcome) * jax.nn.log_sigmoid(-h))

    # At z = 0 the conditioner has no gradient, so LoRA's is all of it.
    np.testing.assert_allclose(
        metrics["train/grad_norm"], optax.tree.norm(gradient(personal.params.lora)), rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["soft", "dpo"])
def test_accuracy_counts_ties_half(plain, kind):
    """A policy that has not moved is a coin; then pair (0, 1) of weight 2 is right, (2, 1) of weight 1 wrong."""
    rows, settings = steps.make_rows(), steps.make_settings(kind)
    reference = jnp.zeros(rows.item.shape)
    target = jnp.tile(jnp.array([2.0, 1.0, 3.0, 0.0]), (steps.NUM_ROWS, 1))

    def accuracy(logprobs, target=target):
        found = dpo.pair_losses(settings.loss, settings.rail, rows, logprobs, reference, target)
        return found[1]["train/accuracy"]

    np.testing.assert_allclose(accuracy(reference), 0.5)
    moved = reference + jnp.array([0.3, 0.2, 0.1, 0.0])
    expected = np.full(steps.NUM_ROWS, 2 / 3)
    if kind == "dpo":  # labels: the second pair of row 1 is a tie
        expected[1] += 1 / 6
    np.testing.assert_allclose(accuracy(moved), expected, rtol=1e-6)
    if kind == "soft":
        np.testing.assert_allclose(accuracy(moved, jnp.zeros_like(target)), 0.5)


def test_observed_rows_get_their_own_person_and_the_last_rows_nobody():
    population = steps.make_population()
    shares = UserShares(0.75, 0, 0, 0.25)
    users = jnp.tile(jnp.array([0, 1]), 2000)
    coef = np.asarray(dpo.row_coef("observed", shares, population, users, jax.random.key(0)))
    np.testing.assert_array_equal(coef[3000:], np.tile(population.conditioning.mean, (1000, 1)))
    for user in (0, 1):
        own = coef[:3000][np.asarray(users[:3000]) == user]
        np.testing.assert_allclose(own.mean(axis=0), population.user_mean[user], atol=0.06)
        np.testing.assert_allclose(np.cov(own.T), 0.25 * np.eye(2), atol=0.04)


def test_the_supervised_target():
    rows = jax.tree.map(lambda a: a, steps.make_rows())
    reference = np.where(rows.item >= 0, np.random.default_rng(0).normal(size=rows.item.shape), 0.0)
    scores = np.random.default_rng(1).normal(size=rows.item.shape)
    target = dpo.supervised_target(rows, jnp.asarray(reference), jnp.asarray(scores))
    weights = np.exp(reference + scores) * (rows.item >= 0)
    np.testing.assert_allclose(target, weights / weights.sum(axis=1, keepdims=True), rtol=1e-5)
    wins = dpo.supervised_target(rows, jnp.asarray(reference), None)
    np.testing.assert_allclose(wins[0], [2 / 3, 0, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(wins[1], [2 / 3, 1 / 6, 1 / 6, 0], rtol=1e-6)  # the tie is shared


def test_ten_people_and_settings_compile_nothing(personal):
    rows = steps.make_rows().packed
    tokens, starts = left_pad(steps.PROMPTS)
    stop = np.array([2], np.int32)

    def everything(number: int):
        batch = steps.make_batch(personal, seed=number)
        settings = steps.make_settings(
            "soft",
            optimizer={"learning_rate": 0.001 * number, "warmup_steps": number},
            num_steps=100 + number,
            eta=0.05 * number,
            dpo_beta=0.1 + 0.01 * number,
            nll_coef=0.1 * number,
        )
        run(
            personal,
            batch,
            settings,
            population=steps.make_population(number),
            seed=number,
            shares=UserShares(0.25, 0.25, 0.25, 0.25),
            with_nll=True,
            with_rail=True,
        )
        z = np.random.default_rng(number).normal(size=(4, steps.K)).astype(np.float32)
        sequence_logprobs(personal.graphdef, personal.params, rows, z)
        sampling = SamplingSettings.of(4, temperature=0.1 * number)
        keys = row_keys(number, np.arange(4) + number)
        generate(
            personal.params,
            tokens,
            starts,
            z,
            keys,
            sampling,
            stop,
            graphdef=personal.graphdef,
            max_new_tokens=3,
            filtered=False,
        )
        return dpo.step._cache_size(), generate._cache_size(), sequence_logprobs._cache_size()

    first = everything(1)
    for number in range(2, 12):
        assert everything(number) == first


def test_a_rebuilt_policy_compiles_nothing():
    """An equal but distinct graph definition is the same program."""
    sizes = []
    for _ in range(2):
        policy = tiny.make_policy(tiny.make_base(tiny.make_config()), PERSONAL)
        z = np.zeros((4, steps.K), np.float32)
        sequence_logprobs(policy.graphdef, policy.params, steps.make_rows().packed, z)
        sizes.append(sequence_logprobs._cache_size())
    assert sizes[0] == sizes[1]


def test_bfloat16_weights_train():
    policy = tiny.make_policy(tiny.make_base(tiny.make_config(), dtype="bfloat16"), PLAIN)
    batch, settings, losses = steps.make_batch(policy, num_basis=0), steps.make_settings("dpo"), []
    state = optim.init_state({"lora": copy(policy.params.lora)}, settings.optimizer, jax.random.key(0))
    for _ in range(15):
        state, metrics = run(policy, batch, settings, state=state)
        losses.append(float(metrics["train/loss/total"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {
        jnp.dtype("float32")
    }  # adapters stay float32
