"""The chart's values: what becomes of them and of manifests, and what must not drift."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ray import __version__ as ray_version

from orchestrator import __version__
from orchestrator.manifest import load_manifest, parse_manifest
from tests.helm_charts import (
    CHART,
    ECHO,
    EXAMPLES,
    TOP,
    Object,
    example,
    good,
    group,
    job,
    manifest,
    of_kind,
    pods,
    render,
    selects,
    texts,
    values_of,
)

TIME_BUDGET_S = 30


def manifests_of(values: Object) -> dict[str, str]:
    """The texts that the driver gets, by file."""
    (found,) = (
        one for one in of_kind(render(values), "ConfigMap") if one["metadata"]["name"] == "run-manifests"
    )
    data: dict[str, str] = found["data"]
    return data


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
    whole = text + "dispatch: {ports: [7400, 7431]}\nmetrics: {listen: 10.0.0.1, port: 9464}\n"
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
