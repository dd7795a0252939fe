"""A worker on another host is killed in mid-run and Prometheus sees it: alert, dashboard and record agree."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from orchestrator.manifest_metrics import DEFAULT_PORT
from tests import two_hosts as lan
from tests.made_prometheus import Prometheus, needs_prometheus, panel_expressions, prometheus
from tests.processes import eventually
from tests.watched_run import WatchedRun, manifest

TIME_BUDGET_S = 90

NOTICE_LIMIT_S = 15.0  # a scrape and a look at the rules, each once a second; with some for a busy machine


def firing(seen: Prometheus, alert: str) -> list[dict[str, Any]]:
    """The labels of an alert's instances that fire now."""
    found = [one for rule in seen.rules() if rule["name"] == alert for one in rule["alerts"]]
    return [one["labels"] for one in found if one["state"] == "firing"]


@needs_prometheus
def test_a_worker_killed_in_mid_run_fires_its_alert_and_shows_in_the_dashboard(
    two_hosts: lan.Hosts, tmp_path: Path
) -> None:
    here, there = two_hosts.hosts
    within = ["ip", "netns", "exec", here.namespace]
    with prometheus(tmp_path, DEFAULT_PORT, within) as seen:
        began_s = time.time()
        # Longer than it goes on: it is stopped once the alert was seen.
        text = manifest("watched", workers=2, qps=400, batch_us=16000, duration_ms=60_000)
        run = WatchedRun(two_hosts, tmp_path, text)
        run.wait_running("Server-performance")
        assert eventually(lambda: bool(seen.ask("query", query="loadgrid_worker_in_flight > 0")["result"]), 5)
        assert firing(seen, "LoadGridWorkerLost") == []
        pid = run.workers_on(there)[0]
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: bool(firing(seen, "LoadGridWorkerLost")), NOTICE_LIMIT_S, every_s=0.2)
        (labels,) = firing(seen, "LoadGridWorkerLost")
        run.process.send_signal(signal.SIGINT)
        run.end()
        ended_s = time.time()

        record = run.record("watched")
        (lost,) = record.losses
        killed = next(worker for worker in record.workers if worker.facts["pid"] == pid)
        assert lost.worker == labels["worker"] == killed.name
        assert killed.node == there.address

        lost_in_all, moved, _ = (seen.series(one, began_s, ended_s) for one in panel_expressions("Losses"))
        assert [max(values) for values in lost_in_all.values()] == [1]
        assert [max(values) for values in moved.values()] == [lost.moved]
        (up,) = panel_expressions("Workers that take part")
        ends = {
            dict(labels)["worker"]: values[-1] for labels, values in seen.series(up, began_s, ended_s).items()
        }
        assert ends == {worker.name: float(worker.name != lost.worker) for worker in record.workers}
