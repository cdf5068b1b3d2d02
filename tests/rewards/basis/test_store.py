import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from rewards import files, hashed
from rewards.basis import gauge, store
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.types import GroupPrior


def make_run(seed=0):
    rng = np.random.default_rng(seed)
    embeddings, factor = rng.normal(size=(40, 12)).astype(np.float32), rng.normal(size=(3, 3))
    prior = GroupPrior(rng.normal(size=3), factor @ factor.T + np.eye(3))
    basis, prior, _ = gauge.canonicalise(
        rng.normal(size=(12, 3)), prior, embeddings, np.zeros(40, int), encoder={"kind": "lm", "layer": 15}
    )
    return basis, prior, embeddings


def test_round_trip_is_exact(tmp_path):
    basis, prior, embeddings = make_run()
    identity = store.save_reward_run(tmp_path / "run", basis, prior, extra={"accuracy": 0.7})
    run = store.load_reward_run(tmp_path / "run")
    np.testing.assert_array_equal(
        Readout.of(run.basis).features(embeddings), Readout.of(basis).features(embeddings)
    )
    np.testing.assert_array_equal(run.prior.mean, prior.mean)
    np.testing.assert_array_equal(run.prior.cov, prior.cov)
    assert run.hash == identity and run.extra == {"accuracy": 0.7}
    assert run.basis.encoder == basis.encoder and run.basis.gauge.names == basis.gauge.names


def test_hash_covers_head_gauge_and_encoder():
    basis, _, _ = make_run()
    versions = [
        basis,
        dataclasses.replace(basis, head=basis.head + np.float32(1e-4)),
        dataclasses.replace(basis, encoder=basis.encoder | {"layer": 14}),
        dataclasses.replace(basis, gauge=dataclasses.replace(basis.gauge, signs=-basis.gauge.signs)),
        dataclasses.replace(basis, gauge=dataclasses.replace(basis.gauge, encoder_hash="other")),
    ]
    assert len({store.basis_hash(version) for version in versions}) == len(versions)


def rewrite(path, change):
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def edit_record(path, change):
    record = hashed.read_record(path)
    change(record)
    hashed.write_record(path, record)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, j: rewrite(t, lambda x: x.pop("head")), "'head' is missing"),
        (lambda t, j: rewrite(t, lambda x: x.update(more=np.zeros(1, np.float32))), "'more' is not part"),
        (
            lambda t, j: rewrite(t, lambda x: x.update(head=x["head"][:, :2].copy())),
            r"'head' is float32\[12, 2\]",
        ),
        (lambda t, j: rewrite(t, lambda x: x.update(head=x["head"].astype(np.float16))), "float16"),
        (lambda t, j: flip_bit(t), "bytes differ"),
        (lambda t, j: t.write_bytes(t.read_bytes()[:200]), "not a readable safetensors"),
        (lambda t, j: t.unlink(), "no such file"),
        (lambda t, j: j.unlink(), "not a finished reward run"),
        (lambda t, j: j.write_text("{"), "not valid JSON"),
        (lambda t, j: edit_record(j, lambda r: r.pop("encoder")), "'encoder' is missing"),
        (lambda t, j: edit_record(j, lambda r: r.update(extra_key=1)), "'extra_key' is not part"),
        (lambda t, j: edit_record(j, lambda r: r["encoder"].update(layer=3)), "basis_hash does not belong"),
        (lambda t, j: edit_record(j, lambda r: r.update(format="x")), "format 'x'"),
        (lambda t, j: j.write_text(j.read_text().replace("lm", "ln")), "differs"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    basis, prior, _ = make_run()
    store.save_reward_run(tmp_path, basis, prior)
    damage(tmp_path / store.TENSORS, tmp_path / store.RECORD)
    with pytest.raises(UserError, match=message) as caught:
        store.load_reward_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_run_and_no_leftovers(tmp_path):
    with pytest.raises(UserError, match="no such reward run"):
        store.load_reward_run(tmp_path / "nowhere")
    basis, prior, _ = make_run()
    store.save_reward_run(tmp_path, basis, prior)
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.RECORD, store.TENSORS]
    assert files.read_json(tmp_path / store.RECORD)["num_basis"] == 3
