"""The chart's values: what is refused and how, what becomes of manifests, and what must not drift."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError
from ray import __version__ as ray_version

from orchestrator import __version__
from orchestrator.manifest import load_manifest, parse_manifest
from tests.helm_charts import (
    CHART,
    EXAMPLES,
    TOP,
    Object,
    example,
    job,
    of_kind,
    pods,
    render,
    selects,
    texts,
    values_of,
)

TIME_BUDGET_S = 30

ECHO = values_of("kueue")["manifests"]["echo"]
GOOD: Object = {
    "manifests": {"echo": ECHO},
    "workers": [{"name": "gpu", "replicas": 1, "gpus": 4, "cpu": 16, "memory": "64Gi", "shm": "8Gi"}],
}


def good(**more: Any) -> Object:
    values: Object = {**json.loads(json.dumps(GOOD)), **more}
    return values


def group(**more: Any) -> Object:
    return good(workers=[{**GOOD["workers"][0], **more}])


def manifest(text: str) -> Object:
    return good(manifests={"a": text})


def refused(values: Object, name: str = "run") -> str:
    """What Helm says to values that it does not take."""
    with pytest.raises(HelmError) as caught:
        render(values, name)
    return str(caught.value)


def manifests_of(values: Object) -> dict[str, str]:
    """The texts that the driver gets, by file."""
    (found,) = (
        one for one in of_kind(render(values), "ConfigMap") if one["metadata"]["name"] == "run-manifests"
    )
    data: dict[str, str] = found["data"]
    return data


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
        (group(memory="64 GB"), "at '/workers/0/memory': '64 GB' does not match pattern"),
        (group(tolerations=[{"keys": "a"}]), "additional properties 'keys' not allowed"),
        (group(affinity={"podAntiAfinity": {}}), "additional properties 'podAntiAfinity' not allowed"),
        (group(name="on the left"), "at '/workers/0/name': 'on the left' does not match pattern"),
        (good(gang={"kind": "slurm"}), "value must be one of 'none', 'kueue', 'volcano'"),
        (good(image={"digest": "abc"}), "at '/image/digest': 'abc' does not match pattern"),
        (good(dispatch={"ports": [7000]}), "at '/dispatch/ports': minItems: got 1, want 2"),
        (good(job={"activeDeadlineSeconds": 0}), "at '/job/activeDeadlineSeconds': minimum: got 0, want 1"),
        (good(security={"runAsUser": 0}), "at '/security/runAsUser': minimum: got 0, want 1"),
        (good(manifests={"a": {"round": "v6.1"}}), "at '/manifests/a': got object, want string"),
        (good(manifests={"../a": ECHO}), "'../a' does not match pattern"),
        (good(cluster={"existing": "c", "runsDir": "/runs; id"}), "'/runs; id' does not match pattern"),
    ],
)
def test_a_value_that_is_none_is_refused_by_its_place(values: Object, words: str) -> None:
    assert words in refused(values)


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
        (manifest("workers: {count: 5, num_gpus: 1}"), "a asks for 5 GPUs in all, and the groups"),
        (manifest("workers: {count: 9, num_cpus: 2}"), "a asks for 18 CPUs for its workers, and their"),
        (manifest("workers: {where: local}"), "manifests.a has workers.where: local"),
        (good(gang={"kind": "kueue"}), "gang.kind is kueue: name its queue in gang.queue"),
        (good(gang={"queue": "q"}), "set gang.kind to kueue or volcano too"),
        (good(dispatch={"ports": [7002, 7000]}), "7002 is above 7000"),
        (good(dispatch={"ports": [10000, 10010]}), "meets Ray's own ports 10001 to 19999"),
        (good(dispatch={"ports": [9400, 9500]}), "metrics.port 9464 lies in dispatch.ports"),
        (good(metrics={"port": 8080}), "metrics.port 8080 is one of Ray's own ports"),
        (good(podLabels={"app.kubernetes.io/name": "x"}), "podLabels sets app.kubernetes.io/name"),
        (good(networkPolicy={"operator": {"podLabels": None}}), "has neither namespaceLabels nor podLabels"),
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


def test_words_that_yaml_reads_otherwise_stay_words() -> None:
    values = group(name="no")
    values |= {"auth": {"existingSecret": "1e3"}, "runs": {"existingClaim": "0123"}, "image": {"tag": "1.10"}}
    spec = job(render(values, "y"))
    assert spec["rayClusterSpec"]["authOptions"]["secretName"] == "1e3"
    assert spec["rayClusterSpec"]["workerGroupSpecs"][1]["groupName"] == "no"
    (driver,) = (pod for pod in pods(render(values, "y")) if pod.part == "driver")
    assert driver.mounts["/runs"]["persistentVolumeClaim"]["claimName"] == "0123"
    assert driver.container["image"] == "loadgrid:1.10"
    assert driver.labels["app.kubernetes.io/instance"] == "y"


# Manifests


@pytest.mark.parametrize(
    ("section", "dispatch", "metrics"),
    [
        ("", {}, {}),
        ("dispatch: {}\nmetrics: {}\n", {}, {}),
        ("dispatch: {payload: value}   # all of it\n", {"payload": "value"}, {}),
        ("dispatch:\n  payload: value\n  security: none\n", {"payload": "value", "security": "none"}, {}),
        ("dispatch: # why\n\n    # because\n    on_loss: reissue\n", {"on_loss": "reissue"}, {}),
        ("dispatch:\n  ports: [7400, 7431]\nmetrics:\n  port: 9464\n", {}, {}),
        ("metrics:\n  listen: '::'\n", {}, {"listen": "::"}),
        ("metrics: {port: null}\n", {}, {"port": None}),
    ],
)
def test_a_manifest_gets_the_ports_that_it_leaves_open(
    section: str, dispatch: Object, metrics: Object
) -> None:
    text = ECHO + section
    got = parse_manifest(manifests_of(manifest(text))["a.yaml"].encode())
    given = parse_manifest(text.encode())
    assert got.dispatch == given.dispatch.model_copy(update={"ports": (7400, 7431), **dispatch})
    assert got.metrics.model_dump() == {"listen": "0.0.0.0", "port": 9464, **metrics}


def test_what_the_chart_does_not_add_stays_byte_for_byte() -> None:
    seed = 2376919268182438552  # a float would end in ...448
    text = ECHO.replace("loadgen:", f"loadgen: # 'so' \"be\" {{it}} $HOME\n  qsl_rng_seed: {seed}")
    got = manifests_of(manifest(text))["a.yaml"]
    assert got.startswith(text) and parse_manifest(got.encode()).loadgen.qsl_rng_seed == seed
    whole = text + "dispatch: {ports: [7400, 7431]}\nmetrics: {listen: localhost, port: 9464}\n"
    indented = "".join(f"  {line}\n" for line in whole.splitlines())
    assert manifests_of(manifest(indented))["a.yaml"] == indented


def test_every_manifest_for_a_datacenter_that_ships_can_be_installed(tmp_path: Path) -> None:
    files = sorted((TOP / "manifests").glob("datacenter-*/*.yaml")) + sorted(
        (TOP / "manifests").glob("sizing/*.yaml")
    )
    shipped = {f"{file.parent.name}.{file.stem}": file.read_text(encoding="utf-8") for file in files}
    assert len(shipped) > 20
    for name, text in manifests_of(good(manifests=shipped)).items():
        (tmp_path / name).write_text(text)
        assert load_manifest(tmp_path / name).dispatch.ports == (7400, 7431)
        assert text.startswith(shipped[name.removesuffix(".yaml")].split("dispatch:")[0].rstrip())


# What must not drift


def leaves(values: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def test_schema_and_values_name_the_same_and_something_reads_each() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    templates = "".join(file.read_text() for file in sorted((CHART / "templates").iterdir()))

    def fields(node: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, field in node.get("properties", {}).items():
            yield (*path, key)
            yield from fields(field, (*path, key))

    labels = {
        path for path in leaves(values) if path[-2:-1] in [("namespaceLabels",), ("podLabels",), ("labels",)]
    }
    assert set(leaves(values)) - labels == set(fields(schema)) - {("global",)}
    assert [path for path in fields(schema) if path != ("global",) and f".{path[-1]}" not in templates] == []


def test_the_readmes_table_is_made_of_todays_values() -> None:
    module = runpy.run_path(str(CHART.parent / "make_readme.py"))
    text = (CHART / "README.md").read_text(encoding="utf-8")
    assert module["updated"](text) == text, "run `python helm/make_readme.py`"
    for file in re.findall(r"(?:helm|manifests)/[\w./-]+", text):
        assert (TOP / file).exists(), file


def test_the_rendered_files_for_those_without_helm_are_todays() -> None:
    folder = TOP / "manifests" / "kubernetes"
    module = runpy.run_path(str(folder / "render.py"))
    written = {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.yaml")}
    rendered: Callable[[str], str] = module["rendered"]
    made = {name: rendered(name) for name in module["NAMES"]}
    assert made == written, "run `python manifests/kubernetes/render.py`"
    for name, text in made.items():
        assert list(yaml.safe_load_all(text))[-1]["kind"] == "RayJob"
        assert len(list(yaml.safe_load_all(text))) == len(example(name))


def test_dashboard_and_alerts_are_those_of_monitoring(tmp_path: Path) -> None:
    monitoring = TOP / "monitoring"
    for file in (
        monitoring / "grafana" / "loadgrid.json",
        monitoring / "prometheus" / "loadgrid-alerts.yaml",
    ):
        assert (CHART / "files" / file.name).read_bytes() == file.read_bytes(), (
            f"copy {file} to helm/loadgrid/files"
        )
    objects = example("monitored")
    (rule,) = of_kind(objects, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((monitoring / "prometheus" / "loadgrid-alerts.yaml").read_text())
    (board,) = (
        one for one in of_kind(objects, "ConfigMap") if "grafana_dashboard" in one["metadata"]["labels"]
    )
    assert board["data"]["loadgrid.json"] == (monitoring / "grafana" / "loadgrid.json").read_text()


def test_the_podmonitor_asks_for_ports_that_pods_have() -> None:
    objects = example("monitored")
    (monitor,) = of_kind(objects, "PodMonitor")
    chosen = [pod for pod in pods(objects) if selects(monitor["spec"]["selector"], pod.labels)]
    assert {pod.part for pod in chosen} == {"submitter", "head", "driver", "worker"}
    named = {port["name"]: port["containerPort"] for pod in chosen for port in pod.container.get("ports", [])}
    wanted = [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]]
    assert {name: named[name] for name in wanted} == {
        "loadgrid": 9500, "metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227,
    }  # fmt: skip
    assert monitor["spec"]["podMetricsEndpoints"][0]["interval"] == "2s"


def test_the_chart_is_of_this_loadgrid_and_this_ray() -> None:
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert described["appVersion"] == described["version"] == __version__
    assert yaml.safe_load((CHART / "values.yaml").read_text())["rayVersion"] == ray_version


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_notes_name_what_is_there(name: str) -> None:
    objects, notes = example(name), texts(values_of(name), name)["NOTES.txt"]
    assert f"get rayjob {name} -w" in notes and f"logs -f job/{name}" in notes
    asked = re.findall(r" -l ([\w./=,-]+)", notes)
    parts = [dict(one.split("=") for one in found.split(",")) for found in asked]
    for labels in parts:
        assert any(selects({"matchLabels": labels}, pod.labels) for pod in pods(objects)), labels
    claims = {one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")} | {"evidence"}
    assert set(re.findall(r"in the claim ([^,]+),", notes)) <= claims
    assert bool(parts) == (name != "existing-cluster")
