"""Orders for the real LoadGen over echo workers: in its own process, or in threads of ours behind TCP."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.logs import read_detail
from orchestrator.order import LocalWorker, Seat, TestOrder
from orchestrator.supervise import Hooks, Outcome, run_test
from tests.processes import command_line, descendants
from workers.host import Ticket, WorkerHost, WorkerSpec

SAMPLES, LOADED_AT_ONCE = 500, 200
SEEDS = {"qsl_rng_seed": 11, "sample_index_rng_seed": 22, "schedule_rng_seed": 33}
# For a test of one second; LoadGen stops short when the system is more than twice as fast as the hint.
WORDS: dict[str, dict[str, Any]] = {
    "SingleStream": {"target_latency": 0.05},
    "MultiStream": {"target_latency": 0.1, "samples_per_query": 8},
    "Server": {"target_qps": 1000, "target_latency": 500},
    "Offline": {"target_qps": 2000},
}
EXPECTED: dict[str, dict[str, Any]] = {
    "SingleStream": {"single_stream_expected_latency_ns": 50_000},
    "MultiStream": {"multi_stream_expected_latency_ns": 100_000, "multi_stream_samples_per_query": 8},
    "Server": {
        "server_target_qps": 1000.0,
        "server_target_latency_ns": 500_000_000,
        "server_coalesce_queries": True,
    },
    "Offline": {"offline_expected_qps": 2000.0},
}
# Two workers of this pace answer the 2,200 samples of the Offline query in 1.1 s.
PER_SAMPLE_US = 1000.0


def order_of(folder: Path, scenario: str, test: str = "performance", **changes: Any) -> TestOrder:
    """An order for two local echo workers; `words`, `backend` and `loadgen` change what their names say."""
    words = {"min_duration": 1000, "min_query_count": 1, **WORDS[scenario], **changes.pop("words", {})}
    backend = {"engine": "echo", **changes.pop("backend", {})}
    if scenario == "Offline" and test == "performance":
        backend = {"service_time_per_sample_us": PER_SAMPLE_US, **backend}
    out = folder / "out"
    out.mkdir()
    conf = out / "user.conf"
    conf.write_text("".join(f"*.{scenario}.{word} = {value}\n" for word, value in words.items()))
    local = LocalWorker(
        task="null",
        task_options={"count": SAMPLES},
        backend=backend,
        batch_deadline_ns=0,
        cache=str(folder),
        needs_library=False,
    )
    values: dict[str, Any] = {
        "name": f"{scenario}-{test}",
        "epoch": 4_000_000_000,
        "out_dir": str(out),
        "loadgen_path": None,
        "in_place": True,
        "conf_model": "null",
        "scenario": scenario,
        "test": test,
        "conf_file": str(conf),
        "attributes": {**SEEDS, "server_coalesce_queries": True},
        "expected": {**SEEDS, **EXPECTED[scenario], "min_duration_ms": words["min_duration"]},
        "sample_count": SAMPLES,
        "performance_count": LOADED_AT_ONCE,
        "network": False,
        "payload": "index",
        "library": None,
        "security": "curve",
        "address": "127.0.0.1",
        "ports": None,
        "io_threads": 1,
        "on_loss": "fail",
        "workers": [Seat(name=f"w{i}", max_batch=8) for i in range(2)],
        "local": local,
        "schedule_seed": SEEDS["schedule_rng_seed"],
        "target_qps": float(WORDS["Server"]["target_qps"]),
    }
    return TestOrder(**{**values, **changes})


def finished(order: TestOrder, fleet: Any = None, hooks: Hooks | None = None) -> Outcome:
    outcome = run_test(order, fleet, hooks or Hooks())
    assert (outcome.status, outcome.reason) == ("finished", "")
    assert outcome.board.total("issued") == outcome.board.total("completed") > 0
    log = read_detail(Path(order.out_dir) / "mlperf_log_detail.txt")
    assert log.errors == []
    if order.test == "performance":
        assert log.valid, log.reasons
    return outcome


def check_accuracy_log(folder: Path, samples_per_query: int = 1) -> None:
    """Every sample once, answered with its own index; LoadGen fills its last MultiStream query up."""
    entries = json.loads((folder / "mlperf_log_accuracy.json").read_text())
    assert {entry["qsl_idx"] for entry in entries} == set(range(SAMPLES))
    assert len(entries) == -(-SAMPLES // samples_per_query) * samples_per_query
    assert sorted(entry["seq_id"] for entry in entries) == list(range(len(entries)))
    for entry in entries:
        assert bytes.fromhex(entry["data"]) == entry["qsl_idx"].to_bytes(4, "little")


def failed(order: TestOrder) -> str:
    outcome = run_test(order, None, Hooks())
    assert outcome.status == "failed"
    assert "Traceback" not in outcome.reason
    return outcome.reason


def running_tests() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if "orchestrator.testrun" in command_line(pid)]


def long_order(folder: Path, scenario: str) -> TestOrder:
    """A test that would take a minute."""
    words = {"min_duration": 60_000}
    return order_of(folder, scenario, words=words, backend={"service_time_per_sample_us": 1000.0})


@dataclass
class ThreadFleet:
    """Workers in threads of the driver, where a campaign has Ray actors."""

    count: int
    hosts: list[WorkerHost] = field(default_factory=list)
    _lost: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        backend = {"engine": "echo", "service_time_per_sample_us": 300.0}
        for i in range(self.count):
            self.hosts.append(WorkerHost(WorkerSpec(f"w{i}", "null", {}, backend, 8, needs_library=False)))
            self.hosts[-1].load()

    def seats(self) -> list[Seat]:
        warm_up = [(1, 3e-4), (8, 24e-4)]
        keys = self.keys()
        return [Seat(name=name, public_key=key, warm_up=warm_up, max_batch=8) for name, key in keys.items()]

    def keys(self) -> dict[str, str]:
        return {host.spec.name: host.key() for host in self.hosts}

    def attach(self, tickets: dict[str, Ticket]) -> None:
        for host in self.hosts:
            ticket = tickets[host.spec.name]
            threading.Thread(target=host.attach, args=(ticket,), daemon=True).start()

    def detach(self, lost: Collection[str] = (), stop: object = None) -> list[str]:
        for host in self.hosts:
            host.detach()
        return []

    def lost(self) -> list[tuple[str, str]]:
        found, self._lost = self._lost, []
        return found

    def kill(self, worker: int) -> None:
        """Take a worker's link away while it holds samples, and stop it, as when its process dies."""
        host = self.hosts[worker]
        assert host._worker is not None
        host._worker.stop()
