"""ResNet-50 in int8: the folded network of resnet50.py, quantised, and the way to its scales.

What is int8: every convolution, its input and its output. The mean over the last image and the classifier are
float16. On a CPU the very integers are computed in plain torch (slow, for tests and calibration); on CUDA by
the Triton kernels of resnet50_launch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.models import ModelError, open_kernels
from workers.models.int8_conv import ConvShape, Int8Conv, Tensors
from workers.models.quantise import CORRECTION_DIGITS, Observe, activation_scales, quantise_weights
from workers.models.scales import Method, Origin, Scales

SIDE = 224
FIRST, CLASSIFIER = "conv1", "fc"  # torchvision's names; tensors are named for the layer they come from
POOLED = "maxpool"
# Pixels 0 to 255 enter as -128 to 127, without loss.
PIXEL_SHIFT = 128
# The first convolution, 7x7 with stride 2 over 3 channels, as 4x4 with stride 1 over squares of 2x2 pixels:
# 12 bytes and 4 of nothing, so that a row of a tap is 64 bytes in one piece.
SQUARES, SQUARE_BYTES = 115, 16
Heard = Callable[[int, int], None]  # told how many steps are done, of how many


def blocks(folded: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of the 16 blocks, in order."""
    for stage in range(1, 5):
        for i, block in enumerate(getattr(folded, f"layer{stage}")):
            yield f"layer{stage}.{i}", block


@torch.no_grad()
def float_scores(folded: Any, photos: torch.Tensor, observe: Observe) -> torch.Tensor:
    """What the folded network computes, telling of every tensor that will be int8."""

    def seen(name: str, values: torch.Tensor) -> torch.Tensor:
        observe(name, values)
        return torch.relu(values)

    x = photos.permute(0, 3, 1, 2).to(folded.conv1.weight.dtype) - folded._mean
    x = functional.max_pool2d(seen(FIRST, folded.conv1(x)), 3, 2, 1)
    for name, block in blocks(folded):
        y = seen(f"{name}.conv1", block.conv1(x))
        y = seen(f"{name}.conv2", block.conv2(y))
        shortcut = x if block.downsample is None else block.downsample(x)
        x = seen(f"{name}.conv3", block.conv3(y) + shortcut)
    return folded.fc(x.mean((2, 3)))


class Int8ResNet50(nn.Module):
    """uint8 photos (n, 224, 224, 3), RGB -> classes int64 (n,), as resnet50.ResNet50."""

    weight_data_types = "int8 (convolutions), fp16 (classifier)"
    numbers = (
        "Batch normalisation: folded into the convolutions before anything is quantised; calibrated in fp64.",
        "Activations: int8, symmetric, one scale a tensor.",
        "Weights: int8, symmetric, one scale an output channel: its largest absolute value is step 127.",
        "Sums: int32. Biases: fp32. What is no convolution is computed in fp16.",
    )
    pads: torch.Tensor
    fc_weight: torch.Tensor
    fc_bias: torch.Tensor

    def __init__(self, folded: Any, scales: Scales, device: torch.device) -> None:
        super().__init__()
        _check_names(folded, scales)
        self.layers = nn.ModuleList(_layers(folded, scales.activations))
        # What stands around a photo: the mean, which is zero to the network; four pixels to a square.
        mean = (folded._mean.flatten().cpu() - PIXEL_SHIFT).round().clamp(-128, 127).to(torch.int8)
        self.register_buffer("pads", functional.pad(mean.repeat(4), (0, SQUARE_BYTES - 12)))
        last = self.layers[-1].shape
        self.pool_scale = scales.activations[self.layers[-1].name] / (last.P * last.Q)
        self.register_buffer("fc_weight", folded.fc.weight.detach().half())
        self.register_buffer("fc_bias", folded.fc.bias.detach().float().clone())
        for name, values in scales.corrections.items():
            bias = self.fc_bias if name == CLASSIFIER else self.get_submodule(self.layer_names()[name]).bias
            bias += torch.tensor(values, device=bias.device)
        self.fc_bias = self.fc_bias.half()
        self.eval().to(device)
        self.kernels = open_kernels("resnet50_launch").Launches(self) if device.type == "cuda" else None

    def layer_names(self) -> dict[str, str]:
        """Name of a layer in the float network -> its name here."""
        return {layer.name: f"layers.{i}" for i, layer in enumerate(self.layers)}

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Classes."""
        return self.scores(photos).argmax(1)

    def scores(self, photos: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 224, 224, 3) -> scores (n, 1000)."""
        means = self.means(photos) if self.kernels is None else self.kernels.means(photos)
        weight, bias = self.fc_weight, self.fc_bias
        if not photos.is_cuda:  # CPUs are slow in half precision
            return functional.linear(means.float(), weight.float(), bias.float())
        return functional.linear(means, weight, bias)

    @torch.no_grad()
    def means(self, photos: torch.Tensor) -> torch.Tensor:
        """What the classifier sees, float16 (n, 2048), by the exact integers."""
        held = {"photos": pack(photos, self.pads)}
        for i, layer in enumerate(self.layers):
            self.keep(held, i, layer(held))
        return self.mean(held[self.layers[-1].name])

    def keep(self, held: Tensors, number: int, out: torch.Tensor) -> None:
        """Add the output of layer `number`, pooled after the first; drop what no later layer reads."""
        held[self.layers[number].name] = out
        if number == 0:
            pooled = functional.max_pool2d(out.permute(0, 3, 1, 2).float(), 3, 2, 1)
            held[POOLED] = pooled.permute(0, 2, 3, 1).to(torch.int8)
        later = {word for one in self.layers[number + 1 :] for word in (one.x, one.x2, one.res)}
        for name in held.keys() - later - {self.layers[-1].name}:
            del held[name]

    def mean(self, last: torch.Tensor) -> torch.Tensor:
        """int8 (n, 7, 7, 2048) -> float16 (n, 2048)."""
        return (last.float().sum((1, 2)) * self.pool_scale).half()


def tensor_names(folded: Any) -> list[str]:
    """Every tensor that is int8 but for the photos, in order; each is named for its layer."""
    return [FIRST, *(f"{name}.conv{i}" for name, _ in blocks(folded) for i in (1, 2, 3))]


def _check_names(folded: Any, scales: Scales) -> None:
    """ModelError unless the scales are of this network's tensors, the corrections of its layers' channels."""
    names = tensor_names(folded)
    if scales.activations.keys() != set(names):
        odd = sorted(scales.activations.keys() ^ set(names))
        raise ModelError(
            f"the scales do not fit the network's tensors: {len(odd)} differ, first {odd[0]!r:.60}"
        )
    for name, values in scales.corrections.items():
        if name not in (*names, CLASSIFIER):
            raise ModelError(f"the scales correct a layer {name!r:.60}, which the network does not have")
        wanted = len(folded.get_submodule(name).bias)
        if len(values) != wanted:
            raise ModelError(f"the scales correct {len(values)} channels of {name}, which has {wanted}")


def _layers(folded: Any, scales: dict[str, float]) -> list[Int8Conv]:
    """Quantise every convolution."""
    layers = [_first(folded, scales[FIRST])]
    # A block's input must last until its end: block outputs lie in two buffers in turn.
    x, in_scale, side, place = POOLED, scales[FIRST], SIDE // 4, 0
    for name, block in blocks(folded):
        s1, s2, s3 = (scales[f"{name}.conv{i}"] for i in (1, 2, 3))
        stride, stage = block.conv2.stride[0], name.split(".")[0].replace("layer", "l")
        tall = f"{stage}.1.{block.conv1.in_channels}"
        layers.append(_conv(f"{name}.conv1", tall, "inner1", x, side, block.conv1, (in_scale, s1)))
        kind = f"{stage}.2.s2" if stride == 2 else f"{stage}.2"
        layers.append(_conv(f"{name}.conv2", kind, "inner2", f"{name}.conv1", side, block.conv2, (s1, s2)))
        side //= stride
        kind = f"{stage}.3" if block.downsample is None else f"{stage}.3.first"
        project = None if block.downsample is None else block.downsample[0]
        added = {"RES": 1} if project is None else {"C2": project.in_channels, "STRIDE2": stride}
        last = _conv(
            f"{name}.conv3", kind, f"out{place}", f"{name}.conv2", side, block.conv3, (s2, s3), added
        )
        if project is None:
            last.res, last.res_mult = x, in_scale / s3
        else:
            steps, scale = quantise_weights(project.weight)
            last.add_second(x, steps, scale * in_scale / s3)
        layers.append(last)
        x, in_scale, place = last.name, s3, 1 - place
    return layers


def _conv(
    name: str,
    kind: str,
    place: str,
    x: str,
    side: int,
    conv: nn.Conv2d,
    scales: tuple[float, float],
    added: dict[str, int] | None = None,
) -> Int8Conv:
    """A layer of the network from its float convolution; `scales`: of its input and of its output."""
    steps, scale = quantise_weights(conv.weight)
    size, stride, pad = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    p = (side + 2 * pad - size) // stride + 1
    c, n = conv.in_channels, conv.out_channels
    shape = ConvShape(side, side, c, c, size, size, stride, pad, p, p, n, **(added or {}))
    weights = (steps.permute(0, 2, 3, 1), scale * scales[0] / scales[1], conv.bias.double() / scales[1])
    return Int8Conv(name, kind, place, x, shape, weights)


def _first(folded: Any, out_scale: float) -> Int8Conv:
    """The first convolution, over squares of pixels (see SQUARES).

    A pixel u enters as u - 128; what that differs from u - mean by goes into the bias.
    """
    steps, scale = quantise_weights(folded.conv1.weight)
    n = steps.shape[0]
    shift = PIXEL_SHIFT - folded._mean.flatten().double()
    offset = (steps.double().sum((2, 3)) * shift).sum(1) * scale
    taps = functional.pad(steps, (0, 1, 0, 1)).view(n, 3, 4, 2, 4, 2)  # n c R dy S dx
    w = torch.zeros(n, 4, 4, SQUARE_BYTES, dtype=torch.int8, device=steps.device)
    w[..., :12] = taps.permute(0, 2, 4, 3, 5, 1).reshape(n, 4, 4, 12)
    bias = (folded.conv1.bias.double() + offset) / out_scale
    # A tap is a row of four squares: 64 bytes.
    shape = ConvShape(SQUARES, SQUARES, SQUARE_BYTES, 4 * SQUARE_BYTES, 4, 1, 1, 0, 112, 112, n)
    return Int8Conv(FIRST, "stem", "out0", "photos", shape, (w, scale / out_scale, bias))


def pack(photos: torch.Tensor, pads: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 224, 224, 3) -> int8 (n, 115, 115, 16): `pads` around, squares of 2x2 pixels in one piece."""
    n, whole = photos.shape[0], 2 * SQUARES
    x = pads[:3].expand(n, whole, whole, 3).clone()
    x[:, 3 : 3 + SIDE, 3 : 3 + SIDE] = (photos.to(torch.int16) - PIXEL_SHIFT).to(torch.int8)
    x = x.view(n, SQUARES, 2, SQUARES, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(n, SQUARES, SQUARES, 12)
    return functional.pad(x, (0, SQUARE_BYTES - 12))


# ---- the way to the scales ----


def calibrated(
    folded: Any,
    batches: Sequence[torch.Tensor],
    method: Method,
    correct: bool = True,
    heard: Heard = lambda done, total: None,
) -> dict[str, Any]:
    """`activations` and `corrections` of Scales, from uint8 photos on the network's device.

    The float network is computed in float64: what it sums differs by the order, so by the number of CPU
    threads, in fp32 enough to round an activation otherwise here and there; after some layers the rounding of
    all is another, and with 4 photos corrections differed by 0.16 steps.
    """
    exact = copy.deepcopy(folded).double()
    passes = (2 if method == "mse" else 1) + (1 + len(tensor_names(folded)) if correct else 0)
    total, done = passes * len(batches), 0

    def step() -> None:
        nonlocal done
        done += 1
        heard(done, total)

    def run(batch: torch.Tensor, observe: Observe) -> torch.Tensor:
        return float_scores(exact, batch, observe)

    found = activation_scales(run, batches, method, step)
    corrections = correct_biases(folded, exact, found, batches, step) if correct else {}
    return {"activations": found, "corrections": corrections}


@torch.no_grad()
def correct_biases(
    folded: Any,
    double: Any,
    activations: dict[str, float],
    batches: Sequence[torch.Tensor],
    step: Callable[[], None],
) -> dict[str, list[float]]:
    """What to add to each bias so that its channel's mean over the photos is the float network's, `double`'s.

    Rounding weights and clipping activations shift means, and shifts add up over 50 layers (Nagel et al.,
    ICCV 2019, section 4.2; here with data instead of norms). Layer after layer: each sees those before it
    corrected.
    """
    photos = sum(len(batch) for batch in batches)
    wanted: dict[str, torch.Tensor] = {}

    def add(name: str, values: torch.Tensor) -> None:
        mean = values.double().mean((0, 2, 3)) * (len(values) / photos)
        wanted[name] = wanted[name] + mean if name in wanted else mean

    exact = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        exact = exact.to(batch.device) + float_scores(double, batch, add).sum(0) / photos
        step()
    device = exact.device
    plain = Scales(
        model="",
        model_hash="",
        weights="",
        method="max",
        samples=Origin(),
        activations=activations,
        corrections={},
    )
    network = Int8ResNet50(folded, plain, torch.device("cpu")).to(device)
    held = [{"photos": pack(batch, network.pads)} for batch in batches]
    corrections: dict[str, list[float]] = {}
    for i, layer in enumerate(network.layers):
        found = torch.zeros(layer.shape.N, dtype=torch.float64, device=device)
        for some in held:
            y = layer.before_cut(some)
            found += y.double().mean((0, 1, 2)) * (len(y) / photos)
        corrections[layer.name] = _rounded(wanted[layer.name] / activations[layer.name] - found)
        layer.bias += torch.tensor(corrections[layer.name], device=device)
        for some in held:  # computed anew: what is added later is rounded otherwise than in a run
            network.keep(some, i, layer(some))
            step()
    last = network.layers[-1].name
    means = torch.cat([network.mean(some[last]) for some in held]).double()
    found = functional.linear(means.mean(0), network.fc_weight.double(), network.fc_bias.double())
    corrections[CLASSIFIER] = _rounded(exact - found)
    return corrections


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, CORRECTION_DIGITS) for value in values.tolist()]
