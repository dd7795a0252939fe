"""Precision int8 from the manifest to the record: scales are made, found, verified and told of."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator import cli
from orchestrator.calibrate_command import _about
from orchestrator.findings_data import calibration_findings
from orchestrator.manifest import ManifestError, load_manifest, parse_manifest
from orchestrator.paths import RECORD
from orchestrator.preflight import absent_files, check_files
from orchestrator.present import Present
from orchestrator.record import read_record
from orchestrator.resume import changes
from orchestrator.rules import load_round
from orchestrator.submission.build import SubmitError, Wishes, submit
from orchestrator.submission.calibrated import calibrated
from orchestrator.verdict import missing_evidence
from tests import made_imagenet
from tests.drive_backend import wait
from tests.made_int8 import pictures
from tests.made_runs import made_run, made_system, rerecord
from workers.backends import BackendError, Batch, open_backend
from workers.models import SIZING, open_model
from workers.models.quantise import BINS, CLIPS, LEAST_CLIP, SCALE_DIGITS, Origin, Scales, read_scales
from workers.models.resnet50_int8 import Int8ResNet50
from workers.tasks import open_task

TIME_BUDGET_S = 40

NARROW = {"engine": "torch", "model": "resnet50", "width": 2, "threads": 1}
INT8 = {**NARROW, "precision": "int8"}
MANIFEST = """
name: narrow
round: v6.1
suite: datacenter,edge
division: DIVISION
benchmark: resnet
scenarios: [Offline]
task: {name: imagenet, TASK}
backend: {engine: torch, model: resnet50, precision: int8, threads: 1, options: {width: 2}, BACKEND}
workers: {where: local, max_batch: 2}
"""
TYPES = Int8ResNet50.weight_data_types
OFFICIAL = "7662247d1d9407d6cb564268f64c5a4a6cf9f1a34fd2e6cdc3b94dcf278b3dc9"


def text(task: str = "generated: 6", backend: str = "scales: s.json", division: str = "open") -> str:
    return MANIFEST.replace("TASK", task).replace("BACKEND", backend).replace("DIVISION", division)


# Manifests


@pytest.mark.parametrize(
    ("backend", "field", "told"),
    [
        ("weights: w.pth", "backend.scales", "loadgrid calibrate makes"),
        ("scales_sha256: " + "a" * 64, "backend.scales_sha256", "does nothing without backend.scales"),
        ("channels_last: true", "backend.channels_last", "does not go with precision int8"),
        ("compile: true", "backend.compile", "does not go with precision int8"),
    ],
)
def test_what_int8_does_not_go_with_is_told_at_its_field(backend: str, field: str, told: str) -> None:
    with pytest.raises(ManifestError, match=told) as caught:
        parse_manifest(text(backend=backend).encode())
    assert caught.value.field == field


def test_other_networks_and_precisions_refuse_int8s_fields() -> None:
    other = text().replace("model: resnet50", "model: perceptron")
    with pytest.raises(ManifestError, match="int8 is for model dlrm or resnet50, not for perceptron"):
        parse_manifest(other.encode())
    with pytest.raises(ManifestError, match="does nothing without precision int8"):
        parse_manifest(text().replace("int8", "fp16").encode())
    for more in ({"model": "perceptron"}, {"channels_last": True}, {"compile": True}):
        with pytest.raises(BackendError, match="int8"):
            open_backend({**INT8, **more}, open_task("imagenet", {"generated": 1}), 1).load()


def test_scales_lie_beside_the_manifest_and_must_be_there(tmp_path: Path) -> None:
    manifest = parse_manifest(text().encode(), tmp_path / "m.yaml")
    assert manifest.backend_options()["scales"] == str(tmp_path / "s.json")
    assert [one.field for one in absent_files(manifest)] == ["backend.scales"]
    with pytest.raises(ManifestError, match="loadgrid calibrate"):
        check_files(manifest, "local")


# The engine


def answers(options: dict[str, Any], count: int = 2) -> tuple[dict[str, Any], list[int]]:
    """A backend's facts and its classes for made pictures."""
    backend = open_backend(options, open_task("imagenet", {"generated": 1, "response": "int64"}), 2)
    facts = backend.load()
    samples = [memoryview(photo.numpy().tobytes()) for photo in pictures(count, 3)]
    backend.submit(Batch(np.arange(count), samples, None))
    (done,) = wait(backend)
    backend.close()
    return facts, done.responses.blob.view(np.int64).tolist()


def seeded() -> Any:
    torch.manual_seed(20210406)
    model: Any = open_model("resnet50", {"width": 2}).eval().requires_grad_(False)
    model.fold()
    return model


@pytest.fixture(scope="module")
def scales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of scales for the seeded weights of the engine."""
    facts, _ = answers(NARROW, 1)
    parts = seeded().calibrated([pictures(2, 8)], "max")
    about = {"model": "resnet50", "model_hash": facts["model_hash"], "weights": "seeded", "method": "max"}
    file = tmp_path_factory.mktemp("scales") / "s.json"
    listed = Origin(count=2, list="l.txt", list_sha256="b" * 64)
    file.write_bytes(Scales(samples=listed, **about, **parts).written())
    return file


def test_the_engine_computes_the_quantised_network_and_tells_of_its_scales(scales: Path) -> None:
    sha256 = hashlib.sha256(scales.read_bytes()).hexdigest()
    facts, found = answers({**INT8, "scales": str(scales), "scales_sha256": sha256})
    quantised = seeded().quantised(read_scales(scales.read_bytes()), torch.device("cpu"))
    assert found == quantised(pictures(2, 3)).tolist()
    assert (facts["precision"], facts["scales"], facts["scales_sha256"]) == ("int8", "s.json", sha256)
    assert facts["weight_data_types"] == "int8 (convolutions), fp16 (classifier)"
    made = {"method": "max", "biases": "corrected", "count": 2, "list": "l.txt", "list_sha256": "b" * 64}
    numbers = facts["calibration"].pop("numbers")
    assert any("int8" in line for line in numbers)
    assert facts["calibration"] == made and "kernels" not in facts


def test_seeded_weights_can_be_sized_without_a_file_and_say_so() -> None:
    first, second = answers(INT8)[0], answers(INT8)[0]
    assert first["scales"] == SIZING and first["calibration"]["generated"] is True
    assert first["scales_sha256"] == second["scales_sha256"] and first["weights"] == "seeded"


def test_scales_that_are_not_these_weights_own_are_refused(scales: Path, tmp_path: Path) -> None:
    def why(**options: Any) -> str:
        with pytest.raises(BackendError) as caught:
            answers({**INT8, **options}, 1)
        return str(caught.value)

    other = tmp_path / "other.json"
    body = json.loads(scales.read_bytes())
    other.write_text(json.dumps({**body, "model_hash": "f" * 64}))
    assert "was made for other weights" in why(scales=str(other))
    assert "was made for other weights" in why(scales=str(scales), normalize="vgg")
    other.write_text(json.dumps({**body, "weights_sha256": "f" * 64}))  # the hash is not of the file's bytes
    assert "sha256 ffffffffffff) than these" in why(scales=str(other))
    assert "not backend.scales_sha256" in why(scales=str(scales), scales_sha256="0" * 64)
    assert "`loadgrid calibrate` makes it" in why(scales=str(tmp_path / "none.json"))
    other.write_text("{}")
    assert "it is no file of scales" in why(scales=str(other))
    other.write_text(json.dumps({**body, "corrections": {"conv1": [1.0]}}))
    assert "channels of conv1" in why(scales=str(other))
    torch.save(open_model("resnet50", {"width": 2}).state_dict(), tmp_path / "w.pth")
    assert "backend.scales is missing" in why(weights=str(tmp_path / "w.pth"))


# loadgrid calibrate


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str]]]:
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()

    def called(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["loadgrid", "calibrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return int(left.value.code or 0), " ".join((said.out + said.err).split())

    yield called
    torch.set_num_threads(threads)


def test_the_references_list_makes_scales_that_a_run_takes(
    call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    made_imagenet.write(tmp_path / "data", 4, seed=2)
    listing = tmp_path / "list.txt"
    listing.write_text("ILSVRC2012_val_00000003.JPEG\nILSVRC2012_val_00000001.JPEG 1\n")
    file = tmp_path / "m.yaml"
    file.write_text(text("path: data"))
    assert call(file)[0] == 2  # without a list
    code, said = call(file, listing, "--compare", 9)
    assert code == 0 and "made from the 2 samples of list.txt, which is no list of the reference" in said
    made = read_scales((tmp_path / "s.json").read_bytes())
    assert made.samples.list == "list.txt" and made.samples.count == 2 and made.method == "mse"
    assert made.samples.list_sha256 == hashlib.sha256(listing.read_bytes()).hexdigest()
    assert made.samples.threads == 1 and made.samples.task == "imagenet" and not made.samples.generated
    assert made.agreement is not None and made.agreement["samples"] == 2.0  # those not in the list
    assert f"backend.scales_sha256: {made.sha256()}" in said
    facts, _ = answers({**INT8, "scales": str(tmp_path / "s.json"), "scales_sha256": made.sha256()}, 1)
    assert facts["calibration"]["agreement"] == made.agreement
    before = (tmp_path / "s.json").read_bytes()
    code, said = call(file, listing)
    assert code == 2 and "is there already" in said and (tmp_path / "s.json").read_bytes() == before


def test_generated_samples_do_for_sizing_and_are_told_of(
    call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text())
    assert "generated samples have no list" in call(file, file)[1]
    code, said = call(file, "--method", "max")
    assert code == 0 and "3 generated samples: for sizing, never official" in said
    assert read_scales((tmp_path / "s.json").read_bytes()).samples.generated is True


def test_generated_samples_are_never_told_of_as_a_lists() -> None:
    both = parse_manifest(text("generated: 6").encode())
    task = both.task.model_validate({**both.task.model_dump(), "calibration": "list.txt"})
    about = _about(both.model_copy(update={"task": task}), SimpleNamespace(digest="d"))  # type: ignore[arg-type]
    assert about == {"task": "imagenet", "library": "d", "generated": True}


@pytest.mark.parametrize("links", [True, False])
def test_scales_that_came_while_others_were_made_stay(
    call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, links: bool
) -> None:
    file, place = tmp_path / "m.yaml", tmp_path / "s.json"
    file.write_text(text())
    made: list[bool] = []

    def meanwhile(*arguments: Any) -> Any:
        if made:
            place.write_text("another's")
        made.append(True)
        return Scales(
            model="m", model_hash="h", weights="w", method="max", activations={}, corrections={}, **own
        )

    def unlinked(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    own: dict[str, Any] = {"samples": {"generated": True, "count": 3}}
    monkeypatch.setattr("orchestrator.calibrate_command._made", meanwhile)
    if not links:
        monkeypatch.setattr("os.link", unlinked)
    assert call(file)[0] == 0 and read_scales(place.read_bytes()).model == "m"
    place.unlink()
    code, said = call(file)
    assert code == 2 and "backend.scales: " in said and "it stays" in said
    assert place.read_text() == "another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.yaml", "s.json"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("another fault"),
    ],
)
def test_memory_that_does_not_suffice_to_calibrate_is_told(
    call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def full(*arguments: Any) -> None:
        raise error

    file = tmp_path / "m.yaml"
    file.write_text(text())
    monkeypatch.setattr("workers.backends.torch_calibration._calibrate", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = call(file)
    assert code != 0 and ("memory of the cpu device does not suffice" in said) != ("another" in said)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("scales: s.json", ""), "backend.scales: must name the file"),
        (("scales: s.json", "scales: none/s.json"), "there is no folder"),
        (("precision: int8, ", "precision: fp32, "), "does nothing without precision int8"),
        (("scales: s.json", "scales: s.json, weights: w.pth"), "backend.weights: no such file"),
        (("generated: 6", "path: nowhere, calibration: m.yaml"), "task.path: no such file or folder"),
    ],
)
def test_what_calibrate_cannot_begin_with_is_told(
    call: Callable[..., tuple[int, str]], tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text().replace(*change))
    code, said = call(file)
    assert code == 2 and told in said and not (tmp_path / "s.json").exists()


# Evidence


def test_every_division_but_open_wants_the_references_list() -> None:
    closed = parse_manifest(text("path: d", "weights: w, scales: s", "closed").encode())
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
