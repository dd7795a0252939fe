"""Processors kept awake: by what, where, and that it always ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cluster
from orchestrator.campaign import Session
from orchestrator.doctor import examine
from orchestrator.link import identity_of
from orchestrator.local import LocalLink
from orchestrator.manifest import parse_manifest
from tests.processes import alive, descendants, eventually
from tests.test_links import SECOND_NS, Ends, as_bytes, open_ends, seconds_of
from workers.awake import AUTOGROUP, Awake, AwakeError
from workers.host import WorkerError, WorkerHost, WorkerSpec
from workers.port import DealerPort

TIME_BUDGET_S = 30

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


def test_a_test_that_lost_what_kept_its_processors_awake_does_not_claim_them() -> None:
    before = descendants(os.getpid())
    with contextlib.closing(Awake()) as kept:
        assert kept.count() == len(HERE)
        (parent,) = (pid for pid in descendants(os.getpid()) - before if descendants(pid))
        os.kill(parent, signal.SIGKILL)
        assert eventually(lambda: kept.count() == 0, 10)
    assert eventually(lambda: descendants(os.getpid()) == before, 10)


def test_two_that_begin_together_both_keep_awake_though_the_kernel_takes_one_weight_at_a_time() -> None:
    code = "from workers.awake import Awake; a = Awake(); print(a.count()); a.close()"
    # Without the right to administer, as everybody but root.
    drop = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    command = [*drop, sys.executable, "-c", code] if os.geteuid() == 0 else [sys.executable, "-c", code]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root, and no setpriv to run as less")
    begun = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [one.communicate(timeout=60)[0].strip() for one in begun] == [str(len(HERE))] * 3


def test_a_child_that_its_holder_forked_does_not_keep_the_processors_awake() -> None:
    code = (
        "import os, time\nfrom workers.awake import Awake\na = Awake()\n"
        "if os.fork() == 0: time.sleep(60)\nprint(a._process.pid, flush=True)\ntime.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    parent = int(holder.stdout.readline())
    (forked,) = descendants(holder.pid) - descendants(parent) - {parent}
    family = descendants(parent) | {parent}
    holder.kill()
    holder.wait()
    gone = eventually(lambda: not any(alive(pid) for pid in family), 10)
    os.kill(forked, signal.SIGKILL)
    holder.stdout.close()
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


# Loops that look before they sleep


@pytest.mark.parametrize("kind", ["curve", "none"])
def test_a_link_that_polls_sees_what_comes_though_it_would_not_sleep(kind: str) -> None:
    with contextlib.closing(open_ends(kind, poll_ns=10 * SECOND_NS)) as ends:
        port = ends.greeted(0)
        threading.Timer(0.05, lambda: port.send([b"up"])).start()
        while (got := ends.link.recv()) is None:
            assert seconds_of(lambda: ends.link.wait(0)) < 5
        assert as_bytes(got[1]) == [b"up"]
        threading.Timer(0.05, ends.link.wake).start()
        assert seconds_of(lambda: ends.link.wait(0)) < 5
        assert ends.link.recv() is None


@pytest.fixture
def secured() -> Iterator[Ends]:
    with contextlib.closing(open_ends("curve")) as ends:
        yield ends


def test_a_port_polls_no_longer_than_it_would_wait(secured: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []

    def wait_readable(fds: Sequence[int], timeout_ns: int) -> list[int]:
        waits.append(timeout_ns)
        return [event] if len(waits) == ready_at else []

    monkeypatch.setattr("workers.port.wait_readable", wait_readable)
    keys, event = secured.keys[0], os.eventfd(0)
    address = (secured.link.endpoints[0], identity_of(0), secured.link.server_key, keys)
    with contextlib.closing(DealerPort(*address, poll_ns=10 * SECOND_NS)) as port:
        ready_at = 3  # within the time: no sleep
        port.wait(10 * SECOND_NS, event)
        assert waits == [0, 0, 0]
        waits.clear()
        ready_at = 0  # never: as long as the wait, then the wait
        assert seconds_of(lambda: port.wait(SECOND_NS // 20, event)) < 5
        assert len(waits) > 1 and set(waits) == {0}
        waits.clear()
    with contextlib.closing(DealerPort(*address, poll_ns=SECOND_NS // 50)) as port:
        port.wait(SECOND_NS // 20, event)  # a part of it looking, the rest asleep
        assert (
            len(waits) > 1 and set(waits[:-1]) == {0} and 0 < waits[-1] <= SECOND_NS // 20 - SECOND_NS // 50
        )
    os.close(event)


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
    with pytest.raises(WorkerError, match="worker w0: processors cannot be kept awake: the CPU limit"):
        WorkerHost(dataclasses.replace(ECHO, keep_awake=True)).load()


def test_a_worker_that_cannot_serve_lets_its_host_sleep_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    host, before = WorkerHost(ECHO), descendants(os.getpid())
    host.load()
    monkeypatch.setattr("workers.host.memory_for", full)
    with pytest.raises(OSError, match="No space"):
        host.serve(1, LocalLink(1).ports[0], near=True, keeps_awake=True)
    assert descendants(os.getpid()) == before
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
