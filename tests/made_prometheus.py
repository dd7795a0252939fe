"""A real Prometheus for tests, with the configuration that ships, and what it holds of a run."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.processes import HarnessError, end_processes, eventually

FOLDER = Path(__file__).parent.parent / "monitoring" / "prometheus"
DASHBOARD = FOLDER.parent / "grafana" / "loadgrid.json"
DRIVER = "localhost:9464"
RAY_LIST = "/tmp/ray/prom_metrics_service_discovery.json"
PROMETHEUS_IS_HERE = all(shutil.which(name) for name in ("prometheus", "promtool"))
needs_prometheus = pytest.mark.part(
    PROMETHEUS_IS_HERE, "prometheus and promtool are missing (Debian: apt-get install prometheus)"
)
_FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
READY_LIMIT_S = 20.0

# As Ray's agent serves it, on a machine whose GPUs are only told of.
GPU_METRICS = """# TYPE ray_node_gpus_utilization gauge
ray_node_gpus_utilization{GpuDeviceName="made",GpuIndex="0",RayNodeType="head",ip="127.0.0.1"} 87.0
# TYPE ray_node_gram_used gauge
ray_node_gram_used{GpuDeviceName="made",GpuIndex="0",RayNodeType="head",ip="127.0.0.1"} 1024.0
"""


def dashboard() -> dict[str, Any]:
    """The dashboard that ships."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panel_expressions(title: str | None = None) -> list[str]:
    """Those of all panels or of one, as Grafana would ask them of the only driver, every second."""
    return [expression for _, expression in _queries(title)]


def panel_queries(title: str) -> dict[str, str]:
    """Those of one panel by their legends."""
    return dict(_queries(title))


def _queries(title: str | None) -> list[tuple[str, str]]:
    panels = [panel for panel in dashboard()["panels"] if title in (None, panel["title"])]
    found = [(one["legendFormat"], one["expr"]) for panel in panels for one in panel.get("targets", [])]
    return [
        (legend, expression.replace("$__rate_interval", "4s").replace('="$instance"', '=~".+"'))
        for legend, expression in found
    ]


def free_port() -> int:
    """A port of the loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Prometheus:
    """Scrapes a driver and a list of Ray's nodes as monitoring/prometheus says, a file of its own aside.

    `within` goes before every command: `ip netns exec ...` for one on another host.
    """

    def __init__(self, folder: Path, port: int, driver_port: int, within: Sequence[str] = ()):
        self.url = f"http://127.0.0.1:{port}"
        self._within = within
        text = (FOLDER / "prometheus.yaml").read_text()
        assert DRIVER in text and RAY_LIST in text
        text = text.replace(DRIVER, f"localhost:{driver_port}").replace(RAY_LIST, str(folder / "ray.json"))
        (folder / "prometheus.yaml").write_text(text.replace("scrape_interval: 15s", "scrape_interval: 1s"))
        shutil.copy(FOLDER / "loadgrid-alerts.yaml", folder)
        self._log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            [*within, "prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
             f"--web.listen-address=127.0.0.1:{port}"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._folder = folder

    def wait_ready(self) -> None:
        """Wait until it answers questions and knows what to scrape: it looks five seconds after its start."""
        if not eventually(self._is_ready, READY_LIMIT_S):
            raise HarnessError((self._folder / "prometheus.log").read_text())

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            return bool(self._fetched("/-/ready") and self.ask("targets", state="active")["activeTargets"])
        except OSError:
            return False

    def _fetched(self, path: str) -> str:
        if not self._within:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                text: str = answer.read().decode()
                return text
        done = subprocess.run(
            [*self._within, sys.executable, "-c", _FETCH, self.url + path], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise ConnectionError(done.stderr)
        return done.stdout

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of its API."""
        answer = json.loads(self._fetched(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def series(self, expression: str, since_s: float, until_s: float) -> dict[frozenset[Any], list[float]]:
        """What an expression gave at every second of a time, by its labels; without what is no number."""
        found = self.ask("query_range", query=expression, start=since_s, end=until_s, step=1)["result"]
        values = {frozenset(one["metric"].items()): [float(v) for _, v in one["values"]] for one in found}
        finite = {labels: [v for v in seen if math.isfinite(v)] for labels, seen in values.items()}
        return {labels: seen for labels, seen in finite.items() if seen}

    def rules(self) -> list[Mapping[str, Any]]:
        """Its alert rules, as it sees them now."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def end(self) -> None:
        """End it."""
        end_processes([self.process.pid])
        self.process.wait()
        self._log.close()


@contextmanager
def prometheus(folder: Path, driver_port: int, within: Sequence[str] = ()) -> Iterator[Prometheus]:
    """A Prometheus that is ready, and gone afterwards."""
    one = Prometheus(folder, free_port(), driver_port, within)
    try:
        one.wait_ready()
        yield one
    finally:
        one.end()


@contextmanager
def told_gpu(folder: Path) -> Iterator[None]:
    """Ray's metrics of a GPU, served over HTTP and written into the list that Prometheus reads."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(GPU_METRICS.encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    nodes = [{"targets": [f"127.0.0.1:{server.server_port}"], "labels": {"job": "ray"}}]
    (folder / "ray.json").write_text(json.dumps(nodes))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
