"""What an API server with KubeRay 1.7 and the Prometheus operator would refuse of an object, without one.

Core kinds are held against the schemas that kubernetes-validate carries; Ray's kinds against their own CRDs,
CEL rules and list keys included (a folder beside the repository: `crds_here`); two kinds of the Prometheus
operator against what its CRDs say of the fields below. `kubernetes_rules` adds what stands in no schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cel
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from kubernetes_validate.utils import all_versions, schema_contents  # type: ignore[import-untyped]
from referencing import Registry, Resource

from tests.kubernetes_rules import DURATION, beyond_schemas, path_text

CRDS = Path(__file__).resolve().parent.parent.parent / "shared" / "kuberay" / "crds"
crds_here = CRDS.is_dir()
# The oldest Kubernetes that anybody should still run, and the newest that the package knows.
VERSIONS = ("1.30", "1.37")
RAY_GROUP = "ray.io"
RAY_FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


def problems_of(obj: Any) -> list[str]:
    """Everything found wrong with one object, each as `Kind/name: field: what`; empty for a good one."""
    if not isinstance(obj, dict):
        return [f"an object is a mapping, not {obj!r:.60}"]
    name = obj.get("metadata") or {}
    label = f"{obj.get('kind')}/{name.get('name') if isinstance(name, dict) else None}"
    missing = [key for key in ("apiVersion", "kind", "metadata") if not obj.get(key)]
    if missing:
        return [f"{label}: {key}: is required" for key in missing]
    try:
        json.dumps(obj, allow_nan=False)
    except (TypeError, ValueError) as error:  # a date without quotes, say: YAML has more types than JSON
        return [f"{label}: is not plain JSON: {error}"]
    found = list(schema_problems(obj))
    return [f"{label}: {problem}" for problem in dict.fromkeys(found or beyond_schemas(obj))]


def schema_problems(obj: dict[str, Any]) -> Iterator[str]:
    group, _, version = str(obj["apiVersion"]).rpartition("/")
    kind = str(obj["kind"])
    if group == RAY_GROUP:
        yield from metadata_problems(obj)
        yield from ray_problems(obj, kind, version)
    elif (group, version) == ("monitoring.coreos.com", "v1") and kind in MONITORING:
        yield from metadata_problems(obj)
        yield from errors_of(Draft202012Validator(MONITORING[kind]), obj)
    else:
        for release in VERSIONS:
            yield from core_problems(obj, release)


# Core kinds


@cache
def definitions(release: str) -> Registry[Any]:
    folder = core_folder(release)
    contents = schema_contents(f"{folder}/_definitions.json", release)
    return Resource.from_contents(contents) @ Registry()


@cache
def core_folder(release: str) -> str:
    known = next(one for one in all_versions() if one.startswith(f"{release}."))
    return f"kubernetes-json-schema/v{known}-local-strict"


@cache
def core_validator(file: str, kind: str, release: str) -> Draft202012Validator | None:
    """None where this release serves no such kind (the parts of kinds have files too)."""
    try:
        schema = schema_contents(f"{core_folder(release)}/{file}.json", release)
    except FileNotFoundError:
        return None
    if kind and kind not in {one["kind"] for one in schema.get("x-kubernetes-group-version-kind", [])}:
        return None
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ definitions(release))


def core_problems(obj: dict[str, Any], release: str) -> Iterator[str]:
    group, _, version = str(obj["apiVersion"]).rpartition("/")
    kind = str(obj["kind"])
    short = f"{group.split('.')[0]}-{version}" if group else version
    validator = core_validator(f"{kind.lower()}-{short}", kind, release) if "/" not in kind + short else None
    if validator is None:
        yield f"apiVersion: Kubernetes {release} has no kind {kind} in {obj['apiVersion']}"
    else:
        yield from errors_of(validator, obj)


def metadata_problems(obj: dict[str, Any]) -> Iterator[str]:
    """A CRD leaves the metadata to the API server."""
    validator = core_validator("objectmeta-meta-v1", "", VERSIONS[-1])
    assert validator is not None
    yield from errors_of(validator, obj["metadata"], ("metadata",))


def errors_of(
    validator: Draft202012Validator, value: Any, where: tuple[str | int, ...] = ()
) -> Iterator[str]:
    for error in validator.iter_errors(value):
        yield f"{path_text((*where, *error.absolute_path))}: {error.message:.300}"


# Ray's kinds


@cache
def ray_schemas(kind: str) -> dict[str, dict[str, Any]]:
    """The openAPIV3Schema of every served version; a megabyte of YAML, so libyaml reads it."""
    text = (CRDS / f"ray.io_{RAY_FILES[kind]}.yaml").read_bytes()
    loader = yaml.CSafeLoader(text)
    versions = loader.get_single_data()["spec"]["versions"]
    return {one["name"]: one["schema"]["openAPIV3Schema"] for one in versions if one["served"]}


@cache
def ray_validator(kind: str, version: str) -> Draft202012Validator:
    return Draft202012Validator(json_schema(ray_schemas(kind)[version]))


def ray_problems(obj: dict[str, Any], kind: str, version: str) -> Iterator[str]:
    if kind not in RAY_FILES:
        yield f"kind: {RAY_GROUP} has no kind {kind} here: {', '.join(RAY_FILES)}"
        return
    if version not in ray_schemas(kind):
        yield f"apiVersion: {kind} is served in {', '.join(ray_schemas(kind))}, not in {version!r}"
        return
    broken = list(errors_of(ray_validator(kind, version), obj))
    yield from broken
    if not broken:  # the API server's order: a rule may count on the types being right
        yield from rule_problems(ray_schemas(kind)[version], obj, ())


KEPT = (
    "type",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "anyOf",
)


def json_schema(node: dict[str, Any]) -> dict[str, Any]:
    """A structural schema as JSON schema.

    Unknown fields are errors where fields are listed. A required field with a default is not required: the
    API server fills in defaults before it validates.
    """
    kept: dict[str, Any] = {key: node[key] for key in KEPT if key in node}
    if node.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
        kept["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if node.get("nullable") and "type" in kept:
        kept["type"] = [kept["type"], "null"]
    if "items" in node:
        kept["items"] = json_schema(node["items"])
    fields = node.get("properties", {})
    if fields:
        kept["properties"] = {name: json_schema(field) for name, field in fields.items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    elif isinstance(node.get("additionalProperties"), dict):
        kept["additionalProperties"] = json_schema(node["additionalProperties"])
    required = [name for name in node.get("required", []) if "default" not in fields.get(name, {})]
    return {**kept, "required": required} if required else kept


@cache
def program(rule: str) -> cel.Program:
    return cel.compile(rule)


def rule_problems(node: dict[str, Any], value: Any, where: tuple[str | int, ...]) -> Iterator[str]:
    """The CEL rules and the keys of lists, at every level of a value that fits the schema."""
    for rule in node.get("x-kubernetes-validations", []):
        check = program(rule["rule"])
        # A rule about the change of a field says nothing about a new object.
        if "oldSelf" not in check.variables() and check.execute({"self": value}) is not True:
            yield f"{path_text(where)}: {rule['message']}"
    if isinstance(value, dict):
        rest = node.get("additionalProperties")
        for name, child in value.items():
            field = node.get("properties", {}).get(name, rest if isinstance(rest, dict) else {})
            yield from rule_problems(field, child, (*where, name))
    elif isinstance(value, list):
        yield from twice(node, value, where)
        for index, child in enumerate(value):
            yield from rule_problems(node.get("items", {}), child, (*where, index))


def twice(node: dict[str, Any], values: list[Any], where: tuple[str | int, ...]) -> Iterator[str]:
    """Entries that a list which is a map or a set may hold once."""
    kind = node.get("x-kubernetes-list-type")
    keys = node.get("x-kubernetes-list-map-keys", [])
    fields = node.get("items", {}).get("properties", {})
    seen = set()
    for index, one in enumerate(values if kind in ("map", "set") else []):
        parts = [one.get(key, fields.get(key, {}).get("default")) for key in keys] if kind == "map" else one
        key = json.dumps(parts, sort_keys=True)
        if key in seen:
            yield f"{path_text((*where, index))}: {key} is there twice"
        seen.add(key)


# Kinds of the Prometheus operator (monitoring.coreos.com/v1). Its CRDs are not at hand where the tests run:
# these are fields, types and required ones as its example/prometheus-operator-crd of August 2026 has them.

TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}
FLAG = {"type": "boolean"}
NUMBER = {"type": "integer"}
NAMES = {"type": "array", "items": TEXT}
PERIOD = {"type": "string", "pattern": DURATION}


def closed(fields: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
        "required": list(required),
    }


RELABEL = closed(
    {
        "action": {"enum": ["replace", "keep", "drop", "hashmod", "labelmap", "labeldrop", "labelkeep"]},
        "sourceLabels": NAMES, "separator": TEXT, "targetLabel": TEXT, "regex": TEXT, "replacement": TEXT,
        "modulus": NUMBER,
    }
)  # fmt: skip
ENDPOINT = closed(
    {
        "port": TEXT, "portNumber": {"type": "integer", "minimum": 1, "maximum": 65535}, "path": TEXT,
        "scheme": {"enum": ["http", "https", "HTTP", "HTTPS"]}, "interval": PERIOD, "scrapeTimeout": PERIOD,
        "params": {"type": "object", "additionalProperties": NAMES}, "filterRunning": FLAG,
        "honorLabels": FLAG, "honorTimestamps": FLAG, "trackTimestampsStaleness": FLAG,
        "relabelings": {"type": "array", "items": RELABEL},
        "metricRelabelings": {"type": "array", "items": RELABEL},
    }
)  # fmt: skip
REQUIREMENT = closed(
    {"key": TEXT, "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, "values": NAMES},
    "key", "operator",
)  # fmt: skip
SELECTOR = closed(
    {"matchLabels": LABELS, "matchExpressions": {"type": "array", "items": REQUIREMENT}},
)
POD_MONITOR = closed(
    {
        "jobLabel": TEXT, "podTargetLabels": NAMES, "selector": SELECTOR,
        "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": ENDPOINT},
        "namespaceSelector": closed({"any": FLAG, "matchNames": NAMES}),
        "sampleLimit": NUMBER, "targetLimit": NUMBER, "labelLimit": NUMBER, "scrapeClass": TEXT,
    },
    "selector", "podMetricsEndpoints",
)  # fmt: skip
RULE = closed(
    {
        "alert": TEXT, "record": TEXT, "expr": {"type": ["string", "integer"]}, "for": PERIOD,
        "keep_firing_for": PERIOD, "labels": LABELS, "annotations": LABELS,
    },
    "expr",
) | {"oneOf": [{"required": ["alert"]}, {"required": ["record"]}]}  # fmt: skip
RULE_GROUP = closed(
    {
        "name": {"type": "string", "minLength": 1}, "interval": PERIOD, "query_offset": PERIOD,
        "limit": NUMBER, "labels": LABELS, "rules": {"type": "array", "minItems": 1, "items": RULE},
    },
    "name", "rules",
)  # fmt: skip
RULES = closed({"groups": {"type": "array", "minItems": 1, "items": RULE_GROUP}}, "groups")
MONITORING = {
    kind: closed({"apiVersion": TEXT, "kind": TEXT, "metadata": {"type": "object"}, "spec": spec}, "spec")
    for kind, spec in {"PodMonitor": POD_MONITOR, "PrometheusRule": RULES}.items()
}
