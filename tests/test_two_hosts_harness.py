"""The test hosts themselves: real hosts, a cable that can be cut, a cluster that can be made whole again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests import two_hosts as lan
from tests.processes import MARK, PREFIX, alive, eventually, is_orphaned, my_tag
from tests.ray_nodes import LocalRay

TIME_BUDGET_S = 90

ECHO_SERVER = """
import socket
server = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    peer, _ = server.accept()
    peer.sendall(peer.recv(64))
    peer.close()
"""
ECHO_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=1.0) as server:
    server.sendall(b"hello")
    print(server.recv(64).decode())
"""
WHO = """
import os, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")
where = ray.remote(num_cpus=1)(ray.util.get_node_ip_address)
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
found = [where.options(scheduling_strategy=On(node, soft=False)).remote() for node in nodes]
print(*sorted(ray.get(found)))
"""


def test_hosts_reach_each_other_until_the_cable_is_cut_and_again_when_mended(two_hosts: lan.Hosts) -> None:
    here, there = two_hosts.hosts
    server = two_hosts.run_in(there, [sys.executable, "-uc", ECHO_SERVER])
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    client = [sys.executable, "-c", ECHO_CLIENT, there.address]

    assert two_hosts.output_of(here, client) == "hello\n"
    two_hosts.cut(there)
    with pytest.raises(lan.HarnessError, match="Error"):
        two_hosts.output_of(here, client)
    two_hosts.mend(there)
    assert eventually(lambda: two_hosts.output_of(here, client) == "hello\n", 5.0)
    server.kill()


def test_one_ray_spans_both_hosts_and_tasks_run_on_each(two_hosts: lan.Hosts) -> None:
    here, there = two_hosts.hosts
    assert two_hosts.wait_for_nodes(2) == [here.address, there.address]
    assert (
        two_hosts.output_of(here, [sys.executable, "-c", WHO]).splitlines()[-1]
        == f"{here.address} {there.address}"
    )


def test_a_host_without_power_leaves_the_cluster_and_can_be_replaced(two_hosts: lan.Hosts) -> None:
    here, there = two_hosts.hosts
    two_hosts.kill_all(there)
    assert there.pids == set()
    assert two_hosts.wait_for_nodes(1, timeout_s=15) == [here.address]
    two_hosts.form_cluster()
    assert two_hosts.wait_for_nodes(2) == [here.address, there.address]


def test_a_program_on_a_host_belongs_to_it_and_nothing_leads_out(two_hosts: lan.Hosts) -> None:
    host = two_hosts.hosts[0]
    program = two_hosts.run_in(host, ["sleep", "60"])
    assert eventually(lambda: program.pid in host.strays, 5.0)
    assert "default" not in two_hosts.output_of(host, ["ip", "route"])
    two_hosts.output_of(host, ["sh", "-c", f"test -n ${MARK} && test -n $RAY_ADDRESS"])
    program.kill()
    program.wait()


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not(two_hosts: lan.Hosts) -> None:
    tag = f"1-9{os.getpid():07}"  # of a run that cannot be alive: process 1 started earlier than that
    dying = textwrap.dedent(f"""
        import os, signal, subprocess, sys
        os.environ[{MARK!r}] = {tag!r}
        from tests import processes, two_hosts
        processes.my_tag = two_hosts.my_tag = lambda: {tag!r}
        hosts = two_hosts.Hosts(1, "00" * 16)
        hosts.lay_cables()
        sleeper = hosts.run_in(hosts.hosts[0], ["sleep", "600"], stdout=subprocess.DEVNULL)
        print(sleeper.pid, hosts.folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", dying], cwd=root, stdout=subprocess.PIPE, text=True, timeout=30
    )
    pid, folder = done.stdout.split()
    assert alive(int(pid)) and Path(folder).is_dir()

    removed = lan.remove_leftovers()

    assert f"{PREFIX}{tag}-a" in removed and f"{PREFIX}{tag}-switch" in removed
    assert not alive(int(pid)) and not Path(folder).exists()
    assert not is_orphaned(my_tag()) and two_hosts.hosts[0].ray is not None and two_hosts.hosts[0].ray.alive


def test_a_second_process_uses_the_local_ray_by_its_address(local_ray: LocalRay) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHO], env=local_ray.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == local_ray.address.rpartition(":")[0]


def test_waiting_ends_at_its_limit() -> None:
    begun = time.monotonic()
    assert not eventually(lambda: False, 0.1, every_s=0.01)
    assert time.monotonic() - begun < 5.0
    assert alive(os.getpid())
