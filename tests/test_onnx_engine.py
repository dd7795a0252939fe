"""The onnx engine: small ONNX files with the reference's names, against the same sums done by hand."""

from __future__ import annotations

import hashlib
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


@pytest.mark.parametrize("size", [1, 3])
def test_a_file_for_batches_of_one_size_says_so(tmp_path: Path, weights: np.ndarray, size: int) -> None:
    file = classifier(tmp_path / "fixed.onnx", weights, batch=size)
    message = rf"fixed.onnx takes batches of {size} at most, not 4; set workers.max_batch: {size}"
    with pytest.raises(BackendError, match=message):
        opened(file).load()
    assert [size for size, _ in loaded(opened(file, max_batch=1)).warm_up()] == [1]


def test_smaller_batches_are_filled_up_for_a_file_of_one_size(
    tmp_path: Path, weights: np.ndarray, rng: np.random.Generator
) -> None:
    given = photos(rng, 4)
    fixed = loaded(opened(classifier(tmp_path / "fixed.onnx", weights, batch=4)))
    free = loaded(opened(classifier(tmp_path / "free.onnx", weights)))
    assert [size for size, _ in fixed.warm_up()] == [1, 2, 4]
    for count in (4, 1, 3):
        expected, found = answers(free, given[:count]), answers(fixed, given[:count])
        assert len(found) == count and found.tolist() == expected.tolist()


def answers(backend: Backend, given: np.ndarray) -> np.ndarray:
    backend.submit(Batch(np.arange(len(given)), [memoryview(p).cast("B") for p in given], None))
    (done,) = wait(backend)
    return done.responses.blob.view("<f4")


@pytest.mark.parametrize("kind", ["doubled", "averaged"])
def test_a_file_that_does_not_answer_every_sample_is_refused(
    tmp_path: Path, weights: np.ndarray, kind: str
) -> None:
    made = onnx.helper.make_node
    last = {
        "doubled": made("Concat", ["scores", "scores"], ["softmax_tensor:0"], axis=0),
        "averaged": made("ReduceMean", ["scores"], ["softmax_tensor:0"], axes=[0], keepdims=1),
    }[kind]
    real = onnx.TensorProto.FLOAT
    file = save(
        tmp_path / "odd.onnx",
        [
            made("ReduceMean", ["input_tensor:0"], ["means"], axes=[2, 3], keepdims=0),
            made("MatMul", ["means", "weights"], ["scores"]),
            last,
        ],
        [onnx.helper.make_tensor_value_info("input_tensor:0", real, ["n", 3, SIDE, SIDE])],
        [onnx.helper.make_tensor_value_info("softmax_tensor:0", real, None)],
        {"weights": weights.astype(np.float32)},
    )
    with pytest.raises(BackendError, match=r"odd.onnx does not answer a batch of \d samples one by one"):
        loaded(opened(file)).warm_up()


def with_tensors_beside(folder: Path, weights: np.ndarray) -> Path:
    """The classifier with its weights in the file w.bin beside it."""
    model = onnx.load(str(classifier(folder / "inside.onnx", weights)))
    file = folder / "model.onnx"
    onnx.save_model(model, str(file), save_as_external_data=True, location="w.bin", size_threshold=0)
    return file


def test_tensors_in_other_files_are_part_of_the_hash(tmp_path: Path, weights: np.ndarray) -> None:
    file = with_tensors_beside(tmp_path, weights)
    assert b"w.bin" in file.read_bytes()
    first = opened(file).load()["model_hash"]
    parts = [(hashlib.sha256((tmp_path / name).read_bytes()), name) for name in ("model.onnx", "w.bin")]
    lines = "".join(f"{part.hexdigest()}  {name}\n" for part, name in parts)  # as sha256sum writes them
    assert first == hashlib.sha256(lines.encode()).hexdigest()
    assert opened(file, weights_sha256=first).load()["weights_sha256"] == first
    (tmp_path / "w.bin").write_bytes((2 * weights).astype(np.float32).tobytes())
    assert opened(file).load()["model_hash"] != first
    with pytest.raises(
        BackendError, match=r"has sha256 \w{64} \(`sha256sum model.onnx w.bin \| sha256sum`\), not"
    ):
        opened(file, weights_sha256=first).load()


def test_tensors_outside_of_the_files_folder_are_refused(tmp_path: Path, weights: np.ndarray) -> None:
    (tmp_path / "inner").mkdir()
    file = with_tensors_beside(tmp_path, weights)
    for moved, place in ((tmp_path / "inner" / "m.onnx", b"w.bin"), (tmp_path / "m.onnx", b"/a.in")):
        moved.write_bytes(file.read_bytes().replace(b"w.bin", place))
        with pytest.raises(BackendError, match="which is no file beside it; bring all files"):
            opened(moved).load()


def test_tensors_in_other_files_are_found_wherever_they_stand(tmp_path: Path) -> None:
    from workers.backends.weight_files import onnx_files

    def tensor(place: str) -> Any:
        made = onnx.TensorProto(name="t", data_type=1, data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=place)
        (tmp_path / place).touch()
        return made

    helper = onnx.helper
    inner = helper.make_graph([], "inner", [], [], [tensor("of_branch")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("of_constant")),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, more=[tensor("of_list")]),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [tensor("of_graph")])
    graph.sparse_initializer.add(values=tensor("of_sparse"), indices=tensor("of_places"))
    function = helper.make_function("d", "F", [], ["c"], [nodes[0]], [helper.make_opsetid("", 13)])
    function.node[0].attribute[0].t.external_data[1].value = "of_function"
    (tmp_path / "of_function").touch()
    model = helper.make_model(graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    parts = ["branch", "constant", "function", "graph", "list", "places", "sparse"]
    assert sorted(onnx_files(tmp_path / "m.onnx")) == ["m.onnx", *(f"of_{part}" for part in parts)]


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
        (lambda path, w: path.write_bytes(b"") or path, {}, "no ONNX file that loads"),
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
