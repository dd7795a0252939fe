"""Photos and a ResNet-50 to quantise: seeded, with the statistics that calibration meets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workers.models.scales import Scales

SIDE = 224


def pictures(count: int, seed: int) -> torch.Tensor:
    """uint8 [count, 224, 224, 3] with a photo's spectrum (1/f), contrast and correlated colours.

    Uniform noise gives every image nearly the same features, and so the same class.
    """
    made = torch.Generator().manual_seed(seed)
    f = torch.fft.fftfreq(SIDE)
    radius = (f[:, None].square() + f[None, :].square()).sqrt().clamp(min=1 / SIDE)
    noise = torch.randn(count, 4, SIDE, SIDE, generator=made)
    slope = 0.8 + 0.8 * torch.rand(count, 1, 1, 1, generator=made)
    waves = torch.fft.ifft2(torch.fft.fft2(noise) / radius**slope).real
    waves = (waves - waves.mean((2, 3), keepdim=True)) / waves.std((2, 3), keepdim=True)
    contrast = 30 + 50 * torch.rand(count, 1, 1, 1, generator=made)
    level = 90 + 70 * torch.rand(count, 3, 1, 1, generator=made)
    pixels = level + contrast * (waves[:, 3:] + 0.4 * waves[:, :3])
    return pixels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def norms_as_trained(model: Any, seed: int = 11) -> Any:
    """Weights whose channels differ in size, and norms that have seen pictures: as training leaves them."""
    made = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            fan = part.in_channels * part.kernel_size[0] ** 2
            w = torch.randn(part.weight.shape, generator=made) * (2 / fan) ** 0.5
            part.weight.copy_(w * torch.exp(0.4 * torch.randn(w.shape[0], 1, 1, 1, generator=made)))
        elif isinstance(part, nn.BatchNorm2d):
            part.weight.copy_(0.6 + 0.8 * torch.rand(part.weight.shape, generator=made))
            part.bias.copy_(0.3 * torch.randn(part.bias.shape, generator=made) - 0.1)
            part.reset_running_stats()
            part.momentum = None  # the mean of what is seen
    model.train()
    model.scores(pictures(2, 1))
    model.eval()
    w = torch.randn(model.fc.weight.shape, generator=made)
    model.fc.weight.copy_(w * 3 / w.shape[1] ** 0.5)
    return model.requires_grad_(False)


def made_scales(folded: Any, batches: list[torch.Tensor], correct: bool = False, **more: Any) -> Scales:
    """Scales of a folded network's own making."""
    parts = folded.calibrated(batches, "max", correct)
    about = {"model": "resnet50", "model_hash": "0" * 64, "weights": "seeded", "method": "max", "samples": {}}
    return Scales(**{**about, **parts, **more})


MANIFEST = """
name: narrow
round: v6.1
suite: datacenter,edge
division: DIVISION
benchmark: resnet
scenarios: [Offline]
task: {name: imagenet, TASK}
backend: {engine: torch, model: resnet50, precision: int8, threads: 1, options: {width: 2}, BACKEND}
workers: {where: local, max_batch: 2}
"""


def manifest_text(task: str = "generated: 6", backend: str = "scales: s.json", division: str = "open") -> str:
    """The manifest of a narrow ResNet-50 in int8."""
    return MANIFEST.replace("TASK", task).replace("BACKEND", backend).replace("DIVISION", division)
