"""The int8 ResNet-50 on a GPU: which kernel is launched when, on which memory. Imports Triton.

All launches of a batch are made to be captured in a CUDA graph: nothing waits for the device, and what lies
between the layers has memory of its own, which every batch uses again. So one batch at a time may be computed
(the engine's slots take turns); only the means that are returned are new memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workers.models import ModelError, int8_kernels
from workers.models.int8_conv import Int8Conv, Tensors
from workers.models.int8_tiles import Device, Table, Tiles, read_table
from workers.models.resnet50_int8 import FIRST, POOLED, SQUARE_BYTES, SQUARES, Int8ResNet50

NETWORK = "resnet50"
# Offsets in the kernels have 31 bits, and the largest tensor 802,816 bytes a photo.
MOST_PHOTOS = (1 << 31) // 802_816 - 1
# The last layer that works on a chunk of the batch at a time; after it tensors are small.
LAST_CHUNKED = "layer1.2.conv3"
# Fewer photos do not fill the GPU even in one lane.
LEAST_PER_LANE = 32
PACK_BLOCK, POOL_ROWS, MEAN_BLOCK = 2048, 64, 256
# Triton's interpreter knows no assembly.
INTERPRETED = int8_kernels.triton.knobs.runtime.interpret
Watch = Callable[[Int8Conv, Tensors, int], None]


def device_of(device: torch.device) -> Device:
    """What tables of tiles are found by."""
    if device.type != "cuda":
        return Device("interpreter", "", 0)
    found = torch.cuda.get_device_properties(device)
    return Device(found.name, f"{found.major}.{found.minor}", found.multi_processor_count)


def launch(layer: Int8Conv, tiles: Tiles, held: Tensors, images: int, asm: bool) -> None:
    """Start the convolution of a layer whose weights and tensors lie on one device."""
    shape, w = layer.shape, layer.w
    rows = images * shape.P * shape.Q
    int8_kernels.conv[(-(-rows // tiles.bm) * (shape.N // tiles.bn),)](
        held[layer.x],
        w,
        layer.mult,
        layer.bias,
        held[layer.res] if layer.res else w,  # what the kernel was compiled without is never read
        held[layer.x2] if layer.x2 else w,
        w if layer.w2 is None else layer.w2,
        layer.mult if layer.mult2 is None else layer.mult2,
        held[layer.name],
        layer.res_mult,
        rows,
        **vars(shape),
        BM=tiles.bm,
        BN=tiles.bn,
        BK=tiles.bk,
        CA=tiles.through_l1,
        ASM=int(asm and not INTERPRETED),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


class Launches:
    """Runs the layers of `network` by the table of its device. `watch`, for tests, is told of every layer."""

    def __init__(self, network: Int8ResNet50, table: Table | None = None) -> None:
        self.device = network.pads.device
        self.table = read_table(device_of(self.device), NETWORK) if table is None else table
        self.watch: Watch | None = None
        self._network = network
        self._layers: Sequence[Int8Conv] = list(network.layers)
        width = self._layers[0].shape.N
        if width % 64:
            raise ModelError(f"precision int8 on a GPU needs a width in steps of 64 channels, not {width}")
        self._chunked = [layer.name for layer in self._layers].index(LAST_CHUNKED) + 1
        self._buffers: dict[tuple[int, str], torch.Tensor] = {}
        self._outgrown: list[torch.Tensor] = []
        self._captured = False
        self._streams: list[Any] = []

    def facts(self) -> dict[str, Any]:
        """What a record says of the kernels."""
        ways = self.table.ways
        version = str(int8_kernels.triton.__version__)
        return {"triton": version, "tiles": self.table.of, "lanes": ways.lanes, "chunk": ways.chunk}

    def means(self, photos: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 224, 224, 3) -> float16 (n, 2048), what the classifier sees."""
        n, lanes = photos.shape[0], self.table.ways.lanes
        if n > MOST_PHOTOS:
            raise ModelError(f"a batch of precision int8 holds {MOST_PHOTOS} photos at most, not {n}")
        if lanes == 1 or n % lanes or n < lanes * LEAST_PER_LANE:
            return self._part(photos, 0)
        while len(self._streams) < lanes - 1:
            self._streams.append(torch.cuda.Stream())
        parts = photos.split(n // lanes)
        here, beside = torch.cuda.current_stream(), self._streams[: lanes - 1]
        means = [torch.empty(0)] * lanes
        for lane, stream in enumerate(beside, 1):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                means[lane] = self._part(parts[lane], lane)
        means[0] = self._part(parts[0], 0)
        for stream in beside:
            here.wait_stream(stream)
        return torch.cat(means)

    def _part(self, photos: torch.Tensor, lane: int) -> torch.Tensor:
        """One lane's photos, from pixels to means."""
        n, chunk = photos.shape[0], self.table.ways.chunk
        if not 0 < chunk < n:
            held = self._pack(photos, lane)
            self._run(self._layers, held, n, lane)
        else:
            early, late = self._layers[: self._chunked], self._layers[self._chunked :]
            each = early[-1].shape.out_bytes(1)
            whole = self._buffer(lane, "chunks", n * each)
            for start in range(0, n, chunk):
                some = photos[start : start + chunk]
                held = self._pack(some, lane)
                held[early[-1].name] = whole[start * each :]
                self._run(early, held, len(some), lane)
            held = {early[-1].name: whole}
            self._run(late, held, n, lane)
        last = self._layers[-1]
        channels = last.shape.N
        means = torch.empty((n, channels), dtype=torch.float16, device=self.device)
        int8_kernels.mean_pool[(n, channels // MEAN_BLOCK)](
            held[last.name],
            means,
            self._network.pool_scale,
            AREA=last.shape.P * last.shape.Q,
            C=channels,
            BLOCK=MEAN_BLOCK,
            num_warps=2,
        )
        return means

    def _pack(self, photos: torch.Tensor, lane: int) -> Tensors:
        n, each = photos.shape[0], SQUARES * SQUARES * SQUARE_BYTES
        out = self._buffer(lane, "photos", n * each)
        int8_kernels.pack_photos[(-(-each // PACK_BLOCK), n)](
            photos, self._network.pads, out, BLOCK=PACK_BLOCK
        )
        return {"photos": out}

    def _run(self, layers: Sequence[Int8Conv], held: Tensors, n: int, lane: int) -> None:
        """Run layers one after the other; an output whose place is in `held` already goes there."""
        for layer in layers:
            shape = layer.shape
            if layer.name not in held:
                held[layer.name] = self._buffer(lane, layer.place, shape.out_bytes(n))
            tiles = self.table.tiles_for(layer.kind, shape, n)
            launch(layer, tiles, held, n, self.table.ways.asm)
            if self.watch is not None:
                self.watch(layer, held, n)
            if layer.name == FIRST:
                rows = n * (shape.P // 2) * (shape.Q // 2)
                held[POOLED] = self._buffer(lane, "out1", rows * shape.N)
                int8_kernels.max_pool[(-(-rows // POOL_ROWS),)](
                    held[FIRST],
                    held[POOLED],
                    rows,
                    H=shape.P,
                    W=shape.Q,
                    C=shape.N,
                    BM=POOL_ROWS,
                    num_warps=4,
                )

    def _buffer(self, lane: int, place: str, size: int) -> torch.Tensor:
        """Memory of one lane and place, as large as was ever needed; an engine captures its largest first."""
        capturing = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self._captured |= capturing
        found = self._buffers.get((lane, place))
        if found is None or found.numel() < size:
            if capturing:
                raise ModelError("a batch of this size must be computed once before it is captured")
            if found is not None and self._captured:
                self._outgrown.append(found)  # a graph captured over it still writes there
            elif found is not None and self.device.type == "cuda":
                found.record_stream(torch.cuda.current_stream())  # which may not be where it was made
            found = self._buffers[lane, place] = torch.empty(size, dtype=torch.int8, device=self.device)
        return found
