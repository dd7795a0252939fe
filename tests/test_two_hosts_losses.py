"""Workers, a host and a cable lost in mid-run on two real hosts: told, survived, and nothing left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from orchestrator.record import LossRecord, Record
from tests import two_hosts as lan
from tests.processes import PATIENCE, alive, eventually
from tests.watched_run import WatchedRun, all_once, manifest, python_stands_still

TIME_BUDGET_S = 105

SETTLE_S = 0.7  # from a test's first question to the trouble
# What TCP may leave unacknowledged (TCP_SILENCE_MS), its timers' steps, and a look at the monitor.
CUT_LIMIT_S = 6.0
# A frame's age at which its worker counts as hung (dispatch.HANG_FLOOR_S), with some for a busy machine.
HANG_LIMIT_S = 7.0 * PATIENCE
MOST_HELD = 4 * 8  # samples: two batches, and as many on the wire
LINK_CLOSED = "its link to the test closed"


def losses_of(record: Record) -> dict[str, LossRecord]:
    """The losses by worker; each stands there once, and among the reasons against an official result."""
    losses = {loss.worker: loss for loss in record.losses}
    assert len(losses) == len(record.losses) and not record.official
    for loss in losses.values():
        assert f"loss: worker {loss.worker} was lost ({loss.reason})" in record.unofficial_because
        assert 0 <= loss.moved <= MOST_HELD and loss.at_s is not None
        print(record.test, loss)
    return losses


def worker_of(record: Record, pid: int) -> str:
    return next(w.name for w in record.workers if w.facts["pid"] == pid)


def names_of(record: Record, *hosts: lan.Host) -> set[str]:
    return {w.name for w in record.workers if w.node in [host.address for host in hosts]}


def kill_one_on(run: WatchedRun, host: lan.Host) -> int:
    """Kill -9 one worker of a host; its pid."""
    pid = run.workers_on(host)[0]
    os.kill(pid, signal.SIGKILL)
    return pid


def in_the_middle_of(run: WatchedRun, test: str) -> None:
    run.wait_running(test)
    time.sleep(SETTLE_S)


def said_hung(run: WatchedRun) -> list[float]:
    """When each worker was said to be lost because of a frame's age."""
    return [at for at, line in list(run.lines) if "lost" in line and "unanswered" in line]


def nothing_runs_within(run: WatchedRun, limit_s: float) -> None:
    begun = time.monotonic()
    assert eventually(lambda: not run.processes(), limit_s), run.processes()
    print(f"nothing of the run is left after {time.monotonic() - begun:.2f} s")


def test_killed_workers_and_a_dead_host_cost_no_sample_until_nobody_is_left(
    two_hosts: lan.Hosts, tmp_path: Path
) -> None:
    here, there = two_hosts.hosts
    # Four workers of 500 samples/s; Offline asks for 1.1 x 600 x 3 s.
    wanted = {"count": 4000, "qps": 600, "duration_ms": 3000, "batch_us": 16000, "workers": 2}
    both = {"scenarios": "Offline, Server", "runs": "accuracy, performance"}
    run = WatchedRun(two_hosts, tmp_path, manifest("kills", **both, **wanted))

    in_the_middle_of(run, "Offline-accuracy")
    first = kill_one_on(run, there)
    run.wait_said("Offline-performance (", ": starting")
    second = kill_one_on(run, here)
    in_the_middle_of(run, "Offline-performance")
    two_hosts.kill_all(there)
    in_the_middle_of(run, "Server-accuracy")
    last = kill_one_on(run, here)
    begun = time.monotonic()
    assert run.end() == 4
    print(f"the run ended {time.monotonic() - begun:.1f} s after the last worker")
    assert time.monotonic() - begun < 5.0 * PATIENCE
    nothing_runs_within(run, 5.0)
    assert "raylet" not in run.said and "unreachable" not in run.said  # neither Ray's words nor ZeroMQ's

    one = run.record("kills", "Offline-accuracy")
    assert one.status == "finished" and one.accuracy is not None and one.accuracy.good == 4000
    assert run.answers("kills", "Offline-accuracy") == all_once(4000)
    (loss,) = losses_of(one).values()
    assert loss.worker == worker_of(one, first) and loss.moved > 0
    assert all(w.samples > 0 for w in one.workers)

    # The next test goes on with the three that live; one dies before it attaches, one with its host.
    two = run.record("kills", "Offline-performance")
    assert two.status == "finished" and two.driver["completed"] == two.driver["issued"] == 1980
    losses = losses_of(two)
    (dead_with_host,) = names_of(two, there)
    assert len(two.workers) == 3 and losses.keys() == {worker_of(two, second), dead_with_host}
    assert losses[worker_of(two, second)].moved == 0 and losses[dead_with_host].moved > 0
    assert run.logged("kills", "Offline-performance", '"is_error": true') == []

    three = run.record("kills", "Server-accuracy")
    assert three.status == "failed" and "no worker is left" in three.reason
    assert losses_of(three).keys() == {worker_of(three, last)} == {w.name for w in three.workers}
    assert not run.test_folder("kills", "Server-performance").exists()
    run.wait_said("no worker is left: all were lost in earlier tests; not run: Server-performance")


def test_a_cut_cable_is_noticed_in_seconds_and_its_samples_move(two_hosts: lan.Hosts, tmp_path: Path) -> None:
    here, there = two_hosts.hosts
    text = manifest("cut", duration_ms=6500, runs="performance, accuracy")
    run = WatchedRun(two_hosts, tmp_path, text)
    in_the_middle_of(run, "Server-performance")
    two_hosts.cut(there)
    begun = time.monotonic()
    noticed_s = run.wait_said("lost worker-1") - begun
    print(f"noticed after {noticed_s:.1f} s")
    assert noticed_s < CUT_LIMIT_S
    assert run.end() == 0, run.said

    record = run.record("cut")
    (loss,) = losses_of(record).values()
    assert record.result.valid is True  # 99 % of the queries never saw the host that is gone
    assert record.driver["completed"] == record.driver["issued"]
    assert {loss.worker} == names_of(record, there) and loss.reason == LINK_CLOSED and loss.moved > 0
    after = run.record("cut", "Server-accuracy")
    assert names_of(after, here) == {w.name for w in after.workers} and after.losses == []
    assert run.answers("cut", "Server-accuracy") == all_once(600)

    # Nobody reaches a worker behind the cut; when the cable is back, its node learns that it is dead.
    assert run.processes().keys() == set(run.workers_on(there)) and len(run.processes()) == 1
    two_hosts.mend(there)
    nothing_runs_within(run, 15.0)


def test_what_hung_workers_answer_late_completes_nothing_and_they_serve_again(
    two_hosts: lan.Hosts, tmp_path: Path
) -> None:
    here, there = two_hosts.hosts
    # 2400 queries at 300 a second: eight seconds.
    text = manifest("hang", workers=2, count=2400, runs="accuracy, performance")
    run = WatchedRun(two_hosts, tmp_path, text)
    in_the_middle_of(run, "Server-accuracy")
    stopped, spinning = run.workers_on(here)[0], run.workers_on(there)[0]
    begun = time.monotonic()
    with python_stands_still(spinning) as let_go:
        os.kill(stopped, signal.SIGSTOP)
        assert eventually(lambda: len(said_hung(run)) == 2, 2 * HANG_LIMIT_S, every_s=0.01), run.said
        let_go()
        os.kill(stopped, signal.SIGCONT)
    noticed_s = [at - begun for at in said_hung(run)]
    print("noticed after " + " and ".join(f"{seconds:.1f} s" for seconds in noticed_s))
    assert max(noticed_s) < HANG_LIMIT_S
    assert run.end() == 0, run.said

    record = run.record("hang", "Server-accuracy")
    losses = losses_of(record)
    assert losses.keys() == {worker_of(record, stopped), worker_of(record, spinning)}
    assert all(loss.moved > 0 for loss in losses.values())
    # The system and libzmq answer for either, so only the age of a frame tells.
    assert all("unanswered for 5" in loss.reason for loss in losses.values())
    # Both came back over links that hold, so their answers arrived.
    assert record.late_answers == sum(loss.moved for loss in losses.values())
    assert run.answers("hang", "Server-accuracy") == all_once(2400)
    assert run.logged("hang", "Server-accuracy", '"is_error": true') == []

    again = run.record("hang")
    assert again.result.valid is True and again.losses == [] and again.late_answers == 0
    assert len(again.workers) == 4 and all(w.samples > 0 for w in again.workers)


def test_a_loss_ends_a_closed_test_at_once_and_leaves_nothing_running(
    two_hosts: lan.Hosts, tmp_path: Path
) -> None:
    there = two_hosts.hosts[1]
    text = manifest("fail", division="closed", workers=2, runs="accuracy, performance", count=9000)
    run = WatchedRun(two_hosts, tmp_path, text)  # of thirty seconds
    in_the_middle_of(run, "Server-accuracy")
    killed = kill_one_on(run, there)
    begun = time.monotonic()
    ended_s = run.wait_said("Server-performance (") - begun
    run.wait_running("Server-performance")
    stopped = run.workers_on(there)[0]
    os.kill(stopped, signal.SIGSTOP)
    begun = time.monotonic()
    assert run.end(30.0) == 4
    print(f"ended {ended_s:.1f} s after the kill, and {time.monotonic() - begun:.1f} s after the stop")
    assert ended_s < 4.0 * PATIENCE and time.monotonic() - begun < HANG_LIMIT_S + 8.0 * PATIENCE
    nothing_runs_within(run, 10.0)
    assert eventually(lambda: not alive(stopped), 10.0)  # a process that ends has no name to be listed by

    for test, pid in (("Server-accuracy", killed), ("Server-performance", stopped)):
        record = run.record("fail", test)
        name = worker_of(record, pid)
        assert record.status == "failed" and record.on_loss == "fail" and record.accuracy is None
        assert f"worker {name} was lost" in record.reason
        assert losses_of(record).keys() == {name}


def test_a_driver_that_is_killed_leaves_nothing_running_on_either_host(
    two_hosts: lan.Hosts, tmp_path: Path
) -> None:
    run = WatchedRun(two_hosts, tmp_path, manifest("gone", workers=2, duration_ms=30000))
    run.wait_running("Server-performance")
    assert len(run.test_processes) == 1
    assert [len(run.workers_on(host)) for host in two_hosts.hosts] == [2, 2] and len(run.processes()) == 7
    run.process.kill()
    begun = time.monotonic()
    assert eventually(lambda: not run.test_processes, 3.0)
    print(f"the test process ended after {time.monotonic() - begun:.2f} s")
    nothing_runs_within(run, 10.0)
    run.process.wait()
