"""What goes wrong is said while the run goes on, once, and stands in the report."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rlhf.train import loop as train
from rlhf.train.callbacks import Checkpoints, Metrics
from rlhf.train.diagnosis.detectors import diagnose
from rlhf.train.optim import TrainState
from rlhf.train.rl.watch import Watch
from rlhf.train.trained import close
from tests.rlhf.train.diagnosis.test_detectors import faulty, healthy

STEPS, EVERY = 20, 4


def run_of(tmp_path, rows):
    """A loop whose metrics are drawn up; returns after 20 steps and five checkpoints."""
    run = SimpleNamespace(directory=tmp_path, results=[])
    run.write_result = run.results.append
    state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(2)}, {}, jax.random.key(0))

    def step(state, number):
        metrics = {name: value for name, value in rows[number].items() if name != "step"}
        return state._replace(step=state.step + 1), metrics

    settings = SimpleNamespace(steps=STEPS, checkpoint_every=EVERY, max_skips=0)
    train.run_steps(
        state,
        step,
        lambda number: number,
        settings,
        tokens_per_step=1,
        callbacks=[
            Metrics(tmp_path, 1, "toy", ("train/reward",)),
            Watch(tmp_path),
            Checkpoints(tmp_path, keep=1),
        ],
    )
    return run


@pytest.mark.parametrize("fault", ["sampler_mismatch", "cut_short", None])
def test_a_finding_is_printed_once_at_the_first_checkpoint_that_shows_it(tmp_path, capsys, fault):
    run_of(tmp_path, faulty(fault) if fault else healthy())
    said = [line for line in capsys.readouterr().err.splitlines() if "docs/rl-diagnosis.md" in line]
    assert len(said) == (1 if fault else 0)
    assert fault is None or f": {fault} at step {EVERY} (" in said[0] and said[0].endswith(f"#{fault}")


@pytest.mark.parametrize(
    ("fault", "status"), [("sampler_mismatch", "lost"), ("cut_short", None), (None, None)]
)
def test_the_report_names_it_first(tmp_path, monkeypatch, fault, status):
    run = run_of(tmp_path, faulty(fault) if fault else healthy())
    monkeypatch.setattr("rlhf.train.trained.read_result", lambda path: {})
    close(run, SimpleNamespace(num_rows=1, record={}), diagnose)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    verdict = text[text.index('class="verdict') : text.index("<h1>")]
    assert (f"Found: {fault}" in verdict) == bool(fault) == ("What goes wrong" in text)
    assert status is None or f'class="verdict {status}"' in verdict
    if fault:
        [finding] = diagnose(faulty(fault)[:STEPS])
        assert all(f"{key}: {what}".replace("_", "_<wbr>") in text for key, what in finding.changes)
