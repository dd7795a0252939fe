"""Whether `doctor` sees what would spoil a run, and the mend; facts are handed in, one Ray is real."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import checks, doctor, machine, probe
from orchestrator.checks import FAIL, OK, WARN
from orchestrator.cluster import ClusterError, Placement, per_node
from orchestrator.manifest import Manifest, parse_manifest
from tests.made_records import manifest, specs
from tests.ray_nodes import LocalRay

TIME_BUDGET_S = 15

FACTS = {
    "python": "3.11.7",
    "torch": "2.13.0",
    "pyzmq": "27.3.0",
    "numpy": "2.4.6",
    "error": None,
    "open_files": 65536,
    "niceness": 0,
}


def node(name: str = "a", cpu: float = 8, gpu: float = 0, **facts: Any) -> dict[str, Any]:
    resources = {"CPU": cpu, "GPU": gpu}
    return {"name": name, "address": "10.0.0.7", "id": name, "resources": resources, "facts": FACTS | facts}


def cluster_of(*nodes: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {"nodes": list(nodes), "here": machine.own_address(), "auth": "token"} | changed


# Versions


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.60.0", ">=2.60,<3", True),
        ("3.0", ">=2.60,<3", False),
        ("2.13.0+cpu", ">=2.8,<3", True),
        ("2.8", ">=2.8.0", True),
        ("2.7.9", ">=2.8", False),
        ("6.0.17", "==6.0.17", True),
        ("6.0.18", "==6.0.17", False),
    ],
)
def test_a_version_is_compared_by_numbers(version: str, wanted: str, fits: bool) -> None:
    assert checks.in_range(version, wanted) is fits


def test_ranges_are_read_from_requirement_lines() -> None:
    found = checks.ranges_of(["ray>=2.60,<3", "PyYAML >= 6 ; extra == 'x'", "rich", "typer[all]>=0.15"])
    assert found["ray"] == ">=2.60,<3" and found["pyyaml"] == ">= 6" and "rich" not in found


def test_the_projects_own_ranges_are_known_here() -> None:
    assert {"ray", "pyzmq", "torch", "mlcommons-loadgen"} <= doctor.wanted_ranges().keys()


def test_a_missing_library_fails_only_where_it_is_needed() -> None:
    assert checks.package_check("torch", None, ">=2.8", needed=True).status == FAIL
    assert checks.package_check("torch", None, ">=2.8", needed=False).status == WARN
    assert "pip install 'ray>=2.60'" in checks.package_check("ray", "2.9", ">=2.60").mend


def test_python_outside_the_supported_range_fails() -> None:
    found = [
        checks.python_check(version).status for version in ((3, 10, 1), (3, 11, 7), (3, 12, 0), (3, 13, 0))
    ]
    assert found == [FAIL, OK, OK, FAIL]


def test_the_installed_loadgen_is_recognised_as_approved() -> None:
    found = doctor.loadgen_check(None)
    assert found.status in (OK, WARN) and "6.0.17" in found.seen


# What the manifest names


def networked(folder: Path, round_name: str = "v1.1", **replaced: tuple[str, str]) -> Manifest:
    text = f"""
name: named
round: {round_name}
suite: edge
division: open
benchmark: resnet
scenarios: [Offline]
task: {{name: imagenet, path: photos}}
backend: {{engine: torch, model: resnet50, weights: w.pth}}
loadgen: {{path: own}}
"""
    for old, new in replaced.values():
        text = text.replace(old, new)
    return parse_manifest(text.encode(), folder / "named.yaml")


def test_a_missing_data_set_and_weights_fail_where_they_are_needed(tmp_path: Path) -> None:
    found = list(doctor.files_checks(networked(tmp_path), "local"))
    assert [(check.name, check.status) for check in found] == [("data set", FAIL), ("weights", FAIL)]
    assert "photos" in found[0].seen and "task.path" in found[0].mend and "backend.weights" in found[1].mend
    assert [check.name for check in doctor.files_checks(networked(tmp_path), "10.0.0.7:6379")] == ["data set"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "w.pth").touch()
    assert not list(doctor.files_checks(networked(tmp_path), "local"))


def test_a_missing_own_loadgen_is_to_be_built_from_the_rounds_tag(tmp_path: Path) -> None:
    found = doctor.loadgen_check(networked(tmp_path))
    assert found.status == FAIL and "build LoadGen's tag r1.1" in found.mend
    assert "unofficial" in found.mend and "pip" not in found.mend
    assert "take the line loadgen.path out" in doctor.loadgen_check(networked(tmp_path, "v6.1")).mend


def test_a_package_that_the_task_or_the_engine_lacks_fails_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = networked(tmp_path, engine=("engine: torch, model: resnet50", "engine: onnx"))
    monkeypatch.delitem(sys.modules, "workers.backends.onnx_engine", raising=False)
    monkeypatch.delitem(sys.modules, "workers.backends.onnx_session", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = doctor.parts_check(made, "local")
    assert (found.status, found.mend) == (FAIL, "pip install onnxruntime")
    assert doctor.parts_check(made, "10.0.0.7:6379").status == OK, "the engine runs elsewhere"
    monkeypatch.delitem(sys.modules, "workers.tasks.imagenet", raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    found = doctor.parts_check(made, "local")
    assert found.status == FAIL and found.mend.startswith("pip install opencv-python-headless")


# This machine


def test_a_busy_machine_is_warned_about() -> None:
    assert checks.cpu_check(16, 1.0).status == OK
    assert checks.cpu_check(16, 9.0).status == WARN


def test_a_governor_that_saves_power_is_warned_about() -> None:
    assert checks.frequency_check({"performance"}, True).status == OK
    assert "performance" in checks.frequency_check({"powersave"}, None).mend
    assert checks.frequency_check(set(), None).status == OK


def test_memory_is_compared_with_the_hungriest_test() -> None:
    made = specs(manifest())
    assert checks.memory_check(10**12, made).status == OK
    found = checks.memory_check(1000, made)
    assert found.status == FAIL and "LoadGen needs up to" in found.seen and "lower" in found.mend
    assert checks.memory_check(None, made).status == WARN


def test_few_file_descriptors_warn_and_very_few_fail() -> None:
    found = [checks.open_files_check(soft, 10**6).status for soft in (256, 1024, 65536, -1)]
    assert found == [FAIL, WARN, OK, OK]
    assert "ulimit -n 4096" in checks.open_files_check(1024, 10**6).mend


def test_too_little_shared_memory_for_ray_fails() -> None:
    assert checks.shared_memory_check((64_000_000, 64_000_000)).status == FAIL
    assert checks.shared_memory_check((10**10, 10**10)).status == OK
    assert checks.shared_memory_check(None).status == WARN


def test_clocks_that_are_moved_are_warned_about() -> None:
    found = [
        checks.clock_check(*seen).status
        for seen in ((11.0, True), (11.0, None), (11.0, False), (5000.0, True))
    ]
    assert found == [OK, OK, WARN, WARN]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_folder_that_cannot_be_written_into_fails() -> None:
    assert checks.disk_check("/runs", 10**12, True).status == OK
    assert checks.disk_check("/runs", 10**12, False).status == FAIL


def test_ports_in_use_are_counted_and_too_few_for_the_threads_warn_but_only_none_left_fails(
    taken_port: int,
) -> None:
    assert machine.why_not_listen("127.0.0.1", taken_port) == "in use"
    assert machine.why_not_listen("127.0.0.1", 0) is None
    for taken, wanted, status in (([9000], 1, OK), ([9000], 2, WARN), ([], 1, OK), ([9000, 9001], 1, FAIL)):
        assert checks.ports_check("10.0.0.7", (9000, 9001), taken, wanted).status == status
    assert checks.ports_check("10.0.0.7", (9000, 9003), [], 2).status == OK
    assert checks.ports_check("10.0.0.7", (9000, 9003), [9001], 2).status == WARN


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    assert machine.why_not_listen("203.0.113.9", 0) is not None


@pytest.mark.parametrize(
    ("address", "security", "status"),
    [
        ("10.0.0.7", "curve", OK),
        ("127.0.0.1", "none", OK),
        ("10.0.0.7", "none", WARN),
        ("8.8.8.8", "curve", WARN),
        ("8.8.8.8", "none", FAIL),
        ("0.0.0.0", "none", FAIL),
        ("fe80::1%eth0", "curve", OK),
        ("node-a", "curve", OK),
    ],
)
def test_a_data_plane_open_to_everyone_is_told(address: str, security: str, status: str) -> None:
    assert checks.exposure_check(address, security).status == status


# GPUs


def gpu(**changed: str) -> str:
    values = dict(
        zip(
            checks.GPU_FIELDS,
            ["0", "H100", "81559", "Enabled", "Enabled", "0", "1980", "1980", "0x0000000000000001"],
            strict=True,
        )
    )
    return ", ".join((values | changed).values())


def test_gpus_are_read_with_what_slows_them() -> None:
    assert [c.status for c in checks.gpu_checks(f"{gpu()}\n{gpu(index='1')}\n", True)] == [OK, OK]
    hot = next(checks.gpu_checks(gpu(**{"clocks_throttle_reasons.active": "0x0000000000000024"}), True))
    assert hot.status == WARN and "power cap, heat" in hot.seen
    broken = next(checks.gpu_checks(gpu(**{"ecc.errors.uncorrected.volatile.total": "3"}), True))
    assert broken.status == FAIL
    lazy = next(checks.gpu_checks(gpu(persistence_mode="Disabled"), True))
    assert lazy.status == WARN and "nvidia-smi -pm 1" in lazy.mend


def test_no_gpu_is_a_warning_only_where_one_is_wanted() -> None:
    assert [next(checks.gpu_checks(None, wanted)).status for wanted in (True, False)] == [WARN, OK]
    assert next(checks.gpu_checks("no devices were found", True)).status == WARN


# The cluster


def test_a_node_without_our_packages_or_without_an_answer_fails_by_name() -> None:
    nodes = [
        node("a"),
        node("b", error="ModuleNotFoundError: workers"),
        node("c") | {"facts": None, "error": "gone"},
    ]
    found = list(checks.node_checks(nodes, True, FACTS))
    assert [(c.name, c.status) for c in found] == [("node a", OK), ("node b", FAIL), ("node c", FAIL)]
    assert "ModuleNotFoundError: workers" in found[1].seen and "gone" in found[2].seen


def test_other_versions_on_a_node_are_warned_about_and_missing_torch_fails_if_needed() -> None:
    assert [c.status for c in checks.node_checks([node(pyzmq="26.2")], False, FACTS)] == [WARN]
    assert [c.status for c in checks.node_checks([node(torch=None)], True, FACTS)] == [FAIL]
    assert [c.status for c in checks.node_checks([node(open_files=512)], True, FACTS)] == [OK, FAIL]


def test_a_node_whose_workers_give_way_to_all_else_is_warned_about() -> None:
    found = list(checks.node_checks([node("a"), node("b", niceness=15)], True, FACTS))
    assert [(c.name, c.status) for c in found] == [("node a", OK), ("node b", OK), ("priority", WARN)]
    assert "b: " in found[-1].seen and "RAY_worker_niceness=0" in found[-1].mend


@pytest.mark.parametrize(
    ("workers", "nodes", "status"),
    [
        ("count: 2", [node(cpu=2)], OK),
        ("count: 3", [node(cpu=2)], FAIL),
        ("count: 3", [node(cpu=2), node(cpu=1)], OK),
        ("count: 3, num_cpus: 2", [node(cpu=3), node(cpu=3)], FAIL),
        ("count: 1, num_gpus: 1", [node()], FAIL),
        ("count: 4, num_cpus: 0, num_gpus: 0.25", [node(gpu=1)], OK),
        ("count: 2, placement: per_node", [node(cpu=2), node(cpu=1)], WARN),
        ("count: 2, placement: per_node", [node(cpu=1)], FAIL),
    ],
)
def test_room_for_the_manifests_workers_is_counted_node_by_node(
    workers: str, nodes: list[dict[str, Any]], status: str
) -> None:
    made = manifest(workers=("{count: 2}", f"{{{workers}}}"))
    assert checks.room_check(made, nodes, 64, local=False).status == status


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "says"),
    [
        (4, 1, [node()], "no node has a GPU: set workers.num_gpus: 0"),
        (1, 2, [node(gpu=1)], "no node has 2 GPUs for one worker: lower workers.num_gpus"),
        (4, 0, [node(cpu=2), node(cpu=3)], "no node has 4 CPUs for one worker: set workers.num_cpus to 3"),
        (4, 1, [node(gpu=1)], "Lower workers.count, or add nodes"),
    ],
)
def test_a_cluster_too_small_for_one_worker_names_the_field_to_change(
    cpus: float, gpus: float, nodes: list[dict[str, Any]], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match=says):
        per_node(Placement(9, "per_node", cpus, gpus), nodes)
    made = manifest(workers=("{count: 2}", f"{{count: 9, num_cpus: {cpus}, num_gpus: {gpus}}}"))
    mend = checks.room_check(made, nodes, 64, local=False).mend
    assert says.lower()[:18] in mend.lower()


def test_a_local_ray_that_shares_cores_is_warned_about() -> None:
    made = manifest(workers=("{count: 2}", "{count: 8}"))
    assert checks.room_check(made, [node(cpu=9)], 2, local=True).status == WARN


def test_ray_without_a_token_is_warned_about() -> None:
    assert checks.auth_check("token", "auto").status == OK
    assert "every node" in checks.auth_check("disabled", "auto").mend


# The whole


def test_a_fit_machine_is_told_to_be_fit_one_line_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, int]] = []

    def ask(address: str, cpus: int) -> dict[str, Any]:
        asked.append((address, cpus))
        return cluster_of(node(**doctor.versions()))

    assert doctor.examine("local", manifest(), ask)
    lines = capsys.readouterr().out.splitlines()
    assert asked == [("local", 3)]
    assert (
        all(line.startswith(("ok   ", "warn ")) for line in lines[:-1]) and "0 that would keep" in lines[-1]
    )
    assert any(line.startswith("ok   workers") for line in lines)


def test_a_cluster_that_cannot_be_joined_is_one_line_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not doctor.examine("auto", None, lambda address, cpus: {"error": "no Ray cluster at 'auto'"})
    said = capsys.readouterr().out
    assert "FAIL Ray" in said and "no Ray cluster at 'auto'" in said and "Traceback" not in said


def test_an_address_where_nobody_listens_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def never(address: str, cpus: int) -> dict[str, Any]:
        raise AssertionError("Ray would try for minutes")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not doctor.examine(f"127.0.0.1:{port}", None, never)
    assert f"nobody answers at 127.0.0.1:{port}" in capsys.readouterr().out


def test_workers_in_the_test_process_need_no_ray(capsys: pytest.CaptureFixture[str]) -> None:
    made = manifest(workers=("{count: 2}", "{count: 2, where: local}"))
    assert doctor.examine("local", made, lambda address, cpus: {"error": "must not be asked"})
    assert "not needed" in capsys.readouterr().out


def test_a_probe_that_hangs_is_ended_in_time() -> None:
    with socket.create_server(
        ("", 0)
    ) as server:  # on every address: Ray takes the loopback for the node's own
        told = probe.ask(f"127.0.0.1:{server.getsockname()[1]}", 1, limit_s=2.0)
    assert told == {"error": "Ray did not answer in 2 s"}


def test_what_ray_prints_beside_the_answer_is_passed_over() -> None:
    assert probe.last_object('(raylet) noise\n{"nodes": []}\n') == {"nodes": []}
    assert (
        "error" in probe.last_object("")
        and "error" in probe.last_object("[1]")
        and "error" in probe.last_object("{")
    )


def test_a_real_ray_tells_what_its_node_has(local_ray: LocalRay) -> None:
    told = probe.ask(local_ray.address, 1)
    [found] = told["nodes"]
    assert found["facts"]["error"] is None and found["resources"]["CPU"] >= 1
    assert told["auth"] == "token"
