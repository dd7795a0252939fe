"""Precision int8 from the manifest to the record: scales are made, found, verified and told of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.calibration_samples import about
from orchestrator.manifest import ManifestError, parse_manifest
from orchestrator.preflight import absent_files, check_files
from tests import made_imagenet
from tests.drive_backend import wait
from tests.made_int8 import manifest_text, pictures
from workers.backends import BackendError, Batch, open_backend
from workers.models import SIZING, open_model
from workers.models.scales import Origin, Scales, read_scales
from workers.tasks import open_task

TIME_BUDGET_S = 40

NARROW = {"engine": "torch", "model": "resnet50", "width": 2, "threads": 1}
INT8 = {**NARROW, "precision": "int8"}


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
        parse_manifest(manifest_text(backend=backend).encode())
    assert caught.value.field == field


def test_other_networks_and_precisions_refuse_int8s_fields() -> None:
    other = manifest_text().replace("model: resnet50", "model: perceptron")
    with pytest.raises(ManifestError, match="int8 is for model dlrm or resnet50, not for perceptron"):
        parse_manifest(other.encode())
    with pytest.raises(ManifestError, match="does nothing without precision int8"):
        parse_manifest(manifest_text().replace("int8", "fp16").encode())
    for more in ({"model": "perceptron"}, {"channels_last": True}, {"compile": True}):
        with pytest.raises(BackendError, match="int8"):
            open_backend({**INT8, **more}, open_task("imagenet", {"generated": 1}), 1).load()


def test_scales_lie_beside_the_manifest_and_must_be_there(tmp_path: Path) -> None:
    manifest = parse_manifest(manifest_text().encode(), tmp_path / "m.yaml")
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


def test_the_references_list_makes_scales_that_a_run_takes(
    calibrate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    made_imagenet.write(tmp_path / "data", 4, seed=2)
    listing = tmp_path / "list.txt"
    listing.write_text("ILSVRC2012_val_00000003.JPEG\nILSVRC2012_val_00000001.JPEG 1\n")
    file = tmp_path / "m.yaml"
    file.write_text(manifest_text("path: data"))
    assert calibrate(file)[0] == 2  # without a list
    code, said = calibrate(file, listing, "--compare", 9)
    assert code == 0 and "made from the 2 samples of list.txt, which is no list of the reference" in said
    made = read_scales((tmp_path / "s.json").read_bytes())
    assert made.samples.list == "list.txt" and made.samples.count == 2 and made.method == "mse"
    assert made.samples.list_sha256 == hashlib.sha256(listing.read_bytes()).hexdigest()
    assert made.samples.threads == 1 and made.samples.task == "imagenet" and not made.samples.generated
    assert made.agreement is not None and made.agreement["samples"] == 2.0  # those not in the list
    assert f'scales_sha256: "{made.sha256()}"' in said
    facts, _ = answers({**INT8, "scales": str(tmp_path / "s.json"), "scales_sha256": made.sha256()}, 1)
    assert facts["calibration"]["agreement"] == made.agreement
    before = (tmp_path / "s.json").read_bytes()
    code, said = calibrate(file, listing)
    assert code == 2 and "is there already" in said and (tmp_path / "s.json").read_bytes() == before


def test_generated_samples_do_for_sizing_and_are_told_of(
    calibrate: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(manifest_text())
    assert "generated samples have no list" in calibrate(file, file)[1]
    code, said = calibrate(file, "--method", "max")
    assert code == 0 and "3 generated samples: for sizing, never official" in said
    assert read_scales((tmp_path / "s.json").read_bytes()).samples.generated is True


def test_generated_samples_are_never_told_of_as_a_lists() -> None:
    both = parse_manifest(manifest_text("generated: 6").encode())
    task = both.task.model_validate({**both.task.model_dump(), "calibration": "list.txt"})
    found = about(both.model_copy(update={"task": task}), SimpleNamespace(digest="d"))  # type: ignore[arg-type]
    assert found == {"task": "imagenet", "library": "d", "generated": True}


@pytest.mark.parametrize("links", [True, False])
def test_scales_that_came_while_others_were_made_stay(
    calibrate: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, links: bool
) -> None:
    file, place = tmp_path / "m.yaml", tmp_path / "s.json"
    file.write_text(manifest_text())
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
    assert calibrate(file)[0] == 0 and read_scales(place.read_bytes()).model == "m"
    place.unlink()
    code, said = calibrate(file)
    assert code == 2 and "backend.scales: " in said and "it stays" in said
    assert place.read_text() == "another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.yaml", "s.json"]


def test_scales_that_no_worker_could_use_are_not_written(
    calibrate: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(manifest_text())
    monkeypatch.setattr("workers.models.quantise.rounded_scale", lambda value: 1e6)
    code, said = calibrate(file)
    assert code != 0 and "no worker could use the scales of these weights (activations.conv1: 1e+06" in said
    assert "unexpected error" not in said and not (tmp_path / "s.json").exists()


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
    calibrate: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
) -> None:
    def full(*arguments: Any) -> None:
        raise error

    file = tmp_path / "m.yaml"
    file.write_text(manifest_text())
    monkeypatch.setattr("workers.backends.torch_calibration.load_folded", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = calibrate(file)
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
    calibrate: Callable[..., tuple[int, str]], tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(manifest_text().replace(*change))
    code, said = calibrate(file)
    assert code == 2 and told in said and not (tmp_path / "s.json").exists()
