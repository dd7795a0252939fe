"""deepbet (Fisch et al., 2023; PyPI `deepbet` 1.0.2, MIT): the brain in a scan of a head, by two LinkNets.

The first network looks at the whole head at 128x128x128 and gives a box, the second one at that box at
256x256x256. Both are published as TorchScript files: `backend.weights` is the second one's, the option
`box_weights` the first one's. Only their tensors are read (torchscript_state.py); the networks here compute
what those do. Source: deepbet/bet.py of that package, run_model; its last steps, largest connected part and
filled holes, are left out: on the example's head they change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.installed import LocateError, locate
from workers.models import ModelError
from workers.models.strict_state import load_strictly
from workers.models.torchscript_state import read_tensors

BOX_SIDE = 128
SIDE = 256
MARGIN = 0.1  # of the box, at each end
LEAST_SHARE = 0.02  # of brain in a slice that counts for the box
THRESHOLD = 0.5
LOW, HIGH = 0.005, 0.995  # quantiles that become 0 and 1
MEAN, DEVIATION = 0.449, 0.226  # of what the networks were trained on
OPTIONS: dict[str, Any] = {"box_weights": ""}

Box = tuple[slice, slice, slice]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


def _twice(inputs: int, outputs: int, stride: int = 2, bias: bool = False) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(inputs, outputs, 3, stride, 1, stride - 1, bias=bias)


def _normed(conv: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.InstanceNorm3d(channels), nn.ReLU())


class Block(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3)
        norms = nn.InstanceNorm3d(outputs), nn.InstanceNorm3d(outputs)
        self.double_conv = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.InstanceNorm3d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, inputs, d, h, w) -> (1, outputs, d / stride, h / stride, w / stride)."""
        return functional.relu(self.double_conv(x) + self.downsample(x))


class Down(nn.Module):
    """Two blocks."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.block1 = Block(inputs, outputs, stride)
        self.block2 = Block(outputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As Block."""
        return self.block2(self.block1(x))


class Up(nn.Module):
    """Narrow, transposed convolution, widen."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        narrow = inputs // 4
        self.conv1 = _normed(_conv(inputs, narrow, 1), narrow)
        self.tp_conv = _normed(_twice(narrow, narrow, stride), narrow)
        self.conv2 = _normed(_conv(narrow, outputs, 1), outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, inputs, d, h, w) -> (1, outputs, d * stride, h * stride, w * stride)."""
        return self.conv2(self.tp_conv(self.conv1(x)))


class LinkNet(nn.Module):
    """(1, 1, d, h, w), sides multiples of 32 -> the share of brain in each voxel (d, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.init = nn.Sequential(*_normed(_conv(1, 16, 7, 2), 16), nn.MaxPool3d(3, 2, 1))
        self.down0, self.down1 = Down(16, 16, 1), Down(16, 32, 2)
        self.down2, self.down3 = Down(32, 64, 2), Down(64, 128, 2)
        self.up0, self.up1 = Up(128, 64, 2), Up(64, 32, 2)
        self.up2, self.up3 = Up(32, 16, 2), Up(16, 16, 1)
        self.tp_conv1 = _normed(_twice(16, 8, bias=True), 8)
        self.conv = _normed(_conv(8, 8, 3, bias=True), 8)
        self.tp_conv2 = nn.ConvTranspose3d(8, 2, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the two classes, brain is the second."""
        first = self.init(x)
        a = self.down0(first)
        b = self.down1(a)
        c = self.down2(b)
        y = self.up0(self.down3(c)) + c
        y = self.up1(y) + b
        y = self.up2(y) + a
        y = self.up3(y) + first
        return self.tp_conv2(self.conv(self.tp_conv1(y))).softmax(1)[0, 1]


class Deepbet(nn.Module):
    """A head (1, 1, d, h, w) of any shape -> its mask, uint8 of the same shape."""

    graphable = False  # the box is looked at on the host

    def __init__(self, box_weights: str) -> None:
        super().__init__()
        self.box_network = LinkNet()
        self.network = LinkNet()
        if box_weights:
            _load(self.box_network, box_weights)

    def load_published(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The file is the second network's alone."""
        own = self.box_network.state_dict(prefix="box_network.")
        return {**own, **{f"network.{name}": tensor for name, tensor in state.items()}}

    def forward(self, head: torch.Tensor) -> torch.Tensor:
        """Both networks, resizing to and from their sides by the nearest voxel."""
        x = head.float()
        small = _resize(x, (BOX_SIDE,) * 3)
        low, high = small.quantile(LOW), small.quantile(HIGH)
        dtype = self.network.tp_conv2.weight.dtype
        found = self.box_network(_normalise(small, low, high).to(dtype)) > THRESHOLD
        box = _box(found.float(), x.shape[2:])
        part = x[(0, 0, *box)][None, None]
        share = self.network(_normalise(_resize(part, (SIDE,) * 3), low, high).to(dtype))
        mask = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        mask[(0, 0, *box)] = _resize(share.float()[None, None], part.shape[2:])[0, 0] > THRESHOLD
        return mask


def _resize(x: torch.Tensor, sides: tuple[int, ...]) -> torch.Tensor:
    return functional.interpolate(x, tuple(sides), mode="nearest-exact")


def _normalise(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    x = ((x - low) / (high - low)).clamp(0, 1)
    return DEVIATION * (x - x.mean()) / x.std() + MEAN


def _box(found: torch.Tensor, sides: torch.Size) -> Box:
    """Around the slices with enough brain, with a margin, in the voxels of the head."""
    box = []
    for axis, side in enumerate(sides):
        others = [other for other in range(3) if other != axis]
        slices = torch.nonzero(found.mean(others) > LEAST_SHARE)
        if not len(slices):
            raise ModelError("deepbet finds no brain in this scan")
        first, last = int(slices[0]), int(slices[-1]) + 1
        scale = side / BOX_SIDE
        centre = round(scale * (first + last) / 2)
        size = round((1 + 2 * MARGIN) * scale * (last - first))
        box.append(slice(max(0, int(centre - size / 2)), min(side, int(centre + size / 2))))
    return box[0], box[1], box[2]


def _load(network: LinkNet, path: str) -> None:
    """The option `box_weights`; ModelError says what is wrong with it."""
    try:
        load_strictly(network, read_tensors(locate(path)))
    except (LocateError, ModelError, OSError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or ["?"])[0]
        raise ModelError(f"deepbet: box_weights {path} cannot be loaded: {first}") from None


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """Both networks; they have no other memory layout."""
    return Deepbet(str(options["box_weights"]))
