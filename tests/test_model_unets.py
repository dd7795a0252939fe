"""The 3D U-Nets: published names load strictly, windows cover volumes, the norm keeps its layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workers.backends.torch_weights import load_weights
from workers.models import ModelError, open_model
from workers.models.unet_kits import batches, corners_of, gaussian
from workers.models.volume_norm import VolumeNorm

TIME_BUDGET_S = 20

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks only lose by more, on a machine that others use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def brats_published() -> Shapes:
    """Names and shapes of model_final_checkpoint.model's state_dict.

    Written down from nnU-Net's Generic_UNet (commit b38c69b3 of github.com/MIC-DKFZ/nnUNet) with 4 inputs, 4
    classes, 32 features and 5 poolings; equal to the state_dict of that class itself (98 tensors, 31,198,976
    numbers).
    """
    shapes: Shapes = {}

    def block(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.conv.weight"] = (outputs, inputs, 3, 3, 3)
        for key in ("conv.bias", "instnorm.weight", "instnorm.bias"):
            shapes[f"{name}.{key}"] = (outputs,)

    widths = [4, 32, 64, 128, 256, 320]
    for i in range(5):
        block(f"conv_blocks_context.{i}.blocks.0", widths[i], widths[i + 1])
        block(f"conv_blocks_context.{i}.blocks.1", widths[i + 1], widths[i + 1])
    block("conv_blocks_context.5.0.blocks.0", 320, 320)
    block("conv_blocks_context.5.1.blocks.0", 320, 320)
    below = 320
    for i, width in enumerate((320, 256, 128, 64, 32)):
        shapes[f"tu.{i}.weight"] = (below, width, 2, 2, 2)
        block(f"conv_blocks_localization.{i}.0.blocks.0", 2 * width, width)
        block(f"conv_blocks_localization.{i}.1.blocks.0", width, width)
        shapes[f"seg_outputs.{i}.weight"] = (4, width, 1, 1, 1)
        below = width
    return shapes


def kits_published() -> Shapes:
    """Names and shapes in 3dunet_kits19_pytorch_checkpoint.pth, under best_model_state_dict.

    Written down from the module that the reference loads it into (pytorch_checkpoint_SUT.py: 78 tensors,
    31,190,243 numbers); equal to that module's own state_dict.
    """
    shapes: Shapes = {}

    def pair(name: str, inputs: int, outputs: int) -> None:
        for conv, width in (("conv1", inputs), ("conv2", outputs)):
            shapes[f"{name}.{conv}.0.weight"] = (outputs, width, 3, 3, 3)
            shapes[f"{name}.{conv}.1.weight"] = shapes[f"{name}.{conv}.1.bias"] = (outputs,)

    pair("input_block", 1, 32)
    for i, (inputs, outputs) in enumerate([(32, 64), (64, 128), (128, 256), (256, 320)]):
        pair(f"downsample.{i}", inputs, outputs)
    pair("bottleneck", 320, 320)
    for i, (inputs, outputs) in enumerate([(320, 320), (320, 256), (256, 128), (128, 64), (64, 32)]):
        pair(f"upsample.{i}", 2 * outputs, outputs)
        shapes[f"upsample.{i}.upsample_conv.0.weight"] = (inputs, outputs, 2, 2, 2)
        shapes[f"upsample.{i}.upsample_conv.0.bias"] = (outputs,)
    shapes["output.conv.0.weight"], shapes["output.conv.0.bias"] = (3, 32, 1, 1, 1), (3,)
    return shapes


@pytest.mark.parametrize(
    ("name", "published", "tensors", "numbers"),
    [
        ("3d-unet-brats", brats_published(), 98, 31_198_976),
        ("3d-unet-kits", kits_published(), 78, 31_190_243),
    ],
)
def test_published_names_load_strictly(name: str, published: Shapes, tensors: int, numbers: int) -> None:
    with torch.device("meta"):
        model = open_model(name, {})
        state = {key: torch.empty(shape) for key, shape in published.items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert len(state) == tensors and sum(p.numel() for p in model.parameters()) == numbers


def test_the_full_brats_volume_gives_float16_logits_of_its_own_shape() -> None:
    with torch.device("meta"):
        model = open_model("3d-unet-brats", {}).eval()
        logits = model(torch.empty(1, 4, 224, 224, 160))
    assert logits.shape == (1, 4, 224, 224, 160) and logits.dtype == torch.float16


def tiny(name: str, channels_last: bool = False, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    model = open_model(name, {"features": 4, **options}, channels_last).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return model


@torch.inference_mode()
def test_what_is_folded_away_changes_no_answer() -> None:
    model = tiny("3d-unet-brats", stages=3)
    volumes = torch.randn(2, 4, 32, 16, 16)
    before = model(volumes).float()
    model.fold()
    folded = model(volumes).float()
    assert (before - folded).abs().max() < 0.01 * before.abs().max()
    assert not any("conv.bias" in name or "seg_outputs.1" in name for name in model.state_dict())


@torch.inference_mode()
def test_channels_last_gives_the_same_logits_in_contiguous_memory() -> None:
    volumes = torch.randn(1, 4, 16, 16, 32)
    plain, last = (tiny("3d-unet-brats", last, stages=3)(volumes) for last in (False, True))
    assert last.is_contiguous() and (plain.float() - last.float()).abs().max() < 0.01


@torch.inference_mode()
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last_3d])
def test_the_norm_of_the_gpu_is_the_norm_of_torch(form: torch.memory_format) -> None:
    norm = VolumeNorm(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(2, 5, 6, 7, 8) + 7).contiguous(memory_format=form)
    found = norm.by_sums(x)
    assert torch.allclose(found, norm(x), atol=1e-4) and found.is_contiguous(memory_format=form)


def test_windows_move_by_half_of_themselves_the_last_axis_fastest() -> None:
    corners = list(corners_of(torch.Size((128, 192, 256)), 128))
    assert corners == [(0, j, k) for j in (0, 64) for k in (0, 64, 128)]


def test_batches_are_whole_and_then_powers_of_two() -> None:
    corners = [(i, 0, 0) for i in range(63)]
    cut = list(batches(corners, 16))
    assert [len(batch) for batch in cut] == [16, 16, 16, 8, 4, 2, 1]
    assert [corner for batch in cut for corner in batch] == corners
    assert [len(batch) for batch in batches(corners[:7], 4)] == [4, 2, 1]


def test_the_weights_are_the_references() -> None:
    # inference_utils.gaussian_kernel(128, 16): cube root of the outer product, so exp(-d*d / (6 * 16 * 16))
    weights = gaussian(128)
    distance = np.arange(128) - 63.5
    line = np.exp(-(distance**2) / (6 * 16**2))
    cube = line[:, None, None] * line[:, None] * line
    assert np.abs(weights.numpy() - cube / cube.max()).max() < 1e-12


def simple(windows: torch.Tensor) -> torch.Tensor:
    """Scores of three classes that differ from place to place in a window."""
    return torch.cat([windows.flip(2), windows.roll(5, 3), windows.mean(4, keepdim=True) + 0 * windows], 1)


@torch.inference_mode()
def test_a_volume_is_labelled_by_the_weighted_sum_of_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("3d-unet-kits", window=64, window_batch=4)
    monkeypatch.setattr(model, "scores", simple)
    volume = torch.randn(1, 1, 64, 96, 128)
    total, weights = np.zeros((3, 64, 96, 128)), np.zeros((64, 96, 128))
    for j in (0, 32):
        for k in (0, 32, 64):
            scores = simple(volume[:, :, :, j : j + 64, k : k + 64])[0].double().numpy()
            total[:, :, j : j + 64, k : k + 64] += scores * gaussian(64).numpy()
            weights[:, j : j + 64, k : k + 64] += gaussian(64).numpy()
    labels = model(volume)
    assert labels.dtype == torch.uint8 and labels.shape == volume.shape and not model.graphable
    assert (labels[0, 0].numpy() != (total / weights).argmax(0)).mean() < 1e-5
    assert set(np.unique(labels.numpy())) == {0, 1, 2}


@torch.inference_mode()
def test_windows_together_have_the_scores_of_windows_alone() -> None:
    windows = torch.randn(2, 1, 64, 64, 64)
    together = tiny("3d-unet-kits", window=64).scores(windows)
    alone = tiny("3d-unet-kits", True, window=64).scores(windows[1:])
    assert together.shape == (2, 3, 64, 64, 64) and torch.allclose(together[1:], alone, atol=1e-3)


@torch.inference_mode()
def test_compiling_takes_the_network_and_leaves_the_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("3d-unet-kits", window=64, window_batch=1)
    monkeypatch.setattr(model, "scores", simple)
    graphs = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, dynamic=False, backend=keep)
    for shape in ((64, 64, 96), (64, 96, 64)):
        volume = torch.randn(1, 1, *shape)
        assert (compiled(volume) == model(volume)).all()
    assert len(graphs) == 1


def test_the_training_checkpoint_is_opened_and_a_plain_state_is_left_alone() -> None:
    model = tiny("3d-unet-kits", window=64)
    state = model.state_dict()
    held = {"epoch": 3, "model_state_dict": {}, "best_model_state_dict": state}
    assert list(model.load_published(held)) == list(state) == list(model.load_published(state))


@pytest.mark.parametrize("since_1_6", [True, False])
def test_a_checkpoint_of_nnunet_loads_with_all_that_it_notes_beside(tmp_path: Path, since_1_6: bool) -> None:
    # network_trainer.save_checkpoint; the published file is of torch before 1.6 and NumPy before 2
    model = tiny("3d-unet-brats", stages=2)
    losses = [np.float64(0.5), np.mean([1.0, 2.0])]
    held = {
        "epoch": 1000, "state_dict": model.state_dict(), "lr_scheduler_state_dict": None,
        "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "plot_stuff": (losses, losses, [], losses),
    }  # fmt: skip
    file = tmp_path / "model_final_checkpoint.model"
    torch.save(held, file, _use_new_zipfile_serialization=since_1_6)
    if not since_1_6:
        file.write_bytes(file.read_bytes().replace(b"numpy._core", b"numpy.core"))
    other = open_model("3d-unet-brats", {"features": 4, "stages": 2})
    load_weights(other, str(file), "")
    for name, tensor in model.state_dict().items():
        assert (other.state_dict()[name] == tensor).all()


def test_what_the_window_cannot_cover_is_refused() -> None:
    with pytest.raises(ModelError, match="window a multiple of 32 and at least 64"):
        open_model("3d-unet-kits", {"window": 32})
    with pytest.raises(ModelError, match="window_batch at least 1"):
        open_model("3d-unet-kits", {"window_batch": 0})
    model = tiny("3d-unet-kits", window=64)
    for shape in ((1, 1, 64, 64, 70), (1, 1, 32, 64, 64), (2, 1, 64, 64, 64)):
        with pytest.raises(ModelError, match="takes one volume"):
            model(torch.zeros(shape))
