"""What a person reads when a test or a run is over; the records are made by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

from orchestrator.journey import PATH, TOTAL, driver_was_the_limit, rows
from orchestrator.logs import DetailLog
from orchestrator.phrases import bar, duration, ms, plural, size, verdict
from orchestrator.record import Record
from orchestrator.tables import run_report, test_report
from orchestrator.verdict import result_of
from tests.made_records import driver, invalid, loss, record, score, shown, spec, words

TIME_BUDGET_S = 8

FOLDER = Path("runs") / "shown-1"


def report(*records: Record, width: int = 80) -> str:
    terminal = Terminal(file=io.StringIO(), width=width)
    return words(shown(run_report("shown", records, FOLDER, terminal), width=width))


def test_block(made: Record, width: int = 80) -> str:
    return words(shown(test_report(made, FOLDER / made.test), width=width))


test_block.__test__ = False  # type: ignore[attr-defined]


# The tables


CASES: dict[str, Callable[[], Record]] = {
    "valid": record,
    "stream": lambda: record("SingleStream"),
    "many": lambda: record("MultiStream", samples=[10] * 64),
    "offline": lambda: record("Offline"),
    "accuracy": lambda: record("MultiStream", "accuracy"),
    "invalid": lambda: record(result=invalid(["too many queries took longer than the limit" * 4])),
    "failed": lambda: record(status="failed", reason="worker worker-1 failed: " + "CUDA error " * 20),
    "nothing ran": lambda: record(status="interrupted", reason="SIGINT received", samples=[0, 0], driver={}),
    "lost": lambda: record(
        losses=[loss()], late_answers=3, worker_differences=["workers differ in device: a; b"]
    ),
    "official": lambda: record(official=True, unofficial_because=[]),
}


@pytest.mark.parametrize("width", [80, 140])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut_off(width: int) -> None:
    records = [case() for case in CASES.values()]
    terminal = Terminal(file=io.StringIO(), width=width)
    blocks = [test_report(made, FOLDER / made.test) for made in records]
    text = shown(*blocks, run_report("shown", records, FOLDER, terminal), width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def test_a_valid_server_test_says_what_was_demanded_and_how_much_of_the_limit_is_used() -> None:
    text = test_block(record())
    assert (
        "VALID LoadGen accepts this result" in text
        and "99 % of the queries are answered within 15 ms" in text
    )
    assert "99.5 queries/s completed, 100.0 offered" in text
    assert "p50 9.40 p90 10.2 p99 12.6 ms; limit 15 ms at p99, 84 % used" in text


CHECKED = ("result_perf_constraints_met", "result_min_duration_met", "early_stopping_met")


@pytest.mark.parametrize(
    ("scenario", "failed", "told"),
    [
        ("Server", CHECKED, ("too many queries took longer", "a higher target_qps")),
        ("Server", CHECKED[2:], ("ask more (min_query_count",)),
        ("Offline", CHECKED[1:2], ("a higher target_qps",)),
        ("SingleStream", CHECKED[1:], ("a shorter target_latency", "sure of the percentile")),
    ],
)
def test_reasons_fit_the_scenario_and_each_other(
    scenario: str, failed: tuple[str, ...], told: tuple[str, ...]
) -> None:
    detail = DetailLog(values={"result_validity": "INVALID", **dict.fromkeys(failed, False)})
    reasons = result_of(spec(scenario), detail, True).reasons
    assert len(reasons) == len(told) and all(a in b for a, b in zip(told, reasons, strict=True)), reasons


def test_a_short_offline_test_says_which_rate_to_expect() -> None:
    failed = {"result_validity": "INVALID", "result_min_duration_met": False}
    detail = DetailLog(values={**failed, spec("Offline").result_key: 31817.2})
    (reason,) = result_of(spec("Offline"), detail, True).reasons
    assert reason.endswith("expect more (target_qps: 31818 or more)")


def test_an_invalid_test_gives_every_reason_once() -> None:
    text = test_block(
        record(result=invalid(["Reduce target QPS to improve latency. ", "too late", "too late"]))
    )
    assert "INVALID LoadGen does not accept this result" in text
    assert text.count("too late") == 1 and "8.0 times the limit" in text


@pytest.mark.parametrize(
    ("changed", "word", "sentence"),
    [
        (
            {"status": "failed", "reason": "worker-1 failed: no memory"},
            "FAILED",
            "no result: worker-1 failed: no memory",
        ),
        (
            {"status": "interrupted", "reason": "SIGINT received"},
            "INTERRUPTED",
            "before its end: SIGINT received",
        ),
        ({"kind": "accuracy", "accuracy": score(18)}, "REACHED", "18 of 20 right = 90 %; the target is 90 %"),
        ({"kind": "accuracy", "accuracy": score(17)}, "MISSED", "17 of 20 right = 85 %; the target is 90 %"),
        ({"kind": "accuracy", "accuracy": None}, "NOT SCORED", "no score"),
    ],
)
def test_other_outcomes_are_said_plainly(changed: dict[str, Any], word: str, sentence: str) -> None:
    found = verdict(record().model_copy(update=changed))
    assert found.word == word and sentence in found.sentence


def test_a_stream_reports_loadgens_own_percentile() -> None:
    assert "99.5 ms: p90 of a query, as LoadGen's estimate on the safe side" in test_block(
        record("SingleStream")
    )
    assert "p99 of a query of 8 samples" in test_block(record("MultiStream"))
    assert "99.5 ms: p90 of a query, of those that ran" in test_block(record("SingleStream", round="v1.0"))


def test_a_rate_is_named_by_the_key_that_the_round_reads() -> None:
    assert "99.5 queries/s completed, 100.0 offered" in test_block(record())
    scheduled = "99.5 queries/s scheduled, which is the result of v1.1, 100.0 offered"
    assert scheduled in test_block(record(round="v1.1"))


def test_offline_latencies_are_not_shown_as_if_they_were_judged() -> None:
    assert "not judged in Offline" in test_block(record("Offline"))


def test_what_looks_like_markup_in_a_reason_is_shown_as_it_is() -> None:
    assert "[red]boom[/red] [/]" in test_block(record(status="failed", reason="[red]boom[/red] [/]"))


def test_reasons_against_an_official_result_stand_once_with_their_tests() -> None:
    one = record(unofficial_because=["model: none", "min_duration: too short"])
    other = record("Offline", unofficial_because=["model: none"])
    text = report(one, other)
    assert text.count("model: none") == 1 and "min_duration: too short [Server-performance]" in text
    assert "0 official" not in text and "none official" in text


def test_losses_are_told_by_name_at_the_end_of_the_run() -> None:
    text = report(record(losses=[loss("worker-7")]))
    assert (
        "Server-performance: worker-7 12 s after the start: its link to the test closed; 14 samples moved"
        in text
    )


def test_a_loss_that_ends_the_test_does_not_claim_that_samples_moved() -> None:
    text = test_block(record(losses=[loss()], on_loss="fail", status="failed", reason="worker-1 was lost"))
    assert "14 samples not answered, which ends the test" in text and "moved" not in text


def test_a_planned_test_that_never_ran_is_no_good_one() -> None:
    terminal = Terminal(file=io.StringIO(), width=80)
    never = ["Offline-performance", "Offline-accuracy"]
    text = words(shown(run_report("shown", [record()], FOLDER, terminal, never), width=80))
    assert "shown: 1 of 3 tests good" in text and "Never ran: Offline-performance, Offline-accuracy" in text


def test_a_run_without_tests_is_said_to_have_none() -> None:
    assert "no test was run" in report()


def test_a_test_that_answered_nothing_has_no_table_of_times() -> None:
    text = report(record(status="failed", reason="no worker attached", samples=[0, 0]))
    assert "Where did the latency go" not in text and "no worker attached" in text


# Where the latency went


def test_workers_are_merged_by_adding_histograms_not_by_averaging_percentiles() -> None:
    slow = {"latency": 100.0, "compute": 100.0}
    quick = {"latency": 10.0, "compute": 10.0}
    merged = rows(record(samples=[995, 5], stage_ms=[quick, slow]))[-1]
    assert merged.p99_ms["latency"] == pytest.approx(10.0, rel=0.05)
    merged = rows(record(samples=[980, 20], stage_ms=[quick, slow]))[-1]
    assert merged.p99_ms["latency"] == pytest.approx(100.0, rel=0.05)


def test_shares_of_the_stages_add_up_to_one() -> None:
    merged = rows(record())[-1]
    assert sum(merged.share.values()) == pytest.approx(1.0)
    assert merged.share["compute"] == pytest.approx(7.0 / 9.6, rel=0.05)


def late(p99_ms: float) -> dict[str, float]:
    return {"queries": 3000, "p50_ms": 0.1, "p99_ms": p99_ms, "max_ms": 2 * p99_ms}


def stages(*times_ms: float) -> list[dict[str, float]]:
    """The same for both workers: driver queue, wire, worker queue, compute, return."""
    return [dict(zip((*PATH, TOTAL), (*times_ms, sum(times_ms)), strict=True))] * 2


WAITING = stages(50.0, 0.1, 1.0, 7.0, 0.1)
ON_THE_WAY = stages(0.5, 1.0, 0.1, 1.0, 1.0)
# 3,000 samples of 7 ms on two workers are 10.5 s of computing each, in a test of 11 s or of 30 s.
FULL = {"answering_s": 11.0}
IDLE = {"answering_s": 30.0}
FULL_CPU = {"answering_s": 30.0, "cpu_share": 0.97}


ANSWERS = [
    (record(), "no", "within 0.30 ms of LoadGen's schedule (2 % of the limit)"),
    (
        record(driver=driver(issue_lateness=late(3.0))),
        "yes",
        "Yes: 1 % of the queries were issued 3.00 ms or more behind LoadGen's schedule, which is 20 %",
    ),
    (record(driver=driver(cpu_share=0.95)), "perhaps", "used 95 % of a core"),
    (record(driver=driver(cpu_share=0.95), security="in-process"), "no", "with its workers used 95 %"),
    (record(driver=driver(issue_lateness=None)), "unknown", "Cannot tell"),
    (record(stage_ms=WAITING, driver=driver(**FULL)), "no", "the workers computed 95 % of the time"),
    (
        record(stage_ms=WAITING, driver=driver(**IDLE), result=invalid([])),
        "perhaps",
        "computed 35 % of the time",
    ),
    (record("Offline", driver=driver(**FULL)), "no", "so they were the limit"),
    (record("Offline", driver=driver(**IDLE)), "perhaps", "35 % of the time only"),
    (record("Offline", driver=driver(**FULL_CPU)), "yes", "used 97 % of a core"),
    (record("Offline", driver=driver(cpu_share=None)), "perhaps", "too short a test"),
    (record("Offline", driver=driver(answering_s=None)), "unknown", "is not in the record"),
    (record("SingleStream"), "no", "arose on the way (driver queue, wire, return)"),
    (record("SingleStream", stage_ms=ON_THE_WAY), "yes", "69 % of the latency"),
    (record("MultiStream", stage_ms=WAITING), "no", "arose on the way (wire, return)"),
]


@pytest.mark.parametrize(("made", "word", "why"), ANSWERS)
def test_whether_the_driver_was_the_limit_follows_the_stated_rule(made: Record, word: str, why: str) -> None:
    answer = driver_was_the_limit(made)
    assert answer is not None and answer.word == word and why in answer.sentence
    assert "yes when" in answer.rule


@pytest.mark.parametrize(
    "made", [record("Server", "accuracy"), record(status="failed", reason="x"), record(samples=[0])]
)
def test_the_question_is_not_asked_where_nothing_was_measured(made: Record) -> None:
    assert driver_was_the_limit(made) is None


# Numbers


def test_numbers_keep_three_digits_and_their_unit() -> None:
    assert [ms(v) for v in (0.034, 9.876, 61.23, 1234.5, None, float("nan"))] == [
        "0.03", "9.88", "61.2", "1,234", "–", "–",
    ]  # fmt: skip
    assert [duration(v) for v in (0.4, 3, 48.2, 125, 600, 7500)] == [
        "0.4 s", "3 s", "48 s", "2 min 5 s", "10 min", "2 h 5 min",
    ]  # fmt: skip
    assert [size(v) for v in (512, 9_800, 66_000_000, 2.5e12)] == ["512 B", "9.8 kB", "66 MB", "2.5 TB"]
    assert [plural(1, "query"), plural(2, "query"), plural(1024, "sample")] == [
        "1 query",
        "2 queries",
        "1,024 samples",
    ]


def test_a_bar_fills_in_eighths_and_never_overflows() -> None:
    assert bar(0.0, 4) == "    " and bar(0.001, 4) == "▏   " and bar(0.5, 4) == "██  "
    assert bar(7.0, 4) == "████" == bar(1.0, 4) and len(bar(0.33, 9)) == 9
