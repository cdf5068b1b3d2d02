"""JobSets: what is submitted against the published models of JobSet, batch/v1 and v1 pods; kubectl's calls against a stand-in."""

import json
import os
import shlex
import stat
from pathlib import Path

import pytest
import yaml

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.launch import kubernetes
from rlhf.launch.engine import Job, seconds_of
from rlhf.launch.resources import Resources
from rlhf.launch.yaml_text import yaml_text

PLAN = ["data", "plan", "--labels", "100"]
EVERYTHING = {
    "image": "registry/chorus:1.2",
    "cpus": 8,
    "devices": 2,
    "memory": "16G",
    "time": "1-02:00:00",
    "notice": 60,
    "queue": "research",
    "priority": "high",
    "namespace": "team-a",
    "node": ("cloud.google.com/gke-accelerator=nvidia-l4", "spot=yes", "zone=0123"),
    "volume": ("runs:/work", "data:/data"),
    "secret": ("hub",),
    "setup": ("echo one", "export A='b: #c'"),
}
TPU = {"image": "chorus", "tpu": "tpu-v5-lite-podslice:2x4"}


def written(**options):
    return kubernetes.text(
        Job("First_run", Path("launches/x"), Resources(**options)), [*PLAN, "a b", "c'd\"e"]
    )


def pod(text):
    return yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("options", [EVERYTHING, TPU, {"image": "chorus"}])
def test_the_published_models_know_every_key_and_type(options):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api")
    manifest = yaml.safe_load(written(**options))
    read = models.JobsetV1alpha2JobSet.from_dict(manifest)
    assert read.to_dict() == manifest  # a key that is not theirs would be lost, a wrong type refused
    job = read.spec.replicated_jobs[0].template.spec
    assert job.pod_failure_policy.rules[0].on_pod_conditions[0].status == "True"
    assert job.template.spec.restart_policy == "Never"  # as podFailurePolicy demands


def test_everything_that_was_asked_for_is_there():
    text = written(**EVERYTHING)
    manifest, spec = yaml.safe_load(text), pod(text)
    metadata = manifest["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert metadata["labels"]["kueue.x-k8s.io/priority-class"] == "high" and metadata["namespace"] == "team-a"
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["activeDeadlineSeconds"] == 26 * 3600 and job["backoffLimit"] == 0
    (container,) = spec["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "16384Mi"},
        "limits": {"memory": "16384Mi", "nvidia.com/gpu": "2"},
    }
    assert container["command"][:2] == ["bash", "-c"]
    lines = container["command"][2].splitlines()
    assert lines == [
        "cd /work || exit 2",
        "echo one",
        "export A='b: #c'",
        """exec chorus data plan --labels 100 'a b' 'c'"'"'d"e'""",
    ]
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "spot": "yes",
        "zone": "0123",
    }
    assert spec["terminationGracePeriodSeconds"] == 60
    assert [one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"]] == ["runs", "data"]
    assert container["envFrom"] == [{"secretRef": {"name": "hub"}}]


def test_a_tpu_pool_is_chosen_by_type_and_topology():
    spec = pod(written(**TPU))
    assert spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4"
    assert spec["containers"][0]["resources"]["limits"] == {"google.com/tpu": "8"}
    assert spec["tolerations"][0]["key"] == "google.com/tpu"


@pytest.mark.parametrize(
    "options, part",
    [
        ({}, "--image"),
        ({"image": "a b"}, "--image"),
        ({"image": "c", "queue": "Research"}, "--queue 'Research'"),
        ({"image": "c", "node": ("zone",)}, "KEY=VALUE"),
        ({"image": "c", "volume": ("runs:work",)}, "no absolute path"),
        ({"image": "c", "tpu": "v5:2by4"}, "2by4 is no topology"),
        ({"image": "c", "tpu": "v5:4x4", "devices": 4}, "16 chips"),
        ({"image": "c", "time": "soon"}, "--time 'soon'"),
        ({"image": "c", "memory": "much"}, "--memory 'much'"),
        ({"image": "c", "memory": "999999T"}, "--memory '999999T'"),
        ({"image": "c", "memory": "1" * 5000}, "--memory '111"),
        ({"image": "c", "time": "\u0663:00"}, "--time '\u0663:00'"),
        ({"image": "c", "tpu": "a b:2x4"}, "a b is no type of TPU"),
        ({"image": "c", "node": ("zone=a", "zone=b")}, "--node: the label zone: given twice"),
        ({"image": "c", "volume": ("a:/x", "b:/x/")}, "--volume: the path /x: given twice"),
        ({"image": "c", "volume": ("a:/x:ro",)}, "--volume a:/x:ro: /x:ro is no absolute path"),
        ({"image": "c", "volume": ("a:/x/../y",)}, "no absolute path"),
        ({"image": "c", "secret": ("s", "s")}, "--secret s: given twice"),
        ({"image": "c", "folder": "runs"}, "--folder: runs is no absolute path"),
    ],
)
def test_what_kubernetes_has_no_form_for_is_said(options, part):
    with pytest.raises(UserError) as said:
        written(**options)
    assert part in str(said.value)


@pytest.mark.parametrize("line", ["", " ", "echo \0", "echo \x1b[2J"])
def test_a_line_of_shell_holds_something_and_no_control_characters(line):
    with pytest.raises(UserError, match="--setup"):
        Resources(setup=(line,))
    assert Resources(setup=("if true\nthen\techo\nfi",)).setup


def test_names_become_labels_and_stay_apart():
    assert kubernetes.object_name("first") == "chorus-first"
    names = {kubernetes.object_name(name) for name in ("a.b", "a_b", "A-B", "x" * 90, "x" * 91)}
    assert len(names) == 5 and all(len(name) <= 49 for name in names)
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in names)


def test_times_are_those_of_slurm():
    times = {"90": 5400, "1:30": 90, "2:00:00": 7200, "1-2": 93600, "1-0:30": 88200}
    assert {text: seconds_of(text) for text in times} == times


@pytest.mark.parametrize(
    "value", ["yes", "1:30", "0123", "", "a: b", "x\ny\n", " x\n", "\x85", "é\n\x07\n", "1e5", "~"]
)
def test_yaml_1_1_reads_every_text_back(value):
    assert yaml.safe_load(yaml_text({"key": value, "list": [value, 1, True]})) == {
        "key": value,
        "list": [value, 1, True],
    }


STAND_IN = """#!/usr/bin/env python3
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["STAND_IN"])
words = [word for word in sys.argv[1:]]
with open(folder / "calls", "a") as file:
    print(json.dumps(words), file=file)
if words[:1] == ["--namespace"]:
    words = words[2:]
if "create" in words:
    if (folder / "jobset").exists():
        sys.exit('Error from server (AlreadyExists): jobsets.jobset.x-k8s.io exists')
    (folder / "jobset").write_text(open(words[-1]).read())
elif "delete" in words:
    (folder / "jobset").unlink(missing_ok=True)
elif words[:2] == ["get", "pods"]:
    print(json.dumps({"items": [
        {"metadata": {"name": name, "creationTimestamp": when}, "status": {"phase": "Running"}}
        for name, when in (("second", "2026-01-02"), ("first", "2026-01-01"))]}))
elif words[0] == "get" and (folder / "jobset").exists():
    print((folder / "state").read_text())
elif words[0] == "logs":
    print("said by", words[-1])
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A program in kubectl's place that keeps one JobSet; what the API server does is not tried here."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").write_text("{}")
    return tmp_path


def test_a_job_is_submitted_asked_after_read_and_cancelled(cluster, capfd):
    def asked(word):
        assert cli.main(["launch", word, "one"]) == 0
        return capfd.readouterr().out.strip().splitlines()

    words = ["launch", "kubernetes", "--name", "one", "--image", "c", "--namespace", "team", "--", *PLAN]
    assert cli.main(words) == 0
    assert (cluster / "jobset").read_text() == (cluster / "launches" / "one" / "jobset.yaml").read_text()
    capfd.readouterr()
    for state, said in (
        ({}, "pending"),
        ({"status": {"replicatedJobsStatus": [{"name": "run", "ready": 1, "active": 1}]}}, "running"),
        ({"status": {"terminalState": "Completed"}}, "completed"),
        ({"status": {"terminalState": "Failed"}}, "failed"),
    ):
        (cluster / "state").write_text(json.dumps(state))
        assert asked("status") == [f"one: {said}"]
    assert asked("logs")[:2] == ["said by first", "said by second"]
    assert asked("requeue") == ["one: failed"]  # the old one is taken away, the same submitted again
    (cluster / "state").write_text("{}")
    assert cli.main(["launch", "requeue", "one"]) == 2 and "is pending" in capfd.readouterr().err
    assert asked("cancel") == ["one: cancelled"] and not (cluster / "jobset").exists()
    calls = [json.loads(line) for line in (cluster / "calls").read_text().splitlines()]
    assert all(call[:2] == ["--namespace", "team"] for call in calls)


def test_without_kubectl_or_cluster_it_is_one_line_and_nothing_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    words = ["launch", "kubernetes", "--image", "c", "--", *PLAN]
    assert cli.main(words) == 2
    assert "no kubectl on this machine" in capsys.readouterr().err
    assert not (tmp_path / "launches").exists()


def test_what_the_cluster_refuses_is_said_and_the_name_stays_free(cluster, capsys):
    (cluster / "jobset").touch()
    assert cli.main(["launch", "kubernetes", "--name", "one", "--image", "c", "--", *PLAN]) == 2
    assert "AlreadyExists" in capsys.readouterr().err and not (cluster / "launches" / "one").exists()


TEMPLATES = sorted((Path(__file__).parents[3] / "scripts" / "cluster").glob("*.*.yaml"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_an_example_is_what_its_first_line_writes(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, text = path.read_text().split("\n", 1)
    assert cli.main(shlex.split(command.removeprefix("# chorus "))) == 0
    assert capsys.readouterr().out == text
