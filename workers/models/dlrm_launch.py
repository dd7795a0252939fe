"""The 8-bit DLRM on a GPU: which kernel is launched when, and with which shape. Imports Triton.

A batch is six launches on one stream, with all of its pairs in each: cut into chunks that stay in L2, or over
several streams, it is slower (H100, 270,336 pairs: 158 million pairs/s whole, 134 to 154 otherwise). Nothing
waits for the device, and what lies between the layers is taken anew, so a graph has it in its own memory.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from workers.models import ModelError, dlrm_kernels
from workers.models.dlrm_int8 import E4M3, Int8Dlrm
from workers.tasks.criteo import ROW_WORDS, SPARSE

triton = dlrm_kernels.triton
# The benchmark's network, for which the kernels are made: inputs (padded) and outputs of each layer.
BOTTOM = ((512, 16), (256, 512), (128, 256))
TOP = ((1024, 480), (1024, 1024), (512, 1024), (256, 512))
DIM, WIDTH, FEATURES = 128, 480, 1 + SPARSE
# Shapes that were the fastest of 106 on an H100 (torch 2.11, Triton 3.6): rows a program, then what the
# kernel's arguments say, warps, stages.
BOTTOM_SHAPE = (64, 128, 4, 2)
INTERACT_SHAPE = (4, 4)
TOP_SHAPES = ((128, 256, 128, 8, 3), (128, 256, 128, 8, 3), (256, 128, 128, 8, 3))
LAST_SHAPE = (128, 128, 8, 3)
# e4m3 by wgmma and copies by TMA are of Hopper.
LEAST_CAPABILITY = (9, 0)
INTERPRETED_PROGRAMS = 5


class Launches:
    """Runs `network`: int32 pairs (r, 39) on its device -> float32 (r,)."""

    def __init__(self, network: Int8Dlrm) -> None:
        layers: list[Any] = [*network.bottom, *network.top]
        shapes = tuple(tuple(layer.w.shape) for layer in layers)
        if shapes != BOTTOM + TOP or network.table.shape[1] != DIM or len(network.rows) != SPARSE:
            raise ModelError(
                "precision int8 on a GPU computes the benchmark's DLRM alone; leave dim, bottom and top out "
                "of backend.options"
            )
        self._network = network
        self._programs = _programs(network.table.device)
        # What a kernel reads for 32 features, of which 27 are there: the bottom's, the tables', nothing.
        beyond = (1, 31 - SPARSE)
        self.firsts = torch.nn.functional.pad(network.firsts, beyond)
        self.lasts = torch.nn.functional.pad(network.lasts, beyond)
        rest = 32 - FEATURES
        self.mult = torch.nn.functional.pad(network.mult, (0, rest, 0, rest)).contiguous()
        self.first_w = network.bottom[0].w.t().contiguous()

    def facts(self) -> dict[str, Any]:
        """What a record says of the kernels."""
        return {"triton": str(triton.__version__), "shapes": "as tuned on an H100"}

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """See Launches."""
        count, device = len(rows), rows.device
        left = torch.empty((count, DIM), dtype=torch.int8, device=device)
        x = torch.empty((count, WIDTH), dtype=E4M3, device=device)
        self.bottom(rows, left, x)
        self.interact(rows, left, x)
        for number, (width, _) in enumerate(TOP[:-1]):
            y = torch.empty((count, width), dtype=E4M3, device=device)
            self.layer(number, x, y)
            x = y
        out = torch.empty(count, dtype=torch.float32, device=device)
        self.last(x, out)
        return out

    def bottom(self, rows: torch.Tensor, left: torch.Tensor, wide: torch.Tensor) -> None:
        """The bottom's output, int8 to `left` and e4m3 to the first columns of `wide`."""
        bm, part, warps, stages = BOTTOM_SHAPE
        one, two, three = self._network.bottom
        dlrm_kernels.bottom[(-(-len(rows) // bm),)](
            rows,
            self.first_w,
            one.mult,
            one.bias,
            *(two.w, two.mult, two.bias),
            *(three.w, three.mult, three.bias),
            left,
            wide,
            len(rows),
            self._network.inv_left,
            self._network.inv_wide,
            PITCH=ROW_WORDS,
            WIDTH=WIDTH,
            BM=bm,
            PART=part,
            num_warps=warps,
            num_stages=stages,
        )

    def interact(self, rows: torch.Tensor, left: torch.Tensor, wide: torch.Tensor) -> None:
        """The products of features, to the other columns of `wide`."""
        pairs, warps = INTERACT_SHAPE
        dlrm_kernels.interact[(-(-len(rows) // pairs),)](
            rows,
            self._network.table,
            left,
            self.firsts,
            self.lasts,
            self.mult,
            wide,
            len(rows),
            PITCH=ROW_WORDS,
            WIDTH=WIDTH,
            B=pairs,
            num_warps=warps,
        )

    def layer(self, number: int, x: torch.Tensor, out: torch.Tensor) -> None:
        """Layer `number` of the top, all but the last two."""
        bm, bn, bk, warps, stages = TOP_SHAPES[number]
        layer: Any = self._network.top[number]
        n, k = layer.w.shape
        tiles = -(-len(x) // bm) * (n // bn)
        dlrm_kernels.layer[(min(self._programs, tiles),)](
            _described(x, bm, bk),
            _described(layer.w, bn, bk),
            layer.mult,
            layer.bias,
            _described(out, bm, bn),
            len(x),
            *(n, k, bm, bn, bk, self._programs),
            num_warps=warps,
            num_stages=stages,
        )

    def last(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """The top's last two layers."""
        bm, bk, warps, stages = LAST_SHAPE
        layer: Any = self._network.top[-1]
        n, k = layer.w.shape
        dlrm_kernels.last[(-(-len(x) // bm),)](
            _described(x, bm, bk),
            _described(layer.w, n, bk),
            layer.mult,
            layer.bias,
            self._network.last_w,
            self._network.last_bias,
            out,
            len(x),
            *(n, k, bm, bk),
            num_warps=warps,
            num_stages=stages,
        )


def _described(x: torch.Tensor, rows: int, columns: int) -> Any:
    return TensorDescriptor.from_tensor(x, [rows, columns])


def _programs(device: torch.device) -> int:
    """How many programs stay, one to a multiprocessor; ModelError where the kernels cannot run."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    found = torch.cuda.get_device_properties(device)
    if (found.major, found.minor) < LEAST_CAPABILITY:
        raise ModelError(
            f"precision int8 of model 'dlrm' needs fp8, compute capability 9.0; {found.name} has "
            f"{found.major}.{found.minor}: use precision fp16"
        )
    return int(found.multi_processor_count)
