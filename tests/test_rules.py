"""The rounds' files against the fact sheet, value by value, and the names that they know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.rules import SCENARIOS, Benchmark, Place, Round, RulesError, load_round, round_names

TIME_BUDGET_S = 5.0

FACTS = Path(__file__).parents[2] / "shared" / "facts" / "rules.yaml"
SUITES = ("datacenter", "edge")
OLD_ROUNDS = ("v1.0", "v1.1")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    if not FACTS.exists():
        pytest.skip(
            "the fact sheet is not beside this checkout (../shared/facts/rules.yaml): nothing to compare with"
        )
    data: dict[str, Any] = yaml.load(
        FACTS.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    return data


def _in_order(scenarios: list[str]) -> list[str]:
    return sorted(scenarios, key=SCENARIOS.index)


def test_every_round_loads_and_its_names_are_in_order() -> None:
    assert round_names() == ("v1.0", "v1.1", "v6.1")
    assert [load_round(name).name for name in round_names()] == ["v1.0", "v1.1", "v6.1"]


@pytest.mark.parametrize("name", OLD_ROUNDS)
def test_an_old_rounds_benchmarks_are_the_fact_sheets(facts: dict[str, Any], name: str) -> None:
    found, sheet = load_round(name), facts["rounds"][name]
    compared = 0
    for suite in SUITES:
        assert set(found.suites[suite]) == {b for b, fact in sheet[suite].items() if fact["in_suite"]}
        for benchmark, place in found.suites[suite].items():
            _compare_old(found, found.benchmark(benchmark), place, suite, sheet[suite][benchmark], facts)
            compared += 1
    assert compared == 16


def _compare_old(
    found: Round, mine: Benchmark, place: Place, suite: str, fact: dict[str, Any], facts: dict[str, Any]
) -> None:
    allowed = {*place.checker.required, *place.checker.optional, *place.rules.required, *place.rules.optional}
    assert fact["submission_dir_name"] == mine.name
    assert sorted(fact["accepted_aliases"]) == sorted(mine.aliases)
    assert fact["conf_model_name"] == mine.conf_model_name
    for judge, wanted in (("checker", place.checker), ("rules", place.rules)):
        assert _in_order(fact[f"{judge}_required_scenarios"]) == _in_order(list(wanted.required))
        assert _in_order(fact[f"{judge}_optional_scenarios"]) == _in_order(list(wanted.optional))
    assert fact["performance_sample_count_min"] == mine.performance_sample_count_min
    _compare_accuracy(mine, fact["accuracy"])
    assert fact["server_target_latency_ns"] == (
        mine.server_target_latency_ns if "Server" in allowed else None
    )
    multistream_ns = mine.multistream_target_latency_ns if suite == "edge" else None
    assert fact["multistream_target_latency_ns"] == multistream_ns
    assert fact["min_query_count"] == {s: n for s, n in mine.min_query_count.items() if s in allowed}
    assert fact["offline_min_samples_per_query"] == mine.offline_min_samples_per_query
    assert fact["compliance_tests"] == list(mine.compliance_tests)
    assert fact["test01_accuracy_log_sampling_target"] == mine.test01_sampling_target
    assert fact["equal_issue_mode"] == mine.equal_issue_mode
    assert set(fact["resolved_mlperf_conf"]) == allowed
    for scenario, words in fact["resolved_mlperf_conf"].items():
        assert words == found.conf_words(mine.name, scenario), (mine.name, scenario)
    data = facts["benchmark_data"][mine.name]
    assert (data["task"], data["model"]) == (mine.task, mine.model)
    assert data["accuracy_dataset_size"] == mine.accuracy_sample_count


def _compare_accuracy(mine: Benchmark, fact: dict[str, Any]) -> None:
    assert fact["metric"] == mine.accuracy.metric
    assert fact["target_absolute"] == mine.accuracy.target
    assert fact["regex"] == mine.accuracy.pattern
    assert fact.get("example_line") == mine.accuracy.example
    assert fact.get("higher_is_better", True) is mine.accuracy.higher_is_better
    if "unit" in fact:
        assert fact["unit"] == mine.accuracy.unit


@pytest.mark.parametrize("name", OLD_ROUNDS)
def test_an_old_rounds_combined_systems_are_the_fact_sheets(facts: dict[str, Any], name: str) -> None:
    found, sheet = load_round(name), facts["rounds"][name]["datacenter_and_edge_combined"]
    places = found.suites["datacenter,edge"]
    assert set(places) == set(sheet["required"])
    for benchmark, place in places.items():
        assert _in_order(sheet["required"][benchmark]) == _in_order(list(place.checker.required))
        assert _in_order(sheet["optional"].get(benchmark, [])) == _in_order(list(place.checker.optional))


@pytest.mark.parametrize("name", OLD_ROUNDS)
def test_an_old_rounds_seeds_words_keys_and_audits_are_the_fact_sheets(
    facts: dict[str, Any], name: str
) -> None:
    found, rounds = load_round(name), facts["rounds"]
    assert rounds[name]["seeds"] == found.seeds == facts["all_round_seeds"][name]["main"]
    wide = rounds[name]["mlperf_conf"]["*"]
    for scenario in SCENARIOS:
        words = {word: value for word, value in wide[scenario].items() if word != "target_duration"}
        assert words == found.words[scenario]
    keys = {
        scenario: key.split(" ")[0].rstrip(";") for scenario, key in rounds["v1.0"]["result_keys"].items()
    }
    assert keys == found.result_keys
    audits = rounds["v1.0"]["compliance"]["audit_config"]
    audits["TEST01"].pop("accuracy_log_sampling_target", None)
    assert audits == found.compliance


@pytest.mark.parametrize("name", OLD_ROUNDS)
def test_an_old_rounds_loadgen6_overrides_are_the_fact_sheets(facts: dict[str, Any], name: str) -> None:
    found, sheet = load_round(name), facts["loadgen6_overrides_for_old_rounds"]["v1.0"]
    by_conf_name = {b.conf_model_name: b for b in found.benchmarks.values()}
    assert set(by_conf_name) == set(sheet)
    for model, scenarios in sheet.items():
        for scenario, lines in scenarios.items():
            words = {
                **found.conf_words(by_conf_name[model].name, scenario),
                **by_conf_name[model].loadgen6_words,
            }
            for line, value in lines.items():
                assert words[line.removeprefix(f"{model}.{scenario}.")] == value, line


def test_v6_1_is_the_fact_sheets(facts: dict[str, Any]) -> None:
    found, newest = load_round("v6.1"), facts["rounds"]["newest"]
    assert newest["seeds"]["v6.1"] == found.seeds
    assert set(newest["v6.1"]) == set(found.benchmarks)
    for benchmark, fact in newest["v6.1"].items():
        mine = found.benchmark(benchmark)
        assert fact["conf_model_name"] == mine.conf_model_name
        for suite, key in (
            ("datacenter", "datacenter"),
            ("edge", "edge"),
            ("datacenter,edge", "datacenter_edge"),
        ):
            place = found.place(suite, benchmark)
            wanted = fact[f"required_{key}"]
            assert (place is None) == isinstance(wanted, str)
            if place is not None:
                assert (wanted, ()) == (list(place.checker.required), place.checker.optional)
        _compare_accuracy(mine, fact["accuracy"])
        assert fact["performance_sample_count_min"] == mine.performance_sample_count_min
        assert fact["accuracy_sample_count_exact"] == mine.accuracy_sample_count
        assert fact["server_target_latency_ns"] == mine.server_target_latency_ns
        assert fact["offline_min_samples_per_query"] == mine.offline_min_samples_per_query
        assert fact["result_keys"] == found.result_keys
        assert fact["compliance_tests"] == list(mine.compliance_tests)
        assert fact["equal_issue_mode"] == mine.equal_issue_mode
        for scenario, words in fact["resolved_mlperf_conf_head"].items():
            assert words == found.conf_words(benchmark, scenario), (benchmark, scenario)
    tests = newest["compliance"]["tests_v5.0_and_later"]
    assert {name for name in tests if name in found.compliance} == {"TEST01", "TEST04"}


@pytest.mark.parametrize("name", ["v1.0", "v1.1", "v6.1"])
def test_a_rounds_numbers_agree_with_each_other(name: str) -> None:
    found = load_round(name)
    for benchmark in found.benchmarks.values():
        for scenario in found.scenarios:
            words = found.conf_words(benchmark.name, scenario)
            assert words["min_duration"] == found.min_duration_ms == 600000
        offline = found.conf_words(benchmark.name, "Offline")
        assert offline["min_query_count"] == benchmark.offline_min_samples_per_query
        if benchmark.server_target_latency_ns is not None:
            limit_ms = found.conf_words(benchmark.name, "Server")["target_latency"]
            assert limit_ms * 1_000_000 == benchmark.server_target_latency_ns
        assert set(benchmark.compliance_tests) <= set(found.compliance)


def test_by_the_rules_a_combined_system_needs_what_both_suites_need() -> None:
    place = load_round("v1.0").place("datacenter,edge", "resnet50")
    assert place is not None
    assert place.rules.required == ("SingleStream", "Server", "Offline")
    assert place.rules.optional == ("MultiStream",)
    alone = load_round("v1.0").place("datacenter,edge", "ssd-small")
    assert alone is not None
    assert alone.rules.required == ("SingleStream", "Offline")


def test_aliases_name_the_same_benchmark() -> None:
    found = load_round("v1.0")
    assert found.benchmark("resnet50").name == found.benchmark("mobilenet").name == "resnet"
    assert found.benchmark("ssd-resnet34").name == "ssd-large"
    assert found.place("edge", "bert-99.9") is None


@pytest.mark.parametrize(
    ("ask", "close"),
    [
        (lambda: load_round("V6.1"), "v6.1"),
        (lambda: load_round("1.0"), "v1.0"),
        (lambda: load_round("v1.0").benchmark("Resnet-50"), "resnet50"),
        (lambda: load_round("v6.1").scenario("server"), "Server"),
        (lambda: load_round("v6.1").suite("edges"), "edge"),
    ],
)
def test_an_unknown_name_gives_the_nearest_one(ask: Any, close: str) -> None:
    with pytest.raises(RulesError) as caught:
        ask()
    assert f'did you mean "{close}"?' in str(caught.value)


@pytest.mark.parametrize("name", ["v3.0", "v6.0", "v9.9", "6"])
def test_another_round_is_no_slip_of_the_pen_so_none_is_guessed(name: str) -> None:
    with pytest.raises(RulesError) as caught:
        load_round(name)
    assert str(caught.value) == f'round "{name}" is not one of v1.0, v1.1, v6.1'


@pytest.mark.parametrize("name", ["", "../v1.0", "v1.0.yaml", "V1.0", "v9"])
def test_a_round_is_found_by_its_exact_name_only(name: str) -> None:
    with pytest.raises(RulesError):
        load_round(name)


def test_rounds_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_round("v1.0").min_duration_ms = 1


def test_the_steps_that_happen_untimed_are_the_rules_lists() -> None:
    # inference_rules.adoc, "Pre- and post-processing": six steps in 2021, in 2026 also token ids.
    six = {"resize", "transpose", "pad", "crop", "normalize", "convert"}
    for name in OLD_ROUNDS:
        assert set(load_round(name).untimed_preprocessing) == six
    assert set(load_round("v6.1").untimed_preprocessing) == {*six, "tokenize"}


@pytest.mark.parametrize("name", ["v1.0", "v1.1", "v6.1"])
def test_a_benchmark_takes_untimed_steps_of_its_rounds_list_only(name: str) -> None:
    found = load_round(name)
    starts = {"image classification": "picture", "object detection": "picture", "medical": "picture"}
    starts |= {"speech": "waveform", "question": "text", "recommendation": "items"}
    for benchmark in found.benchmarks.values():
        assert set(benchmark.untimed) <= set(found.untimed_preprocessing), benchmark.name
        assert not set(benchmark.untimed_by_reference) & set(found.untimed_preprocessing), benchmark.name
        start = next(text for task, text in starts.items() if benchmark.task.startswith(task))
        assert start in benchmark.raw_input, benchmark.name


def test_only_the_old_rounds_tokens_lie_outside_their_list() -> None:
    outside = {
        (name, benchmark.name)
        for name in round_names()
        for benchmark in load_round(name).benchmarks.values()
        if benchmark.untimed_by_reference
    }
    assert outside == {(name, bert) for name in OLD_ROUNDS for bert in ("bert-99", "bert-99.9")}
