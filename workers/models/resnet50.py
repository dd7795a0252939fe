"""ResNet-50 v1.5 (He et al., CVPR 2016; v1.5: a block strides in its 3x3 convolution, not in its first).

Parameter names are torchvision's, and so those of the reference's PyTorch checkpoint resnet50-19c8e357.pth
(zenodo.org/record/4588417, 76.014 % top-1 in the reference's table of models), which loads strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.models import ModelError, resnet50_int8
from workers.models.scales import Method, Scales

# Blocks and inner channels of layer1 to layer4, by the stem's width.
STAGES = ((3, 1), (4, 2), (6, 4), (3, 8))
EXPANSION = 4
CLASSES = 1000
# Of pixels 0 to 255: what is subtracted from R, G and B, then what divides them (dataset.py of the reference,
# v1.0.1). pytorch is pre_process_imagenet_pytorch, with which torchvision's checkpoint was trained: the
# default here, because no other checkpoint has these parameter names. vgg is pre_process_vgg, which the
# reference's TensorFlow and ONNX networks want; it is for their weights, converted. (Release 1.1 gives its
# profile resnet50-pytorch the dataset with pre_process_vgg; v6.1 corrects it to imagenet_pytorch.)
NORMALIZE = {
    "pytorch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "vgg": ((123.68, 116.78, 103.94), (1.0, 1.0, 1.0)),
}
OPTIONS: dict[str, Any] = {"normalize": "pytorch", "width": 64}


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1; added to the block's own input."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = conv_relu(self.conv1, self.bn1, x)
        y = conv_relu(self.conv2, self.bn2, y)
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_relu(self.conv3, self.bn3, y, shortcut)

    def fold(self) -> None:
        """See ResNet50."""
        for name in ("1", "2", "3"):
            fold_norm(getattr(self, f"conv{name}"), getattr(self, f"bn{name}"))
            setattr(self, f"bn{name}", nn.Identity())
        if self.downsample is not None:
            convolution, norm = self.downsample
            fold_norm(convolution, norm)
            self.downsample[1] = nn.Identity()
            # Its outputs are only added to conv3's: one bias does for both, and saves a pass over the largest
            # tensors (1.1 of 8.8 ms a batch of 256 on an H100).
            self.conv3.bias += convolution.bias
            convolution.bias = None


class ResNet50(nn.Module):
    """uint8 photos (n, 224, 224, 3), RGB -> classes int64 (n,); `width` 64 is the benchmark's."""

    _mean: torch.Tensor
    _scale: torch.Tensor

    def __init__(self, normalize: str = "pytorch", width: int = 64, channels_last: bool = False) -> None:
        super().__init__()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        mean, deviation = NORMALIZE[normalize]
        self.register_buffer("_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_scale", 1 / torch.tensor(deviation).view(3, 1, 1), persistent=False)
        self._scales = True
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        inputs = width
        for number, (blocks, factor) in enumerate(STAGES, 1):
            stage: list[nn.Module] = []
            for i in range(blocks):
                stage.append(Bottleneck(inputs, factor * width, 2 if i == 0 and number > 1 else 1))
                inputs = EXPANSION * factor * width
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.fc = nn.Linear(inputs, CLASSES)

    def fold(self) -> None:
        """Fold every batch norm, and the division of the pixels, into the convolutions.

        Subtracting the mean stays: the first convolution pads with zeros after it.
        """
        self.requires_grad_(False)
        self.conv1.weight.mul_(self._scale)
        self._scales = False
        fold_norm(self.conv1, self.bn1)
        self.bn1 = nn.Identity()
        for block in self.modules():
            if isinstance(block, Bottleneck):
                block.fold()

    def calibrated(
        self,
        batches: Sequence[torch.Tensor],
        method: Method,
        correct: bool = True,
        heard: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:
        """See workers.models."""
        return resnet50_int8.calibrated(self, batches, method, correct, heard)

    def quantised(self, scales: Scales, device: torch.device) -> nn.Module:
        """See workers.models."""
        return resnet50_int8.Int8ResNet50(self, scales, device)

    def scores(self, photos: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 224, 224, 3) -> scores (n, 1000)."""
        x = photos.permute(0, 3, 1, 2) - self._mean
        if self._scales:
            x = x * self._scale
        x = conv_relu(self.conv1, self.bn1, x.contiguous(memory_format=self._format))
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """The class is taken on the device: 8 bytes a photo travel back instead of 4,000."""
        return self.scores(photos).argmax(1)


def conv_relu(
    convolution: nn.Conv2d, norm: nn.Module, x: torch.Tensor, shortcut: torch.Tensor | None = None
) -> torch.Tensor:
    """Convolve, normalise, add the shortcut if any, cut below zero; one cuDNN kernel where it can be.

    That is: on CUDA, in half precision, with the norm folded. A compiler fuses the plain form by itself.
    """
    bias = convolution.bias
    if bias is None or x.dtype is not torch.float16 or not x.is_cuda or torch.compiler.is_compiling():
        y = norm(convolution(x))
        return torch.relu_(y if shortcut is None else y.add_(shortcut))
    shape = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    if shortcut is None:
        return torch.cudnn_convolution_relu(x, convolution.weight, bias, *shape)
    return torch.cudnn_convolution_add_relu(x, convolution.weight, shortcut, 1.0, bias, *shape)


def fold_norm(convolution: nn.Conv2d, norm: nn.Module) -> None:
    """Give a convolution without a bias the weights and the bias that the batch norm after it amounts to."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    convolution.weight.mul_(factor.view(-1, 1, 1, 1))
    convolution.bias = nn.Parameter(norm.bias - norm.running_mean * factor, requires_grad=False)


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network in the memory layout that is asked for."""
    normalize, width = options["normalize"], options["width"]
    if normalize not in NORMALIZE:
        raise ModelError(f"backend.normalize is one of {', '.join(NORMALIZE)}, not {normalize!r}")
    if type(width) is not int or not 1 <= width <= 1024:
        raise ModelError(f"backend.width must be 1 to 1024 channels, not {width!r}; 64 is the benchmark's")
    return ResNet50(normalize, width, channels_last)
