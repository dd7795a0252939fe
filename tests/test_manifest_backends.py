"""The engines of a manifest: what each knows, and what is said of a field that it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.manifest import Manifest, ManifestError, parse_manifest
from orchestrator.manifest_meaning import ENGINES
from orchestrator.preflight import check_files

TIME_BUDGET_S = 5

COMMON = {
    "round": "v6.1",
    "suite": "edge",
    "division": "open",
    "benchmark": "resnet",
    "scenarios": ["Offline"],
}


def made(path: str | Path = "m.yaml", task: dict[str, Any] | None = None, **backend: Any) -> Manifest:
    whole = {**COMMON, "task": task or {"name": "imagenet"}, "backend": backend}
    return parse_manifest(yaml.safe_dump(whole).encode(), path)


def why_not(**backend: Any) -> tuple[str, str]:
    with pytest.raises(ManifestError) as caught:
        made(**backend)
    return caught.value.field, caught.value.message


def test_every_engine_has_fields_of_its_own_name() -> None:
    for name, fields in ENGINES.items():
        assert name in str(fields.model_fields["engine"].annotation)


def test_an_onnx_file_is_named_and_found_from_the_manifests_folder(tmp_path: Path) -> None:
    manifest = made(tmp_path / "m.yaml", engine="onnx", weights="w/resnet50.onnx", threads=2)
    assert manifest.backend_options() == {
        "engine": "onnx",
        "weights": str(tmp_path / "w" / "resnet50.onnx"),
        "weights_sha256": None,
        "model": None,
        "threads": 2,
    }
    assert why_not(engine="onnx") == ("backend.weights", "is missing")
    assert why_not(engine="onnx", weights="w", precision="fp16") == (
        "backend.precision",
        'does nothing for engine "onnx"; it is for torch, ctranslate2',
    )


def test_a_ctranslate2_folder_has_a_precision() -> None:
    assert made(engine="ctranslate2", weights="w").backend_options()["precision"] == "fp32"
    assert made(engine="ctranslate2", weights="w", precision="int8").backend_options()["precision"] == "int8"
    assert why_not(engine="ctranslate2", weights="w", precision="int9")[0] == "backend.precision"
    field, message = why_not(engine="onix", weights="w")
    assert field == "backend.engine" and 'did you mean "onnx"' in message


@pytest.mark.parametrize(("engine", "wanted"), [("onnx", "file"), ("ctranslate2", "folder")])
def test_weights_of_the_wrong_kind_are_told_before_anything_starts(
    tmp_path: Path, engine: str, wanted: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    check_files(made(tmp_path / "m.yaml", engine=engine, weights=wanted), "local")
    other = {"file": "folder", "folder": "file"}[wanted]
    with pytest.raises(ManifestError, match=f"backend.weights: no such {wanted}"):
        check_files(made(tmp_path / "m.yaml", engine=engine, weights=other), "local")


def test_every_path_of_a_task_starts_in_the_manifests_folder(tmp_path: Path) -> None:
    task = {
        "name": "criteo",
        "path": "d",
        "calibration": "c.txt",
        "quantiles": "/q.txt",
        "count": 3,
        "truth": "t",
    }
    manifest = made(tmp_path / "m.yaml", task=task, engine="echo")
    assert manifest.task_options() == {
        "path": str(tmp_path / "d"),
        "calibration": str(tmp_path / "c.txt"),
        "quantiles": "/q.txt",
        "truth": str(tmp_path / "t"),
        "count": 3,
    }
    assert "path" not in made(task={"name": "imagenet", "calibration": ""}, engine="echo").task_options()
