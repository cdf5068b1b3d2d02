"""One bit turned in any file of a run: it is refused by name, or says what it said before; never anything else."""

import numpy as np
import pytest

from rewards import hashed
from rewards.api import calibrate
from rewards.api.fitting import fit
from rewards.basis import meaning
from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rewards.methods.store import load_model
from rewards.people import records
from rewards.people.calibration import Calibration
from rewards.people.pool import read_pool
from rewards.people.population import load_people
from rlhf.run.directory import RESULT, read_result
from rlhf.run.metrics import FILE, MetricWriter, read_metrics
from tests.rewards.planted import planted

FLIPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small reward run with every kind of file."""
    folder = tmp_path_factory.mktemp("flips") / "run"
    prefs = planted(0, width=6, num_basis=2, num_users=12, pairs=20, num_items=60, spread=2.0).prefs
    fitted = fit(prefs, num_basis=2, dims=6, rounds=3)
    fitted.save(folder)
    if not (folder / calibrate.FILE).is_file():
        made = Calibration((1, 5), (1.2, 1.1), (1.1, 1.05))
        hashed.write_record(folder / calibrate.FILE, {"basis": fitted.basis.hash} | made.to_json())
    hashed.write_record(folder / RESULT, {"accuracy": 0.71, "axes": ["a", "b"]})
    with MetricWriter(folder, num_steps=5) as writer:
        for step in range(1, 6):
            writer.write(step, {"train/loss": 1.0 / step})
    return folder


def model_of(folder):
    fitted = load_model(folder)
    return [fitted.tensors(), fitted.settings()]


def run_of(folder):
    run = load_reward_run(folder)
    return [
        run.hash,
        run.prior.mean,
        run.prior.cov,
        run.basis.head,
        run.basis.gauge,
        run.basis.encoder,
        run.extra,
    ]


def record_of(folder):
    return records.load(folder / "users", "user 3", load_reward_run(folder))


FILES = {
    "model.json": model_of,
    "model.safetensors": model_of,
    "basis.json": run_of,
    "basis.safetensors": run_of,
    "axes.json": lambda folder: meaning.read(load_reward_run(folder)),
    "population.json": lambda folder: load_people(load_reward_run(folder)),
    "population.safetensors": lambda folder: load_people(load_reward_run(folder)),
    "questions.json": lambda folder: [vars(question) for question in read_pool(load_reward_run(folder))],
    calibrate.FILE: lambda folder: calibrate.read(load_reward_run(folder)),
    f"users/{records.file_name('user 3')}": record_of,
    RESULT: read_result,
    FILE: read_metrics,
}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_never_used(folder, name):
    path, read = folder / name, FILES[name]
    whole, expected = path.read_bytes(), read(folder)
    rng = np.random.default_rng(len(name))
    refused = 0
    try:
        for place, bit in zip(rng.integers(0, len(whole), FLIPS), rng.integers(0, 8, FLIPS), strict=True):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = read(folder)
            except UserError as error:
                assert path.name in str(error) and "\n" not in str(error)
                refused += 1
                continue
            if name == FILE:  # a last line that looks torn by a kill is left out
                assert found in (expected, expected[:-1])
            else:
                assert repr(found) == repr(expected)
    finally:
        path.write_bytes(whole)
    assert refused > FLIPS // 2
