"""Writing Hugging Face directories: what transformers reads back is the model."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from rewards.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.load import load_params, read_hf_config
from rlhf.models.save import save_hf
from tests.rlhf.models import families


def params_of(directory, stages):
    raw = read_hf_config(directory)
    return load_params(directory, ModelConfig.from_hf(raw), stages, jnp.float32), raw


def reload(directory):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


def last_of(stage):
    """The last matrix of the layers: of an MLP, or of its experts."""
    down = stage["mlp"]["down"]
    return down["kernel"] if isinstance(down, dict) else down


@pytest.mark.parametrize(
    "family", [name for name in families.FAMILIES if "rope" not in name and "yarn" not in name]
)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_round_trip_through_transformers(family, max_shard_bytes, tmp_path):
    model = families.make_model(family)
    model.save_pretrained(tmp_path / "in")
    params, raw = params_of(tmp_path / "in", (1, 3))
    save_hf(tmp_path / "out", params, raw, None, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "out" / "model.safetensors").exists() == (max_shard_bytes == 10**9)
    loaded = reload(tmp_path / "out")
    assert type(loaded) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokens, real = families.padded_batch()
    np.testing.assert_array_equal(
        families.torch_logits(loaded, tokens, real), families.torch_logits(model, tokens, real)
    )
    again, _ = params_of(tmp_path / "out", (4,))
    first = np.concatenate([last_of(params["stages"][i]) for i in (0, 1)])
    np.testing.assert_array_equal(last_of(again["stages"][0]), first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, tmp_path):
    model = families.make_model("qwen3")
    model.save_pretrained(tmp_path / "in")
    params, raw = params_of(tmp_path / "in", (4,))
    save_hf(tmp_path / "out", params, raw, None, dtype=dtype)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(tensor, model.state_dict()[name].to(getattr(torch, dtype))), name
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_tokenizer_files_are_copied_and_pickles_are_not(tmp_path):
    families.save_model("qwen3", tmp_path / "in")
    files = {"tokenizer.json": "{}", "chat_template.jinja": "x", "pytorch_model.bin": "x", "notes.txt": "x"}
    for name, content in files.items():
        (tmp_path / "in" / name).write_text(content)
    params, raw = params_of(tmp_path / "in", (4,))
    save_hf(tmp_path / "out", params, raw, tmp_path / "in")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja",
    }  # fmt: skip
    assert (
        tmp_path / "out" / "model.safetensors"
    ).stat().st_mode & 0o044  # readable by others, as the umask says


def test_refusals_leave_nothing(tmp_path):
    families.save_model("qwen3", tmp_path / "in")
    params, raw = params_of(tmp_path / "in", (4,))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(UserError, match="exists already; choose another folder"):
        save_hf(tmp_path / "full", params, raw, None)
    with pytest.raises(UserError, match="dtype: 'float8' is not supported; use one of float32"):
        save_hf(tmp_path / "out", params, raw, None, dtype="float8")
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(1e6)
    with pytest.raises(UserError, match="model.norm.weight: holds a value that is not finite in float16"):
        save_hf(tmp_path / "out", params, raw, None, dtype="float16")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write here"):
        save_hf(tmp_path / "file" / "out", params, raw, None)
    params["final_norm"]["scale"] = params["final_norm"]["scale"][1:]
    with pytest.raises(ValueError, match="model.norm.weight"):
        save_hf(tmp_path / "out", params, raw, None)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "full", "file"}
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious"]


def test_vision_configuration_becomes_the_text_model(tmp_path):
    """Gemma 3 with a vision tower is exported as the language model alone."""
    families.save_model("gemma3_text", tmp_path / "in")
    params, raw = params_of(tmp_path / "in", (4,))
    outer = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": raw}
    save_hf(tmp_path / "out", params, outer, None)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "gemma3_text" and written["architectures"] == ["Gemma3ForCausalLM"]
    reload(tmp_path / "out")
