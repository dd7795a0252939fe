"""Clusters that cannot be used: exit code 3 (2 if none is wanted) and one message, soon, that says why."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from orchestrator.reach import LIMIT_S, why_no_ray
from tests.processes import PATIENCE, alive, command_line, eventually
from tests.program import PHOTOS, Program, manifest
from tests.ray_nodes import LocalRay

TIME_BUDGET_S = 40


def ended(program: Program, limit_s: float = 30.0) -> tuple[int, str]:
    with program:
        code = program.end(limit_s)
        program.nothing_left_in(5.0)
        assert not program.runs.exists()
        assert "Traceback" not in program.said
        complaints = [line for line in program.lines if line.startswith("loadgrid: ")]
        assert len(complaints) == 1 and program.lines[-1] == complaints[0], program.said
    return code, complaints[0]


def test_an_address_without_a_ray_is_a_message_within_seconds(tmp_path: Path) -> None:
    file = manifest(tmp_path, where="ray")
    for address, says in (
        ("127.0.0.1:9", "Connection refused"),
        ("no-such-host.invalid:6379", "no-such-host.invalid:6379"),
        ("somewhere", "Invalid address format"),
    ):
        code, message = ended(Program(tmp_path, "run", file, "--address", address), 15.0)
        assert code == 3
        assert message.startswith(f"loadgrid: no Ray cluster at '{address}': ")
        assert says in message


def test_an_address_that_workers_in_the_test_process_would_not_use_is_refused(tmp_path: Path) -> None:
    file = manifest(tmp_path, where="local")
    for command in ("run", "peak"):
        code, message = ended(Program(tmp_path, command, file, "--address", "auto"), 15.0)
        assert code == 2
        assert "workers.where: --address auto does nothing for workers in the test process" in message
        assert message.endswith("set where: ray to run on that cluster, or leave --address out")


def test_an_address_where_something_else_listens_is_given_up() -> None:
    """After 20 s; two are enough to see that the limit holds. Ray itself would go on, deaf to signals."""
    with socket.create_server(("", 0)) as other:
        began = time.monotonic()
        assert why_no_ray(f"127.0.0.1:{other.getsockname()[1]}", limit_s=2.0) == "no Ray answered in 2 s"
    assert time.monotonic() - began < 5 * PATIENCE
    assert LIMIT_S <= 25


def test_a_wrong_token_is_told_at_once(tmp_path: Path, local_ray: LocalRay) -> None:
    env = {**local_ray.env, "RAY_AUTH_TOKEN": "0" * 32}
    arguments = ["run", manifest(tmp_path, where="ray"), "--address", local_ray.address]
    code, message = ended(Program(tmp_path, *arguments, env=env), 10.0)
    assert code == 3 and "Authentication token is missing or incorrect" in message


def test_a_cluster_without_room_says_what_it_has(tmp_path: Path, local_ray: LocalRay) -> None:
    file = manifest(tmp_path, where="ray", workers=9)
    code, message = ended(Program(tmp_path, "run", file, "--address", local_ray.address, env=local_ray.env))
    assert code == 3
    assert "no room for 9 workers (1 CPU and 0 GPU each); it has " in message and "8 CPU 0 GPU" in message


def test_weights_that_a_clusters_worker_lacks_are_told_with_its_name(
    tmp_path: Path, local_ray: LocalRay
) -> None:
    text = PHOTOS.replace("imagenet-photos\n  path: photos", "'null'\n  sample_bytes: 150528")
    (tmp_path / "p.yaml").write_text(text)
    arguments = ["run", "p.yaml", "--address", local_ray.address]
    code, message = ended(Program(tmp_path, *arguments, env=local_ray.env), 40.0)
    assert code == 3
    assert "worker-0 could not load its model: " in message and "weights.pth" in message
    pids = local_ray.node.pids
    assert eventually(lambda: not any("RayWorker" in command_line(p) for p in pids if alive(p)), 5.0)
