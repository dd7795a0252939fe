"""What evidence says of networks in 8 bits, and must say: records, resuming, a submission's documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.findings_data import calibration_findings
from orchestrator.manifest import load_manifest, parse_manifest
from orchestrator.paths import RECORD
from orchestrator.preflight import absent_files
from orchestrator.present import Present
from orchestrator.record import read_record
from orchestrator.resume import changes
from orchestrator.rules import load_round
from orchestrator.submission.build import SubmitError, Wishes, submit
from orchestrator.submission.calibrated import calibrated
from orchestrator.verdict import missing_evidence
from tests.made_int8 import manifest_text
from tests.made_runs import made_run, made_system, rerecord
from workers.models.quantise import BINS, CLIPS, LEAST_CLIP, SCALE_DIGITS
from workers.models.resnet50_int8 import Int8ResNet50

TIME_BUDGET_S = 40

TYPES = Int8ResNet50.weight_data_types
OFFICIAL = "7662247d1d9407d6cb564268f64c5a4a6cf9f1a34fd2e6cdc3b94dcf278b3dc9"


def test_every_division_but_open_wants_the_references_list() -> None:
    closed = parse_manifest(manifest_text("path: d", "weights: w, scales: s", "closed").encode())
    opened = closed.model_copy(update={"division": "open"})
    good = {"task": "imagenet", "list": "l.txt", "list_sha256": OFFICIAL, "count": 500}
    for made, told in (
        (good, None),
        ({**good, "list": "mine.txt", "list_sha256": "e" * 64}, "from the list mine.txt"),
        ({**good, "list_sha256": ["e"]}, "from the list l.txt"),
        ({**good, "task": "coco-300"}, "task coco-300, not of imagenet"),
        ({**good, "count": 3}, "from 3 samples; cal_image_list_option_1.txt has 500"),
        ({"generated": True}, "from generated samples"),
        (None, "does not tell from what"),
        ("a word", "does not tell from what"),
    ):
        facts: list[Any] = [{"calibration": good}, {"precision": "int8", "calibration": made}, {}]
        found = [one.why for one in calibration_findings(load_round("v6.1"), closed, facts)]
        assert len(found) == (told is not None) and all(told is not None and told in why for why in found)
        assert not list(calibration_findings(load_round("v6.1"), opened, facts))


def test_scales_that_nobody_verified_are_no_evidence() -> None:
    hashes: dict[str, str | None] = {"library": "l", "library_expected": "l", "weights_expected": "w"}

    def missing(expected: str | None, *scales: str | None) -> list[str]:
        facts = [{"weights_sha256": "w", "scales_sha256": one} for one in scales]
        loadgen = {"version": "6", "sha256": "x"}
        return missing_evidence(
            facts, "torch", {**hashes, "scales_expected": expected}, {"commit": "c"}, loadgen
        )

    assert missing("s", "s", "s") == missing(None, None) == []
    assert "scales_sha256 is not given" in missing(None, "s")[0]
    assert "not every worker" in missing("s", "s", "t")[0]


def test_other_scales_run_a_test_again(tmp_path: Path) -> None:
    from tests.test_resume import PRESENT, SPECS, good

    record = good(SPECS[0])
    workers = [w.model_copy(update={"facts": {**w.facts, "scales_sha256": "s"}}) for w in record.workers]
    record = record.model_copy(update={"workers": workers})
    for scales, told in (("s", []), ("t", ["the scales have changed"]), (None, [])):
        assert list(changes(SPECS[0], record, Present(**vars(PRESENT) | {"scales": scales}))) == told
    (unknown,) = changes(SPECS[0], record, Present(**vars(PRESENT) | {"scales": ""}))
    assert "backend.scales_sha256 does not name them" in unknown


class Cell:
    """Of a submission's cell what the document reads."""

    def __init__(self, scenario: str, facts: dict[str, Any]) -> None:
        self.benchmark, self.scenario, self.performance = "resnet", scenario, self
        self.model_facts = facts


def test_the_calibration_document_says_what_the_workers_said() -> None:
    made = {"method": "mse", "biases": "corrected", "count": 500, "list": "list.txt", "list_sha256": "e" * 64}
    told = {"calibration": {**made, "agreement": {"top1": 0.991, "samples": 5000.0}}, "scales": "s.json"}
    cells: list[Any] = [Cell("Offline", told), Cell("Server", told)]
    document = calibrated(cells)
    assert document is not None and document.count("== ") == 1
    assert "== resnet Offline, resnet Server" in document
    assert "the 500 samples of `list.txt` (sha256 " + "e" * 64 in document
    assert "99.10 % of 5000 samples" in document and "least squared error" in document
    assert (BINS, CLIPS, LEAST_CLIP, SCALE_DIGITS) == (4096, 100, 0.2, 6)  # in the document's words:
    for words in ("in 4,096 bins", "100 clips, evenly from a fifth", "to 6 significant", "layer by layer"):
        assert words in document
    assert "made by `loadgrid calibrate`" in document and "random samples" not in document
    assert calibrated([*cells, Cell("SingleStream", {})]) is None and calibrated([]) is None  # type: ignore[list-item]


def quantised_run(tmp_path: Path, **changed: Any) -> Path:
    """A made run of ResNet-50 in int8, with these facts of its workers changed."""
    backend = (
        "{{engine: torch, model: {model}, precision: int8, weights: w/net.pth, weights_sha256: "
        + "a" * 64
        + ", scales: s.json, scales_sha256: "
        + "b" * 64
        + "}}"
    )
    run = made_run(tmp_path / "runs", backend=backend)
    made = {"method": "mse", "biases": "corrected", "count": 500, "library": "f" * 64, "task": "imagenet"}
    made |= {"list": "cal_image_list_option_1.txt", "list_sha256": OFFICIAL}
    told = {"precision": "int8", "scales": "s.json", "scales_sha256": "b" * 64, "calibration": made}
    told["weight_data_types"] = TYPES
    for folder in run.iterdir():
        if (folder / RECORD).exists():
            workers = read_record(folder / RECORD).workers
            more = [w.model_copy(update={"facts": {**w.facts, **told, **changed}}) for w in workers]
            rerecord(folder, workers=more)
    return run


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"calibration": {"list": "mine.txt", "list_sha256": "e" * 64}}, "made from the list mine.txt"),
        ({"calibration": {"generated": True}}, "made from generated samples"),
        ({"calibration": None}, "does not tell which scales it computed with"),
        ({"scales_sha256": None}, "does not tell which scales it computed with"),
        ({"precision": "fp16"}, "computed in fp16, its manifest says int8"),
        ({"precision": None, "scales_sha256": None, "calibration": None}, "computed in None, its manifest"),
    ],
)
def test_an_official_record_of_other_scales_cannot_be_submitted(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    run = quantised_run(tmp_path, **changed)
    with pytest.raises(SubmitError) as refused:
        submit([run], made_system(tmp_path), tmp_path / "tree", Wishes())
    assert told in str(refused.value) and "calibration: " in str(refused.value)


def test_a_submission_gets_its_calibration_document_from_the_records(tmp_path: Path) -> None:
    run = quantised_run(tmp_path)
    system = made_system(tmp_path)
    built = submit([run], system, tmp_path / "tree", Wishes())
    documents = built.root / "closed/ACME/documentation/calibration.adoc"
    assert "cal_image_list_option_1.txt" in documents.read_text()
    (readme,) = built.root.glob("closed/*/results/*/*/*/README.md")
    assert "s.json (sha256 " + "b" * 64 in readme.read_text()
    described = next(built.root.glob("closed/*/results/*/*/*/measurements.json"))
    assert json.loads(described.read_text())["weight_data_types"] == TYPES
    assert f"quantised after training to {TYPES} by the scales of s.json" in described.read_text()


def test_a_word_of_the_users_own_does_not_switch_off_the_demand_for_a_calibration_document(
    tmp_path: Path,
) -> None:
    run = quantised_run(tmp_path)
    wishes = Wishes(facts={"weight_data_types": "mixed"})
    built = submit([run], made_system(tmp_path), tmp_path / "tree", wishes)
    document = (built.root / "closed/ACME/documentation/calibration.adoc").read_text()
    assert "cal_image_list_option_1.txt" in document and "No network of this" not in document


def test_the_sizing_manifest_asks_for_what_there_is() -> None:
    manifest = load_manifest(Path(__file__).parents[1] / "manifests" / "sizing" / "resnet50-int8.yaml")
    assert manifest.backend_options()["precision"] == "int8" and not list(absent_files(manifest))
