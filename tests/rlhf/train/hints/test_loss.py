"""Hints as a loss: divergences in full and in part, the term against plain forward passes, whom it may move."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.adapters import AdapterSpec
from rlhf.objectives import distill
from rlhf.policy import vocabulary
from rlhf.train.hints import loss as hints
from rlhf.train.rl import update as updates
from tests.rlhf import tiny
from tests.rlhf.train import steps
from tests.rlhf.train.rl import setup

V, T, K = 12, 5, 2


def random_logits(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2.0


def softmax64(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def kl64(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * np.log(p / q), axis=-1)


TEACHER, STUDENT = random_logits(0, 3, 4, V), random_logits(1, 3, 4, V)


def by_hand(kind: str, alpha: float) -> np.ndarray:
    p, q = softmax64(TEACHER), softmax64(STUDENT)
    middle = alpha * p + (1 - alpha) * q
    return {
        "forward": kl64(p, q),
        "reverse": kl64(q, p),
        "jsd": alpha * kl64(p, middle) + (1 - alpha) * kl64(q, middle),
    }[kind]


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_full_divergence_and_top_v_equal_the_sums_by_hand(kind):
    expected = by_hand(kind, 0.3)
    logs = jax.nn.log_softmax(TEACHER), jax.nn.log_softmax(STUDENT)
    np.testing.assert_allclose(distill.divergence(*logs, kind, 0.3), expected, rtol=2e-5)
    everything = distill.keep(jnp.asarray(TEACHER), V)
    np.testing.assert_allclose(distill.kept_divergence(everything, STUDENT, kind, 0.3), expected, rtol=2e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_one_bin_for_the_rest_never_exceeds_the_full_divergence_and_grows_towards_it(kind):
    values = np.stack(
        [
            distill.kept_divergence(distill.keep(jnp.asarray(TEACHER), k), STUDENT, kind, 0.3)
            for k in range(1, V + 1)
        ]
    )
    assert np.all(np.diff(values, axis=0) >= -1e-5)
    np.testing.assert_allclose(values[-1], by_hand(kind, 0.3), rtol=2e-5)
    assert values[2].mean() < 0.95 * values[-1].mean(), "the case must have something in the rest"


def test_one_bin_is_exact_where_the_student_splits_the_rest_as_the_teacher_does():
    top = jnp.argsort(-jnp.asarray(TEACHER), axis=-1)[..., :3]
    same_rest = jnp.put_along_axis(
        jnp.asarray(TEACHER), top, random_logits(3, 3, 4, 3), axis=-1, inplace=False
    )
    full = kl64(softmax64(TEACHER), softmax64(np.asarray(same_rest)))
    found = distill.kept_divergence(distill.keep(jnp.asarray(TEACHER), 3), same_rest)
    np.testing.assert_allclose(found, full, rtol=2e-5)


def test_draws_from_the_rest_are_unbiased_in_value_and_gradient_and_one_bin_is_not():
    """4000 draws: within 4.5 standard errors at 12 slots; odds of a false alarm below 1e-3."""
    teacher, student = jnp.asarray(TEACHER), jnp.asarray(STUDENT)

    def value(student, key):
        return distill.kept_divergence(distill.keep(teacher, 2, draws=2, key=key), student, drawn=True)

    keys = jax.random.split(jax.random.key(0), 4000)
    values = np.asarray(jax.vmap(lambda key: value(student, key))(keys))
    error = values.std(axis=0) / np.sqrt(len(values))
    full = by_hand("forward", 0.5)
    assert np.all(np.abs(values.mean(axis=0) - full) < 4.5 * error)
    bucket = np.asarray(distill.kept_divergence(distill.keep(teacher, 2), student))
    assert np.all(full - bucket > 4.5 * error), "the bias of one bin must be visible at this precision"
    keys = jax.random.split(jax.random.key(1), 20_000)
    gradients = np.asarray(jax.vmap(jax.grad(lambda s, key: value(s, key).sum()), (None, 0))(student, keys))
    exact = softmax64(STUDENT) - softmax64(TEACHER)  # of KL(T‖S) in the student's logits
    assert np.abs(gradients.mean(axis=0) - exact).max() < 0.01  # its standard errors are below 0.002
    of_bin = jax.grad(lambda s: distill.kept_divergence(distill.keep(teacher, 2), s).sum())(student)
    assert np.abs(of_bin - exact).max() > 0.05


def test_a_rest_of_almost_nothing_is_finite_and_has_finite_gradients():
    sure = np.full((1, V), -40.0, np.float32)
    sure[0, 3] = 40.0
    target = distill.keep(jnp.asarray(sure), 2)
    value, gradient = jax.value_and_grad(lambda s: distill.kept_divergence(target, s).sum())(
        jnp.asarray(sure)
    )
    assert abs(float(value)) < 1e-5 and np.all(np.isfinite(gradient))


def test_the_teacher_does_not_learn():
    gradient = jax.grad(
        lambda t: distill.divergence(jax.nn.log_softmax(t), jax.nn.log_softmax(STUDENT)).sum()
    )
    assert not np.any(gradient(jnp.asarray(TEACHER)))
    kept = jax.grad(lambda t: distill.kept_divergence(distill.keep(t, 4), STUDENT).sum())
    assert not np.any(kept(jnp.asarray(TEACHER)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distill.divergence(TEACHER, STUDENT, "backward"), "backward"),
        (lambda: distill.divergence(TEACHER, STUDENT, "jsd", 1.0), "alpha 1.0"),
        (lambda: distill.keep(jnp.asarray(TEACHER), V + 1), "13"),
        (lambda: distill.keep(jnp.asarray(TEACHER), 2, draws=3), "key"),
        (
            lambda: distill.kept_divergence(
                distill.keep(jnp.asarray(TEACHER), 2), STUDENT, "reverse", drawn=True
            ),
            "reverse",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the term on a tiny policy ------------------------------------------------------------------------------------

PROMPTS = [[1, 4, 5], [1, 9, 3, 7, 8, 12], [1, 6]]
HINTS = [[30, 31], [30], [31, 31, 30]]
COMPLETIONS = np.array([[5, 6, 7, 2, 0], [8, 2, 0, 0, 0], [9, 10, 11, 12, 13]], np.int32)
MASK = jnp.asarray([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
Z = jnp.asarray([[1.0, -0.5], [0.3, 0.8], [0.0, 0.0]])


@functools.cache
def make_term(**changes):
    base = tiny.make_base(tiny.make_config(), adapter_layers=None)
    policy = tiny.make_policy(base, AdapterSpec(2, 2.0, K, 2), scale=0.3)
    return hints.HintTerm(policy.graphdef, T, **changes), policy.params


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(term, params, rows):
    """(loss, metrics), and the gradient in all parts of the policy."""
    return jax.value_and_grad(lambda params: term(params, rows), has_aux=True)(params)


def readings(z=Z):
    none = [[]] * len(PROMPTS)
    return (
        hints.with_hint(PROMPTS, none, COMPLETIONS, z),
        hints.with_hint(PROMPTS, HINTS, COMPLETIONS, z),
    )


def plain_logprobs(graphdef, params, row: int, hint: list[int]) -> np.ndarray:
    """Next-token log-probs at the completion's real slots, from unpadded tokens and a causal mask alone."""
    length = int(MASK[row].sum())
    tokens = [*PROMPTS[row], *hint, *COMPLETIONS[row, :length].tolist()]
    padded = np.pad(np.array(tokens, np.int32), (0, 16 - len(tokens)))[None]
    logits = tiny.causal_logits(graphdef, params, jnp.asarray(padded), Z[row][None])
    first = len(PROMPTS[row]) + len(hint) - 1
    return np.log(softmax64(np.asarray(logits[0, first : first + length])))


@pytest.mark.parametrize("spec", [hints.TargetSpec(), hints.TargetSpec(top=32)])
def test_the_term_equals_plain_forward_passes_of_unpadded_rows(spec):
    term, params = make_term(target=spec)
    student, teacher = readings()
    rows = hints.hint_rows(params, student, teacher, MASK, None, 0.7, jax.random.key(0), term=term)
    (loss, metrics), _ = loss_and_gradient(term, params, rows)
    total = 0.0
    for row, hint in enumerate(HINTS):
        told, own = (plain_logprobs(term.graphdef, params, row, extra) for extra in (hint, []))
        total += np.sum(np.exp(told) * (told - own))
    mean = total / int(MASK.sum())
    assert mean > 0.01, "hints must change something in this model"
    np.testing.assert_allclose(loss, 0.7 * mean, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/hint_kl_nats"], mean, rtol=1e-4)


def test_the_ratio_is_capped_and_carries_no_gradient():
    term, params = make_term()
    student, teacher = readings()
    parts = (params, student, teacher, MASK)
    plain = hints.hint_rows(*parts, None, 1.0, jax.random.key(0), term=term)
    decoder_logprobs = jnp.stack(
        [
            jnp.pad(
                jnp.asarray(
                    np.take_along_axis(
                        plain_logprobs(term.graphdef, params, row, []),
                        COMPLETIONS[row, : int(MASK[row].sum()), None],
                        axis=1,
                    )[:, 0]
                ),
                (0, T - int(MASK[row].sum())),
            )
            for row in range(len(PROMPTS))
        ]
    ).astype(jnp.float32)
    for shift, factor in ((0.0, 1.0), (np.log(1.5), 1.5), (3.0, 2.0), (-1.0, np.exp(-1.0))):
        rows = hints.hint_rows(*parts, decoder_logprobs - shift, 1.0, jax.random.key(0), term=term)
        (value, _), gradient = loss_and_gradient(term, params, rows)
        base_value, base_gradient = jax.value_and_grad(lambda p, r: term(p, r)[0], allow_int=True)(
            params, plain
        )
        np.testing.assert_allclose(value, factor * base_value, rtol=1e-4)
        jax.tree.map(
            lambda a, b, factor=factor: np.testing.assert_allclose(a, factor * b, rtol=1e-3, atol=1e-6),
            gradient.conditioner,
            base_gradient.conditioner,
        )


def test_only_the_conditioner_moves_and_nobody_in_particular_stays_exactly():
    term, params = make_term()
    student, teacher = readings()
    rows = hints.hint_rows(params, student, teacher, MASK, None, 1.0, jax.random.key(0), term=term)
    (before_loss, _), gradient = loss_and_gradient(term, params, rows)
    size = {
        part: sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(getattr(gradient, part)))
        for part in params._fields
    }
    assert size["conditioner"] > 0 and size["base"] == size["lora"] == 0.0
    moved = params._replace(
        conditioner=jax.tree.map(lambda p, g: p - 0.5 * g, params.conditioner, gradient.conditioner)
    )
    assert float(loss_and_gradient(term, moved, rows)[0][0]) < float(before_loss)
    generic = readings(jnp.zeros_like(Z))[0]
    before, after = (hints.teach(p, generic, jax.random.key(0), term=term) for p in (params, moved))
    np.testing.assert_array_equal(
        np.where(MASK[..., None], before.logprobs, 0), np.where(MASK[..., None], after.logprobs, 0)
    )
    everything = dataclasses.replace(term, moves=("lora", "conditioner"))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(loss_and_gradient(everything, params, rows)[1].lora))


def test_anchors_are_zero_where_nothing_moved_and_padding_rows_teach_nothing():
    term, params = make_term()
    student, teacher = readings()
    anchors = hints.anchor_rows(params, student, MASK, 3.0, jax.random.key(0), term=term)
    (loss, _), gradient = loss_and_gradient(term, params, anchors)
    assert abs(float(loss)) < 1e-5
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient.conditioner)) < 1e-4
    hinted = hints.hint_rows(params, student, teacher, MASK, None, 1.0, jax.random.key(0), term=term)
    padded = hints.hint_rows(
        params, student, teacher, MASK.at[1].set(False), None, 1.0, jax.random.key(0), term=term
    )
    assert float(padded.weight[1]) == 0.0
    both = hints.join([hinted, anchors])
    alone, joined = (float(loss_and_gradient(term, params, rows)[0][0]) for rows in (hinted, both))
    np.testing.assert_allclose(joined, alone, rtol=1e-4)


def test_few_slots_at_a_time_give_the_same(monkeypatch):
    term, params = make_term(target=hints.TargetSpec(top=6))
    student, teacher = readings()
    whole = hints.hint_rows(params, student, teacher, MASK, None, 1.0, jax.random.key(0), term=term)
    (expected, _), slope = loss_and_gradient(term, params, whole)
    monkeypatch.setattr(vocabulary, "LOGITS_BYTES", 4 * len(PROMPTS) * 32 * 2)
    jax.clear_caches()
    parts = hints.hint_rows(params, student, teacher, MASK, None, 1.0, jax.random.key(0), term=term)
    (found, _), again = loss_and_gradient(term, params, parts)
    np.testing.assert_array_equal(whole.target.ids, parts.target.ids)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), slope.conditioner, again.conditioner
    )


# --- beside the losses of policy gradients and of DPO -----------------------------------------------------------------


def test_the_term_joins_the_loss_of_an_update_and_moves_the_policy_where_rewards_say_nothing():
    task = setup.make_task(
        prompts=[[1, 4], [1, 9, 5]], people=steps.make_population(), groups=2, algorithm={"epochs": 2}
    )
    term = hints.HintTerm(task.program.graphdef, task.settings.rollout.max_new_tokens)
    program = dataclasses.replace(task.program, extra=term)
    rollout = updates.draw(task.state, *task.arguments(), program=task.program)
    reading = hints.Reading(rollout.tokens, rollout.starts, rollout.z)
    hint = jnp.full((len(rollout.starts), 1), 30)
    width = rollout.tokens.shape[1] - term.num_slots
    tokens = jnp.concatenate([rollout.tokens[:, :width], hint, rollout.completions], axis=1)
    params = task.frozen._replace(**{k: jnp_copy(v) for k, v in task.state.params.items()})
    teacher = hints.Reading(tokens, rollout.starts, rollout.z)
    rows = hints.hint_rows(
        params, reading, teacher, rollout.mask, rollout.logprobs, 1.0, jax.random.key(0), term=term
    )
    nothing = jnp.zeros(rollout.coef.shape)
    before = float(loss_and_gradient(term, params, rows)[0][0])
    arguments = (rollout, nothing, task.frozen, task.settings)
    state, metrics = updates.update(task.state, *arguments, program=program, extra=rows)
    after = float(loss_and_gradient(term, task.frozen._replace(**state.params), rows)[0][0])
    assert 0 < after < before
    parts = metrics["train/loss/policy"] + metrics["train/loss/hint"]
    np.testing.assert_allclose(metrics["train/loss/total"], parts, atol=1e-5)


def jnp_copy(tree):
    """Copies: an update donates the state's buffers."""
    return jax.tree.map(jnp.copy, tree)


def test_the_term_joins_the_loss_of_dpo_once_a_step():
    from rlhf.train import dpo_step as dpo
    from rlhf.train import optim

    base = tiny.make_base(tiny.make_config(), adapter_layers=None)
    policy = tiny.make_policy(base, AdapterSpec(2, 2.0, steps.K, 2), scale=0.3)
    term = hints.HintTerm(policy.graphdef, T)
    student, teacher = readings()
    rows = hints.hint_rows(policy.params, student, teacher, MASK, None, 0.5, jax.random.key(0), term=term)
    value = float(loss_and_gradient(term, policy.params, rows)[0][0])
    batch = steps.make_batch(policy, accumulation=2)
    shares = dpo.UserShares(0.5, 0.5, 0, 0)
    program, settings = dpo.DPOProgram(policy.graphdef, shares, extra=term), steps.make_settings("soft")
    results = []
    for extra in (None, rows):
        parts = jnp_copy({"lora": policy.params.lora, "conditioner": policy.params.conditioner})
        state = optim.init_state(parts, settings.optimizer, jax.random.key(5))
        frozen = policy.params
        results.append(
            dpo.step(state, batch, frozen, steps.make_population(), settings, program=program, extra=extra)
        )
    (plain, without), (both, with_hint) = results
    np.testing.assert_allclose(with_hint["train/loss/total"] - without["train/loss/total"], value, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), plain.params, both.params)
    # Clipping by the global norm touches LoRA too, but only a little; the conditioner follows the hint.
    assert max(jax.tree.leaves(moved["conditioner"])) > 0
