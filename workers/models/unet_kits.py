"""The 3D U-Net of the KiTS rounds with its sliding window, both inside of the clock.

Sources: vision/medical_imaging/3d-unet-kits19 of the reference (pytorch_checkpoint_SUT.py, base_SUT.py,
inference_utils.py, global_vars.py). Widths 32 to 320, instance norm and ReLU, strided convolutions down,
transposed ones with bias up. Parameter names are those of 3dunet_kits19_pytorch_checkpoint.pth, read from the
module into which the reference loads it, its key best_model_state_dict included.

The window of 128 voxels moves by half of itself; each window's scores are weighted by a Gaussian of its
distance to the centre and added up. The reference then divides by the added weights: these are positive and
the same for all three classes, so the largest class is the largest without the division.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from workers.models import ModelError
from workers.models.volume_norm import VolumeNorm

CLASSES = 3
WIDTHS = (32, 64, 128, 256, 320)
SPREAD = 0.125  # the Gaussian's standard deviation in windows: inference_utils.prepare_arrays
CHECKPOINT_KEY = "best_model_state_dict"
# `window` 128 and `features` 32 are the benchmark's; less is for tests.
OPTIONS: dict[str, Any] = {"window_batch": 4, "window": 128, "features": WIDTHS[0]}

Corner = tuple[int, int, int]


def convolve(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias and its norm, named 0 and 1 as in the checkpoint; ReLU has no name there."""
    conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, VolumeNorm(outputs), nn.ReLU(inplace=True))


class Pair(nn.Module):
    """Two convolutions; the first one strides and changes the width."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolve(inputs, outputs, stride)
        self.conv2 = convolve(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, d, h, w) -> (n, outputs, d / stride, h / stride, w / stride)."""
        return self.conv2(self.conv1(x))


class Up(Pair):
    """Doubles the sides, joins what was passed over, and convolves twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(2 * outputs, outputs)
        self.upsample_conv = nn.Sequential(nn.ConvTranspose3d(inputs, outputs, 2, 2))

    def join(self, x: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
        """(n, inputs, d, h, w) and (n, outputs, 2d, 2h, 2w) -> (n, outputs, 2d, 2h, 2w)."""
        return self(torch.cat((self.upsample_conv(x), passed), 1))


class Output(nn.Module):
    """The scores of the classes."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv3d(inputs, CLASSES, 1))


class KitsUNet(nn.Module):
    """A volume (1, 1, d, h, w) -> its labels uint8 (1, 1, d, h, w); sides are multiples of half a window."""

    graphable = False  # the number of windows is the volume's
    memory_format = torch.channels_last_3d  # what `channels_last` means for a network of volumes

    def __init__(self, options: Mapping[str, Any], channels_last: bool) -> None:
        super().__init__()
        self._format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self._window = int(options["window"])
        self._batch = int(options["window_batch"])
        # Below two voxels a side at the bottom there is nothing to normalise.
        bottom = 1 << len(WIDTHS)
        if self._batch < 1 or self._window < 2 * bottom or self._window % bottom:
            wanted = f"window_batch at least 1, window a multiple of {bottom} and at least {2 * bottom}"
            raise ModelError(f"3d-unet-kits: {wanted}, not {self._batch} and {self._window}")
        self._weights: dict[torch.device, torch.Tensor] = {}
        widths = [width * int(options["features"]) // WIDTHS[0] for width in WIDTHS]
        self.input_block = Pair(1, widths[0])
        self.downsample = nn.ModuleList(Pair(a, b, 2) for a, b in itertools.pairwise(widths))
        self.bottleneck = Pair(widths[-1], widths[-1], 2)
        below = [widths[-1], *reversed(widths)]
        self.upsample = nn.ModuleList(Up(a, b) for a, b in itertools.pairwise(below))
        self.output = Output(widths[0])

    def load_published(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state_dict in the training checkpoint, which also holds other things; any other as it is."""
        return dict(state.get(CHECKPOINT_KEY, state))

    def scores(self, windows: torch.Tensor) -> torch.Tensor:
        """(n, 1, w, w, w) -> (n, 3, w, w, w)."""
        x = self.input_block(windows)
        passed = [x]
        for down in self.downsample:
            x = down(x)
            passed.append(x)
        x = self.bottleneck(x)
        for up in self.upsample:
            x = up.join(x, passed.pop())
        return self.output.conv(x)

    # Compiled as a whole, each volume's shape would be a program of its own: only what it calls is compiled.
    @torch.compiler.disable(recursive=False)
    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Windows in batches; their scores are added in the reference's order, in float32."""
        _check(volume, self._window)
        x = volume.to(self.output.conv[0].weight.dtype)[0]
        total = torch.zeros((CLASSES, *x.shape[1:]), dtype=torch.float32, device=x.device)
        weights = self._weights_on(x.device)
        w = self._window
        for corners in batches(list(corners_of(x.shape[1:], w)), self._batch):
            windows = torch.stack([x[:, i : i + w, j : j + w, k : k + w] for i, j, k in corners])
            found = self.scores(windows.contiguous(memory_format=self._format))
            for (i, j, k), one in zip(corners, found, strict=True):
                total[:, i : i + w, j : j + w, k : k + w].addcmul_(one.float(), weights)
        return total.argmax(0).to(torch.uint8)[None, None]

    @torch.compiler.disable
    def _weights_on(self, device: torch.device) -> torch.Tensor:
        """The Gaussian; no buffer, which a conversion of the network to float16 would round."""
        if device not in self._weights:
            self._weights[device] = gaussian(self._window).to(device, torch.float32)
        return self._weights[device]


def gaussian(side: int) -> torch.Tensor:
    """float64 (side, side, side), 1 at most: cube root of a Gaussian of SPREAD windows along each axis."""
    distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-0.5 * (distance / (SPREAD * side)) ** 2)
    cube = (line[:, None, None] * line[:, None] * line) ** (1 / 3)
    return cube / cube.max()


def corners_of(shape: torch.Size, window: int) -> Iterator[Corner]:
    """The windows' first voxels, half a window apart, the last axis fastest."""
    starts = [range(0, side - window + 1, window // 2) for side in shape]
    yield from itertools.product(*starts)


def batches(corners: list[Corner], most: int) -> Iterator[list[Corner]]:
    """Whole batches of `most`, then the largest powers of two: few shapes to choose algorithms for."""
    start = 0
    while left := len(corners) - start:
        size = most if left >= most else 1 << (left.bit_length() - 1)
        yield corners[start : start + size]
        start += size


def _check(volume: torch.Tensor, window: int) -> None:
    """ModelError for what the window does not cover exactly."""
    sides = volume.shape[2:]
    if volume.ndim != 5 or volume.shape[:2] != (1, 1) or any(s < window or s % (window // 2) for s in sides):
        wanted = f"one volume (1, 1, d, h, w) with sides of at least {window}, multiples of {window // 2}"
        raise ModelError(f"3d-unet-kits takes {wanted}, not {tuple(volume.shape)}")


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network in the memory layout that is asked for."""
    return KitsUNet(options, channels_last)
