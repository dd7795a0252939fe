"""What stands in no schema and is refused all the same, or fails in a pod: names, pods, KubeRay's rules.

The API server's part is its own validation of core kinds (the operator makes the pods of Ray's kinds, so an
error there shows minutes later, in an event). The operator's part is
ray-operator/controllers/ray/utils/validation.go of KubeRay 1.7.0, as far as a chart can meet it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from typing import Any

import promql_parser
import yaml

Place = tuple[str | int, ...]

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
FILE_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?\d+)?")
DURATION = r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$"
# RBAC names its objects freely (`system:node`), everything else by DNS; a Service's name becomes a host's.
FREELY_NAMED = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
NAMED_AS_LABELS = {"Service": DNS_1035, "Namespace": DNS_LABEL}
CONFIGMAP_BYTES = 1024 * 1024
# Fields whose few values the schemas leave open, wherever they stand.
CHOICES = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "operator": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Equal"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "policyTypes": {"Ingress", "Egress"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
}
BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def path_text(place: Place) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".") or "object"


def beyond_schemas(obj: dict[str, Any]) -> list[str]:
    """Problems of an object that fits its schema."""
    kind = obj["kind"]
    found = chain(names(obj), chosen(obj), pods(obj))
    if kind in ("ConfigMap", "Secret"):
        found = chain(found, files(obj))
    if kind == "NetworkPolicy":
        found = chain(found, policy(obj.get("spec", {})))
    if kind == "PersistentVolumeClaim" and not obj["spec"].get("resources", {}).get("requests", {}).get(
        "storage"
    ):
        found = chain(found, ["spec.resources.requests.storage: is required"])
    if kind == "PrometheusRule":
        found = chain(found, alerts(obj["spec"]["groups"]))
    if kind in ("RayJob", "RayCluster"):
        found = chain(found, operators(obj))
    return list(found)


# What every object has


def names(obj: dict[str, Any]) -> Iterator[str]:
    metadata, kind = obj["metadata"], obj["kind"]
    name = metadata.get("name", "")
    pattern = NAMED_AS_LABELS.get(kind, DNS_SUBDOMAIN)
    if not name and not metadata.get("generateName"):
        yield "metadata.name: is required"
    elif name and kind not in FREELY_NAMED and not pattern.fullmatch(name):
        yield f"metadata.name: {name!r} is no name for a {kind} (lower case letters, digits and dashes)"
    if kind in NAMED_AS_LABELS and len(name) > 63:
        yield f"metadata.name: {name!r} is longer than 63 characters"
    yield from labels(obj)


def mappings(value: Any, place: Place = ()) -> Iterator[tuple[dict[str, Any], Place]]:
    """Every mapping in a value, with its place."""
    if isinstance(value, dict):
        yield value, place
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in pairs:
        yield from mappings(child, (*place, step))


def labels(obj: dict[str, Any]) -> Iterator[str]:
    """Labels and annotations of the object, of every pod template in it, and of Ray's groups."""
    for one, place in mappings(obj):
        if "groups" in place:  # an alert's are Prometheus's
            continue
        for key in ("labels", "matchLabels"):
            if isinstance(one.get(key), dict):
                yield from label_pairs(one[key], (*place, key))
        for key in one.get("annotations") or {}:
            if not LABEL_NAME.fullmatch(key):
                yield f"{path_text((*place, 'annotations'))}: {key!r} is no key"


def label_pairs(pairs: dict[str, Any], place: Place) -> Iterator[str]:
    for key, value in pairs.items():
        if not LABEL_NAME.fullmatch(key):
            yield f"{path_text(place)}: {key!r} is no key of a label"
        if not LABEL_VALUE.fullmatch(str(value)):
            yield f"{path_text((*place, key))}: {value!r} is no value of a label (63 of A-Z a-z 0-9 - _ .)"


def chosen(obj: dict[str, Any]) -> Iterator[str]:
    for one, place in mappings(obj):
        for key in CHOICES.keys() & one.keys():
            words = one[key] if isinstance(one[key], list) else [one[key]]
            wrong = [word for word in words if isinstance(word, str) and word not in CHOICES[key]]
            yield from (
                f"{path_text((*place, key))}: {word!r} is none of {sorted(CHOICES[key])}" for word in wrong
            )


# Pods


def pods(obj: dict[str, Any]) -> Iterator[str]:
    for one, place in mappings(obj):
        if isinstance(one.get("containers"), list):
            yield from pod(one, place)


def pod(spec: dict[str, Any], place: Place) -> Iterator[str]:
    volumes = spec.get("volumes") or []
    for index, volume in enumerate(volumes):
        if len(volume) != 2:  # its name and one source
            yield f"{path_text((*place, 'volumes', index))}: needs exactly one source beside its name"
    every = [
        (one, (*place, group, index))
        for group in ("initContainers", "containers")
        for index, one in enumerate(spec.get(group) or [])
    ]
    for what, listed in (("containers", [one for one, _ in every]), ("volumes", volumes)):
        called = [one.get("name", "") for one in listed]
        yield from (f"{path_text(place)}.{what}: {name!r} is there twice" for name in repeated(called))
        yield from (
            f"{path_text(place)}.{what}: {n!r} is no name" for n in called if not DNS_LABEL.fullmatch(n)
        )
    known = {volume.get("name") for volume in volumes}
    for one, here in every:
        yield from container(one, known, spec.get("securityContext") or {}, here)


def container(
    one: dict[str, Any], volumes: set[Any], pod_security: dict[str, Any], place: Place
) -> Iterator[str]:
    text = path_text(place)
    mounts = one.get("volumeMounts") or []
    yield from (
        f"{text}: mounts {m['name']!r}, no volume of the pod" for m in mounts if m["name"] not in volumes
    )
    paths = [mount["mountPath"] for mount in mounts]
    yield from (f"{text}: {path!r} is mounted twice" for path in repeated(paths))
    ports = one.get("ports") or []
    for port in ports:
        if not 0 < port["containerPort"] < 65536:
            yield f"{text}: {port['containerPort']} is no port"
        if "name" in port and not PORT_NAME.fullmatch(port["name"]):
            yield f"{text}: {port['name']!r} is no name of a port (15 of a-z 0-9 -, with a letter)"
    called = [port["name"] for port in ports if "name" in port]
    yield from (f"{text}: the port {name!r} is there twice" for name in repeated(called))
    variables = one.get("env") or []
    yield from (
        f"{text}: {v['name']!r} has a value and a source"
        for v in variables
        if {"value", "valueFrom"} <= set(v)
    )
    yield from (
        f"{text}: the variable {n!r} is there twice" for n in repeated([v["name"] for v in variables])
    )
    if not one.get("image"):
        yield f"{text}: has no image"
    security = {**pod_security, **(one.get("securityContext") or {})}
    if security.get("runAsNonRoot") and security.get("runAsUser") == 0:
        yield f"{text}: runs as user 0 and not as root"
    yield from amounts(one.get("resources") or {}, text)


def amounts(resources: dict[str, Any], text: str) -> Iterator[str]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, written in chain(limits.items(), requests.items()):
        if quantity(written) is None:
            yield f"{text}: {written!r} is no quantity of {name}"
    for name, written in requests.items():
        asked, most = quantity(written), quantity(limits.get(name, ""))
        if asked is not None and most is not None and asked > most:
            yield f"{text}: asks for {written} of {name}, more than its limit {limits[name]}"
        if "/" in name and asked != most:  # extended resources are not overcommitted
            yield f"{text}: the request and the limit of {name} must be the same"
    for name in (name for name in limits if "/" in name):
        most = quantity(limits[name])
        if most is not None and most != int(most):
            yield f"{text}: {limits[name]} of {name} is no whole number"


def quantity(written: Any) -> Decimal | None:
    """A quantity such as 500m or 2Gi as a number; None for what is none."""
    found = QUANTITY.fullmatch(str(written))
    if found is None:
        return None
    number, unit = Decimal(found[1]), found[2] or ""
    if unit in BINARY:
        return number * Decimal(1024) ** BINARY[unit]
    return number.scaleb(DECIMAL[unit] if unit in DECIMAL else int(unit[1:] or 0))


def repeated(values: list[Any]) -> list[Any]:
    return sorted({value for value in values if values.count(value) > 1})


# Kinds


def files(obj: dict[str, Any]) -> Iterator[str]:
    fields = [obj.get(field) or {} for field in ("data", "binaryData", "stringData")]
    pairs = [pair for field in fields for pair in field.items()]
    yield from (f"data: {key!r} is no name of a file" for key, _ in pairs if not FILE_KEY.fullmatch(key))
    size = sum(len(text.encode()) for _, text in pairs)
    if size > CONFIGMAP_BYTES:
        yield f"data: {size} bytes, more than the {CONFIGMAP_BYTES} that an object may hold"
    coded = obj.get("data") if obj["kind"] == "Secret" else obj.get("binaryData")
    for key, text in (coded or {}).items():
        try:
            base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            yield f"data.{key}: is not base64"


def policy(spec: dict[str, Any]) -> Iterator[str]:
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or []):
            here = path_text(("spec", direction, index))
            for port in rule.get("ports") or []:
                first, last = port.get("port"), port.get("endPort")
                if last is not None and (not isinstance(first, int) or last < first):
                    yield f"{here}: endPort {last} needs a port, as a number, that is not above it"
            yield from chain.from_iterable(peer(one, here) for one in rule.get(peers) or [])


def peer(one: dict[str, Any], here: str) -> Iterator[str]:
    if not one or ("ipBlock" in one and len(one) > 1):
        yield f"{here}: a peer is selectors or an ipBlock"
    if "ipBlock" in one:
        try:
            ipaddress.ip_network(one["ipBlock"]["cidr"])
        except ValueError as error:
            yield f"{here}: {error}"


def alerts(groups: list[dict[str, Any]]) -> Iterator[str]:
    yield from (f"spec.groups: {n!r} is there twice" for n in repeated([group["name"] for group in groups]))
    for place, rule in (((i, j), rule) for i, g in enumerate(groups) for j, rule in enumerate(g["rules"])):
        try:
            promql_parser.parse(str(rule["expr"]))
        except ValueError as error:
            yield f"{path_text(('spec', 'groups', place[0], 'rules', place[1], 'expr'))}: {error}"


# KubeRay's operator

MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47}
# Off in KubeRay 1.7.0 (pkg/features/features.go) unless the operator is started with the gate.
GATED = {"networkPolicy": "RayClusterNetworkPolicy", "tlsOptions": "RayClusterMTLS"}
GATED |= {"historyServerOptions": "RayClusterHistoryServer"}
TOKEN_SINCE = (2, 52)


def operators(obj: dict[str, Any]) -> Iterator[str]:
    kind, spec, name = obj["kind"], obj.get("spec") or {}, obj["metadata"].get("name", "")
    if len(name) > LONGEST_NAME[kind] or not DNS_1035.fullmatch(name):
        yield f"metadata.name: KubeRay takes {LONGEST_NAME[kind]} of a-z 0-9 -, a letter first, not {name!r}"
    if kind == "RayCluster":
        yield from cluster(spec, "spec")
        return
    yield from job(spec)
    if "rayClusterSpec" in spec:
        yield from cluster(spec["rayClusterSpec"], "spec.rayClusterSpec")


def job(spec: dict[str, Any]) -> Iterator[str]:
    mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector") or {}
    retried, lives_on = spec.get("backoffLimit", 0) > 0, spec.get("ttlSecondsAfterFinished", 0) > 0
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules")
    alone = {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & spec.keys()
    refused = {
        f"submissionMode: {mode!r} is none of {sorted(MODES)}": mode not in MODES,
        f"submissionMode: SidecarMode takes no {sorted(alone)}": mode == "SidecarMode" and alone,
        "one of rayClusterSpec and clusterSelector must be set": not selector
        and "rayClusterSpec" not in spec,
        "clusterSelector: must name ray.io/cluster": selector and not selector.get("ray.io/cluster"),
        "backoffLimit: not with clusterSelector": retried and selector,
        "backoffLimit: not with InteractiveMode": retried and mode == "InteractiveMode",
        "suspend: not with clusterSelector": spec.get("suspend") and selector,
        "suspend: needs shutdownAfterJobFinishes": spec.get("suspend") and not shuts_down,
        "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes": lives_on and not shuts_down,
        "deletionStrategy.deletionRules: not with shutdownAfterJobFinishes": rules and shuts_down,
    }
    yield from (f"spec: {problem}" for problem, holds in refused.items() if holds)
    for field in (
        "activeDeadlineSeconds",
        "preRunningDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ):
        if spec.get(field, 1) < (0 if field in ("backoffLimit", "ttlSecondsAfterFinished") else 1):
            yield f"spec.{field}: {spec[field]} is too small"
    yield from texts(spec)


def texts(spec: dict[str, Any]) -> Iterator[str]:
    """Fields that are documents in themselves; Ray reads them when the job is submitted."""
    try:
        resources = json.loads(spec.get("entrypointResources") or "{}")
        if not isinstance(resources, dict) or not all(isinstance(n, int | float) for n in resources.values()):
            yield "spec.entrypointResources: must be a JSON object of numbers"
    except ValueError as error:
        yield f"spec.entrypointResources: {error}"
    try:
        if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML") or "{}"), dict):
            yield "spec.runtimeEnvYAML: must be a mapping"
    except yaml.YAMLError as error:
        yield f"spec.runtimeEnvYAML: {error}"


def cluster(spec: dict[str, Any], text: str) -> Iterator[str]:
    yield from (
        f"{text}.{field}: needs the feature gate {gate}" for field, gate in GATED.items() if field in spec
    )
    version = re.match(r"(\d+)\.(\d+)", spec.get("rayVersion", ""))
    token = (spec.get("authOptions") or {}).get("mode") == "token"
    if token and (version is None or (int(version[1]), int(version[2])) < TOKEN_SINCE):
        yield f"{text}.rayVersion: token authentication needs 2.52 or later named here"
    groups = [("headGroupSpec", spec["headGroupSpec"])]
    groups += [
        (f"workerGroupSpecs[{i}]", group) for i, group in enumerate(spec.get("workerGroupSpecs") or [])
    ]
    for here, group in groups:
        params = group.get("rayStartParams") or {}
        if group.get("resources") and params.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{text}.{here}: resources stand in rayStartParams and in resources"
        if "labels" in params:
            yield f"{text}.{here}.rayStartParams.labels: use the group's labels"
        if not group["template"]["spec"]["containers"]:
            yield f"{text}.{here}: has no container"
        if here != "headGroupSpec" and not spec.get("enableInTreeAutoscaling"):
            least, most = group.get("minReplicas"), group.get("maxReplicas")
            if least is None or most is None or not 0 <= least <= group.get("replicas", least) <= most:
                yield f"{text}.{here}: set minReplicas <= replicas <= maxReplicas, there is no autoscaler"
    yield from (
        f"{text}: the group {n!r} is there twice"
        for n in repeated([g.get("groupName") for _, g in groups[1:]])
    )
