"""`loadgrid calibrate --compare` on scales that are there: held against fp32 as they are, never written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import made_imagenet
from tests.made_int8 import manifest_text
from workers.models.scales import read_scales

TIME_BUDGET_S = 40

Calibrate = Callable[..., tuple[int, str]]
AS_IT_WAS = "Nothing was calibrated: the file is as it was."


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """A manifest of four made photos, and a list of two of them."""
    made_imagenet.write(tmp_path / "data", 4, seed=2)
    listing = tmp_path / "list.txt"
    listing.write_text("ILSVRC2012_val_00000003.JPEG\nILSVRC2012_val_00000001.JPEG 1\n")
    file = tmp_path / "m.yaml"
    file.write_text(manifest_text("path: data"))
    return file, listing


def test_scales_that_are_there_are_compared_as_they_are_and_stay(
    calibrate: Calibrate, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    file, listing = photos
    assert calibrate(file, listing, "--method", "max")[0] == 0
    scales = tmp_path / "s.json"
    before, when = scales.read_bytes(), scales.stat().st_mtime_ns
    names = sorted(path.name for path in tmp_path.iterdir())
    code, said = calibrate(file, listing, "--compare", 9)
    assert code == 0 and "scales of resnet50, as they are" in said and AS_IT_WAS in said
    assert "of 2 other samples" in said and "made from the 2 samples of list.txt" in said and "max" in said
    assert f'scales_sha256: "{read_scales(before).sha256()}"' in said
    assert (scales.read_bytes(), scales.stat().st_mtime_ns) == (before, when)
    assert sorted(path.name for path in tmp_path.iterdir()) == names

    scales.rename(tmp_path / "kept.json")
    code, fresh = calibrate(file, listing, "--method", "max", "--compare", 9)
    figures = said.partition("the same best answer")[2].partition(";")[2].partition("Nothing")[0]
    assert code == 0 and figures.strip() and figures.strip() in fresh  # the same as of new ones
    file.write_text(manifest_text("path: data", f"scales: s.json, scales_sha256: {'a' * 64}"))
    code, said = calibrate(file, listing, "--compare", 9)
    assert code == 2 and "backend.scales: " in said and "not backend.scales_sha256" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "move it away, or name another file; --compare N holds it against fp32 as it is"),
        (["--compare", "2", "--method", "max"], "is compared as it is: leave --method out"),
    ],
)
def test_more_than_comparing_scales_that_are_there_is_refused(
    calibrate: Calibrate, tmp_path: Path, arguments: list[str], told: str
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(manifest_text())
    assert calibrate(file)[0] == 0
    before = (tmp_path / "s.json").read_bytes()
    code, said = calibrate(file, *arguments)
    assert code == 2 and "backend.scales: " in said and told in said
    assert (tmp_path / "s.json").read_bytes() == before


def test_samples_that_the_scales_were_made_from_are_left_out(
    calibrate: Calibrate, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    file, listing = photos
    assert calibrate(file, listing)[0] == 0
    code, said = calibrate(file, "--compare", 9)
    assert code == 2 and "name the list that" in said and "(list.txt): what is on it is left out" in said
    other = tmp_path / "other.txt"
    other.write_text("ILSVRC2012_val_00000002.JPEG\n")
    code, said = calibrate(file, other, "--compare", 9)
    assert code == 2 and "was made from list.txt (sha256 " in said and "other.txt" in said
    body = json.loads((tmp_path / "s.json").read_bytes())
    (tmp_path / "s.json").write_text(json.dumps({**body, "samples": {}}))
    code, said = calibrate(file, listing, "--compare", 9)
    assert code == 2 and "was made from a list that it does not name" in said


def test_of_generated_samples_those_beside_the_calibrations_are_compared(
    calibrate: Calibrate, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "generated.yaml"
    file.write_text(manifest_text())
    assert calibrate(file)[0] == 0
    code, said = calibrate(file, "--compare", 9)
    assert code == 0 and "of 3 other samples" in said and "3 generated samples: for sizing" in said
    file.write_text(manifest_text("generated: 8"))
    code, said = calibrate(file, "--compare", 9)
    assert code == 2 and "task.generated: makes other samples than the scales were made from" in said
    real, listing = photos  # no photo is a generated sample
    code, said = calibrate(real, "--compare", 9)
    assert code == 0 and "of 4 other samples" in said and AS_IT_WAS in said
    code, said = calibrate(real, listing, "--compare", 9)
    assert code == 2 and "was made from generated samples: leave the list out" in said


def test_scales_that_do_not_say_from_what_they_were_made_are_compared_on_generated_samples(
    calibrate: Calibrate, tmp_path: Path
) -> None:
    file, scales = tmp_path / "m.yaml", tmp_path / "s.json"
    file.write_text(manifest_text())
    assert calibrate(file)[0] == 0
    body = json.loads(scales.read_bytes())
    scales.write_text(json.dumps({**body, "samples": {}}))
    code, said = calibrate(file, "--compare", 2)
    assert (
        code == 0
        and "of 2 samples, which may be those it was made from" in said
        and "samples that the file does not name" in said
    )
    scales.write_text(json.dumps({**body, "samples": {"generated": True, "library": "0" * 64}}))
    assert "which to leave out is not known" in calibrate(file, "--compare", 2)[1]


def test_scales_that_no_worker_would_take_are_not_compared(calibrate: Calibrate, tmp_path: Path) -> None:
    file, scales = tmp_path / "m.yaml", tmp_path / "s.json"
    file.write_text(manifest_text())
    assert calibrate(file)[0] == 0
    body = json.loads(scales.read_bytes())

    def told(code: int, **change: object) -> str:
        scales.write_text(json.dumps({**body, **change}))
        found, said = calibrate(file, "--compare", 2)
        assert found == code and scales.read_text() == json.dumps({**body, **change})
        return said

    assert "backend.scales: " in told(2, method="best") and "is no file of scales" in told(2, method="best")
    assert "was made for other weights" in told(2, weights_sha256="f" * 64)
    assert "was made for other weights" in told(3, model_hash="f" * 64)  # known when they are loaded
    assert "do not fit the network's tensors" in told(3, activations={"conv1": 1.0})
    scales.unlink()
    scales.symlink_to("nowhere.json")
    code, said = calibrate(file, "--compare", 2)
    assert code == 2 and "cannot be read (No such file or directory)" in said and scales.is_symlink()
