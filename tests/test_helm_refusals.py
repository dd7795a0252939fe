"""Values that the chart refuses, and the words in which it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from helm_python import HelmError, parse_set_file

from tests.helm_charts import (
    CHART,
    ECHO,
    GOOD,
    TOP,
    Object,
    good,
    group,
    manifest,
    of_kind,
    pods,
    render,
    volume,
)

TIME_BUDGET_S = 20


def refused(values: Object, name: str = "run") -> str:
    """What Helm says to values that it does not take."""
    with pytest.raises(HelmError) as caught:
        render(values, name)
    return str(caught.value)


# What is refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (good(worker=[]), "additional properties 'worker' not allowed"),
        (group(gpu=8), "at '/workers/0': additional properties 'gpu' not allowed"),
        (good(workers=[{"name": "a"}]), "missing properties 'replicas', 'gpus', 'cpu', 'memory', 'shm'"),
        (group(cpu="16"), "at '/workers/0/cpu': got string, want integer"),
        (group(cpu=0.5), "at '/workers/0/cpu': got number, want integer"),
        (group(memory=64), "at '/workers/0/memory': got number, want string"),
        (group(tolerations=[{"keys": "a"}]), "additional properties 'keys' not allowed"),
        (group(affinity={"podAntiAfinity": {}}), "additional properties 'podAntiAfinity' not allowed"),
        (good(gang={"kind": "slurm"}), "value must be one of 'none', 'kueue', 'volcano'"),
        (good(dispatch={"ports": [7000]}), "at '/dispatch/ports': minItems: got 1, want 2"),
        (good(job={"activeDeadlineSeconds": 0}), "at '/job/activeDeadlineSeconds': minimum: got 0, want 1"),
        (good(security={"runAsUser": 0}), "at '/security/runAsUser': minimum: got 0, want 1"),
        (good(metrics={"port": None}), "at '/metrics': missing property 'port'"),
        (good(driver=None), "missing property 'driver'"),
        (volume(source={"persistentVolumeClaim": {"claim": "a"}}), "missing property 'claimName'"),
        (
            volume(source={"hostPath": {"paths": "/a"}}),
            "at '/data/0/source/hostPath': missing property 'path'",
        ),
        (volume(source={"nfs": {"server": "a", "path": "/", "ro": True}}), "additional properties 'ro' not"),
    ],
)
def test_a_value_that_is_none_is_refused_by_its_place(values: Object, words: str) -> None:
    assert words in refused(values)


AMOUNT = "which is no amount of bytes in Kubernetes: write a number and Mi, Gi or Ti (decimal: M, G or T)"
NAME = "which is no name in Kubernetes: write small letters, digits, - and dots"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (group(memory="4GB"), f'workers[0].memory is "4GB", {AMOUNT}, such as 4Gi'),
        (group(memory="64"), f'workers[0].memory is "64", {AMOUNT}'),
        (good(driver={"shm": "1 Gi"}), f'driver.shm is "1 Gi", {AMOUNT}'),
        (good(submitter={"memory": "-1Gi"}), f'submitter.memory is "-1Gi", {AMOUNT}'),
        (good(tmpSize="5GB"), f'tmpSize is "5GB", {AMOUNT}'),
        (good(runs={"size": "5gi"}), f'runs.size is "5gi", {AMOUNT}'),
        (good(cache={"size": ""}), f'cache.size is "", {AMOUNT}'),
        (good(image={"repository": "REGISTRY/loadgrid"}), "no capitals: write your registry's own name"),
        (good(image={"repository": "reg/loadgrid:0.1.0"}), "repository reg/loadgrid and image.tag 0.1.0"),
        (good(image={"repository": "reg/a@sha256:0"}), "write the digest in image.digest"),
        (good(image={"repository": "https://reg/a"}), '"https://reg/a", which is no name of an image: write'),
        (good(image={"repository": ""}), 'image.repository is "", which is no name of an image'),
        (good(image={"tag": "a b"}), 'image.tag is "a b", which is no tag of an image'),
        (good(image={"digest": "abc"}), 'image.digest is "abc", which is no digest of an image: write'),
        (good(image={"pullSecrets": ["a", "A"]}), f'image.pullSecrets[1] is "A", {NAME}'),
        (good(auth={"existingSecret": "Ray"}), f'auth.existingSecret is "Ray", {NAME}'),
        (good(rayVersion="2.60"), 'rayVersion is "2.60", which is no version of Ray: write three numbers'),
        (good(gpuResource="gpu"), 'gpuResource is "gpu", which is no resource of Kubernetes'),
        (good(monitoring={"podMonitor": {"interval": "1"}}), 'interval is "1", which is no duration: write'),
        (group(name="on the left"), 'workers[0].name is "on the left", which is no name of a group: write'),
        (group(env=[{"name": "A-B"}]), 'workers[0].env[0].name is "A-B", which is no name of an environment'),
        (good(cluster={"existing": "c", "runsDir": "/a; id"}), 'runsDir is "/a; id", which is no path in a'),
        (volume(name="A"), 'data[0].name is "A", which is no name of a volume: write'),
        (volume(mountPath="data"), 'data[0].mountPath is "data", which is no path in a pod: write a / first'),
        (volume(subPath="/a"), 'data[0].subPath is "/a", which is no part of a volume'),
        (volume(subPath="a/../b"), 'data[0].subPath is "a/../b", and leads back: write it without ..'),
        (volume(source={"pvc": {}}), 'data[0].source is "pvc", which is no kind of volume in Kubernetes'),
        (good(manifests={"../a": ECHO}), "the name of a manifest is \"../a\", which is no file's name"),
        (good(manifests={"a.yaml": ECHO}), 'manifests has "a.yaml", and the chart adds .yaml itself'),
        (good(manifests={"bert-99": {"9": ECHO}}), "such as --set-file 'manifests.bert-99\\.9=FILE.yaml'"),
        (manifest("#" * 131_073), "manifests.a is longer than 128 KiB"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_form_is_refused_in_words(values: Object, words: str) -> None:
    said = refused(values)
    assert words in said and "pattern" not in said


def test_the_schema_holds_no_pattern_whose_message_would_be_a_regular_expression() -> None:
    assert '"pattern":' not in (CHART / "values.schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path",
    ["/", "/etc", "/etc/loadgrid", "/etc/loadgrid/manifests/a", "/etc/ssl", "/opt", "/opt/loadgrid/bin/",
     "/usr", "/usr/lib", "/bin", "/dev", "/a/../usr", "//usr"],
)  # fmt: skip
def test_a_volume_that_would_hide_a_folder_of_the_image_is_refused(path: str) -> None:
    assert f"data[0].mountPath is {path}, which hides /" in refused(volume(mountPath=path))


@pytest.mark.parametrize("path", ["/etc/loadgrid/data", "/data", "/opt/data", "/opt/loadgrid-data", "/usr2"])
def test_a_volume_that_hides_nothing_is_taken(path: str) -> None:
    assert path in {path for pod in pods(render(volume(mountPath=path))) for path in pod.mounts}


@pytest.mark.parametrize(
    "name",
    ["loadgrid", "a/b", "host:5000/a/b", "registry.example.org/a_b/c--d", "localhost/a", "10.0.0.1:443/x.y"],
)
def test_names_that_registries_have_are_taken(name: str) -> None:
    images = {pod.container["image"] for pod in pods(render(good(image={"repository": name, "tag": "1"})))}
    assert images == {f"{name}:1"}


@pytest.mark.parametrize(
    ("shm", "memory", "taken"),
    [
        ("1Gi", "1Gi", True), ("1G", "1Gi", True), ("1000M", "1G", True), ("1.5Gi", "1536Mi", True),
        ("1Gi", "1G", False), ("1Ti", "1023Gi", False), ("1.1Mi", "1M", False), ("65Gi", "64Gi", False),
    ],
)  # fmt: skip
def test_shared_memory_is_no_larger_than_the_memory_that_it_is_part_of(
    shm: str, memory: str, taken: bool
) -> None:
    values = group(shm=shm, memory=memory)
    if taken:
        assert render(values)
    else:
        words = f"workers[0].shm is {shm}, more than workers[0].memory, {memory}, of which it is a part"
        assert words in refused(values)
    assert "driver.shm is 16Gi, more than driver.memory, 4Gi" in refused(good(driver={"memory": "4Gi"}))


@pytest.mark.parametrize(
    ("asks", "room"),
    [
        ("count: 4, num_gpus: 1", ""),
        ("count: 16, num_cpus: 1", ""),
        ("count: 8, num_gpus: 0.5", ""),
        ("count: 12, num_gpus: 0.3", ""),
        ("count: 4000, num_cpus: 0", ""),
        ("count: 4, num_cpus: 4, num_gpus: 1, placement: per_node", ""),
        ("count: 5, num_gpus: 1", "with 1 CPUs and 1 GPUs each (workers.num_cpus, workers.num_gpus), and the "
         "groups of workers have room for 4: lower workers.count in the manifest, or raise replicas, cpu or"),
        ("count: 20", "asks for 20 workers with 1 CPUs and 0 GPUs each"),
        ("count: 9, num_cpus: 2", "have room for 8: lower workers.count"),
        ("count: 3, num_gpus: 2", "have room for 2: lower workers.count"),
        ("count: 5, num_gpus: 0.6", "have room for 4: lower workers.count"),
        ("num_cpus: 17", "no pod in the groups of workers has room for one: lower those in the manifest, or"),
        ("num_gpus: 5", "no pod in the groups of workers has room for one"),
        ("num_cpus: 17, placement: per_node", "no pod in the groups of workers has room for one"),
        ("count: 5, num_cpus: 4, placement: per_node", "5 workers on every node (placement: per_node) with 4 "
         "CPUs and 0 GPUs each (workers.num_cpus, workers.num_gpus), and no pod in the groups of workers has "
         "room for more than 4: lower workers.count"),
        ("count: two", 'manifests.a has workers.count: "two", which is no number'),
        ("num_cpus: [1]", "manifests.a has workers.num_cpus: [1], which is no number"),
        ("count: null", "manifests.a has workers.count: null, which is no number"),
    ],
)  # fmt: skip
def test_workers_have_room_in_the_pods_or_are_refused(asks: str, room: str) -> None:
    values = manifest(f"workers: {{{asks}}}")
    assert render(values) if not room else room in refused(values)


def test_a_worker_must_fit_into_one_pod_and_not_into_their_sum() -> None:
    values = manifest("workers: {count: 2, num_cpus: 4}")
    values["workers"] = [{**GOOD["workers"][0], "name": f"g{cpu}", "cpu": cpu, "gpus": 0} for cpu in (3, 6)]
    assert "have room for 1: lower" in refused(values)
    values["workers"][1]["replicas"] = 2
    assert render(values)


LAB = {"existing": "lab"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (good(manifests={}), "no manifest: give at least one, such as --set-file"),
        (good(workers=[]), "no workers: give at least one group in workers, or the name of a running"),
        (group(name="driver"), "a group of workers is named driver"),
        (good(workers=GOOD["workers"] * 2), "two groups of workers are named gpu"),
        (good(data=[{"name": "a", "mountPath": "/a", "source": {"emptyDir": {}}}] * 2), "two volumes"),
        (good(data=[{"name": "a", "mountPath": "/runs/", "source": {"emptyDir": {}}}]), "another is mounted"),
        (group(env=[{"name": "RAY_AUTH_MODE", "value": "disabled"}]), "an env sets RAY_AUTH_MODE twice, or"),
        (manifest("- 1"), "manifests.a is not a manifest"),
        (manifest("a: [1"), "manifests.a is not a manifest"),
        (manifest("dispatch:\nmetrics: {}\n"), "manifests.a: its section dispatch must hold fields"),
        (manifest("workers: 3\n"), "manifests.a: its section workers must hold fields"),
        (manifest("dispatch: &a\n  payload: value\n"), "cannot add `ports: [7400,7431]` to"),
        (manifest("dispatch: {ports: [7000, 7001]}"), "a sets dispatch.ports [7000,7001], but the value"),
        (manifest("metrics: {port: 9000}"), "a sets metrics.port 9000, but the value metrics.port"),
        (manifest("metrics: {port: 0}"), "a sets metrics.port 0, but the value metrics.port"),
        (manifest("dispatch: {listen: 127.0.0.1}"), "manifests.a has dispatch.listen: 127.0.0.1, where no"),
        (manifest("metrics: {listen: localhost}"), "manifests.a has metrics.listen: localhost, where no"),
        (manifest("metrics: {listen: '::1'}"), "manifests.a has metrics.listen: ::1, where no other pod"),
        (manifest("metrics: {port: null}") | {"monitoring": {"podMonitor": {"enabled": True}}},
         "manifests.a has metrics.port: null, so nothing would be served, and monitoring.podMonitor is"),
        (good(monitoring={"podMonitor": {"enabled": True}}, networkPolicy={"enabled": False}),
         "manifests.echo serves its metrics to its own pod alone, since networkPolicy.enabled is false"),
        (manifest("workers: {where: local}"), "manifests.a has workers.where: local"),
        (good(gang={"kind": "kueue"}), "gang.kind is kueue: name its queue in gang.queue"),
        (good(gang={"queue": "q"}), "set gang.kind to kueue or volcano too"),
        (good(gang={"kind": "kueue", "queue": "q"}), "would begin a whole new campaign: set run.resume to"),
        (good(job={"backoffLimit": 1}), "job.backoffLimit is 1, and a retry, which also follows a test"),
        (good(dispatch={"ports": [7002, 7000]}), "7002 is above 7000"),
        (good(dispatch={"ports": [10000, 10010]}), "meets Ray's own ports 10001 to 19999"),
        (good(dispatch={"ports": [9400, 9500]}), "metrics.port 9464 lies in dispatch.ports"),
        (good(metrics={"port": 8080}), "metrics.port 8080 is one of Ray's own ports"),
        (good(podLabels={"app.kubernetes.io/name": "x"}), "podLabels sets app.kubernetes.io/name"),
        (good(networkPolicy={"operator": {"namespaceLabels": None, "podLabels": None}}),
         "has neither namespaceLabels nor podLabels"),
        (good(cluster=LAB), "cluster.existing is lab, whose pods are not this release's: take workers out"),
        (good(cluster={"driverResources": {"a": 1}}), "cluster.driverResources is for cluster.existing"),
        (good(cluster=LAB, workers=[], job={"backoffLimit": 1}), "set job.backoffLimit to 0"),
        (good(cluster=LAB, workers=[], manifests={"a": ECHO + "#" * 99_999}), "too long for a command"),
        (good(cluster=LAB, workers=[], gang={"kind": "volcano", "queue": "q"}), "set gang.kind to none"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused_with_the_mend(values: Object, words: str) -> None:
    assert words in refused(values)


@pytest.mark.parametrize("name", ["1st", "a.b", "a" * 48])
def test_a_releases_name_that_kuberay_would_not_take_is_refused(name: str) -> None:
    assert "the release's name is the RayJob's" in refused(good(), name)


def test_a_manifests_name_with_a_dot_is_given_as_the_pages_say(tmp_path: Path) -> None:
    file = tmp_path / "bert-99.9.yaml"
    file.write_text(ECHO)
    right, split = (parse_set_file(f"manifests.{name}={file}") for name in (r"bert-99\.9", "bert-99.9"))
    names = [one["data"] for one in of_kind(render(good(**right)), "ConfigMap")]
    assert list(names[0]) == ["bert-99.9.yaml"]
    assert "manifests.bert-99 is not the text of a manifest" in refused(good(**split))
    for page in ("docs/kubernetes.md", "helm/loadgrid/README.md"):
        assert r"--set-file 'manifests.bert-99\.9=" in (TOP / page).read_text(encoding="utf-8")
