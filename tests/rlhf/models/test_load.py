"""Reading Hugging Face directories: right values, and an error that names the tensor for everything else."""

import contextlib
import json
import os
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rewards.errors import UserError
from rlhf.models import fetch, layout, load
from rlhf.models.config import ModelConfig
from tests.rlhf.models import families

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def qwen3_dir(tmp_path_factory):
    return families.save_model("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def directory(qwen3_dir, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(qwen3_dir, tmp_path / "model")


def load_all(directory, stages=(4,), dtype=jnp.float32):
    return load.load_params(directory, ModelConfig.from_hf(load.read_hf_config(directory)), stages, dtype)


def edit_weights(directory, edit):
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def test_tree_holds_the_tensors_of_the_file(qwen3_dir):
    tree, tensors = load_all(qwen3_dir, (3, 1)), load_file(qwen3_dir / WEIGHTS)
    np.testing.assert_array_equal(tree["embed"]["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(tree["final_norm"]["scale"], tensors["model.norm.weight"])
    names = {
        ("attn", "q", "kernel"): "self_attn.q_proj.weight",
        ("attn", "o", "kernel"): "self_attn.o_proj.weight",
        ("attn", "k_norm", "scale"): "self_attn.k_norm.weight",
        ("pre_mlp", "scale"): "post_attention_layernorm.weight",
        ("mlp", "down", "kernel"): "mlp.down_proj.weight",
    }
    for layer, (stage, row) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0)]):
        for path, name in names.items():
            leaf = tree["stages"][stage]
            for key in path:
                leaf = leaf[key]
            np.testing.assert_array_equal(leaf[row], tensors[f"model.layers.{layer}.{name}"].numpy().T)


def test_a_stack_is_filled_a_matrix_at_a_time(qwen3_dir, monkeypatch):
    """What is on its way from the files to the device is never more than one tensor of one layer."""
    made, sizes, plain = load.place.made, [], load_all(qwen3_dir, (3, 1))

    def spied(path, shape, dtype, part):
        sizes.append((path[-2:], len(shape)))
        return made(path, shape, dtype, part)

    monkeypatch.setattr(load.place, "made", spied)
    tree = load_all(qwen3_dir, (3, 1))
    assert sizes.count((("down", "kernel"), 2)) == 4 and max(rank for _, rank in sizes) == 2
    assert tree["stages"][0]["mlp"]["down"]["kernel"].shape[0] == 3
    jax.tree.map(np.testing.assert_array_equal, tree, plain)


def test_shards_give_the_same_tree(qwen3_dir, tmp_path):
    families.save_model("qwen3", tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    whole, shards = load_all(qwen3_dir), load_all(tmp_path)
    np.testing.assert_array_equal(whole["embed"]["embedding"], shards["embed"]["embedding"])
    np.testing.assert_array_equal(
        whole["stages"][0]["mlp"]["up"]["kernel"], shards["stages"][0]["mlp"]["up"]["kernel"]
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_one_number_that_is_not_finite_is_found(dtype):
    largest = float(jnp.finfo(dtype).max)
    array = np.array([[0.0, -0.0, largest], [-largest, 1.0, -1.0]]).astype(dtype)
    assert load._finite(array) and load._finite(array.T)
    for value in (np.inf, -np.inf, np.nan, -np.nan):
        array[1, 2] = value
        assert not load._finite(array) and not load._finite(array.T)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_files(directory, stored):
    edit_weights(directory, lambda t: t.update({name: value.to(stored) for name, value in t.items()}))
    expected = load_file(directory / WEIGHTS)["model.norm.weight"]
    np.testing.assert_array_equal(load_all(directory)["final_norm"]["scale"], expected.float().numpy())
    kernel = load_all(directory, dtype=jnp.bfloat16)["stages"][0]["attn"]["q"]["kernel"]
    assert kernel.dtype == jnp.bfloat16


def test_vision_models_give_their_language_model(tmp_path):
    text = families.make_model("gemma3_text").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    tokens, real = families.padded_batch()
    tokens, real = tokens[:1], real[:1]
    actual = families.decoder_logits(families.load_decoder(tmp_path), tokens, real)
    np.testing.assert_allclose(actual, families.torch_logits(model, tokens, real), atol=1e-4)


def test_known_leftovers_are_ignored(directory):
    """Rotary buffers of older files, and the copy of a tied head."""
    edit_weights(
        directory,
        lambda t: t.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
                "lm_head.weight": t["model.embed_tokens.weight"].clone(),
            }
        ),
    )
    load_all(directory)


def drop(name):
    return lambda directory: edit_weights(directory, lambda t: t.pop(name))


def add(name, tensor):
    return lambda directory: edit_weights(directory, lambda t: t.update({name: tensor}))


def truncate(directory):
    os.truncate(directory / WEIGHTS, (directory / WEIGHTS).stat().st_size - 100)


def truncate_to(size):
    return lambda directory: os.truncate(directory / WEIGHTS, size)


def pickle_only(directory):
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def write_index(weight_map):
    def damage(directory):
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


BAD = {
    "missing tensor": (
        drop("model.layers.2.mlp.up_proj.weight"), "tensor model.layers.2.mlp.up_proj.weight missing"
    ),
    "missing head": (
        lambda d: families.rewrite_config(d, tie_word_embeddings=False), "lm_head.weight missing"
    ),
    "extra tensor": (
        add("model.layers.9.mlp.up_proj.weight", torch.ones(2)), "unexpected tensor model.layers.9.mlp"
    ),
    "extra bias": (
        add("model.layers.0.self_attn.q_proj.bias", torch.ones(64)),
        "unexpected tensor model.layers.0.self_attn.q_proj.bias"
    ),
    "wrong shape": (
        add("model.layers.1.self_attn.k_proj.weight", torch.ones(31, 32)),
        "model.layers.1.self_attn.k_proj.weight has shape [31, 32], config.json asks for [32, 32]",
    ),
    "transposed": (
        add("model.layers.1.mlp.up_proj.weight", torch.ones(32, 48)),
        "has shape [32, 48], config.json asks for [48, 32]"
    ),
    "integers": (
        add("model.norm.weight", torch.ones(32, dtype=torch.int8)), "model.norm.weight is stored as I8"
    ),
    "8-bit floats": (
        add("model.norm.weight", torch.ones(32).to(torch.float8_e4m3fn)),
        "model.norm.weight is stored as F8_E4M3"
    ),
    "truncated": (truncate, "model.safetensors: truncated or damaged"),
    "truncated header": (truncate_to(40), "model.safetensors: truncated or damaged"),
    "empty": (truncate_to(0), "model.safetensors: truncated or damaged"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "model.safetensors: missing"),
    "pickle": (pickle_only, "pytorch_model.bin is a pickle and is never read"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json: missing"),
    "config no JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: not valid JSON"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), "must be a JSON object, is a list"),
    "no directory": (shutil.rmtree, "no such model directory"),
    "missing shard": (
        write_index({"a": "model-2.safetensors"}), "model-2.safetensors: missing, but model.safetensors.index"
    ),
    "wrong index": (write_index({"a": WEIGHTS}), "tensor a is listed in the index only"),
    "index outside": (write_index({"a": "../x.safetensors"}), "'../x.safetensors' must be a file name"),
    "index empty": (write_index({}), "weight_map: missing or empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_directories_are_named(directory, case):
    damage, message = BAD[case]
    damage(directory)
    with pytest.raises(UserError) as error:
        load_all(directory)
    assert message in str(error.value)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def test_resolve_model_knows_directories_and_suggests_names(tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    assert load.resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setattr(fetch, "fetch", lambda name: tmp_path / name)
    assert load.resolve_model("smollm2-135m") == tmp_path / "smollm2-135m"
    for name, message in {
        "smolm2-135m": "did you mean 'smollm2-135m'",
        str(tmp_path / "nothing"): "no such model",
        str(tmp_path / "nothing.gguf"): "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            load.resolve_model(name)


def test_hub_that_never_answers_is_given_up_soon(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(fetch, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: time.sleep(5))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"owner/model: the hub cannot be reached \(no answer within 0.2 s\)"):
        load.resolve_model("owner/model")
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("family", ["phi3", "qwen3"])
def test_a_part_of_a_tensor_is_read_alone_and_is_that_part_of_the_whole(family, tmp_path):
    """As the shards of a device are read; Phi-3 keeps q, k and v in one tensor of the file."""
    directory = families.save_model(family, tmp_path)
    config = ModelConfig.from_hf(load.read_hf_config(directory))
    with contextlib.ExitStack() as stack:
        files = load._Checkpoint(directory, stack)
        for leaf in layout.layer_leaves(config):
            name = layout.layer_name(1, leaf)
            whole = files.read(name, leaf, jnp.float32, tuple(slice(0, size) for size in leaf.shape))
            part = tuple(slice(size // 4, size // 2) for size in leaf.shape)
            np.testing.assert_array_equal(files.read(name, leaf, jnp.float32, part), whole[part])
