"""Instance normalisation of volumes in either memory layout, for the 3D networks."""

from __future__ import annotations

import torch
from torch import nn


class VolumeNorm(nn.InstanceNorm3d):
    """torch's affine InstanceNorm3d; on a GPU, one that keeps the memory layout and fuses.

    torch's own rearranges a channels_last_3d volume to contiguous memory first. Measured on an H100, fp16,
    torch 2.11, the BraTS network on one volume: 121 ms with torch's own in channels_last_3d and 83 in the
    contiguous layout, against 25 with arithmetic like that below, and 17 when that is compiled.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, d, h, w), each channel of each sample to mean 0 and variance 1, then scaled and shifted."""
        return self.by_sums(x) if x.is_cuda else super().forward(x)

    def by_sums(self, x: torch.Tensor) -> torch.Tensor:
        """From the sum and the sum of squares, both in float32 whatever the type of `x`."""
        voxels = x.flatten(2)
        mean = voxels.mean(2, dtype=torch.float32)
        norm = torch.linalg.vector_norm(voxels, dim=2, dtype=torch.float32)
        variance = (norm.square() / voxels.shape[2] - mean.square()).clamp_min(0)
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        scale, shift = scale[..., None, None, None], shift[..., None, None, None]
        if torch.compiler.is_compiling():  # then float32 in between costs no memory
            return (x.float() * scale + shift).to(x.dtype)
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))
