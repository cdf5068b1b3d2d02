"""The contract of every kind of conditioner: exactness, rows apart, gradients, decoding, files, merging, cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rewards import hashed
from rewards.errors import UserError
from rewards.files import sha256_file
from rlhf.models import conditioners
from rlhf.models.adapters import AdapterSpec, Words
from rlhf.models.conditioner_kinds import KINDS
from rlhf.models.tokenizer import Tokenizer
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import init_adapters, sequence_logprobs
from rlhf.policy.packing import Sequences, pack
from rlhf.policy.sampling import SamplingSettings, generate, left_pad, row_keys
from tests.rlhf import tiny

K = 3
# Seven levels an axis, of unequal length, the middle one silent; the words follow token 1, which opens every prompt.
WORDS = Words(
    (
        ((20, 21), (22,), (23,), (), (24,), (25, 26), (27,)),
        ((19,), (18,), (17,), (), (16,), (15,), (14, 13, 12)),
        ((3, 4), (4, 5), (5, 6), (), (6, 7), (7, 8), (8, 9)),
    ),
    (1,),
)
LORA = {"lora_rank": 2, "lora_alpha": 3.0, "num_basis": K}
SPECS = {
    "low_rank": AdapterSpec(**LORA, basis_rank=2),
    "film": AdapterSpec(**LORA, kind="film"),
    "film without shift": AdapterSpec(**LORA, kind="film", shift=False),
    "prefix": AdapterSpec(**LORA, kind="prefix", slots=4),
    "logit_heads": AdapterSpec(**LORA, kind="logit_heads", basis_rank=2),
    "text": AdapterSpec(**LORA, kind="text", words=WORDS),
}
MERGES = {(name, model) for name in ("low_rank", "film without shift") for model in ("llama", "gemma2")}
MERGES |= {("logit_heads", "llama"), ("logit_heads", "qwen3")}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 30, (4, 12)).astype(np.int32)
TOKENS[:, 0] = 1
Z = np.array([[0.5, -1.0, 2.0], [-0.3, 0.0, 0.9], [1.7, 0.4, -1.6], [-2.0, -0.8, 0.1]], np.float32)
ROWS = [[Sequences((1, 5 + r), ((8, 9, 10 + r, 2), (8, 2), (r + 3, 2)))] for r in range(4)]


@pytest.fixture(scope="module", params=[name for name in SPECS if name != "film without shift"])
def name(request):
    return request.param


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def model(request):
    return request.param


def make(name: str, model: str, **settings) -> policy_store.Policy:
    return tiny.make_policy(tiny.make_base(tiny.make_config(model)), SPECS[name], **settings)


def logits(policy, z, params=None):
    return np.asarray(causal_logits(policy.graphdef, params or policy.params, TOKENS, z))


def causal_logits(graphdef, params, tokens, z):
    return tiny.causal_logits(graphdef, params, jnp.asarray(tokens), None if z is None else jnp.asarray(z))


def fresh(policy, key=0):
    lora, conditioner = init_adapters(policy.graphdef, policy.params, jax.random.key(key))
    return policy.params._replace(lora=lora, conditioner=conditioner)


def test_a_fresh_conditioner_is_the_base_for_everyone(name, model):
    policy, plain = make(name, model), tiny.make_policy(tiny.make_base(tiny.make_config(model)), None)
    base = logits(plain, None)
    np.testing.assert_allclose(logits(policy, None, fresh(policy)), base, atol=1e-5)
    difference = np.abs(logits(policy, 3.0 * Z, fresh(policy)) - base).max()
    assert (difference < 1e-5) == KINDS[policy.spec.kind].fresh_is_reference


def test_nobody_is_the_aggregate_policy_whatever_was_trained(name, model):
    policy = make(name, model)
    aggregate = logits(policy, None)
    np.testing.assert_allclose(logits(policy, np.zeros_like(Z)), aggregate, atol=1e-5)
    assert np.abs(logits(policy, Z) - aggregate).max(axis=(1, 2)).min() > 0.02  # idle for nobody


def test_every_row_has_its_own_person(name, model):
    policy = make(name, model)
    together = logits(policy, Z)
    for row in range(4):
        changed = np.where(np.arange(4)[:, None] == row, Z, -2.0 * Z)
        np.testing.assert_allclose(logits(policy, changed)[row], together[row], atol=1e-5)


def test_gradients_reach_every_factor(name):
    """At the start the zero factors and LoRA's outputs move; once moved, everything does."""
    policy = make(name, "llama")

    def loss(trained, params):
        own = params._replace(lora=trained[0], conditioner=trained[1])
        logprobs = jax.nn.log_softmax(causal_logits(policy.graphdef, own, TOKENS, Z))
        return jnp.mean(logprobs[..., 7])

    for params, all_move in ((fresh(policy), False), (policy.params, True)):
        gradient = jax.grad(loss)((params.lora, params.conditioner), params)
        paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(np.asarray, gradient))
        for path, leaf in paths:
            factor = [str(key.key) for key in path if hasattr(key, "key")][-1]
            assert np.isfinite(leaf).all()
            if all_move or conditioners.starts_at_zero(factor):
                assert np.abs(leaf).max() > 1e-7, factor


def test_decoding_with_a_cache_is_a_teacher_forced_pass(name):
    policy = make(name, "gemma2")
    prompts = [[1, 5, 6, 7, 9, 11, 13], [1, 9], [1], [1, 20, 21, 22, 5]]
    tokens, starts = left_pad(prompts)
    samples = generate(
        policy.params,
        tokens,
        starts,
        Z,
        row_keys(0, np.arange(4)),
        SamplingSettings.of(4),
        np.array([2], np.int32),
        graphdef=policy.graphdef,
        max_new_tokens=6,
        filtered=False,
    )
    tokens, logprobs, mask = (np.asarray(part) for part in samples)
    texts = [tokens[row, mask[row]].tolist() for row in range(4)]
    forced = tiny.separate_logprobs(policy.graphdef, policy.params, tiny.separate_rows(prompts, texts), Z)
    np.testing.assert_allclose(logprobs.sum(axis=1), forced, atol=1e-4)


def test_a_tree_of_completions_is_its_rows_one_by_one(name):
    policy = make(name, "gemma2")
    packed = sequence_logprobs(policy.graphdef, policy.params, pack(ROWS), Z)
    flat = [
        (group.prompt, completion, Z[row])
        for row, (group,) in enumerate(ROWS)
        for completion in group.completions
    ]
    prompts, completions, z = zip(*flat, strict=True)
    rows = tiny.separate_rows(prompts, completions)
    one_by_one = tiny.separate_logprobs(policy.graphdef, policy.params, rows, np.stack(z))
    np.testing.assert_allclose(np.ravel(packed), one_by_one, atol=1e-4)


def test_a_wrong_number_of_coefficients_is_refused(name):
    policy = make(name, "llama")
    with pytest.raises(ValueError, match="2 coefficients, the conditioner 3"):
        logits(policy, Z[:, :2])


# Gemma: two stages, a soft cap, norms that store scale − 1. Qwen: an unembedding of its own.
@pytest.mark.parametrize(
    "name, model",
    [*((name, model) for name in SPECS for model in ("llama", "gemma2")), ("logit_heads", "qwen3")],
)
def test_a_merged_person_is_the_conditioned_policy(name, model):
    layers = 2 if model == "gemma2" and name != "text" else None
    base = tiny.make_base(tiny.make_config(model), adapter_layers=layers)
    policy = tiny.make_policy(base, SPECS[name])
    for z in (None, Z[0]) if model == "llama" else (Z[0],):
        if z is not None and (name, model) not in MERGES:
            with pytest.raises(UserError, match="cannot be merged: .*(export the aggregate policy)") as error:
                policy_store.merge_adapters(policy, z)
            assert "\n" not in str(error.value)
            continue
        tree = policy_store.merge_adapters(policy, z)
        config = dataclasses.replace(base.config, tied="head" not in tree)
        plain = tiny.make_policy(dataclasses.replace(base, tree=tree, config=config), None)
        rows = None if z is None else np.tile(z, (4, 1))
        np.testing.assert_allclose(logits(plain, None), logits(policy, rows), atol=2e-5)


@pytest.mark.parametrize("name", SPECS)
def test_cost_is_what_the_arrays_and_the_compiler_say(name):
    """FLOPs by XLA's count of a long forward pass with and without z."""
    # XLA counts the body of a loop over layers once; wide heads, because it also counts the exponentials.
    config = tiny.make_config(num_hidden_layers=1, hidden_size=64, head_dim=32, intermediate_size=256)
    policy = tiny.make_policy(tiny.make_base(config), SPECS[name])
    cost = KINDS[policy.spec.kind].cost(policy.spec, config, 1)
    assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(policy.params.conditioner))
    tokens = np.tile(TOKENS[:1], (1, 8))  # one row of 96 tokens

    def flops(z):
        lowered = tiny.causal_logits.lower(policy.graphdef, policy.params, tokens, z)
        return lowered.cost_analysis()["flops"]

    counted = flops(Z[:1]) - flops(None)
    assert counted == pytest.approx(cost.per_token * tokens.size + cost.per_row, rel=0.35)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("conditioners") / "model")


@pytest.mark.parametrize("name", SPECS)
def test_a_policy_comes_back_from_its_files_or_not_at_all(name, directory, tmp_path):
    base = policy_store.load_base(directory, adapter_layers=None, dtype="float32")
    policy = tiny.make_policy(base, SPECS[name])
    record = {"base": str(directory), "base_fingerprint": base.fingerprint, "adapter_layers": None}
    record |= {"dtype": "float32", "kind": "dpo"}
    policy_store.save_policy(tmp_path, policy.params, policy.spec, record, full=False)
    loaded = policy_store.load_policy(tmp_path)
    assert loaded.spec == policy.spec and loaded.graphdef == policy.graphdef
    for ours, theirs in zip(jax.tree.leaves(policy.params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    weights, stored = tmp_path / "policy" / "weights.safetensors", tmp_path / "policy" / "policy.json"
    tensors = load_file(weights)
    role = "lora" if name == "text" else "conditioner"
    first = next(key for key in tensors if key.startswith(role))

    def refuse(changed, message):
        save_file(changed, weights)
        hashed.write_record(stored, hashed.read_record(stored) | {"weights_sha256": sha256_file(weights)})
        with pytest.raises(UserError, match=message):
            policy_store.load_policy(tmp_path)

    refuse(
        {key: value for key, value in tensors.items() if key != first},
        "is missing; restore it or train again",
    )
    refuse(tensors | {"conditioner.more": tensors[first]}, "'conditioner.more' is not part of this policy")
    refuse(tensors | {first: tensors[first][..., :1]}, f"'{first}' is float32")


def test_a_low_rank_record_is_what_it_always_was():
    values = {"lora_rank": 2, "lora_alpha": 3.0, "num_basis": K, "basis_rank": 2}
    assert SPECS["low_rank"].record() == values
    assert AdapterSpec.from_record(values) == SPECS["low_rank"]


def test_logit_heads_must_be_told_whose_logits():
    policy = make("logit_heads", "llama")
    decoder = nnx.merge(policy.graphdef, *policy.params)
    hidden = jnp.ones((1, 2, 16))
    with pytest.raises(ValueError, match="say whose logits"):
        decoder.logits(hidden)
    plain = tiny.make_policy(tiny.make_base(tiny.make_config()), None)
    expected = nnx.merge(plain.graphdef, *plain.params).logits(hidden)
    np.testing.assert_allclose(decoder.logits(hidden, None), expected, atol=1e-6)


def test_prefix_slots_are_what_their_equation_says():
    """One head and one slot at a time, in loops."""
    config, rng = tiny.make_config(), np.random.default_rng(2)
    module = conditioners.Prefix(config, SPECS["prefix"], nnx.Rngs(0))
    module.prefix_values[...] = jnp.asarray(rng.normal(size=(K, 4, 8)), jnp.float32)
    keys, values = (np.asarray(part[...], np.float64) for part in (module.prefix_keys, module.prefix_values))
    query = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    wanted = np.zeros((2, 3, 4, 4))
    for b, t, head in np.ndindex(2, 3, 4):
        group = slice(4 * (head // 2), 4 * (head // 2) + 4)  # two query heads share a key/value head
        weight = np.exp([query[b, t, head] @ keys[m, group] / 2.0 for m in range(4)])
        for m in range(4):
            own = sum(Z[b, k] * values[k, m, group] for k in range(K))
            wanted[b, t, head] += weight[m] / weight.sum() * own
    np.testing.assert_allclose(module(jnp.asarray(query), jnp.asarray(Z[:2])), wanted, atol=1e-5)
    assert config.num_kv_heads == 2 and config.query_scale == 0.5


def test_film_scales_and_shifts_normed_inputs():
    module = conditioners.FiLM(16, SPECS["film"])
    rng = np.random.default_rng(3)
    scale, shift = (rng.normal(size=(K, 16)).astype(np.float32) for _ in range(2))
    module.film_scale[...], module.film_shift[...] = jnp.asarray(scale), jnp.asarray(shift)
    x = rng.normal(size=(4, 5, 16)).astype(np.float32)
    for row in range(4):
        wanted = x[row] * (1.0 + Z[row] @ scale) + Z[row] @ shift
        np.testing.assert_allclose(module(jnp.asarray(x), jnp.asarray(Z))[row], wanted, atol=1e-5)


def test_text_is_the_prompt_with_words_typed_into_it(model):
    policy = make("text", model)
    for z in Z:
        levels = [int(np.sum(np.asarray(conditioners.THRESHOLDS) < value)) for value in z]
        typed = [token for axis, level in zip(WORDS.phrases, levels, strict=True) for token in axis[level]]
        assert typed
        long = np.concatenate([[1], typed, TOKENS[0, 1:]]).astype(np.int32)[None]
        wanted = causal_logits(policy.graphdef, policy.params, long, None)[0, 1 + len(typed) :]
        ours = causal_logits(policy.graphdef, policy.params, TOKENS[:1], z[None])[0, 1:]
        np.testing.assert_allclose(ours, wanted, atol=2e-5)


def test_words_say_how_far_a_person_is_from_the_average():
    names = ("warmth", "length", "order")
    assert conditioners.text_of(np.array([2.0, 0.1, -0.5]), names) == "far more warmth. slightly less order. "
    assert conditioners.text_of(np.zeros(3), names) == ""

    class Letters:
        begin_ids = (9,)

        def encode_completion(self, text):
            return [*map(ord, text), 0]

    words = conditioners.make_words(Letters(), names)
    for z in (*Z, np.zeros(3, np.float32)):
        tokens, valid = conditioners.write_words(words, jnp.asarray(z)[None])
        assert tokens[0, 0] == 9 and valid[0, 0]
        written = "".join(chr(token) for token in np.asarray(tokens[0, 1:])[np.asarray(valid[0, 1:])])
        assert written == conditioners.text_of(z, names)


@pytest.mark.parametrize("opening", [[], [7], [7, 8, 9]])
def test_words_stand_where_a_users_message_starts(opening):
    tokenizer = object.__new__(Tokenizer)
    tokenizer.encode_prompt = lambda text: [*opening, *map(ord, text), 5]
    assert tokenizer.begin_ids == tuple(opening)


def test_text_needs_every_layer_in_one_stage():
    with pytest.raises(ValueError, match="one stage"):
        tiny.make_policy(tiny.make_base(tiny.make_config(), adapter_layers=1), SPECS["text"])
