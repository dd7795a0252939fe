"""The 3D U-Net of the BraTS rounds: nnU-Net's Generic_UNet as its fold 1 checkpoint has it.

Sources: vision/medical_imaging/3d-unet of the reference (v1.0.1: pytorch_SUT.py, unet_pytorch_to_onnx.py) and
nnU-Net at the commit of its submodule (github.com/MIC-DKFZ/nnUNet b38c69b3: network_architecture/
generic_UNet.py, nnUNetTrainerV2.initialize_network). Four modalities in, four classes out; five strided
stages that halve every axis, features doubled from 32 and capped at 320; two convolutions with instance norm
and leaky ReLU a stage; transposed convolutions without bias. The number of stages and the 32 features follow
from the published ONNX file (five outputs, 7x7x5 at the bottom, a last convolution of (4, 32, 1, 1, 1)).

The reference computes no mirrored copies and no sliding window: one pass over the padded volume. Training
took a score at each of the five scales; their weights are in the checkpoint and are loaded, only the last is
computed, as only the last is answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.models.volume_norm import VolumeNorm

MODALITIES = 4
CLASSES = 4
MOST_FEATURES = 320  # Generic_UNet.MAX_NUM_FILTERS_3D
SLOPE = 0.01  # nnUNetTrainerV2: negative_slope 1e-2
# The benchmark's; fewer are for tests.
OPTIONS: dict[str, Any] = {"features": 32, "stages": 5}


class Block(nn.Module):
    """Convolution, instance norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
        self.instnorm = VolumeNorm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, d, h, w) -> (n, outputs, d / stride, h / stride, w / stride)."""
        return functional.leaky_relu_(self.instnorm(self.conv(x)), SLOPE)


class Blocks(nn.Module):
    """Blocks in a row; the first one strides and changes the width."""

    def __init__(self, inputs: int, outputs: int, count: int, stride: int = 1) -> None:
        super().__init__()
        rest = [Block(outputs, outputs) for _ in range(count - 1)]
        self.blocks = nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As Block."""
        return self.blocks(x)


class BratsUNet(nn.Module):
    """Volumes (n, 4, d, h, w), sides multiples of 2 to the power of `stages` -> float16 logits."""

    memory_format = torch.channels_last_3d  # what `channels_last` means for a network of volumes

    def __init__(self, features: int, stages: int, channels_last: bool = False) -> None:
        super().__init__()
        self._format = torch.channels_last_3d if channels_last else torch.contiguous_format
        widths = [min(features << i, MOST_FEATURES) for i in range(stages + 1)]
        context: list[nn.Module] = [Blocks(MODALITIES, widths[0], 2)]
        context += [Blocks(widths[i - 1], widths[i], 2, stride=2) for i in range(1, stages)]
        bottom, below = widths[stages], widths[stages - 1]
        context.append(nn.Sequential(Blocks(below, bottom, 1, stride=2), Blocks(bottom, bottom, 1)))
        self.conv_blocks_context = nn.ModuleList(context)
        self.conv_blocks_localization = nn.ModuleList()
        self.tu = nn.ModuleList()
        self.seg_outputs = nn.ModuleList()
        for i in reversed(range(stages)):
            width = widths[i]
            self.tu.append(nn.ConvTranspose3d(widths[i + 1], width, 2, 2, bias=False))
            self.conv_blocks_localization.append(
                nn.Sequential(Blocks(2 * width, width, 1), Blocks(width, width, 1))
            )
            self.seg_outputs.append(nn.Conv3d(width, CLASSES, 1, bias=False))

    def fold(self) -> None:
        """Leave out what no answer depends on: biases that the next norm takes away, and the other scores."""
        for module in self.modules():
            if isinstance(module, Block):
                module.conv.bias = None
        self.seg_outputs = self.seg_outputs[-1:]

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """The logits leave as the float16 that is answered: half the bytes to copy back."""
        x = volumes.to(self.seg_outputs[-1].weight.dtype, memory_format=self._format)
        passed = []
        for blocks in self.conv_blocks_context[:-1]:
            x = blocks(x)
            passed.append(x)
        x = self.conv_blocks_context[-1](x)
        for up, blocks in zip(self.tu, self.conv_blocks_localization, strict=True):
            x = blocks(torch.cat((up(x), passed.pop()), 1))
        logits: torch.Tensor = self.seg_outputs[-1](x)
        return logits.to(torch.float16, memory_format=torch.contiguous_format)


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network in the memory layout that is asked for."""
    return BratsUNet(int(options["features"]), int(options["stages"]), channels_last)
