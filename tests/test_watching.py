"""A run that is watched while it goes on: /metrics over HTTP, the live verdict, and its early end."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from orchestrator.campaign import EXIT_FAILED
from tests.processes import eventually
from tests.program import Program, manifest

TIME_BUDGET_S = 60
LIMIT_MS = 20


def scraped(url: str) -> dict[str, float]:
    """The samples without labels, by name."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {s.name: s.value for family in families for s in family.samples if not s.labels}


def test_a_hopeless_test_is_seen_in_its_metrics_and_ends_early_with_a_record(tmp_path: Path) -> None:
    # Every answer takes three times the limit, in a test of a minute; 82 may be late.
    file = manifest(tmp_path, qps=200, batch_us=3000 * LIMIT_MS, limit_ms=LIMIT_MS, duration_ms=60_000)
    file.write_text(f"stop_when_hopeless: true\nmetrics: {{port: 0}}\n{file.read_text()}")
    with Program(tmp_path, "run", file.name) as watched:
        watched.wait_said("/metrics")
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", watched.said)
        assert url is not None
        wanted = ("loadgrid_course_late_allowed", "loadgrid_samples_over_limit_total")
        seen: dict[str, float] = {}

        def judged() -> bool:
            seen.update(scraped(url[0]))
            return all(seen.get(name, 0) > 0 for name in wanted)

        assert eventually(judged, 20)
        code = watched.end(30)
    assert seen["loadgrid_latency_limit_seconds"] == LIMIT_MS / 1000
    assert seen["loadgrid_samples_in_flight"] > 0
    assert seen["loadgrid_course_late_allowed"] > 50
    record = watched.record("Server-performance")
    assert code == EXIT_FAILED
    assert record.status == "failed"
    assert "cannot pass any more (stop_when_hopeless)" in record.reason
    assert record.course is not None
    assert record.course.word == "cannot pass"
    assert record.course.late > seen["loadgrid_course_late_allowed"]
    assert record.wall_s < 30


def test_a_test_that_passes_says_so_in_its_record_and_a_port_in_use_is_no_hindrance(tmp_path: Path) -> None:
    file = manifest(tmp_path, qps=500, duration_ms=5000)
    file.write_text(f"metrics: {{port: 0}}\n{file.read_text()}")
    with Program(tmp_path, "run", file.name) as first:
        first.wait_said("/metrics")
        port = re.search(r":(\d+)/metrics", first.said)
        assert port is not None
        other = tmp_path / "other"
        other.mkdir()
        again = manifest(other, qps=1000, duration_ms=500)
        again.write_text(f"metrics: {{port: {port[1]}}}\n{again.read_text()}")
        with Program(other, "run", again.name) as second:
            second.wait_said("/metrics")
            assert f"127.0.0.1:{port[1]}: " in second.said
            assert second.end(30) == 0
        assert first.end(30) == 0
    course = first.record("Server-performance").course
    assert course is not None
    assert (course.word, course.late, course.more_needed) == ("on course", 0, 0)
