"""The Helm chart: every example is taken by Kubernetes and KubeRay, and keeps the promises on its pods."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helm_python import lint

from orchestrator.manifest import load_manifest, parse_manifest
from orchestrator.preflight import check_names
from tests.helm_charts import (
    CHART,
    EXAMPLES,
    OWN_CLUSTER,
    Object,
    Pod,
    doors,
    example,
    guarded,
    job,
    of_kind,
    open_to_all,
    pods,
    render,
    selects,
    texts,
    values_of,
)
from tests.kubernetes_objects import crds_here, problems_of

TIME_BUDGET_S = 30

needs_crds = pytest.mark.skipif(not crds_here, reason="KubeRay's CRDs do not lie beside the repository")
examples = pytest.mark.parametrize("name", EXAMPLES)
own_cluster = pytest.mark.parametrize("name", OWN_CLUSTER)
# Where a Ray 2.60 with the chart's parameters and a job listened, seen with `ss`: GCS, dashboard, raylet,
# object manager, agent. Besides METRICS, and its processes between min-worker-port and max-worker-port.
RAY_LISTENS = {6379, 8265, 6380, 6381, 6383, 52365}
METRICS = {8080, 44217, 44227}


# Kubernetes, KubeRay, Helm


@examples
def test_kubernetes_takes_every_object(name: str) -> None:
    told = [one for one in example(name) if crds_here or not one["apiVersion"].startswith("ray.io/")]
    assert [problem for one in told for problem in problems_of(one)] == []


@examples
def test_helm_finds_nothing_to_complain_of(name: str) -> None:
    report = lint(CHART, values_of(name), strict=True)
    assert report["errors"] == []
    assert [one["error"] for one in report["messages"]] in ([], ["icon is recommended"])


@needs_crds
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("rayClusterSpec", "headGroupSpec"), None),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers"), []),
        (("rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("rayClusterSpec", "rayVersion"), None),  # KubeRay wants it with a token
        (("rayClusterSpec", "workerGroupSpecs", 1, "maxReplicas"), None),
        (("rayClusterSpec", "workerGroupSpecs", 1, "replicas"), "two"),
        (("managedBy",), "somebody"),  # a CEL rule
        (("deletionStrategy",), {}),  # another
        (("shutdownAfterJobFinishes",), False),  # with a time to live
        (("clusterSelector",), {"ray.io/cluster": "lab"}),  # with retries
        (("entryPoint",), "loadgrid"),
        (("backoffLimit",), -1),
    ],
)
def test_a_single_fault_in_the_rayjob_is_found(place: tuple[Any, ...], value: Any) -> None:
    (good,) = of_kind(example("suite"), "RayJob")
    assert problems_of(good) == []
    bad = copy.deepcopy(good)
    at = bad["spec"]
    for step in place[:-1]:
        at = at[step]
    if value is None:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    assert problems_of(bad)


# What every pod promises


def breaches(pod: Pod) -> list[str]:
    """Promises that a pod's template does not keep."""
    spec, container = pod.template["spec"], pod.container
    own, wide = container["securityContext"], spec["securityContext"]
    need, bound = (container["resources"].get(kind, {}) for kind in ("requests", "limits"))
    kept = {
        "is not root": wide.get("runAsNonRoot") is True and wide.get("runAsUser", 0) > 0,
        "has a group of its own": wide.get("runAsGroup", 0) > 0 and wide.get("fsGroup", 0) > 0,
        "is bound by seccomp": wide.get("seccompProfile") == {"type": "RuntimeDefault"},
        "has a read-only root": own.get("readOnlyRootFilesystem") is True,
        "cannot become more": own.get("allowPrivilegeEscalation") is False and "privileged" not in own,
        "has no capability": own.get("capabilities") == {"drop": ["ALL"]},
        "has no token of Kubernetes": spec.get("automountServiceAccountToken") is False,
        "shares nothing with its node": not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(),
        "has whole cores of its own": need == bound and isinstance(need.get("cpu"), int) and "memory" in need,
        "asks for Ray's token": pod.env.get("RAY_AUTH_MODE") == "token",
        "can write to /tmp": "emptyDir" in pod.mounts.get("/tmp", {}) and pod.env["HOME"] == "/tmp",
        "sees no GPU but its own": pod.env.get("NVIDIA_VISIBLE_DEVICES")
        == (None if "nvidia.com/gpu" in need else "void"),
        "leaves KubeRay's label": "app.kubernetes.io/name" not in pod.labels,
        "has memory that processes share": pod.part == "submitter"
        or pod.mounts.get("/dev/shm", {}).get("emptyDir", {}).get("medium") == "Memory",
    }
    return [f"{pod.where}: {promise}" for promise, is_kept in kept.items() if not is_kept]


@examples
def test_every_pod_keeps_its_promises(name: str) -> None:
    assert [breach for pod in pods(example(name)) for breach in breaches(pod)] == []


@pytest.mark.parametrize("part", ["submitter", "head", "driver", "gpu"])
def test_a_pod_that_breaks_its_promises_would_be_found(part: str) -> None:
    objects = copy.deepcopy(example("suite"))
    (pod,) = (one for one in pods(objects) if one.where == part)
    spec = pod.template["spec"]
    spec["securityContext"]["runAsUser"] = 0
    spec["hostNetwork"] = True
    del spec["automountServiceAccountToken"]
    del pod.container["securityContext"]["readOnlyRootFilesystem"]
    del pod.container["resources"]["limits"]["cpu"]
    pod.container["env"] = [one for one in pod.container["env"] if one["name"] != "RAY_AUTH_MODE"]
    assert len(breaches(pod)) == 6


@own_cluster
def test_only_workers_have_gpus_and_only_they_have_room_for_actors(name: str) -> None:
    for pod in pods(example(name)):
        if pod.part == "submitter":
            continue
        limits = pod.container["resources"]["limits"]
        gpus = limits.get("nvidia.com/gpu", 0)
        cpus = limits["cpu"] if pod.part == "worker" else 0
        assert (pod.ray["num-cpus"], pod.ray["num-gpus"]) == (str(cpus), str(gpus))
        assert pod.part == "worker" or gpus == 0


@own_cluster
def test_the_driver_is_placed_by_a_resource_that_one_pod_has(name: str) -> None:
    spec = job(example(name))
    asked = json.loads(spec["entrypointResources"])
    having = [pod for pod in pods(example(name)) if "resources" in pod.ray]
    assert [pod.part for pod in having] == ["driver"]
    # KubeRay puts the value behind --resources= in a line for bash.
    (word,) = shlex.split(having[0].ray["resources"])
    assert json.loads(word) == asked == {"loadgrid-driver": 1}
    (group,) = (one for one in spec["rayClusterSpec"]["workerGroupSpecs"] if one["groupName"] == "driver")
    assert group["replicas"] == 1


@own_cluster
def test_evidence_is_on_a_claim_and_data_cannot_be_written(name: str) -> None:
    objects, values = example(name), values_of(name)
    made = [one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")]
    for pod in pods(objects):
        claim = pod.mounts.get("/runs", {}).get("persistentVolumeClaim", {}).get("claimName")
        assert (claim in {*made, "evidence"}) == (pod.part == "driver")
        data = (
            {one["mountPath"] for one in values.get("data", [])}
            if pod.part in ("driver", "worker")
            else set()
        )
        assert data == {
            path for path in pod.mounts if path.startswith("/etc/loadgrid/") and "manifests" not in path
        }
        assert all(pod.mounts[path]["readOnly"] for path in data)
    kept = [one["metadata"]["annotations"] for one in of_kind(objects, "PersistentVolumeClaim")]
    assert all(one == {"helm.sh/resource-policy": "keep"} for one in kept)


# Who may reach whom


@examples
def test_nothing_is_open_to_the_world(name: str) -> None:
    for pod in pods(example(name)):
        assert guarded(example(name), pod), pod.where
        assert [door for door in doors(example(name), pod) if open_to_all(door.peer)] == []
    for policy in of_kind(example(name), "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            assert rule["to"] and not any(open_to_all(peer) for peer in rule["to"])


@own_cluster
def test_the_data_plane_is_open_on_the_driver_to_workers_and_nobody_else(name: str) -> None:
    objects = example(name)
    low, high = values_of(name).get("dispatch", {}).get("ports", [7400, 7431])
    everybody = list(pods(objects))
    for pod in everybody:
        meeting = [door for door in doors(objects, pod) if door.low <= high and low <= door.high]
        assert bool(meeting) == (pod.part == "driver")
        for door in meeting:
            assert (door.low, door.high) == (low, high) and "namespaceSelector" not in door.peer
            let_in = {one.part for one in everybody if selects(door.peer["podSelector"], one.labels)}
            assert let_in == {"worker"}


@own_cluster
def test_every_port_of_ray_is_open_to_the_releases_pods_alone(name: str) -> None:
    objects = example(name)
    everybody = list(pods(objects))
    for pod in everybody:
        inner = [door for door in doors(objects, pod) if "namespaceSelector" not in door.peer]
        assert {door.low for door in inner if door.low == door.high} == RAY_LISTENS
        for door in inner:
            assert door.peer["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == name
        if pod.ray:
            fixed = {int(pod.ray[key]) for key in pod.ray if key.endswith("port") and "worker" not in key}
            assert fixed - {6382} <= RAY_LISTENS | METRICS  # 6382: asked on its own host only
            workers = (int(pod.ray["min-worker-port"]), int(pod.ray["max-worker-port"]))
            assert workers in {(door.low, door.high) for door in inner}


@own_cluster
def test_prometheus_reaches_metrics_and_the_operator_the_dashboard(name: str) -> None:
    objects = example(name)
    port = values_of(name).get("metrics", {}).get("port", 9464)
    for pod in pods(objects):
        outer = [door for door in doors(objects, pod) if "namespaceSelector" in door.peer]
        operators = [
            d
            for d in outer
            if d.peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
            == "kuberay-operator"
        ]
        assert [door.low for door in operators] == ([8265] if pod.part == "head" else [])
        assert {door.low for door in outer if door not in operators} == METRICS | {port}


def test_an_open_policy_would_be_found() -> None:
    objects = copy.deepcopy(example("suite"))
    first = of_kind(objects, "NetworkPolicy")[0]["spec"]
    first["ingress"].append({"ports": [{"port": 22}]})
    (driver,) = (pod for pod in pods(objects) if pod.part == "driver")
    assert [door.low for door in doors(objects, driver) if open_to_all(door.peer)] == [22]
    operators = {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    first["ingress"][-1]["from"] = [{"namespaceSelector": {}, "podSelector": operators}]
    assert [door.low for door in doors(objects, driver) if open_to_all(door.peer)] == [22]
    unguarded = [one for one in objects if one["kind"] != "NetworkPolicy"]
    assert not guarded(unguarded, driver)


# Manifests


@own_cluster
def test_loadgrid_reads_the_manifests_that_the_driver_gets(name: str, tmp_path: Path) -> None:
    (driver,) = (pod for pod in pods(example(name)) if pod.part == "driver")
    volume = driver.mounts["/etc/loadgrid/manifests"]["configMap"]["name"]
    (found,) = (one for one in of_kind(example(name), "ConfigMap") if one["metadata"]["name"] == volume)
    values = values_of(name)
    assert set(found["data"]) == {f"{key}.yaml" for key in values["manifests"]}
    for file, text in found["data"].items():
        (tmp_path / file).write_text(text)
        got = load_manifest(tmp_path / file)
        check_names(got)
        given = parse_manifest(values["manifests"][file.removesuffix(".yaml")].encode(), tmp_path / file)
        added = {"ports": got.dispatch.ports}
        left = {"dispatch": given.dispatch.model_copy(update=added), "metrics": got.metrics}
        assert given.model_copy(update=left).model_dump() == got.model_dump()
        assert list(got.dispatch.ports or ()) == values.get("dispatch", {}).get("ports", [7400, 7431])
        ports = {one["name"]: one["containerPort"] for one in driver.container["ports"]}
        assert got.metrics.port == ports["loadgrid"]
        assert got.metrics.listen == ("::" if name == "monitored" else "0.0.0.0")


def test_the_command_runs_all_manifests_on_the_ray_that_is_there() -> None:
    assert job(example("quickstart"))["entrypoint"] == (
        "exec loadgrid run /etc/loadgrid/manifests --address auto --runs-dir /runs"
    )
    assert job(example("suite"))["entrypoint"].endswith("--runs-dir /runs --compliance --resume --json")


def test_a_running_clusters_driver_writes_the_manifests_itself(tmp_path: Path) -> None:
    spec = job(example("existing-cluster"))
    *shell, script = shlex.split(spec["entrypoint"])
    assert shell == ["exec", "bash", "-c"]
    here = tmp_path / "loadgrid"
    here.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$(dirname "$0")/words"\n')
    here.chmod(0o755)
    script = script.replace("/tmp/loadgrid/", f"{tmp_path}/")
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run([*shell[1:], script], check=True, env={"PATH": path}, timeout=60)
    folder = tmp_path / "existing-cluster" / "manifests"
    words = (tmp_path / "words").read_text().splitlines()
    assert words == ["run", str(folder), "--address", "auto", "--runs-dir", "/shared/runs"]
    given = values_of("existing-cluster")["manifests"]["echo"]
    assert (folder / "echo.yaml").read_text().startswith(given)
    got = load_manifest(folder / "echo.yaml")
    assert (got.dispatch.ports, got.metrics.listen) == ((7400, 7431), "127.0.0.1")


def test_metrics_are_open_only_where_a_policy_guards_them(tmp_path: Path) -> None:
    values = values_of("quickstart") | {"networkPolicy": {"enabled": False}}
    (found,) = (one for one in of_kind(render(values), "ConfigMap"))
    (tmp_path / "a.yaml").write_text(found["data"]["quickstart.yaml"])
    assert load_manifest(tmp_path / "a.yaml").metrics.listen == "127.0.0.1"
    told = "with `metrics: {listen: 0.0.0.0}` in a manifest"
    assert told in texts(values)["NOTES.txt"] and told not in texts(values_of("quickstart"))["NOTES.txt"]
    for listen in ("127.0.0.1", "0.0.0.0"):
        given = values_of("quickstart")["manifests"]["quickstart"] + f"metrics: {{listen: {listen}}}\n"
        values["manifests"]["quickstart"] = given
        (found,) = (one for one in of_kind(render(values), "ConfigMap"))
        assert f"metrics: {{port: 9464, listen: {listen}}}" in found["data"]["quickstart.yaml"]


def test_a_running_cluster_gets_the_job_alone() -> None:
    objects = example("existing-cluster")
    spec = job(objects)
    assert sorted(one["kind"] for one in objects) == ["NetworkPolicy", "RayJob"]
    assert spec["clusterSelector"] == {"ray.io/cluster": "lab"}
    assert not {"rayClusterSpec", "shutdownAfterJobFinishes", "suspend"} & spec.keys()
    (pod,) = pods(objects)
    token = [one["valueFrom"] for one in pod.container["env"] if one["name"] == "RAY_AUTH_TOKEN"]
    assert token == [{"secretKeyRef": {"name": "lab-ray-token", "key": "auth_token"}}]
    assert list(doors(objects, pod)) == []


# Secrets, queues, ends


def test_rays_token_comes_from_kuberays_secret_or_the_one_that_is_named() -> None:
    assert job(example("quickstart"))["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    named = job(example("suite"))["rayClusterSpec"]["authOptions"]
    assert named == {"mode": "token", "secretName": "ray-token"}


def test_queues_are_named_by_the_labels_that_their_owners_read() -> None:
    labels: dict[str, Object] = {
        name: of_kind(example(name), "RayJob")[0]["metadata"]["labels"]
        for name in ("kueue", "volcano", "quickstart")
    }
    assert labels["kueue"]["kueue.x-k8s.io/queue-name"] == "benchmarks"
    assert job(example("kueue"))["suspend"] is True
    assert labels["volcano"]["volcano.sh/queue-name"] == "benchmarks"
    assert labels["volcano"]["ray.io/priority-class-name"] == "measurements"
    assert "suspend" not in job(example("volcano"))
    assert not any("queue" in label for label in labels["quickstart"])


@own_cluster
def test_every_job_comes_to_an_end_and_gives_its_pods_back(name: str) -> None:
    spec = job(example(name))
    assert spec["shutdownAfterJobFinishes"] is True and spec["activeDeadlineSeconds"] > 0
    assert spec["preRunningDeadlineSeconds"] > 0 and spec["submitterConfig"]["backoffLimit"] == 50
    assert spec["backoffLimit"] == (1 if name == "suite" else 0)
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


def test_the_image_is_taken_by_its_digest_where_one_is_given() -> None:
    images = {pod.container["image"] for pod in pods(example("suite"))}
    assert images == {"images.example.org/mlperf/loadgrid@sha256:" + "0123456789abcdef" * 4}
    values = {**values_of("quickstart"), "image": {"tag": "7"}}
    assert {pod.container["image"] for pod in pods(render(values))} == {"loadgrid:7"}
