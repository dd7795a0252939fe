"""A worker on another host is killed in mid-run: alert, dashboard, record and report agree on it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from orchestrator.manifest_metrics import DEFAULT_PORT
from orchestrator.record import LossRecord
from tests import two_hosts as lan
from tests.made_prometheus import Prometheus, needs_prometheus, panel_queries, prometheus
from tests.processes import eventually
from tests.watched_run import WatchedRun, manifest

TIME_BUDGET_S = 90

NOTICE_LIMIT_S = 15.0  # a scrape and a look at the rules, each once a second; with some for a busy machine


def firing(seen: Prometheus, alert: str) -> list[dict[str, Any]]:
    """The labels of an alert's instances that fire now."""
    found = [one for rule in seen.rules() if rule["name"] == alert for one in rule["alerts"]]
    return [one["labels"] for one in found if one["state"] == "firing"]


def report_names(folder: Path, lost: LossRecord, node: str) -> None:
    """The report that the run wrote by itself names the worker, its host, when, how many moved, why."""
    page = (folder / "report.html").read_text()
    (table,) = re.findall(r'<table class="losses">.*?</table>', page, re.DOTALL)
    (row,) = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL)
    cells = [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
    assert cells == [lost.worker, node, f"{lost.at_s:,.1f} s", f"{lost.moved:,}", lost.reason]
    assert f">{lost.worker} lost<" in page, "the figures over time mark the moment"
    assert page.count(f">{lost.worker} (lost)<") >= 1, "the figure of the workers marks it"
    (one,) = json.loads((folder / "report.json").read_text())["runs"][0]["tests"][0]["losses"]
    assert one == {**lost.model_dump(), "node": node}
    (line,) = csv.DictReader((folder / "report-losses.csv").read_text().splitlines())
    assert (line["worker"], line["node"], line["reason"]) == (lost.worker, node, lost.reason)
    assert (float(line["at_s"]), int(line["moved"])) == (lost.at_s, lost.moved)


@needs_prometheus
def test_a_worker_killed_in_mid_run_fires_its_alert_and_shows_in_dashboard_and_report(
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

        asked = panel_queries("Losses") | panel_queries("Workers that take part")
        shown = {legend: seen.series(one, began_s, ended_s) for legend, one in asked.items()}
        assert [max(values) for values in shown["workers lost"].values()] == [1]
        assert [max(values) for values in shown["samples moved"].values()] == [lost.moved]
        ends = {dict(labels)["worker"]: values[-1] for labels, values in shown["{{worker}}"].items()}
        assert ends == {worker.name: float(worker.name != lost.worker) for worker in record.workers}

        assert lost.at_s is not None and lost.at_s > 0
        (folder,) = run.folder.glob("watched-*")
        report_names(folder, lost, killed.node)
