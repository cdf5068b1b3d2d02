"""Several processes as one job: what is found, what is refused, and what a lost process leaves."""

import os
import subprocess
import sys
import time

import pytest

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.run import cluster, guard, processes
from rlhf.run.config.common import MeshConfig
from tests.rlhf.run.jobs import Job, ended

SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


@pytest.fixture
def launched(monkeypatch):
    """A launcher's variables, and no others."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "JAX_", "TPU_"))]:
        monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.fixture
def job(tmp_path):
    found = Job(tmp_path)
    yield found
    found.stop()


def test_alone_without_flags_and_launcher(launched):
    assert cluster.found(MeshConfig()) is None


def test_slurm_says_who_the_processes_are(launched):
    launched(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    place = cluster.found(MeshConfig())
    assert place is not None and place == ("node07:" + place.coordinator.rpartition(":")[2], 4, 2, [0, 1])


def test_one_task_a_node_has_all_its_devices(launched):
    launched(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"})
    place = cluster.found(MeshConfig())
    assert place is not None and place.devices is None


def test_one_task_is_no_job_of_several(launched):
    launched(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert cluster.found(MeshConfig()) is None


def test_one_process_is_alone_whatever_the_launcher_says(launched):
    launched(SLURM)
    assert cluster.found(MeshConfig(processes=1)) is None


def test_open_mpi_without_its_old_variable_needs_the_address(launched):
    launched({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"})
    with pytest.raises(UserError, match=r"mesh\.coordinator: missing.*Open MPI"):
        cluster.found(MeshConfig())
    assert cluster.found(MeshConfig(coordinator="a:1")) == ("a:1", 2, 1, None)


def test_trials_of_a_sweep_are_alone_in_a_job_of_several(launched):
    launched(SLURM | {"JAX_NUM_PROCESSES": "1"})
    assert cluster.found(MeshConfig()) is None


@pytest.mark.parametrize(
    "given, said",
    [
        ({"processes": 3}, r"mesh\.processes 3: SLURM says 4"),
        ({"process": 1}, r"mesh\.process 1: SLURM says 2"),
    ],
)
def test_flags_that_contradict_the_launcher(launched, given, said):
    launched(SLURM)
    with pytest.raises(UserError, match=said):
        cluster.found(MeshConfig(**given))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"coordinator": "a:1"}, r"mesh\.processes: missing \(mesh\.coordinator alone"),
        ({"processes": 2, "process": 0}, r"mesh\.coordinator: missing"),
        ({"coordinator": "a", "processes": 2, "process": 0}, r"mesh\.coordinator a: must be HOST:PORT"),
        *(
            ({"coordinator": host, "processes": 2, "process": 0}, r"mesh\.coordinator \S*: must be HOST:PORT")
            for host in ("ada:secret@10.0.0.1:80", "http://a:80", "a/b:80", "[::1:80", "a;b:80")
        ),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, r"mesh\.process 2: .* numbered 0 to 1"),
    ],
)
def test_flags_that_are_not_enough(launched, given, said):
    with pytest.raises(UserError, match=said):
        cluster.found(MeshConfig(**given))


def test_one_process_speaks_with_itself():
    assert processes.exchange({"a": 1}) == [{"a": 1}] and processes.is_writer()
    assert processes.from_writer(lambda: 3) == 3 and processes.together(lambda: 4) == [4]
    with pytest.raises(UserError, match="no"):
        processes.from_writer(_refuse)


def _refuse() -> None:
    raise UserError("no")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["mesh.fsdp=3"], "does not divide the"),
        (["mesh.fsdp=0"], "fsdp is 0; give a number"),
        (["mesh.tensr=2"], "did you mean 'tensor'"),
        (["--coordinator", "a:1"], "mesh.processes: missing"),
        (["--processes", "2", "--process", "0"], "mesh.coordinator: missing"),
        (["--coordinator", "a", "--processes", "2", "--process", "0"], "must be HOST:PORT"),
        (["--coordinator", "a:1", "--processes", "3", "--process", "0"], "mesh.processes 3: SLURM says 4"),
    ],
)
def test_a_command_refuses_them_in_one_line_before_it_reads_a_model(given, said, launched, capsys, tmp_path):
    if "SLURM" in said:
        launched(SLURM)
    words = [
        "train",
        "sft",
        "--model",
        "nowhere",
        "--data",
        "nothing.jsonl",
        f"output_dir={tmp_path / 'run'}",
    ]
    assert cli.main([*words, *given]) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chorus: ")]
    assert len(complaint) == 1 and said in complaint[0]
    assert not (tmp_path / "run").exists()


def test_what_is_written_past_python_goes_with_the_errors():
    code = "import os, rlhf.run.guard as g; g.keep_stdout(); print('said'); os.write(1, b'[Gloo] noise')"
    environment = os.environ | {guard.WATCHED: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"said\n" and done.stderr == b"[Gloo] noise"


def test_two_processes_train_and_measure_what_one_does(job):
    """One of them comes later than Gloo waits when two devices first meet, as one does that compiles for a minute longer."""
    job.fit()
    pair = job.in_turn("2", 2, CHORUS_LATE="35")
    for one in [*job.in_turn("1", 1), *pair]:
        ended(one)
    for kind in ("sft", "dpo", "grpo"):
        assert max(job.apart(f"{kind}1", f"{kind}2")) < 1e-5, kind
    assert job.figures_apart("evaluate1", "evaluate2") < 1e-5


def test_a_killed_process_ends_the_other_and_both_go_on(job):
    """Process 1 is killed, both go on, process 0 is killed, both go on: the numbers of a run of one that nothing disturbed."""
    words = job.words("sft", "run", "train.steps=60", "train.checkpoint_every=5")
    for victim in (1, 0):
        pair = job.pair(words)
        before = finished_steps(job)
        while finished_steps(job) == before:
            assert pair[0].poll() is None, pair[0].communicate()[0]
            time.sleep(0.1)
        pair[victim].kill()
        begun = time.monotonic()
        said = ended(pair[1 - victim], processes.AGAIN)
        assert time.monotonic() - begun < 60
        assert said.count("chorus: another process of this job is gone") == 1
        assert "Traceback" not in said and "Gloo" not in said
        pair[victim].communicate()
    for one in job.pair(words):
        ended(one)
    ended(job.start(job.words("sft", "whole", "train.steps=60", "train.checkpoint_every=60"), 1))
    assert max(job.apart("run", "whole")) < 1e-5


def finished_steps(job: Job) -> list[str]:
    return sorted(path.parent.name for path in (job.folder / "run/checkpoints").glob("*/COMPLETE"))
