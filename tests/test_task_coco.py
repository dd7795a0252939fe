"""COCO for the two SSD networks: order, pixels, detections to response bytes, and what a bad folder says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.made_coco import CATEGORY_IDS, write
from workers.library import Library
from workers.tasks import TaskError, open_task
from workers.tasks.photos import read_photo

TIME_BUDGET_S = 20


def float32(numbers: Any) -> np.ndarray:
    return np.array(numbers, np.float32)


def sample_of(library: Library, index: int) -> memoryview:
    library.load(np.array([index]))
    return library.samples(np.array([index]))[0]


def annotations_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    return found


def test_samples_and_truth_are_in_the_order_of_the_annotations(tmp_path: Path) -> None:
    library = open_task("coco-300", write(tmp_path / "data", 6, seed=1)).prepare(tmp_path / "cache")
    listed = annotations_of(tmp_path / "data")["images"]
    ids = [one["id"] for one in listed]
    assert ids != sorted(ids)
    truth = json.loads(library.array("truth").tobytes())
    assert [one["id"] for one in truth["images"]] == ids
    assert [one["id"] for one in truth["categories"]] == CATEGORY_IDS
    for i, one in enumerate(listed):
        photo = read_photo(tmp_path / "data" / "val2017" / one["file_name"]).astype(np.float32)
        pixels = cv2.resize(photo, (300, 300), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        assert sample_of(library, i) == memoryview(pixels.tobytes())
    assert library.meta["scorer"] == "coco" and library.meta["use_inv_map"] is False


def test_a_photo_without_a_box_is_kept(tmp_path: Path) -> None:
    """accuracy-coco.py counts photos by the annotations' list, in which COCO's 48 empty ones stand too."""
    library = open_task("coco-300", write(tmp_path / "data", 3)).prepare(tmp_path / "cache")
    truth = json.loads(library.array("truth").tobytes())
    boxed = {one["image_id"] for one in truth["annotations"]}
    assert library.count == 3 and truth["images"][1]["id"] not in boxed


def test_float32_samples_are_normalised_as_the_reference_does_it(tmp_path: Path) -> None:
    options = write(tmp_path / "data", 1)
    whole = open_task("coco-1200", options | {"dtype": "float32"}).prepare(tmp_path / "cache")
    bytes_ = open_task("coco-1200", options).prepare(tmp_path / "cache")
    name = annotations_of(tmp_path / "data")["images"][0]["file_name"]
    photo: Any = cv2.imread(str(tmp_path / "data" / "val2017" / name))
    resized = cv2.resize(cv2.cvtColor(float32(photo), cv2.COLOR_BGR2RGB), (1200, 1200))
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    expected = ((resized / 255.0 - mean) / std).transpose(2, 0, 1)
    found = np.frombuffer(sample_of(whole, 0), np.float32).reshape(3, 1200, 1200)
    assert (found == expected).all() and whole.meta["input"]["layout"] == "NCHW"
    pixels = np.frombuffer(sample_of(bytes_, 0), np.uint8).reshape(1200, 1200, 3)
    assert (pixels == cv2.resize(photo, (1200, 1200))[:, :, ::-1]).all()
    assert np.abs(pixels - resized).max() < 0.8 and whole.meta["use_inv_map"] is True


def test_detections_become_rows_with_the_samples_own_index() -> None:
    task = open_task("coco-300", {"path": "x"})
    outputs = np.full((3, 4, 6), -1, np.float32)
    outputs[0, 1] = [0.1, 0.2, 0.3, 0.4, 0.9, 17]
    outputs[2, 0] = [0, 0, 1, 1, 0, 90]
    outputs[2, 3] = [0.5, 0.5, 0.75, 1, 0.25, 1]
    answered = task.respond(outputs, np.array([4999, 7, 0]))
    assert answered.sizes is not None and answered.sizes.tolist() == [28, 0, 56]
    rows = answered.blob.view("<f4").reshape(-1, 7)
    assert rows[0].tolist() == [4999, *float32([0.1, 0.2, 0.3, 0.4, 0.9, 17])]
    assert rows[1:].tolist() == [[0, 0, 0, 1, 1, 0, 90], [0, 0.5, 0.5, 0.75, 1, 0.25, 1]]


def test_photos_without_any_detection_are_answered_with_nothing() -> None:
    answered = open_task("coco-1200", {"path": "x"}).respond(np.full((2, 3, 6), -1, np.float32), np.arange(2))
    assert answered.sizes is not None and answered.sizes.tolist() == [0, 0] and answered.blob.size == 0


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("coco-300", {}, (300, 300, 3)),
        ("coco-1200", {}, (1200, 1200, 3)),
        ("coco-1200", {"dtype": "float32"}, (3, 1200, 1200)),
        ("coco-1200", {"image_size": 400}, (400, 400, 3)),
    ],
)
def test_generated_and_warm_up_samples_have_the_true_size(
    name: str, options: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    task = open_task(name, {"generated": 2, **options})
    library = task.prepare(tmp_path)
    rows = task.collate([sample_of(library, 0), sample_of(library, 1)])
    assert rows.shape == (2, *shape) and rows.std() > 1 and (rows[0] != rows[1]).mean() > 0.9
    assert library.meta["generated"] is True and "scorer" not in library.meta
    out = np.zeros((2, *shape), rows.dtype)
    warm = task.collate(task.warm_up_samples(1), out)
    assert np.shares_memory(warm, out) and out[0].std() > 1 and not out[1].any()
    assert not task.ragged


def test_calibration_photos_come_from_the_training_set(tmp_path: Path) -> None:
    options = write(tmp_path / "data", 2)
    (tmp_path / "data" / "val2017").rename(tmp_path / "data" / "train2017")
    names = sorted(file.name for file in (tmp_path / "data" / "train2017").iterdir())
    (tmp_path / "list.txt").write_text("\n".join(names[::-1]))
    task: Any = open_task("coco-300", options | {"calibration": str(tmp_path / "list.txt")})
    library = task.prepare(tmp_path / "cache")
    first = task.prepared(read_photo(tmp_path / "data" / "train2017" / names[-1]))
    assert sample_of(library, 0) == memoryview(first.tobytes()) and "scorer" not in library.meta


def test_the_mobilenet_onnx_file_takes_the_sample_as_it_is() -> None:
    task: Any = open_task("coco-300", {"path": "x"})
    rows = np.zeros((2, 300, 300, 3), np.uint8)
    assert task.onnx_inputs(rows, np.ones(2, np.int64))["image_tensor:0"] is rows
    outputs = {
        "num_detections:0": np.array([1, 0], np.float32),
        "detection_boxes:0": np.tile(float32([0.1, 0.2, 0.3, 0.4]), (2, 2, 1)),
        "detection_scores:0": np.array([[0.9, 0.8], [0.7, 0.6]], np.float32),
        "detection_classes:0": np.array([[18, 1], [1, 1]], np.float32),
    }
    found, counts = task.onnx_outputs(outputs, np.ones(2, np.int64))
    assert counts is None and found.shape == (2, 2, 6) and found.dtype == np.float32
    assert found[0, 0].tolist() == list(float32([0.1, 0.2, 0.3, 0.4, 0.9, 18]))
    assert (found[:, :, 4] < 0).tolist() == [[False, True], [True, True]]


def test_the_resnet34_onnx_file_is_fed_normalised_and_gives_left_top_right_bottom() -> None:
    task: Any = open_task("coco-1200", {"path": "x"})
    fed = task.onnx_inputs(np.full((1, 1200, 1200, 3), 255, np.uint8), np.ones(1, np.int64))["image"]
    assert fed.shape == (1, 3, 1200, 1200) and fed.dtype == np.float32
    assert np.allclose(fed[0, 0, 0, 0], (1 - 0.485) / 0.229, rtol=1e-6)
    ready = np.zeros((1, 3, 1200, 1200), np.float32)
    assert task.onnx_inputs(ready, np.ones(1, np.int64))["image"] is ready
    outputs = {
        "bboxes": float32([[[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]]),
        "labels": np.array([[80, 3]]),
        "scores": float32([[0.06, 0.04]]),
    }
    found, _ = task.onnx_outputs(outputs, np.ones(1, np.int64))
    assert found[0, 0].tolist() == list(float32([0.2, 0.1, 0.4, 0.3, 0.06, 80])) and found[0, 1, 4] < 0


def test_bad_options_are_explained() -> None:
    for options, message in (
        ({}, "set task.path to the data set"),
        ({"path": "x", "dtype": "float16"}, "dtype is one of uint8, float32"),
        ({"path": "x", "dtype": 8}, "option 'dtype' must be str"),
        ({"path": "x", "generated": 1}, "(not both)"),
        ({"path": "x", "image_size": 1201}, "image_size must be 1 to 1200 pixels, not 1201"),
    ):
        with pytest.raises(TaskError) as caught:
            open_task("coco-1200", dict(options))
        assert message in str(caught.value)


def test_a_bad_data_set_is_explained_before_anything_is_prepared(tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = write(data, 3)
    listing = data / "annotations" / "instances_val2017.json"
    whole = annotations_of(data)
    photo = data / "val2017" / whole["images"][0]["file_name"]

    def why(**more: Any) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("coco-300", options | more).prepare(tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*/library.json"))
        return str(caught.value)

    assert "it lists 3 photos, the manifest says 5000" in why(count=5000)
    photo.write_bytes(photo.read_bytes()[:500])
    assert f"{photo} is damaged or not a picture" in why()
    photo.unlink()
    assert f"1 of 3 photos that {listing} lists are missing, first {photo}" in why()
    for change, wrong in (
        ({"images": []}, "its list 'images' is empty"),
        ({"annotations": []}, "its list 'annotations' is empty"),
        ({"images": whole["images"][:1] * 2}, "two photos have the same id"),
        ({"images": [{"id": 1}]}, "an entry is damaged (KeyError: 'height')"),
        ({"categories": None}, "an entry is damaged (TypeError"),
        ({"images": [{**whole["images"][0], "file_name": "/etc/passwd"}]}, "lies outside of"),
    ):
        listing.write_text(json.dumps(whole | change))
        assert wrong in why()
    for text in ("{", "[]", ""):
        listing.write_text(text)
        assert "JSON" in why() or "an entry is damaged" in why()
    listing.unlink()
    assert "instances_val2017.json is missing: it lists the photos and their boxes" in why()


HUGE = "9" * 400
DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("field", "text", "wrong"),
    [
        ('"height": 64', '"height": 1e999', "height is no finite number"),
        ('"height": 64', f'"height": {HUGE}', "height is no finite number"),
        ('"height": 64', '"height": 1e300', "height is 1e+300"),
        ('"area": 1.0', f'"area": {HUGE}', "area is no finite number"),
        ('"area": 1.0', f'"area": {"9" * 5000}', "JSON"),
        ('"area": 1.0', '"area": NaN', "area is no finite number"),
        ('"bbox": [0', '"bbox": [1e999', "bbox is no finite number"),
        ('"file_name": "a.jpg"', '"file_name": 5', "a file_name is no text"),
        ('"file_name": "a.jpg"', f'"file_name": "{"a" * 300}"', "are missing, first"),
        ('"file_name": "a.jpg"', r'"file_name": "a\u0000"', "are missing, first"),
        ('{"images"', f'{{"info": {DEEP}, "images"', "nested too deep"),
    ],
)
def test_annotations_of_no_sense_are_named(tmp_path: Path, field: str, text: str, wrong: str) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1.0}
    image = {"id": 1, "height": 64, "width": 64, "file_name": "a.jpg"}
    whole = json.dumps({"images": [image], "categories": [{"id": 1, "name": "x"}], "annotations": [box]})
    assert field in whole
    write(tmp_path, 1)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(whole.replace(field, text))
    with pytest.raises(TaskError) as caught:
        open_task("coco-300", {"path": str(tmp_path)}).prepare(tmp_path / "cache")
    assert wrong in str(caught.value) and "instances_val2017.json" in str(caught.value)
    assert len(str(caught.value)) < 500
