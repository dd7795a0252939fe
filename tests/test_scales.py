"""Scales that no worker would take are found before anything starts, by the workers' own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, cluster, doctor
from orchestrator.checks import FAIL
from orchestrator.manifest import Manifest, ManifestError, load_manifest
from orchestrator.preflight import check_files, wrong_scales
from tests.made_int8 import manifest_text
from workers.backends import BackendError, open_backend
from workers.models.dlrm_int8 import E4M3_TOP
from workers.models.quantise import TOP, rounded_scale
from workers.models.scales import LARGEST_BYTES, Origin, Scales, read_scales
from workers.tasks import open_task

TIME_BUDGET_S = 20

OTHER = "a" * 64
SEEDED = Scales(
    model="resnet50",
    model_hash="b" * 64,
    weights="seeded",
    method="max",
    samples=Origin(generated=True, count=3),
    activations={"conv1": 0.5},
    corrections={},
)
TRAINED = SEEDED.model_copy(update={"weights": "w.pth", "weights_sha256": "c" * 64})
OF_FILE = "scales: s.json, weights: w.pth"

# What lies in the file, what `backend` says, and what is told of it.
WRONG: list[tuple[bytes, str, str]] = [
    (b"", "scales: s.json", "it is no file of scales"),
    (SEEDED.written()[:-40], "scales: s.json", "it is no file of scales"),
    (b"{}", "scales: s.json", "it is no file of scales (model: Field required)"),
    (SEEDED.written().replace(b"0.5", b"-0.5"), "scales: s.json", "activations.conv1: "),
    (SEEDED.written().replace(b"0.5", b"1e30"), "scales: s.json", "activations.conv1: 1e+30 is no scale: "),
    (
        SEEDED.written().replace(b"0.5", b"516"),
        "scales: s.json",
        "must be 1.3e-10 to 515.9, or the last step",
    ),
    (SEEDED.written().replace(b"0.5", b"1e-10"), "scales: s.json", "activations.conv1: 1e-10 is no scale: "),
    (
        SEEDED.written().replace(b'"corrections": {}', b'"corrections": {"conv1": [0.5, -1e39]}'),
        "scales: s.json",
        "corrections.conv1.1: -1e+39 is no correction of a bias: ",
    ),
    (SEEDED.written(), f"scales: s.json, scales_sha256: {OTHER}", f"not backend.scales_sha256, {OTHER}"),
    (SEEDED.written().replace(b"resnet50", b"dlrm"), "scales: s.json", "was made for other weights (dlrm, "),
    (TRAINED.written(), "scales: s.json", "than these (resnet50, seeded, sha256 none)"),
    (SEEDED.written(), OF_FILE, "sha256 none) than these (resnet50, w.pth)"),
    (
        TRAINED.written(),
        f"{OF_FILE}, weights_sha256: {OTHER}",
        "than these (resnet50, w.pth, sha256 aaaaaaaaaaaa)",
    ),
]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Manifest]:
    """A manifest with its weights and the scales `data` beside it."""

    def make(data: bytes, backend: str = "scales: s.json", where: str = "local") -> Manifest:
        (tmp_path / "w.pth").touch()
        (tmp_path / "s.json").write_bytes(data)
        text = manifest_text(backend=backend).replace("where: local", f"where: {where}")
        (tmp_path / "m.yaml").write_text(text)
        return load_manifest(tmp_path / "m.yaml")

    return make


@pytest.mark.parametrize(("data", "backend", "told"), WRONG)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_scales_that_no_worker_would_take_are_told_at_once_at_their_field(
    made: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    data: bytes,
    backend: str,
    told: str,
) -> None:
    file = made(data, backend, "ray").path
    monkeypatch.setattr(cluster, "connect", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr(sys, "argv", ["loadgrid", command, str(file)])
    monkeypatch.chdir(file.parent)
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 2 and said.out == ""
    assert said.err.startswith(f"loadgrid: {file}:9: backend.scales: ") and told in said.err
    assert str(file.parent / "s.json") in said.err and "`loadgrid calibrate`" in said.err
    assert sorted(os.listdir()) == ["m.yaml", "s.json", "w.pth"]


@pytest.mark.parametrize("last", [TOP, E4M3_TOP])
@pytest.mark.parametrize("most", [6e-8, 1e-6, 1.0, 65504.0])
def test_whatever_float16_holds_has_a_scale_in_either_format(last: float, most: float) -> None:
    made = {**SEEDED.model_dump(), "activations": {"conv1": rounded_scale(most / last)}}
    assert read_scales(Scales.model_validate(made).written()).activations["conv1"] > 0


def test_a_file_too_large_for_scales_is_not_read(made: Callable[..., Manifest], tmp_path: Path) -> None:
    chosen = made(b"")
    os.truncate(tmp_path / "s.json", LARGEST_BYTES + 1)
    assert "is too large for a file of scales" in (wrong_scales(chosen, True) or "")


@pytest.mark.parametrize("backend", ["scales: s.json", f"scales: s.json, scales_sha256: {SEEDED.sha256()}"])
def test_scales_of_the_weights_pass(made: Callable[..., Manifest], backend: str) -> None:
    check_files(made(SEEDED.written(), backend), "local")
    check_files(made(TRAINED.written(), OF_FILE), "local")  # whose weights they are only a worker can tell
    check_files(made(TRAINED.written(), f"{OF_FILE}, weights_sha256: {'c' * 64}"), "local")


def test_the_worker_says_what_the_driver_said(made: Callable[..., Manifest]) -> None:
    for data in (b"{}", SEEDED.written()[:-40]):
        chosen = made(data)
        options = {**chosen.backend_options(), "device": "cpu"}
        with pytest.raises(BackendError) as caught:
            open_backend(options, open_task("imagenet", {"generated": 1}), 1).load()
        assert str(caught.value) == f"backend.scales: {wrong_scales(chosen, True)}"


def test_scales_on_the_workers_hosts_alone_are_left_to_the_workers(
    made: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = made(b"{}", where="ray")
    with pytest.raises(ManifestError, match="if the workers' hosts have another in its place, take this"):
        check_files(chosen, "10.0.0.7:6379")
    with pytest.raises(ManifestError) as caught:
        check_files(chosen, "local")
    assert "take this one away" not in str(caught.value)
    # Root may read anything, and tests may run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "s.json")
    check_files(chosen, "10.0.0.7:6379")
    (tmp_path / "s.json").unlink()
    check_files(chosen, "10.0.0.7:6379")
    with pytest.raises(ManifestError, match="no such file"):
        check_files(chosen, "local")
    absent = made(b"{}", "scales: 'package:no_such_package/s.json'")
    assert wrong_scales(absent, True) is None  # the check of files tells of it


def test_doctor_tells_of_them_too(made: Callable[..., Manifest]) -> None:
    (found,) = doctor.files_checks(made(b"{}"), "local")
    assert (found.name, found.status) == ("scales", FAIL)
    assert "it is no file of scales" in found.seen and "backend.scales" in found.mend
    assert not list(doctor.files_checks(made(SEEDED.written()), "local"))


def test_a_driver_without_torch_reads_scales(made: Callable[..., Manifest]) -> None:
    program = """
import json, sys
sys.modules["torch"] = None
from pathlib import Path
from orchestrator.manifest import load_manifest
from orchestrator.preflight import wrong_scales
print(json.dumps(wrong_scales(load_manifest(Path(sys.argv[1])), True)))
"""

    def told(data: bytes) -> Any:
        command = [sys.executable, "-c", program, str(made(data).path)]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    assert told(SEEDED.written()) is None
    assert "it is no file of scales" in told(b"{}")
