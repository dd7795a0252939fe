"""The plan: settings against the real LoadGen 6.0.17, broken rules, memory, digests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.manifest import Manifest, parse_manifest
from orchestrator.plan import (
    PlanError,
    TestSpec,
    index_to_remote_finding,
    library_findings,
    memory_needed_bytes,
    plan,
    plan_findings_for_loadgen,
)
from orchestrator.rules import SCENARIOS, load_round, round_names
from orchestrator.settings import readable_settings

TIME_BUDGET_S = 15.0
ROUNDS = round_names()

# A user's words: every one that LoadGen 6 reads, with values that no round has.
WORDS = """
{min_duration: 2000, max_duration: 60000, min_query_count: 7, performance_sample_count_override: 12,
 sample_concatenate_permutation: 1, print_timestamps: 1, performance_issue_same: 1,
 performance_issue_same_index: 3, performance_issue_unique: 1, accuracy_log_sampling_target: 5,
 accuracy_log_rng_seed: 720381539243781796, qsl_rng_seed: 18446744073709551615,
 SingleStream: {target_latency: 0.123, target_latency_percentile: 99.9, min_query_count: 9},
 MultiStream: {target_latency: 3, samples_per_query: 4, target_latency_percentile: 97},
 Server: {target_qps: 12345.678, target_latency: 7, target_latency_percentile: 97.5, coalesce_queries: 0,
          max_async_queries: 6},
 Offline: {target_qps: 1.0e-5, max_query_count: 11, accuracy_sample_count_override: 13}}
"""

# Reads every configuration as a test process would, but by conf types 0 and 2, which work more than once.
READ_BACK = """
import json, sys
import mlperf_loadgen as loadgen
answers = []
for case in json.load(open(sys.argv[1])):
    settings = loadgen.TestSettings()
    settings.FromConfig("", case["model"], case["scenario"], 0)
    code = settings.FromConfig(case["conf"], case["model"], case["scenario"], 2)
    for name, value in case["attributes"].items():
        setattr(settings, name, value)
    answers.append({"code": code, "seen": {name: getattr(settings, name) for name in case["names"]}})
print(json.dumps(answers))
"""


def made_manifest(**fields: Any) -> Manifest:
    """A manifest that breaks no rule but for what `fields` say: the benchmark's own data set and network."""
    found = load_round(fields.get("round", "v6.1"))
    reference = found.benchmark(fields.get("benchmark", "resnet")).reference
    whole = {
        "round": "v6.1",
        "suite": "edge",
        "division": "closed",
        "benchmark": "resnet",
        "scenarios": ["SingleStream", "MultiStream", "Offline"],
        "task": {"name": reference.task},
        "backend": {"engine": "torch", "model": reference.model, "weights": "w.pt"},
        **fields,
    }
    return parse_manifest(yaml.safe_dump(whole).encode(), "m.yaml")


def planned(**fields: Any) -> list[TestSpec]:
    manifest = made_manifest(**fields)
    return plan(manifest, load_round(manifest.round))


def rules_of(spec: TestSpec, *, scope: str = "test") -> list[str]:
    return [finding.rule for finding in spec.broken_rules if finding.scope == scope]


def _every_case() -> list[TestSpec]:
    """Every round, benchmark and scenario that LoadGen 6 can run, plain and with a user's words."""
    specs = []
    for name in ROUNDS:
        found = load_round(name)
        scenarios = [s for s in found.scenarios if s != "MultiStream" or not found.fixed_interval_multistream]
        for benchmark in found.benchmarks:
            for text in ("{}", WORDS):
                common = {
                    "round": name,
                    "benchmark": benchmark,
                    "scenarios": scenarios,
                    "loadgen": yaml.safe_load(text),
                }
                specs += planned(**common, runs=["performance"])
    return specs


def test_the_real_loadgen_shows_the_planned_settings_for_every_round_benchmark_and_scenario(
    tmp_path: Path,
) -> None:
    specs = _every_case()
    assert len(specs) == 2 * (10 * 3 + 10 * 3 + 5 * 4)
    cases = []
    for number, spec in enumerate(specs):
        conf = tmp_path / f"{number}.conf"
        conf.write_text(spec.user_conf)
        case = {"model": spec.conf_model, "scenario": spec.scenario, "conf": str(conf)}
        cases.append(case | {"attributes": spec.attributes, "names": sorted(spec.settings)})
    listed = tmp_path / "cases.json"
    listed.write_text(json.dumps(cases))
    command = [sys.executable, "-c", READ_BACK, str(listed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for spec, answer in zip(specs, json.loads(done.stdout), strict=True):
        assert answer == {"code": 0, "seen": dict(sorted(spec.settings.items()))}, (
            spec.round,
            spec.benchmark,
        )


def test_accuracy_and_performance_tests_have_the_same_settings() -> None:
    performance, accuracy = planned(scenarios=["Offline"])
    assert (performance.name, accuracy.name) == ("Offline-performance", "Offline-accuracy")
    assert performance.settings == accuracy.settings
    assert performance.user_conf == accuracy.user_conf
    assert performance.accuracy is None
    assert accuracy.accuracy is not None
    assert (accuracy.accuracy.target, accuracy.accuracy.sample_count) == (75.6954, 50000)


def test_tests_come_in_the_users_order() -> None:
    specs = planned(scenarios=["Offline", "SingleStream"], runs=["accuracy", "performance"])
    names = ["Offline-accuracy", "Offline-performance", "SingleStream-accuracy", "SingleStream-performance"]
    assert [spec.name for spec in specs] == names


def test_the_rounds_own_words_are_written_only_where_loadgen_lacks_them() -> None:
    assert "min_duration" not in planned(scenarios=["SingleStream"])[0].user_conf
    old = planned(round="v1.0", suite="datacenter", benchmark="3d-unet-99", scenarios=["Offline"])[
        0
    ].user_conf
    assert "3d-unet.Offline.min_duration = 600000\n" in old
    assert "3d-unet.Offline.sample_concatenate_permutation = 0\n" in old


def _scenarios_of(name: str, suite: str, benchmark: str) -> list[str]:
    place = load_round(name).place(suite, benchmark)
    assert place is not None
    return [scenario for scenario in SCENARIOS if place.checker.allows(scenario)]


@pytest.mark.parametrize("name", ROUNDS)
@pytest.mark.parametrize("suite", ["datacenter", "edge", "datacenter,edge"])
def test_a_manifest_without_overrides_breaks_nothing_but_the_loadgen_of_old_rounds(
    name: str, suite: str
) -> None:
    found = load_round(name)
    for benchmark in found.suites[suite]:
        scenarios = _scenarios_of(name, suite, benchmark)
        # Without a path the old MultiStream cannot be planned; it is optional.
        if found.fixed_interval_multistream:
            scenarios = [s for s in scenarios if s != "MultiStream"]
        for spec in planned(round=name, suite=suite, benchmark=benchmark, scenarios=scenarios):
            wanted = ["loadgen"] if found.fixed_interval_multistream else []
            if spec.test == "accuracy" and found.benchmark(benchmark).reference.task == "brats":
                wanted = [*wanted, "ground_truth"]  # the made manifest names no true labels
            assert rules_of(spec) == wanted, (benchmark, spec.name, spec.broken_rules)
            assert rules_of(spec, scope="manifest") == []


@pytest.mark.parametrize(
    ("loadgen", "rule"),
    [
        ({"min_duration": 599999}, "min_duration"),
        ({"max_duration": 1000}, "max_duration"),
        ({"Server": {"target_qps": 100, "min_query_count": 270335}}, "min_query_count"),
        ({"Server": {"max_query_count": 1000}}, "max_query_count"),
        ({"Server": {"target_latency": 16}}, "server_target_latency"),
        ({"Server": {"target_latency_percentile": 98}}, "target_latency_percentile"),
        ({"performance_sample_count_override": 1023}, "performance_sample_count"),
        ({"sample_concatenate_permutation": 1}, "equal_issue_mode"),
        ({"performance_issue_same": 1}, "audit_setting"),
        ({"accuracy_log_sampling_target": 10}, "audit_setting"),
        ({"schedule_rng_seed": 1}, "seeds"),
    ],
)
def test_a_word_that_breaks_a_rule_is_found(loadgen: dict[str, Any], rule: str) -> None:
    common = {"round": "v1.0", "suite": "datacenter", "scenarios": ["Server", "Offline"]}
    spec = planned(**common, loadgen=loadgen)[0]
    assert rules_of(spec) == ["loadgen", rule]
    found = next(finding for finding in spec.broken_rules if finding.rule == rule)
    assert found.source.startswith("v1.0 ")
    assert found.why


@pytest.mark.parametrize(
    "loadgen",
    [
        {"min_duration": 700000},
        {"Server": {"target_qps": 5000, "target_latency": 10, "min_query_count": 300000}},
        {"Server": {"coalesce_queries": 0}},
        {"schedule_rng_seed": 3507442325620259414},
        {"print_timestamps": 1},
    ],
)
def test_a_word_that_breaks_no_rule_is_no_finding(loadgen: dict[str, Any]) -> None:
    common = {"round": "v1.0", "suite": "datacenter", "scenarios": ["Server", "Offline"]}
    assert rules_of(planned(**common, loadgen=loadgen)[0]) == ["loadgen"]


def test_offline_needs_the_rounds_samples_in_its_query() -> None:
    few = {"Offline": {"min_query_count": 1000, "target_qps": 10}}
    assert rules_of(planned(scenarios=["Offline"], loadgen=few)[0]) == ["offline_samples"]
    # 1.1 x 600 s x 40 samples a second are enough, whatever min_query_count says.
    enough = {"Offline": {"min_query_count": 1000, "target_qps": 40}}
    assert rules_of(planned(scenarios=["Offline"], loadgen=enough)[0]) == []


def test_multistream_needs_the_rounds_samples_per_query() -> None:
    spec = planned(scenarios=["MultiStream"], loadgen={"MultiStream": {"samples_per_query": 4}})[0]
    assert rules_of(spec) == ["samples_per_query"]


def test_an_accuracy_test_needs_the_whole_data_set() -> None:
    performance, accuracy = planned(scenarios=["Offline"], loadgen={"accuracy_sample_count_override": 20})
    assert (rules_of(performance), rules_of(accuracy)) == ([], ["accuracy_sample_count"])


def test_scenarios_are_judged_by_the_rules_and_by_the_checker() -> None:
    server = planned(scenarios=["Server"])[0]
    assert [f.source.rsplit(".", 1)[1] for f in server.broken_rules if f.rule == "scenario"] == [
        "rules",
        "checker",
    ]
    offline = planned(round="v1.0", suite="datacenter", scenarios=["Offline"])[0]
    missing = [f.why for f in offline.broken_rules if f.rule == "required_scenario"]
    assert missing == ["by the rules, a submission also needs Server"]
    # The rules let the open division choose, and the checkers ask for nothing there.
    new_open = planned(division="open", scenarios=["Server"])[0]
    assert rules_of(new_open) + rules_of(new_open, scope="manifest") == []
    old_open = planned(round="v1.0", division="open", scenarios=["Server"])[0]
    assert rules_of(old_open) + rules_of(old_open, scope="manifest") == ["loadgen"]


def test_a_benchmark_outside_the_suite_and_a_missing_run_are_found() -> None:
    assert rules_of(planned(suite="datacenter", scenarios=["Offline"])[0]) == ["suite"]
    assert rules_of(planned(runs=["performance"])[0]) == ["required_run"]


def test_no_model_and_seeded_weights_are_never_official() -> None:
    assert rules_of(planned(backend={"engine": "echo"})[0]) == ["model"]
    assert rules_of(planned(backend={"engine": "torch", "model": "resnet50"})[0]) == ["weights"]


def test_the_old_multistream_is_ours_and_unofficial_without_the_rounds_own_loadgen() -> None:
    spec = planned(round="v1.0", scenarios=["MultiStream"])[0]
    assert rules_of(spec) == ["loadgen"]
    assert "own fixed-interval generator" in spec.broken_rules[0].why
    official = planned(round="v1.0", scenarios=["MultiStream"], loadgen={"path": "own"})[0]
    assert (official.settings, official.user_conf) == (spec.settings, spec.user_conf)
    for word, told in (("sample_concatenate_permutation", "has no"), ("performance_issue_unique", "exclude")):
        with pytest.raises(PlanError, match=told):
            planned(
                round="v1.0",
                scenarios=["MultiStream"],
                loadgen={word: 1, "performance_issue_same": 1, "performance_sample_count_override": 1024},
            )


def test_the_old_multistream_is_official_with_the_rounds_own_loadgen() -> None:
    spec = planned(round="v1.0", benchmark="ssd-large", scenarios=["MultiStream"], loadgen={"path": "own"})[0]
    assert spec.settings["multi_stream_target_qps"] == 15.0
    assert spec.settings["multi_stream_max_async_queries"] == 1
    assert "multi_stream_expected_latency_ns" not in spec.settings
    assert "ssd-resnet34.MultiStream.target_qps = 15\n" in spec.user_conf
    assert rules_of(spec) == []


def test_an_old_loadgen_shows_the_settings_that_it_has() -> None:
    spec = planned(round="v1.0", scenarios=["Offline"], loadgen={"path": "own"})[0]
    old = {"min_duration_ms", "min_query_count", "offline_expected_qps", "performance_sample_count_override"}
    old |= set(spec.seeds)
    assert set(readable_settings(spec.settings, old)) == old
    with pytest.raises(ValueError, match="sample_concatenate_permutation"):
        readable_settings({**spec.settings, "sample_concatenate_permutation": True}, old)


KNOWN_FILE = next(iter(load_round("v6.1").loadgen.sha256))


@pytest.mark.parametrize(
    ("name", "version", "file_hash", "rules"),
    [
        ("v6.1", "6.0.17", None, []),
        ("v6.1", "6.0.17 @ d6147c7eb7", KNOWN_FILE, []),
        ("v6.1", "6.0.17", "0" * 64, ["loadgen_file"]),
        ("v6.1", "6.0.15", KNOWN_FILE, ["loadgen"]),
        ("v1.0", ".5a1 @ 8b58587c93", "0" * 64, []),
        ("v1.0", "1.0.1", None, []),
        ("v1.0", ".5a1 @ NA", None, []),
        ("v1.0", ".5a1 @ 0123456789", None, ["loadgen"]),
        ("v1.0", "6.0.17", KNOWN_FILE, ["loadgen"]),
        ("v1.1", "1.1 @ c5b8918938", None, []),
    ],
)
def test_only_the_rounds_own_loadgen_is_approved(
    name: str, version: str, file_hash: str | None, rules: list[str]
) -> None:
    findings = plan_findings_for_loadgen(version, file_hash, load_round(name))
    assert [finding.rule for finding in findings] == rules


def test_index_to_other_hosts_needs_an_approval_in_the_closed_division() -> None:
    found = load_round("v6.1")
    finding = index_to_remote_finding(made_manifest(), found, ["node-b"])
    assert finding is not None
    assert "node-b" in finding.why
    assert index_to_remote_finding(made_manifest(), found, []) is None
    assert index_to_remote_finding(made_manifest(division="open"), found, ["node-b"]) is None
    assert index_to_remote_finding(made_manifest(dispatch={"payload": "value"}), found, ["node-b"]) is None
    assert (
        index_to_remote_finding(made_manifest(dispatch={"index_approval": "by WG"}), found, ["node-b"])
        is None
    )


def test_a_data_set_of_the_wrong_size_is_found_when_it_is_open() -> None:
    found = load_round("v6.1")
    wrong = library_findings(found, "resnet50", "accuracy", 20)
    assert [f.why for f in wrong] == ["the data set has 20 samples instead of 50000"]
    assert [f.rule for f in library_findings(found, "resnet", "performance", 20)] == [
        "performance_sample_count"
    ]
    assert library_findings(found, "resnet", "accuracy", 50000) == []
    assert library_findings(found, "3d-unet-99", "performance", 43) == []


def test_loadgens_memory_grows_with_the_queries_that_it_keeps() -> None:
    common = {"suite": "datacenter,edge", "scenarios": ["Server"], "runs": ["performance"]}
    fast = planned(**common, loadgen={"Server": {"target_qps": 650000}})[0]
    assert memory_needed_bytes(fast) == pytest.approx(148e9, rel=0.01)  # 650,000/s for 600 s took 147 GB
    old = planned(round="v1.0", **common, loadgen={"Server": {"target_qps": 1}})[0]
    assert memory_needed_bytes(old) == 270336 * 380
    assert all(0 < memory_needed_bytes(spec) < 1e9 for spec in planned())


def test_what_is_seldom_meant_is_noted() -> None:
    server = {"suite": "datacenter,edge", "scenarios": ["Server"], "runs": ["performance"]}
    assert planned(**server)[0].notes == [
        "loadgen.Server.target_qps is not set: LoadGen reckons with 1 query a second"
    ]
    slow = planned(round="v1.0", **server, loadgen={"Server": {"target_qps": 10}})[0]
    assert slow.notes == ["at this target_qps the test takes 7.5 hours (min_query_count)"]
    short = planned(**server, loadgen={"min_duration": 2000, "Server": {"target_qps": 100}})[0]
    assert short.notes == ["about 201 queries: early stopping calls fewer than 459 INVALID"]
    stream = planned(scenarios=["SingleStream"], loadgen={"max_duration": 1})[0]
    assert [note.split(":")[0] for note in stream.notes] == [
        "loadgen.SingleStream.target_latency is not set",
        "max_duration_ms is below min_duration_ms",
    ]


def test_the_digest_changes_with_the_test_and_with_nothing_else() -> None:
    first = planned(scenarios=["Offline"])[0]
    assert (
        planned(scenarios=["SingleStream", "Offline"], name="other", runs=["performance"])[1].digest
        == first.digest
    )
    assert planned(scenarios=["Offline"], loadgen={"Server": {"target_qps": 3}})[0].digest == first.digest
    others = [
        planned(scenarios=["Offline"], loadgen={"min_duration": 600001})[0],
        planned(scenarios=["Offline"], workers={"count": 2})[0],
        planned(scenarios=["Offline"], task={"name": "t", "count": 3})[0],
        planned(scenarios=["Offline"], backend={"engine": "echo"})[0],
        planned(scenarios=["Offline"], dispatch={"security": "none"})[0],
        planned(scenarios=["Offline"], loadgen={"qsl_rng_seed": 3})[0],
        planned(scenarios=["Offline"])[1],
    ]
    assert len({spec.digest for spec in [first, *others]}) == len(others) + 1


def test_a_spec_goes_through_json_unchanged() -> None:
    for spec in planned():
        assert TestSpec.model_validate_json(spec.model_dump_json()) == spec
