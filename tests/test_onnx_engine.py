"""The onnx engine: small ONNX files with the reference's names, against the same sums done by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.drive_backend import wait
from workers.backends import Backend, BackendError, Batch, open_backend
from workers.tasks import open_task

onnx = pytest.importorskip("onnx", reason="onnx, which writes the test's files, is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

TIME_BUDGET_S = 25
CLASSES = 1001  # the file of the reference counts a background class
SIDE = 224


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], arrays: dict[str, Any]) -> Path:
    """An ONNX file of these nodes, of a version that every onnxruntime of the last years reads."""
    constants = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "made", inputs, outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def classifier(path: Path, weights: np.ndarray, batch: int | str = "n", name: str = "input_tensor:0") -> Path:
    """Channel means times `weights` (3, 1001), named as resnet50_v1.onnx is."""
    kind = onnx.TensorProto
    return save(
        path,
        [
            onnx.helper.make_node("ReduceMean", [name], ["means"], axes=[2, 3], keepdims=0),
            onnx.helper.make_node("MatMul", ["means", "weights"], ["softmax_tensor:0"]),
            onnx.helper.make_node("ArgMax", ["softmax_tensor:0"], ["ArgMax:0"], axis=1, keepdims=0),
        ],
        [onnx.helper.make_tensor_value_info(name, kind.FLOAT, [batch, 3, SIDE, SIDE])],
        [
            onnx.helper.make_tensor_value_info("ArgMax:0", kind.INT64, [batch]),
            onnx.helper.make_tensor_value_info("softmax_tensor:0", kind.FLOAT, [batch, CLASSES]),
        ],
        {"weights": weights.astype(np.float32)},
    )


@pytest.fixture
def weights(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((3, CLASSES))


def opened(file: Path, max_batch: int = 4, **more: Any) -> Backend:
    task = open_task("imagenet", {"generated": 8, "preprocess": "vgg"})
    options = {"engine": "onnx", "weights": str(file), "threads": 1, **more}
    return open_backend(options, task, max_batch)


def photos(rng: np.random.Generator, count: int) -> np.ndarray:
    """Each photo of a colour of its own, so that their labels differ."""
    colours = rng.integers(0, 256, (count, 1, 1, 3), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours, (count, SIDE, SIDE, 3)))


def test_photos_get_the_label_that_the_file_says(
    tmp_path: Path, weights: np.ndarray, rng: np.random.Generator
) -> None:
    backend = opened(classifier(tmp_path / "resnet50_v1.onnx", weights))
    facts = backend.load()
    assert [size for size, _ in backend.warm_up()] == [1, 2, 4]
    given = photos(rng, 3)
    backend.submit(Batch(np.arange(3), [memoryview(p).cast("B") for p in given], "ticket"))
    (done,) = wait(backend)
    means = given.mean((1, 2)) - np.array([123.68, 116.78, 103.94])  # vgg's, as the reference subtracts them
    expected = (means @ weights).argmax(1) - 1
    assert done.responses.blob.view("<f4").tolist() == expected.tolist()
    assert done.batch.ticket == "ticket" and done.started_ns <= done.computed_ns <= time.monotonic_ns()
    assert facts["model"] == "resnet50_v1" and facts["device"] == "cpu" and len(facts["model_hash"]) == 64
    backend.close()


def test_a_file_for_one_sample_at_a_time_says_so(tmp_path: Path, weights: np.ndarray) -> None:
    file = classifier(tmp_path / "one.onnx", weights, batch=1)
    with pytest.raises(BackendError, match=r"batches of 1 and no other; set workers.max_batch: 1"):
        opened(file).load()
    assert [size for size, _ in loaded(opened(file, max_batch=1)).warm_up()] == [1]


def loaded(backend: Backend) -> Backend:
    backend.load()
    return backend


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (
            lambda path, w: classifier(path, w, name="other"),
            {},
            "takes other, but task 'imagenet' gives",
        ),
        (lambda path, w: path.write_bytes(b"no model") and path, {}, "no ONNX file that loads"),
        (lambda path, w: path, {}, "cannot be read"),
        (classifier, {"weights_sha256": "0" * 64}, "not backend.weights_sha256"),
        (classifier, {"threads": -1}, "must not be negative"),
        (classifier, {"device": "tpu"}, "one of cpu, cuda"),
    ],
)
def test_what_cannot_be_used_is_explained(
    tmp_path: Path,
    weights: np.ndarray,
    make: Callable[[Path, np.ndarray], Path],
    more: dict[str, Any],
    message: str,
) -> None:
    file = make(tmp_path / "x.onnx", weights)
    with pytest.raises(BackendError, match=message):
        loaded(opened(file, **more)).warm_up()


def test_a_task_whose_reference_has_no_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot feed an ONNX file"):
        open_backend({"engine": "onnx", "weights": "x.onnx"}, open_task("librispeech", {"generated": 4}), 2)


def test_questions_are_padded_for_the_file_and_answered_at_full_length(tmp_path: Path) -> None:
    kind, names = onnx.TensorProto, ["input_ids", "input_mask", "segment_ids"]
    cast = [onnx.helper.make_node("Cast", [n], [f"{n}_f"], to=kind.FLOAT) for n in names]
    file = save(
        tmp_path / "model.onnx",
        [
            *cast,
            onnx.helper.make_node("Mul", ["input_ids_f", "input_mask_f"], ["output_start_logits"]),
            onnx.helper.make_node("Add", ["segment_ids_f", "input_mask_f"], ["output_end_logits"]),
        ],
        [onnx.helper.make_tensor_value_info(n, kind.INT64, ["n", 384]) for n in names],
        [
            onnx.helper.make_tensor_value_info(n, kind.FLOAT, ["n", 384])
            for n in ("output_start_logits", "output_end_logits")
        ],
        {},
    )
    task = open_task("squad", {"generated": 4})
    backend = open_backend({"engine": "onnx", "weights": str(file), "threads": 1}, task, 4)
    backend.load()
    samples = task.warm_up_samples(3)
    backend.submit(Batch(np.arange(3), samples, None))
    (done,) = wait(backend)
    logits = done.responses.blob.view("<f4").reshape(3, 384, 2)
    for sample, found in zip(samples, logits, strict=True):
        ids, mask, segments = np.frombuffer(sample, np.int32).reshape(3, 384)
        n = int(mask.sum())
        assert (found[:n, 0] == ids[:n]).all() and (found[:n, 1] == segments[:n] + 1).all()
        assert (found[n:] == -10000).all()
    backend.close()
