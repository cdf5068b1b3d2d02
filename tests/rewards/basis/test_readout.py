"""How a basis is read, against the equation written out with loops."""

import numpy as np
import pytest

from rewards.basis import readout
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.types import PromptPart, Quadratic

ITEMS, WIDTH, K, R, Q = 9, 4, 3, 2, 2


def parts(source=None):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(ITEMS, WIDTH))
    prompt = None
    if source is not None:
        prompt = PromptPart(rng.normal(size=(WIDTH, Q)), rng.normal(size=(K, R, Q)), source)
    quadratic = Quadratic(rng.normal(size=(WIDTH, R)), prompt)
    return rng, embeddings, np.arange(ITEMS) % 2, rng.normal(size=(WIDTH, K)), quadratic


def by_hand(embeddings, item_prompt, head, quadratic, context):
    out = np.zeros((ITEMS, K))
    for item, e in enumerate(embeddings):
        f = quadratic.square.T @ e
        for k in range(K):
            out[item, k] = head[:, k] @ e - f @ f
            if context is not None:
                c = quadratic.prompt.projection.T @ context[item_prompt[item]]
                out[item, k] += f @ quadratic.prompt.head[k] @ c
    return out


def test_outputs_of_ideal_points():
    _, embeddings, item_prompt, head, quadratic = parts()
    expected = by_hand(embeddings, item_prompt, head, quadratic, None)
    np.testing.assert_allclose(readout.raw_outputs(head, quadratic, embeddings), expected)


def test_ideal_points_that_depend_on_the_prompts_own_embedding():
    rng, embeddings, item_prompt, head, quadratic = parts("encoder")
    context = rng.normal(size=(2, WIDTH))
    expected = by_hand(embeddings, item_prompt, head, quadratic, context)
    found = readout.raw_outputs(head, quadratic, embeddings, item_prompt, context)
    np.testing.assert_allclose(found, expected)
    with pytest.raises(UserError, match="prompt_embeddings: not given"):
        readout.raw_outputs(head, quadratic, embeddings, item_prompt)
    with pytest.raises(UserError, match="item_prompt: not given"):
        readout.raw_outputs(head, quadratic, embeddings, None, context)


def test_ideal_points_that_depend_on_the_mean_of_a_prompts_items():
    _, embeddings, item_prompt, head, quadratic = parts("mean")
    context = np.stack([embeddings[item_prompt == prompt].mean(axis=0) for prompt in range(2)])
    expected = by_hand(embeddings, item_prompt, head, quadratic, context)
    np.testing.assert_allclose(readout.raw_outputs(head, quadratic, embeddings, item_prompt), expected)


def test_means_of_prompts():
    values = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0], [9.0, 0.0]])
    means = readout.prompt_means(values, np.array([0, 0, 0, 2]))
    np.testing.assert_array_equal(means, [[3.0, 3.0], [0.0, 0.0], [9.0, 0.0]])


def test_the_folded_readout_is_the_readout():
    rng, embeddings, _, head, quadratic = parts()
    own = Readout(head, quadratic, rng.normal(size=K), rng.normal(size=(K, K)))
    np.testing.assert_allclose(
        own.folded()(embeddings.astype(np.float32)), own.features(embeddings), rtol=1e-4, atol=1e-4
    )
    expected = (by_hand(embeddings, None, head, quadratic, None) - own.mean) @ own.change.T
    np.testing.assert_allclose(own.features(embeddings), expected, rtol=1e-4, atol=1e-4)
