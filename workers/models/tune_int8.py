"""Measures the tiles of the int8 ResNet-50's kernels on this machine's GPU and keeps the best in a table.

    python -m workers.models.tune_int8 [--file FILE] [--seconds N] [--without-assembly]

Needed once for each kind of GPU, by who has it: without, every layer runs with default tiles. Kernels are
compiled in parallel first. Every candidate must come to the same bytes as the default. Inputs and outputs
walk through a gigabyte, so that no launch finds its own in the cache. Last the ways through the layers
(lanes, chunks) are measured with the whole network in a CUDA graph.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton

from workers.limits import usable_cpus
from workers.models import open_model
from workers.models.int8_conv import ConvShape, Int8Conv
from workers.models.int8_tiles import TABLE, Table, Tiles, Ways, candidates, default_tiles, with_entry
from workers.models.resnet50_int8 import Int8ResNet50
from workers.models.resnet50_launch import NETWORK, Launches, device_of, launch
from workers.models.scales import Origin, Scales

BATCHES = (128, 64, 256, 32)  # the most telling first: time may run out
WAYS = [Ways(lanes=lanes, chunk=chunk) for lanes in (1, 2) for chunk in (0, 32, 64)]
WAYS_BATCH = 128
RING_BYTES = 1_300_000_000
REPLAYS = 5
CHECKED_PHOTOS = 5
MOST_PROCESSES = 15
MARGIN = 4096  # bytes behind an output that must stay as they were
UNTOUCHED = -99

Job = tuple[str, Tiles]


class Ring:
    """Device memory full of random bytes 0 to 127, handed out piece after piece."""

    def __init__(self, size: int) -> None:
        self._bytes = torch.randint(0, 128, (size,), dtype=torch.int8, device="cuda")
        self._at = 0

    def take(self, size: int) -> torch.Tensor:
        """The next `size` bytes."""
        if self._at + size > self._bytes.numel():
            self._at = 0
        piece = self._bytes[self._at : self._at + size]
        self._at += -(-size // 256) * 256
        return piece


def network(device: str) -> Int8ResNet50:
    """Seeded weights, scales of random photos: speed does not ask for more."""
    torch.manual_seed(1)
    model: Any = open_model("resnet50", {}).eval()
    with torch.no_grad():
        model.fold()
    model.requires_grad_(False)
    photos = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    parts = model.calibrated([photos], "max", False)
    scales = Scales(
        model="resnet50", model_hash="", weights="seeded", method="max", samples=Origin(), **parts
    )
    return Int8ResNet50(model, scales, torch.device(device))


def kinds(layers: list[Int8Conv]) -> dict[str, Int8Conv]:
    """One layer of every kind, with outputs all over 0 to 127 of inputs that are."""
    found: dict[str, Int8Conv] = {}
    for layer in layers:
        if layer.kind in found:
            continue
        one = found[layer.kind] = copy.deepcopy(layer)
        one.mult *= 40 / (one.shape.steps**0.5 * 73 * 64) / one.mult.mean()
        one.bias.copy_(20 * torch.randn_like(one.bias))
        one.res_mult = 0.5
        if one.mult2 is not None:
            one.mult2.copy_(one.mult * 0.7)
    return found


def inputs(layer: Int8Conv, images: int, ring: Ring) -> dict[str, torch.Tensor]:
    """The tensors that a layer reads."""
    shape = layer.shape
    held = {layer.x: ring.take(images * shape.H * shape.W * shape.PITCH)}
    if layer.res:
        held[layer.res] = ring.take(shape.out_bytes(images))
    if layer.x2:
        held[layer.x2] = ring.take(images * shape.P * shape.Q * shape.STRIDE2**2 * shape.C2)
    return held


def microseconds(work: Callable[[], Any], launches: int) -> float:
    """Of one of the `launches` in `work`: the median of several replays of its graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return median(times)


def measure(layer: Int8Conv, tiles: Tiles, images: int, ring: Ring, asm: bool) -> float:
    """Microseconds of one launch."""
    launches = 16 if images <= 64 else 8

    def work() -> None:
        for _ in range(launches):
            held = inputs(layer, images, ring) | {layer.name: ring.take(layer.shape.out_bytes(images))}
            launch(layer, tiles, held, images, asm)

    return microseconds(work, launches)


def output(layer: Int8Conv, tiles: Tiles, held: dict[str, torch.Tensor], asm: bool) -> torch.Tensor:
    """What a few photos come to; ValueError if not exactly their rows are written."""
    size = layer.shape.out_bytes(CHECKED_PHOTOS)
    room = torch.full((size + MARGIN,), UNTOUCHED, dtype=torch.int8, device="cuda")
    launch(layer, tiles, held | {layer.name: room}, CHECKED_PHOTOS, asm)
    if not bool((room[size:] == UNTOUCHED).all()) or bool((room[:size] == UNTOUCHED).any()):
        raise ValueError("it writes other rows than its own")
    return room[:size]


class Tuning:
    """The measurements of one machine, until a moment."""

    def __init__(self, asm: bool, until_s: float) -> None:
        self.asm, self._until_s = asm, until_s
        self.network = network("cuda")
        self.layers = list(self.network.layers)
        self.kinds = kinds(self.layers)
        self.table: dict[str, dict[int, Tiles]] = {}
        self._ring = Ring(RING_BYTES)
        self._given = {
            kind: {name: one.clone() for name, one in inputs(layer, CHECKED_PHOTOS, self._ring).items()}
            for kind, layer in self.kinds.items()
        }

    def out_of_time(self) -> bool:
        """Whether no further measurement should begin."""
        return time.monotonic() > self._until_s

    def kind(self, kind: str, images: int) -> float:
        """Measure a kind's candidates and keep the fastest; microseconds of a launch."""
        layer = self.kinds[kind]
        expected = output(layer, default_tiles(layer.shape), self._given[kind], self.asm)
        times: list[tuple[float, Tiles]] = []
        for tiles in candidates(layer.shape):
            if times and self.out_of_time():
                break
            try:
                if not torch.equal(output(layer, tiles, self._given[kind], self.asm), expected):
                    raise ValueError("it computes something else than the default")
                times.append((measure(layer, tiles, images, self._ring, self.asm), tiles))
            except (ValueError, RuntimeError, triton.errors.TritonError) as error:
                if "CUDA error" in str(error):  # nothing on this device works any more
                    raise
                print(f"{kind} {tiles}: left out: {type(error).__name__}: {str(error)[:160]}", flush=True)
        best = min(times)
        self.table.setdefault(kind, {})[images] = best[1]
        print(
            f"{kind:12} {images:4} {best[0]:8.1f} us {tuple(best[1])}, default {times[0][0]:.1f}", flush=True
        )
        return best[0]

    def batch(self, images: int) -> None:
        """All kinds at one number of images."""
        total = 0.0
        for kind in self.kinds:
            if self.out_of_time():
                print(f"{images} images: out of time at {kind}", flush=True)
                return
            total += self.kind(kind, images) * sum(layer.kind == kind for layer in self.layers)
        print(
            f"{images} images: convolutions {total:.0f} us, {images / total * 1e6:,.0f} images/s", flush=True
        )

    def ways(self) -> Ways:
        """The fastest way through the layers, of those that answer alike."""
        photos = torch.randint(0, 256, (WAYS_BATCH, 224, 224, 3), dtype=torch.uint8, device="cuda")
        expected, times = None, {}
        for ways in (replace(each, asm=self.asm) for each in WAYS):
            launches = Launches(self.network, Table("", ways, self.table))
            found = launches.means(photos)
            expected = found if expected is None else expected
            if not torch.equal(found, expected):
                print(f"{ways}: left out: it computes something else than {WAYS[0]}", flush=True)
                continue
            times[ways] = microseconds(lambda launches=launches: launches.means(photos), 1)  # type: ignore[misc]
            print(f"{ways}: {WAYS_BATCH / times[ways] * 1e6:,.0f} images/s", flush=True)
        return min(times, key=lambda ways: times[ways])


# ---- compiling ahead, in processes that need no GPU ----


def _pretend(target: tuple[str, int, int]) -> None:
    """A driver that names the device for which to compile; a context each would cost seconds."""
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget(*target)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

        def get_active_torch_device(self) -> str:
            return "cpu"

    triton.runtime.driver.set_active(Driver())


def _compile(target: tuple[str, int, int], shape: ConvShape, tiles: Tiles, asm: bool) -> str | None:
    """Compile one configuration into Triton's cache; what went wrong, if anything."""
    from workers.models.int8_kernels import conv

    _pretend(target)
    i8, f32 = torch.int8, torch.float32
    bm, bn, bk, warps, stages, ca = tiles
    try:
        conv.warmup(
            i8, i8, f32, f32, i8, i8, i8, f32, i8, 0.5, 1 << 20, **vars(shape), BM=bm, BN=bn, BK=bk, CA=ca,
            ASM=int(asm), num_warps=warps, num_stages=stages, grid=(1,),
        )  # fmt: skip
    except Exception as error:  # the compiler's own; measuring will meet it again and leave the tiles out
        return f"{tiles}: {type(error).__name__}: {str(error)[-200:]}"
    return None


def compile_ahead(layers: dict[str, Int8Conv], asm: bool, target: tuple[str, int, int]) -> Iterator[str]:
    """Compile every candidate of every kind in parallel; yields what went wrong."""
    jobs = [(layer.shape, tiles) for layer in layers.values() for tiles in candidates(layer.shape)]
    with ProcessPoolExecutor(min(MOST_PROCESSES, usable_cpus()), mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_compile, target, shape, tiles, asm) for shape, tiles in jobs]
        yield from (told for one in waiting if (told := one.result()) is not None)


def main() -> None:
    """Tune and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", type=Path, default=TABLE, help="the table to write into")
    parser.add_argument("--seconds", type=float, default=240.0, help="begin no measurement after these")
    parser.add_argument("--without-assembly", action="store_true", help="the kernels in Triton's own words")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "torch finds no GPU to measure on\n")
    began = time.monotonic()
    device, asm = device_of(torch.device("cuda", 0)), not options.without_assembly
    tuning = Tuning(asm, began + options.seconds)
    target = ("cuda", int(device.capability.replace(".", "")), 32)
    wrong = list(compile_ahead(tuning.kinds, asm, target))
    print(
        f"compiled in {time.monotonic() - began:.0f} s; {len(wrong)} failed", *wrong[:5], sep="\n", flush=True
    )
    made = {"torch": str(torch.__version__), "triton": str(triton.__version__)}

    def keep(ways: Ways) -> None:
        body = json.loads(options.file.read_text()) if options.file.exists() else {"tuned": []}
        table = Table(device.name, ways, tuning.table)
        text = json.dumps(with_entry(body, device, NETWORK, table, made), indent=1)
        options.file.write_text(text + "\n")

    for images in BATCHES:
        tuning.batch(images)
        keep(Ways(asm))
    keep(tuning.ways())
    print(f"{device.name}: tuned in {time.monotonic() - began:.0f} s, {options.file}", flush=True)


if __name__ == "__main__":
    main()
