"""What a report may say: whose number it is, what it is called, and whether record and logs fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.early_stopping import most_late, most_late_by_percentile
from orchestrator.logs import DetailLog, read_detail
from orchestrator.paths import DETAIL, RECORD, SUMMARY
from orchestrator.phrases import late_by_loadgen, verdict
from orchestrator.record import Record, read_record
from orchestrator.report import facts
from orchestrator.report.compare import compare
from orchestrator.report.export import as_json
from orchestrator.report.figures import distribution, percentiles, throughput_over_time
from orchestrator.report.page import as_page
from orchestrator.report.runs import Run, read_run
from orchestrator.rules import load_round
from orchestrator.verdict import result_of
from tests.made_records import record, spec
from tests.report_runs import run_folder, timed

TIME_BUDGET_S = 10

OLD: dict[str, Any] = {"round": "v1.0"}
OLD_LOADGEN: dict[str, Any] = {"loadgen": {"version": "1.0 @ 8f6bb2f", "file": "mlperf_loadgen.so"}}
LATE = record().result.model_copy(update={"overlatency_queries": 52})


def run_of(*records: Record, name: str = "shown-1") -> Run:
    return Run(name, Path(name), records)


# Whose count it is, and what a number is called


def test_loadgens_count_of_late_queries_is_in_the_record_and_older_records_have_none(tmp_path: Path) -> None:
    log = DetailLog(values={"result_validity": "VALID", "result_overlatency_query_count": 209})
    assert result_of(spec("Server"), log, True).overlatency_queries == 209
    assert result_of(spec("Server"), log, False).overlatency_queries is None
    assert result_of(spec("Offline"), DetailLog(values={"result_validity": "VALID"}), True).valid is True
    body = json.loads(record(result=LATE).to_json())
    del body["result"]["overlatency_queries"]
    (tmp_path / RECORD).write_text(json.dumps(body))
    assert read_record(tmp_path / RECORD).result.overlatency_queries is None


def test_late_queries_are_loadgens_with_the_bound_of_those_that_ran() -> None:
    told = f"LoadGen counted 52 of 3,000 queries over 15 ms (1.73 %); {most_late(3000)} may be."
    assert told in facts.what_limited(record(result=LATE))
    # LoadGen before 2.0 looks at the percentile alone.
    told = late_by_loadgen(record(result=LATE, **OLD_LOADGEN))
    assert told.endswith(f"{most_late_by_percentile(3000)} may be")
    assert most_late(3000) != most_late_by_percentile(3000)
    few = record(result=LATE, driver={**record().driver, "completed": 300})
    assert late_by_loadgen(few).endswith("so few queries prove nothing")
    caption = distribution(timed(result=LATE)).words
    assert "ms from issue" in caption and "From the scheduled time LoadGen counted 52 of 3,000" in caption


@pytest.mark.parametrize(
    ("made", "figure", "metric"),
    [
        (record("MultiStream"), "p99 99.5 ms", "p99 of a query of 8 samples, as LoadGen's estimate"),
        (record("SingleStream"), "p90 99.5 ms", "p90 of a query, as LoadGen's estimate on the safe side"),
        (record("SingleStream", **OLD), "p90 99.5 ms", "p90 of a query, of those that ran"),
        (record("Server"), "99.5 queries/s", "completed"),
        (record("Server", **OLD), "99.5 queries/s", "scheduled, which is the result of v1.0"),
        (record("Server", round="v9.9"), "99.5 queries/s", ""),
        (record("Server", "accuracy"), "18/20 = 90 %", ""),
    ],
)
def test_the_card_names_the_result_by_loadgens_key(made: Record, figure: str, metric: str) -> None:
    assert facts.figure_of_test(made) == figure and facts.metric(made).startswith(metric)
    assert bool(facts.metric(made)) == bool(metric)


def test_only_a_loadgen_with_early_stopping_is_said_to_be_sure() -> None:
    assert "be sure that 99 % of the queries are" in verdict(record()).sentence
    assert "accepts this result: 99 % of the queries were" in verdict(record(**OLD_LOADGEN)).sentence
    assert "to be sure of the percentile" in verdict(record("SingleStream")).sentence
    assert "as demanded" in verdict(record("SingleStream", **OLD)).sentence


def test_the_curve_of_samples_marks_loadgens_own_value_and_says_what_it_is() -> None:
    stream, server = percentiles(record("MultiStream")), percentiles(record())
    assert "the diamond is LoadGen's result: 99.5 ms, p99 of a query of 8 samples" in stream.words
    assert "judges by" not in stream.words
    assert "p99, which LoadGen judges by; the diamond is LoadGen's own p99, 12.6 ms." in server.words
    ended = percentiles(record("SingleStream", status="interrupted"))
    assert "diamond" not in ended.words and ended.svg.count("<use") < stream.svg.count("<use")


def test_mean_and_least_throughput_are_of_the_same_full_spans() -> None:
    made = timed("Offline")
    assert made.series is not None
    counts = [10, 400, 380, 420, 30]
    lists = {name: [0] * 5 for name in ("issued", "over_limit", "in_flight", "p50_ms", "p99_ms")}
    series = made.series.model_copy(update=lists | {"completed": counts, "span_s": 2.0})
    told = throughput_over_time(made, series).words
    assert "200.0 samples/s answered on average, 190.0 in the slowest span" in told
    assert "LoadGen's result: 99.5 samples/s." in told


def test_the_time_that_was_asked_is_held_against_the_clocks_time_without_start_and_load() -> None:
    offline = facts.margin(record("Offline", wall_s=99.0))
    assert offline is not None and offline.words == "30 s by LoadGen's clock; 30 s at least were asked"
    stream = facts.margin(timed("SingleStream", seconds=8, wall_s=99.0))
    assert stream is not None and stream.words.startswith("About 8") and "driver's clock" in stream.words
    assert facts.margin(record("SingleStream")) is None


# Record and logs


def line(key: str, value: object) -> str:
    body = {
        "key": key,
        "value": value,
        "time_ms": 1.0,
        "namespace": "mlperf::logging",
        "event_type": "POINT_IN_TIME",
    }
    return ":::MLLOG " + json.dumps({**body, "metadata": {"is_error": False, "is_warning": False}}) + "\n"


def with_logs(root: Path, **changed: Any) -> Path:
    """A run of one INVALID Server test whose record, but for what is changed, is that of its logs."""
    made = record()
    folder = root / made.test
    folder.mkdir(parents=True)
    key = load_round(made.round).result_keys["Server"]
    values = {
        "result_validity": "INVALID",
        key: 90.5,
        "result_99.00_percentile_latency_ns": 21_612_159,
        "result_overlatency_query_count": 52,
    }
    (folder / DETAIL).write_text("".join(line(*pair) for pair in values.items()))
    (folder / SUMMARY).write_text("MLPerf Results Summary\n")
    result = result_of(spec("Server"), read_detail(folder / DETAIL), True)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (DETAIL, SUMMARY)}
    told = made.model_copy(update={"result": result, "files": files})
    (folder / RECORD).write_bytes(Record(**told.model_dump() | changed).to_json())
    return root


def test_a_record_that_fits_its_logs_is_said_to_and_one_without_logs_is_not(tmp_path: Path) -> None:
    run = read_run(with_logs(tmp_path / "r"))
    assert run.proofs[0].doubts == () and run.proofs[0].logs == (DETAIL, SUMMARY)
    assert [found.word for found in run.verdicts] == ["INVALID"]
    page = as_page([run])
    assert f"The record fits the logs beside it: {DETAIL} and {SUMMARY}." in page
    assert "Not to be believed" not in page and "LoadGen's own" not in page.partition("<footer>")[2]
    alone = as_page([read_run(run_folder(tmp_path / "alone", record()))])
    assert "Not compared with LoadGen&#39;s logs" in alone and "DOUBTED" not in alone


LOGGED = {"metric": "throughput", "unit": "queries/s", "reasons": [], "percentiles_ms": {"p99": 21.6122}}
EDITED: dict[str, tuple[dict[str, Any], str]] = {
    "verdict": (
        {"result": LOGGED | {"valid": True, "value": 90.5}},
        f"the verdict is VALID, in {DETAIL} it is INVALID",
    ),
    "value": (
        {"result": LOGGED | {"valid": False, "value": 905.0}},
        f"the throughput is 905 queries/s, in {DETAIL} it is 90.5 queries/s",
    ),
    "percentile": (
        {"result": LOGGED | {"valid": False, "value": 90.5, "percentiles_ms": {"p99": 1.0}}},
        f"its percentiles are not those of {DETAIL}",
    ),
    "hash": (
        {"files": {DETAIL: "beef", SUMMARY: "beef"}},
        f"{SUMMARY} is not the file whose sha256 it names",
    ),
    "no hash": ({"files": {}}, f"it names no sha256 of {DETAIL}"),
    "official": ({"official": True}, "it calls itself official and names reasons why it is not"),
}


@pytest.mark.parametrize("name", EDITED)
def test_a_record_that_does_not_fit_its_logs_is_doubted(name: str, tmp_path: Path) -> None:
    changed, told = EDITED[name]
    run = read_run(with_logs(tmp_path / "r", **changed))
    (found,) = run.verdicts
    assert (found.word, found.good) == ("DOUBTED", False) and any(told in text for text in found.reasons)
    assert facts.headline(run) == "0 of 1 test good, none official"


def test_a_doubted_record_brands_page_comparison_and_json(tmp_path: Path) -> None:
    changed, told = EDITED["verdict"]
    run = read_run(with_logs(tmp_path / "r", **changed, official=True, unofficial_because=[]))
    page = as_page([run])
    assert "Not to be believed: Server-performance." in page and ">VALID<" not in page
    assert (
        "Not official: the record does not fit its logs." in page
        and "0 of 1 test good, none official" in page
    )
    body = json.loads(as_json([run]))["runs"][0]["tests"][0]
    assert body["verdict"] == "DOUBTED" and any(told in text for text in body["doubts"])
    (one,) = compare([run, run_of(record())], pictures=False)
    assert [judged.word for judged in one.judged] == ["DOUBTED", "VALID"] and not one.judged[0].official


def test_the_command_says_what_is_not_to_be_believed(tmp_path: Path) -> None:
    changed, told = EDITED["value"]
    done = CliRunner().invoke(app, ["report", str(with_logs(tmp_path / "r", **changed))])
    assert done.exit_code == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("not to be believed: r, Server-performance: ") and told in line


def test_a_log_that_cannot_be_read_is_a_doubt_and_no_fault(tmp_path: Path) -> None:
    root = with_logs(tmp_path / "r")
    log = root / "Server-performance" / DETAIL
    log.unlink()
    for replace in (log.mkdir, lambda: log.symlink_to("/etc/passwd")):
        replace()
        (found,) = read_run(root).verdicts
        assert found.word == "DOUBTED" and any("cannot be read" in text for text in found.reasons)
        log.unlink() if log.is_symlink() else log.rmdir()
