"""Runs over two real hosts: who answers, where the data plane listens, what is recorded, who stays out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from orchestrator.record import Record
from tests import two_hosts as lan
from tests.processes import PATIENCE
from tests.watched_run import WatchedRun, all_once, manifest
from workers.answer_memory import LARGE_BYTES

TIME_BUDGET_S = 45

# Tries to get into a test: without a key, with keys of its own, with bytes that are no handshake. Says what
# became of its connections, and how many messages came back. Is up before the test and told where to knock.
INTRUDER = """
import contextlib, json, socket, sys, time, zmq
from collections import Counter
from zmq.utils.monitor import parse_monitor_message
endpoint, seconds = sys.stdin.readline().strip(), float(sys.argv[1])
context, doors = zmq.Context(), []
def knock(name, identity, curve):
    door = context.socket(zmq.DEALER)
    door.linger, door.routing_id, door.reconnect_ivl = 0, identity, 200
    if curve:
        door.curve_serverkey, _ = zmq.curve_keypair()
        door.curve_publickey, door.curve_secretkey = zmq.curve_keypair()
    monitor = door.get_monitor_socket()
    door.connect(endpoint)
    for words in (b"", b"LG" + bytes(22), b"worker-0", b"x" * 100000):
        with contextlib.suppress(zmq.Again):  # it may be shut out already
            door.send(words, zmq.DONTWAIT)
    doors.append((name, door, monitor))
for identity in (b"W0", b"W1", b"W7"):
    knock("no key", identity, False)
    knock("random key", identity, True)
host, port = endpoint.removeprefix("tcp://").split(":")
garbage = [socket.create_connection((host, int(port))) for _ in range(3)]
nonsense = (b"GET / HTTP/1.1\\r\\n\\r\\n" * 1000, b"\\xff" + bytes(8) + b"\\x7f\\x03\\x01" + bytes(5000))
for words, stranger in zip(nonsense, garbage):
    with contextlib.suppress(ConnectionError):  # the door may be shut in mid-sentence
        stranger.sendall(words)
seen = {"no key": Counter(), "random key": Counter()}
got, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    for name, door, monitor in doors:
        while monitor.poll(5):
            seen[name][parse_monitor_message(monitor.recv_multipart())["event"].name] += 1
        while door.poll(0):
            door.recv_multipart()
            got += 1
print(json.dumps({"seen": seen, "messages": got}))
"""

# Counts the samples in each WORK frame that reaches this host; `security: none` leaves them readable.
LISTENER = """
import json, select, socket, struct, sys, time
from workers.protocol import HEAD, MAGIC, VERSION, Kind
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
mark, counts = MAGIC + bytes([VERSION, Kind.WORK]), {}
while not select.select([sys.stdin], [], [], 0)[0]:
    if not select.select([wire], [], [], 0.1)[0]:
        continue
    packet, at = wire.recv(65536), -1
    while (at := packet.find(mark, at + 1)) >= 0 and len(packet) - at >= HEAD.size:
        count = HEAD.unpack_from(packet, at)[5]
        counts[count] = counts.get(count, 0) + 1
print(json.dumps(counts))
"""


@dataclass
class Across:
    """Four manifests run one after the other by one program over both hosts, and what was seen meanwhile."""

    hosts: lan.Hosts
    run: WatchedRun
    listening: list[str]  # addresses, without ports, on which the first test's process listened
    intruder: dict[str, object]
    frames: dict[str, int]  # WORK frames to the other host in division network, by their number of samples
    code: int

    def record(self, name: str, test: str = "Server-performance") -> Record:
        return self.run.record(name, test)


@pytest.fixture(scope="module")
def across(two_hosts_of_the_session: lan.Hosts, tmp_path_factory: pytest.TempPathFactory) -> Across:
    hosts = two_hosts_of_the_session
    hosts.form_cluster()
    there = hosts.hosts[1]
    intruder = hosts.run_in(there, [sys.executable, "-c", INTRUDER, "2.5"], stdin=subprocess.PIPE)
    run = WatchedRun(
        hosts,
        tmp_path_factory.mktemp("across"),
        manifest("index", division="closed", runs="performance, accuracy", duration_ms=4000, qps=200),
        manifest(
            "approved", division="closed", dispatch="index_approval: agreed", response_bytes=LARGE_BYTES
        ),
        manifest("value", division="closed", workers=2, placement="spread", dispatch="payload: value"),
        manifest("network", division="network", qps=400, dispatch="payload: value, security: none"),
    )
    run.wait_running("Server-performance")
    ports = run.listening_ports(run.test_processes[0])
    told, trouble = intruder.communicate(f"tcp://{ports[0]}\n", timeout=20 * PATIENCE)
    assert intruder.returncode == 0, trouble
    run.wait_said("value: 1 test")
    listener = hosts.run_in(there, [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE)
    code = run.end()
    frames, _ = listener.communicate("enough", timeout=20 * PATIENCE)
    return Across(
        hosts,
        run,
        [port.rpartition(":")[0] for port in ports],
        json.loads(told),
        json.loads(frames),
        code,
    )


def test_workers_of_both_hosts_answer_one_test(across: Across) -> None:
    addresses = [host.address for host in across.hosts.hosts]
    for name in ("index", "approved", "value", "network"):
        record = across.record(name)
        assert record.result.valid is True, record.result
        nodes = [w.node for w in record.workers]  # in the order of their names
        assert (sorted(nodes) if name == "value" else nodes) == addresses
        assert all(w.samples > 0 for w in record.workers), [w.samples for w in record.workers]
        assert sum(w.samples for w in record.workers) == record.driver["completed"]
        assert record.losses == [] and record.late_answers == 0
    assert across.code == 0, across.run.said


def test_every_sample_of_an_accuracy_test_over_both_hosts_is_answered_once_with_its_bytes(
    across: Across,
) -> None:
    record = across.record("index", "Server-accuracy")
    assert all(w.samples > 0 for w in record.workers)
    assert across.run.answers("index", "Server-accuracy") == all_once(600)
    assert record.accuracy is not None and record.accuracy.good == 600


def test_the_data_plane_listens_where_ray_knows_the_node_and_nowhere_else(across: Across) -> None:
    assert across.listening == [across.hosts.hosts[0].address]


def reasons(record: Record, words: str) -> list[str]:
    return [reason for reason in record.unofficial_because if words in reason]


def test_indices_to_another_host_make_a_closed_run_unofficial_unless_approved_or_by_value(
    across: Across,
) -> None:
    record = across.record("index")
    (reason,) = reasons(record, "payload index")
    assert record.payload_mode == "index" and not record.official
    assert across.hosts.hosts[1].address in reason and "index_approval" in reason
    assert across.hosts.hosts[0].address not in reason
    approved, value = across.record("approved"), across.record("value")
    assert approved.payload_mode == "index" and reasons(approved, "payload") == []
    assert value.payload_mode == "value" and reasons(value, "payload") == []


def test_large_answers_are_shared_by_the_worker_on_loadgens_host_and_travel_from_the_other(
    across: Across,
) -> None:
    record = across.record("approved")
    here, there = record.workers
    assert (here.node, there.node) == tuple(host.address for host in across.hosts.hosts)
    assert there.batches > 0 and record.driver["shared_answers"] == here.batches > 0
    assert record.driver["response_path"] == "shared-memory"
    assert across.record("index").driver["response_path"] == "messages"


def test_the_network_division_names_its_nodes_and_sends_one_sample_a_frame(across: Across) -> None:
    record = across.record("network")
    (log,) = across.run.logged("network", "Server-performance", '"sut_name"')
    assert "Network SUT" in log and "worker-0@" in log and "worker-1@" in log
    assert reasons(record, "payload") == []
    there = next(w for w in record.workers if w.node == across.hosts.hosts[1].address)
    # All but those whose head two packets share, if there are any.
    assert across.frames.keys() == {"1"} and 0.9 * there.samples < across.frames["1"] <= there.samples


def test_who_has_no_key_of_the_test_never_gets_in(across: Across) -> None:
    seen = across.intruder["seen"]
    assert isinstance(seen, dict) and across.intruder["messages"] == 0
    for name in ("no key", "random key"):
        assert seen[name]["CONNECTED"] >= 3 and "HANDSHAKE_SUCCEEDED" not in seen[name], seen
        assert seen[name]["DISCONNECTED"] >= 3
    record = across.record("index")
    assert record.result.valid is True and record.losses == [] and record.driver["foreign_answers"] == 0
