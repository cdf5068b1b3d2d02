"""SkyPilot's tasks: what is written, read by SkyPilot's own parser where installed; calls of its program against a stand-in."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.launch import skypilot
from rlhf.launch.engine import Job
from rlhf.launch.resources import Resources

PLAN = ["data", "plan", "--labels", "100"]
PARSER = Path(__file__).parents[3] / "scripts" / "cluster" / "check_skypilot.py"
EVERYTHING = {
    "devices": 2,
    "accelerator": "H100",
    "cpus": 8,
    "memory": "20G",
    "infra": "gcp/us-central1",
    "spot": True,
    "image": "docker:chorus:1",
    "mount": ("/out=gs://bucket",),
    "setup": ("pip install chorus-rlhf", "echo two"),
}


def written(**options):
    return skypilot.text(Job("First", Path("launches/x"), Resources(**options)), [*PLAN, "a b"])


def test_everything_that_was_asked_for_is_there():
    task = yaml.safe_load(written(**EVERYTHING))
    assert task["resources"] == {
        "accelerators": "H100:2",
        "cpus": "8+",
        "memory": "20+",
        "infra": "gcp/us-central1",
        "image_id": "docker:chorus:1",
        "use_spot": True,
        "job_recovery": {"strategy": "FAILOVER", "recover_on_exit_codes": [75, 143]},
    }
    assert task["file_mounts"] == {"/out": {"source": "gs://bucket", "mode": "MOUNT"}}
    assert task["setup"] == "pip install chorus-rlhf\necho two\n"
    assert task["run"] == "exec chorus data plan --labels 100 'a b'\n"


@pytest.mark.parametrize(
    "options, part",
    [
        ({"devices": 2}, "--accelerator"),
        ({"mount": ("/out=bucket",)}, "--mount /out=bucket"),
        ({"memory": "x"}, "--memory 'x'"),
        ({"accelerator": "H100:8"}, "--accelerator H100:8: no kind of device"),
        ({"infra": "a b"}, "--infra 'a b': holds white space"),
        ({"image": "a b"}, "--image 'a b': holds white space"),
        ({"mount": ("/out=s3://a", "/out=s3://b")}, "--mount /out: given twice"),
        ({"mount": ("/out=https://me:secret@host/b",)}, "--mount /out=https://***@host/b: a password"),
    ],
)
def test_what_skypilot_has_no_form_for_is_said(options, part):
    with pytest.raises(UserError) as said:
        written(**options)
    assert part in str(said.value)


def test_skypilots_own_parser_takes_every_task(tmp_path):
    python = os.environ.get("SKYPILOT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import sky"], capture_output=True).returncode:
        pytest.skip("needs SkyPilot; SKYPILOT_PYTHON names the Python of an environment that has it")
    for number, options in enumerate((EVERYTHING, {}, {"accelerator": "tpu-v5e", "devices": 8})):
        (tmp_path / f"{number}.yaml").write_text(written(**options))
    done = subprocess.run([python, PARSER, *sorted(tmp_path.glob("*.yaml"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".yaml: ") == 3 and "'H100': 2" in done.stdout and "[Spot]" in done.stdout
    (tmp_path / "0.yaml").write_text(written(**EVERYTHING).replace("resources:", "resourcs:"))
    assert subprocess.run([python, PARSER, tmp_path / "0.yaml"], capture_output=True).returncode != 0


STAND_IN = """#!/usr/bin/env python3
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["STAND_IN"])
with open(folder / "calls", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if sys.argv[1:3] == ["jobs", "queue"]:
    print((folder / "queue").read_text())
elif sys.argv[1:3] == ["jobs", "logs"]:
    print("said by", sys.argv[-1])
"""


def test_a_job_is_submitted_asked_after_read_and_cancelled(tmp_path, monkeypatch, capfd):
    program = tmp_path / "bin" / "sky"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def asked(word):
        assert cli.main(["launch", word, "one"]) == 0
        return capfd.readouterr().out.strip().splitlines()

    assert cli.main(["launch", "skypilot", "--name", "one", "--spot", "--", *PLAN]) == 0
    capfd.readouterr()
    (tmp_path / "queue").write_text("[]")
    assert asked("status") == ["one: gone"]
    rows = [
        {"job_name": "chorus-one", "job_id": n, "status": s}
        for n, s in ((3, "FAILED_SETUP"), (5, "RECOVERING"))
    ]
    (tmp_path / "queue").write_text(
        json.dumps([*rows, {"job_name": "other", "job_id": 9, "status": "RUNNING"}])
    )
    assert asked("status") == ["one: pending"]  # the newest of the name
    (tmp_path / "queue").write_text(json.dumps(rows[:1]))
    assert asked("logs")[0] == "said by 3" and asked("status") == ["one: failed"]
    (tmp_path / "queue").write_text(json.dumps([rows[0] | {"status": "RUNNING"}]))
    asked("cancel")
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    task = str(tmp_path / "launches" / "one" / "task.yaml")
    assert ["jobs", "launch", "--yes", "--detach-run", task] in calls
    assert ["jobs", "cancel", "--yes", "3"] in calls
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["launch", "status", "one"]) == 2 and "no sky on this machine" in capfd.readouterr().err
