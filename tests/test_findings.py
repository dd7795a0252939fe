"""Rules about what is measured: the benchmark's own data set, network and percentile."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.findings_data import identity_findings
from orchestrator.rules import load_round
from tests.test_plan import planned, rules_of

TIME_BUDGET_S = 5


def test_every_division_wants_the_benchmarks_own_data_set_and_all_but_open_its_network() -> None:
    other = {
        "task": {"name": "tensor"},
        "backend": {"engine": "torch", "model": "perceptron", "weights": "w.pt"},
    }
    assert rules_of(planned(**other)[0]) == ["data_set", "reference_model"]
    assert rules_of(planned(**other, division="open")[0]) == ["data_set"]


def test_a_stream_is_not_measured_at_another_percentile_in_any_division() -> None:
    words = {"SingleStream": {"target_latency_percentile": 50}}
    assert rules_of(planned(division="open", loadgen=words)[0]) == ["target_latency_percentile"]


def test_divisions_have_their_rules() -> None:
    network = {"division": "network", "suite": "datacenter,edge", "scenarios": ["Server"]}
    assert rules_of(planned(**network)[0]) == ["payload"]
    edge = {**network, "suite": "edge", "scenarios": ["SingleStream", "MultiStream", "Offline"]}
    assert rules_of(planned(**edge, dispatch={"payload": "value"})[0]) == ["network", "network"]
    assert rules_of(planned(**network, dispatch={"payload": "value"})[0]) == []
    local = {"dispatch": {"payload": "value"}, "workers": {"where": "local"}}
    assert rules_of(planned(**network, **local)[0]) == ["network"]
    assert "division" in rules_of(planned(round="v1.0", division="network", scenarios=["Offline"])[0])
    assert rules_of(planned(accuracy_target=70.0)[0]) == ["accuracy_target"]
    goal = planned(division="open", accuracy_target=70.0)[1]
    assert rules_of(goal) == []
    assert goal.accuracy is not None
    assert goal.accuracy.target == 70.0


def test_the_open_division_may_choose_its_percentile_but_the_checker_wants_the_limit() -> None:
    common = {"division": "open", "suite": "datacenter,edge", "scenarios": ["Server"]}
    percentile = planned(**common, loadgen={"Server": {"target_latency_percentile": 95}})[0]
    assert rules_of(percentile) == []
    limit = planned(**common, loadgen={"Server": {"target_latency": 30}})[0]
    assert rules_of(limit) == ["server_target_latency"]
    assert "the checker does not" in next(
        f.why for f in limit.broken_rules if f.rule == "server_target_latency"
    )
    assert limit.limit_ns == 30_000_000


def test_a_network_test_is_not_coalesced() -> None:
    common = {"division": "network", "suite": "datacenter,edge", "scenarios": ["Server"]}
    quiet = planned(**common, dispatch={"payload": "value"})[0]
    assert quiet.settings["server_coalesce_queries"] is False
    loud = {"loadgen": {"Server": {"coalesce_queries": 1}}, "dispatch": {"payload": "value"}}
    assert rules_of(planned(**common, **loud)[0]) == ["network_coalescing"]


def whys(**fields: Any) -> list[str]:
    return [finding.why for finding in planned(**fields)[0].broken_rules]


def test_a_data_set_of_generated_samples_is_told_in_plain_words_and_cannot_be_scored() -> None:
    fields = {"task": {"name": "imagenet", "generated": 2048}, "division": "open"}
    performance, accuracy = planned(**fields)[:2]
    assert rules_of(performance) == ["data_set"]
    assert "2048 generated samples, not the data set" in whys(**fields)[0]
    assert rules_of(accuracy) == ["data_set", "ground_truth"]
    assert "cannot be scored" in accuracy.broken_rules[-1].why


def test_calibration_samples_are_not_the_data_set() -> None:
    fields = {"task": {"name": "imagenet", "path": "d", "calibration": "cal_image_list.txt"}}
    assert rules_of(planned(**fields)[0]) == ["data_set"]
    assert "calibrating" in whys(**fields)[0]


def test_seeded_weights_are_told_in_plain_words() -> None:
    fields = {"backend": {"engine": "torch", "model": "resnet50"}}
    assert rules_of(planned(**fields)[0]) == ["weights"]
    assert "seeded random weights, so its answers mean nothing" in whys(**fields)[0]


def test_a_file_says_which_network_it_is_but_for_the_open_division() -> None:
    backend = {"engine": "onnx", "weights": "w"}
    task = {"name": "imagenet", "path": "d", "preprocess": "vgg"}
    assert rules_of(planned(backend=backend, task=task)[0]) == ["reference_model"]
    assert "does not say which network w is; it must be resnet50" in whys(backend=backend, task=task)[0]
    assert rules_of(planned(backend=backend, task=task, division="open")[0]) == []
    assert rules_of(planned(backend={**backend, "model": "resnet50"}, task=task)[0]) == []
    assert rules_of(planned(backend={**backend, "model": "bert-large"}, task=task)[0]) == ["reference_model"]


def test_whisper_is_no_network_of_a_benchmark_whatever_it_is_called() -> None:
    fields: dict[str, Any] = {
        "benchmark": "rnnt",
        "round": "v1.0",
        "suite": "datacenter",
        "scenarios": ["Offline"],
    }
    fields |= {"task": {"name": "librispeech", "path": "d"}, "loadgen": {"path": "l"}}
    backend = {"engine": "ctranslate2", "weights": "w", "model": "rnnt"}
    assert rules_of(planned(**fields, backend=backend)[0]) == ["reference_model"]
    assert "computes Whisper" in whys(**fields, backend=backend)[0]


@pytest.mark.parametrize("option", ["width", "layers", "features", "candidates"])
def test_an_option_that_makes_another_network_is_for_the_open_division(option: str) -> None:
    backend = {"engine": "torch", "model": "resnet50", "weights": "w", "options": {option: 8}}
    assert rules_of(planned(backend=backend)[0]) == ["reference_model"]
    assert f"backend.options.{option} is set" in whys(backend=backend)[0]
    assert rules_of(planned(backend=backend, division="open")[0]) == []


@pytest.mark.parametrize("option", ["image_size", "window", "shape", "manifest", "max_ind_range"])
def test_an_option_that_makes_other_samples_is_for_no_division(option: str) -> None:
    fields = {"task": {"name": "imagenet", "path": "d", option: 8}, "division": "open"}
    assert rules_of(planned(**fields)[0]) == ["data_set"]
    assert f"task.{option} is set" in whys(**fields)[0]


def test_photos_prepared_for_other_weights_are_found() -> None:
    vgg = {"name": "imagenet", "path": "d", "preprocess": "vgg"}
    assert rules_of(planned(task=vgg)[0]) == ["preprocessing"]
    converted = {"engine": "torch", "model": "resnet50", "weights": "w", "options": {"normalize": "vgg"}}
    assert rules_of(planned(task=vgg, backend=converted)[0]) == []
    assert rules_of(planned(backend=converted)[0]) == ["preprocessing"]


def test_a_score_without_true_answers_is_foretold() -> None:
    fields: dict[str, Any] = {
        "benchmark": "3d-unet-99",
        "round": "v1.0",
        "suite": "datacenter",
        "scenarios": ["Offline"],
    }
    fields |= {"task": {"name": "brats", "path": "d"}, "loadgen": {"path": "l"}}
    backend = {"engine": "torch", "model": "3d-unet-brats", "weights": "w"}
    performance, accuracy = planned(**fields, backend=backend)
    assert (rules_of(performance), rules_of(accuracy)) == ([], ["ground_truth"])
    fields["task"] = {"name": "brats", "path": "d", "truth": "t"}
    assert rules_of(planned(**fields, backend=backend)[1]) == []


def test_another_data_set_of_the_right_size_is_found_where_the_round_knows_its_own() -> None:
    found = load_round("v6.1")
    own = found.benchmark("3d-unet-99").reference.identity
    assert identity_findings(found, "3d-unet-99", {"identity": own}, 1) == []
    assert [f.rule for f in identity_findings(found, "3d-unet-99", {"identity": "0" * 64}, 1)] == ["data_set"]
    assert [f.rule for f in identity_findings(found, "3d-unet-99", {}, 1)] == ["data_set"]
    assert identity_findings(found, "resnet", {}, 1) == []
    old = load_round("v1.0")
    assert identity_findings(old, "dlrm-99", {}, 89_137_319 * 39 * 4) == []
    (wrong,) = identity_findings(old, "dlrm-99", {}, 89_137_318 * 39 * 4)
    assert "day 23 first half" in wrong.why
