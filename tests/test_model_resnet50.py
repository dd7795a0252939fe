"""ResNet-50 v1.5: the published checkpoint's names and shapes, what folding changes, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from workers.models import ModelError, open_model
from workers.models.resnet50 import NORMALIZE

TIME_BUDGET_S = 20

NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A machine that does other things too makes torch's threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of resnet50-19c8e357.pth (torchvision's resnet.py, v0.8.2), written down anew."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    norms = {"bn1": 64}
    inputs = 64
    for layer, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for i in range(blocks):
            block = f"layer{layer}.{i}"
            shapes[f"{block}.conv1.weight"] = (inner, inputs, 1, 1)
            shapes[f"{block}.conv2.weight"] = (inner, inner, 3, 3)
            shapes[f"{block}.conv3.weight"] = (4 * inner, inner, 1, 1)
            norms |= {f"{block}.bn1": inner, f"{block}.bn2": inner, f"{block}.bn3": 4 * inner}
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * inner, inputs, 1, 1)
                norms[f"{block}.downsample.1"] = 4 * inner
            inputs = 4 * inner
    shapes |= {f"{norm}.{name}": (width,) for norm, width in norms.items() for name in NORM}
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


@pytest.mark.parametrize("counted", [False, True])
def test_the_published_checkpoint_loads_strictly(counted: bool) -> None:
    """The file is older than num_batches_tracked; one that is saved today has it."""
    shapes = published()
    if counted:
        norms = [name.removesuffix(".running_var") for name in shapes if name.endswith(".running_var")]
        shapes |= {f"{norm}.num_batches_tracked": () for norm in norms}
    assert len(shapes) == (320 if counted else 267)
    with torch.device("meta"):
        model = open_model("resnet50", {})
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert len(list(model.parameters())) == 161
    assert sum(one.numel() for one in model.parameters()) == 25_557_032


def test_the_stride_lies_in_the_3x3_convolution() -> None:
    with torch.device("meta"):
        model: Any = open_model("resnet50", {})
    for stage in (model.layer2, model.layer3, model.layer4):
        strides = [stage[0].conv1.stride, stage[0].conv2.stride, stage[0].downsample[0].stride]
        assert strides == [(1, 1), (2, 2), (2, 2)] and stage[1].conv2.stride == (1, 1)


def trained(normalize: str = "pytorch", channels_last: bool = False) -> Any:
    """A narrow network whose norms have seen something."""
    torch.manual_seed(3)
    model: Any = open_model("resnet50", {"width": 8, "normalize": normalize}, channels_last).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, 0, 0.1)
    return model.requires_grad_(False)


def photos(count: int = 2) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )


@pytest.mark.parametrize("normalize", list(NORMALIZE))
@pytest.mark.parametrize("channels_last", [False, True])
def test_folding_keeps_the_scores_within_rounding(normalize: str, channels_last: bool) -> None:
    model = trained(normalize, channels_last)
    before = model.scores(photos())
    model.fold()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    after = model.scores(photos())
    assert before.shape == (2, 1000) and before.std() > 1e-3
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert (model(photos()) == after.argmax(1)).all() and model(photos()).dtype is torch.int64


def test_pixels_are_normalised_as_the_checkpoint_was_trained() -> None:
    seen: list[torch.Tensor] = []
    for normalize, white in (
        ("pytorch", [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("vgg", [255 - 123.68, 255 - 116.78, 255 - 103.94]),
    ):
        model = trained(normalize)
        model.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        model.scores(torch.full((1, 224, 224, 3), 255, dtype=torch.uint8))
        assert torch.allclose(seen[-1][0, :, 5, 7], torch.tensor(white), rtol=1e-6)


def test_half_precision_answers_as_full_precision_does() -> None:
    model = trained()
    expected = model.scores(photos(1))
    model.fold()
    found = model.to(torch.bfloat16).scores(photos(1))
    assert found.dtype is torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "caffe"}, "one of pytorch, vgg"),
        ({"width": 0}, "must be 1 to 1024"),
        ({"depth": 3}, "depth"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_model("resnet50", options)
