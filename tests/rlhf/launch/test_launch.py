"""Jobs of this machine and of a real SLURM on loopback: submitted as typed, followed, cancelled, requeued and resumed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlhf.apps import cli
from rlhf.run.metrics import read_metrics
from tests.rlhf.tiny import write_model

LOOPBACK = Path(__file__).parents[3] / "scripts" / "cluster" / "slurm_loopback.sh"
PLAN = ["data", "plan", "--labels", "6000"]
STEPS = 600  # some seconds on an idle machine: time enough to be interrupted after the first


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    return tmp_path


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and SLURM ({', '.join(missing) or 'not root'})")
    if "SLURM_CONF" in os.environ:
        yield  # one that runs already
        return
    place = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(["bash", LOOPBACK, "start", place], capture_output=True, text=True)
    if "idle" not in started.stdout:
        subprocess.run(["bash", LOOPBACK, "stop", place], capture_output=True)  # what did start
        pytest.skip(f"SLURM does not start here: {started.stderr[-300:]}")
    os.environ["SLURM_CONF"] = str(place / "slurm.conf")
    yield
    del os.environ["SLURM_CONF"]
    subprocess.run(["bash", LOOPBACK, "stop", place], capture_output=True)


def told(capsys, *words):
    status = cli.main(["launch", *words, "--json"]) if "--" not in words else cli.main(["launch", *words])
    out = capsys.readouterr()
    assert status == 0, out.err
    return out.out


def state(capsys, name):
    return json.loads(told(capsys, "status", name).strip().splitlines()[-1])["status"]


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def shown(job):
    return subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True).stdout


def start_now(job):
    """A requeued job waits for two minutes unless it is told otherwise, which SLURM forgets until the job has left its node."""

    def started():
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
        return "JobState=PENDING" not in shown(job)

    time.sleep(
        2
    )  # what starts in the second in which it was requeued is refused: its credential counts as revoked
    wait_for(started)


def training(folder):
    rng = np.random.default_rng(0)
    rows = [{"prompt": "Which ?", "chosen": f"item {n}", "rejected": f"item {39 - n}", "user_id": f"p{n % 5}"}
            for n in rng.integers(0, 19, 30)]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "seed": 0,
        "output_dir": "run",
        "data": {"path": "pairs.jsonl"},
        "optimizer": {"learning_rate": 1e-3},
    }
    config |= {"model": {"name": str(write_model(folder / "model"))}}
    config |= {
        "train": {
            "steps": STEPS,
            "batch_rows": 2,
            "row_length": 16,
            "checkpoint_every": 200,
            "log_every": 20,
        }
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(config))
    return ["train", "sft", "sft.yaml"]


def test_the_script_holds_the_command_as_typed_and_nothing_is_submitted(capsys, folder):
    options = [
        "--devices",
        "2",
        "--time",
        "1:00:00",
        "--setup",
        "module load cuda",
        "--option=--qos=low",
        "--dry-run",
    ]
    out = told(capsys, "slurm", *options, "--", "chorus", "train", "dpo", "a b.yaml", "data.path=x;y")
    assert re.search(r"^\S+ -m rlhf train dpo 'a b.yaml' 'data.path=x;y' &$", out, flags=re.M)
    for line in ("--gpus-per-node=2", "--time=1:00:00", "--qos=low", "--requeue", "--signal=B:TERM@120"):
        assert f"#SBATCH {line}\n" in out
    assert "module load cuda" in out and not (folder / "launches").exists()


def test_mistakes_are_said_before_anything_is_submitted(capsys, folder):
    for words, part in (
        (["local", "--", "train", "dpoo", "x"], "did you mean 'dpo'"),
        (["local", "--name", "a/b", "--", *PLAN], "'a/b': no name of a launch"),
        (["slurm", "--devices", "0", "--", *PLAN], "whole number from 1"),
        (["slurm", "--tasks", "0", "--", *PLAN], "whole number from 1"),
        (["slurm", "--tasks", "999999", "--", *PLAN], "'999999' is no whole number from 1 to 100000"),
        (["slurm", "--tasks", "2", "--", *PLAN], "--tasks 2: `chorus data plan` runs in one process"),
        (["status", "nobody"], "nobody: no such launch"),
        (["local", "--", "chorus"], "no command"),
        (
            ["local", "--", "train", "ppo", "x.yaml", "columns.0.address=https://u:SECRET@h/v1"],
            "a password in a command",
        ),
        (["local", "--", "launch", "local", "--", *PLAN], "cannot be launched"),
    ):
        assert cli.main(["launch", *words]) == 2
        assert part in capsys.readouterr().err
    assert not (folder / "launches").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["local", "--", "train", "sft", "run.yaml", "train.steeps=3"], "train.steeps"),
        (["slurm", "--tasks", "2", "--dry-run", "--", "sweep", "run.yaml"], "no section `sweep`"),
        (
            ["slurm", "--tasks", "2", "--dry-run", "--", "train", "sft", "run.yaml", "mesh.processes=3"],
            "mesh.processes 3: the job has 2 (--tasks); remove the key, or give --tasks 3",
        ),
    ],
)
def test_the_configuration_is_read_before_anything_is_submitted(capsys, folder, words, said):
    values = {
        "seed": 0,
        "output_dir": "run",
        "data": {"path": "rows.jsonl"},
        "model": {"name": "model"},
        "optimizer": {"learning_rate": 0.1},
        "train": {"steps": 1},
    }
    (folder / "run.yaml").write_text(json.dumps(values))
    assert cli.main(["launch", *words]) == 2
    assert said in capsys.readouterr().err and not (folder / "launches").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--time", value) for value in ("1 day", "soon", "1:2:3:4", "0:00", "-1", "\u0663", "1:00\u00a0")),
        *(("--memory", value) for value in ("16 G", "16GiB", "much", "-1G", "1.5G", "9" * 30)),
    ],
)
def test_a_size_or_time_that_sbatch_would_refuse_is_named(capsys, folder, option, value):
    assert cli.main(["launch", "slurm", "--dry-run", f"{option}={value}", "--", *PLAN]) == 2
    assert capsys.readouterr().err.startswith(f"chorus: {option} ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--time", value) for value in ("30", "1:30", "2:00:00", "1-12", "1-0:30:00", "unlimited")),
        *(("--memory", value) for value in ("0", "1500", "16G", "500M")),
    ],
)
def test_sizes_and_times_of_sbatch_stand_in_the_script(capsys, folder, option, value):
    line = {"--time": "--time", "--memory": "--mem"}[option]
    assert f"#SBATCH {line}={value}\n" in told(capsys, "slurm", "--dry-run", f"{option}={value}", "--", *PLAN)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"engine": "moon", "job": "1", "resources": {}}',
        '{"engine": "local", "job": "1", "resources": {"cpu": 1}}',
    ],
)
def test_a_damaged_record_is_named(text, capsys, folder):
    place = folder / "launches" / "first"
    place.mkdir(parents=True)
    (place / "launch.json").write_text(text)
    for asked in ("status", "requeue", "cancel", "logs"):
        assert cli.main(["launch", asked, "first"]) == 2
        assert "launch.json: " in capsys.readouterr().err


def test_several_tasks_are_processes_of_a_training_or_a_sweep_and_its_workers(capsys, folder):
    out = told(capsys, "slurm", "--tasks", "2", "--cpus", "3", "--dry-run", "--", "train", "dpo", "a.yaml")
    assert "#SBATCH --ntasks=2\n" in out and "--nodes" not in out
    assert "\nsrun --ntasks=2 --kill-on-bad-exit=0 --wait=0 --cpus-per-task=3 " in out
    assert "status=75" in out  # of a task that was killed, whose status srun prefers to that of the others
    out = told(capsys, "slurm", "--tasks", "2", "--dry-run", "--", "sweep", "a.yaml")
    words = shlex.split(next(line for line in out.splitlines() if line.startswith("srun ")))
    started = [*words[words.index("bash") : words.index("worker") + 1], "echo", "-n", "sweep"]
    for task, said in (("0", "sweep"), ("1", "sweep --worker")):
        env = os.environ | {"SLURM_PROCID": task}
        assert subprocess.run(started, env=env, capture_output=True, text=True).stdout == said


def test_a_local_job_runs_says_what_it_says_and_its_name_is_taken(capsys):
    told(capsys, "local", "--name", "plan", "--", *PLAN)
    assert cli.main(["launch", "logs", "plan", "--follow"]) == 0
    assert "raters" in capsys.readouterr().out
    assert state(capsys, "plan") == "completed"
    assert cli.main(["launch", "local", "--name", "plan", "--", *PLAN]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_cancelled_local_job_leaves_a_checkpoint_and_the_command_resumes(capsys, folder):
    words = training(folder)
    told(capsys, "local", "--name", "sft", "--", *words)
    wait_for(lambda: (folder / "run" / "metrics.jsonl").exists() and read_metrics(folder / "run"))
    told(capsys, "cancel", "sft")
    wait_for(lambda: state(capsys, "sft") != "running")
    assert state(capsys, "sft") in ("cancelled", "completed")
    assert "the same command resumes" in (folder / "launches" / "sft" / "log.txt").read_text()
    assert list((folder / "run" / "checkpoints").iterdir())


def test_a_slurm_job_is_requeued_on_notice_and_goes_on_to_the_same_numbers(slurm, capsys, folder):
    words = training(folder)
    told(capsys, "slurm", "--name", "sft", "--memory", "1500", "--", *words)
    job = json.loads((folder / "launches" / "sft" / "launch.json").read_text())["job"]
    wait_for(lambda: (folder / "run" / "metrics.jsonl").exists() and read_metrics(folder / "run"))
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], check=True)  # as at the end of the time
    wait_for(lambda: "Restarts=1" in shown(job))
    assert state(capsys, "sft") in ("pending", "running")
    start_now(job)
    wait_for(lambda: state(capsys, "sft") not in ("pending", "running"))
    assert state(capsys, "sft") == "completed"
    interrupted = read_metrics(folder / "run")
    assert cli.main([*words, "output_dir=undisturbed"]) == 0
    plain = read_metrics(folder / "undisturbed")
    assert [(row["step"], row["train/loss/total"]) for row in interrupted] == [
        (row["step"], row["train/loss/total"]) for row in plain
    ]


def preferences(folder, steps):
    """`training` by preferences, as a command of its own."""
    training(folder)
    config = yaml.safe_load((folder / "sft.yaml").read_text())
    del config["train"]["row_length"]
    config |= {"loss": {"kind": "dpo"}, "train": config["train"] | {"steps": steps, "log_every": 10}}
    (folder / "dpo.yaml").write_text(yaml.safe_dump(config))
    return ["train", "dpo", "dpo.yaml"]


def test_two_tasks_are_requeued_as_one_run_and_end_with_the_same_numbers(slurm, capsys, folder):
    words = preferences(folder, 60)
    told(capsys, "slurm", "--name", "dpo", "--tasks", "2", "--cpus", "1", "--memory", "3000", "--", *words)
    job = json.loads((folder / "launches" / "dpo" / "launch.json").read_text())["job"]
    wait_for(lambda: (folder / "run" / "metrics.jsonl").exists() and read_metrics(folder / "run"))
    subprocess.run(
        ["scontrol", "requeue", job], check=True
    )  # the tasks are told at the same time as the script
    wait_for(lambda: "Restarts=1" in shown(job))
    wait_for(lambda: state(capsys, "dpo") == "pending")
    done = [int(path.name) for path in (folder / "run" / "checkpoints").iterdir()]
    assert done and done[0] < 60
    start_now(job)
    assert cli.main(["launch", "logs", "dpo", "--follow"]) == 0
    assert "dpo step 60/60" in (said := capsys.readouterr().out) and said.count("step 60/60") == 1
    assert state(capsys, "dpo") == "completed"
    interrupted = read_metrics(folder / "run")
    assert cli.main([*words, "output_dir=undisturbed"]) == 0
    plain = read_metrics(folder / "undisturbed")
    assert [row["step"] for row in interrupted] == [row["step"] for row in plain]
    for one, other in zip(interrupted, plain, strict=True):  # sums over two processes round otherwise
        assert one["train/loss/total"] == pytest.approx(other["train/loss/total"], rel=1e-4)


def test_a_cancelled_slurm_job_stays_cancelled(slurm, capsys, folder):
    told(capsys, "slurm", "--name", "sft", "--memory", "1500", "--", *training(folder))
    wait_for(lambda: state(capsys, "sft") == "running")
    told(capsys, "cancel", "sft")
    wait_for(lambda: state(capsys, "sft") not in ("pending", "running"))
    time.sleep(3)
    assert state(capsys, "sft") == "cancelled"


def test_what_slurm_refuses_is_one_line(slurm, capsys, folder):
    assert cli.main(["launch", "slurm", "--name", "x", "--partition", "nowhere", "--", *PLAN]) == 2
    assert "partition" in capsys.readouterr().err and not (folder / "launches" / "x").exists()
