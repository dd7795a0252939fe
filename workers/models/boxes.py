"""What the detection networks share: decoding, non-maximum suppression and the rows that leave the device.

Everything has a fixed shape and nothing waits for the device, so a CUDA graph can hold it: where the
reference drops a candidate, here its score is masked. Boxes are four planes of equal shape, Corners.

It is all float32, whatever the network computes in: half precision has 11 bits, so near the far edge of a
1200-pixel image a corner would move by up to 0.3 pixels, which is 3 % of the IoU of a box of 20 pixels, and
COCO's strictest threshold leaves 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

ROW = 6  # ymin, xmin, ymax, xmax (all relative, 0 to 1), score, class
UNUSED_SCORE = -1.0
# Pairs of boxes are compared in blocks of so many rows: only what is not below the diagonal (56 % of all
# pairs of 200 candidates), and an intermediate result of 64 images x 80 classes stays near 100 MB.
BLOCK_ROWS = 25


class Corners(NamedTuple):
    """Boxes as four tensors of equal shape."""

    ymin: torch.Tensor
    xmin: torch.Tensor
    ymax: torch.Tensor
    xmax: torch.Tensor

    def at(self, index: object) -> Corners:
        """The same index into every plane."""
        return Corners(*(plane[index] for plane in self))


# (one, other) -> True where `other` is spared although `one` was chosen; broadcasts.
Spares = Callable[[Corners, Corners], torch.Tensor]


class Anchors(nn.Module):
    """Anchors (4, N): they travel with the network, are in no checkpoint, and stay in float32."""

    values: torch.Tensor

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values, persistent=False)


def decode(
    codes: torch.Tensor, anchors: torch.Tensor, centre_scale: float, size_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two corners, each (n, 2, N), from codes (n, 4, N) and anchors (..., 4, N): two centres, two sizes.

    Which of x and y is first is for the caller to know. Source: scale_back_batch of the reference's
    ssd_r34.py and decode_boxes of its utils.py, which agree but for the scales.
    """
    codes = codes.float()
    sizes = anchors[..., 2:, :]
    centres = codes[:, :2] * centre_scale * sizes + anchors[..., :2, :]
    half = (codes[:, 2:] * size_scale).exp() * sizes * 0.5
    return centres - half, centres + half


def suppress(boxes: Corners, dead: torch.Tensor, spares: Spares) -> torch.Tensor:
    """Greedy suppression of each row of (..., K) candidates, best first; `dead` ones neither live nor kill.

    Returns `dead` with what better candidates suppress. K steps of two kernels, however many rows there are.
    """
    dead = dead.clone()
    count = dead.shape[-1]
    for start in range(0, count, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, count)
        ones = boxes.at((..., slice(start, stop), None))
        others = boxes.at((..., None, slice(start, None)))
        kills = ~spares(ones, others)
        for i in range(start, stop):
            row = kills[..., i - start, i - start + 1 :]
            # True > False: it kills, and is not dead itself.
            dead[..., i + 1 :] |= row > dead[..., i, None]
    return dead


def choose(scores: torch.Tensor, spared: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy choice of `count` out of (n, M) candidates: (scores, positions), each (n, count), best first.

    `spared` (n, M, M): [i, j] is False where choosing i ends j, and on the diagonal. Scores are positive;
    once nothing is left the score is 0. Three kernels a choice: cheaper than suppress() if count is below M.
    """
    left = scores.clone()
    size = left.shape[1]
    chosen, positions = [], []
    for _ in range(count):
        best, position = left.max(1, keepdim=True)
        left *= spared.gather(1, position[:, :, None].expand(-1, 1, size))[:, 0]
        chosen.append(best)
        positions.append(position)
    return torch.cat(chosen, 1), torch.cat(positions, 1)


def rows_of(boxes: Corners, scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(n, K, 6) float32 from planes (n, K); a row whose score is not positive is unused."""
    rows = torch.stack([*boxes, scores, classes.float()], 2)
    unused = rows.new_zeros(ROW)
    unused[4:5].fill_(UNUSED_SCORE)  # unused[4] = ... copies from the host, which a graph cannot hold
    return torch.where(scores[..., None] > 0, rows, unused)


def join(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution with the outputs of several that read the same input, then zeros up to a multiple of 8.

    Tensor cores want rows of 16 bytes; 91 classes x 3 anchors are none. The caller drops the extra outputs.
    """
    first = convs[0]
    outputs = sum(conv.out_channels for conv in convs)
    joined = nn.Conv2d(
        first.in_channels, -(-outputs // 8) * 8, first.kernel_size, first.stride, first.padding
    )
    with torch.no_grad():
        for mine, theirs in ((joined.weight, "weight"), (joined.bias, "bias")):
            parts = torch.cat([getattr(conv, theirs) for conv in convs])
            mine.zero_()[:outputs] = parts
    return joined
