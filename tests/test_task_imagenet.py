"""ImageNet for ResNet50: pixels as the reference crops them, labels, lists, and what a bad folder says."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.made_imagenet import picture, write
from workers.library import Library
from workers.tasks import TaskError, open_task
from workers.tasks.imagenet import VGG_MEAN, shrink_pytorch, shrink_vgg
from workers.tasks.photos import read_photo

TIME_BUDGET_S = 20


def all_of(library: Library) -> np.ndarray:
    library.load(np.arange(library.count))
    samples = library.samples(np.arange(library.count))
    return np.stack([np.frombuffer(s, np.uint8) for s in samples]).reshape(-1, 224, 224, 3)


def test_samples_are_the_photos_in_the_order_of_the_map(tmp_path: Path) -> None:
    options = write(tmp_path / "data", 7, seed=1)
    library = open_task("imagenet", options).prepare(tmp_path / "cache")
    lines = [line.split() for line in (tmp_path / "data" / "val_map.txt").read_text().splitlines()]
    assert library.array("labels").tolist() == [int(label) for _, label in lines]
    expected = [shrink_pytorch(read_photo(tmp_path / "data" / name)) for name, _ in lines]
    assert (all_of(library) == np.stack(expected)).all()
    assert library.meta["scorer"] == "top1" and library.meta["label_dtype"] == "float32"


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((500, 375), (341, 256), (58, 16)),
        ((375, 500), (256, 341), (16, 58)),
        ((200, 150), (341, 256), (58, 16)),
        ((301, 257), (299, 256), (37, 16)),
        ((256, 256), (256, 256), (16, 16)),
    ],
)
def test_a_photo_is_shrunk_and_cropped_as_the_reference_does_it(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    photo = np.asarray(picture(np.random.default_rng(3), size))
    left, top = corner
    area = cv2.resize(photo, resized, interpolation=cv2.INTER_AREA)
    assert (shrink_vgg(photo) == area[top : top + 224, left : left + 224]).all()


@pytest.mark.parametrize(("size", "left"), [((301, 257), 38), ((297, 256), 36), ((299, 256), 38)])
def test_the_pytorch_crop_rounds_half_a_pixel_to_even_as_torchvision_does(
    size: tuple[int, int], left: int
) -> None:
    photo = picture(np.random.default_rng(4), size)
    wide = int(256 * size[0] / size[1])
    bilinear = np.asarray(photo.resize((wide, 256), Image.Resampling.BILINEAR))
    assert (shrink_pytorch(np.asarray(photo)) == bilinear[16:240, left : left + 224]).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_photos_are_decoded_as_opencv_reads_them(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "turned.JPEG"
    exif = Image.Exif()
    exif[0x112] = 6  # taken with the camera on its side
    picture(np.random.default_rng(5), (90, 60)).convert(mode).save(file, "JPEG", exif=exif)
    photo, expected = read_photo(file), cv2.imread(str(file))
    assert photo.shape == (90, 60, 3)
    assert expected is not None and (photo == expected[:, :, ::-1]).all()


def test_a_photo_that_is_no_jpeg_in_spite_of_its_name_is_read(tmp_path: Path) -> None:
    image = picture(np.random.default_rng(6), (30, 20))
    image.save(tmp_path / "x.JPEG", "PNG")
    assert (read_photo(tmp_path / "x.JPEG") == np.asarray(image)).all()


def test_a_jpeg_with_something_behind_its_end_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.JPEG"
    picture(np.random.default_rng(6), (30, 20)).save(file, "JPEG")
    whole = read_photo(file)
    file.write_bytes(file.read_bytes() + b"\0\0")
    assert (read_photo(file) == whole).all()


@pytest.mark.parametrize("response", ["float32", "int32", "int64"])
def test_the_response_is_the_class_in_the_type_that_is_asked_for(response: str) -> None:
    task = open_task("imagenet", {"path": "x", "response": response})
    scores = np.zeros((3, 1000), np.float32)
    scores[[0, 1, 2], [7, 999, 0]] = 1
    for outputs in (scores, scores.argmax(1)):
        answered = task.respond(outputs, np.arange(3))
        assert answered.sizes is None
        assert answered.blob.view(np.dtype(response)).tolist() == [7, 999, 0]


def test_generated_samples_are_random_and_unlabelled(tmp_path: Path) -> None:
    task = open_task("imagenet", {"generated": 3})
    library = task.prepare(tmp_path)
    photos = all_of(library)
    assert photos.std() > 70 and (photos[0] != photos[1]).mean() > 0.9
    assert library.meta["generated"] is True and "scorer" not in library.meta
    assert library.digest == task.prepare(tmp_path / "elsewhere").digest
    rows = np.zeros((5, 224, 224, 3), np.uint8)
    assert np.shares_memory(task.collate(task.warm_up_samples(2), rows), rows)
    assert rows[1].std() > 70 and not rows[2:].any() and not task.ragged


@pytest.mark.parametrize("with_index", [False, True])
def test_a_calibration_list_chooses_and_orders_the_samples(tmp_path: Path, with_index: bool) -> None:
    """The reference's first list has names only, its second one numbers them."""
    options = write(tmp_path / "data", 4, seed=2)
    names = ["ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000001.JPEG"]
    lines = [f"{name} {i}" if with_index else name for i, name in enumerate(names)]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    task = open_task("imagenet", options | {"calibration": str(tmp_path / "list.txt")})
    library = task.prepare(tmp_path / "cache")
    expected = [shrink_pytorch(read_photo(tmp_path / "data" / name)) for name in names]
    assert (all_of(library) == np.stack(expected)).all() and "scorer" not in library.meta


def test_the_onnx_file_gets_the_references_bytes_and_its_1001_classes_are_mapped_back() -> None:
    task: Any = open_task("imagenet", {"path": "x", "preprocess": "vgg"})
    rows = np.random.default_rng(7).integers(0, 256, (2, 224, 224, 3), np.uint8)
    fed = task.onnx_inputs(rows, np.ones(2, np.int64))["input_tensor:0"]
    assert fed.dtype == np.float32 and fed.shape == (2, 3, 224, 224) and fed.flags.c_contiguous
    assert (fed[1, 2] == rows[1, :, :, 2].astype(np.float32) - VGG_MEAN[2]).all()
    ones = np.ones(2, np.int64)
    scores = np.eye(1001, dtype=np.float32)[[1, 1000]]
    found = {"ArgMax:0": np.array([1, 1000]), "softmax_tensor:0": scores}
    assert task.onnx_outputs(found, ones)[0].tolist() == [0, 999]
    assert task.onnx_outputs({"softmax_tensor:0": scores}, ones)[0].tolist() == [0, 999]
    assert task.onnx_outputs({"output": scores[:, 1:]}, ones)[0].tolist() == [0, 999]


def test_the_onnx_file_refuses_photos_prepared_for_the_other_weights() -> None:
    task: Any = open_task("imagenet", {"path": "x"})
    with pytest.raises(TaskError, match="set task.preprocess: vgg"):
        task.onnx_inputs(np.zeros((1, 224, 224, 3), np.uint8), np.ones(1, np.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set task.path to the data set, or task.generated"),
        ({"path": "x", "generated": 3}, "(not both)"),
        ({"generated": -1}, "generated must be 0 to"),
        ({"path": "x", "count": -1}, "count must be 0 to"),
        ({"generated": 3, "calibration": "x"}, "calibration is about a data set"),
        ({"path": "x", "calibration": "x", "count": 3}, "leave task.count out"),
        ({"path": "x", "preprocess": "pytorhc"}, "(did you mean 'pytorch'?)"),
        ({"path": "x", "response": "float64"}, "response is one of float32, int32, int64"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        open_task("imagenet", options)
    assert message in str(caught.value)


def test_a_bad_data_set_is_explained_before_anything_is_prepared(tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = write(data, 3, seed=1)
    first, val_map = data / "ILSVRC2012_val_00000001.JPEG", data / "val_map.txt"
    listed, whole = val_map.read_text(), first.read_bytes()

    def why(**more: Any) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("imagenet", options | more).prepare(tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*/library.json"))
        return str(caught.value)

    assert "val_map.txt lists 3 photos, the manifest says 50000" in why(count=50000)
    for damaged in (b"", b"no picture", whole[: len(whole) // 2], whole[:200] + b"\xff\xd9"):
        first.write_bytes(damaged)
        assert f"{first} is damaged or not a picture" in why()
    first.unlink()
    assert f"1 of 3 photos that {val_map} lists are missing, first {first}" in why()
    for line, wrong in (
        ("a.JPEG", "line 4 is no 'NAME LABEL'"),
        ("", "line 4 is no 'NAME LABEL'"),
        ("a.JPEG one", "line 4 is no 'NAME LABEL'"),
        ("a.JPEG 1000", "line 4 has class 1000"),
        ("../a.JPEG 1", "lies outside of"),
    ):
        val_map.write_text(f"{listed}{line}\n")
        assert wrong in why()
    val_map.write_text("")
    assert "val_map.txt is empty" in why()
    val_map.unlink()
    assert "val_map.txt is missing" in why()
    assert "absent.txt is missing: it lists the calibration samples" in why(
        calibration=str(tmp_path / "absent.txt")
    )
    assert "is no folder" in why(path=str(tmp_path / "absent"))


def jpeg_of(width: int, height: int) -> bytes:
    """A small JPEG that says it has these sides."""
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "JPEG")
    data = bytearray(held.getvalue())
    struct.pack_into(">HH", data, data.find(b"\xff\xc0") + 5, height, width)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("sides", "wrong"),
    [
        ((60_000, 1), "is 60000 x 1 pixels: photos have up to 100 mega"),
        ((1, 60_000), "one side up to 50 times the other"),
        ((10_001, 10_000), "is 10001 x 10000 pixels"),
        ((65_535, 65_535), "is damaged or not a picture .*exceeds limit"),
    ],
)
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, sides: tuple[int, int], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg_of(*sides))
    monkeypatch.setattr("cv2.imdecode", None)
    with pytest.raises(TaskError, match=f"photo.jpg .*{wrong}"):
        read_photo(photo)


def test_a_wide_photo_and_a_large_one_are_read(tmp_path: Path) -> None:
    for size in ((500, 10), (10, 500), (6_000, 4_000)):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "photo.jpg")
        assert read_photo(tmp_path / "photo.jpg").shape == (size[1], size[0], 3)


def test_lists_of_no_sense_are_named(tmp_path: Path) -> None:
    options = write(tmp_path / "data", 1)
    for line, wrong in (
        (f"a.jpg {'9' * 5000}", "line 1 has class 99999"),
        (f"{'a' * 300} 1", "are missing, first"),
    ):
        (tmp_path / "data" / "val_map.txt").write_text(line)
        with pytest.raises(TaskError) as caught:
            open_task("imagenet", options).prepare(tmp_path / "cache")
        assert wrong in str(caught.value) and len(str(caught.value)) < 400
