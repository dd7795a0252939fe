"""A convolution in int8, computed exactly in plain torch on any device: what the Triton kernels come to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from workers.models.quantise import TOP

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ConvShape:
    """What the kernel is compiled for, in its own words; see int8_kernels.conv.

    H x W pixels, PITCH bytes apart, of which C are a tap's; R x S taps, STRIDE, PAD; P x Q pixels of N
    channels come out. RES: a shortcut is added. C2 > 0: a 1x1 convolution of another tensor with C2 channels
    and STRIDE2 is added.
    """

    H: int
    W: int
    PITCH: int
    C: int
    R: int
    S: int
    STRIDE: int
    PAD: int
    P: int
    Q: int
    N: int
    C2: int = 0
    STRIDE2: int = 1
    RES: int = 0

    @property
    def steps(self) -> int:
        """Bytes that are multiplied for one output (without the second convolution's)."""
        return self.R * self.S * self.C

    def out_bytes(self, images: int) -> int:
        """Bytes of the output."""
        return images * self.P * self.Q * self.N


class Int8Conv(nn.Module):
    """One launch: convolve int8 NHWC, scale, add bias and shortcut, cut below zero, round to int8.

    It takes and gives tensors by name: `x` in, `name` out; `res` is the shortcut, worth `res_mult` steps of
    the output a step, and `x2` the second convolution's input. `mult` is steps of the output a unit of the
    integer sum, `bias` steps. Layers of one `kind` have one shape. `place`: the buffer its output may lie in.
    """

    w: torch.Tensor
    mult: torch.Tensor
    bias: torch.Tensor
    w2: torch.Tensor | None
    mult2: torch.Tensor | None

    def __init__(
        self, name: str, kind: str, place: str, x: str, shape: ConvShape, weights: tuple[torch.Tensor, ...]
    ) -> None:
        super().__init__()
        self.name, self.kind, self.place, self.x, self.shape = name, kind, place, x, shape
        self.res, self.res_mult, self.x2 = "", 0.0, ""
        w, mult, bias = weights
        self.register_buffer("w", w.reshape(shape.N, -1).contiguous())
        self.register_buffer("mult", mult.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("w2", None)
        self.register_buffer("mult2", None)

    def add_second(self, x2: str, w2: torch.Tensor, mult2: torch.Tensor) -> None:
        """The second convolution's input, weights [N, C2] and scale."""
        self.x2, self.w2, self.mult2 = x2, w2.reshape(self.shape.N, -1).contiguous(), mult2.float()

    def before_cut(self, held: Tensors) -> torch.Tensor:
        """float32 [n, P, Q, N], in steps of the output, before the ReLU."""
        shape = self.shape
        window = (shape.R, shape.S * shape.C // shape.PITCH)
        total = accumulate(held[self.x], self.w, window, shape.STRIDE, shape.PAD)
        # The kernel's order and its fused multiply-adds: one rounding to float32 each. It makes 128 + byte of
        # a byte of the shortcut, which costs one instruction, and takes the 128 from the bias.
        shift = self.bias - 128.0 * self.res_mult if self.res else self.bias
        y = multiply_add(total, self.mult, shift)
        if self.w2 is not None and self.mult2 is not None:
            second = accumulate(held[self.x2], self.w2, (1, 1), shape.STRIDE2, 0)
            y = multiply_add(second, self.mult2, y)
        if self.res:
            y = multiply_add(held[self.res].double() + 128, torch.tensor(self.res_mult), y)
        return y

    def forward(self, held: Tensors) -> torch.Tensor:
        """int8 [n, P, Q, N]."""
        return self.before_cut(held).clamp(min=0).round().clamp(max=TOP).to(torch.int8)


def accumulate(
    x: torch.Tensor, w: torch.Tensor, window: tuple[int, int], stride: int, pad: int
) -> torch.Tensor:
    """int8 [n, H, W, c] and [N, R * S * c] -> the integer sums [n, P, Q, N], as float64, which holds them."""
    kernel = w.view(w.shape[0], *window, x.shape[3]).permute(0, 3, 1, 2)
    y = functional.conv2d(x.permute(0, 3, 1, 2).double(), kernel.double(), None, stride, pad)
    return y.round_().permute(0, 2, 3, 1)  # some algorithms of cuDNN come to 3.0000001


def multiply_add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c of float32 values, rounded once."""
    return (a.float().double() * b.float().double() + c.double()).float()
