"""Compliance tests as they are planned: which, with which settings, and what a manifest may not ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.audit import audit_config, validate, with_compliance
from orchestrator.manifest import ManifestError, parse_manifest
from orchestrator.plan import TestSpec, plan
from orchestrator.rules import load_round, round_names
from tests.test_plan import READ_BACK, made_manifest, planned, rules_of

TIME_BUDGET_S = 15

ALL = ("TEST01", "TEST04-A", "TEST04-B", "TEST05")
TWO = ("TEST01", "TEST05")
OLD = {
    "resnet": ALL, "ssd-large": ALL, "ssd-small": ALL, "3d-unet-99": ALL, "3d-unet-99.9": ALL,
    "rnnt": TWO, "bert-99": TWO, "bert-99.9": TWO, "dlrm-99": TWO, "dlrm-99.9": TWO,
}  # fmt: skip
NEW = {
    "resnet": ("TEST01", "TEST04"),
    **dict.fromkeys(("bert-99", "bert-99.9", "3d-unet-99", "3d-unet-99.9"), ("TEST01",)),
}
TARGETS = {"ssd-large": 256, "ssd-small": 1024, "3d-unet-99": 64, "3d-unet-99.9": 64}
SEED = 720381539243781796


def specs_of(name: str, benchmark: str, **fields: Any) -> list[TestSpec]:
    """Every scenario of the round with every test that the closed division asks for."""
    found = load_round(name)
    runs = with_compliance(found, benchmark, ("performance", "accuracy"))
    common = {"round": name, "benchmark": benchmark, "runs": list(runs), "scenarios": list(found.scenarios)}
    return planned(**{**common, **fields})


@pytest.mark.parametrize("name", round_names())
def test_every_benchmark_gets_exactly_the_tests_that_its_round_asks_for(name: str) -> None:
    found = load_round(name)
    wanted = NEW if name == "v6.1" else OLD
    assert set(found.benchmarks) == set(wanted)
    for benchmark, tests in wanted.items():
        specs = specs_of(name, benchmark)
        for scenario in found.scenarios:
            mine = [spec.test for spec in specs if spec.scenario == scenario]
            # The v1.x checkers ask for no TEST04 in MultiStream.
            exempt = scenario == "MultiStream" and name != "v6.1"
            asked = [test for test in tests if not (exempt and test.startswith("TEST04"))]
            assert mine == ["performance", "accuracy", *asked], (benchmark, scenario)


def test_the_real_loadgen_shows_the_audits_settings(tmp_path: Path) -> None:
    specs = [
        spec
        for name in round_names()
        for spec in specs_of(name, "resnet", scenarios=["SingleStream", "Server", "Offline"])
        if spec.is_audit
    ]
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
        assert answer == {"code": 0, "seen": dict(sorted(spec.settings.items()))}, spec.name


@pytest.mark.parametrize("name", ["v1.0", "v1.1"])
def test_an_audit_differs_from_the_performance_test_by_its_own_values_only(name: str) -> None:
    seeds = {
        "qsl_rng_seed": 313588358309856706,
        "sample_index_rng_seed": 471397156132239067,
        "schedule_rng_seed": 413914573387865862,
    }
    for benchmark, tests in OLD.items():
        specs = {spec.test: spec for spec in specs_of(name, benchmark, scenarios=["Offline"])}
        plain = specs["performance"].settings
        target = TARGETS.get(benchmark, 4096)
        changed = {
            "TEST01": {"accuracy_log_rng_seed": SEED, "accuracy_log_sampling_target": target},
            "TEST04-A": {"performance_issue_unique": True},
            "TEST04-B": {"performance_issue_same": True, "performance_issue_same_index": 3},
            "TEST05": seeds,
        }
        for test in tests:
            spec = specs[test]
            assert {k: v for k, v in spec.settings.items() if v != plain[k]} == changed[test], (
                benchmark,
                test,
            )
            assert (spec.mode, spec.is_audit) == ("performance", True)
            assert spec.digest != specs["performance"].digest
        assert specs["TEST05"].attributes == specs["TEST05"].seeds == seeds
        assert specs["TEST01"].seeds == specs["performance"].seeds


def test_v6_1s_sampling_targets_are_those_of_its_audit_configs() -> None:
    found = load_round("v6.1")
    targets = {name: one.test01_sampling_target for name, one in found.benchmarks.items()}
    big = {"resnet": 4096, "bert-99": 4096, "bert-99.9": 4096}
    assert targets == {**big, "3d-unet-99": 64, "3d-unet-99.9": 64}


def test_the_audit_config_is_the_official_one() -> None:
    old, new = load_round("v1.0"), load_round("v6.1")
    resnet = old.benchmark("resnet")
    assert audit_config(old, resnet, "TEST01") == (
        f"*.*.mode = 2\n*.*.accuracy_log_rng_seed = {SEED}\n*.*.accuracy_log_sampling_target = 4096\n"
    )
    assert audit_config(old, resnet, "TEST04-A") == (
        "*.*.mode = 2\n*.*.performance_issue_unique = 1\n*.*.performance_issue_same = 0\n"
    )
    assert "*.*.schedule_rng_seed = 413914573387865862\n" in audit_config(old, resnet, "TEST05")
    same = "*.*.performance_issue_same = 1\n*.*.performance_issue_same_index = 3\n"
    assert audit_config(new, new.benchmark("resnet"), "TEST04").endswith(same)
    assert audit_config(old, resnet, "performance") == ""


def test_a_compliance_test_breaks_no_rule_by_being_one() -> None:
    for name in round_names():
        for spec in specs_of(name, "resnet", suite="datacenter,edge", scenarios=["Server", "Offline"]):
            assert rules_of(spec) == ([] if name == "v6.1" else ["loadgen"]), (name, spec.name)


def test_the_users_own_audit_words_and_seeds_are_still_found() -> None:
    words = {"accuracy_log_sampling_target": 10, "qsl_rng_seed": 5}
    specs = specs_of("v1.0", "resnet", suite="datacenter", scenarios=["Offline"], loadgen=words)
    found = {spec.test: rules_of(spec) for spec in specs}
    assert found["TEST01"] == ["loadgen", "seeds", "audit_setting"]
    # TEST05 has seeds of its own, whatever the user's.
    assert found["TEST05"] == ["loadgen", "audit_setting"]
    sampled = {spec.test: spec.settings["accuracy_log_sampling_target"] for spec in specs}
    assert (sampled["TEST01"], sampled["TEST05"]) == (4096, 10)


def test_results_come_first_and_audits_in_the_rounds_order() -> None:
    runs = ["TEST05", "TEST04-B", "accuracy", "TEST01", "performance", "TEST04-A"]
    specs = planned(round="v1.0", suite="datacenter", scenarios=["Offline"], runs=runs)
    assert [spec.test for spec in specs] == ["accuracy", "performance", *ALL]


def test_what_multistream_is_spared_is_noted() -> None:
    notes = [spec.notes for spec in specs_of("v1.0", "resnet", scenarios=["MultiStream"])]
    assert any("TEST04-A, TEST04-B: not for MultiStream in v1.0" in note for note in notes[0])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"round": "v1.0", "runs": ["performance", "TEST04"]}, "TEST04 is no compliance test of resnet"),
        ({"runs": ["performance", "accuracy", "TEST05"]}, "round v6.1, which has TEST01, TEST04"),
        ({"benchmark": "bert-99", "runs": ["performance", "TEST04"]}, "no compliance test of bert-99"),
        ({"runs": ["performance", "TEST01"]}, "TEST01 is compared with accuracy"),
        ({"runs": ["TEST04"]}, "TEST04 is compared with performance"),
        ({"round": "v1.0", "runs": ["performance", "TEST04-A"]}, "TEST04-A is compared with TEST04-B"),
        ({"round": "v1.0", "runs": ["performance", "TEST04-B"]}, "TEST04-B is compared with TEST04-A"),
        ({"runs": ["performance", "TEST07"]}, '"TEST07" is not one of performance, accuracy, TEST01'),
    ],
)
def test_a_test_that_cannot_be_verified_is_refused_with_its_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ManifestError, match=r"m\.yaml:\d+: runs\[\d\]") as caught:
        made_manifest(**fields)
    assert told in str(caught.value)


def test_adding_compliance_keeps_what_the_user_runs_already() -> None:
    found = load_round("v1.0")
    assert with_compliance(found, "bert-99", ("accuracy", "TEST05")) == (
        "accuracy", "TEST05", "performance", "TEST01",
    )  # fmt: skip
    manifest = made_manifest(round="v1.0", suite="datacenter", benchmark="rnnt", scenarios=["Offline"])
    more = manifest.model_copy(update={"runs": with_compliance(found, "rnnt", manifest.runs)})
    assert [spec.test for spec in plan(more, found)] == ["performance", "accuracy", *TWO]
    assert (more.raw, more.lines, more.path) == (manifest.raw, manifest.lines, manifest.path)


def test_what_the_log_does_not_show_of_an_audit_is_told() -> None:
    spec = next(s for s in specs_of("v6.1", "resnet", scenarios=["Offline"]) if s.test == "TEST04")
    shown = {f"effective_{name}": spec.settings[name] for name in spec.settings}
    assert validate(spec.settings, spec.audit, shown) == []
    wrong = {**shown, "effective_performance_issue_same": False}
    del wrong["effective_performance_issue_same_index"]
    assert validate(spec.settings, spec.audit, wrong) == [
        "LoadGen's log shows effective_performance_issue_same False instead of True",
        "LoadGen's log does not show effective_performance_issue_same_index",
    ]


def test_a_manifest_as_users_write_it_may_name_the_tests() -> None:
    text = """
name: m
round: v1.0
suite: datacenter
division: closed
benchmark: resnet50
scenarios: [Offline]
runs: [performance, accuracy, TEST01]
task: {name: "null"}
backend: {engine: echo}
"""
    assert parse_manifest(text.encode(), "m.yaml").runs == ("performance", "accuracy", "TEST01")
