"""The report's words and numbers: what passed, by how much, who was behind, and what may be compared."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestrator.campaign import run_campaign
from orchestrator.cli import app
from orchestrator.course import Course
from orchestrator.journey import rows
from orchestrator.manifest import parse_manifest
from orchestrator.paths import CAMPAIGN, RECORD
from orchestrator.quiet import Quiet
from orchestrator.record import Record, RecordError, read_record, series_record
from orchestrator.report import facts
from orchestrator.report.export import histogram_csv, losses_csv, series_csv, stages_csv
from orchestrator.report.figures import (
    distribution,
    latency_over_time,
    percentile_curve,
    percentiles,
    worker_latencies,
)
from orchestrator.report.page import as_page
from orchestrator.report.runs import ReportError, Run, read_run
from orchestrator.report.write import report_of_run
from orchestrator.stop import Stop
from orchestrator.timings import BUCKETS, MOST_SPANS, STAGES, Board, Series, bucket_of, percentile_ns
from tests.made_records import STAGE_MS, invalid, loss, record, score
from tests.report_runs import run_folder, timed

TIME_BUDGET_S = 20

S, MS = 10**9, 10**6
SHORT = """
name: short
round: v6.1
suite: datacenter
division: open
benchmark: resnet
scenarios: [Offline]
runs: [performance]
task: {name: 'null'}
backend: {engine: echo}
workers: {where: local, count: 2}
loadgen:
  min_duration: 200
  Offline: {target_qps: 2000}
"""


def run_of(*records: Record, name: str = "shown-1") -> Run:
    return Run(name, Path(name), records)


# Over time


def filled(answers: list[tuple[int, int, int]], began: int = 0) -> Series:
    """A series of (received ns, latency ns, samples), in pieces of three rows."""
    series = Series(began)
    for first in range(0, len(answers), 3):
        received, latency, samples = np.array(answers[first : first + 3]).T
        series.add(received - latency, received, samples, latency > 15 * MS)
    return series


ANSWERS = st.lists(
    st.tuples(st.integers(0, 10_000 * S), st.integers(0, 20 * S), st.integers(1, 50)), min_size=1, max_size=30
)


@given(ANSWERS)
@settings(max_examples=40)
def test_a_series_loses_no_sample_and_never_grows_beyond_its_bound(
    answers: list[tuple[int, int, int]],
) -> None:
    told = filled(answers).summary()
    assert told is not None
    board = Board(1, ring_rows=1)
    board.series = filled(answers)
    kept = series_record(board)
    assert kept is not None and len(kept.completed) <= MOST_SPANS
    total, late = sum(n for _, _, n in answers), sum(n for _, latency, n in answers if latency > 15 * MS)
    assert sum(kept.completed) == sum(kept.issued) == total
    assert sum(kept.over_limit) == late and kept.in_flight[-1] == 0
    assert [p is None for p in kept.p99_ms] == [n == 0 for n in kept.completed]
    last = max(received for received, _, _ in answers)
    assert len(kept.completed) == last // int(kept.span_s * S) + 1


def test_a_series_of_a_long_test_is_that_of_one_with_long_spans_from_the_start() -> None:
    rng = np.random.default_rng(3)
    answers = [(int(t), int(rng.integers(1, 40)) * MS, 2) for t in np.sort(rng.integers(0, 300 * S, 500))]
    halved, whole = filled(answers), Series(0)
    whole.span_ns = halved.span_ns
    received, latency, samples = np.array(answers).T
    whole.add(received - latency, received, samples, latency > 15 * MS)
    assert halved.span_ns == 500 * MS and halved.summary() == whole.summary()


def test_a_board_without_answers_has_no_series_and_a_record_keeps_one_that_has() -> None:
    assert series_record(Board(1, ring_rows=4)) is None
    made = timed()
    assert made.series is not None and sum(made.series.completed) == 1600
    assert made.series.span_s == 0.125 and 190 < sum(made.series.completed[8:16]) < 210


def test_a_record_from_before_the_series_can_be_read(tmp_path: Path) -> None:
    body = json.loads(record().to_json())
    del body["series"]
    (tmp_path / RECORD).write_text(json.dumps(body))
    assert read_record(tmp_path / RECORD).series is None
    page = as_page([read_run(tmp_path)])
    assert "Latency distribution" in page and "keeps nothing over time" in page


def test_a_run_writes_its_report_by_itself_and_a_fault_of_it_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    made = parse_manifest(SHORT.encode(), str(tmp_path / "short.yaml"))
    # VALID or, on a busy machine, not: the report is written either way.
    assert run_campaign(made, tmp_path / "good", "local", Quiet(said.append), Stop()) in (0, 1)
    (page,) = (tmp_path / "good").glob("short-*/report.html")
    kept = read_record(page.parent / "Offline-performance" / RECORD).series
    assert kept is not None and sum(kept.completed) > 0 and kept.in_flight[-1] == 0
    assert "Throughput over time" in page.read_text() and not any("no report" in text for text in said)

    def fault(_: object) -> str:
        raise KeyError("fault")

    monkeypatch.setattr("orchestrator.report.page.as_page", fault)
    assert run_campaign(made, tmp_path / "bad", "local", Quiet(said.append), Stop()) in (0, 1)
    assert [text for text in said if "no report" in text] == ["no report: KeyError: 'fault'"]


# Words


def test_the_first_words_say_by_how_much_and_what_limited() -> None:
    made = record()
    margin = facts.margin(made)
    assert margin is not None and margin.words == "p99 12.6 ms of 15 ms: 84 % of the limit used"
    assert any("Most latency was compute" in text for text in facts.what_limited(made))
    late = facts.margin(record(result=invalid([])))
    assert late is not None and late.words.endswith("8.0 times the limit") and late.used == pytest.approx(8)
    reached, missed = (facts.margin(record("Offline", "accuracy", accuracy=score(n))) for n in (19, 17))
    assert reached is not None and reached.words == "5 % above the target of 90 %"
    assert missed is not None and missed.words == "5 % below the target of 90 %"
    assert facts.margin(record(status="failed")) is None


def test_a_straggler_is_named_with_its_stage_and_factor() -> None:
    found = facts.stragglers(timed())
    assert [one.worker for one in found] == ["worker-1"] and found[0].stage == "compute"
    assert 1.8 < found[0].mean_ms / found[0].others_ms < 2.2
    assert "2.0 times the others'" in found[0].words or "1.9 times" in found[0].words
    assert not facts.stragglers(record()) and not facts.stragglers(record(samples=[100]))


def test_few_samples_and_the_drivers_own_queue_make_no_straggler() -> None:
    slow = [STAGE_MS, {**STAGE_MS, "compute": 14.0}]
    assert facts.stragglers(record(samples=[100, 100], stage_ms=slow))
    few = record(samples=[100, 99], stage_ms=slow)
    assert not facts.stragglers(few) and "No worker is behind" not in as_page([run_of(few)])
    waits = [STAGE_MS, {**STAGE_MS, "driver_queue": 14.0}]
    assert not facts.stragglers(record(samples=[500, 500], stage_ms=waits))


@pytest.mark.parametrize(
    ("late", "allowed", "words"),
    [
        (0, 0, "By the driver's clock no query was late; of 481 queries at most 0 may be."),
        (1, 4, "By the driver's clock 1 query was late; of 481 queries at most 4 may be."),
        (7, None, "By the driver's clock 7 queries were late; a test of 481 queries is too short to prove"),
    ],
)
def test_late_queries_are_told_in_finished_sentences(late: int, allowed: int | None, words: str) -> None:
    course = Course("on course", "", late, 400, 481, None, allowed, None)
    ended_early = record(course=course, status="failed", reason="it cannot pass any more")
    assert any(text.startswith(words) for text in facts.what_limited(ended_early))


def test_planned_tests_that_never_ran_are_counted_and_named(tmp_path: Path) -> None:
    stopped = record(status="interrupted", reason="SIGINT", samples=[0, 0], driver={})
    folder = run_folder(tmp_path / "r", stopped)
    about = {"tests": ["Server-performance", "Offline-performance"]}
    (folder / CAMPAIGN).write_text(json.dumps(about))
    page = as_page([read_run(folder)])
    assert "0 of 2 tests good, none official; Offline-performance never ran" in page
    assert "Planned and never run: Offline-performance." in page
    for content in ("{", '{"tests": 3}', "[]", '{"tests": [1, {}]}', "[" * 100_000):
        (folder / CAMPAIGN).write_text(content)
        assert not read_run(folder).never_ran


def test_the_rounds_rules_are_told_as_met_or_broken() -> None:
    rules = {rule.name: rule for rule in facts.rules_on_settings(record())}
    assert not rules["min_duration_ms"].met and rules["min_duration_ms"].asked == "≥ 600,000"
    assert rules["server_target_latency_ns"].met and rules["qsl_rng_seed"].met
    assert facts.rules_on_settings(record(round="v9.9")) == []


def test_the_curve_of_percentiles_goes_through_the_percentiles() -> None:
    histogram = np.bincount(
        bucket_of(np.array([5 * MS] * 50 + [9 * MS] * 39 + [40 * MS] * 11)), minlength=BUCKETS
    )
    x, y = percentile_curve(histogram)
    for p in (0.25, 0.6, 0.895, 0.95):
        at = int(np.flatnonzero(x < 1 - p)[0])
        assert y[at] == pytest.approx(percentile_ns(histogram, p) / MS)


@pytest.mark.parametrize("limit_ms", [4, 40])
def test_every_limit_line_lies_within_its_figure(limit_ms: int) -> None:
    made = timed(settings={**record().settings, "server_target_latency_ns": limit_ms * MS})
    assert made.series is not None
    drawn = [distribution(made), percentiles(made), latency_over_time(made, made.series)]
    for picture in [*drawn, worker_latencies(made, rows(made), frozenset())]:
        clip = re.findall(r'<clipPath .*?x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', picture.svg)[0]
        left, top, width, height = map(float, clip)  # of the axes: what lies beyond is not seen
        lines = re.findall(
            r'<path d="M (\S+) (\S+) +L (\S+) (\S+) +" clip[^>]*stroke="var\(--bad\)"', picture.svg
        )
        assert lines or picture.title == "Latency by worker", picture.title
        for x0, y0, x1, y1 in (map(float, line) for line in lines):
            assert left <= min(x0, x1) <= max(x0, x1) <= left + width, picture.title
            assert top <= min(y0, y1) <= max(y0, y1) <= top + height, picture.title
        words = re.search(rf"x=.(\S+). y=[^>]*>limit {limit_ms} ms<", picture.svg)
        assert words is None or left <= float(words[1]) <= left + width, picture.title


# Files


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_the_csv_files_hold_every_sample_span_and_stage() -> None:
    made = timed()
    assert made.series is not None
    runs = [run_of(made)]
    counted = sum(int(row["samples"]) for row in table(histogram_csv(runs)) if row["stage"] == "latency")
    assert counted == 1600
    spans = table(series_csv(runs))
    assert [int(row["completed"]) for row in spans] == made.series.completed and spans[1]["from_s"] == "0.125"
    assert len(table(stages_csv(runs))) == 2 * len(STAGES)
    evil = made.workers[0].model_copy(update={"name": "=cmd()"})
    assert table(stages_csv([run_of(made.model_copy(update={"workers": [evil]}))]))[0]["worker"] == "'=cmd()"


def test_the_command_writes_page_csv_and_json_into_the_runs_folder(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "r1", timed(), record("Offline"), record("Server", "accuracy"))
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    written = {path.name for path in folder.iterdir() if path.is_file()}
    assert written == {
        "report.html", "report.json", "report-histogram.csv", "report-losses.csv", "report-series.csv",
        "report-stages.csv",
    }  # fmt: skip
    body = json.loads((folder / "report.json").read_text())
    assert body["schema"] == "loadgrid.report/1" and len(body["runs"][0]["tests"]) == 3
    assert (folder / "report.html").stat().st_size < 250_000
    one = str(folder / "Offline-performance")
    again = CliRunner().invoke(app, ["report", one, one, "--out", str(tmp_path / "both.html")])
    assert again.exit_code == 0 and "2 runs compared" in (tmp_path / "both.html").read_text()


def test_a_link_in_the_runs_folder_is_replaced_and_one_that_a_person_names_is_followed(
    tmp_path: Path,
) -> None:
    folder, away = run_folder(tmp_path / "r1", record()), tmp_path / "away.html"
    for link in (folder / "report.html", tmp_path / "mine.html"):
        link.symlink_to(away)
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    assert not (folder / "report.html").is_symlink() and not away.exists()
    out = ["--out", str(tmp_path / "mine.html")]
    assert CliRunner().invoke(app, ["report", str(folder), *out]).exit_code == 0
    assert (tmp_path / "mine.html").is_symlink() and away.stat().st_size > 1000


def test_a_loss_is_told_where_when_why_and_how_many_moved() -> None:
    made = record(losses=[loss(), loss("=gone").model_copy(update={"at_s": None})])
    told, early = facts.losses(made)
    assert (told.worker, told.node, told.when, told.moved) == ("worker-1", "node-a", "12.3 s", 14)
    assert (early.node, early.when) == ("", "before the start")
    rows = table(losses_csv([run_of(made)]))
    assert [row["worker"] for row in rows] == ["worker-1", "'=gone"] and rows[0]["at_s"] == "12.3"


def damage(change: Callable[[dict[str, Any]], object]) -> bytes:
    body = json.loads(record().to_json())
    change(body)
    return json.dumps(body).encode()


def first_stage(body: dict[str, Any]) -> Any:
    return body["workers"][0]["stages"]["wire"]


DAMAGED = {
    "no JSON": b"\x00\xff{",
    "other JSON": b"[1]",
    "deep": b"[" * 100_000,
    "bucket": damage(lambda b: first_stage(b).update(histogram={str(BUCKETS): 1})),
    "negative": damage(lambda b: first_stage(b).update(histogram={"3": -1})),
    "name": damage(lambda b: first_stage(b).update(histogram={"²": 1})),
    "no stage": damage(lambda b: b["workers"][0]["stages"].clear()),
    "no settings": damage(lambda b: b.update(settings={})),
    "words": damage(lambda b: b["settings"].update(server_target_latency_ns="soon")),
    "count": damage(lambda b: b["driver"].update(completed="many")),
    "late": damage(lambda b: b["result"].update(overlatency_queries=10**40)),
    "series": damage(
        lambda b: b.update(
            series={"span_s": 1, "issued": [1], "completed": [], "over_limit": [], "p50_ms": [], "p99_ms": [],
                    "in_flight": []}
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_one_message_that_names_the_file(name: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "r", record("Offline"))
    (folder / "Server-performance").mkdir()
    (folder / "Server-performance" / RECORD).write_bytes(DAMAGED[name])
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 2 and "record.json" in re.sub(r"[\s│]", "", done.output), done.output
    assert "Traceback" not in done.output and not (folder / "report.html").exists()
    said: list[str] = []
    report_of_run(folder, said.append)
    assert len(said) == 1 and said[0].startswith("no report: ") and "\n" not in said[0]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for wrong in (tmp_path / "absent", tmp_path, Path(__file__)):
        with pytest.raises(ReportError):
            read_run(wrong)
    folder = run_folder(tmp_path / "r", record())
    (tmp_path / "l").mkdir()
    os.symlink(folder / "Server-performance", tmp_path / "l" / "Server-performance")
    with pytest.raises(ReportError):
        read_run(tmp_path / "l")
    for out in (tmp_path, tmp_path / "x.json", tmp_path / "no" / "x.html"):
        assert CliRunner().invoke(app, ["report", str(folder), "--out", str(out)]).exit_code == 2
    with pytest.raises(RecordError):
        read_record(tmp_path)


def test_a_report_that_cannot_be_written_is_one_line_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = run_folder(tmp_path / "r", record()), list[str]()
    (folder / "report.html").mkdir()
    report_of_run(folder, said.append)
    monkeypatch.setattr("orchestrator.report.write.write_report", lambda *_: 1 / 0)
    report_of_run(folder, said.append)
    assert [text.partition(":")[0] for text in said] == ["no report", "no report"] and "Zero" in said[1]


def test_failed_interrupted_and_unfinished_tests_have_their_place_in_the_report(tmp_path: Path) -> None:
    broken = record(status="failed", reason="worker worker-1 failed: CUDA error", losses=[loss()])
    stopped = record("Offline", status="interrupted", reason="SIGINT", samples=[0, 0], driver={})
    folder = run_folder(tmp_path / "r", broken, stopped)
    (folder / "Server-accuracy.partial").mkdir()
    (folder / "Old-performance.earlier-1").mkdir()
    (folder / "Old-performance.earlier-1" / RECORD).write_bytes(record().to_json())
    run = read_run(folder)
    page = as_page([run])
    assert len(run.records) == 2
    for words in (
        "CUDA error",
        "12 s after the start",
        '<td class="num">12.3 s</td><td class="num">14</td><td>its link to the test closed</td>',
        'worker-1 <span class="chip fair">lost</span>',
        ">worker-1 (lost)<",
        "INTERRUPTED",
        "Server-accuracy.partial",
    ):
        assert words in page
