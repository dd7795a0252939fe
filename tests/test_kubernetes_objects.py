"""The check of Kubernetes objects finds single faults, each of them refused by an API server or operator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
import yaml

from tests.kubernetes_objects import crds_here, problems_of, program, ray_schemas

TIME_BUDGET_S = 12

Object = dict[str, Any]
Change = Callable[[Object], Any]
needs_crds = pytest.mark.skipif(not crds_here, reason="KubeRay's CRDs do not lie beside the repository")

POD = """
  securityContext: {runAsNonRoot: true, runAsUser: 1000}
  containers:
    - name: ray
      image: example/loadgrid:1
      ports: [{containerPort: 8080, name: metrics}]
      env: [{name: HOME, value: /tmp}]
      resources:
        requests: {cpu: 500m, memory: 2Gi, nvidia.com/gpu: 1}
        limits: {cpu: "2", memory: 2Gi, nvidia.com/gpu: 1}
      volumeMounts: [{name: runs, mountPath: /runs}]
  volumes: [{name: runs, emptyDir: {}}]
"""
CLUSTER = """
rayVersion: 2.60.0
authOptions: {mode: token, secretName: token}
headGroupSpec:
  rayStartParams: {num-cpus: "0"}
  template: {spec: {}}
workerGroupSpecs:
  - groupName: gpu
    replicas: 2
    minReplicas: 2
    maxReplicas: 2
    rayStartParams: {}
    template: {metadata: {labels: {team: benchmarks}}, spec: {}}
"""
JOB = """
apiVersion: ray.io/v1
kind: RayJob
metadata: {name: loadgrid, labels: {app: loadgrid}}
spec:
  entrypoint: loadgrid run /manifests
  entrypointResources: '{"loadgrid-driver": 1}'
  submissionMode: K8sJobMode
  backoffLimit: 0
  activeDeadlineSeconds: 3600
  shutdownAfterJobFinishes: false
"""
CORE = """
ConfigMap:
  apiVersion: v1
  data: {loadgrid.yaml: "round: v6.1"}
Secret:
  apiVersion: v1
  data: {auth_token: c2VjcmV0}
PersistentVolumeClaim:
  apiVersion: v1
  spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 10Gi}}}
NetworkPolicy:
  apiVersion: networking.k8s.io/v1
  spec:
    podSelector: {matchLabels: {app: loadgrid}}
    policyTypes: [Ingress]
    ingress:
      - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [loadgrid]}]}}]
        ports: [{protocol: TCP, port: 20000, endPort: 20099}, {port: metrics}]
Service:
  apiVersion: v1
  spec: {selector: {app: loadgrid}, ports: [{port: 8265, targetPort: dashboard}]}
PodMonitor:
  apiVersion: monitoring.coreos.com/v1
  spec:
    selector: {matchLabels: {ray.io/node-type: worker}}
    podMetricsEndpoints: [{port: metrics, interval: 5s, relabelings: [{action: keep, regex: x}]}]
PrometheusRule:
  apiVersion: monitoring.coreos.com/v1
  spec:
    groups:
      - name: loadgrid
        rules: [{alert: WorkerLost, expr: loadgrid_workers < 2, for: 10s, labels: {severity: page}}]
"""


def good(kind: str) -> Object:
    if kind in ("RayJob", "RayCluster"):
        job, cluster = yaml.safe_load(JOB), yaml.safe_load(CLUSTER)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            group["template"]["spec"] = yaml.safe_load(POD)
        if kind == "RayCluster":
            return {**job, "kind": kind, "spec": cluster}
        job["spec"]["rayClusterSpec"] = cluster
        return job
    return {"kind": kind, "metadata": {"name": "loadgrid"}, **yaml.safe_load(CORE)[kind]}


def told(obj: Object, change: Change) -> str:
    changed = copy.deepcopy(obj)
    change(changed)
    return "\n".join(problems_of(changed))


def ray_container(job: Object) -> Object:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]


def group(job: Object) -> Object:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


@pytest.mark.parametrize("kind", [*yaml.safe_load(CORE)])
def test_a_good_object_passes(kind: str) -> None:
    assert problems_of(good(kind)) == []


@needs_crds
@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_a_good_object_of_rays_passes(kind: str) -> None:
    assert problems_of(good(kind)) == []


CORE_FAULTS: list[tuple[str, Change, str]] = [
    ("ConfigMap", lambda o: o["data"].update(n=1), "data.n: 1 is not of type"),
    ("ConfigMap", lambda o: o.update(date={}), "'date' was unexpected"),
    ("ConfigMap", lambda o: o["data"].update({"a/b": ""}), "'a/b' is no name of a file"),
    ("ConfigMap", lambda o: o["data"].update(big="x" * 2**20), "more than the 1048576"),
    ("ConfigMap", lambda o: o["metadata"].update(name="Load_Grid"), "'Load_Grid' is no name for a ConfigMap"),
    ("ConfigMap", lambda o: o["metadata"].update(labels={"a": "b c"}), "'b c' is no value of a label"),
    ("ConfigMap", lambda o: o["metadata"].update(labels={"a": 1}), "metadata.labels.a: 1 is not of type"),
    ("ConfigMap", lambda o: o["metadata"].update(annotations={"a b": ""}), "'a b' is no key"),
    ("ConfigMap", lambda o: o.update(kind="ConfigMop"), "has no kind ConfigMop"),
    ("ConfigMap", lambda o: o.update(kind="PodSpec"), "has no kind PodSpec"),
    ("ConfigMap", lambda o: o.update(apiVersion="v2"), "has no kind ConfigMap in v2"),
    ("ConfigMap", lambda o: o.pop("apiVersion"), "apiVersion: is required"),
    ("ConfigMap", lambda o: o.pop("metadata"), "metadata: is required"),
    ("ConfigMap", lambda o: o.update(metadata={"namespace": "a"}), "name: is required"),
    ("ConfigMap", lambda o: o["data"].update(day=date(2026, 1, 1)), "not plain JSON"),
    ("Secret", lambda o: o["data"].update(auth_token="not base64!"), "data.auth_token: is not base64"),
    ("PersistentVolumeClaim", lambda o: o["spec"].update(accessModes=["Many"]), "'Many' is none of"),
    ("PersistentVolumeClaim", lambda o: o["spec"].pop("resources"), "storage: is required"),
    ("NetworkPolicy", lambda o: o["spec"].update(podSelectors={}), "'podSelectors' was unexpected"),
    ("NetworkPolicy", lambda o: o["spec"].update(policyTypes=["Inward"]), "'Inward' is none of"),
    ("NetworkPolicy", lambda o: o["spec"]["ingress"][0]["ports"][0].update(endPort=1), "endPort 1 needs"),
    ("NetworkPolicy", lambda o: o["spec"]["ingress"][0]["ports"][0].update(port={}), "port: {} is not valid"),
    ("NetworkPolicy", lambda o: o["spec"]["ingress"][0]["from"][0].update(ipBlock={"cidr": "10.0.0.0/8"}),
     "a peer is selectors or an ipBlock"),
    ("NetworkPolicy", lambda o: o["spec"]["ingress"][0].update({"from": [{"ipBlock": {"cidr": "x"}}]}),
     "'x' does not appear"),
    ("Service", lambda o: o["spec"]["ports"][0].pop("port"), "'port' is a required property"),
    ("Service", lambda o: o["metadata"].update(name="1st"), "'1st' is no name for a Service"),
    ("PodMonitor", lambda o: o["spec"].pop("selector"), "'selector' is a required property"),
    ("PodMonitor", lambda o: o["spec"].update(podMetricEndpoints=[]), "'podMetricEndpoints' was unexpected"),
    ("PodMonitor", lambda o: o["spec"]["podMetricsEndpoints"][0].update(port=8080), "8080 is not of type"),
    ("PodMonitor", lambda o: o["spec"]["podMetricsEndpoints"][0].update(interval="5 s"), "does not match"),
    ("PrometheusRule", lambda o: o["spec"]["groups"][0]["rules"][0].pop("expr"), "'expr' is a required"),
    ("PrometheusRule", lambda o: o["spec"]["groups"][0]["rules"][0].pop("alert"), "not valid under any"),
    ("PrometheusRule", lambda o: o["spec"]["groups"][0]["rules"][0].update(expr="a <"), "rules[0].expr"),
    ("PrometheusRule", lambda o: o["spec"]["groups"].append(o["spec"]["groups"][0]), "is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "words"), CORE_FAULTS)
def test_a_single_fault_is_told(kind: str, change: Change, words: str) -> None:
    assert words in told(good(kind), change)


def test_what_is_no_object_is_told() -> None:
    assert problems_of(["v1"]) and problems_of(None) and problems_of({})


SCHEMA_FAULTS: list[tuple[Change, str]] = [
    (lambda o: o["spec"].update(backoffLimit="0"), "spec.backoffLimit: '0' is not of type 'integer'"),
    (lambda o: o["spec"].update(entryPoint="x"), "'entryPoint' was unexpected"),
    (lambda o: o["spec"]["rayClusterSpec"].pop("headGroupSpec"), "'headGroupSpec' is a required property"),
    (lambda o: o["spec"]["rayClusterSpec"]["authOptions"].update(mode="none"), "'none' is not one of"),
    (lambda o: group(o)["rayStartParams"].update({"num-gpus": 1}), "num-gpus: 1 is not of type 'string'"),
    (lambda o: group(o)["template"]["metadata"]["labels"].update(a=1), "1 is not of type 'string'"),
    (lambda o: group(o).pop("groupName"), "'groupName' is a required property"),
    (lambda o: ray_container(o).update(volumeMount=[]), "'volumeMount' was unexpected"),
    (lambda o: ray_container(o).pop("name"), "'name' is a required property"),
    (lambda o: ray_container(o)["ports"][0].pop("containerPort"), "'containerPort' is a required property"),
    (lambda o: ray_container(o)["ports"].append({"containerPort": 8080}), "is there twice"),
    (lambda o: ray_container(o)["resources"]["limits"].update(cpu=[1]), "[1] is not valid under any"),
    (lambda o: ray_container(o)["resources"]["limits"].update(cpu="two"), "'two' does not match"),
    (
        lambda o: ray_container(o).update(livenessProbe={"httpGet": {"port": 1.5}}),
        "1.5 is not valid under any",
    ),
    (lambda o: ray_container(o).update(livenessProbe={"httpGet": {}}), "'port' is a required property"),
    (lambda o: o["metadata"].update(label={}), "metadata: Additional properties"),
    (lambda o: o.update(apiVersion="ray.io/v1beta1"), "RayJob is served in v1"),
    (lambda o: o.update(kind="RayJobs"), "ray.io has no kind RayJobs"),
]


@needs_crds
@pytest.mark.parametrize(("change", "words"), SCHEMA_FAULTS)
def test_a_single_fault_against_rays_schema_is_told(change: Change, words: str) -> None:
    assert words in told(good("RayJob"), change)


POD_FAULTS: list[tuple[Change, str]] = [
    (lambda c: c["volumeMounts"][0].update(name="run"), "mounts 'run', no volume"),
    (lambda c: c["volumeMounts"].append(c["volumeMounts"][0]), "'/runs' is mounted twice"),
    (lambda c: c["ports"][0].update(name="a-name-that-is-long"), "is no name of a port"),
    (lambda c: c["ports"][0].update(containerPort=0), "0 is no port"),
    (lambda c: c["ports"].append({"containerPort": 1, "name": "metrics"}), "port 'metrics' is there twice"),
    (lambda c: c["env"].append({"name": "A", "value": "1", "valueFrom": {}}), "'A' has a value and a source"),
    (lambda c: c["env"].append({"name": "HOME"}), "variable 'HOME' is there twice"),
    (lambda c: c["resources"]["requests"].update(cpu=3), "asks for 3 of cpu"),
    (lambda c: c["resources"]["requests"].update({"nvidia.com/gpu": 0}), "must be the same"),
    (lambda c: c["resources"].update(requests={}, limits={"nvidia.com/gpu": "500m"}), "no whole number"),
    (lambda c: c.update(securityContext={"runAsUser": 0}), "runs as user 0"),
    (lambda c: c.update(imagePullPolicy="Sometimes"), "'Sometimes' is none of"),
    (lambda c: c.update(name="Ray"), "'Ray' is no name"),
    (lambda c: c.update(image=""), "has no image"),
]


@pytest.mark.parametrize(("change", "words"), POD_FAULTS)
def test_a_single_fault_of_a_pod_is_told(change: Change, words: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": yaml.safe_load(POD)}
    assert problems_of(pod) == []
    assert words in told(pod, lambda o: change(o["spec"]["containers"][0]))


def test_faults_of_a_pods_volumes_are_told() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": yaml.safe_load(POD)}
    volumes = pod["spec"]["volumes"]
    assert "exactly one source" in told(pod, lambda o: o["spec"]["volumes"][0].pop("emptyDir"))
    assert "'runs' is there twice" in told(pod, lambda o: o["spec"]["volumes"].extend(volumes))


OPERATOR_FAULTS: list[tuple[Change, str]] = [
    (lambda o: o["metadata"].update(name="a" * 48), "KubeRay takes 47"),
    (lambda o: o["spec"].update(submissionMode="Job"), "'Job' is none of"),
    (lambda o: o["spec"].pop("rayClusterSpec"), "one of rayClusterSpec and clusterSelector"),
    (lambda o: o["spec"].update(clusterSelector={"name": "x"}), "must name ray.io/cluster"),
    (
        lambda o: o["spec"].update(clusterSelector={"ray.io/cluster": "x"}, backoffLimit=1),
        "not with clusterS",
    ),
    (
        lambda o: o["spec"].update(submissionMode="InteractiveMode", backoffLimit=1),
        "not with InteractiveMode",
    ),
    (lambda o: o["spec"].update(submissionMode="SidecarMode", submitterConfig={}), "takes no ['submitterC"),
    (lambda o: o["spec"].update(suspend=True), "suspend: needs shutdownAfterJobFinishes"),
    (lambda o: o["spec"].update(ttlSecondsAfterFinished=60), "ttlSecondsAfterFinished: needs shutdown"),
    (lambda o: o["spec"].update(activeDeadlineSeconds=0), "activeDeadlineSeconds: 0 is too small"),
    (lambda o: o["spec"].update(entrypointResources="{loadgrid-driver: 1}"), "spec.entrypointResources"),
    (lambda o: o["spec"].update(runtimeEnvYAML="[]"), "runtimeEnvYAML: must be a mapping"),
    (lambda o: o["spec"]["rayClusterSpec"].pop("rayVersion"), "token authentication needs 2.52"),
    (lambda o: o["spec"]["rayClusterSpec"].update(networkPolicy={}), "feature gate RayClusterNetworkPolicy"),
    (lambda o: group(o).update(maxReplicas=1), "set minReplicas <= replicas <= maxReplicas"),
    (lambda o: group(o).update(resources={"CPU": "1"}, rayStartParams={"num-cpus": "1"}), "and in resources"),
    (lambda o: group(o).update(rayStartParams={"labels": "a=b"}), "use the group's labels"),
    (lambda o: group(o)["template"]["spec"].update(containers=[]), "has no container"),
]


@needs_crds
@pytest.mark.parametrize(("change", "words"), OPERATOR_FAULTS)
def test_what_kuberays_operator_refuses_is_told(change: Change, words: str) -> None:
    assert words in told(good("RayJob"), change)


# One fault for each CEL rule that a new object can break, by the rule's message.
RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}}
BOTH = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "ttlSeconds": 1}
POLICY = {"policy": "DeleteNone"}
CEL_FAULTS: list[tuple[str, Change]] = [
    ("RayJob", lambda o: o["spec"].update(managedBy="me")),
    ("RayJob", lambda o: o["spec"]["rayClusterSpec"].update(managedBy="me")),
    ("RayJob", lambda o: o["spec"].update(deletionStrategy={})),
    ("RayJob", lambda o: o["spec"].update(
        deletionStrategy={"onSuccess": POLICY, "onFailure": POLICY, "deletionRules": [RULE]})),
    ("RayJob", lambda o: o["spec"].update(deletionStrategy={"deletionRules": [{**RULE, "condition": BOTH}]})),
    ("RayJob", lambda o: o["spec"].update(
        deletionStrategy={"deletionRules": [{**RULE, "condition": {"ttlSeconds": 1}}]})),
    ("RayCluster", lambda o: o["spec"].update(managedBy="me")),
]  # fmt: skip


def rules_of(node: Object) -> list[Object]:
    children = [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]
    found = [rule for child in children if isinstance(child, dict) for rule in rules_of(child)]
    return found + node.get("x-kubernetes-validations", [])


@needs_crds
def test_each_cel_rule_of_the_crds_is_broken_by_one_fault_and_told() -> None:
    for kind in ("RayJob", "RayCluster"):
        rules = rules_of(ray_schemas(kind)["v1"])
        changes = [rule for rule in rules if "oldSelf" in program(rule["rule"]).variables()]
        broken = [told(good(kind), change) for one, change in CEL_FAULTS if one == kind]
        assert all(len(text.splitlines()) == 1 for text in broken), broken
        said = sorted(text.partition(": ")[2].partition(": ")[2] for text in broken)
        assert said == sorted(rule["message"] for rule in rules if rule not in changes)
        assert changes, "the rules about changes are told apart"
    fine = {
        "deletionRules": [RULE, {**RULE, "condition": {"jobDeploymentStatus": "Failed", "ttlSeconds": 1}}]
    }
    assert told(good("RayJob"), lambda o: o["spec"].update(deletionStrategy=fine)) == ""
