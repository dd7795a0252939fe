"""monitoring/: a dashboard and alerts that ask for what is served, and a Prometheus that scraped a run."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import promql_parser
import pytest
import yaml
from PIL import Image
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from orchestrator.metrics import NAMES, PREFIX
from tests.made_prometheus import (
    DASHBOARD,
    FOLDER,
    Prometheus,
    dashboard,
    free_port,
    needs_prometheus,
    panel_expressions,
    prometheus,
    told_gpu,
)
from tests.program import Program, manifest

TIME_BUDGET_S = 60

ALERTS = FOLDER / "loadgrid-alerts.yaml"
ALERT_TESTS = FOLDER / "loadgrid-alerts-test.yaml"
SCHEMA = FOLDER.parent.parent.parent / "shared" / "grafana" / "dashboard.jsonschema.json"
ENDS: dict[Any, tuple[str, ...]] = {
    CounterMetricFamily: ("_total",),
    HistogramMetricFamily: ("_bucket", "_sum", "_count"),
}
SERVED = {f"{PREFIX}_{name}{end}" for name, one in NAMES.items() for end in ENDS.get(one.kind, ("",))}
RUN_S = 4


def alerts() -> list[dict[str, Any]]:
    """The rules that ship."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def selectors(expression: str) -> list[str]:
    """The metrics that an expression reads, each with its labels."""
    found: list[str] = []

    def note(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node.prettify())

    promql_parser.walk(promql_parser.parse(expression), note)
    return found


def not_served(text: str) -> set[str]:
    """Names of LoadGrid's metrics in a text that no run serves."""
    return set(re.findall(rf"\b{PREFIX}_\w+", text)) - SERVED


def test_the_dashboard_is_the_one_that_its_panels_make() -> None:
    made = runpy.run_path(str(DASHBOARD.parent / "make_dashboard.py"))
    assert DASHBOARD.read_text() == made["text"](), "run monitoring/grafana/make_dashboard.py"


@pytest.mark.skipif(not SCHEMA.exists(), reason="Grafana's schema is not here")
def test_the_dashboard_is_valid_by_grafana_s_schema() -> None:
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(dashboard())


def test_no_panel_lies_on_another_and_each_says_what_it_shows() -> None:
    cells: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    for panel in panels:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & own and at["x"] + at["w"] <= 24, panel["title"]
        cells |= own
        assert panel["type"] == "row" or panel["description"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_metric_that_is_asked_for_is_one_that_a_run_serves() -> None:
    for file in (DASHBOARD, ALERTS, ALERT_TESTS):
        assert not not_served(file.read_text()), file
    assert not_served("rate(loadgrid_sample_issued_total[1m]) > loadgrid_target_qps") == {
        "loadgrid_sample_issued_total"
    }


def test_the_metrics_of_gpus_are_those_that_ray_declares() -> None:
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    agent = Path(ray.origin).parent / "dashboard/modules/reporter/reporter_agent.py"
    declared = {f"ray_{name}" for name in re.findall(r'Gauge\(\s*"(node_\w+)"', agent.read_text())}
    asked = {name for one in panel_expressions() for name in re.findall(r"\bray_\w+", one)}
    assert asked and asked <= declared


@needs_prometheus
def test_each_alert_fires_when_it_should_and_is_silent_when_it_should() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(ALERT_TESTS)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, set[bool]] = {}
    for group in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
        for one in group["alert_rule_test"]:
            seen.setdefault(one["alertname"], set()).add(bool(one.get("exp_alerts")))
    assert seen == {rule["alert"]: {True, False} for rule in alerts()}


@dataclass(frozen=True)
class Scraped:
    """A run that is over, and the Prometheus that scraped it."""

    prometheus: Prometheus
    began_s: float
    ended_s: float
    completed: int  # samples, by its record

    def series(self, expression: str) -> dict[frozenset[Any], list[float]]:
        return self.prometheus.series(expression, self.began_s, self.ended_s)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Four seconds of Server with three workers."""
    folder, port = tmp_path_factory.mktemp("scraped"), free_port()
    file = manifest(folder, workers=3, qps=300, batch_us=1000, limit_ms=5000, duration_ms=RUN_S * 1000)
    file.write_text(f"metrics: {{port: {port}}}\n{file.read_text()}")
    with told_gpu(folder), prometheus(folder, port) as running:
        began_s = time.time()
        with Program(folder, "run", file.name) as program:
            assert program.end(RUN_S + 40) == 0, program.said
            completed = program.record("Server-performance").driver["completed"]
        yield Scraped(running, began_s, time.time(), completed)


@needs_prometheus
def test_every_panel_shows_data_of_a_real_run(scraped: Scraped) -> None:
    empty = [one for one in panel_expressions() if not scraped.series(one)]
    assert not empty
    assert len(scraped.series("loadgrid_worker_up == 1")) == 3
    (completed,) = scraped.series("loadgrid_samples_completed_total").values()
    assert completed == sorted(completed)
    assert 0 < completed[-1] <= scraped.completed
    drivers = scraped.series('loadgrid_run_info{scenario="Server"}')
    assert len(drivers) == 1


@needs_prometheus
def test_the_panels_can_be_drawn_without_a_grafana(scraped: Scraped, tmp_path: Path) -> None:
    file = tmp_path / "panels.png"
    script = [sys.executable, str(DASHBOARD.parent / "draw_panels.py"), str(file)]
    (driver,) = scraped.series("loadgrid_run_info")
    which = ["--prometheus", scraped.prometheus.url, "--instance", dict(driver)["instance"]]
    when = ["--minutes", str((scraped.ended_s - scraped.began_s) / 60), "--until", str(scraped.ended_s)]
    done = subprocess.run([*script, *which, *when], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with Image.open(file) as picture:
        assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 24) or ()) > 100


@needs_prometheus
def test_every_alert_reads_series_that_a_real_run_has_and_none_fires_without_cause(scraped: Scraped) -> None:
    rules = {rule["name"]: rule for rule in scraped.prometheus.rules()}
    assert rules.keys() == {rule["alert"] for rule in alerts()}
    assert {rule["health"] for rule in rules.values()} == {"ok"}, rules
    asked = {one for rule in alerts() for one in selectors(rule["expr"])}
    assert [one for one in sorted(asked) if not scraped.series(one)] == []
    assert scraped.series('ALERTS{alertstate="firing"}') == {}
