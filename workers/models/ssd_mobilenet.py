"""SSD-MobileNet-v1 at 300x300, 91 classes, 1,917 anchors.

Source: models/ssd_mobilenet_v1.py, anchor_generator.py and utils.py of the reference
(vision/classification_and_detection, v1.0.1); parameter and buffer names are those of its module, so of
ssd_mobilenet_v1.pytorch. Classes leave as COCO's own numbers, 1 to 90.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.models import ModelError
from workers.models.boxes import Anchors, Corners, choose, decode, join, rows_of

CLASSES = 91  # background is 0
# Outputs and stride of the thirteen separable layers after the stem; the reference's MobileNetV1Base.
STEM_OUTPUTS = 32
LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1),
    (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
TAPPED = (11, 13)  # layers whose outputs are feature maps
EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))  # inner and outer width of the further maps
WIDTHS = (512, 1024, 512, 256, 256, 128)
GRIDS = (19, 10, 5, 3, 2, 1)
DEFAULTS = (3, 6, 6, 6, 6, 6)  # anchors a cell, by feature map
SMALLEST_SCALE, LARGEST_SCALE = 0.2, 0.95
FIRST_SCALE = 0.1
RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
CENTRE_SCALE, SIZE_SCALE = 1 / 10, 1 / 5  # coder_weights
PIXEL_SCALE = 127.5
SCORE_THRESHOLD = 0.3
OVERLAP_THRESHOLD = 0.6
AREA_EPSILON = 1e-5  # box_iou of utils.py
# The TensorFlow graph keeps 100 detections; the PyTorch module keeps all that pass, seldom so many.
DETECTIONS = 100
# `candidates`: the best pairs of anchor and class that are looked at; fewer pass the threshold in a photo.
OPTIONS: dict[str, Any] = {"candidates": 512}


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: an odd cell of padding goes right and below."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 3, stride, groups=groups, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, then convolve."""
        side, stride = x.shape[-1], self.stride[0]
        pad = max(0, (-(-side // stride) - 1) * stride + 3 - side)
        if pad % 2:
            x = functional.pad(x, (0, 1, 0, 1))
        return functional.conv2d(x, self.weight, self.bias, stride, pad // 2, 1, self.groups)


class Affine(nn.Module):
    """What is left of a batch norm in the published graph: a bias, and a scale unless a weight has it."""

    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, channels: int, scaled: bool) -> None:
        super().__init__()
        self._scaled = scaled
        if scaled:
            self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x * scale + bias."""
        if self._scaled:
            x = x * self.scale[:, None, None]
        return x + self.bias[:, None, None]

    def fold_into(self, conv: nn.Conv2d) -> None:
        """Make `conv` compute this after itself."""
        with torch.no_grad():
            if self._scaled:
                conv.weight *= self.scale[:, None, None, None]
            conv.bias = nn.Parameter(self.bias.clone(), requires_grad=False)


def _stem() -> nn.Sequential:
    parts = OrderedDict[str, nn.Module]()
    parts["0"] = SameConv(3, STEM_OUTPUTS, 2)
    parts["0/BatchNorm"] = Affine(STEM_OUTPUTS, scaled=False)
    parts["0/ReLU"] = nn.ReLU6(inplace=True)
    return nn.Sequential(parts)


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    parts = OrderedDict[str, nn.Module]()
    parts["depthwise"] = SameConv(inputs, inputs, stride, groups=inputs)
    parts["depthwise/BatchNorm"] = Affine(inputs, scaled=True)
    parts["depthwise/ReLU"] = nn.ReLU6(inplace=True)
    parts["pointwise"] = nn.Conv2d(inputs, outputs, 1, bias=False)
    parts["pointwise/BatchNorm"] = Affine(outputs, scaled=False)
    parts["pointwise/ReLU"] = nn.ReLU6(inplace=True)
    return nn.Sequential(parts)


class Head(nn.Module):
    """Class logits and box codes of one feature map; `joined`: one convolution in place of two."""

    def __init__(self, inputs: int, defaults: int) -> None:
        super().__init__()
        self._defaults = defaults
        self.classification = nn.Conv2d(inputs, CLASSES * defaults, 1)
        self.regression = nn.Conv2d(inputs, 4 * defaults, 1)
        self.joined: nn.Conv2d | None = None

    def join(self) -> None:
        """See boxes.join."""
        self.joined = join([self.classification, self.regression])
        del self.classification, self.regression

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, h x w x defaults, 91) and (n, h x w x defaults, 4)."""
        if self.joined is None:
            logits, codes = self.classification(x), self.regression(x)
        else:
            both, split = self.joined(x), CLASSES * self._defaults
            logits, codes = both[:, :split], both[:, split : split + 4 * self._defaults]
        n = len(x)
        return (
            logits.permute(0, 2, 3, 1).reshape(n, -1, CLASSES),
            codes.permute(0, 2, 3, 1).reshape(n, -1, 4),
        )


class SsdMobilenet(nn.Module):
    """uint8 photos (n, 300, 300, 3) -> rows of detections, float32 (n, 100, 6)."""

    full_precision = ("anchors",)
    published_classes = (
        "models.ssd_mobilenet_v1.Block",
        "models.ssd_mobilenet_v1.MobileNetV1Base",
        "models.ssd_mobilenet_v1.PredictionHead",
        "models.ssd_mobilenet_v1.SSD",
        "models.utils.BatchNorm2d",
        "models.utils.BiasAdd",
        "models.utils.Conv2d_tf",
    )

    def __init__(self, candidates: int, channels_last: bool = False) -> None:
        super().__init__()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._candidates = candidates
        widths = [STEM_OUTPUTS, *(outputs for outputs, _ in LAYERS)]
        layers = [_separable(widths[i], outputs, stride) for i, (outputs, stride) in enumerate(LAYERS)]
        self.backbone = nn.ModuleList([_stem(), *layers])
        self.extras = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, inner, 1),
                nn.ReLU6(inplace=True),
                SameConv(inner, outputs, 2, bias=True),
                nn.ReLU6(inplace=True),
            )
            for inputs, (inner, outputs) in zip(WIDTHS[1:-1], EXTRAS, strict=True)
        )
        self.predictors = nn.ModuleList(Head(w, d) for w, d in zip(WIDTHS, DEFAULTS, strict=True))
        self.anchors = Anchors(anchors())
        # Attributes, so that compile() can put compiled ones in their place.
        self._measure: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self.predict
        self._spares = spares

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but the steps of suppression, which would unroll into minutes of compilation."""
        self._measure = torch.compile(self._measure, *args, **kwargs)
        self._spares = torch.compile(self._spares, *args, **kwargs)

    def fold(self) -> None:
        """Scales and biases into convolutions, and the two heads of a feature map into one."""
        for layer in self.backbone:
            for name, part in list(layer.named_children()):
                if isinstance(part, Affine):
                    part.fold_into(layer.get_submodule(name.removesuffix("/BatchNorm")))
                    setattr(layer, name, nn.Identity())
        for head in self.predictors:
            head.join()

    def predict(self, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (n, 1917, 4) in the order y, x, h, w, and class logits (n, 1917, 91)."""
        x = photos.permute(0, 3, 1, 2).to(self.backbone[0][0].weight.dtype, memory_format=self._format)
        x = x.sub_(PIXEL_SCALE).div_(PIXEL_SCALE)  # bytes less their middle are exact in half precision
        maps = []
        for i, layer in enumerate(self.backbone):
            x = layer(x)
            if i in TAPPED:
                maps.append(x)
        for layer in self.extras:
            x = layer(x)
            maps.append(x)
        logits, codes = zip(*(head(y) for head, y in zip(self.predictors, maps, strict=True)), strict=True)
        return torch.cat(codes, 1), torch.cat(logits, 1)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Rows [ymin, xmin, ymax, xmax, score, class], best first; unused ones have the score -1."""
        return self.detect(*self._measure(photos))

    def detect(self, codes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """What predict() gives, decoded and suppressed class by class: rows (n, 100, 6).

        The best candidates of all classes are taken by their logits, since the sigmoid keeps the order.
        """
        logits, position = logits[:, :, 1:].flatten(1).topk(self._candidates, 1)
        anchor, classes = position // (CLASSES - 1), position % (CLASSES - 1) + 1
        scores = logits.float().sigmoid()
        scores = scores.masked_fill(scores <= SCORE_THRESHOLD, 0)
        codes = codes.gather(1, anchor[:, :, None].expand(-1, -1, 4)).mT
        low, high = decode(codes, self.anchors.values[:, anchor].transpose(0, 1), CENTRE_SCALE, SIZE_SCALE)
        corners = torch.cat([low, high], 1)
        boxes = Corners(*corners.unbind(1))
        others = boxes.at((slice(None), None))
        spared = self._spares(boxes.at((..., None)), others) | (classes[:, :, None] != classes[:, None])
        spared.diagonal(dim1=1, dim2=2).fill_(False)
        scores, position = choose(scores, spared, min(DETECTIONS, self._candidates))
        boxes = Corners(*corners.gather(2, position[:, None].expand(-1, 4, -1)).unbind(1))
        return rows_of(boxes, scores, classes.gather(1, position))


def spares(one: Corners, other: Corners) -> torch.Tensor:
    """Whether `one` leaves `other` of its class alone: IoU <= 0.6, by box_iou of the reference's utils.py."""
    width = torch.minimum(one.xmax, other.xmax).sub_(torch.maximum(one.xmin, other.xmin)).clamp_(min=0)
    height = torch.minimum(one.ymax, other.ymax).sub_(torch.maximum(one.ymin, other.ymin)).clamp_(min=0)
    overlap = width.mul_(height)
    union = (_area(one) + _area(other)).sub_(overlap).add_(AREA_EPSILON)
    return overlap.div_(union) <= OVERLAP_THRESHOLD


def _area(boxes: Corners) -> torch.Tensor:
    return (boxes.ymax - boxes.ymin).clamp(min=0) * (boxes.xmax - boxes.xmin).clamp(min=0)


def anchors() -> torch.Tensor:
    """(4, 1917): y, x, h, w relative to the image, in the order of the heads' outputs."""
    step = (LARGEST_SCALE - SMALLEST_SCALE) / (len(GRIDS) - 1)
    scales = [*(SMALLEST_SCALE + step * i for i in range(len(GRIDS))), 1.0]
    found = []
    for i, cells in enumerate(GRIDS):
        if i == 0:
            shapes = [(FIRST_SCALE, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        else:
            shapes = [*((scales[i], ratio) for ratio in RATIOS), (math.sqrt(scales[i] * scales[i + 1]), 1.0)]
        scale, ratio = torch.tensor(shapes).unbind(1)
        centres = torch.arange(cells, dtype=torch.float32) * (1 / cells) + 0.5 / cells
        y, x, shape = torch.meshgrid(centres, centres, torch.arange(len(shapes)).float(), indexing="ij")
        centre = torch.stack([y.flatten(), x.flatten()])
        size = torch.stack([scale / ratio.sqrt(), scale * ratio.sqrt()])[:, shape.flatten().long()]
        low, high = centre - 0.5 * size, centre + 0.5 * size
        # Through the corners and back, as the reference: the last bits follow.
        found.append(torch.cat([low + 0.5 * (high - low), high - low]))
    return torch.cat(found, 1)


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network in the memory layout that is asked for."""
    candidates = options["candidates"]
    if not isinstance(candidates, int) or not 1 <= candidates <= 1917 * (CLASSES - 1):
        raise ModelError("ssd-mobilenet: candidates must be a number from 1 to 172530")
    return SsdMobilenet(candidates, channels_last)
