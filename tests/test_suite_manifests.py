"""The manifests of the suites: whole campaigns that only need paths and worker counts, green by the rules."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.audit import with_compliance
from orchestrator.manifest import Manifest, ManifestError, load_manifest, manifest_files, parse_manifest
from orchestrator.manifest_backends import OnnxBackend, TorchBackend
from orchestrator.plan import plan
from orchestrator.planview import show_plan
from orchestrator.preflight import check_names, not_here
from orchestrator.rules import load_round
from orchestrator.suiteview import Part, show_campaign

TIME_BUDGET_S = 15

MANIFESTS = Path(__file__).resolve().parent.parent / "manifests"
SUITES = {
    "datacenter-v1.0": ("v1.0", "datacenter"),
    "datacenter-v1.1": ("v1.1", "datacenter"),
    "datacenter-v6.1": ("v6.1", "datacenter"),
    "edge-v1.0": ("v1.0", "edge"),
    "edge-v1.1": ("v1.1", "edge"),
    "edge-v6.1": ("v6.1", "edge"),
    "datacenter-edge-v6.1": ("v6.1", "datacenter,edge"),
}
FILES = [file for name in SUITES for file in manifest_files([MANIFESTS / name])]
every_suite = pytest.mark.parametrize("name", SUITES)
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")


@cache
def manifests(name: str) -> list[Manifest]:
    return [load_manifest(file) for file in manifest_files([MANIFESTS / name])]


def parts_of(loaded: list[Manifest]) -> list[Part]:
    return [Part(manifest, plan(manifest, load_round(manifest.round))) for manifest in loaded]


def shown(loaded: list[Manifest]) -> tuple[bool, str]:
    """Whether the campaign is green, and what is printed of it, in one line."""
    file = io.StringIO()
    green = show_campaign("all", parts_of(loaded), Console(file=file, width=200, highlight=False))
    return green, " ".join(file.getvalue().split())


def one_plan(manifest: Manifest) -> str:
    """What is printed of one manifest, in one line."""
    file, [part] = io.StringIO(), parts_of([manifest])
    show_plan(manifest, part.specs, Console(file=file, width=200, highlight=False))
    return " ".join(file.getvalue().split())


def with_all_runs(manifest: Manifest) -> Manifest:
    """As `loadgrid plan --compliance` takes it."""
    runs = with_compliance(load_round(manifest.round), manifest.benchmark, manifest.runs)
    return manifest.model_copy(update={"runs": runs})


@every_suite
def test_every_benchmark_and_required_scenario_of_the_suite_has_its_manifest(name: str) -> None:
    number, suite = SUITES[name]
    found = load_round(number)
    for benchmark, place in found.suites[suite].items():
        ours = [m for m in manifests(name) if m.benchmark == benchmark]
        measured = {scenario for manifest in ours for scenario in manifest.scenarios}
        assert {*place.rules.required, *place.checker.required} <= measured, benchmark
    assert {m.benchmark for m in manifests(name)} == set(found.suites[suite])


def test_the_optional_multistream_of_v1_0_has_its_manifests() -> None:
    have = {m.benchmark for m in manifests("edge-v1.0") if m.scenarios == ("MultiStream",)}
    places = load_round("v1.0").suites["edge"]
    assert have == {name for name, place in places.items() if "MultiStream" in place.rules.optional}


@every_suite
def test_a_suites_campaign_is_green(name: str) -> None:
    green, text = shown([with_all_runs(manifest) for manifest in manifests(name)])
    assert green and "--compliance" not in text
    assert "All green" in text and "every benchmark of the round that LoadGrid knows is here" in text
    assert "also need task.sha256" in text and "also need backend.weights_sha256" in text


def test_a_plan_names_the_compliance_tests_that_a_closed_submission_needs_besides() -> None:
    [resnet] = [m for m in manifests("datacenter-v1.0") if m.benchmark == "resnet"]
    need = "TEST01, TEST04-A, TEST04-B, TEST05 of Server, Offline (plan and run them with --compliance)"
    green, text = shown([resnet])
    assert green, "it is no broken rule"
    assert "Green so far: no rule broken" in text and f"Missing for a submission · {need}" in text
    assert need in one_plan(resnet) and "No rule broken." in one_plan(resnet)
    opened = resnet.model_copy(update={"division": "open"})
    for other in (opened, with_all_runs(resnet)):
        assert "--compliance" not in shown([other])[1] + one_plan(other)


def test_a_scenario_without_some_compliance_tests_is_told_apart() -> None:
    streams = next(
        m for m in manifests("edge-v1.0") if m.scenarios == ("MultiStream",) and m.benchmark == "resnet"
    )
    both = streams.model_copy(update={"scenarios": ("MultiStream", "Offline")})
    assert "TEST01, TEST05 of MultiStream; TEST01, TEST04-A, TEST04-B, TEST05 of Offline" in shown([both])[1]


def test_a_plan_says_what_is_not_here_yet_and_that_green_is_about_the_rules(tmp_path: Path) -> None:
    file = MANIFESTS / "edge-v1.1" / "resnet.yaml"
    (tmp_path / "edge").mkdir()
    parts = parts_of([parse_manifest(file.read_bytes(), tmp_path / "edge" / "resnet.yaml")])
    told = (
        "Not here yet: ../data/imagenet, ../weights/resnet50-19c8e357.pth, ../loadgen/r1.1. "
        "Green is about the rules, not about what lies here."
    )
    assert not_here([parts[0].manifest] * 2) == told
    out = io.StringIO()
    assert show_campaign("all", parts, Console(file=out, width=300))
    show_plan(parts[0].manifest, parts[0].specs, Console(file=out, width=300))
    assert out.getvalue().count(told) == 2
    for name in ("data/imagenet", "weights", "loadgen/r1.1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "weights/resnet50-19c8e357.pth").touch()
    assert not_here([parts[0].manifest]) is None


@every_file
def test_a_suites_manifest_breaks_no_rule_and_leaves_nothing_to_guess(file: Path) -> None:
    manifest = load_manifest(file)
    number, suite = SUITES[file.parent.name]
    assert (manifest.round, manifest.suite, manifest.division) == (number, suite, "closed")
    for spec in plan(manifest, load_round(number)):
        assert [f for f in spec.broken_rules if f.scope == "test"] == []
        assert spec.notes == [], "every scenario says how fast it is meant to be"
    assert manifest.name == f"{suite.replace(',', '-')}-{number}-{file.stem}"
    assert (manifest.loadgen.path is None) == (number == "v6.1")
    assert manifest.workers.num_gpus == 1


@every_file
def test_a_suites_manifest_names_a_task_with_its_options_and_a_network(file: Path) -> None:
    manifest = load_manifest(file)
    check_names(manifest)
    reference = load_round(manifest.round).benchmark(manifest.benchmark).reference
    assert isinstance(manifest.backend, TorchBackend | OnnxBackend)
    assert (manifest.task.name, manifest.backend.model) == (reference.task, reference.model)
    own = {"truth"} if reference.task == "brats" else set()
    if reference.task == "imagenet" and manifest.round == "v1.0":
        own = {"preprocess"}
    assert set(manifest.task_options()) == {"path"} | own


def test_a_network_of_another_benchmark_is_refused_before_anything_runs() -> None:
    manifest = load_manifest(MANIFESTS / "edge-v6.1" / "resnet.yaml")
    other = manifest.model_copy(
        update={"backend": manifest.backend.model_copy(update={"model": "bert-large"})}
    )
    with pytest.raises(ManifestError, match="samples of task squad, not those of imagenet"):
        check_names(other)


def test_a_campaign_says_what_is_broken_and_what_is_missing() -> None:
    some = [m for m in manifests("edge-v1.0") if m.benchmark in ("resnet", "rnnt")]
    green, text = shown([m for m in some if m.benchmark == "resnet"])
    assert green, "MultiStream alone lacks scenarios, but another manifest has them"
    assert "without ssd-large, ssd-small, rnnt" in text
    green, text = shown([m for m in some if m.scenarios == ("MultiStream",)])
    assert not green
    assert "scenarios missing" in text and "also needs SingleStream, Offline" in text
    torch_one = next(m for m in some if isinstance(m.backend, TorchBackend))
    seeded = torch_one.model_copy(
        update={"backend": torch_one.backend.model_copy(update={"weights": None}), "name": "seeded"}
    )
    green, text = shown([seeded])
    assert not green
    assert "broken: weights" in text and "seeded random weights" in text


def test_a_folder_means_its_manifests(tmp_path: Path) -> None:
    for name in ("b", "a", "a.9"):
        (tmp_path / f"{name}.yaml").touch()
    (tmp_path / "manifest.schema.json").touch()
    inside = [tmp_path / f"{name}.yaml" for name in ("a", "a.9", "b")]
    assert manifest_files([tmp_path]) == inside
    assert manifest_files([inside[2], tmp_path, Path("other.yaml")]) == [
        inside[2],
        *inside[:2],
        Path("other.yaml"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="a folder without a manifest"):
        manifest_files([tmp_path / "empty"])
