"""The chart's examples as Helm renders them, and what their NetworkPolicies let through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

TOP = Path(__file__).resolve().parent.parent
CHART = TOP / "helm" / "loadgrid"
EXAMPLES = {file.stem: file for file in sorted((TOP / "helm" / "ci").glob("*.yaml"))}
OWN_CLUSTER = [name for name in EXAMPLES if name != "existing-cluster"]
NAMESPACE = "bench"

Object = dict[str, Any]


@cache
def chart() -> Chart:
    return Chart.load(CHART)


def values_of(example: str) -> Object:
    """The values of an example, each time anew."""
    values: Object = yaml.safe_load(EXAMPLES[example].read_text(encoding="utf-8"))
    return values


def texts(values: Object, name: str = "run") -> dict[str, str]:
    """What Helm makes of each template, by the template's name."""
    files = chart().render(values=values, name=name, namespace=NAMESPACE)
    return {file.rpartition("/")[2]: text for file, text in files.items()}


def render(values: Object, name: str = "run") -> list[Object]:
    """The objects that Helm would install."""
    found = texts(values, name)
    read = [yaml.safe_load_all(text) for file, text in found.items() if file != "NOTES.txt"]
    return [one for objects in read for one in objects if one]


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


def volume(**more: Any) -> Object:
    return good(data=[{"name": "a", "mountPath": "/a", "source": {"emptyDir": {}}, **more}])


@cache
def example(name: str) -> tuple[Object, ...]:
    """The objects of an example; not to be changed."""
    return tuple(render(values_of(name), name))


def of_kind(objects: Any, kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def job(objects: Any) -> Object:
    """The spec of the one RayJob."""
    (found,) = of_kind(objects, "RayJob")
    spec: Object = found["spec"]
    return spec


@dataclass(frozen=True)
class Pod:
    """A pod's template in a RayJob, with the parameters of its `ray start`; the submitter has none."""

    where: str
    template: Object
    ray: dict[str, str]

    @property
    def part(self) -> str:
        return str(self.labels["app.kubernetes.io/component"])

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def container(self) -> Object:
        (one,) = self.template["spec"]["containers"]
        found: Object = one
        return found

    @property
    def env(self) -> dict[str, Any]:
        return {one["name"]: one.get("value") for one in self.container["env"]}

    @property
    def mounts(self) -> dict[str, Object]:
        """What is mounted: the volume, and whether it is read-only, by path."""
        volumes = {one["name"]: one for one in self.template["spec"]["volumes"]}
        mounts = self.container["volumeMounts"]
        return {one["mountPath"]: {**volumes[one["name"]], **one} for one in mounts}


def pods(objects: Any) -> Iterator[Pod]:
    """Every pod that comes of a RayJob."""
    spec = job(objects)
    yield Pod("submitter", spec["submitterPodTemplate"], {})
    if cluster := spec.get("rayClusterSpec"):
        head = cluster["headGroupSpec"]
        yield Pod("head", head["template"], head["rayStartParams"])
        for group in cluster["workerGroupSpecs"]:
            yield Pod(group["groupName"], group["template"], group["rayStartParams"])


def selects(selector: Object, labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@dataclass(frozen=True)
class Door:
    """Who may reach which ports of a pod, by one rule of a NetworkPolicy."""

    peer: Object
    low: int
    high: int


def doors(objects: Any, pod: Pod) -> Iterator[Door]:
    """Everything that the policies let into a pod; a rule that says neither who nor where lets all in."""
    for policy in of_kind(objects, "NetworkPolicy"):
        spec = policy["spec"]
        if "Ingress" not in spec["policyTypes"] or not selects(spec["podSelector"], pod.labels):
            continue
        for rule in spec.get("ingress", []):
            for peer in rule.get("from", [{}]):
                for port in rule.get("ports", [{"port": 0, "endPort": 65535}]):
                    yield Door(peer, port["port"], port.get("endPort", port["port"]))


def guarded(objects: Any, pod: Pod) -> bool:
    """Whether any policy selects the pod, without which all may reach it."""
    policies = [one["spec"] for one in of_kind(objects, "NetworkPolicy")]
    return any("Ingress" in p["policyTypes"] and selects(p["podSelector"], pod.labels) for p in policies)


def open_to_all(peer: Object) -> bool:
    """Whether a peer means more than pods of this namespace, or namespaces, of certain labels.

    A pod's labels in any namespace are not enough: whoever may make a pod somewhere gives it the label.
    """
    where: Object = peer.get("namespaceSelector", peer.get("podSelector")) or {}
    return "ipBlock" in peer or not where.get("matchLabels")
