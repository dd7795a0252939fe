"""How the int8 convolution is cut into tiles: those worth measuring, the tuned ones, and the default.

The tuned ones lie in int8_tiles.json, by device, network, kind of layer and images at a time; tune_int8
makes them. A device that is not in it, but has a known one's compute capability and number of
multiprocessors, takes that one's; any other takes the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from workers.models.int8_conv import ConvShape

TABLE = Path(__file__).with_name("int8_tiles.json")
# Shared memory of a multiprocessor that a program's pipeline may take (227 KiB on sm_90).
PIPELINE_BYTES = 200_000
# Rows, channels and warps of a tile. wgmma takes 64 rows for every four warps.
SHAPES = ((128, 64, 4), (128, 128, 8), (64, 128, 4), (128, 128, 4), (256, 64, 8), (128, 256, 8), (64, 256, 4),
          (64, 64, 4), (256, 128, 8))  # fmt: skip
SUMS_PER_THREAD = 128  # 32-bit registers that two sums may fill; beyond it they spill


class Tiles(NamedTuple):
    """BM rows by BN channels by BK bytes of K; warps, stages of the pipeline, copies through L1 or not."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    through_l1: int = 0


@dataclass(frozen=True)
class Ways:
    """How a batch goes through the layers.

    asm: the kernels' pieces of assembly. lanes: so many parts of the batch side by side, on streams of their
    own. chunk: so many images at a time through the early layers, whose tensors then stay in the L2 cache; 0:
    all at once.
    """

    asm: bool = True
    lanes: int = 1
    chunk: int = 0


@dataclass(frozen=True)
class Table:
    """What was tuned for a device, if anything; `of` names the device."""

    of: str = "defaults"
    ways: Ways = Ways()
    tiles: Mapping[str, Mapping[int, Tiles]] = field(default_factory=dict)

    def tiles_for(self, kind: str, shape: ConvShape, images: int) -> Tiles:
        """The tuned tiles of the nearest measured number of images, else the default."""
        known = self.tiles.get(kind)
        return known[min(known, key=lambda n: abs(n - images))] if known else default_tiles(shape)


def default_tiles(shape: ConvShape) -> Tiles:
    """What runs where nothing was tuned."""
    bn, bk = min(shape.N, 128), min(128, shape.C)
    return Tiles(128, bn, bk, 4 if bn == 64 else 8, min(3, max(shape.steps // bk, 1)))


def candidates(shape: ConvShape) -> list[Tiles]:
    """Tiles worth measuring, the default first."""
    found = [default_tiles(shape)]
    for bm, bn, warps in SHAPES:
        sums = bm * bn // (32 * warps)
        if bn > shape.N or (shape.C2 and 2 * sums > SUMS_PER_THREAD):
            continue
        bk = 128 if shape.C % 128 == 0 else 64
        steps = max(shape.steps // bk, shape.C2 // bk)
        for stages in (1,) if steps == 1 else (2,) if steps == 2 else (3, 4):
            if (bm + bn) * bk * stages <= PIPELINE_BYTES:
                found.append(Tiles(bm, bn, bk, warps, stages))
                if shape.R > 1 and stages == 3:  # only windows meet pixels again
                    found.append(Tiles(bm, bn, bk, warps, stages, 1))
        stages = min(3, shape.C // 256)
        fits = sums <= 64 and (bm + bn) * 256 * stages <= PIPELINE_BYTES
        if fits and shape.R == 1 and shape.C % 256 == 0 and not shape.C2:
            found.append(Tiles(bm, bn, 256, warps, stages))
    return list(dict.fromkeys(found))


class Device(NamedTuple):
    """What a table is for."""

    name: str
    capability: str
    multiprocessors: int


def read_table(device: Device, network: str, file: Path = TABLE) -> Table:
    """What was tuned for `device`, or for one like it."""
    entries = [entry for entry in json.loads(file.read_text())["tuned"] if entry["network"] == network]
    same = [entry for entry in entries if entry["device"] == device.name]
    alike = [
        entry for entry in entries if [entry["capability"], entry["multiprocessors"]] == list(device[1:])
    ]
    for entry in [*same, *alike]:
        tiles = {
            kind: {int(images): Tiles(*map(int, words.split())) for images, words in by.items()}
            for kind, by in entry["tiles"].items()
        }
        return Table(entry["device"], Ways(**entry["ways"]), tiles)
    return Table()


def with_entry(
    body: dict[str, Any], device: Device, network: str, table: Table, made: dict[str, str]
) -> dict[str, Any]:
    """The file's contents with a device's entry new or replaced; `made` are the versions it was made with."""
    kept = [entry for entry in body["tuned"] if (entry["device"], entry["network"]) != (device.name, network)]
    entry = {
        "device": device.name,
        "capability": device.capability,
        "multiprocessors": device.multiprocessors,
        "network": network,
        "made": made,
        "ways": asdict(table.ways),
        # As text a configuration stays on one line: BM BN BK warps stages through_l1.
        "tiles": {
            kind: {str(n): " ".join(map(str, tile)) for n, tile in sorted(by.items())}
            for kind, by in table.tiles.items()
        },
    }
    return {"tuned": [*kept, entry]}
