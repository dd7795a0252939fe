"""The typed reader of LoadGen's logs: forms, rounds' metrics, published samples, damage."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import cli
from orchestrator.loadgen_logs import LoadgenRun, LogError, answers, read_run
from orchestrator.loadgen_metrics import round_number
from orchestrator.logs import LINE_BYTES
from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY
from tests.made_logs import SEEDS, detail, detail_as_text, mllog, summary, write

TIME_BUDGET_S = 20

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"
ONE_STREAM = {
    "result_90.00_percentile_latency_ns": 500_000,
    "result_mean_latency_ns": 400_000,
    "early_stopping_latency_ss": 510_000,
    "early_stopping_latency_ms": 700_000,
}
MANY = {"early_stopping_latency_ms": 760_136, "result_mean_query_latency_ns": 800_000}
SERVER = {"result_scheduled_samples_per_sec": 1000.5, "result_completed_samples_per_sec": 999.5}
OFFLINE = {"result_samples_per_second": 304_876.0}
TOKENS = {"requested_use_token_latencies": True, "result_completed_tokens_per_second": 25_614.7}


def read(folder: Path, *logs: Any, **how: Any) -> LoadgenRun:
    return read_run(write(folder, *logs), **how)


# Published runs


def published() -> list[dict[str, str]]:
    manifest = SAMPLES / "MANIFEST.csv"
    return list(csv.DictReader(manifest.read_text().splitlines())) if manifest.is_file() else []


@pytest.mark.skipif(not published(), reason="the published runs are not here")
def test_every_published_sample_is_read_as_it_was_published() -> None:
    for row in published():
        run = read_run((SAMPLES / row["round"] / row["summary_path_under_round_dir"]).parent)
        inferred = row["unit"] == "samples/s" and run.scenario == "SingleStream"
        metric = run.inferred("Offline") if inferred else run.metric
        assert metric is not None
        assert inferred or metric == run.metric_of(row["round"])
        # The table has Server's rates from the summary, two decimals; checkers read six digits elsewhere.
        near = 1e-5 if run.scenario == "Server" else 1e-12
        assert metric.value == pytest.approx(float(row["expected_metric"]), rel=near)
        latencies = run.query_latencies if run.query_latencies.percentiles_ns else run.latencies
        assert latencies.percentiles_ns[99.0] == int(row["p99_ns"])
        assert run.effective["target_latency_ns"] == int(row["target_latency_ns"])
        assert (run.valid, run.scenario, run.sut_name) == (True, row["scenario_in_log"], row["sut_name"])
        assert (run.error_count, run.errors, run.remarks) == (0, (), ())
        assert len(run.latencies.percentiles_ns) == 6 and run.power is not None and run.started is not None
        assert None not in dataclasses.astuple(run.seeds)


@pytest.mark.skipif(not published(), reason="the published runs are not here")
def test_any_cut_of_a_published_log_gives_its_figures_or_none(tmp_path: Path) -> None:
    folder = SAMPLES / "v2.0" / Path(published()[-1]["summary_path_under_round_dir"]).parent
    raw, short = (folder / DETAIL).read_bytes(), (folder / SUMMARY).read_bytes()
    for cut in range(0, len(raw), 997):
        run = read(tmp_path, raw[:cut] or b"\n")
        assert run.metric is None or run.metric.value == 0.760136
        assert run.seeds.qsl in (None, 6655344265603136530) and run.remarks
    for cut in range(0, len(short), 7):
        (tmp_path / DETAIL).unlink(missing_ok=True)
        run = read(tmp_path, "", short[:cut] or b"\n")
        assert run.metric is None or (run.metric.value, run.valid) == (0.760136, True)
        assert run.query_latencies.max_ns in (None, 38617023) and run.remarks


# Forms and rounds


def test_the_text_form_of_v05_is_read_under_the_keys_of_today(tmp_path: Path) -> None:
    rates = "Completed samples per second    : 45164.75\n\n99.00 percentile latency (ns)   : 6275949\n"
    above = "Scheduled samples per second : 45168.94"
    run = read(tmp_path, detail_as_text(), summary("Server", above, stats=rates, errors=1))
    assert (run.form, run.loadgen_version, run.loadgen_revision) == ("text", ".5a1", "61220457de")
    assert (run.scenario, run.mode, run.valid) == ("Server", "PerformanceOnly", True)
    assert run.metric is not None and (run.metric.value, run.metric.unit) == (45168.94, "queries/s")
    assert run.rates.completed == 45164.75 and run.latencies.percentiles_ns == {99.0: 6275949}
    assert (run.seeds.qsl, run.seeds.schedule) == (SEEDS["qsl_rng_seed"], SEEDS["schedule_rng_seed"])
    assert run.effective["target_latency_ns"] == 15_000_000 and run.effective["print_timestamps"] is False
    assert run.requested == {
        "scenario": "Server",
        "test_mode": "PerformanceOnly",
        "server_target_qps": 45120,
        "min_duration_ms": 60000,
    }
    assert run.counts.generated_queries == 2710170 and run.counts.data_set_samples == 50000
    assert run.errors == ("error_runtime: Ending early: Ran out of generated queries",)
    assert (run.error_count, run.warning_count, run.started) == (1, 1, datetime(2019, 10, 10, 19, 29, 57))
    assert run.power is not None and (run.power.duration_s, run.power.clock) == (60.001, "local")
    assert run.sut_name == "Alpha : Beta" and any("sut_name" in remark for remark in run.remarks)


@pytest.mark.parametrize(
    ("version", "scenario", "results", "value", "unit"),
    [
        (".5a1", "SingleStream", ONE_STREAM, 0.5, "ms"),
        ("1.1", "SingleStream", ONE_STREAM, 0.5, "ms"),
        ("2.0", "SingleStream", ONE_STREAM, 0.51, "ms"),
        ("6.0.17", "SingleStream", ONE_STREAM, 0.51, "ms"),
        ("1.1", "MultiStream", {}, 1760, "samples/query"),
        ("2.1", "MultiStream", MANY, 0.760136, "ms"),
        ("4.0", "Server", SERVER, 1000.5, "queries/s"),
        ("4.1", "Server", SERVER, 999.5, "queries/s"),
        ("4.0", "Server", SERVER | TOKENS, 999.5, "queries/s"),
        ("5.0.25", "Server", SERVER | TOKENS, 25_614.7, "tokens/s"),
        ("4.1", "Server", SERVER | {"result_inferred_completed_tokens_per_second": 7.5}, 7.5, "tokens/s"),
        ("5.1.0", "SingleStream", ONE_STREAM | TOKENS, 0.5, "ms"),
        ("6.0.17", "Offline", OFFLINE, 304_876, "samples/s"),
        ("4.1", "Offline", OFFLINE | {"result_tokens_per_second": 31_671.2}, 31_671.2, "tokens/s"),
    ],
)
def test_the_metric_is_the_one_of_the_loadgens_round(
    tmp_path: Path, version: str, scenario: str, results: dict[str, Any], value: float, unit: str
) -> None:
    run = read(tmp_path, detail(version, scenario, results, samples_per_query=1760))
    assert run.metric is not None and (run.metric.value, run.metric.unit) == (value, unit)
    assert run.power is not None and run.power.clock == ("local" if version == ".5a1" else "UTC")


def test_another_rounds_metric_can_be_asked_of_the_same_logs(tmp_path: Path) -> None:
    run = read(tmp_path, detail("6.0.17", "SingleStream", ONE_STREAM), round_name="v1.0")
    assert run.metric is not None and (run.metric.value, run.metric.round) == (0.5, "v1.0")
    newest = run.metric_of("v6.1")
    assert newest is not None and newest.value == 0.51
    offline, many = run.inferred("Offline"), run.inferred("MultiStream")
    assert offline is not None and (offline.value, offline.inferred_from) == (2500, "SingleStream")
    assert many is not None and many.value == 5.6
    assert run.inferred("MultiStream", "v1.0") is None and run.inferred("Server") is None
    with pytest.raises(LogError, match="'newest' is not a round"):
        run.metric_of("newest")


def test_a_summary_alone_tells_which_metric_counts(tmp_path: Path) -> None:
    stopping = [
        "  Early stopping satisfied: Yes",
        "Early Stopping Result:",
        " * Processed at least 64 queries (999).",
    ]
    stopping += [" * Early stopping 90.0th percentile estimate: 510000"]
    stopping += [" * Early stopping 99.0th percentile estimate: 700000"]
    new = read(
        tmp_path / "new", "", summary("SingleStream", "90.0th percentile latency (ns) : 500000", *stopping)
    )
    old = read(tmp_path / "old", "", summary("Single Stream", "90th percentile latency (ns) : 500000"))
    assert new.metric is not None and old.metric is not None
    assert (new.metric.value, old.metric.value) == (0.51, 0.5)
    assert new.counts.queries == 999 and new.early_stopping.multi_stream_ns == 700_000
    rates = "Scheduled samples per second : 1000.50\nMin latency (ns)                : 5\n"
    server = read(
        tmp_path / "s", "", summary("Server", "Completed samples per second    : 999.50", stats=rates)
    )
    assert server.metric is not None and (server.metric.value, server.rates.scheduled) == (999.5, 1000.5)


def test_query_and_sample_latencies_of_the_old_multistream_stay_apart(tmp_path: Path) -> None:
    stats = (
        'Intervals between each IssueQuery:  "qps" : 20, "ms" : 50\n99.00 percentile : 2\n\n'
        'Per-query latency:  "target_ns" : 50000000, "target_ms" : 50\n'
        "99.00 percentile latency (ns)   : 46439806\n\n"
        "Per-sample latency:\nMean latency (ns)               : 28260878\n"
        "99.00 percentile latency (ns)   : 46010909\n"
    )
    run = read(tmp_path, "", summary("Multi Stream", "Samples per query : 1920", stats=stats))
    assert run.intervals == {99.0: 2} and run.query_latencies.percentiles_ns == {99.0: 46439806}
    assert run.latencies.percentiles_ns == {99.0: 46010909} and run.latencies.mean_ns == 28260878
    assert run.metric is not None and run.metric.value == 1920 and run.inferred("Offline", "v1.1") is None


def test_an_invalid_run_says_why_in_loadgens_words(tmp_path: Path) -> None:
    advice = [
        "  Min queries satisfied : NO",
        "Recommendations:",
        " * Increase the target QPS.",
        " * It exited early.",
    ]
    advice += ["   See the detailed log."]
    run = read(
        tmp_path, "", summary("Server", "Scheduled samples per second : 1", *advice, verdict="INVALID")
    )
    assert run.valid is False and run.checks.min_queries is False and run.checks.early_stopping is None
    assert run.reasons == ("Increase the target QPS.", "It exited early. See the detailed log.")


def test_too_few_queries_for_early_stopping_are_no_result(tmp_path: Path) -> None:
    run = read(tmp_path, detail("6.0.17", "MultiStream", {"early_stopping_latency_ms": 0}))
    assert run.metric is None and "early stopping had too few queries" in " ".join(run.remarks)


# Oddities


def test_strings_that_loadgen_did_not_escape_and_nul_bytes_are_read_and_told(tmp_path: Path) -> None:
    whole = detail("1.1", "Offline", OFFLINE).replace('"value": "SUT"', '"value": "my "best" SUT"')
    run = read(tmp_path, whole.replace('"value": "QSL"', '"value": "QSL\0"'))
    assert (run.sut_name, run.qsl_name) == ('my "best" SUT', "QSL")
    assert any("is not JSON" in remark for remark in run.remarks)
    assert any("NUL byte" in remark for remark in run.remarks)


def test_an_error_in_a_line_that_is_not_json_is_still_an_error(tmp_path: Path) -> None:
    line = mllog("error_runtime", 'cannot open "a.conf"', error=True)
    run = read(tmp_path, detail("6.0.17", "Offline", OFFLINE) + line)
    assert run.errors == ('error_runtime: cannot open "a.conf"',) and run.error_count == 1


def test_logs_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    logs = detail("1.1", "Offline", OFFLINE), summary("Offline", "Samples per second: 304900", errors=3)
    remarks = " ".join(read(tmp_path, *logs).remarks)
    assert "result_samples_per_second" in remarks and "holds 0 errors" in remarks
    fine = summary("Offline", "Samples per second: 304876")
    assert read(tmp_path, logs[0], fine).remarks == ()


def test_two_tests_in_one_log_and_unknown_words_are_told(tmp_path: Path) -> None:
    one = detail("1.1", "Offline", OFFLINE)
    assert "holds 2 tests" in " ".join(read(tmp_path, one + one).remarks)
    run = read(tmp_path, one.replace('"Offline"', '"Sideways"').replace("2021-03-07T", "yesterday"))
    assert (run.scenario, run.started, run.metric) == (None, None, None)
    remarks = " ".join(run.remarks)
    assert "effective_scenario is unknown: Sideways" in remarks and "test_datetime is no time" in remarks


def test_settings_without_a_verdict_are_no_result(tmp_path: Path) -> None:
    cut = detail("1.1", "MultiStream", {}, samples_per_query=1760).partition(
        ':::MLLOG {"key": "result_validity'
    )[0]
    run = read(tmp_path, cut + ":::MLL")
    assert run.metric is None and run.metric_of("v1.0") is None and run.error_count is None
    assert "there is no verdict" in " ".join(run.remarks) and "cut short" in " ".join(run.remarks)


def test_an_accuracy_test_has_answers_and_no_result(tmp_path: Path) -> None:
    log = b'[\n{ "seq_id" : 0, "qsl_idx" : 5, "data" : "0A" },\n'
    log += b'{ "seq_id" : 1, "qsl_idx" : 6, "data" : "" }\n]\n'
    head = detail("1.1", "MultiStream", {}, samples_per_query=8).replace("PerformanceOnly", "AccuracyOnly")
    run = read(tmp_path, head.replace(mllog("result_validity", "VALID"), ""), "", log)
    assert run.metric is None and run.valid is None and "verdict" not in " ".join(run.remarks)
    assert run.accuracy_log is not None and (run.accuracy_log.entries, run.accuracy_log.truncated) == (
        2,
        False,
    )
    assert [logged.data for logged in answers(tmp_path)] == [b"\n", b""]
    for short, truncated in ((log[:50] + b"..." + log[-50:], True), (log[:70], False), (b"", False)):
        accuracy = read(tmp_path, "", "", short).accuracy_log
        assert accuracy is not None and (accuracy.entries, accuracy.truncated) == (None, truncated)


def test_a_folder_without_logs_is_an_error_with_its_name(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LogError, match=f"{folder}: no LoadGen logs here"):
            read_run(folder)
    (tmp_path / SUMMARY).mkdir()
    with pytest.raises(LogError, match="Is a directory"):
        read_run(tmp_path)


# Damage

WHOLE = detail("6.0.17", "Server", SERVER, samples_per_query=1)
TEXTS = [WHOLE, detail_as_text(), summary("Server", "Completed samples per second    : 999.50")]


def told(run: LoadgenRun) -> str:
    """As JSON, which must be JSON whatever was read."""
    return json.dumps(run.as_dict(), allow_nan=False)


@given(
    which=st.integers(0, 2),
    at=st.integers(0, 4000),
    cut=st.integers(0, 400),
    put=st.binary(max_size=40)
    | st.sampled_from([b"\0" * 9, b"\n", b'"', b"9" * 5000, b"NaN", b"{" * 3000, b"\\ud800"]),
)
def test_a_damaged_log_gives_a_run_with_remarks_and_never_a_wrong_verdict(
    which: int, at: int, cut: int, put: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = TEXTS[which].encode()
    at %= len(raw)
    damaged = raw[:at] + put + raw[at + cut :]
    folder = write(tmp_path_factory.mktemp("damaged"), *(["", damaged] if which == 2 else [damaged]))
    run = read_run(folder)
    assert told(run) and run.valid is not False and run.remarks


@given(
    raw=st.binary(max_size=300)
    | st.text(max_size=200).map(lambda s: (':::MLLOG {"key": "' + s).encode("utf-8", "replace")),
    name=st.sampled_from([DETAIL, SUMMARY, ACCURACY_LOG]),
)
def test_any_bytes_are_logs(raw: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / f"any-{name}"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(raw)
    run = read_run(folder)
    assert told(run) and run.metric is None and run.valid is None


@given(cut=st.integers(0, len(WHOLE)))
def test_a_cut_log_gives_its_figures_or_none(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write(tmp_path_factory.mktemp("cut"), WHOLE[:cut] or "\n")
    run, whole = read_run(folder), 999.5
    assert (run.metric.value if run.metric else None) in (None, whole)
    assert run.seeds.qsl in (None, SEEDS["qsl_rng_seed"]) and run.loadgen_version in (None, "6.0.17")


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    noise = mllog(
        "warning_generic_message", "Logging allocation detected: " + "x" * 150, warning=True
    ).encode()
    with open(write(tmp_path, WHOLE) / DETAIL, "ab") as file:
        file.write(noise * 20_000)
        file.write(b"y" * (LINE_BYTES + 9) + b"\n" + mllog("late", "x" * (1 << 20)).encode())
    with open(tmp_path / ACCURACY_LOG, "wb") as file:
        entry = b'{ "seq_id" : 0, "qsl_idx" : 5, "data" : "' + b"00" * 5000 + b'" }'
        file.write(b"[\n" + b",\n".join([entry] * 1000) + b"\n]\n")
    tracemalloc.start()
    run = read_run(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert run.warning_count == 20_000 and len(run.warnings) == 1000 and "late" not in run.values
    assert run.accuracy_log is not None and run.accuracy_log.entries == 1000
    assert peak < 3 * LINE_BYTES  # a line as bytes and as text, and a chunk; the logs together have 41 MB


def test_versions_become_rounds() -> None:
    names = {".5a1": (0, 5), "1.1": (1, 1), "6.0.17": (6, 0), "v4.1": (4, 1), "5.0.25 @ 1bc3": (5, 0)}
    assert {name: round_number(name) for name in names} == names
    assert round_number("newest") is None and round_number("") is None


# The command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["loadgrid", "log", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_loadgrid_log_shows_every_run_below_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a" / "run_1", detail("6.0.17", "Server", SERVER).replace('"SUT"', '"S\\u001b[31mUT"'))
    write(tmp_path / "b", detail("1.1", "Offline", OFFLINE))
    assert call(monkeypatch, tmp_path) == 0
    page = capsys.readouterr().out
    assert "999.5 queries/s (completed samples per second; result_completed_samples_per_sec)" in page
    assert "304876 samples/s" in page and "VALID" in page and "\x1b" not in page
    assert call(monkeypatch, tmp_path, "--json", "--round", "v1.0") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["metric"]["value"], second["metric"]["value"]) == (1000.5, 304876)
    assert first["power"]["duration_s"] == 600.008 and first["latencies"]["percentiles_ns"] == {}


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], [".", "--round", "newest"]])
def test_loadgrid_log_without_logs_is_one_message(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if len(arguments) > 1:
        write(tmp_path, WHOLE)
    assert call(monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err and not said.out
