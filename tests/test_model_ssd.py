"""The detection networks: published names and shapes, anchors, detections, folding, layouts, checkpoints."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workers.backends import BackendError
from workers.backends.torch_network import TorchOptions, load_network
from workers.backends.torch_weights import load_weights
from workers.models import ModelError, open_model
from workers.models.pickled_module import MAGIC, VERSION, read_state
from workers.models.ssd_mobilenet import SsdMobilenet
from workers.models.ssd_resnet34 import SMALLEST_IMAGE, SsdResnet34, anchors, grid_sizes

TIME_BUDGET_S = 30
NAMES = ("ssd-mobilenet", "ssd-resnet34")
UNUSED = [0, 0, 0, 0, -1, 0]


def conv(name: str, outputs: int, inputs: int, kernel: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs, kernel, kernel)}
    return {**weight, f"{name}.bias": (outputs,)} if bias else weight


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts: dict[str, tuple[int, ...]] = {
        f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {**parts, f"{name}.num_batches_tracked": ()}


def published_resnet34() -> dict[str, tuple[int, ...]]:
    """As SSD_R34 of the reference's ssd_r34.py names them over torchvision's resnet34."""
    shapes = conv("model.layer1.0", 64, 3, 7, bias=False) | norm("model.layer1.1", 64)
    for stage, blocks, inputs, outputs in (
        ("model.layer1.4", 3, 64, 64),
        ("model.layer1.5", 4, 64, 128),
        ("model.layer2.0", 6, 128, 256),
    ):
        for i in range(blocks):
            block = f"{stage}.{i}"
            shapes |= conv(f"{block}.conv1", outputs, outputs if i else inputs, 3, bias=False)
            shapes |= conv(f"{block}.conv2", outputs, outputs, 3, bias=False)
            shapes |= norm(f"{block}.bn1", outputs) | norm(f"{block}.bn2", outputs)
        if inputs != outputs:
            shapes |= conv(f"{stage}.0.downsample.0", outputs, inputs, 1, bias=False)
            shapes |= norm(f"{stage}.0.downsample.1", outputs)
    widths = (256, 512, 512, 256, 256, 256)
    for i, inner in enumerate((256, 256, 128, 128, 128)):
        shapes |= conv(f"additional_blocks.{i}.0", inner, widths[i], 1)
        shapes |= conv(f"additional_blocks.{i}.2", widths[i + 1], inner, 3)
    for i, defaults in enumerate((4, 6, 6, 6, 4, 4)):
        shapes |= conv(f"loc.{i}", 4 * defaults, widths[i], 3)
        shapes |= conv(f"conf.{i}", 81 * defaults, widths[i], 3)
    return shapes


def published_mobilenet() -> dict[str, tuple[int, ...]]:
    """As SSD of the reference's ssd_mobilenet_v1.py names them."""
    shapes = conv("backbone.0.0", 32, 3, 3, bias=False) | {"backbone.0.0/BatchNorm.bias": (32,)}
    widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for i in range(1, 14):
        layer, inputs, outputs = f"backbone.{i}", widths[i - 1], widths[i]
        shapes |= conv(f"{layer}.depthwise", inputs, 1, 3, bias=False)
        shapes |= {f"{layer}.depthwise/BatchNorm.{part}": (inputs,) for part in ("scale", "bias")}
        shapes |= conv(f"{layer}.pointwise", outputs, inputs, 1, bias=False)
        shapes |= {f"{layer}.pointwise/BatchNorm.bias": (outputs,)}
    for i, (inputs, inner, outputs) in enumerate(
        ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
    ):
        shapes |= conv(f"extras.{i}.0", inner, inputs, 1) | conv(f"extras.{i}.2", outputs, inner, 3)
    for i, (inputs, defaults) in enumerate(((512, 3), (1024, 6), (512, 6), (256, 6), (256, 6), (128, 6))):
        shapes |= conv(f"predictors.{i}.classification", 91 * defaults, inputs, 1)
        shapes |= conv(f"predictors.{i}.regression", 4 * defaults, inputs, 1)
    return shapes


@pytest.mark.parametrize(
    ("name", "published", "entries", "numbers"),
    [
        ("ssd-mobilenet", published_mobilenet, 107, 6_812_127),
        ("ssd-resnet34", published_resnet34, 218, 19_982_419),
    ],
)
def test_names_and_shapes_of_the_published_checkpoint_load_strictly(
    name: str, published: Any, entries: int, numbers: int
) -> None:
    shapes = published()
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert len(state) == entries
    assert sum(tensor.numel() for tensor in state.values()) == numbers
    with torch.device("meta"):
        module = open_model(name, {})
    module.load_state_dict(state, strict=True, assign=True)
    missing = dict(state)
    missing.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(missing, strict=True, assign=True)


# Anchors


def test_resnet34_has_15130_anchors_where_the_reference_has_them() -> None:
    assert grid_sizes(1200) == [50, 25, 13, 7, 3, 3]
    found = anchors(1200)
    assert found.shape == (4, 15130) and found.dtype == torch.float32
    # x, y, w, h; columns run first, then rows, then the shapes of one grid. Printed by the reference.
    for at, box in (
        (0, (0.01, 0.01, 0.07, 0.07)),
        (1, (0.03, 0.01, 0.07, 0.07)),
        (2500, (0.01, 0.01, 0.10246951, 0.10246951)),
        (5000, (0.01, 0.01, 0.09899495, 0.04949747)),
        (7500, (0.01, 0.01, 0.04949747, 0.09899495)),
        (10000, (0.02, 0.02, 0.15, 0.15)),
        (15129, (0.83333333, 0.83333333, 0.61518289, 1.0)),
    ):
        assert found[:, at].tolist() == pytest.approx(box, abs=1e-6), at


def test_mobilenet_has_1917_anchors_where_the_reference_has_them() -> None:
    found = open_model("ssd-mobilenet", {}).anchors.values
    assert found.shape == (4, 1917) and found.dtype == torch.float32
    # y, x, h, w; shapes of a cell run first, then columns, then rows.
    for at, box in (
        (0, (0.5 / 19, 0.5 / 19, 0.1, 0.1)),
        (1, (0.5 / 19, 0.5 / 19, 0.14142136, 0.28284271)),
        (3, (0.5 / 19, 1.5 / 19, 0.1, 0.1)),
        (1083, (0.05, 0.05, 0.35, 0.35)),
        (1086, (0.05, 0.05, 0.20207259, 0.60621778)),
        (1088, (0.05, 0.05, 0.41833001, 0.41833001)),
        (1916, (0.5, 0.5, 0.97467943, 0.97467943)),
    ):
        assert found[:, at].tolist() == pytest.approx(box, abs=1e-6), at


# Networks


def seeded(name: str, channels_last: bool = False) -> Any:
    """Norms that are not the identity, so that folding them matters."""
    torch.manual_seed(3)
    options = {"image_size": SMALLEST_IMAGE} if name == "ssd-resnet34" else {}
    module = open_model(name, options, channels_last).eval().requires_grad_(False)
    for key, value in module.state_dict().items():
        if key.endswith(("scale", "running_var")):
            value.uniform_(0.75, 1.25)
        elif key.endswith(("bias", "running_mean")):
            value.normal_(0, 0.05)
    return module


def photos(name: str, count: int) -> torch.Tensor:
    side = SMALLEST_IMAGE if name == "ssd-resnet34" else 300
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_folding_and_channels_last_change_nothing_beyond_rounding(name: str) -> None:
    module, batch = seeded(name), photos(name, 1)
    expected = module.predict(batch)
    assert [len(y.shape) for y in expected] == [3, 3]
    folded = seeded(name, channels_last=True)
    folded.fold()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    folded.to(memory_format=torch.channels_last)
    for found, wanted in zip(folded.predict(batch), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_resnet34_takes_bytes_or_normalised_numbers() -> None:
    module, batch = seeded("ssd-resnet34"), photos("ssd-resnet34", 1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((batch / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(module._normalised(batch), normalised, rtol=1e-5, atol=1e-6)
    assert module._normalised(normalised) is normalised


def test_resnet34_says_which_image_sizes_it_can_have() -> None:
    assert min(grid_sizes(SMALLEST_IMAGE)) == 1 and min(grid_sizes(SMALLEST_IMAGE - 1)) < 1
    with pytest.raises(ModelError, match="image_size must be a number of pixels from 385 up"):
        open_model("ssd-resnet34", {"image_size": 300})
    with pytest.raises(ModelError, match="candidates must be a number from 1 to 172530"):
        open_model("ssd-mobilenet", {"candidates": 0})


def test_a_converted_network_keeps_its_anchors_and_rows_in_float32() -> None:
    options = TorchOptions(model="ssd-mobilenet", precision="bf16", channels_last=True)
    network = load_network(options, {"model": "ssd-mobilenet"}, 1)
    module: Any = network._module
    assert module.anchors.values.dtype is torch.float32
    assert next(module.parameters()).dtype is torch.bfloat16
    with torch.inference_mode():
        rows = network(photos("ssd-mobilenet", 2))
    assert rows.dtype is torch.float32 and rows.shape == (2, 100, 6)


def test_compiling_leaves_the_steps_of_suppression_out_and_changes_nothing() -> None:
    """The backend "eager" traces as the real one does, and needs no compiler."""
    seen: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(len(graph.graph.nodes))
        return graph.forward

    for name in NAMES:
        module: Any = open_model(name, {})
        codes, logits = outputs(name)
        expected = module.detect(codes, logits)
        module.compile(backend=backend, dynamic=False)
        assert torch.equal(module.detect(codes, logits), expected)
    assert seen and max(seen) < 60  # two hundred steps are more


def outputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random codes and logits with many candidates."""
    generator = torch.Generator().manual_seed(7)
    sizes = ((1, 1917, 4), (1, 1917, 91)) if name == "ssd-mobilenet" else ((1, 4, 15130), (1, 81, 15130))
    codes, logits = (torch.randn(size, generator=generator) for size in sizes)
    return codes, 3 * logits


# Checkpoints that hold a whole module


@pytest.fixture
def reference_classes() -> Iterator[dict[str, Any]]:
    """Classes where the reference has them, as far as a pickle needs them."""
    modules = {name: types.ModuleType(name) for name in ("models", "models.ssd_mobilenet_v1", "models.evil")}
    classes: dict[str, Any] = {}
    for module, name in (("models.ssd_mobilenet_v1", "SSD"), ("models.evil", "Other")):
        made = type(name, (nn.Module,), {"__module__": module})
        setattr(modules[module], name, made)
        classes[name] = made
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    yield classes
    for name, module_before in before.items():
        if module_before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module_before


def pickled_whole(made: Any, file: Path) -> nn.Module:
    """A small module of that class, saved in the format of the published files."""
    whole: nn.Module = made()
    whole.backbone = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6())])
    whole.priors = torch.zeros(3)  # neither parameter nor buffer: not part of the state
    with pytest.warns(UserWarning, match="retrieve source code"):
        torch.save(whole, file, _use_new_zipfile_serialization=False)
    return whole


def test_a_module_that_was_pickled_whole_gives_its_state_and_runs_nothing(
    tmp_path: Path, reference_classes: dict[str, Any]
) -> None:
    file = tmp_path / "ssd.pytorch"
    whole = pickled_whole(reference_classes["SSD"], file)
    state = read_state(file, SsdMobilenet.published_classes)
    assert list(state) == list(whole.state_dict())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(state[name], tensor)
    pickled_whole(reference_classes["Other"], file)
    with pytest.raises(Exception, match="it names models.evil.Other"):
        read_state(file, SsdMobilenet.published_classes)


def whole_module(program: bytes, file: Path) -> Path:
    """A file of the published files' format around the pickle of a module, without storages."""
    head: tuple[Any, ...] = (MAGIC, VERSION, {})
    parts = [pickle.dumps(part, 2) for part in head]
    file.write_bytes(b"".join([*parts, b"\x80\x02" + program + b".", pickle.dumps([], 2)]))
    return file


def module_of(**inside: int) -> bytes:
    """The opcodes of a module that holds those at these places of the memo."""

    def text(word: str) -> bytes:
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    held = b"".join(text(name) + b"h" + bytes([place]) for name, place in inside.items())
    tables = text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules") + b"}(" + held + b"u"
    return b"ctorch.nn.modules.container\nSequential\n)\x81}(" + tables + b"ub"


def test_modules_that_hold_each_other_are_not_followed_for_ever(tmp_path: Path) -> None:
    doubled = module_of() + b"q\x00"  # 2^40 ways to the innermost
    for place in range(40):
        doubled += module_of(a=place, b=place) + b"q" + bytes([place + 1])
    itself = module_of(a=0).replace(b")\x81", b")\x81q\x00")
    for program in (doubled, itself):
        with pytest.raises(Exception, match="hold each other in a circle, or far too often"):
            read_state(whole_module(program, tmp_path / "ssd.pytorch"), ())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"]r\x00\x00\x00\x20", "remembers an object at place 536870912"),
        (b"X\xff\xff\xff\x7f", "announces 2147483647 bytes where"),
        (
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NJ\xff\xff\xff\x7fNtQ",
            "longer storages",
        ),
        (b"ctorch._utils\n_rebuild_parameter\n}X\x01\x00\x00\x00aNsb", "gives a function a state"),
    ],
)
def test_a_file_that_asks_for_more_than_it_brings_is_refused(
    tmp_path: Path, program: bytes, message: str
) -> None:
    with pytest.raises(Exception, match=message):
        read_state(whole_module(program, tmp_path / "ssd.pytorch"), ())


def test_the_engine_loads_either_kind_of_file_and_names_a_damaged_one(tmp_path: Path) -> None:
    ours = seeded("ssd-mobilenet")
    file = tmp_path / "ssd.pytorch"
    for zipped in (True, False):
        torch.save(ours.state_dict(), file, _use_new_zipfile_serialization=zipped)
        other = open_model("ssd-mobilenet", {})
        load_weights(other, str(file), "")
        assert torch.equal(other.backbone[3][0].weight, ours.backbone[3][0].weight)
    for damaged in (file.read_bytes()[:-100], file.read_bytes()[:1000], b"\x80\x02}q\x00."):
        file.write_bytes(damaged)
        with pytest.raises(BackendError, match=r"ssd\.pytorch does not load safely"):
            load_weights(other, str(file), "")


def test_the_classes_of_published_files_are_named_in_full() -> None:
    for module in (SsdMobilenet, SsdResnet34):
        assert all(name.count(".") >= 2 for name in module.published_classes)


def test_rows_that_are_not_used_have_the_score_minus_one() -> None:
    for name, shape in (("ssd-mobilenet", ((2, 1917, 4), (2, 1917, 91))), ("ssd-resnet34", None)):
        module: Any = open_model(name, {})
        codes, logits = (torch.zeros(s) for s in shape or ((2, 4, 15130), (2, 81, 15130)))
        if shape:
            logits -= 5
        rows = module.detect(codes, logits).numpy()
        assert rows.shape == (2, 100 if shape else 200, 6) and rows.dtype == np.float32
        assert (rows == np.array(UNUSED, np.float32)).all()
