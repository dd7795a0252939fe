"""Tasks: data sets on disk to samples, outputs to response bytes; bad data sets are explained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workers.installed import LocateError, locate
from workers.library import Library
from workers.tasks import Task, TaskError, open_task

TIME_BUDGET_S = 20

TASKS: dict[str, dict[str, Any]] = {
    "null": {"count": 40, "sample_bytes": 33, "seed": 7},
    "tensor": {"count": 40, "shape": [3, 4]},
    "imagenet-photos": {"path": "photos"},
}


def photos(folder: Path, count: int = 3) -> Path:
    """A folder of labelled pictures of several shapes."""
    rng = np.random.default_rng(count)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (256 + 40 * i, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photo_{i:02}_{100 + i}.jpg")
    return folder


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    options = dict(TASKS[request.param])
    if "path" in options:
        options["path"] = str(photos(tmp_path / "photos"))
    return open_task(request.param, options)


def all_of(library: Library) -> list[memoryview]:
    library.load(np.arange(library.count))
    return library.samples(np.arange(library.count))


def test_a_library_is_built_once_and_then_opened(task: Task, tmp_path: Path) -> None:
    first = task.prepare(tmp_path / "cache")
    made = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    again = task.prepare(tmp_path / "cache")
    assert again.folder == first.folder and again.digest == first.digest
    assert {p: p.stat().st_mtime_ns for p in again.folder.iterdir()} == made


def test_the_same_task_prepares_the_same_bytes_elsewhere(task: Task, tmp_path: Path) -> None:
    assert task.prepare(tmp_path / "a").digest == task.prepare(tmp_path / "b").digest


def test_collate_keeps_every_sample_and_fills_what_it_is_given(task: Task, tmp_path: Path) -> None:
    samples = all_of(task.prepare(tmp_path))[:3]
    rows = task.collate(samples)
    assert [row.tobytes() for row in rows] == [bytes(s) for s in samples]
    out = np.zeros((8, *rows.shape[1:]), rows.dtype)
    filled = task.collate(samples, out)
    assert np.shares_memory(filled, out) and (out[:3] == rows).all() and not out[3:].any()


def test_warm_up_samples_look_like_samples_and_are_never_zeros(task: Task, tmp_path: Path) -> None:
    sizes = set(task.prepare(tmp_path).sizes.tolist())
    samples = task.warm_up_samples(5)
    assert len(samples) == 5 and {s.nbytes for s in samples} == sizes
    assert len({bytes(s) for s in samples}) == 5 and all(any(bytes(s)) for s in samples)
    assert [bytes(s) for s in task.warm_up_samples(5)] == [bytes(s) for s in samples]


def test_the_response_to_a_photo_is_its_label_as_float32() -> None:
    task = open_task("imagenet-photos", {"path": "x"})
    scores = np.zeros((3, 1000), np.float32)
    scores[[0, 1, 2], [7, 999, 0]] = 1
    for outputs in (scores, scores.argmax(1)):
        responses = task.respond(outputs, np.arange(3))
        assert responses.sizes is None and responses.blob.dtype == np.uint8
        assert responses.blob.view("<f4").tolist() == [7.0, 999.0, 0.0]


def test_photos_are_cropped_centred_and_labelled(tmp_path: Path) -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, 300:] = 255  # the middle of the picture is an edge
    Image.fromarray(pixels).save(tmp_path / "edge_12.jpg", quality=95)
    library = open_task("imagenet-photos", {"path": str(tmp_path)}).prepare(tmp_path / "cache")
    photo = np.frombuffer(all_of(library)[0], np.uint8).reshape(224, 224, 3)
    assert library.array("labels").tolist() == [12]
    assert (photo[:, :108] < 30).all() and (photo[:, 116:] > 225).all()


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (250, 250), 128).save(tmp_path / "grey_1.png")
    Image.new("RGBA", (250, 250), (10, 20, 30, 40)).save(tmp_path / "clear_2.png")
    task = open_task("imagenet-photos", {"path": str(tmp_path), "pattern": "*.png"})
    assert task.prepare(tmp_path / "cache").sizes.tolist() == [224 * 224 * 3] * 2


def test_a_changed_photo_is_prepared_anew(tmp_path: Path) -> None:
    options = {"path": str(photos(tmp_path / "photos"))}
    before = open_task("imagenet-photos", options).prepare(tmp_path / "cache")
    Image.new("RGB", (300, 300), "red").save(tmp_path / "photos" / "photo_00_100.jpg")
    after = open_task("imagenet-photos", options).prepare(tmp_path / "cache")
    assert before.folder != after.folder and before.digest != after.digest


def test_bad_photo_folders_are_explained(tmp_path: Path) -> None:
    def why(**options: object) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("imagenet-photos", options).prepare(tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*/library.json"))
        return str(caught.value)

    folder = photos(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    assert "is no folder" in why(path=str(tmp_path / "absent"))
    assert "holds no file that matches '*.jpg'" in why(path=str(tmp_path / "empty"))
    assert "holds 3 photos (*.jpg), the manifest says 20" in why(path=str(folder), count=20)
    assert "'nosuchpackage' is not installed" in why(path="package:nosuchpackage/data")
    assert "leaves the package" in why(path="package:numpy/../..")
    whole = (folder / "photo_01_101.jpg").read_bytes()
    for damaged in (b"", b"no picture", whole[: len(whole) // 2]):
        (folder / "photo_01_101.jpg").write_bytes(damaged)
        assert "photo_01_101.jpg is damaged or not a picture" in why(path=str(folder))
    (folder / "photo_01_101.jpg").rename(folder / "photo_01_1000.jpg")
    assert "photo_01_1000.jpg has no label" in why(path=str(folder))
    (folder / "photo_01_1000.jpg").rename(folder / "photo.jpg")
    assert "photo.jpg has no label" in why(path=str(folder))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet-photo", {}, "did you mean 'imagenet-photos'"),
        ("null", {"cuont": 3}, "no option 'cuont' (did you mean 'count'?)"),
        ("null", {"count": "3"}, "'count' must be int, not '3'"),
        ("null", {"count": True}, "'count' must be int, not True"),
        ("null", {"count": 0}, "'count' must be 1 to "),
        ("null", {"sample_bytes": -1}, "'sample_bytes' must be 0 to "),
        ("null", {"count": 10**12}, "'count' must be 1 to 16777216, not 1000000000000"),
        ("null", {"sample_bytes": 2**31}, "'sample_bytes' must be 0 to 1073741824"),
        ("null", {"seed": 10**400}, "'seed' must be 0 to "),
        ("tensor", {"shape": [3, 0]}, "must be positive"),
        ("tensor", {"shape": [10**6, 10**6]}, "'shape' may come to 1073741824 bytes, not 4000000000000"),
        ("tensor", {"shape": [1] * 65}, "'shape' may come to 8 dimensions, not 65"),
        ("tensor", {"count": 2**24 + 1}, "'count' may come to 16777216, not 16777217"),
        ("imagenet-photos", {}, "needs the option 'path' (str)"),
        ("imagenet-photos", {"path": "x", "pattern": "../*.jpg"}, "must name files"),
        ("imagenet-photos", {"path": "x", "count": -1}, "count must be 0"),
    ],
)
def test_bad_options_are_explained(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        open_task(name, options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["null", "tensor"])
def test_samples_that_no_disk_holds_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    sizes: dict[str, dict[str, Any]] = {"null": {"sample_bytes": 2**30}, "tensor": {"shape": [2**14, 2**14]}}
    task = open_task(name, {"count": 2**24, **sizes[name]})
    with pytest.raises(TaskError, match="its samples take 18,014,.* GB free; lower the count") as caught:
        task.prepare(tmp_path / "not" / "yet")
    assert caught.value.option == "count" and not list(tmp_path.iterdir())


def test_a_package_is_found_without_being_imported(tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "__init__.py").write_text("raise RuntimeError('imported')")
    code = "from workers.installed import locate; print(locate('package:album/data/x'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert found.stdout.strip() == str(tmp_path / "album" / "data" / "x"), found.stderr


@pytest.mark.parametrize("path", ["package:", "package:/x", "package:a.b/x", "package:../x", "package:sys"])
def test_what_names_no_installed_package_is_refused(path: str) -> None:
    with pytest.raises(LocateError):
        locate(path)


def test_tasks_bring_no_torch() -> None:
    code = (
        "import sys; from workers.tasks import open_task;"
        "[open_task(n, o) for n, o in (('null', {}), ('tensor', {}), ('imagenet-photos', {'path': 'x'}))];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
