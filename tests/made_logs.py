"""LoadGen's logs in the forms of their time, as logging.cc and results.cc of each round write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY

LINE = "=" * 48
SEEDS = {"qsl_rng_seed": 3133965575612453542, "sample_index_rng_seed": 665484352860916858}
SEEDS |= {"schedule_rng_seed": 3622009729038561421}


def accuracy_log(path: Path, answers: Sequence[tuple[int, bytes]]) -> Path:
    """An accuracy log as LoadGen writes it: an entry a line, upper-case hexadecimal."""
    lines = [
        f'{{ "seq_id" : {i}, "qsl_idx" : {index}, "data" : "{data.hex().upper()}" }}'
        for i, (index, data) in enumerate(answers)
    ]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return path


def mllog(key: str, value: Any, error: bool = False, warning: bool = False) -> str:
    """One line of a detail log since v1.0; a string goes in as it is, because LoadGen escapes nothing."""
    told = f'"{value}"' if isinstance(value, str) else json.dumps(value)
    flags = f'"is_error": {json.dumps(error)}, "is_warning": {json.dumps(warning)}'
    return (
        f':::MLLOG {{"key": "{key}", "value": {told}, "time_ms": 0.5, "namespace": "mlperf::logging", '
        f'"event_type": "POINT_IN_TIME", "metadata": {{{flags}, "file": "loadgen.cc", "line_no": 1, '
        '"pid": 7, "tid": 7}}\n'
    )


def text(message: str) -> str:
    """One line of a detail log of v0.5 or v0.7."""
    return f'"pid": 966, "tid": 966, "ts": 17890ns : {message}\n'


def detail(version: str, scenario: str, results: dict[str, Any], **settings: Any) -> str:
    """A detail log since v1.0 of a performance test that ended."""
    head: dict[str, Any] = {
        "loadgen_version": f"{version} @ 6958607d52",
        "test_datetime": "2021-03-07T23:59:12Z",
    }
    head |= {"sut_name": "SUT", "qsl_name": "QSL", "qsl_reported_total_count": 50000}
    head |= {"effective_scenario": scenario, "effective_test_mode": "PerformanceOnly"}
    head |= {f"effective_{key}": value for key, value in (SEEDS | settings).items()}
    tail = {"power_begin": "03-08-2021 00:00:05.233", "power_end": "03-08-2021 00:10:05.241"}
    return "".join(
        mllog(key, value) for key, value in (head | tail | {"result_validity": "VALID"} | results).items()
    )


def detail_as_text(version: str = ".5a1", scenario: str = "Server") -> str:
    """A detail log of v0.5; the results are not in it."""
    settings = ["samples_per_query : 1", "target_qps : 45120.5", "target_latency (ns): 15000000"]
    settings += ["min_duration (ms): 60000", "min_query_count : 270336", "print_timestamps : false"]
    settings += [f"{key} : {value}" for key, value in SEEDS.items()] + ["performance_sample_count : 1600"]
    names = [f"Scenario : {scenario}", "Test mode : Performance"]
    return "".join(
        [
            text("LoadgenVersionInfo:"),
            text(f"version : {version} @ 61220457de"),
            text("git_log :\n\n61220457dec221 loadgen: re-apply fix for msvc (#459)\n"),
            text("Date + time of test: 2019-10-10T19:29:57Z"),
            text("System Under Test (SUT) name: Alpha : Beta"),
            text("QSL total size: 50000"),
            *map(text, ["", "Effective Settings:", *names, *settings]),
            text('WARNING : Logging allocation detected: "tid" : 17544, "reserved_entries" : 1024'),
            *map(
                text,
                [
                    "",
                    "Requested Settings:",
                    *names,
                    "server_target_qps : 45120",
                    "min_duration_ms : 60000",
                    "",
                ],
            ),
            text('Loading QSL : "set" : "[257,183,1526]"'),
            text('GeneratedQueries: "queries" : 2710170, "samples per query" : 1, "duration" : 60000080217'),
            text("ERROR : Ending early: Ran out of generated queries"),
            text('POWER_BEGIN: "mode" : Performance, "time" : 10-10-2019 19:29:57.790'),
            text('POWER_END: "mode" : Performance, "time" : 10-10-2019 19:30:57.791'),
        ]
    )


def summary(
    scenario: str, headline: str, *more: str, verdict: str = "VALID", stats: str = "", errors: int = 0
) -> str:
    """A summary; `headline` stands above the verdict, `more` below it."""
    end = {0: "No errors", 1: "1 ERROR"}.get(errors, f"{errors} ERRORS")
    parts = [
        LINE,
        "MLPerf Results Summary",
        LINE,
        "SUT name : SUT",
        f"Scenario : {scenario}",
        "Mode     : Performance",
    ]
    parts += [headline, f"Result is : {verdict}", "  Min duration satisfied : Yes", *more, ""]
    parts += [
        LINE,
        "Additional Stats",
        LINE,
        stats,
        LINE,
        "Test Parameters Used",
        LINE,
        "samples_per_query : 1",
    ]
    parts += [
        "target_latency (ns): 15000000",
        f"qsl_rng_seed : {SEEDS['qsl_rng_seed']}",
        "print_timestamps : 0",
        "",
    ]
    return "\n".join(
        [*parts, "No warnings encountered during test.", "", f"{end} encountered during test.", ""]
    )


def write(
    folder: Path, detail: str | bytes = "", summary: str | bytes = "", accuracy: bytes | None = None
) -> Path:
    """Put logs into a folder; an empty one is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, told in ((DETAIL, detail), (SUMMARY, summary), (ACCURACY_LOG, accuracy)):
        if told or (told is not None and name == ACCURACY_LOG):
            (folder / name).write_bytes(told if isinstance(told, bytes) else str(told).encode())
    return folder
