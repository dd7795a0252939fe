"""Runs side by side in a report: differences, spread, verdicts, and why they may not be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.record import Record
from orchestrator.report.compare import compare, letter
from orchestrator.report.page import as_page
from orchestrator.report.runs import Run
from tests.made_records import invalid, record, score
from tests.report_runs import timed

TIME_BUDGET_S = 6


def run_of(*records: Record, name: str = "shown-1") -> Run:
    return Run(name, Path(name), records)


def test_two_runs_are_compared_with_difference_and_spread() -> None:
    slower = record(result=record().result.model_copy(update={"value": 89.55}))
    (one,) = compare([run_of(record()), run_of(slower, name="shown-2")])
    result = one.quantities[0]
    assert result.name == "result, queries/s" and result.shown == [("99.5", ""), ("89.55", "-10.0 %")]
    assert result.spread == pytest.approx(9.95 / 94.525) and not one.not_comparable


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {**record().settings, "server_target_qps": 50.0}}, "server_target_qps: A 100, B 50"),
        ({"division": "closed"}, "division: A open, B closed"),
        ({"hashes": {"library": "beef"}}, "data set's hash: A none, B beef"),
        (
            {"workers": [w.model_copy(update={"model_hash": "x"}) for w in record().workers]},
            "model hash: A h, B x",
        ),
    ],
)
def test_runs_of_different_things_are_called_not_comparable(change: dict[str, Any], words: str) -> None:
    (one,) = compare([run_of(record()), run_of(record(**change))], pictures=False)
    assert any(words in text for text in one.not_comparable)


def test_other_versions_are_remarks_and_a_test_of_one_run_is_not_compared() -> None:
    other = record(versions={"numpy": "9"})
    (one,) = compare([run_of(record(), record("Offline")), run_of(other)], pictures=False)
    assert one.test == "Server-performance" and one.remarks == ("numpy: A none, B 9",)
    assert [letter(n) for n in (0, 25, 26)] == ["A", "Z", "A2"]
    scored, elsewhere = record("Server", "accuracy"), record("Offline", "accuracy")
    closed = scored.model_copy(update={"division": "closed"})
    assert "These figures are not comparable" in as_page([run_of(scored), run_of(closed)])
    assert "nothing is compared" in as_page([run_of(scored), run_of(elsewhere)])


def test_verdicts_stand_first_and_the_spread_is_of_valid_tests_alone() -> None:
    runs = [run_of(record()), run_of(record(result=invalid([]))), run_of(record(official=True))]
    (one,) = compare(runs, pictures=False)
    assert [(found.word, found.official) for found in one.judged] == [
        ("VALID", False),
        ("INVALID", False),
        ("VALID", True),
    ]
    assert one.quantities[0].values == (99.5, 90.0, 99.5) and one.quantities[0].spread == 0
    page = as_page(runs[:2])
    assert page.index(">verdict<") < page.index(">official<") < page.index(">result, queries/s<")
    missed = [run_of(record("Server", "accuracy", accuracy=score(n))) for n in (17, 16)]
    assert compare(missed, pictures=False)[0].quantities[0].spread == pytest.approx(5 / 82.5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "5.0.1"}, "LoadGen: A 6.0.17, B 5.0.1"),
        ({"sha256": "beef"}, "LoadGen's sha256: A cafe, B beef"),
        (
            {"file": "orchestrator/fixed_interval.py"},
            "LoadGen's file: A x.so, B orchestrator/fixed_interval.py",
        ),
    ],
)
def test_another_loadgen_is_a_reason_not_to_compare(change: dict[str, Any], told: str) -> None:
    known = {"version": "6.0.17", "sha256": "cafe", "file": "x.so"}
    runs = [run_of(record(loadgen=known)), run_of(record(loadgen=known | change))]
    assert told in compare(runs, pictures=False)[0].not_comparable


def test_a_late_count_of_zero_is_a_count_and_other_batches_are_told() -> None:
    made = timed()
    assert made.series is not None
    none_late = made.series.model_copy(update={"over_limit": [0] * len(made.series.over_limit)})
    quick = made.model_copy(update={"series": none_late})
    bigger = [one.model_copy(update={"facts": {"max_batch": 64}}) for one in quick.workers]
    runs = [run_of(quick), run_of(quick.model_copy(update={"workers": bigger}))]
    (one,) = compare(runs, pictures=False)
    late = next(q for q in one.quantities if "driver's clock (from issue)" in q.name)
    assert [value for value, _ in late.shown] == ["0", "0"]
    assert any(text.startswith("largest batch: ") and text.endswith("B 64") for text in one.remarks)
