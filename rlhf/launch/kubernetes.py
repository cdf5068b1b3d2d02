"""Jobs of Kubernetes: a JobSet, queued by Kueue where a queue is named, through kubectl.

A pod that is evicted, preempted or told to stop (exit status 143) is replaced without counting as a failure, and the same
command goes on from its checkpoint; every other status ends the job at once.
Sources: JobSet v1alpha2 (jobset.sigs.k8s.io/docs/reference), batch/v1 podFailurePolicy, Kueue's labels
(kueue.sigs.k8s.io/docs/tasks/run/jobsets), GKE's TPU node pools (cloud.google.com/gke-tpu-accelerator, -topology).
"""

import dataclasses
import hashlib
import json
import math
import re
import subprocess
import sys
import time

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.launch import engine, scripts
from rlhf.launch.engine import Job, called
from rlhf.launch.resources import Resources, absolute, once, pairs
from rlhf.launch.yaml_text import yaml_text

WRITTEN = "jobset.yaml"
API = "jobset.x-k8s.io/v1alpha2"
_LONGEST = 49  # a JobSet's name and "-run-0-0-" and five letters make a pod's, at most 63
_CANCELLED = "cancelled"
_POLL_SECONDS = 2.0
_LABEL = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
_DNS = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


def text(job: Job, words: list[str]) -> str:
    return yaml_text(manifest(job, words))


def manifest(job: Job, words: list[str]) -> JSONObject:
    """The JobSet.

    Raises:
      UserError: no image, or an option that Kubernetes has no form for.
    """
    resources = job.resources
    labels = {"app.kubernetes.io/managed-by": "chorus"}
    for option, key in (("queue", "queue-name"), ("priority", "priority-class")):
        if (value := getattr(resources, option)) is not None:
            labels[f"kueue.x-k8s.io/{key}"] = _dns(value, f"--{option}")
    metadata = {"name": object_name(job.name), "labels": labels}
    if resources.namespace is not None:
        metadata["namespace"] = _dns(resources.namespace, "--namespace")
    ignored = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [75, 143]}},
    ]
    run = {
        "completions": 1,
        "parallelism": 1,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": ignored},
        "activeDeadlineSeconds": None if resources.time is None else engine.seconds_of(resources.time),
        "template": {"spec": _pod(words, resources)},
    }
    spec = {"replicatedJobs": [{"name": "run", "replicas": 1, "template": {"spec": run}}]}
    return {"apiVersion": API, "kind": "JobSet", "metadata": metadata, "spec": spec}


def _pod(words: list[str], resources: Resources) -> JSONObject:
    if resources.image is None or re.search(r"\s", resources.image):
        raise UserError(
            "--image: chorus launch kubernetes needs a container image in which chorus is installed"
        )
    nodes, amounts, tolerations = _place(resources)
    claims = pairs(resources.volume, "--volume", "CLAIM:PATH", ":")
    for claim, path in claims:
        _dns(claim, "--volume")
        absolute(path, f"--volume {claim}:{path}", "CLAIM:/PATH")
    once((path.rstrip("/") for _, path in claims), "--volume: the path")
    once(resources.secret, "--secret")
    if resources.folder is not None:
        absolute(resources.folder, "--folder", "/PATH")
    if resources.folder is None and claims:
        resources = dataclasses.replace(resources, folder=claims[0][1])
    container = {
        "name": "chorus",
        "image": resources.image,
        "command": ["bash", "-c", scripts.own_script(words, resources)],
        "envFrom": [{"secretRef": {"name": _dns(name, "--secret")}} for name in resources.secret] or None,
        "resources": amounts or None,
        "volumeMounts": [{"name": f"volume-{n}", "mountPath": path} for n, (_, path) in enumerate(claims)]
        or None,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": resources.notice,
        "nodeSelector": nodes or None,
        "tolerations": tolerations or None,
        "containers": [container],
        "volumes": [
            {"name": f"volume-{n}", "persistentVolumeClaim": {"claimName": claim}}
            for n, (claim, _) in enumerate(claims)
        ]
        or None,
    }


def _place(resources: Resources) -> tuple[dict[str, str], JSONObject, list[JSONObject]]:
    """Labels of the nodes, requests and limits, tolerations."""
    nodes = {}
    for key, value in pairs(resources.node, "--node", "KEY=VALUE", "="):
        if not (re.fullmatch(rf"([a-z0-9.-]+/)?{_LABEL}", key) and re.fullmatch(_LABEL, value)):
            raise UserError(f"--node {key}={value}: no label of a node; write it as KEY=VALUE")
        nodes[key] = value
    once((key for key, _ in pairs(resources.node, "--node", "KEY=VALUE", "=")), "--node: the label")
    requests: JSONObject = {}
    limits: JSONObject = {}
    if resources.cpus is not None:
        requests["cpu"] = str(resources.cpus)
    if resources.memory is not None:
        requests["memory"] = limits["memory"] = f"{-(-engine.bytes_of(resources.memory) // 2**20)}Mi"
    device = None
    if resources.tpu is not None:
        ((kind, topology),) = pairs(
            (resources.tpu,), "--tpu", "TYPE:TOPOLOGY, such as tpu-v5-lite-podslice:2x4", ":"
        )
        if not re.fullmatch(_LABEL, kind):
            raise UserError(
                f"--tpu {resources.tpu}: {kind} is no type of TPU; write it as tpu-v5-lite-podslice"
            )
        if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", topology):
            raise UserError(f"--tpu {resources.tpu}: {topology} is no topology; write it as 2x4 or 2x2x1")
        chips = math.prod(int(side) for side in topology.split("x"))
        if resources.devices not in (None, chips):
            raise UserError(
                f"--devices {resources.devices}: a topology of {topology} has {chips} chips, and a job is one process on one "
                f"host; leave --devices out, or choose a topology of one host"
            )
        nodes |= {"cloud.google.com/gke-tpu-accelerator": kind, "cloud.google.com/gke-tpu-topology": topology}
        device, limits["google.com/tpu"] = "google.com/tpu", str(chips)
    elif resources.devices is not None:
        device, limits["nvidia.com/gpu"] = "nvidia.com/gpu", str(resources.devices)
    tolerations: list[JSONObject] = (
        [] if device is None else [{"key": device, "operator": "Exists", "effect": "NoSchedule"}]
    )
    amounts = {name: value for name, value in (("requests", requests), ("limits", limits)) if value}
    return nodes, amounts, tolerations


def _dns(text: str, option: str) -> str:
    if not re.fullmatch(_DNS, text):
        raise UserError(
            f"{option} {text!r}: Kubernetes takes lower-case letters, digits and dashes, at most 63"
        )
    return text


def object_name(name: str) -> str:
    """The JobSet's name: a label of DNS that begins with a letter; what had to be changed is told apart by a hash."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    whole = f"chorus-{plain}"
    if plain == name and len(whole) <= _LONGEST:
        return whole
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{whole[: _LONGEST - 7].rstrip('-')}-{mark}"


def need() -> None:
    engine.need_program("kubectl", "kubernetes", "run it where kubectl reaches the cluster")


def submit(job: Job) -> str:
    (job.place / _CANCELLED).unlink(missing_ok=True)
    if job.number:  # what ended earlier still holds the name
        _kubectl(job, "delete", "--ignore-not-found", "jobset.jobset.x-k8s.io", job.number)
    _kubectl(job, "create", "-f", str(job.place / WRITTEN))
    return object_name(job.name)


def status(job: Job) -> str:
    need()
    if (job.place / _CANCELLED).exists():
        return "cancelled"
    found = _kubectl(job, "get", "--ignore-not-found", "-o", "json", "jobset.jobset.x-k8s.io", job.number)
    if not found.strip():
        return "gone"
    said = json.loads(found).get("status", {})
    if (ended := said.get("terminalState")) in ("Completed", "Failed"):
        return ended.lower()
    ready = sum(one.get("ready", 0) for one in said.get("replicatedJobsStatus", []))
    return "running" if ready else "pending"


def logs(job: Job, wait: bool) -> None:
    """Pods one after another: a replaced one first, then what took its place."""
    shown: set[str] = set()
    while True:
        over = status(job) not in engine.RUNNING
        for pod, started in _pods(job):
            if pod in shown or not started:
                continue
            words = ["logs", *(["--follow"] if wait and not over else []), pod]
            sys.stdout.flush()
            if subprocess.run(["kubectl", *_namespace(job), *words]).returncode == 0:
                shown.add(pod)
        if over or not wait:
            return
        time.sleep(_POLL_SECONDS)


def _pods(job: Job) -> list[tuple[str, bool]]:
    """Names of the job's pods, oldest first, and whether they said anything yet."""
    label = f"jobset.sigs.k8s.io/jobset-name={job.number}"
    found = json.loads(_kubectl(job, "get", "pods", "-o", "json", "-l", label))["items"]
    found.sort(key=lambda pod: pod["metadata"]["creationTimestamp"])
    return [(pod["metadata"]["name"], pod.get("status", {}).get("phase") != "Pending") for pod in found]


def cancel(job: Job) -> None:
    _kubectl(job, "delete", "--wait=false", "jobset.jobset.x-k8s.io", job.number)
    (job.place / _CANCELLED).touch()


def _namespace(job: Job) -> list[str]:
    return [] if job.resources.namespace is None else ["--namespace", job.resources.namespace]


def _kubectl(job: Job, *words: str) -> str:
    need()
    return called("kubectl", *_namespace(job), *words)
