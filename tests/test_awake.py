"""Processors kept awake: by what, where, and that it always ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cluster
from orchestrator.campaign import Session
from orchestrator.doctor import examine
from orchestrator.local import LocalLink
from orchestrator.manifest import parse_manifest
from tests.processes import alive, descendants, eventually
from workers.awake import AUTOGROUP, Awake, AwakeError
from workers.host import WorkerError, WorkerHost, WorkerSpec

HERE = sorted(os.sched_getaffinity(0))


def test_one_process_of_the_idle_class_runs_on_each_processor_until_it_is_closed() -> None:
    before = descendants(os.getpid())
    with contextlib.closing(Awake()) as kept:
        assert kept.processors == HERE
        mine = descendants(os.getpid()) - before
        idle = [pid for pid in mine if os.sched_getscheduler(pid) == os.SCHED_IDLE]
        assert sorted(cpu for pid in idle for cpu in os.sched_getaffinity(pid)) == HERE
        assert len(mine) == len(idle) + 1
        for pid in idle:
            assert os.getsid(pid) != os.getsid(0)
            if AUTOGROUP.exists():
                assert Path(f"/proc/{pid}/autogroup").read_text().endswith("nice 19\n")
    assert not any(alive(pid) for pid in mine)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", ["holder", "parent"])
def test_nothing_is_left_whoever_is_killed(whom: str, how: signal.Signals) -> None:
    code = "from workers.awake import Awake; a = Awake(); print(a._process.pid, flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdin is not None
    parent = int(holder.stdout.readline())
    family = descendants(parent) | {parent}
    assert len(family) == len(HERE) + 1
    os.kill(holder.pid if whom == "holder" else parent, how)
    gone = eventually(lambda: not any(alive(pid) for pid in family), 10)
    holder.stdin.close()
    holder.stdout.close()
    holder.wait()
    assert gone


def test_a_cpu_limit_is_refused_by_name_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descendants(os.getpid())
    monkeypatch.setattr("workers.limits.cpu_quota", lambda: len(HERE) - 0.5)
    with pytest.raises(
        AwakeError, match=rf"pays for {len(HERE) - 0.5:g} of {len(HERE)} processors.*keep_awake"
    ):
        Awake()
    assert descendants(os.getpid()) == before


def test_a_processor_that_is_not_there_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descendants(os.getpid())
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {*HERE, 4095})
    with pytest.raises(AwakeError, match="Invalid argument"):
        Awake()
    assert descendants(os.getpid()) == before


# Who keeps whose


@pytest.mark.parametrize("division", ["closed", "network"])
@pytest.mark.parametrize("wanted", [True, False])
def test_each_host_but_the_tests_own_has_one_worker_that_keeps_it_awake(
    monkeypatch: pytest.MonkeyPatch, division: str, wanted: bool
) -> None:
    monkeypatch.setattr(cluster, "node_address", lambda: "a")
    facts = [
        {"name": f"w{i}", "node": node, "max_batch": 8, "warm_up": [[1, 0.001]]}
        for i, node in enumerate("abcabc")
    ]
    dispatch = SimpleNamespace(security="none", keep_awake=wanted)
    fleet = SimpleNamespace(facts=facts, names=["w0", "w1", "w3", "w4", "w5"])  # w2 was lost
    session: Any = SimpleNamespace(
        manifest=SimpleNamespace(division=division, dispatch=dispatch), fleet=fleet, stop=None
    )
    keepers = [seat.name for seat in Session._seats(session) if seat.keeps_awake]
    assert keepers == (["w1", "w5"] if wanted else [])


ECHO = WorkerSpec("w0", "null", {"count": 8, "sample_bytes": 4}, {"engine": "echo"}, 8, needs_library=False)


def test_a_worker_keeps_its_host_awake_from_attach_to_detach() -> None:
    host, before = WorkerHost(ECHO), descendants(os.getpid())
    host.load()
    for _ in range(2):
        host.serve(1, LocalLink(1).ports[0], keeps_awake=True)
        assert len(descendants(os.getpid()) - before) == len(HERE) + 1
        host.detach()
        assert descendants(os.getpid()) == before
    host.close()


def test_a_worker_that_may_not_says_so_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    host = WorkerHost(ECHO)
    host.load()
    monkeypatch.setattr("workers.limits.cpu_quota", lambda: 0.5)
    with pytest.raises(WorkerError, match="worker w0: processors cannot be kept awake: the CPU limit"):
        host.serve(1, LocalLink(1).ports[0], keeps_awake=True)
    host.serve(1, LocalLink(1).ports[0])
    host.close()


MANIFEST = b"""
name: awake
round: v6.1
suite: datacenter
division: open
benchmark: resnet
scenarios: [Server]
task: {name: "null", count: 64}
backend: {engine: echo}
workers: {where: local}
dispatch: {keep_awake: true}
loadgen: {Server: {target_qps: 10}}
"""


@pytest.mark.parametrize("limited", [True, False])
def test_doctor_tells_of_a_cpu_limit_where_the_manifest_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limited: bool
) -> None:
    if limited:
        monkeypatch.setattr("workers.limits.cpu_quota", lambda: 0.5)
    manifest = parse_manifest(MANIFEST, "awake")
    assert examine("local", manifest, lambda address, cpus: {}) is not limited
    assert ("FAIL processors" in capsys.readouterr().out) is limited
