"""SSD-ResNet34 at 1200x1200, 81 classes, 15,130 anchors.

Source: models/ssd_r34.py and models/base_model_r34.py of the reference (vision/classification_and_detection,
v1.0.1); parameter names are those of its module, so of resnet34-ssd1200.pytorch. Classes leave as the network
numbers them, 1 to 80: the reference's script takes them with --use-inv-map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from workers.models import ModelError
from workers.models.boxes import Anchors, Corners, decode, join, rows_of, suppress

CLASSES = 81  # background is 0
DEFAULTS = (4, 6, 6, 6, 4, 4)  # anchors a cell, by feature map
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SCALES = (21, 45, 99, 153, 207, 261, 315)  # pixels of a 300-pixel image
WIDTHS = (256, 512, 512, 256, 256, 256)
EXTRA_SHAPES = ((2, 1), (2, 1), (2, 1), (2, 0), (1, 0))  # stride and padding of the 3x3 between feature maps
SMALLEST_IMAGE = 385  # smaller ones leave nothing for the sixth feature map
HEAD_STRIDE = 3
CENTRE_SCALE, SIZE_SCALE = 0.1, 0.2
# Encoder.decode_single and its call in SSD_R34.forward: these four.
SCORE_THRESHOLD = 0.05
OVERLAP_THRESHOLD = 0.5
CLASS_CANDIDATES = 200
DETECTIONS = 200
# dataset.py, pre_process_coco_resnet34, there of pixels / 255; one number a channel, R, G, B.
PIXEL_MEAN = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
PIXEL_DEVIATION = tuple(255 * deviation for deviation in (0.229, 0.224, 0.225))
# `image_size`: pixels a side; another size than the benchmark's is for trying things out.
OPTIONS: dict[str, Any] = {"image_size": 1200}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return functional.relu(y, inplace=True)

    def fold(self) -> None:
        """The three norms into their convolutions."""
        self.conv1, self.bn1 = fuse_conv_bn_eval(self.conv1, self.bn1), nn.Identity()
        self.conv2, self.bn2 = fuse_conv_bn_eval(self.conv2, self.bn2), nn.Identity()
        if self.downsample is not None:
            self.downsample = nn.Sequential(fuse_conv_bn_eval(*self.downsample))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


class Backbone(nn.Module):
    """ResNet34 up to its third stage, which does not stride here: 1/8 of the image's side, 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            _stage(64, 64, 3, 1),
            _stage(64, 128, 4, 2),
        )
        self.layer2 = nn.Sequential(_stage(128, 256, 6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) -> (n, 256, s / 8, s / 8)."""
        return self.layer2(self.layer1(x))


class SsdResnet34(nn.Module):
    """uint8 (n, s, s, 3) or normalised float (n, 3, s, s) -> rows of detections, float32 (n, 200, 6)."""

    full_precision = ("anchors",)
    published_classes = (
        "models.base_model_r34.ResNet34",
        "models.ssd_r34.Encoder",
        "models.ssd_r34.SSD_R34",
        "torchvision.models.resnet.BasicBlock",
    )

    def __init__(self, image_size: int, channels_last: bool = False) -> None:
        super().__init__()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = Backbone()
        inner = (256, 256, 128, 128, 128)
        self.additional_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTHS[i], inner[i], 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner[i], WIDTHS[i + 1], 3, stride, padding),
                nn.ReLU(inplace=True),
            )
            for i, (stride, padding) in enumerate(EXTRA_SHAPES)
        )
        self.loc = nn.ModuleList(_head(w, 4 * d) for w, d in zip(WIDTHS, DEFAULTS, strict=True))
        self.conf = nn.ModuleList(_head(w, CLASSES * d) for w, d in zip(WIDTHS, DEFAULTS, strict=True))
        self._joined = False
        self.anchors = Anchors(anchors(image_size))
        self.register_buffer("_mean", torch.tensor(PIXEL_MEAN), persistent=False)
        self.register_buffer("_factor", 1 / torch.tensor(PIXEL_DEVIATION), persistent=False)
        # Attributes, so that compile() can put compiled ones in their place.
        self._measure: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self.predict
        self._spares = spares

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but the steps of suppression, which would unroll into minutes of compilation.

        Pairs of boxes come in blocks of many shapes, so they get one kernel for all of them.
        """
        self._measure = torch.compile(self._measure, *args, **kwargs)
        self._spares = torch.compile(self._spares, *args, **{**kwargs, "dynamic": True})

    def fold(self) -> None:
        """Norms into convolutions, and the two heads of a feature map into one."""
        stem = self.model.layer1
        stem[0], stem[1] = fuse_conv_bn_eval(stem[0], stem[1]), nn.Identity()
        for block in self.modules():
            if isinstance(block, BasicBlock):
                block.fold()
        self.conf = nn.ModuleList(join(pair) for pair in zip(self.loc, self.conf, strict=True))
        del self.loc
        self._joined = True

    def predict(self, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (n, 4, anchors) in the order x, y, w, h, and class logits (n, 81, anchors)."""
        x = self.model(self._normalised(photos))
        codes, logits = [], []
        for i, defaults in enumerate(DEFAULTS):
            if i:
                x = self.additional_blocks[i - 1](x)
            both = self.conf[i](x) if self._joined else torch.cat([self.loc[i](x), self.conf[i](x)], 1)
            split = 4 * defaults
            codes.append(_by_anchor(both[:, :split], 4))
            logits.append(_by_anchor(both[:, split : split + CLASSES * defaults], CLASSES))
        return torch.cat(codes, 2), torch.cat(logits, 2)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Rows [ymin, xmin, ymax, xmax, score, class], best first; unused ones have the score -1."""
        return self.detect(*self._measure(photos))

    def detect(self, codes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """What predict() gives, decoded and suppressed class by class: rows (n, 200, 6)."""
        scores = functional.softmax(logits, 1, dtype=torch.float32)[:, 1:]
        scores, index = scores.topk(min(CLASS_CANDIDATES, scores.shape[2]), 2)
        low, high = decode(codes, self.anchors.values, CENTRE_SCALE, SIZE_SCALE)
        corners = _take(torch.cat([low, high], 1), index.flatten(1))
        xmin, ymin, xmax, ymax = corners.unflatten(2, index.shape[1:]).unbind(1)
        dead = suppress(Corners(ymin, xmin, ymax, xmax), scores <= SCORE_THRESHOLD, self._spares)
        kept = scores.masked_fill(dead, 0).flatten(1)
        scores, position = kept.topk(min(DETECTIONS, kept.shape[1]), 1)
        xmin, ymin, xmax, ymax = _take(corners, position).unbind(1)
        classes = position // index.shape[2] + 1
        return rows_of(Corners(ymin, xmin, ymax, xmax), scores, classes)

    def _normalised(self, photos: torch.Tensor) -> torch.Tensor:
        """Bytes lose their mean first: it is exact to 1/16 in half precision, and so is the difference."""
        if photos.dtype is not torch.uint8:
            return photos.to(self._mean.dtype, memory_format=self._format)
        x = photos.permute(0, 3, 1, 2) - self._mean[:, None, None]
        x *= self._factor[:, None, None]
        return x.contiguous(memory_format=self._format)


def spares(one: Corners, other: Corners) -> torch.Tensor:
    """Whether `one` leaves `other` alone: IoU < 0.5, as the reference computes it.

    calc_iou_tensor means to set negative sides to 0 but does so to a copy, so two boxes that lie apart in x
    and in y have a positive "overlap", the product of their gaps, and can end each other.
    """
    width = torch.minimum(one.xmax, other.xmax).sub_(torch.maximum(one.xmin, other.xmin))
    height = torch.minimum(one.ymax, other.ymax).sub_(torch.maximum(one.ymin, other.ymin))
    overlap = width.mul_(height)
    union = (_area(one) + _area(other)).sub_(overlap)
    return overlap.div_(union) < OVERLAP_THRESHOLD


def _area(boxes: Corners) -> torch.Tensor:
    return (boxes.xmax - boxes.xmin) * (boxes.ymax - boxes.ymin)


def _head(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, HEAD_STRIDE, 1)


def _by_anchor(y: torch.Tensor, groups: int) -> torch.Tensor:
    """(n, groups x defaults, h, w) -> (n, groups, defaults x h x w)."""
    return y.unflatten(1, (groups, -1)).flatten(2)


def _take(planes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(n, 4, N) at (n, m) -> (n, 4, m)."""
    return planes.gather(2, index[:, None].expand(-1, 4, -1))


def grid_sizes(image_size: int) -> list[int]:
    """Cells along a side of the six grids of anchors."""
    side = image_size
    for _ in range(3):  # the stem, its pool and the second stage
        side = -(-side // 2)
    sides = [side]
    for stride, padding in EXTRA_SHAPES:
        sides.append((sides[-1] + 2 * padding - 3) // stride + 1)
    return [-(-side // HEAD_STRIDE) for side in sides]


def anchors(image_size: int) -> torch.Tensor:
    """(4, anchors): x, y, w, h relative to the image, in the order of the heads' outputs.

    Source: DefaultBoxes and dboxes_R34_coco.
    """
    boxes: list[tuple[float, float, float, float]] = []
    scales = [int(scale * image_size / 300) for scale in SCALES]
    for i, cells in enumerate(grid_sizes(image_size)):
        small, next_small = scales[i] / image_size, scales[i + 1] / image_size
        between = math.sqrt(small * next_small)
        sizes = [(small, small), (between, between)]
        for ratio in RATIOS[i]:
            long, short = small * math.sqrt(ratio), small / math.sqrt(ratio)
            sizes += [(long, short), (short, long)]
        step = image_size // int(image_size / cells)
        for (w, h), row, column in itertools.product(sizes, range(cells), range(cells)):
            boxes.append(((column + 0.5) / step, (row + 0.5) / step, w, h))
    return torch.tensor(boxes).clamp_(0, 1).T.contiguous()


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    """The network for photos of `image_size` pixels a side."""
    size = options["image_size"]
    if not isinstance(size, int) or size < SMALLEST_IMAGE:
        raise ModelError(f"ssd-resnet34: image_size must be a number of pixels from {SMALLEST_IMAGE} up")
    return SsdResnet34(size, channels_last)
