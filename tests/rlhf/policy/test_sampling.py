"""Sampling: log-probs, greedy text, stops, rows that do not see one another, filters, temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rewards.errors import UserError
from rlhf.models.adapters import AdapterSpec
from rlhf.policy.generation import Drawing, complete
from rlhf.policy.sampling import SamplingSettings, filter_logits, first_max, generate, left_pad, row_keys
from tests.rlhf import tiny

NEW, STOP = 8, np.array([2, 5, 6, 7, -1], np.int32)
PROMPTS = [[1, 5, 6, 7, 9, 11, 13], [1, 9], [4], [1, 20, 21, 22, 5]]
Z = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
SPEC = AdapterSpec(lora_rank=2, lora_alpha=2.0, num_basis=2, basis_rank=2)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def policy(request):
    return tiny.make_policy(tiny.make_base(tiny.make_config(request.param), adapter_layers=2), SPEC)


def sample(
    policy,
    prompts=PROMPTS,
    z=Z,
    *,
    rows=None,
    seed=0,
    stop=STOP,
    filtered=False,
    multiple=16,
    group_size=1,
    **settings,
):
    tokens, starts = left_pad(prompts, multiple=multiple)
    rows = np.arange(len(prompts)) if rows is None else rows
    samples = generate(
        policy.params,
        tokens,
        starts,
        z,
        row_keys(seed, rows),
        SamplingSettings.of(len(prompts), **settings),
        stop,
        graphdef=policy.graphdef,
        max_new_tokens=NEW,
        filtered=filtered,
        group_size=group_size,
    )
    return [np.asarray(array) for array in samples]


def naive_logits(policy, prompts, z=Z, length=24):
    """Next-token logits of each prompt, without a cache or padding on the left."""
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    logits = tiny.causal_logits(policy.graphdef, policy.params, tokens, z)
    return np.asarray(logits), np.asarray(logits)[np.arange(len(prompts)), [len(p) - 1 for p in prompts]]


def test_log_probs_equal_a_teacher_forced_pass(policy):
    tokens, logprobs, mask = sample(policy, temperature=1.3)
    texts = [tokens[row, mask[row]].tolist() for row in range(4)]
    logits, _ = naive_logits(policy, [[*p, *t] for p, t in zip(PROMPTS, texts, strict=True)])
    wanted = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for row, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        taken = wanted[row, np.arange(len(prompt) - 1, len(prompt) + len(text) - 1), text]
        np.testing.assert_allclose(logprobs[row, mask[row]], taken, atol=1e-4)


def test_a_row_ends_with_its_stop_token(policy):
    tokens, logprobs, mask = sample(policy, temperature=1.3)
    lengths = mask.sum(axis=1)
    assert (mask == (np.arange(NEW) < lengths[:, None])).all()
    for row, length in enumerate(lengths):
        assert length == NEW or tokens[row, length - 1] in STOP
        assert not np.isin(tokens[row, : length - 1], STOP).any()
    assert not tokens[~mask].any() and not logprobs[~mask].any()
    assert lengths.min() < NEW  # some row stopped early
    unstopped = sample(policy, temperature=1.3, stop=np.array([-1] * 5, np.int32))
    assert unstopped[2].all()
    np.testing.assert_array_equal(unstopped[0][mask], tokens[mask])  # the same text, had it not stopped


def test_greedy_equals_repeated_full_passes(policy):
    tokens, _, mask = sample(policy, temperature=0.0, stop=np.array([-1] * 5, np.int32))
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(NEW):
        _, last = naive_logits(policy, texts)
        for text, logits in zip(texts, last, strict=True):
            text.append(int(logits.argmax()))
    assert mask.all()
    assert tokens.tolist() == [text[len(prompt) :] for text, prompt in zip(texts, PROMPTS, strict=True)]


def test_what_a_row_says_does_not_depend_on_its_batch(policy):
    tokens, logprobs, mask = sample(policy, temperature=1.0)
    order = np.array([2, 0, 3, 1])
    permuted = sample(policy, [PROMPTS[i] for i in order], Z[order], rows=order, temperature=1.0)
    np.testing.assert_array_equal(permuted[0], tokens[order])
    np.testing.assert_allclose(permuted[1], logprobs[order], atol=1e-5)
    for row in range(4):  # alone among strangers: other prompts, lengths, coefficients and keys
        prompts = [
            PROMPTS[row] if i == row else [1, 3 + i, 8, 8, 8, 8, 8, 8, 8][: 3 + 2 * i] for i in range(4)
        ]
        z = np.where(np.arange(4)[:, None] == row, Z, 5.0 - Z)
        rows = np.where(np.arange(4) == row, row, 100 + np.arange(4))
        other = sample(policy, prompts, z, rows=rows, temperature=1.0)
        np.testing.assert_array_equal(other[0][row], tokens[row])
        np.testing.assert_allclose(other[1][row], logprobs[row], atol=1e-5)
    wider = sample(policy, temperature=1.0, multiple=32)
    np.testing.assert_array_equal(wider[0], tokens)
    assert not np.array_equal(sample(policy, temperature=1.0, seed=1)[0], tokens)


def test_rows_that_share_a_prompt_read_it_once(policy):
    prompts, z = [prompt for prompt in PROMPTS for _ in range(3)], np.repeat(Z, 3, axis=0)
    alone, shared = sample(policy, prompts, z), sample(policy, prompts, z, group_size=3)
    np.testing.assert_array_equal(shared[0], alone[0])
    np.testing.assert_allclose(shared[1], alone[1], atol=1e-4)
    assert len({tuple(row) for row in shared[0]}) > len(PROMPTS)  # their continuations are their own


@pytest.mark.parametrize("likeliest", [512, 20, 3])
def test_filters_equal_transformers(likeliest):
    """Whether the likeliest tokens settle it (20: for all rows but two, 3: for none but one) or all are sorted."""
    rng = np.random.default_rng(0)
    logits = (3.0 * rng.standard_normal((6, 50))).astype(np.float32)
    top_k = np.array([0, 5, 1, 0, 200, 7], np.int32)
    top_p = np.array([1.0, 1.0, 0.9, 0.6, 0.95, 0.3], np.float32)
    min_p = np.array([0.0, 0.1, 0.0, 0.05, 0.02, 0.5], np.float32)
    settings = SamplingSettings(np.ones(6, np.float32), top_k, top_p, min_p)
    ours = filter_logits(jnp.asarray(logits), settings, likeliest)
    apart = [  # a row that is not settled must not decide for the others
        filter_logits(
            jnp.asarray(logits[i : i + 1]), SamplingSettings(*(a[i : i + 1] for a in settings)), likeliest
        )
        for i in range(6)
    ]
    np.testing.assert_array_equal(np.concatenate(apart), ours)
    for row in range(6):
        scores = torch.tensor(logits[row : row + 1])
        warpers = []
        if top_k[row]:
            warpers.append(TopKLogitsWarper(int(top_k[row])))
        if top_p[row] < 1:
            warpers.append(TopPLogitsWarper(float(top_p[row])))
        if min_p[row]:
            warpers.append(MinPLogitsWarper(float(min_p[row])))
        for warper in warpers:
            scores = warper(None, scores)
        np.testing.assert_array_equal(ours[row], scores[0].numpy())
    assert np.isinf(ours).sum(axis=1)[0] == 0  # a row without filters keeps all


def test_filters_keep_equals_of_the_last_token_that_stays():
    logits = jnp.asarray([[3.0, 1.0, 1.0, 1.0, 0.0, -1.0]])
    for settings in ({"top_k": 2}, {"top_k": 2, "top_p": 0.95}, {"top_p": 0.8}):
        whole, part = (filter_logits(logits, SamplingSettings.of(1, **settings), size) for size in (6, 2))
        np.testing.assert_array_equal(part, whole)
        assert np.isfinite(whole).sum() == 4


def test_no_filter_keeps_every_token_however_unlikely():
    """The sum of a large vocabulary's probabilities rounds above 1 before its end."""
    logits = jnp.asarray(np.linspace(0.0, -30.0, 50_000, dtype=np.float32))[None]
    kept = filter_logits(logits, SamplingSettings.of(1, 1.0))
    np.testing.assert_array_equal(kept, logits)


@pytest.mark.parametrize("settings", [{"temperature": 0.6}, {"temperature": 1.5, "top_k": 9, "top_p": 0.9}])
def test_pairs_of_tokens_have_their_probabilities(settings):
    """χ² over first and second token; a right sampler fails at one seed in 10 000."""
    policy = tiny.make_policy(tiny.make_base(tiny.make_config()), SPEC)
    num = 4000
    prompt, z = [1, 9, 4], Z[0]
    temperature, filtered = settings["temperature"], "top_k" in settings
    tokens, starts = left_pad([prompt] * num, multiple=1)
    samples = generate(
        policy.params,
        tokens,
        starts,
        np.tile(z, (num, 1)),
        row_keys(11, np.arange(num)),
        SamplingSettings.of(num, **settings),
        np.array([-1], np.int32),
        graphdef=policy.graphdef,
        max_new_tokens=2,
        filtered=filtered,
    )
    counts = np.zeros((32, 32))
    np.add.at(counts, tuple(np.asarray(samples.tokens).T), 1)

    def probabilities(logits):
        scores = torch.tensor(logits / temperature)
        if filtered:
            scores = TopPLogitsWarper(settings["top_p"])(
                None, TopKLogitsWarper(settings["top_k"])(None, scores)
            )
        return scores.softmax(-1).numpy().astype(np.float64)

    _, first = naive_logits(policy, [prompt], z[None], length=8)
    _, second = naive_logits(policy, [[*prompt, token] for token in range(32)], np.tile(z, (32, 1)), length=8)
    expected = num * probabilities(first)[0][:, None] * probabilities(second)
    assert not counts[expected == 0].any()
    large = expected >= 5
    assert large.sum() > 20
    observed, wanted = counts[large], expected[large]
    if expected[~large].sum() >= 5:
        observed, wanted = (
            np.append(observed, counts[~large].sum()),
            np.append(wanted, expected[~large].sum()),
        )
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_completions_are_texts_and_split_into_equal_batches():
    policy = tiny.make_policy(tiny.make_base(tiny.make_config()), SPEC)
    prompts = ["ab", "c", "xyz", "ab", "q"] * 5
    z = np.resize(Z, (25, 2))
    whole = complete(policy, prompts, z, Drawing(NEW, batch=25), seed=3)
    parts = complete(policy, prompts, z, Drawing(NEW, batch=4), seed=3)
    assert [c.text for c in whole] == [c.text for c in parts]
    assert {c.finished for c in whole} == {True, False}
    for completion in whole:
        assert completion.logprob < 0 and (completion.finished or completion.num_tokens == NEW)


def test_a_prompt_longer_than_the_context_is_refused():
    policy = tiny.make_policy(tiny.make_base(tiny.make_config()), None)
    with pytest.raises(UserError, match=r"121 tokens and 8 new ones exceed the model's context of 128"):
        complete(policy, ["a" * 120], None, Drawing(8), seed=0)


def test_keys_belong_to_row_numbers():
    first, second = (
        np.asarray(jax.random.key_data(row_keys(5, np.array(rows)))) for rows in ([3, 1], [9, 3])
    )
    np.testing.assert_array_equal(first[0], second[1])
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 3


def test_the_first_of_the_largest():
    scores = np.array([[1.0, 3.0, 3.0], [5.0, 5.0, 5.0], [-np.inf, -2.0, -1.0]])
    np.testing.assert_array_equal(first_max(scores), np.argmax(scores, axis=-1))
    assert int(first_max(np.full((1, 7), np.nan))[0]) == 6  # a token that there is, whatever the weights are
