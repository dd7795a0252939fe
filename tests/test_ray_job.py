"""`loadgrid run` as KubeRay runs it: a Ray job, placed by resource on a node that has no CPUs in Ray's eyes.

Ray's own JobManager submits, watches and stops the job: it stands behind `ray job submit`, and only the
dashboard's HTTP is left out. The driver's node has network, processes and mounts of its own, as a pod.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.record import read_record
from tests import two_hosts as lan
from tests.processes import command_line, eventually
from tests.program import manifest
from tests.ray_nodes import RayNode

TIME_BUDGET_S = 30

LIMIT_S = 30.0
# Ray gives a job 3 s between SIGTERM and SIGKILL, unless its node's environment says otherwise.
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
POD = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

# Reads `submit NAME COMMAND`, `wait NAME` and `stop NAME`, and answers each with a line of JSON.
MANAGER = """
import asyncio, json, os, sys
import ray
from ray.dashboard.modules.job.job_manager import JobManager

async def main():
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")
    worker = ray._private.worker.global_worker
    jobs = JobManager(worker.gcs_client, worker.node.get_logs_dir_path())
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        verb, name, *rest = line.rstrip("\\n").split(" ", 2)
        if verb == "submit":
            wanted = {"loadgrid-driver": 1}
            await jobs.submit_job(entrypoint=rest[0], submission_id=name, entrypoint_resources=wanted)
        elif verb == "stop":
            jobs.stop_job(name)
        info = await jobs.get_job_info(name)
        while verb != "submit" and not info.status.is_terminal():
            await asyncio.sleep(0.05)
            info = await jobs.get_job_info(name)
        answer = {"status": info.status, "code": info.driver_exit_code, "said": info.message}
        print(json.dumps(answer), flush=True)

asyncio.run(main())
"""


class Cluster:
    """Host a: Ray's head, the workers' place and the job manager. Host b: the driver's pod."""

    def __init__(self, hosts: lan.Hosts) -> None:
        self.head, self.driver = hosts.hosts
        hosts.kill_all(self.driver)
        env = {key: value for key, value in self.driver.env.items() if key != "RAY_ADDRESS"}
        # A driver finds its node by the processes and the session's folder that it sees: a pod has its own.
        private = [*POD, "sh", "-c", f'mount -t tmpfs tmpfs {hosts.folder} && exec "$@"', "sh"]
        self.driver.ray = RayNode(
            ["--address", hosts.ray_address, "--node-ip-address", self.driver.address,
             "--num-cpus", "0", "--resources", '{"loadgrid-driver": 1}'],
            {**env, **STOP_WAIT}, hosts.folder / "driver.log",
            ["ip", "netns", "exec", self.driver.namespace, *private],
        )  # fmt: skip
        self.driver.ray.wait_started()
        self.manager = hosts.run_in(
            self.head, [sys.executable, "-c", MANAGER], stdin=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self.manager.stdin is not None and self.manager.stdout is not None
        self.manager.stdin.write(line + "\n")
        self.manager.stdin.flush()
        said = []
        for answer in self.manager.stdout:  # Ray prints remarks of its own
            if answer.startswith("{"):
                return json.loads(answer)
            said.append(answer)
        raise AssertionError("the job manager ended:\n" + "".join(said))

    def ours(self) -> list[str]:
        """What runs of LoadGrid in the driver's pod."""
        lines = [command_line(pid) for pid in self.driver.pids]
        return [line for line in lines if "bin/loadgrid" in line or "orchestrator." in line]


@pytest.fixture
def cluster(two_hosts: lan.Hosts) -> Iterator[Cluster]:
    made = Cluster(two_hosts)
    yield made
    assert made.manager.stdin is not None
    made.manager.stdin.close()
    made.manager.wait(10)
    two_hosts.kill_all(made.driver)


def test_a_ray_job_runs_where_its_resource_is_passes_its_exit_code_on_and_can_be_stopped(
    cluster: Cluster, tmp_path: Path
) -> None:
    # exec: else SIGTERM ends the job's shell first, LoadGrid ends as an orphan, and where process 1 reaps no
    # orphans (`ray start` does not) Ray waits for the zombie as long as it would for a process.
    command = "exec loadgrid run {} --address auto --runs-dir {}"
    cluster.ask(f"submit wrong {command.format('absent.yaml', tmp_path / 'wrong')}")
    ended = cluster.ask("wait wrong")
    assert (ended["status"], ended["code"]) == ("FAILED", 2) and "absent.yaml" in ended["said"]

    file = manifest(tmp_path, where="ray", workers=1, duration_ms=600_000)
    cluster.ask(f"submit long {command.format(file, tmp_path / 'long')}")
    detail = "echoes-*/*.partial/mlperf_log_detail.txt"  # LoadGen's: the test runs
    assert eventually(lambda: any((tmp_path / "long").glob(detail)), LIMIT_S)
    assert cluster.ours()
    assert cluster.ask("stop long")["status"] == "STOPPED"
    (written,) = (tmp_path / "long").glob("*/*/record.json")
    record = read_record(written)
    assert (record.status, record.reason) == ("interrupted", "SIGTERM received")
    # The driver's node has no CPUs, so the worker is on the other.
    assert [worker.node for worker in record.workers] == [cluster.head.address]
    assert eventually(lambda: not cluster.ours(), LIMIT_S), cluster.ours()
