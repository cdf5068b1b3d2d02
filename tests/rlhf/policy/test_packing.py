"""Token trees give every completion the log-probs and gradients of a row of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.errors import UserError
from rlhf.models.adapters import AdapterSpec
from rlhf.policy.logprobs import sequence_logprobs
from rlhf.policy.packing import Sequences, fill_rows, pack
from tests.rlhf import tiny

SPEC = AdapterSpec(lora_rank=2, lora_alpha=2.0, num_basis=3, basis_rank=2)
# Shared prefixes, a completion that is a prefix of another, equal completions, two prompts of which one is a
# prefix of the other, and rows of different sizes.
ROWS = [
    [Sequences((1, 5, 6, 7), ((8, 9, 10, 2), (8, 9, 2), (8, 9), (11, 2), (8, 9, 2)))],
    [Sequences((1, 5, 6), ((7, 8, 9, 2), (4, 2))), Sequences((1, 5, 6, 7), ((8, 9, 3), (3, 3, 3, 3, 3, 2)))],
    [Sequences((3,), ((4,),))],
]


def flat(rows):
    """(row, prompt, completion) of every completion, in the order of `member`."""
    return [(r, g.prompt, c) for r, groups in enumerate(rows) for g in groups for c in g.completions]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3"])
def test_log_probs_and_gradients_equal_separate_rows(kind):
    policy = tiny.make_policy(tiny.make_base(tiny.make_config(kind)), SPEC)
    packed, examples = pack(ROWS, multiple=8), flat(ROWS)
    z = np.random.default_rng(0).standard_normal((len(ROWS), 3)).astype(np.float32)
    used = packed.member.any(axis=2)
    row, prompts, completions = zip(*examples, strict=True)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(len(examples)), jnp.float32)

    def in_tree(adapters, z, packed):
        values = sequence_logprobs(policy.graphdef, policy.params._replace(**adapters), packed, z)[used]
        return weight @ values, values

    def apart(adapters, z, arrays):
        params = policy.params._replace(**adapters)
        values = tiny.separate_logprobs(policy.graphdef, params, arrays, z[np.array(row)])
        return weight @ values, values

    arrays = tiny.separate_rows(prompts, completions)
    adapters = {"lora": policy.params.lora, "conditioner": policy.params.conditioner}
    grads = [
        jax.grad(f, argnums=(0, 1), has_aux=True)(adapters, z, data)
        for f, data in ((in_tree, packed), (apart, arrays))
    ]
    (tree_grads, tree_values), (own_grads, own_values) = grads
    assert np.ptp(own_values) > 1  # they differ among themselves
    np.testing.assert_allclose(tree_values, own_values, atol=1e-5, rtol=1e-5)
    for mine, wanted in zip(jax.tree.leaves(tree_grads), jax.tree.leaves(own_grads), strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-4 * max(1.0, float(jnp.abs(wanted).max())))


def test_padding_changes_nothing():
    policy = tiny.make_policy(tiny.make_base(tiny.make_config("gemma3")), SPEC)
    z = np.ones((len(ROWS), 3), np.float32)
    tight, wide = (
        sequence_logprobs(policy.graphdef, policy.params, pack(ROWS, multiple=m), z) for m in (1, 32)
    )
    np.testing.assert_allclose(tight, wide, atol=1e-5)


def test_a_shared_prefix_is_stored_once_and_padding_scores_nothing():
    packed = pack(ROWS, multiple=1)
    real = packed.end > np.arange(packed.tokens.shape[1])[None]
    assert real.all()
    # 4 prompt tokens; 8 9 10 2 · 2 (after 9) · 11 2
    assert packed.end[0, 0] == 11
    assert packed.member[0].sum(axis=1).tolist() == [4, 3, 2, 2, 3]
    assert (packed.member[0, 1] == packed.member[0, 4]).all()  # equal completions are the same nodes
    np.testing.assert_array_equal(packed.member[2].sum(axis=1), [1, 0, 0, 0, 0])


tokens = st.integers(3, 6)
groups = st.builds(
    Sequences,
    st.lists(tokens, min_size=1, max_size=4).map(tuple),
    st.lists(st.lists(tokens, min_size=1, max_size=4).map(tuple), min_size=1, max_size=5).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(groups, min_size=1, max_size=3))
def test_every_node_sees_exactly_its_own_prefix(row):
    """Read back from the arrays alone: what a scored node and the ancestors it may see spell."""
    packed = pack([row], multiple=1)
    index = np.arange(packed.tokens.shape[1])
    for c, (_, prompt, completion) in enumerate(flat([row])):
        nodes = packed.scored[0, packed.member[0, c]]
        assert packed.tokens[0, nodes].tolist() == list(completion)
        last = nodes[-1]
        seen = index[(index <= last) & (last < packed.end[0])]
        assert packed.tokens[0, seen].tolist() == [*prompt, *completion]
        assert packed.positions[0, seen].tolist() == list(range(len(seen)))
        heads = packed.heads[0, packed.scored_head[0, packed.member[0, c]]]
        assert heads.tolist() == seen[len(prompt) - 1 : -1].tolist()


def test_empty_parts_are_refused():
    for group in (Sequences((), ((1,),)), Sequences((1,), ((),))):
        with pytest.raises(ValueError, match="no tokens"):
            pack([[group]])


@settings(max_examples=60, deadline=None)
@given(st.lists(groups, min_size=1, max_size=12), st.integers(8, 20))
def test_filled_rows_hold_every_example_once_within_the_length(many, length):
    singles = [Sequences(g.prompt, g.completions[:1]) for g in many]
    rows = fill_rows(singles, length)
    assert sorted(group for row in rows for group in row) == sorted(singles)
    for row in rows:
        distinct = {
            tuple((*g.prompt, *g.completions[0])[: n + 1])
            for g in row
            for n in range(len(g.prompt) + len(g.completions[0]))
        }
        assert len(distinct) <= length


def test_an_example_longer_than_a_row_is_named():
    with pytest.raises(
        UserError, match=r"train.row_length: 4 .* example of 6; set train.row_length to at least 6"
    ):
        fill_rows([Sequences((1, 2, 3), ((4, 5, 6),))], 4)
